//! Forgeries and oddities, judged by us and, where the two should agree, by WorkOS's own SDK.

use std::time::{SystemTime, UNIX_EPOCH};

use hyper::http::HeaderValue;
use proptest::prelude::*;
use workos::helpers::webhook_verification::{WebhookVerifier, compute_webhook_signature};

use super::*;

const NOW_MS: u64 = 1_790_000_000_000;
const TOLERANCE: Duration = Duration::from_mins(3);
const SECRET: &str = "whsec_first";
const BODY: &str = r#"{"id":"event_01","event":"dsync.user.created"}"#;

fn at(ms: u64) -> OffsetDateTime {
    OffsetDateTime::UNIX_EPOCH + Duration::from_millis(ms)
}

fn signature(secret: &str, time: &str, body: &str) -> String {
    compute_webhook_signature(secret, time, body)
}

fn valid(time: &str) -> String {
    format!("t={time}, v1={}", signature(SECRET, time, BODY))
}

fn verdict_on(headers: &HeaderMap, secrets: &str, body: &[u8]) -> Result<VerifiedWebhook, Unverified> {
    let verifier = Verifier::new(&Secret::from(secrets), TOLERANCE).unwrap();
    verifier.verify(headers, Bytes::copy_from_slice(body), at(NOW_MS))
}

fn one(header: &[u8]) -> HeaderMap {
    HeaderMap::from_iter([(HEADER.parse().unwrap(), HeaderValue::from_bytes(header).unwrap())])
}

fn ours(header: &str) -> Option<Unverified> {
    verdict_on(&one(header.as_bytes()), SECRET, BODY.as_bytes()).err()
}

fn sdk_believes(header: &str, body: &str) -> bool {
    let now: SystemTime = UNIX_EPOCH + Duration::from_millis(NOW_MS);
    let judge = WebhookVerifier::new(SECRET)
        .with_tolerance(TOLERANCE)
        .with_clock(move || now);
    judge.verify_payload(header, body).is_ok()
}

#[test]
fn what_is_signed_is_believed_and_comes_out_as_it_came() {
    let header = valid(&NOW_MS.to_string());
    let webhook = verdict_on(&one(header.as_bytes()), SECRET, BODY.as_bytes()).unwrap();
    let (body, signature, received_at) = webhook.into_parts();
    assert_eq!(
        (body.as_ref(), signature, received_at),
        (BODY.as_bytes(), header, at(NOW_MS))
    );
}

#[test]
fn what_we_sign_the_sdk_believes() {
    let header = sign(&Secret::from(SECRET), at(NOW_MS), BODY.as_bytes()).unwrap();
    assert_eq!(header, valid(&NOW_MS.to_string()));
    assert!(sdk_believes(&header, BODY));
}

#[test]
fn a_known_value() {
    // From the SDK's own tests; openssl computes the same.
    let header = sign(&Secret::from("secret"), at(1_700_000_000_000), b"body").unwrap();
    let expected = "t=1700000000000, v1=32850522003ebbce01a416e5d5df8ec8354a96e921cac7d0ebbaeef5732bdaea";
    assert_eq!(header, expected);
}

#[test]
fn forgeries_and_oddities_on_which_the_sdk_agrees() {
    let now = NOW_MS.to_string();
    let right = signature(SECRET, &now, BODY);
    let wrong = signature("whsec_other", &now, BODY);
    let (edge_old, edge_new) = ((NOW_MS - 180_000).to_string(), (NOW_MS + 180_000).to_string());
    let (old, new) = ((NOW_MS - 180_001).to_string(), (NOW_MS + 180_001).to_string());
    let malformed = Some(Unverified::Malformed);
    for (header, verdict) in [
        (format!("t={now},v1={right}"), None),
        (format!("v1={right},t={now}"), None),
        (format!("  v1 = {right} ,\tt =\t{now}  "), None),
        (valid(&edge_old), None),
        (valid(&edge_new), None),
        (valid(&old), Some(Unverified::Stale { age_s: 180 })),
        (valid(&new), Some(Unverified::Stale { age_s: -180 })),
        (valid("0"), Some(Unverified::Stale { age_s: 1_790_000_000 })),
        (format!("t={now}, v1={wrong}"), Some(Unverified::Wrong)),
        // A signature for another time, a time in seconds, and a signature of zeros.
        (format!("t={}, v1={right}", NOW_MS + 1), Some(Unverified::Wrong)),
        (
            format!("t={now}, v1={}", signature(SECRET, &edge_old, BODY)),
            Some(Unverified::Wrong),
        ),
        (
            valid(&(NOW_MS / 1000).to_string()),
            Some(Unverified::Stale { age_s: 1_788_210_000 }),
        ),
        (format!("t={now}, v1={}", "0".repeat(64)), Some(Unverified::Wrong)),
        (String::new(), malformed),
        (",".to_owned(), malformed),
        (format!("t={now}"), malformed),
        (format!("v1={right}"), malformed),
        (format!("t=, v1={right}"), malformed),
        (format!("t={now}, v1="), malformed),
        (format!("t={now}, v1={}", &right[..62]), malformed),
        (format!("t={now}, v1={right}00"), malformed),
        (format!("t={now}, v1={}g", &right[..63]), malformed),
        (format!("t={now}, v1={right},"), malformed),
        (format!("t={now} v1={right}"), malformed),
        (format!("t={now}; v1={right}"), malformed),
        (format!("{now},{right}"), malformed),
        (format!("T={now}, V1={right}"), malformed),
        (format!("t={now}, v0={right}"), malformed),
        (valid(&format!("-{now}")), malformed),
        (valid(&format!("{now}.5")), malformed),
        (valid(&format!("0x{NOW_MS:x}")), malformed),
        (valid("99999999999999999999999999"), malformed),
        (valid("18446744073709551615"), malformed),
    ] {
        assert_eq!(ours(&header), verdict, "{header}");
        assert_eq!(
            sdk_believes(&header, BODY),
            verdict.is_none(),
            "the SDK on {header}"
        );
    }
}

#[test]
fn where_we_differ_from_the_sdk_on_purpose() {
    let now = NOW_MS.to_string();
    let right = signature(SECRET, &now, BODY);
    let wrong = signature("whsec_other", &now, BODY);
    // Of several signatures, one that matches is enough, wherever it stands. The SDK looks only at the last.
    let rotating = format!("t={now}, v1={right}, v1={wrong}");
    // Unknown schemes are ignored. The SDK refuses them, which would lose webhooks the day WorkOS adds one.
    let newer = format!("t={now}, v1={right}, v2=abc");
    // Hexadecimal digits may be upper case.
    let upper = format!("t={now}, v1={}", right.to_uppercase());
    for header in [rotating, newer, upper] {
        assert_eq!(
            (ours(&header), sdk_believes(&header, BODY)),
            (None, false),
            "{header}"
        );
    }
    // Two times, a sign before the time, an overlong header: the SDK accepts them, we do not.
    let twice = format!("t=1, t={now}, v1={right}");
    let signed = valid(&format!("+{now}"));
    let endless = format!("t={now}, v1={right}{}", " ".repeat(LONGEST_HEADER));
    for header in [twice, signed, endless] {
        let verdict = (ours(&header), sdk_believes(&header, BODY));
        assert_eq!(verdict, (Some(Unverified::Malformed), true), "{header}");
    }
}

#[test]
fn headers_that_http_allows_and_we_do_not() {
    let header = valid(&NOW_MS.to_string());
    let none = verdict_on(&HeaderMap::new(), SECRET, BODY.as_bytes());
    assert_eq!(none.err(), Some(Unverified::Missing));
    let mut two = one(header.as_bytes());
    two.append(HEADER, HeaderValue::from_str(&header).unwrap());
    assert_eq!(
        verdict_on(&two, SECRET, BODY.as_bytes()).err(),
        Some(Unverified::Malformed)
    );
    let not_text = one(&[header.as_bytes(), b", x=\xff"].concat());
    assert_eq!(
        verdict_on(&not_text, SECRET, BODY.as_bytes()).err(),
        Some(Unverified::Malformed)
    );
}

#[test]
fn every_byte_of_the_body_counts() {
    let now = NOW_MS.to_string();
    let header = one(valid(&now).as_bytes());
    for changed in [
        &b""[..],
        &BODY.as_bytes()[1..],
        format!("{BODY}\n").as_bytes(),
        format!(" {BODY}").as_bytes(),
    ] {
        assert_eq!(
            verdict_on(&header, SECRET, changed).err(),
            Some(Unverified::Wrong)
        );
    }
    let odd: &[u8] = b"\x00\xff not text \r\n";
    let mut mac = Keyed::new_from_slice(SECRET.as_bytes()).unwrap();
    mac.update(&[now.as_bytes(), b".", odd].concat());
    let header = format!("t={now},v1={}", hex::encode(mac.finalize().into_bytes()));
    assert!(verdict_on(&one(header.as_bytes()), SECRET, odd).is_ok());
}

#[test]
fn while_rotating_every_secret_is_good() {
    let now = NOW_MS.to_string();
    for (signed_with, secrets, good) in [
        ("whsec_new", "whsec_old,whsec_new", true),
        ("whsec_old", " whsec_old , whsec_new ", true),
        ("whsec_gone", "whsec_old,whsec_new", false),
        ("whsec_old,whsec_new", "whsec_old,whsec_new", false),
        ("", "whsec_old,whsec_new", false),
    ] {
        let header = format!("t={now}, v1={}", signature(signed_with, &now, BODY));
        let verdict = verdict_on(&one(header.as_bytes()), secrets, BODY.as_bytes());
        assert_eq!(verdict.is_ok(), good, "{signed_with} against {secrets}");
    }
}

#[test]
fn an_empty_secret_is_refused_wherever_it_stands() {
    for secrets in ["", " ", ",", "a,", ",a", "a,,b", "a, ,b"] {
        let error = Verifier::new(&Secret::from(secrets), TOLERANCE)
            .err()
            .expect(secrets)
            .to_string();
        assert!(
            error.starts_with("WORKOS_WEBHOOK_SECRET (--workos-webhook-secret) contains an empty secret")
        );
        assert!(
            sign(&Secret::from(secrets), at(NOW_MS), b"").is_err(),
            "{secrets}"
        );
    }
}

/// A header's time, right or wrong.
fn time() -> impl Strategy<Value = String> {
    let (now, stale) = (NOW_MS.to_string(), (NOW_MS - 200_000).to_string());
    prop_oneof![6 => Just(now.clone()), 1 => Just(stale), 1 => Just(format!("{now}0")), 1 => "[ -~]{0,20}"]
}

/// A header's signature, right or wrong.
fn mark() -> impl Strategy<Value = String> {
    let now = NOW_MS.to_string();
    let (right, wrong) = (
        signature(SECRET, &now, BODY),
        signature("whsec_other", &now, BODY),
    );
    let cut = right.clone();
    let cut = (0..right.len()).prop_map(move |at| cut[..at].to_owned());
    prop_oneof![6 => Just(right), 1 => Just(wrong), 1 => cut, 1 => "[0-9a-f]{64}", 1 => "[ -~]{0,20}"]
}

/// A part of a header, perhaps with spaces around its name and value.
fn part(name: &'static str, value: impl Strategy<Value = String>) -> impl Strategy<Value = String> {
    let space = || prop_oneof![Just(""), Just(" "), Just("\t ")];
    (space(), space(), space(), value, space())
        .prop_map(move |(a, b, c, value, d)| format!("{a}{name}{b}={c}{value}{d}"))
}

/// Nearly a header: any part may be missing, and the parts come in any order.
fn header() -> impl Strategy<Value = String> {
    let parts = (
        prop::option::weighted(0.95, part("t", time())),
        prop::option::weighted(0.95, part("v1", mark())),
        prop::option::weighted(0.05, "[ -~]{0,10}"),
    );
    let parts = parts.prop_map(|(a, b, c)| [a, b, c].into_iter().flatten().collect::<Vec<_>>());
    parts.prop_shuffle().prop_map(|parts| parts.join(","))
}

/// Headers on which we differ from the SDK on purpose: see `where_we_differ_from_the_sdk_on_purpose`.
fn is_judged_otherwise(header: &str) -> bool {
    let named = |wanted: &str| {
        let parts = header.split(',').filter_map(|part| part.split_once('='));
        parts.filter(|(name, _)| name.trim() == wanted).count()
    };
    let known = named("t") + named("v1");
    named("t") > 1 || named("v1") > 1 || known < header.split(',').count() || header.contains('+')
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn headers_put_together_at_random_are_judged_as_the_sdk_judges(header in header()) {
        prop_assume!(!is_judged_otherwise(&header));
        prop_assert_eq!(ours(&header).is_none(), sdk_believes(&header, BODY), "{}", header);
    }

    #[test]
    fn no_change_of_a_single_byte_of_a_signed_body_is_believed(at in 0..BODY.len(), change in 1..=255_u8) {
        let mut body = BODY.as_bytes().to_vec();
        body[at] ^= change;
        let header = one(valid(&NOW_MS.to_string()).as_bytes());
        prop_assert_eq!(verdict_on(&header, SECRET, &body).err(), Some(Unverified::Wrong));
    }

    #[test]
    fn a_time_is_good_exactly_within_the_tolerance(off in -400_000_i64..400_000) {
        let header = valid(&(NOW_MS.cast_signed() + off).to_string());
        prop_assert_eq!(ours(&header).is_none(), off.abs() <= 180_000);
        prop_assert_eq!(sdk_believes(&header, BODY), off.abs() <= 180_000);
    }

    #[test]
    fn any_bytes_at_all_are_judged_without_a_panic(
        header in prop::collection::vec(prop_oneof![0x20_u8..0x7f, 0x80_u8..=0xff], 0..200),
        body: Vec<u8>,
    ) {
        prop_assert!(verdict_on(&one(&header), SECRET, &body).is_err());
    }

    #[test]
    fn any_body_signed_is_believed(body: Vec<u8>, secret in "[!-+--~]{1,40}") {
        let header = sign(&Secret::from(secret.as_str()), at(NOW_MS), &body).unwrap();
        prop_assert!(verdict_on(&one(header.as_bytes()), &secret, &body).is_ok());
    }
}
