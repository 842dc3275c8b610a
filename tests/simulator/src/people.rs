//! Made-up companies, teams and people, built from syllables. Nobody is real, and the same seed gives the same names.

use rand::{RngExt, rngs::StdRng, seq::IndexedRandom};
use serde_json::{Map, Value, json};

use crate::model::{Directory, Profile};

const SYLLABLES: [&str; 24] = [
    "ba", "ce", "di", "fo", "gu", "ha", "je", "ki", "lo", "mu", "na", "pe", "ri", "so", "tu", "va", "we",
    "xi", "yo", "zu", "bra", "cle", "dri", "flo",
];
const DEPARTMENTS: [&str; 8] = [
    "Engineering",
    "Sales",
    "Finance",
    "Support",
    "Legal",
    "People",
    "Marketing",
    "Operations",
];
const TITLES: [&str; 6] = [
    "Engineer",
    "Analyst",
    "Manager",
    "Director",
    "Assistant",
    "Specialist",
];

/// A capitalised word of two or three syllables.
pub(crate) fn word(rng: &mut StdRng) -> String {
    let count = rng.random_range(2..=3);
    let letters: String = (0..count).map(|_| pick(rng, &SYLLABLES)).collect();
    letters[..1].to_uppercase() + &letters[1..]
}

/// The name of an organization or directory.
pub(crate) fn company(rng: &mut StdRng) -> String {
    format!(
        "{} {}",
        word(rng),
        pick(rng, &["Works", "Labs", "Foods", "Systems", "& Co"])
    )
}

/// The name of a group.
pub(crate) fn team(rng: &mut StdRng) -> String {
    format!("{} {}", pick(rng, &DEPARTMENTS), word(rng))
}

/// Another job title.
pub(crate) fn title(rng: &mut StdRng) -> String {
    format!("{} {}", pick(rng, &DEPARTMENTS), pick(rng, &TITLES))
}

/// A person as the customer's identity provider would describe one, with the gaps and oddities that the directory's
/// options ask for.
pub(crate) fn profile(rng: &mut StdRng, directory: &Directory) -> Profile {
    let (first, last) = (word(rng), word(rng));
    let login = format!(
        "{}.{}.{:04x}",
        first.to_lowercase(),
        last.to_lowercase(),
        rng.random::<u16>()
    );
    let email = format!("{login}@{}", directory.domain);
    let department = pick(rng, &DEPARTMENTS);
    let mut profile = Profile {
        idp_id: Some(format!("{:016x}", rng.random::<u64>())),
        username: Some(login),
        first_name: Some(first),
        last_name: Some(last),
        job_title: Some(title(rng)),
        state: Some("active".to_owned()),
        emails: None,
        raw_attributes: Some(json!({
            "userName": email,
            "urn:ietf:params:scim:schemas:extension:enterprise:2.0:User": { "department": department },
        })),
        custom: Some(custom(rng, department)),
        email: Some(email),
    };
    if directory.options.sparse {
        thin_out(rng, &mut profile);
    }
    if directory.options.odd {
        make_odd(rng, &mut profile);
    }
    profile
}

fn custom(rng: &mut StdRng, department: &str) -> Map<String, Value> {
    let mut custom = Map::new();
    custom.insert("department".to_owned(), json!(department));
    custom.insert("employee_number".to_owned(), json!(rng.random_range(1..100_000)));
    custom
}

/// Removes about a third of the optional attributes. Some people keep an address in `emails` only.
fn thin_out(rng: &mut StdRng, profile: &mut Profile) {
    let mut lacks = || rng.random_bool(0.3);
    if lacks() {
        let address = profile.email.take();
        profile.emails = lacks().then(|| {
            json!([
                { "primary": false, "type": "home", "value": null },
                { "primary": true, "type": "work", "value": address },
            ])
        });
    }
    for text in [
        &mut profile.idp_id,
        &mut profile.username,
        &mut profile.first_name,
        &mut profile.last_name,
        &mut profile.job_title,
    ] {
        text.take_if(|_| lacks());
    }
    profile.raw_attributes.take_if(|_| lacks());
    profile.custom.take_if(|_| lacks());
}

/// Adds values that real identity providers send and real databases refuse.
fn make_odd(rng: &mut StdRng, profile: &mut Profile) {
    let odd = match rng.random_range(0..5) {
        0 => json!({ "a.key.with.dots": { "": "an empty key" } }),
        1 => json!({ "note": "before\u{0}after", "key\u{0}too": [1, "\u{0}"] }),
        2 => json!({ "deep": (0..60).fold(json!("bottom"), |inner, _| json!([inner])) }),
        3 => json!({ "big": u64::MAX, "small": i64::MIN, "blob": "x".repeat(20_000) }),
        _ => json!({ "text": "\u{202e}right to left, \u{1f389}, \u{feff} and \"quotes\" \\ too" }),
    };
    if rng.random_bool(0.2) {
        profile.job_title = Some("Chief\u{0}Officer".to_owned());
    }
    if let (Some(custom), Value::Object(fields)) = (&mut profile.custom, &odd) {
        custom.extend(fields.clone());
    }
    profile.raw_attributes = Some(odd);
}

fn pick<'a>(rng: &mut StdRng, from: &[&'a str]) -> &'a str {
    from.choose(rng).copied().unwrap_or_default()
}
