//! Proof that WorkOS sent these bytes: the header `WorkOS-Signature`, checked over the body as it arrived.
//!
//! A [`VerifiedWebhook`] can be made only here, so unverified bytes cannot reach the log. The check cannot be switched
//! off: there is no verifier without a secret.

use std::time::Duration;

use bytes::Bytes;
use hmac::{Hmac, KeyInit as _, Mac as _};
use hyper::HeaderMap;
use service::settings::{Secret, SettingError};
use sha2::Sha256;
use time::OffsetDateTime;

/// The header that carries the time and the signatures: `t=<ms since 1970>, v1=<hex>`.
pub const HEADER: &str = "WorkOS-Signature";

/// Longer headers are refused without being parsed, because the header is stored with the event. A dozen signatures
/// fit.
pub const LONGEST_HEADER: usize = 1024;

/// A time has no more digits than this.
const LONGEST_TIME: usize = 16;

/// A webhook whose bytes WorkOS signed recently.
#[derive(Debug)]
pub struct VerifiedWebhook {
    body: Bytes,
    signature: String,
    received_at: OffsetDateTime,
}

impl VerifiedWebhook {
    /// The body and the signature header as they arrived, and when they arrived.
    pub fn into_parts(self) -> (Bytes, String, OffsetDateTime) {
        (self.body, self.signature, self.received_at)
    }
}

/// Why verification failed. For the logs only: the sender is not told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unverified {
    /// There is no signature header.
    #[error("there is no signature header")]
    Missing,
    /// There is more than one signature header, or it does not have the expected form.
    #[error("the signature header is malformed")]
    Malformed,
    /// Signed too long ago, or in the future. The request may be a replay, or a clock may be wrong.
    #[error("the signature's time is {age_s} s behind this machine's clock")]
    Stale {
        /// In whole seconds; negative for a time in the future.
        age_s: i64,
    },
    /// None of the signatures matches any of the secrets.
    #[error("the signature matches none of the secrets")]
    Wrong,
}

type Keyed = Hmac<Sha256>;

/// Checks signatures against the current secrets.
pub struct Verifier {
    keys: Vec<Keyed>,
    tolerance: Duration,
}

impl Verifier {
    /// A verifier for `secrets`: one, or several separated by commas while rotating. The time of a signature may be up
    /// to `tolerance` before or after the clock. An error when any secret is empty.
    pub fn new(secrets: &Secret, tolerance: Duration) -> Result<Self, SettingError> {
        let keys = split(secrets)?.into_iter().map(keyed).collect();
        Ok(Self { keys, tolerance })
    }

    /// Accepts `body` if `headers` contain a signature for it that was made at `now`, give or take the tolerance.
    pub fn verify(
        &self,
        headers: &HeaderMap,
        body: Bytes,
        now: OffsetDateTime,
    ) -> Result<VerifiedWebhook, Unverified> {
        let header = only_header(headers)?;
        let signed = Signed::parse(header).ok_or(Unverified::Malformed)?;
        let age_ms = now.unix_timestamp_nanos() / 1_000_000 - i128::from(signed.at_ms);
        if age_ms.unsigned_abs() > self.tolerance.as_millis() {
            return Err(Unverified::Stale {
                age_s: i64::try_from(age_ms / 1000).unwrap_or(i64::MAX),
            });
        }
        if !self.fits(&signed, &body) {
            return Err(Unverified::Wrong);
        }
        Ok(VerifiedWebhook {
            body,
            signature: header.to_owned(),
            received_at: now,
        })
    }

    /// Compares every secret with every signature, in constant time and without stopping at the first match.
    fn fits(&self, signed: &Signed<'_>, body: &[u8]) -> bool {
        let mut fits = false;
        for key in &self.keys {
            let expected = mac(key, signed.at, body);
            for candidate in &signed.signatures {
                fits |= expected.clone().verify_slice(candidate).is_ok();
            }
        }
        fits
    }
}

/// The value of a valid signature header for `body`, signed at the time `at` with the first of `secrets`.
pub fn sign(secrets: &Secret, at: OffsetDateTime, body: &[u8]) -> Result<String, SettingError> {
    let time = (at.unix_timestamp_nanos() / 1_000_000).to_string();
    let first = split(secrets)?.into_iter().next().unwrap_or_default();
    let signature = mac(&keyed(first), &time, body).finalize().into_bytes();
    Ok(format!("t={time}, v1={}", hex::encode(signature)))
}

/// The secrets, trimmed. With an empty secret, anybody could make a valid signature.
fn split(secrets: &Secret) -> Result<Vec<&str>, SettingError> {
    let secrets: Vec<_> = secrets.expose().split(',').map(str::trim).collect();
    if secrets.contains(&"") {
        let reason = "contains an empty secret: separate secrets with single commas";
        return Err(SettingError::malformed("WORKOS_WEBHOOK_SECRET", reason));
    }
    Ok(secrets)
}

fn keyed(secret: &str) -> Keyed {
    Keyed::new_from_slice(secret.as_bytes()).expect("HMAC takes keys of any length")
}

fn mac(key: &Keyed, time: &str, body: &[u8]) -> Keyed {
    let mut mac = key.clone();
    mac.update(time.as_bytes());
    mac.update(b".");
    mac.update(body);
    mac
}

fn only_header(headers: &HeaderMap) -> Result<&str, Unverified> {
    let mut all = headers.get_all(HEADER).iter();
    let header = all.next().ok_or(Unverified::Missing)?;
    if all.next().is_some() || header.len() > LONGEST_HEADER {
        return Err(Unverified::Malformed);
    }
    header.to_str().map_err(|_| Unverified::Malformed)
}

/// The contents of the header, not yet verified.
struct Signed<'a> {
    /// The time exactly as written, because that text is what was signed.
    at: &'a str,
    at_ms: u64,
    signatures: Vec<[u8; 32]>,
}

impl<'a> Signed<'a> {
    /// Parts may come in any order, with spaces around them. Parts with other names are ignored: WorkOS may add
    /// schemes, and v1 must be valid whatever they contain.
    fn parse(header: &'a str) -> Option<Self> {
        let (mut at, mut signatures) = (None, Vec::new());
        for part in header.split(',') {
            let (name, value) = part.split_once('=')?;
            match (name.trim(), value.trim()) {
                ("t", time) if at.is_none() => at = Some(time),
                // With two times, there is no telling which one was signed.
                ("t", _) => return None,
                ("v1", signature) => signatures.push(digest(signature)?),
                _ => {}
            }
        }
        let at = at?;
        let digits = at.len() <= LONGEST_TIME && at.bytes().all(|b| b.is_ascii_digit());
        let at_ms = at.parse().ok().filter(|_| digits)?;
        (!signatures.is_empty()).then_some(Self {
            at,
            at_ms,
            signatures,
        })
    }
}

fn digest(hexadecimal: &str) -> Option<[u8; 32]> {
    let mut digest = [0; 32];
    hex::decode_to_slice(hexadecimal, &mut digest).ok()?;
    Some(digest)
}

#[cfg(test)]
#[path = "signature_tests.rs"]
mod tests;
