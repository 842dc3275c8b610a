//! One body, from bytes to observations: only what must be repaired is repaired, what was addressed can be read, and
//! the address agrees with the content.

use ::bytes::Bytes;
use schema::event::{Event, Kind};
use schema::ids::is_id;
use schema::json;
use schema::observation::Observation;
use schema::observe::observe;
use schema::picture::Picture;
use schema::record::{Received, Record, Source, Subject};
use schema::timestamp::Timestamp;
use serde_json::Value;
use serde_json::value::RawValue;

use crate::postgres;

/// Takes a body as its input.
pub fn check(input: &[u8]) {
    if let Ok(text) = std::str::from_utf8(input) {
        mending(text);
    } else {
        assert!(json::storable(input).is_err());
    }
    for source in [Source::Webhook, Source::EventsApi, Source::Sweep] {
        let at = Timestamp::from_micros(1_700_000_000_000_000);
        match Record::receive(Bytes::copy_from_slice(input), source, None, at) {
            Received::Event(record) => addressed(&record),
            Received::Quarantined(record, _) => {
                assert!(record.subject.is_quarantine() && record.body == input && is_id(&record.id));
                header(&record.event_type);
            }
            Received::NotOurs => {}
        }
    }
}

/// JSON stays JSON, becomes something that Postgres can store, and changes only where it must.
fn mending(text: &str) {
    let mended = json::storable(text.as_bytes()).expect("it is UTF-8");
    if serde_json::from_str::<&RawValue>(text).is_err() {
        return;
    }
    postgres::json(&mended);
    assert_eq!(json::storable(mended.as_bytes()).unwrap(), mended, "mended twice");
    // serde_json reads neither nesting deeper than 128 nor halves of surrogate pairs, so it cannot compare those.
    if let (Ok(before), Ok(after)) = (serde_json::from_str(text), serde_json::from_str(&mended)) {
        assert!(same(&before, &after), "changed more than it had to");
    }
}

fn same(before: &Value, after: &Value) -> bool {
    let plain = |text: &str| text.replace('\0', "\u{FFFD}");
    match (before, after) {
        (Value::String(before), Value::String(after)) => plain(before) == *after,
        (Value::Array(before), Value::Array(after)) => {
            before.len() == after.len() && before.iter().zip(after).all(|(b, a)| same(b, a))
        }
        (Value::Object(before), Value::Object(after)) => {
            // If two names become one, the last of them counts. A map does not know which that was.
            after.len() < before.len()
                || before
                    .iter()
                    .all(|(name, b)| after.get(&plain(name)).is_some_and(|a| same(b, a)))
        }
        // A number that `numeric` cannot store, such as 1e-99999, which a float reads as 0.
        (Value::Number(_), Value::String(_)) => true,
        (before, after) => before == after,
    }
}

/// Checks a value in a message's header.
fn header(text: &str) {
    assert!(
        text.len() <= 128 && text.split('.').all(is_id),
        "not a valid header: {text:?}"
    );
}

/// Checks that an addressed record can be read, and that its address is right.
fn addressed(record: &Record) {
    let subject = record.subject.as_str();
    assert!(is_id(&record.id));
    header(&record.event_type);
    let words: Vec<&str> = subject.split('.').collect();
    assert!(
        words.len() >= 4 && words.iter().all(|word| is_id(word)),
        "{subject}"
    );
    let text = json::storable(&record.body).unwrap();
    let event = Event::parse(&text).expect("what is addressed is an event");
    assert!(event.id.as_str() == record.id && event.event_type == record.event_type);
    let observations =
        observe(&event, record.source, record.received_at).expect("what is addressed can be observed");
    if matches!(event.kind, Kind::Token | Kind::Other) {
        assert!(observations.is_empty());
        return;
    }
    about(&record.subject, &words, &observations[0]);
    let mut picture = Picture::default();
    for observation in observations {
        picture.add(observation);
    }
    postgres::holds(&picture);
}

/// Checks the first observation, which is of the object that the subject names. The others are of embedded objects.
fn about(subject: &Subject, words: &[&str], observation: &Observation<'_>) {
    let (named, directory, taken) = match observation {
        Observation::Directory(row) => (
            vec!["directory"],
            &row.directory,
            row.gone.is_some() || words.last() == Some(&"deactivated"),
        ),
        Observation::User(user, row) => {
            let state = row
                .attributes
                .as_ref()
                .map(|versioned| versioned.attributes.state.as_deref());
            let left = matches!(state, Some(Some(state)) if state != "active");
            (
                vec!["user", user.as_str()],
                &row.directory,
                row.gone.is_some() || left,
            )
        }
        Observation::Group(group, row) => (vec!["group", group.as_str()], &row.directory, row.gone.is_some()),
        Observation::Membership(group, user, row) => (
            vec!["membership", group.as_str(), user.as_str()],
            &row.directory,
            row.gone.is_some(),
        ),
    };
    assert_eq!(words[2..words.len() - 1], named);
    assert_eq!(words[1], directory.as_str());
    assert_eq!(subject.is_removal(), taken, "{subject}");
}
