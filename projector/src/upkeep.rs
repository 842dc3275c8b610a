//! Upkeep, beside the lanes: scrubs objects deleted long ago, creates and drops the monthly partitions of history, and
//! purges late records of erased people from the log.
//!
//! Idempotent and periodic, so every projector does it, and none has to be chosen. Nothing here decides what is live.

use std::time::Duration;

use journal::Journal;
use service::clock::Clock;
use service::postgres::{answered_within, described};
use sqlx::PgPool;
use tokio::time::{Interval, MissedTickBehavior};
use tokio_util::sync::CancellationToken;

use crate::erase;
use crate::store::upkeep::{self, Scrubbed};

/// How often upkeep runs, except for purges.
const EVERY: Duration = Duration::from_mins(10);
/// How often late records of erased people are purged from the log.
const PURGE_EVERY: Duration = Duration::from_secs(5);
/// How long a rebuild can be undone.
const UNDO: time::Duration = time::Duration::days(7);
/// Longer than the statements of one piece of upkeep can take together: the server limits each of them. Scrubbing goes on for as
/// long as it gets somewhere.
const KEPT_UP_WITHIN: Duration = Duration::from_mins(5);
/// How far ahead the partitions of history are created.
const AHEAD: time::Duration = time::Duration::days(92);

/// What upkeep works with.
#[derive(Clone)]
pub struct Upkeep {
    /// The projection.
    pub pool: PgPool,
    /// The log.
    pub journal: Journal,
    /// The clock.
    pub clock: Clock,
    /// How long a deleted object keeps its attributes.
    pub tombstone_retention: Duration,
    /// How long history is kept; zero = forever.
    pub history_retention: Duration,
}

impl Upkeep {
    /// Does upkeep until shutdown. Whatever fails is tried again the next time.
    pub async fn work(self, shutdown: CancellationToken) {
        // Broken off by a shutdown: whatever is not done yet is done the next time. Purging does not wait for the rest, which
        // may take long.
        let both = async { tokio::join!(self.purge(), self.keep_up()) };
        shutdown.run_until_cancelled(both).await;
    }

    async fn purge(&self) {
        let mut tick = every(PURGE_EVERY);
        loop {
            tick.tick().await;
            match erase::drain(&self.pool, &self.journal).await {
                Ok(0) => {}
                Ok(count) => tracing::info!(count, "purged late records of erased people from the log"),
                Err(error) => {
                    tracing::debug!(%error, "cannot purge late records of erased people from the log yet");
                }
            }
        }
    }

    async fn keep_up(&self) {
        let mut tick = every(EVERY);
        loop {
            tick.tick().await;
            self.once().await;
        }
    }

    async fn once(&self) {
        match self.scrub().await {
            Ok(Scrubbed::NOTHING) => {}
            Ok(Scrubbed {
                users,
                groups,
                directories,
            }) => tracing::info!(users, groups, directories, "scrubbed objects deleted long ago"),
            Err(error) => {
                tracing::warn!(error = %described(&error), "cannot scrub objects deleted long ago; retrying later");
            }
        }
        match upkeep::forget_replaced(&self.pool, self.clock.now() - UNDO).await {
            Ok(0) => {}
            Ok(rows) => tracing::info!(rows, "deleted the rows kept for undoing an old rebuild"),
            Err(error) => {
                tracing::warn!(
                    error = %described(&error),
                    "cannot delete the rows kept for undoing an old rebuild; retrying later"
                );
            }
        }
        match self.history().await {
            Ok((made, dropped)) if made.is_empty() && dropped.is_empty() => {}
            Ok((made, dropped)) => {
                tracing::info!(?made, ?dropped, "created or dropped partitions of history");
            }
            Err(error) => {
                tracing::warn!(error = %described(&error), "cannot create or drop partitions of history; retrying later");
            }
        }
    }

    /// Scrubs objects that have been gone for longer than their attributes are kept.
    pub async fn scrub(&self) -> sqlx::Result<Scrubbed> {
        upkeep::scrub(&self.pool, self.clock.now() - self.tombstone_retention).await
    }

    /// Creates partitions of history ahead and drops those past retention. Returns the names of both.
    pub async fn history(&self) -> sqlx::Result<(Vec<String>, Vec<String>)> {
        let now = self.clock.now();
        let made = answered_within(KEPT_UP_WITHIN, upkeep::make_partitions(&self.pool, now + AHEAD)).await?;
        let dropped = if self.history_retention.is_zero() {
            Vec::new()
        } else {
            let dropped = upkeep::drop_partitions(&self.pool, now - self.history_retention);
            answered_within(KEPT_UP_WITHIN, dropped).await?
        };
        Ok((made, dropped))
    }
}

fn every(period: Duration) -> Interval {
    let mut tick = tokio::time::interval(period);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    tick
}
