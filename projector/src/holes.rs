//! Entries that the lane `all` should have met and did not.
//!
//! The log's sequences go up by one. If two entries read one after the other leave a gap, the entries in between were
//!
//! - erased: an erasure is recorded before it happens;
//! - dropped by the log's max age, from its first entry on;
//! - left out by a consumer whose copy of the log is damaged, while the log still has them; or
//! - lost by the broker.
//!
//! Looking costs one subtraction per batch. A lane that reads only some subjects sees gaps all the time and cannot tell.

use journal::{Entry, Journal};
use schema::timestamp::Timestamp;
use service::postgres::answered;
use sqlx::PgConnection;

use crate::store::losses;

/// Matches every subject in the log, including foreign ones: a reader without a filter meets those too.
pub(crate) const EVERYTHING: &str = ">";
/// How many entries are looked up at the broker, one by one, before the lane goes on: meanwhile nobody renews its lease.
const AT_ONCE: usize = 100;

/// A run of missing sequences, given by the sequences around it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hole {
    /// The last sequence before it that was read, applied or accounted for.
    pub after: u64,
    /// The first such sequence after it.
    pub before: u64,
}

impl Hole {
    /// How many sequences are missing.
    pub fn lacks(self) -> u64 {
        self.before.saturating_sub(self.after + 1)
    }
}

/// How entries were read.
#[derive(Debug, Clone, Copy)]
pub struct Reading {
    /// When the log was created.
    pub created: Timestamp,
    /// The sequence after which reading began.
    pub position: u64,
    /// Whether to pass over what the log dropped from its beginning. A lane must not: the gap has to be recorded, and sweeps
    /// are then due.
    pub over_dropped: bool,
    /// How many records may be inserted.
    pub records: usize,
    /// How many bytes of bodies may be inserted.
    pub bytes: usize,
}

/// Why what the log lacks could not be determined.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The log failed.
    #[error("the log: {0}")]
    Log(#[from] journal::Error),
    /// The database failed.
    #[error("the database: {}", service::postgres::described(.0))]
    Database(#[from] sqlx::Error),
}

/// The holes in `entries`, which were read after `position`.
fn holes(position: u64, entries: &[Entry]) -> Vec<Hole> {
    let (count, last) = (entries.len() as u64, entries.last().map_or(0, |last| last.seq));
    if last.saturating_sub(position) == count {
        return Vec::new();
    }
    let seqs = entries.iter().map(|entry| entry.seq);
    let before = std::iter::once(position).chain(seqs.clone());
    before
        .zip(seqs)
        .filter(|(after, before)| before - after > 1)
        .map(|(after, before)| Hole { after, before })
        .collect()
}

/// What is left of `holes` in a log that begins at `first_seq`: what it dropped from its beginning is not a hole.
fn behind(first_seq: u64, holes: Vec<Hole>) -> Vec<Hole> {
    let cut = holes.into_iter().map(|hole| Hole {
        after: hole.after.max(first_seq.saturating_sub(1)),
        ..hole
    });
    cut.filter(|hole| hole.lacks() > 0).collect()
}

/// The sequence after which a lane at `position` must stop, because the log dropped what comes next before it was applied.
/// `holes` are those in `entries`, and the log begins at `first_seq`. A lane that begins with the log's first entry lacks
/// nothing.
fn gap(position: u64, entries: &[Entry], holes: &[Hole], first_seq: u64) -> Option<u64> {
    let begun = match position {
        0 => entries.first()?.seq,
        position => position,
    };
    let mut ends = holes.iter().map(|hole| hole.after);
    ends.find(|after| *after >= begun && after + 1 < first_seq)
}

/// The holes in `entries` that neither erasures nor recorded losses explain.
async fn unexplained(
    connection: &mut PgConnection,
    reading: Reading,
    entries: &[Entry],
) -> sqlx::Result<Vec<Hole>> {
    let found = holes(reading.position, entries);
    if found.is_empty() {
        return Ok(found);
    }
    answered(losses::unexplained(connection, reading.created, &found)).await
}

/// Looks for holes in `entries`, which were read without a filter, and returns those that nothing explains: what was there
/// was not erased, and the log does not have it. Entries that the log still has are inserted, after which `entries` may end
/// earlier than before. They also end before anything that the log dropped ahead of a lane, so there may be none left.
/// `None` if it cannot be determined now, because the log is changing or its copies differ.
pub async fn complete(
    connection: &mut PgConnection,
    journal: &Journal,
    reading: Reading,
    entries: &mut Vec<Entry>,
) -> Result<Option<Vec<Hole>>, Error> {
    // Usually the records in Postgres explain all of them, and the broker need not be asked.
    let found = unexplained(connection, reading, entries).await?;
    if found.is_empty() {
        return Ok(Some(found));
    }
    // Asked after the entries were read, so it reflects whatever aged out before they were sent.
    let log = journal.identity().await?;
    let Some(log) = log.filter(|log| log.created == reading.created) else {
        return Ok(None);
    };
    if !reading.over_dropped
        && let Some(end) = gap(reading.position, entries, &found, log.first_seq)
    {
        entries.retain(|entry| entry.seq <= end);
        return Ok(Some(Vec::new()));
    }
    let mut found = behind(log.first_seq, found);
    if let Some(end) = found.get(AT_ONCE).map(|hole| hole.after)
        && entries.first().is_some_and(|first| first.seq <= end)
    {
        entries.retain(|entry| entry.seq <= end);
        found.truncate(AT_ONCE);
    }
    for hole in &found {
        let (mut at, mut size) = (hole.after, 0);
        let mut left_out = Vec::new();
        while left_out.len() < reading.records.min(AT_ONCE) && size < reading.bytes {
            match journal.first_at(at + 1, EVERYTHING).await? {
                // It may even be past `before`: that entry is in hand, but this broker lacks it, or it was erased since.
                Some(next) if next.seq >= hole.before => break,
                Some(next) => {
                    (at, size) = (next.seq, size + next.record.body.len());
                    left_out.push(next);
                }
                // This broker does not know entries that were already read.
                None => return Ok(None),
            }
        }
        if !left_out.is_empty() {
            tracing::warn!(
                entries = left_out.len(),
                after = hole.after,
                "the consumer left out entries that the log has; fetched them one by one. A copy of the log may be damaged"
            );
            entries.retain(|entry| entry.seq <= hole.after);
            entries.append(&mut left_out);
            let found = unexplained(connection, reading, entries).await?;
            return Ok(Some(behind(log.first_seq, found)));
        }
    }
    Ok(Some(found))
}

/// What was lost in `rest`, where the log created at `created` has nothing any more.
pub(crate) async fn at_end(
    connection: &mut PgConnection,
    journal: &Journal,
    created: Timestamp,
    rest: Hole,
) -> Result<Vec<Hole>, Error> {
    let lost = answered(losses::unexplained(connection, created, &[rest])).await?;
    if lost.is_empty() {
        return Ok(lost);
    }
    let log = journal.identity().await?;
    Ok(log.map_or_else(Vec::new, |log| behind(log.first_seq, lost)))
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use schema::record::{Record, Source, Subject};

    use super::*;

    fn entries(seqs: &[u64]) -> Vec<Entry> {
        let entry = |seq: &u64| Entry {
            seq: *seq,
            appended_at: Timestamp::from_micros(1),
            record: Record {
                subject: Subject::from_log("dsync.d.directory.deleted".to_owned()),
                id: String::new(),
                event_type: String::new(),
                source: Source::Webhook,
                received_at: Timestamp::from_micros(1),
                signature: None,
                body: Bytes::new(),
            },
        };
        seqs.iter().map(entry).collect()
    }

    fn hole(after: u64, before: u64) -> Hole {
        Hole { after, before }
    }

    #[test]
    fn what_is_left_out_is_found_wherever_it_is() {
        for (position, seqs, found) in [
            (0, &[1, 2, 3][..], vec![]),
            (7, &[8][..], vec![]),
            (7, &[][..], vec![]),
            (7, &[9][..], vec![hole(7, 9)]),
            (7, &[8, 11, 12, 14][..], vec![hole(8, 11), hole(12, 14)]),
            (0, &[5, 6][..], vec![hole(0, 5)]),
        ] {
            assert_eq!(holes(position, &entries(seqs)), found, "{position} {seqs:?}");
        }
    }

    #[test]
    fn what_the_log_dropped_from_its_beginning_is_no_hole() {
        for (first_seq, left) in [
            (1, vec![hole(3, 6), hole(8, 10)]),
            (5, vec![hole(4, 6), hole(8, 10)]),
            (6, vec![hole(8, 10)]),
            (9, vec![hole(8, 10)]),
            (10, vec![]),
            (40, vec![]),
        ] {
            assert_eq!(
                behind(first_seq, vec![hole(3, 6), hole(8, 10)]),
                left,
                "{first_seq}"
            );
        }
    }

    #[test]
    fn a_lane_stops_where_the_log_dropped_what_comes_next() {
        let seqs = &[4, 5, 9, 12][..];
        for (position, holes, first_seq, end) in [
            (3, vec![hole(5, 9)], 1, None),
            (3, vec![hole(5, 9)], 6, None),
            (3, vec![hole(5, 9)], 7, Some(5)),
            (3, vec![hole(5, 9), hole(9, 12)], 40, Some(5)),
            // Erased right after the lane's position, and dropped after that.
            (1, vec![hole(2, 4), hole(5, 9)], 40, Some(2)),
            // The lane begins with the log's first entry, so it lacks nothing of what came before.
            (0, vec![hole(0, 4)], 4, None),
            (0, vec![hole(0, 2), hole(2, 4)], 4, None),
            (0, vec![hole(0, 4), hole(5, 9)], 40, Some(5)),
        ] {
            let found = gap(position, &entries(seqs), &holes, first_seq);
            assert_eq!(found, end, "{position} {holes:?} {first_seq}");
        }
    }
}
