//! The signature that WorkOS puts on a webhook. It is only computed here, never checked.

use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

use crate::clock::Millis;

/// The value of a `WorkOS-Signature` header: `t=<ms>, v1=<hex HMAC-SHA256 of "<t>.<raw body>">`.
pub fn sign(secret: &str, at: Millis, body: &[u8]) -> String {
    let mut mac = Hmac::<Sha256>::new_from_slice(secret.as_bytes()).expect("HMAC takes a key of any length");
    mac.update(at.0.to_string().as_bytes());
    mac.update(b".");
    mac.update(body);
    format!("t={}, v1={}", at.0, hex::encode(mac.finalize().into_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn matches_the_value_in_the_official_sdk() {
        assert_eq!(
            sign("secret", Millis(1_700_000_000_000), b"body"),
            "t=1700000000000, v1=32850522003ebbce01a416e5d5df8ec8354a96e921cac7d0ebbaeef5732bdaea"
        );
    }
}
