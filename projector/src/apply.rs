//! One batch into Postgres, and the lane's position with it, in one transaction.
//!
//! A value that Postgres refuses is one record's trouble: the batch is then tried in halves, down to that record, which
//! goes to the dead letters while all others are applied, still in the one transaction. Trouble of the database itself
//! is nobody's fault: the batch is left as it was, to be tried again.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use journal::Entry;
use schema::timestamp::Timestamp;
use service::postgres::{Trouble, described};
use sqlx::{Acquire as _, PgConnection};
use time::OffsetDateTime;

use crate::erase_marks::{possible_ids, user_of};
use crate::fold::{Outcome, Reason, Texts, fold};
use crate::holes::Hole;
use crate::lane::Lane;
use crate::store::progress::{News, Position};
use crate::store::{self, Effects};

/// What a batch did, record by record, in its order.
#[derive(Debug, Default)]
pub struct Applied {
    /// What became of each record.
    pub records: Vec<Fate>,
    /// How many records speak of erased people. They were left out and wait to be purged from the log.
    pub to_purge: usize,
    /// What the log had lost that would have been among these.
    pub lost: Vec<Hole>,
}

/// What became of one record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// It changed a row.
    Applied {
        /// When its event happened, where readable.
        created_at: Option<Timestamp>,
    },
    /// It said nothing newer than the tables knew, or nothing at all.
    Stale,
    /// It was set aside.
    Dead,
}

/// Why a batch was not applied.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The lane no longer stands where the batch begins: another applied it.
    #[error("another projector was faster")]
    Overtaken,
    /// The database failed; see [`Trouble`].
    #[error(transparent)]
    Database(#[from] sqlx::Error),
}

/// A batch, and where in the log it goes.
#[derive(Debug, Clone, Copy)]
pub struct Batch<'e> {
    /// The lane it was read in.
    pub lane: Lane,
    /// Where the lane stands before it.
    pub from: Position,
    /// Its records, in the order of the log, after `from`.
    pub entries: &'e [Entry],
    /// What is not among them and not in the log either.
    pub holes: &'e [Hole],
    /// Who applies it, and how long the lease holds that applying it renews.
    pub lease: (&'e str, Duration),
}

impl Batch<'_> {
    /// Where the lane stands after it.
    pub fn to(&self) -> Position {
        match self.entries.last() {
            Some(last) => Position {
                seq: last.seq,
                seq_appended_at: Some(last.appended_at),
                ..self.from
            },
            None => self.from,
        }
    }
}

/// Applies `batch` and moves its lane, both or neither, `now`.
pub async fn apply(
    connection: &mut PgConnection,
    batch: Batch<'_>,
    now: OffsetDateTime,
) -> Result<Applied, Error> {
    match attempt(connection, batch, now, Care::Whole).await {
        Err(Error::Database(error)) if Trouble::of(&error) == Trouble::Data => {
            tracing::warn!(
                lane = batch.lane.as_str(),
                records = batch.entries.len(),
                error = %described(&error),
                "a record in this batch is refused by Postgres; looking for it"
            );
            attempt(connection, batch, now, Care::Halves).await
        }
        outcome => outcome,
    }
}

/// How a batch is written.
#[derive(Clone, Copy)]
enum Care {
    /// All at once; a refused value fails the whole.
    Whole,
    /// In halves as far as needed; a refused record is set aside.
    Halves,
}

async fn attempt(
    connection: &mut PgConnection,
    batch: Batch<'_>,
    now: OffsetDateTime,
    care: Care,
) -> Result<Applied, Error> {
    let mut transaction = connection.begin().await?;
    let mut news = News {
        newest: BTreeMap::new(),
        applied_at: now,
    };
    let mut applied = match care {
        Care::Whole => write(&mut transaction, batch, batch.entries, &mut news).await?,
        Care::Halves => write_in_halves(&mut transaction, batch, &mut news).await?,
    };
    let way = (batch.from, batch.to());
    if !store::progress::advance(&mut transaction, batch.lane, way, batch.lease, &news).await? {
        return Err(Error::Overtaken);
    }
    if !batch.holes.is_empty() {
        let created = batch.from.stream_created;
        applied.lost = store::progress::note_lost(&mut transaction, batch.lane, created, batch.holes).await?;
    }
    transaction.commit().await?;
    Ok(applied)
}

/// Writes some of a batch's entries.
async fn write(
    connection: &mut PgConnection,
    batch: Batch<'_>,
    entries: &[Entry],
    news: &mut News,
) -> sqlx::Result<Applied> {
    let texts = Texts::of(entries);
    let fold = fold(entries, &texts);
    let effects = store::write(connection, &fold.picture).await?;
    let erased = of_erased(connection, entries, &fold.outcomes, &effects).await?;
    let mut applied = Applied {
        to_purge: erased.len(),
        ..Applied::default()
    };
    for (entry, outcome) in entries.iter().zip(&fold.outcomes) {
        applied.records.push(match outcome {
            _ if erased.contains(&entry.seq) => Fate::Stale,
            Outcome::Dead(reason) => {
                put_aside(connection, batch, entry, reason).await?;
                Fate::Dead
            }
            said => fate(said, &effects),
        });
    }
    if !erased.is_empty() {
        let seqs: Vec<u64> = erased.into_iter().collect();
        store::erased::note_purges(connection, batch.from.stream_created, &seqs).await?;
    }
    for (directory, at) in fold.newest {
        news.add(directory, at);
    }
    Ok(applied)
}

/// Which of `entries` speak of erased people, by their place in the log: by subject, or if they say nothing that has a
/// place in the tables, by the ids they hold.
async fn of_erased(
    connection: &mut PgConnection,
    entries: &[Entry],
    outcomes: &[Outcome<'_>],
    effects: &Effects,
) -> sqlx::Result<BTreeSet<u64>> {
    let mut found = BTreeSet::new();
    let mut odd: Vec<(u64, Vec<&str>)> = Vec::new();
    for (entry, outcome) in entries.iter().zip(outcomes) {
        match (outcome, user_of(entry.record.subject.as_str())) {
            (Outcome::Said { .. }, Some(user)) if effects.erased.contains(user) => {
                found.insert(entry.seq);
            }
            (Outcome::Said { .. }, _) => {}
            (Outcome::Nothing | Outcome::Dead(_), user) => {
                let mut ids = possible_ids(&entry.record.body);
                ids.extend(user);
                odd.push((entry.seq, ids));
            }
        }
    }
    let ids: BTreeSet<&str> = odd.iter().flat_map(|(_, ids)| ids.iter().copied()).collect();
    let erased = store::erased::among(connection, &ids.into_iter().collect::<Vec<_>>()).await?;
    let of_erased = odd
        .iter()
        .filter(|(_, ids)| ids.iter().any(|id| erased.contains(*id)));
    found.extend(of_erased.map(|(seq, _)| *seq));
    Ok(found)
}

fn fate(outcome: &Outcome<'_>, effects: &Effects) -> Fate {
    match outcome {
        Outcome::Said { event, created_at } if effects.has(event.as_str()) => Fate::Applied {
            created_at: *created_at,
        },
        Outcome::Said { .. } | Outcome::Nothing => Fate::Stale,
        Outcome::Dead(_) => Fate::Dead,
    }
}

/// Writes a batch so that a refused record fails alone: each part in a savepoint, a part that fails in two halves.
async fn write_in_halves(
    connection: &mut PgConnection,
    batch: Batch<'_>,
    news: &mut News,
) -> sqlx::Result<Applied> {
    let mut applied = Applied::default();
    // Every part's locks at once: taken part by part, they would come after the one that history takes.
    store::lock(
        connection,
        &fold(batch.entries, &Texts::of(batch.entries)).picture,
    )
    .await?;
    // The part to write next is on top, so that the records' fates come out in their order.
    let mut parts = vec![batch.entries];
    while let Some(part) = parts.pop() {
        let mut savepoint = connection.begin().await?;
        match write(&mut savepoint, batch, part, news).await {
            Ok(done) => {
                savepoint.commit().await?;
                applied.records.extend(done.records);
                applied.to_purge += done.to_purge;
            }
            Err(error) if Trouble::of(&error) != Trouble::Data => return Err(error),
            Err(error) => {
                savepoint.rollback().await?;
                if let [entry] = part {
                    let refused = [Outcome::Dead(Reason::Refused(described(&error).to_string()))];
                    let fate = set_aside(connection, batch, entry, &refused).await?;
                    applied.to_purge += usize::from(fate == Fate::Stale);
                    applied.records.push(fate);
                } else {
                    let (first, second) = part.split_at(part.len() / 2);
                    parts.extend([second, first]);
                }
            }
        }
    }
    Ok(applied)
}

/// Puts one refused record aside, or has it purged if it speaks of someone erased.
async fn set_aside(
    connection: &mut PgConnection,
    batch: Batch<'_>,
    entry: &Entry,
    refused: &[Outcome<'_>; 1],
) -> sqlx::Result<Fate> {
    let entries = std::slice::from_ref(entry);
    let erased = of_erased(connection, entries, refused, &Effects::default()).await?;
    if !erased.is_empty() {
        store::erased::note_purges(connection, batch.from.stream_created, &[entry.seq]).await?;
        return Ok(Fate::Stale);
    }
    if let [Outcome::Dead(reason)] = refused {
        put_aside(connection, batch, entry, reason).await?;
    }
    Ok(Fate::Dead)
}

async fn put_aside(
    connection: &mut PgConnection,
    batch: Batch<'_>,
    entry: &Entry,
    reason: &Reason,
) -> sqlx::Result<()> {
    tracing::warn!(
        seq = entry.seq,
        event_id = entry.record.id,
        event_type = entry.record.event_type,
        %reason,
        "a record goes to the dead letters"
    );
    let created = batch.from.stream_created;
    store::dead_letters::put(connection, created, entry.seq, &entry.record, &reason.to_string()).await
}
