//! Entries that are not where the lane of everything should have met them.
//!
//! The log's sequences go up by one. What lies between two entries that are read one after the other was taken out by an
//! erasure, which is noted before it happens; or dropped by the log's max age, from its first entry on; or left out by a
//! consumer whose copy of the log is damaged, while the log has it; or the broker lost it. To look costs a subtraction a
//! batch. A lane that reads only some subjects sees gaps all the time and cannot tell.

use journal::{Entry, Journal};
use schema::timestamp::Timestamp;
use service::postgres::answered;
use sqlx::PgConnection;

use crate::store::erased;

/// Every subject of the log.
pub(crate) const EVERYTHING: &str = "dsync.>";

/// Sequences that are not there, by those around them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hole {
    /// The last sequence before it, read or applied.
    pub after: u64,
    /// The first sequence behind it.
    pub before: u64,
}

/// Why it could not be told.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The log failed.
    #[error("the log: {0}")]
    Log(#[from] journal::Error),
    /// The database failed.
    #[error("the database: {}", service::postgres::described(.0))]
    Database(#[from] sqlx::Error),
}

/// What `entries`, read after `position`, leave out.
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

/// What is left of `holes` in a log that begins at `first_seq`: what it dropped from its beginning is none.
fn behind(first_seq: u64, holes: Vec<Hole>) -> Vec<Hole> {
    let cut = holes.into_iter().map(|hole| Hole {
        after: hole.after.max(first_seq.saturating_sub(1)),
        ..hole
    });
    cut.filter(|hole| hole.before > hole.after + 1).collect()
}

/// Looks for what `entries`, read from the log made at `created` behind `position` and without a filter, leave out, and
/// answers what of that is nowhere and was not erased. What the log still has is put in: then `entries` may end sooner than
/// they did, with about `records` or `bytes` put in. None: it cannot be told now, the log changes.
pub async fn complete(
    connection: &mut PgConnection,
    journal: &Journal,
    (created, position): (Timestamp, u64),
    entries: &mut Vec<Entry>,
    (records, bytes): (usize, usize),
) -> Result<Option<Vec<Hole>>, Error> {
    let found = holes(position, entries);
    if found.is_empty() {
        return Ok(Some(found));
    }
    // Mostly that explains them all: then nobody need ask the broker.
    let found = answered(erased::unexplained(connection, created, &found)).await?;
    let found: Vec<Hole> = found.into_iter().map(|(hole, _)| hole).collect();
    if found.is_empty() {
        return Ok(Some(found));
    }
    // Asked for after the entries were read: what aged out before they were sent has aged out by now.
    let log = journal.identity().await?.filter(|log| log.created == created);
    let Some(log) = log else { return Ok(None) };
    let found = behind(log.first_seq, found);
    for hole in &found {
        let (mut at, mut size) = (hole.after, 0);
        let mut left_out = Vec::new();
        while left_out.len() < records && size < bytes {
            match journal.first_at(at + 1, EVERYTHING).await? {
                Some(next) if next.seq == hole.before => break,
                Some(next) if next.seq < hole.before => {
                    (at, size) = (next.seq, size + next.record.body.len());
                    left_out.push(next);
                }
                // Who answers does not know what was read, or that was erased since.
                _ => return Ok(None),
            }
        }
        if !left_out.is_empty() {
            tracing::warn!(
                entries = left_out.len(),
                after = hole.after,
                "the log has entries that its consumer left out: they were asked for one by one; a copy of the log may be damaged"
            );
            entries.retain(|entry| entry.seq <= hole.after);
            entries.append(&mut left_out);
            return Ok(Some(behind(log.first_seq, holes(position, entries))));
        }
    }
    Ok(Some(found))
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
}
