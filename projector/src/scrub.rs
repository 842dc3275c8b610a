//! Upkeep, beside the lanes: long-deleted objects are scrubbed, history gets its months and loses its oldest, what was
//! said of erased people is purged from the log.
//!
//! Idempotent and periodic: every projector does it, none needs to be the one. Nothing here decides what is live.

use std::time::Duration;

use journal::Journal;
use service::clock::Clock;
use service::postgres::{answered_within, described};
use sqlx::PgPool;
use tokio_util::sync::CancellationToken;

use crate::erase;
use crate::store::upkeep::{self, Scrubbed};

/// How often everything is looked after.
const EVERY: Duration = Duration::from_mins(10);
/// How often the log is cleared of what late records of erased people brought.
const PURGE_EVERY: Duration = Duration::from_secs(5);
/// How long a rebuild can be undone.
const UNDO: time::Duration = time::Duration::days(7);
/// Longer than its statements, which the server ends by themselves, may take together.
const KEPT_UP_WITHIN: Duration = Duration::from_mins(5);
/// How far ahead history has its partitions.
const AHEAD: time::Duration = time::Duration::days(92);

/// What upkeep works with.
#[derive(Clone)]
pub struct Upkeep {
    /// The projection.
    pub pool: PgPool,
    /// The log.
    pub journal: Journal,
    /// What time it is.
    pub clock: Clock,
    /// How long after its deletion an object keeps its attributes.
    pub tombstone_retention: Duration,
    /// How long history is kept; zero = for ever.
    pub history_retention: Duration,
}

impl Upkeep {
    /// Looks after everything until shutdown. What fails is tried again the next time.
    pub async fn work(self, shutdown: CancellationToken) {
        let mut purge = tokio::time::interval(PURGE_EVERY);
        let mut all = tokio::time::interval(EVERY);
        for tick in [&mut purge, &mut all] {
            tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        }
        loop {
            tokio::select! {
                () = shutdown.cancelled() => return,
                _ = all.tick() => self.once().await,
                _ = purge.tick() => match erase::drain(&self.pool, &self.journal).await {
                    Ok(0) => {}
                    Ok(count) => tracing::info!(count, "purged late records of erased people from the log"),
                    Err(error) => tracing::debug!(%error, "late records of erased people wait to be purged"),
                },
            }
        }
    }

    async fn once(&self) {
        match self.scrub().await {
            Ok(Scrubbed::NOTHING) => {}
            Ok(Scrubbed {
                users,
                groups,
                directories,
            }) => tracing::info!(users, groups, directories, "scrubbed what was deleted long ago"),
            Err(error) => tracing::warn!(error = %described(&error), "scrubbing is tried again later"),
        }
        match upkeep::forget_replaced(&self.pool, self.clock.now() - UNDO).await {
            Ok(0) => {}
            Ok(rows) => tracing::info!(rows, "forgot what an old rebuild replaced"),
            Err(error) => {
                tracing::warn!(error = %described(&error), "what an old rebuild replaced is kept for now");
            }
        }
        match self.history().await {
            Ok((made, dropped)) if made.is_empty() && dropped.is_empty() => {}
            Ok((made, dropped)) => tracing::info!(?made, ?dropped, "partitions of history"),
            Err(error) => {
                tracing::warn!(error = %described(&error), "partitions of history are tried again later");
            }
        }
    }

    /// Scrubs what has been gone for longer than its attributes are kept.
    pub async fn scrub(&self) -> sqlx::Result<Scrubbed> {
        let scrubbed = upkeep::scrub(&self.pool, self.clock.now() - self.tombstone_retention);
        answered_within(KEPT_UP_WITHIN, scrubbed).await
    }

    /// Makes history's partitions ahead and drops those past retention; the names of both.
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
