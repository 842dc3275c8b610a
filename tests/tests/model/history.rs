//! Random histories: few objects and few moments, to which everything happens, with every oddity of the wire format.
//!
//! Written against the wire format, not against dsync's types: bodies are JSON made by hand.

use rand::prelude::*;
use serde_json::{Map, Value, json};

/// One record of a history, as it will be appended.
#[derive(Debug, Clone)]
pub(crate) struct Body {
    /// The event's JSON.
    pub(crate) json: Vec<u8>,
    /// Whether a sweep wrote it.
    pub(crate) is_sweep: bool,
}

/// A mixed history of `length` records; the same `seed` gives the same history.
pub(crate) fn history(seed: u64, length: usize) -> Vec<Body> {
    let mut rng = StdRng::seed_from_u64(seed);
    (0..length).map(|place| body(&mut rng, place)).collect()
}

const KINDS: &[&str] = &[
    "dsync.activated",
    "dsync.deactivated",
    "dsync.deleted",
    "dsync.user.created",
    "dsync.user.created",
    "dsync.user.updated",
    "dsync.user.updated",
    "dsync.user.deleted",
    "dsync.group.created",
    "dsync.group.updated",
    "dsync.group.deleted",
    "dsync.group.user_added",
    "dsync.group.user_added",
    "dsync.group.user_added",
    "dsync.group.user_removed",
    "dsync.group.user_removed",
    "dsync.token.created",
    "dsync.something.new",
    "sweep.directory.listed",
    "sweep.directory.missing",
    "sweep.user.listed",
    "sweep.user.missing",
    "sweep.group.listed",
    "sweep.group.missing",
    "sweep.membership.listed",
    "sweep.membership.missing",
];

fn body(rng: &mut StdRng, place: usize) -> Body {
    let kind = *KINDS.choose(rng).expect("kinds");
    let directory = rng.random_range(1..=3);
    let data = match kind {
        kind if kind.contains("membership") || kind.contains(".user_") => json!({
            "directory_id": format!("directory_{directory}"),
            "user": user(rng, directory),
            "group": group(rng, directory),
        }),
        kind if kind.contains(".user.") => user(rng, directory),
        kind if kind.contains(".group.") => group(rng, directory),
        kind if kind.contains("token") => json!({"directory_id": format!("directory_{directory}")}),
        _ => directory_object(rng, directory),
    };
    let mut event = json!({
        "object": "event",
        // Some ids occur twice with different content. The tables must not depend on which comes first.
        "id": format!("event_{:04}", if rng.random_ratio(1, 20) { place / 2 } else { place }),
        "event": kind,
        "data": data,
    });
    if !rng.random_ratio(1, 25) {
        event["created_at"] = moment(rng);
    }
    let mut json = serde_json::to_string(&event).expect("JSON");
    // Values that JSON libraries do not write, and that Postgres refuses.
    json = json
        .replace("NUL", "\\u0000")
        .replace("LONE", "\\ud800")
        .replace("\"HUGE\"", "1e400000");
    Body {
        json: json.into_bytes(),
        is_sweep: kind.starts_with("sweep."),
    }
}

/// One of few moments, in one of the forms that WorkOS sends. Now and then it is null or not a moment at all.
fn moment(rng: &mut StdRng) -> Value {
    let second = rng.random_range(0..12);
    let (minute, second) = (second / 6, second % 6 * 10);
    match rng.random_range(0..30) {
        0 => json!(format!("2024-05-01 10:{minute:02}:{second:02}.000")),
        1 => json!(format!("2024-05-01T12:{minute:02}:{second:02}.000000+02:00")),
        2 => json!("not a moment"),
        3 => Value::Null,
        4 => json!(format!("2024-05-01T10:{minute:02}:{second:02}.000001Z")),
        _ => json!(format!("2024-05-01T10:{minute:02}:{second:02}.000Z")),
    }
}

fn with_times(rng: &mut StdRng, mut object: Map<String, Value>) -> Value {
    if !rng.random_ratio(1, 12) {
        object.insert("updated_at".to_owned(), moment(rng));
    }
    if rng.random_ratio(3, 4) {
        object.insert("created_at".to_owned(), moment(rng));
    }
    Value::Object(object)
}

/// An organization: usually the directory's, now and then missing or another one.
fn organization(rng: &mut StdRng, directory: u32) -> Value {
    match rng.random_range(0..8) {
        0 => Value::Null,
        1 => json!("org_other"),
        _ => json!(format!("org_{directory}")),
    }
}

fn object(rng: &mut StdRng, id: &str, directory: u32) -> Map<String, Value> {
    let mut object = Map::new();
    object.insert("id".to_owned(), json!(id));
    // Now and then, records contradict each other about an object's directory.
    let home = if rng.random_ratio(1, 60) { 1 } else { directory };
    object.insert("directory_id".to_owned(), json!(format!("directory_{home}")));
    object.insert("organization_id".to_owned(), organization(rng, directory));
    object
}

fn user(rng: &mut StdRng, directory: u32) -> Value {
    let number = rng.random_range(1..=4);
    let mut object = object(rng, &format!("directory_user_{directory}{number}"), directory);
    let word = *["Ada", "Bo", "NULname", "LONE surrogate", "ünï"]
        .choose(rng)
        .expect("words");
    object.insert("first_name".to_owned(), json!(word));
    object.insert("idp_id".to_owned(), json!(number % 2));
    if rng.random_bool(0.5) {
        object.insert("email".to_owned(), json!(format!("{word}@example.com")));
    } else {
        object.insert(
            "custom_attributes".to_owned(),
            json!({"email": "custom@example.com", "deep": [[[{"NULkey": "HUGE"}]]], "n": 1.50}),
        );
    }
    if let Some(state) = [Some("active"), Some("inactive"), Some("suspended"), None]
        .choose(rng)
        .expect("states")
    {
        object.insert("state".to_owned(), json!(state));
    }
    if rng.random_bool(0.5) {
        object.insert(
            "role".to_owned(),
            json!({"slug": *["admin", "member"].choose(rng).expect("roles")}),
        );
    }
    if rng.random_bool(0.2) {
        object.insert(
            "roles".to_owned(),
            json!([{"slug": "a\"b\\c"}, {"slug": "NUL"}, "bare"]),
        );
    }
    object.insert(
        "raw_attributes".to_owned(),
        json!({"a.b": word, "list": [1, null, true]}),
    );
    with_times(rng, object)
}

fn group(rng: &mut StdRng, directory: u32) -> Value {
    let number = rng.random_range(1..=3);
    let mut object = object(rng, &format!("directory_group_{directory}{number}"), directory);
    object.insert(
        "name".to_owned(),
        json!(*["Staff", "Staff", "Ops"].choose(rng).expect("names")),
    );
    with_times(rng, object)
}

fn directory_object(rng: &mut StdRng, directory: u32) -> Value {
    let mut object = Map::new();
    object.insert("object".to_owned(), json!("directory"));
    object.insert("id".to_owned(), json!(format!("directory_{directory}")));
    object.insert("organization_id".to_owned(), organization(rng, directory));
    object.insert(
        "state".to_owned(),
        json!(*["linked", "active", "deleting"].choose(rng).expect("states")),
    );
    with_times(rng, object)
}
