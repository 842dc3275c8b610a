//! A batch of good and bad records, up to the dead letters: only the bad ones are set aside, they change nothing for
//! the others, the reason reveals nothing of the content, and everything that would be written can be written.

use ::bytes::Bytes;
use journal::Entry;
use projector::erase_marks::{Marks, possible_ids};
use projector::fold::{Outcome, Texts, fold, single};
use schema::ids::is_id;
use schema::json;
use schema::record::{Received, Record, Source, Subject};
use schema::timestamp::Timestamp;

use crate::bytes::Choices;
use crate::postgres;

/// The end of one record and the beginning of the next.
const END: u8 = 0x1E;

/// The input is records that end with 0x1E. Each is one byte that decides how the record got into the log, one byte for
/// its source, and a body.
pub fn check(input: &[u8]) {
    let entries: Vec<Entry> = (1..)
        .zip(input.split(|b| *b == END))
        .map(|(seq, part)| entry(seq, part))
        .collect();
    let texts = Texts::of(&entries);
    let folded = fold(&entries, &texts);
    assert_eq!(folded.outcomes.len(), entries.len());
    postgres::holds(&folded.picture);
    folded.newest.iter().for_each(|(directory, at)| {
        postgres::text(directory);
        postgres::moment(*at);
    });
    let mut good = Vec::new();
    for (entry, outcome) in entries.iter().zip(&folded.outcomes) {
        let dead = matches!(outcome, Outcome::Dead(_));
        if let Outcome::Dead(reason) = outcome {
            tells_nothing(&reason.to_string());
        } else {
            good.push(entry.clone());
        }
        tried_again(entry, dead);
        searched(entry);
    }
    let texts = Texts::of(&good);
    let alone = fold(&good, &texts);
    assert_eq!(
        alone.picture, folded.picture,
        "a bad record changed the effect of the others"
    );
    assert_eq!(alone.newest, folded.newest);
}

fn entry(seq: u64, part: &[u8]) -> Entry {
    let mut choices = Choices::of(part);
    let (way, source) = (
        choices.byte(),
        choices.one(&[Source::Webhook, Source::EventsApi, Source::Sweep]),
    );
    let body = Bytes::copy_from_slice(part.get(2..).unwrap_or_default());
    let received_at = Timestamp::from_micros(1_700_000_000_000_000);
    let record = match Record::receive(body.clone(), source, None, received_at) {
        Received::Event(record) | Received::Quarantined(record, _) if way % 4 != 0 => record,
        // A record that somebody else put into the log, under an address of their choice.
        _ => Record {
            subject: Subject::from_log("dsync.directory_1.user.directory_user_1.updated"),
            id: String::new(),
            event_type: String::new(),
            source,
            received_at,
            signature: None,
            body,
        },
    };
    Entry {
        seq,
        appended_at: received_at,
        record,
    }
}

/// Checks that a reason is one of the fixed ones, none of which contains a word of the body.
fn tells_nothing(reason: &str) {
    let missing = ["id", "event", "data", "directory_id", "user", "group"]
        .map(|name| format!("`{name}` is missing or not readable"));
    let fixed = [
        "not UTF-8",
        "not a JSON object",
        "quarantined: genuine, but not an event that can be addressed",
    ];
    assert!(
        fixed.contains(&reason) || missing.iter().any(|one| one == reason),
        "{reason}"
    );
}

/// Checks that retrying a dead letter has the same outcome as the record would have had in its place.
fn tried_again(entry: &Entry, dead: bool) {
    let record = &entry.record;
    let again = json::storable(&record.body).and_then(|text| {
        single(&text, record.source, record.received_at).map(|picture| postgres::holds(&picture))
    });
    assert!(again.is_err() == dead || record.subject.is_quarantine());
}

/// Checks that a search for a person in a record works.
fn searched(entry: &Entry) {
    let body = &entry.record.body;
    assert!(possible_ids(body).into_iter().all(is_id));
    let _ = entry.record.subject.user();
    let mut marks = Marks::new("directory_user_1", []);
    marks.learn(body);
    let found = marks.are_in(body);
    // Escapes may turn it into another id.
    let named = !body.contains(&b'\\') && possible_ids(body).contains(&"directory_user_1");
    assert!(found || !named);
}
