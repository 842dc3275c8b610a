//! Applies one batch to Postgres and moves the lane's position, in one transaction.
//!
//! A value that Postgres refuses is the fault of one record. The batch is then tried in halves, down to that record, which
//! becomes a dead letter while all others are applied, still in the same transaction. A failure of the database itself is
//! no record's fault: nothing is applied, and the batch is tried again later.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use journal::Entry;
use schema::record::Record;
use schema::timestamp::Timestamp;
use service::postgres::{Trouble, described};
use sqlx::{Acquire as _, PgConnection};
use time::OffsetDateTime;

use crate::erase_marks::possible_ids;
use crate::fold::{Outcome, Reason, Texts, fold};
use crate::holes::Hole;
use crate::lane::Lane;
use crate::store::progress::{News, Position};
use crate::store::{self, Effects};

/// What applying a batch did, record by record, in the order of the batch.
#[derive(Debug, Default)]
pub struct Applied {
    /// What became of each record.
    pub records: Vec<Fate>,
    /// The sequence up to which the other lane had applied its records when this was written.
    pub other: u64,
    /// Where the log lost entries that would have been among these, as far as that was not recorded before.
    pub lost: Vec<Hole>,
}

/// What became of one record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// It changed a row.
    Applied {
        /// When its event happened, if readable.
        created_at: Option<Timestamp>,
    },
    /// It had nothing newer than the tables, or nothing for them at all.
    Stale,
    /// It was set aside as a dead letter.
    Dead,
}

/// Why a batch was not applied.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The lane no longer stands where the batch begins, because another projector applied it.
    #[error("another projector applied this batch first")]
    Overtaken,
    /// The database failed; see [`Trouble`].
    #[error(transparent)]
    Database(#[from] sqlx::Error),
}

/// A batch, and its place in the log.
#[derive(Debug, Clone, Copy)]
pub struct Batch<'e> {
    /// The lane it was read in.
    pub lane: Lane,
    /// Where the lane stands before it.
    pub from: Position,
    /// Its records, in the order of the log, after `from`.
    pub entries: &'e [Entry],
    /// The holes between them that the log cannot fill either.
    pub holes: &'e [Hole],
    /// Who applies it, and for how long applying it renews the lease.
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

/// Applies `batch` and moves its lane: both, or neither. `now` is recorded as the time of application.
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
                "Postgres refused a record in this batch; looking for it"
            );
            attempt(connection, batch, now, Care::Halves).await
        }
        outcome => outcome,
    }
}

/// How a batch is written.
#[derive(Clone, Copy)]
enum Care {
    /// All at once; a refused value fails the whole batch.
    Whole,
    /// Halved as often as needed; a refused record is set aside.
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
    let advanced = store::progress::advance(&mut transaction, batch.lane, way, batch.lease, &news).await?;
    applied.other = advanced.ok_or(Error::Overtaken)?;
    if !batch.holes.is_empty() {
        let created = batch.from.stream_created;
        applied.lost = store::losses::note(&mut transaction, batch.lane, created, batch.holes).await?;
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
    let mut applied = Applied::default();
    for (entry, outcome) in entries.iter().zip(&fold.outcomes) {
        applied.records.push(match outcome {
            _ if erased.contains(&entry.seq) => Fate::Stale,
            Outcome::Dead(reason) => {
                dead_letter(connection, batch, entry, reason).await?;
                Fate::Dead
            }
            said => fate(said, &effects),
        });
    }
    if !erased.is_empty() {
        // Upkeep purges them, so that no lane waits for that.
        let seqs: Vec<u64> = erased.into_iter().collect();
        store::erased::note_purges(connection, batch.from.stream_created, &seqs).await?;
    }
    for (directory, at) in fold.newest {
        news.add(directory, at);
    }
    Ok(applied)
}

/// The sequences of those `entries` that are about erased people. An entry is recognised by its subject or, if that names
/// nobody and the entry has nothing for the tables or cannot be applied, by any id in its body.
async fn of_erased(
    connection: &mut PgConnection,
    entries: &[Entry],
    outcomes: &[Outcome<'_>],
    effects: &Effects,
) -> sqlx::Result<BTreeSet<u64>> {
    let mut found = BTreeSet::new();
    let mut odd: Vec<(u64, Vec<&str>)> = Vec::new();
    for (entry, outcome) in entries.iter().zip(outcomes) {
        match (outcome, entry.record.subject.user()) {
            (Outcome::Said { .. }, Some(user)) if effects.erased.contains(user) => {
                found.insert(entry.seq);
            }
            (Outcome::Said { .. }, _) => {}
            (Outcome::Nothing | Outcome::Dead(_), _) => odd.push((entry.seq, about(&entry.record))),
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

/// The ids of those whom a record may be about: the one whom its subject names or, if it names nobody, everything in its body
/// that may be somebody's id.
fn about(record: &Record) -> Vec<&str> {
    match record.subject.user() {
        Some(user) => vec![user],
        None => possible_ids(&record.body),
    }
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

/// Writes a batch so that a refused record fails alone. Each part is written in a savepoint; one that fails is halved.
async fn write_in_halves(
    connection: &mut PgConnection,
    batch: Batch<'_>,
    news: &mut News,
) -> sqlx::Result<Applied> {
    let mut applied = Applied::default();
    // Take the locks of all parts at once: taken part by part, the later ones would come after the lock of history.
    store::lock(
        connection,
        &fold(batch.entries, &Texts::of(batch.entries)).picture,
    )
    .await?;
    // A stack with the part to write next on top, so that fates are collected in the order of the records.
    let mut parts = vec![batch.entries];
    while let Some(part) = parts.pop() {
        let mut savepoint = connection.begin().await?;
        match write(&mut savepoint, batch, part, news).await {
            Ok(done) => {
                savepoint.commit().await?;
                applied.records.extend(done.records);
            }
            Err(error) if Trouble::of(&error) != Trouble::Data => return Err(error),
            Err(error) => {
                savepoint.rollback().await?;
                if let [entry] = part {
                    let reason = Reason::Refused(described(&error).to_string());
                    applied
                        .records
                        .push(refused(connection, batch, entry, &reason).await?);
                } else {
                    let (first, second) = part.split_at(part.len() / 2);
                    parts.extend([second, first]);
                }
            }
        }
    }
    Ok(applied)
}

/// Makes a refused record a dead letter or, if it is about an erased person, has it purged.
async fn refused(
    connection: &mut PgConnection,
    batch: Batch<'_>,
    entry: &Entry,
    reason: &Reason,
) -> sqlx::Result<Fate> {
    let erased = store::erased::among(connection, &about(&entry.record)).await?;
    if !erased.is_empty() {
        store::erased::note_purges(connection, batch.from.stream_created, &[entry.seq]).await?;
        return Ok(Fate::Stale);
    }
    dead_letter(connection, batch, entry, reason).await?;
    Ok(Fate::Dead)
}

/// Stores a record that cannot be applied, for a person to decide about.
async fn dead_letter(
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
        "set a record aside as a dead letter"
    );
    let created = batch.from.stream_created;
    store::dead_letters::put(connection, created, entry.seq, &entry.record, &reason.to_string()).await
}
