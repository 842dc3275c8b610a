//! Order, duplication and batching never matter. A history folded as a whole, and the same history shuffled, with
//! repetitions, in batches, give the same picture, in which every register is the greatest of all observed.

use ::bytes::Bytes;
use journal::Entry;
use projector::fold::{Texts, fold};
use schema::event::Event;
use schema::observation::{Observation, Registers};
use schema::observe::observe;
use schema::picture::Picture;
use schema::record::{Received, Record, Source};
use schema::timestamp::Timestamp;

use crate::bytes::Choices;
use crate::postgres;

/// The input's bytes choose the events, about few objects at few moments, and then their order.
pub fn check(input: &[u8]) {
    let mut choices = Choices::of(input);
    let count = 1 + choices.below(12);
    let entries: Vec<Entry> = (0..count)
        .map(|seq| entry(&mut choices, seq as u64 + 1))
        .collect();
    let mut shuffled: Vec<Entry> = entries.iter().rev().cloned().collect();
    for _ in 0..choices.below(16) {
        let again = shuffled[choices.below(shuffled.len())].clone();
        let place = choices.below(shuffled.len() + 1);
        shuffled.insert(place, again);
    }
    for last in (1..shuffled.len()).rev() {
        shuffled.swap(last, choices.below(last + 1));
    }
    let shuffled = in_batches(&mut choices, shuffled);
    let texts = Texts::of(&entries);
    let whole = fold(&entries, &texts).picture;
    let other_texts: Vec<Texts<'_>> = shuffled.iter().map(|batch| Texts::of(batch)).collect();
    let mut joined = Picture::default();
    for (batch, texts) in shuffled.iter().zip(&other_texts) {
        join(&mut joined, fold(batch, texts).picture);
    }
    assert_eq!(
        whole, joined,
        "order, duplication or batching changed the picture"
    );
    greatest(&entries, &whole);
    postgres::holds(&whole);
}

/// Adds one picture to another, as a batch's statement does to the tables.
fn join<'a>(into: &mut Picture<'a>, picture: Picture<'a>) {
    picture
        .directories
        .into_values()
        .for_each(|row| into.add(Observation::Directory(row)));
    picture
        .users
        .into_iter()
        .for_each(|(id, row)| into.add(Observation::User(id, row)));
    picture
        .groups
        .into_iter()
        .for_each(|(id, row)| into.add(Observation::Group(id, row)));
    for ((group, user), row) in picture.memberships {
        into.add(Observation::Membership(group, user, row));
    }
}

fn in_batches(choices: &mut Choices<'_>, mut entries: Vec<Entry>) -> Vec<Vec<Entry>> {
    let mut batches = Vec::new();
    while !entries.is_empty() {
        let rest = entries.split_off((1 + choices.below(6)).min(entries.len()));
        batches.push(std::mem::replace(&mut entries, rest));
    }
    batches
}

/// An event from a small world, with an odd value now and then.
fn entry(choices: &mut Choices<'_>, seq: u64) -> Entry {
    let kind = choices.one(&[
        "dsync.activated",
        "dsync.deactivated",
        "dsync.deleted",
        "dsync.user.created",
        "dsync.user.updated",
        "dsync.user.deleted",
        "dsync.group.created",
        "dsync.group.updated",
        "dsync.group.deleted",
        "dsync.group.user_added",
        "dsync.group.user_removed",
        "sweep.directory.listed",
        "sweep.directory.missing",
        "sweep.user.listed",
        "sweep.user.missing",
        "sweep.group.listed",
        "sweep.membership.listed",
        "sweep.membership.missing",
        "dsync.new.kind",
    ]);
    let source = match kind.split_once('.') {
        Some(("sweep", _)) => Source::Sweep,
        _ => choices.one(&[Source::Webhook, Source::EventsApi]),
    };
    let (user, group) = (object(choices, "u"), object(choices, "g"));
    let data = match kind {
        _ if kind.contains(".user_") || kind.contains(".membership.") => {
            let directory = choices.one(&[r#""directory_id":"d1","#, r#""directory_id":"d2","#, ""]);
            format!(r#"{{{directory}"user":{user},"group":{group}}}"#)
        }
        _ if kind.contains(".user.") => user,
        _ if kind.contains(".group.") => group,
        _ => object(choices, "d"),
    };
    let (id, created) = (choices.below(4), moment(choices));
    let body = format!(r#"{{"id":"event_{id}","event":"{kind}","created_at":{created},"data":{data}}}"#);
    let received_at =
        Timestamp::from_micros(1_704_067_200_000_000 + i64::try_from(choices.below(8)).unwrap() * 1_000_000);
    let body = Bytes::from(body.into_bytes());
    let record = match Record::receive(body, source, None, received_at) {
        Received::Event(record) | Received::Quarantined(record, _) => record,
        Received::NotOurs => unreachable!("all are directory events"),
    };
    Entry {
        seq,
        appended_at: received_at,
        record,
    }
}

fn object(choices: &mut Choices<'_>, kind: &str) -> String {
    let id = choices.one(&["1", "2"]);
    let directory = choices.one(&[r#","directory_id":"d1""#, r#","directory_id":"d2""#, ""]);
    let organization = choices.one(&[
        "",
        r#","organization_id":"org_1""#,
        r#","organization_id":"org_2""#,
        r#","organization_id":"no id""#,
    ]);
    let state = choices.one(&[
        "",
        r#","state":"active""#,
        r#","state":"inactive""#,
        r#","state":7"#,
    ]);
    let odd = choices.one(&[
        "",
        r#","name":"a""#,
        r#","name":"\u0000""#,
        r#","raw_attributes":{"n":1e999999}"#,
        r#","roles":["a","\ud800"]"#,
    ]);
    let times = match choices.below(4) {
        0 => String::new(),
        1 => format!(r#","created_at":{}"#, moment(choices)),
        _ => format!(r#","updated_at":{}"#, moment(choices)),
    };
    format!(r#"{{"id":"{kind}{id}"{directory}{organization}{state}{odd}{times}}}"#)
}

/// A moment, as JSON.
fn moment(choices: &mut Choices<'_>) -> String {
    match choices.byte() {
        few @ 0..200 => format!(r#""2024-01-01T00:00:0{}Z""#, few % 6),
        200..210 => r#""2024-01-01T00:00:03.0000009Z""#.to_owned(),
        210..220 => r#""2024-01-01 00:00:03.000001""#.to_owned(),
        220..225 => r#""9999-12-31T23:59:59.999999-23:59""#.to_owned(),
        225..230 => r#""0000-01-01T00:00:00+23:59""#.to_owned(),
        230..235 => r#""2024-01-01T00:00:60Z""#.to_owned(),
        235..240 => "null".to_owned(),
        240..245 => "1704067200".to_owned(),
        _ => serde_json::Value::from(String::from_utf8_lossy(choices.some(40))).to_string(),
    }
}

/// Checks that every register of `picture` is the greatest of those observed in all entries.
fn greatest(entries: &[Entry], picture: &Picture<'_>) {
    let texts: Vec<_> = entries
        .iter()
        .filter_map(|entry| schema::json::storable(&entry.record.body).ok())
        .collect();
    let mut all = Vec::new();
    for (entry, text) in entries.iter().zip(&texts) {
        if let Ok(event) = Event::parse(text)
            && !entry.record.subject.is_quarantine()
        {
            all.extend(observe(&event, entry.record.source, entry.record.received_at).unwrap_or_default());
        }
    }
    for (id, row) in &picture.directories {
        let said = all.iter().filter_map(|observation| match observation {
            Observation::Directory(said) if said.directory == *id => Some(said),
            _ => None,
        });
        is_greatest(row, &said.collect::<Vec<_>>());
    }
    for (id, row) in &picture.users {
        let said = all.iter().filter_map(|observation| match observation {
            Observation::User(user, said) if user == id => Some(said),
            _ => None,
        });
        is_greatest(row, &said.collect::<Vec<_>>());
    }
    for (id, row) in &picture.groups {
        let said = all.iter().filter_map(|observation| match observation {
            Observation::Group(group, said) if group == id => Some(said),
            _ => None,
        });
        is_greatest(row, &said.collect::<Vec<_>>());
    }
    for (id, row) in &picture.memberships {
        let said = all.iter().filter_map(|observation| match observation {
            Observation::Membership(group, user, said) if (group, user) == (&id.0, &id.1) => Some(said),
            _ => None,
        });
        is_greatest(row, &said.collect::<Vec<_>>());
    }
}

fn is_greatest<A: PartialEq + std::fmt::Debug>(row: &Registers<'_, A>, said: &[&Registers<'_, A>]) {
    assert!(!said.is_empty());
    assert_eq!(row.seen, said.iter().filter_map(|r| r.seen.clone()).max());
    assert_eq!(row.gone, said.iter().filter_map(|r| r.gone.clone()).max());
    assert_eq!(Some(&row.directory), said.iter().map(|r| &r.directory).max());
    assert_eq!(
        row.organization,
        said.iter().filter_map(|r| r.organization.clone()).max()
    );
    let newest = said
        .iter()
        .filter_map(|r| r.attributes.as_ref())
        .max_by(|a, b| a.version.cmp(&b.version));
    assert_eq!(row.attributes.as_ref(), newest);
}
