//! Checks without Postgres what it can store: text, JSON and moments. Simpler than `schema::json`, and independent of
//! it.

use schema::directory::{Text, Times};
use schema::observation::{Mark, Registers, Version};
use schema::picture::Picture;
use schema::timestamp::Timestamp;
use serde_json::value::RawValue;
use time::OffsetDateTime;

/// Panics unless every row of `picture` can be stored as it is.
pub fn holds(picture: &Picture<'_>) {
    for row in picture.directories.values() {
        registers(row);
        if let Some(versioned) = &row.attributes {
            let a = &versioned.attributes;
            texts([&a.organization_id, &a.name, &a.kind, &a.state, &a.external_key]);
            times(a.times);
        }
    }
    for row in picture.users.values() {
        registers(row);
        if let Some(versioned) = &row.attributes {
            let a = &versioned.attributes;
            texts([
                &a.organization_id,
                &a.idp_id,
                &a.email,
                &a.username,
                &a.first_name,
                &a.last_name,
            ]);
            texts([&a.name, &a.job_title, &a.state, &a.role]);
            a.roles.iter().for_each(|role| text(role));
            [a.custom_attributes, a.raw_attributes]
                .into_iter()
                .flatten()
                .for_each(json);
            times(a.times);
        }
    }
    for row in picture.groups.values() {
        registers(row);
        if let Some(versioned) = &row.attributes {
            let a = &versioned.attributes;
            texts([&a.organization_id, &a.idp_id, &a.name]);
            a.raw_attributes.into_iter().for_each(json);
            times(a.times);
        }
    }
    picture.memberships.values().for_each(registers);
}

fn registers<A>(row: &Registers<'_, A>) {
    row.organization
        .iter()
        .for_each(|organization| text(organization));
    for Mark { at, .. } in row.seen.iter().chain(&row.gone) {
        moment(*at);
    }
    if let Some(versioned) = &row.attributes {
        let Version {
            updated_at,
            observed_at,
            ..
        } = versioned.version;
        moment(updated_at);
        moment(observed_at);
    }
}

fn times(times: Times) {
    times
        .created_at
        .into_iter()
        .chain(times.updated_at)
        .for_each(moment);
}

fn texts<'t, 'a: 't, const N: usize>(all: [&'t Option<Text<'a>>; N]) {
    all.into_iter().flatten().for_each(|one| text(one));
}

/// Panics if `text` contains a NUL.
pub fn text(text: &str) {
    assert!(!text.contains('\0'), "text with a NUL");
}

/// Panics unless `at` stays the same moment in the type that is sent to Postgres (or else memory and table would order
/// differently), and can be printed and parsed.
pub fn moment(at: Timestamp) {
    assert_eq!(
        Timestamp::from(OffsetDateTime::from(at)),
        at,
        "a moment that changes on its way to Postgres"
    );
    assert_eq!(Timestamp::parse(&at.to_string()), Some(at));
}

/// Panics unless `text` is JSON that `jsonb` accepts.
pub fn json(text: &str) {
    serde_json::from_str::<&RawValue>(text).expect("JSON");
    let bytes = text.as_bytes();
    let (mut at, mut depth, mut deepest) = (0, 0_usize, 0);
    while at < bytes.len() {
        match bytes[at] {
            b'"' => at = string(text, at + 1),
            b'-' | b'0'..=b'9' => {
                let rest = &text[at..];
                let end = rest
                    .find([',', ']', '}', ' ', '\n', '\r', '\t'])
                    .unwrap_or(rest.len());
                number(&rest[..end]);
                at += end;
            }
            byte => {
                depth = match byte {
                    b'{' | b'[' => depth + 1,
                    b'}' | b']' => depth - 1,
                    _ => depth,
                };
                deepest = deepest.max(depth);
                at += 1;
            }
        }
    }
    assert!(deepest <= 1_001, "nested {deepest} deep");
}

/// Checks the string whose contents begin at `at`. Returns the position after it.
fn string(text: &str, mut at: usize) -> usize {
    let unit = |at: usize| {
        text.get(at..at + 6)
            .filter(|e| e.starts_with("\\u"))
            .map(|e| u32::from_str_radix(&e[2..], 16).unwrap())
    };
    loop {
        match text.as_bytes()[at] {
            b'"' => return at + 1,
            b'\\' => match unit(at) {
                Some(0) => panic!("an escaped NUL"),
                Some(0xD800..=0xDBFF) => {
                    assert!(matches!(unit(at + 6), Some(0xDC00..=0xDFFF)), "half a pair");
                    at += 12;
                }
                Some(0xDC00..=0xDFFF) => panic!("the other half of a pair"),
                Some(_) => at += 6,
                None => at += 2,
            },
            _ => at += 1,
        }
    }
}

/// `numeric`: up to 131,072 digits before the point and 16,383 after it. Written out, without its exponent, a number is at
/// most 400 digits longer.
fn number(number: &str) {
    let (mantissa, exponent) = number.split_once(['e', 'E']).unwrap_or((number, "0"));
    let exponent: i64 = exponent.parse().expect("an exponent that Postgres can handle");
    let (integer, fraction) = mantissa
        .trim_start_matches('-')
        .split_once('.')
        .unwrap_or((mantissa, ""));
    let digits = |part: &str| i64::try_from(part.trim_start_matches('-').len()).unwrap();
    assert!(
        digits(integer) + exponent <= 131_072 && digits(fraction) - exponent <= 16_383,
        "beyond numeric"
    );
    let point = digits(integer) + exponent;
    let all = digits(integer) + digits(fraction);
    // Zeros are written before the digits, after them, or not at all.
    let zeros = (1 - point).max(point - all).max(0);
    assert!(zeros <= 400, "{zeros} more digits when written out");
}
