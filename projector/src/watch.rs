//! Watches the log from outside the lanes: whether it is still the log that was applied, and how far behind the lanes are.
//!
//! A position covers only what was applied. Entries that the broker acknowledged and then lost before anybody read them
//! leave no gap at any position. So every projector also remembers, while it runs, where it has seen the log end.

use std::time::Duration;

use journal::{Identity, Journal};
use schema::timestamp::Timestamp;
use service::postgres::{answered, described};
use sqlx::PgPool;
use tokio_util::sync::CancellationToken;

use crate::holes::{self, EVERYTHING};
use crate::lane::Lane;
use crate::metrics::Metrics;
use crate::store::progress::{self, Position};
use crate::store::{backlog, dead_letters, losses};

/// What comparing the log with a lane's position shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// The log continues from where the lane stands.
    Same,
    /// The log is not the one that was applied, or it lost its end. What was applied is still right, but what is in the
    /// log now may not have been applied, and what was lost must be read from WorkOS again.
    Rewound,
    /// The log dropped records (by its max age) before they were applied.
    Gap,
}

/// Compares the log with a lane's position. `at_position` is when the broker stored the message at the lane's sequence, if
/// it is still there: a log that was restored from an older copy and has grown since has another message there.
pub fn judge(position: Position, log: Identity, at_position: Option<Timestamp>, lane: Lane) -> Verdict {
    let other_message = match (position.seq_appended_at, at_position) {
        (Some(applied), Some(there)) => applied != there,
        _ => false,
    };
    if log.created != position.stream_created || log.last_seq < position.seq || other_message {
        Verdict::Rewound
    } else if lane == Lane::All && position.seq > 0 && log.first_seq > position.seq + 1 {
        Verdict::Gap
    } else {
        Verdict::Same
    }
}

/// How often the gauges are updated.
const GAUGES: Duration = Duration::from_secs(5);

/// Updates the gauges that every projector exposes, working or standby, until shutdown.
pub async fn gauges(pool: PgPool, journal: Journal, metrics: Metrics, shutdown: CancellationToken) {
    let mut tick = tokio::time::interval(GAUGES);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut seen = None;
    loop {
        tokio::select! {
            () = shutdown.cancelled() => return,
            _ = tick.tick() => {}
        }
        match answered(dead_letters::count(&pool)).await {
            Ok(count) => metrics.dead_letters.set(count),
            Err(error) => tracing::debug!(error = %described(&error), "cannot count the dead letters"),
        }
        match answered(backlog::count(&pool)).await {
            Ok(count) => metrics.history_backlog.set(count),
            Err(error) => {
                tracing::debug!(error = %described(&error), "cannot count the history backlog");
            }
        }
        let position = answered(progress::position(&pool, Lane::All)).await;
        if let Ok(Some(log)) = journal.identity().await {
            match position {
                Ok(position) => metrics
                    .pending_messages
                    .set(unread(&journal, position, log).await),
                // Not the whole log: the gauge keeps what was true last.
                Err(error) => {
                    tracing::debug!(error = %described(&error), "cannot count what is not applied yet");
                }
            }
            if let Err(error) = compare(&pool, &journal, &metrics, &mut seen, log).await {
                tracing::debug!(%error, "cannot compare the end of the log now");
            }
        }
    }
}

/// Compares where the log was last `seen` to end with the log as it is now, and remembers where it ends now.
async fn compare(
    pool: &PgPool,
    journal: &Journal,
    metrics: &Metrics,
    seen: &mut Option<Position>,
    log: Identity,
) -> Result<(), holes::Error> {
    if let Some(seen) = *seen {
        let there = appended_at(journal, seen.seq, log).await?;
        if judge(seen, log, there, Lane::Removals) == Verdict::Rewound
            && answered(losses::note_unread(pool, seen, log)).await?
        {
            metrics.log_rewinds.inc();
            tracing::error!(
                seen = seen.seq,
                last = log.last_seq,
                "the log lost its end before it was read: the reconciler reads again whatever WorkOS still lists; every directory is due for a sweep"
            );
        }
    }
    *seen = Some(Position {
        stream_created: log.created,
        seq: log.last_seq,
        seq_appended_at: appended_at(journal, log.last_seq, log).await?,
    });
    Ok(())
}

/// When the broker stored the entry at `seq`, if it is there.
pub(crate) async fn appended_at(
    journal: &Journal,
    seq: u64,
    log: Identity,
) -> Result<Option<Timestamp>, journal::Error> {
    if seq == 0 || seq > log.last_seq {
        return Ok(None);
    }
    Ok(journal.entry(seq).await?.map(|entry| entry.appended_at))
}

/// How many records the lane `all`, which stands at `position`, has not applied yet.
async fn unread(journal: &Journal, position: Option<Position>, log: Identity) -> i64 {
    let pending = pending(position, log);
    if pending > 0 {
        // Records erased from the log's end are counted by their sequences, and will never be applied.
        let next = journal.first_at(applied(position, log) + 1, EVERYTHING).await;
        if matches!(next, Ok(None)) {
            return 0;
        }
    }
    pending
}

/// The sequence up to which the log is applied.
fn applied(position: Option<Position>, log: Identity) -> u64 {
    position
        .filter(|position| position.stream_created == log.created)
        .map_or(0, |position| position.seq)
}

fn pending(position: Option<Position>, log: Identity) -> i64 {
    let first = log.first_seq.saturating_sub(1);
    let pending = log.last_seq.saturating_sub(applied(position, log).max(first));
    i64::try_from(pending).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(micros: i64) -> Timestamp {
        Timestamp::from_micros(micros)
    }

    fn log(created: i64, first_seq: u64, last_seq: u64) -> Identity {
        Identity {
            created: at(created),
            first_seq,
            last_seq,
            messages: 0,
            bytes: 0,
        }
    }

    #[test]
    fn a_log_that_goes_on_is_the_same() {
        let position = Position {
            stream_created: at(1),
            seq: 10,
            seq_appended_at: Some(at(5)),
        };
        for (log, there, lane, verdict) in [
            (log(1, 1, 10), Some(at(5)), Lane::All, Verdict::Same),
            (log(1, 1, 99), Some(at(5)), Lane::All, Verdict::Same),
            // The message at the position was purged: nothing to compare.
            (log(1, 1, 99), None, Lane::All, Verdict::Same),
            (log(2, 1, 99), Some(at(5)), Lane::All, Verdict::Rewound),
            (log(1, 1, 9), None, Lane::Removals, Verdict::Rewound),
            // Restored from an older copy, and grown past the position since.
            (log(1, 1, 99), Some(at(6)), Lane::All, Verdict::Rewound),
            (log(1, 12, 99), None, Lane::All, Verdict::Gap),
            (log(1, 11, 99), None, Lane::All, Verdict::Same),
            // The removals lane stands at its last removal, however old.
            (log(1, 12, 99), None, Lane::Removals, Verdict::Same),
        ] {
            assert_eq!(judge(position, log, there, lane), verdict, "{log:?} {lane:?}");
        }
    }

    #[test]
    fn pending_counts_from_the_position_or_the_first_that_is_there() {
        let position = |seq| {
            Some(Position {
                stream_created: at(1),
                seq,
                seq_appended_at: None,
            })
        };
        assert_eq!(pending(None, log(1, 1, 10)), 10);
        assert_eq!(pending(position(7), log(1, 1, 10)), 3);
        assert_eq!(pending(position(7), log(2, 1, 10)), 10);
        assert_eq!(pending(position(2), log(1, 9, 10)), 2);
        assert_eq!(pending(position(12), log(1, 1, 10)), 0);
    }
}
