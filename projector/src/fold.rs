//! Folds a batch of records into what they say together. Pure: records in, rows and dead letters out.

use std::borrow::Cow;
use std::collections::BTreeMap;

use journal::Entry;
use schema::event::Event;
use schema::json::{self, Malformed};
use schema::observe::observe;
use schema::picture::Picture;
use schema::record::{Record, Source};
use schema::timestamp::Timestamp;

/// The bodies of a batch as text that Postgres can store. Kept apart from the fold, which borrows from them.
pub struct Texts<'e>(Vec<Result<Cow<'e, str>, Malformed>>);

impl<'e> Texts<'e> {
    /// The bodies of `entries` as text.
    pub fn of(entries: &'e [Entry]) -> Self {
        Self(
            entries
                .iter()
                .map(|entry| json::storable(&entry.record.body))
                .collect(),
        )
    }
}

/// What a batch says, folded.
#[derive(Default)]
pub struct Fold<'a> {
    /// The greatest of each register, per object.
    pub picture: Picture<'a>,
    /// What became of each record, in the order of the batch.
    pub outcomes: Vec<Outcome<'a>>,
    /// The time of the newest event in each directory mentioned.
    pub newest: BTreeMap<&'a str, Timestamp>,
}

/// What one record means to the projection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome<'a> {
    /// It has something for the tables.
    Said {
        /// The event's id.
        event: schema::ids::EventId<'a>,
        /// When the event happened, if readable.
        created_at: Option<Timestamp>,
    },
    /// It has nothing for the tables.
    Nothing,
    /// It cannot be understood: a dead letter.
    Dead(Reason),
}

/// Why a record cannot be applied. Reveals nothing of its content.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Reason {
    /// It is not an event, or does not have the form that its type requires.
    #[error("{0}")]
    Malformed(#[from] Malformed),
    /// Ingest could not address it.
    #[error("quarantined: genuine, but not an event that can be addressed")]
    Quarantined,
    /// Postgres refused a value in it.
    #[error("refused by Postgres: {0}")]
    Refused(String),
}

/// Folds `entries`, whose texts are `texts`. A record that cannot be understood is set aside alone.
pub fn fold<'a>(entries: &'a [Entry], texts: &'a Texts<'_>) -> Fold<'a> {
    let mut fold = Fold::default();
    for (entry, text) in entries.iter().zip(&texts.0) {
        let outcome = match text {
            _ if entry.record.subject.is_quarantine() => Err(Reason::Quarantined),
            Ok(text) => add(&mut fold, text, &entry.record).map_err(Reason::Malformed),
            Err(malformed) => Err(Reason::Malformed(*malformed)),
        };
        fold.outcomes.push(outcome.unwrap_or_else(Outcome::Dead));
    }
    fold
}

fn add<'a>(fold: &mut Fold<'a>, text: &'a str, record: &'a Record) -> Result<Outcome<'a>, Malformed> {
    let event = Event::parse(text)?;
    let observations = observe(&event, record.source, record.received_at)?;
    if observations.is_empty() {
        return Ok(Outcome::Nothing);
    }
    for observation in observations {
        fold.picture.add(observation);
    }
    if let Some(directory) = record.subject.directory() {
        let at = event.created_at.unwrap_or(record.received_at);
        let newest = fold.newest.entry(directory).or_insert(at);
        *newest = at.max(*newest);
    }
    Ok(Outcome::Said {
        event: event.id,
        created_at: event.created_at,
    })
}

/// What a single body says. For retrying a dead letter.
pub fn single(text: &str, source: Source, received_at: Timestamp) -> Result<Picture<'_>, Malformed> {
    let mut picture = Picture::default();
    for observation in observe(&Event::parse(text)?, source, received_at)? {
        picture.add(observation);
    }
    Ok(picture)
}
