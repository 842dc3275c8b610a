//! The verdict on a signature, against a second implementation: HMAC written out over SHA-256, and an independent
//! parser of the header. Both must agree on every header, body and clock.

use std::time::Duration;

use ::bytes::Bytes;
use axum::http::{HeaderMap, HeaderValue};
use ingest::signature::{HEADER, LONGEST_HEADER, Unverified, Verifier, sign};
use service::settings::Secret;
use sha2::{Digest as _, Sha256};
use time::OffsetDateTime;

const NOW_MS: i64 = 1_790_000_000_000;
const TOLERANCE_MS: i64 = 180_000;
const FIRST: &str = "whsec_first";
/// Longer than a block of SHA-256, so that the key is hashed.
const SECOND: &str = "whsec_second_0123456789012345678901234567890123456789012345678901234567890123456789";

/// The input is a header, a separator (0x1E), and a body. In the header, some bytes stand for what no fuzzer finds by
/// itself: 0x01 for the first secret's signature, 0x02 for the second's, 0x03 for the time, 0x04 for a time just too
/// old, 0x05 for another secret's signature, 0x06 for that of another body.
pub fn check(input: &[u8]) {
    let split = input.iter().position(|b| *b == 0x1E).unwrap_or(input.len());
    let (header, body) = (&input[..split], input.get(split + 1..).unwrap_or_default());
    let header = filled_in(header, body);
    let Ok(value) = HeaderValue::from_bytes(&header) else {
        return;
    };
    let headers = HeaderMap::from_iter([(HEADER.parse().unwrap(), value)]);
    let verdict = verifier()
        .verify(&headers, Bytes::copy_from_slice(body), now())
        .map(|webhook| {
            let (kept, signature, received_at) = webhook.into_parts();
            assert!(kept == body && signature.as_bytes() == header && received_at == now());
        });
    assert_eq!(verdict, plain_verdict(&header, body));
    what_is_signed_is_believed(body);
}

fn now() -> OffsetDateTime {
    OffsetDateTime::from_unix_timestamp_nanos(i128::from(NOW_MS) * 1_000_000).unwrap()
}

fn verifier() -> Verifier {
    let secrets = Secret::from(format!("{FIRST}, {SECOND}").as_str());
    Verifier::new(&secrets, Duration::from_millis(TOLERANCE_MS.unsigned_abs())).unwrap()
}

fn what_is_signed_is_believed(body: &[u8]) {
    let header = sign(&Secret::from(SECOND), now(), body).unwrap();
    let headers = HeaderMap::from_iter([(HEADER.parse().unwrap(), HeaderValue::from_str(&header).unwrap())]);
    assert!(
        verifier()
            .verify(&headers, Bytes::copy_from_slice(body), now())
            .is_ok()
    );
}

fn filled_in(header: &[u8], body: &[u8]) -> Vec<u8> {
    let old = (NOW_MS - TOLERANCE_MS - 1).to_string();
    let now = NOW_MS.to_string();
    // The time to sign: the first in the header, or else the current time.
    let timed: Vec<u8> = header
        .iter()
        .flat_map(|b| match b {
            3 => now.as_bytes().to_vec(),
            4 => old.as_bytes().to_vec(),
            other => vec![*other],
        })
        .collect();
    let named = timed.split(|b| *b == b',').find_map(|part| {
        let text = std::str::from_utf8(part).ok()?.trim().strip_prefix('t')?;
        text.trim_start()
            .strip_prefix('=')
            .map(|time| time.trim().to_owned())
    });
    let time = named.unwrap_or(now);
    let mac =
        |secret: &str, body: &[u8]| hex::encode(hmac(secret.as_bytes(), &signed(&time, body))).into_bytes();
    timed
        .iter()
        .flat_map(|b| match b {
            1 => mac(FIRST, body),
            2 => mac(SECOND, body),
            5 => mac("whsec_other", body),
            6 => mac(FIRST, &[body, b" "].concat()),
            other => vec![*other],
        })
        .collect()
}

fn signed(time: &str, body: &[u8]) -> Vec<u8> {
    [time.as_bytes(), b".", body].concat()
}

/// HMAC-SHA256 as RFC 2104 defines it.
fn hmac(key: &[u8], message: &[u8]) -> [u8; 32] {
    let mut block = [0_u8; 64];
    if key.len() > block.len() {
        block[..32].copy_from_slice(&Sha256::digest(key));
    } else {
        block[..key.len()].copy_from_slice(key);
    }
    let inner = Sha256::digest([&block.map(|b| b ^ 0x36)[..], message].concat());
    Sha256::digest([&block.map(|b| b ^ 0x5C)[..], &inner].concat()).into()
}

/// Applies the rules one after another.
fn plain_verdict(header: &[u8], body: &[u8]) -> Result<(), Unverified> {
    let text: String = header.iter().map(|b| char::from(*b)).collect();
    if text.len() > LONGEST_HEADER || !text.chars().all(|c| c == '\t' || (' '..='~').contains(&c)) {
        // A signature header is printable ASCII.
        return Err(Unverified::Malformed);
    }
    let parts: Vec<_> = text.split(',').map(|part| part.split_once('=')).collect();
    if parts.contains(&None) {
        return Err(Unverified::Malformed);
    }
    let parts: Vec<(&str, &str)> = parts
        .into_iter()
        .flatten()
        .map(|(n, v)| (n.trim(), v.trim()))
        .collect();
    let values = |name: &str| -> Vec<&str> {
        parts
            .iter()
            .filter(|(n, _)| *n == name)
            .map(|(_, v)| *v)
            .collect()
    };
    let (times, signatures) = (values("t"), values("v1"));
    let is_hash = |text: &str| text.len() == 64 && text.chars().all(|c| c.is_ascii_hexdigit());
    let is_time = |text: &str| (1..=16).contains(&text.len()) && text.chars().all(|c| c.is_ascii_digit());
    if times.len() != 1
        || !is_time(times[0])
        || signatures.is_empty()
        || !signatures.iter().all(|s| is_hash(s))
    {
        return Err(Unverified::Malformed);
    }
    let age = NOW_MS - times[0].parse::<i64>().unwrap();
    if !(-TOLERANCE_MS..=TOLERANCE_MS).contains(&age) {
        return Err(Unverified::Stale { age_s: age / 1000 });
    }
    let right = [FIRST, SECOND].map(|secret| hex::encode(hmac(secret.as_bytes(), &signed(times[0], body))));
    let fits = signatures.iter().any(|s| right.contains(&s.to_ascii_lowercase()));
    if fits { Ok(()) } else { Err(Unverified::Wrong) }
}
