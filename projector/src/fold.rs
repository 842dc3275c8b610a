//! A batch of records folded into what they say together. Pure: records in, rows and dead letters out.

use std::borrow::Cow;
use std::collections::BTreeMap;

use journal::Entry;
use schema::event::Event;
use schema::json::{self, Malformed};
use schema::observe::observe;
use schema::picture::Picture;
use schema::record::{Record, Source};
use schema::timestamp::Timestamp;

/// The texts of a batch, as Postgres can store them. Kept apart from the fold, which borrows from them.
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

/// What a batch says.
#[derive(Default)]
pub struct Fold<'a> {
    /// The greatest of what was said, per object.
    pub picture: Picture<'a>,
    /// What became of each record, in the order of the batch.
    pub outcomes: Vec<Outcome<'a>>,
    /// The newest event of each directory that anything was said of.
    pub newest: BTreeMap<&'a str, Timestamp>,
}

/// What one record is to the projection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome<'a> {
    /// It says something, in this event.
    Said {
        /// The event's id.
        event: schema::ids::EventId<'a>,
        /// When it happened, where readable.
        created_at: Option<Timestamp>,
    },
    /// It says nothing that has a place in the tables.
    Nothing,
    /// It cannot be understood: a dead letter.
    Dead(Reason),
}

/// Why a record cannot be applied. Says nothing of the content.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Reason {
    /// It is no event, or not of the shape its type promises.
    #[error("{0}")]
    Malformed(#[from] Malformed),
    /// Ingest could not address it.
    #[error("quarantined: genuine, but not an event that can be addressed")]
    Quarantined,
    /// Postgres refused a value in it.
    #[error("refused by Postgres: {0}")]
    Refused(String),
}

/// Folds `entries`, whose texts are `texts`. What cannot be understood is set aside alone.
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

/// What a single body says, for one that is tried again.
pub fn single(text: &str, source: Source, received_at: Timestamp) -> Result<Picture<'_>, Malformed> {
    let mut picture = Picture::default();
    for observation in observe(&Event::parse(text)?, source, received_at)? {
        picture.add(observation);
    }
    Ok(picture)
}
