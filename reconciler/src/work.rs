//! What sweeps, single reads and the catch-up work with, and the two things they all do: wait until the tables say what
//! the log says, and append.

use std::panic::AssertUnwindSafe;
use std::time::{Duration, Instant};

use futures_util::{FutureExt as _, StreamExt as _, TryStreamExt as _, stream};
use journal::{AppendError, Appended, Journal};
use schema::record::Record;
use schema::timestamp::Timestamp;
use service::clock::Clock;
use service::postgres::described;
use service::retry::Backoff;
use service::settings::Percent;
use sqlx::PgPool;

use crate::lease::Leases;
use crate::metrics::Metrics;
use crate::plan::Times;
use crate::reading::Reading;
use crate::store::applied;
use crate::workos::client::{Api, ApiError};

/// Appends whose acknowledgements are awaited side by side.
pub const IN_FLIGHT: usize = 64;
/// How long one record is appended again and again.
const APPEND_PATIENCE: Duration = Duration::from_mins(1);

/// How sweeps judge.
#[derive(Clone, Copy, Debug)]
pub struct Rules {
    /// How much older than its answer a read is taken to be.
    pub margin: Duration,
    /// How many deletions at once are believed.
    pub max_deletions: Percent,
    /// How long a sweep waits for the projector.
    pub patience: Duration,
}

/// What everything works with. Cheap to clone.
#[derive(Clone)]
pub struct Work {
    /// The projection (read only) and the reconciler's notes.
    pub pool: PgPool,
    /// The log.
    pub journal: Journal,
    /// `WorkOS`.
    pub api: Api,
    /// What time it is.
    pub clock: Clock,
    /// What is counted.
    pub metrics: Metrics,
    /// The directories this process may send requests for.
    pub leases: Leases,
    /// How sweeps judge.
    pub rules: Rules,
}

/// Why something could not be done to its end.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// `WorkOS` did not answer, or not sensibly.
    #[error(transparent)]
    Api(#[from] ApiError),
    /// The database.
    #[error("the database: {}", described(.0))]
    Database(#[from] sqlx::Error),
    /// The log.
    #[error("the log: {0}")]
    Log(#[from] journal::Error),
    /// The log did not take a record.
    #[error("the log: {0}")]
    Append(#[from] AppendError),
    /// The projector has not applied what the log had, for as long as we waited: the tables would be judged by what
    /// they do not know yet.
    #[error("the projector is behind the log; comparing now would find differences that are none")]
    Behind,
    /// Another reconciler works on this directory now.
    #[error("another reconciler took over this directory")]
    LeaseLost,
    /// Neither `WorkOS` nor the tables know this directory.
    #[error("there is no such directory")]
    Unknown,
    /// A list lacked objects that are there when asked for one by one.
    #[error("WorkOS's list of {0} was not complete")]
    Incomplete(&'static str),
    /// Objects were not listed, and whether they are gone could not be read. All others are dealt with.
    #[error("whether what was not listed is gone could not be read ({0}: {1})")]
    Unconfirmed(&'static str, usize),
    /// The work panicked. Other work goes on.
    #[error("a bug in dsync: this panicked; the panic's own message is on standard error")]
    Panicked,
}

/// Runs `work`, and makes a panic in it a failure: what one directory or object brings about must stop no other.
pub async fn contained<T>(work: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    // Whatever it worked on is dropped with it, so nothing half-changed is seen again.
    AssertUnwindSafe(work)
        .catch_unwind()
        .await
        .unwrap_or(Err(Failure::Panicked))
}

impl Work {
    /// The moment a reading of `at`, by the server's clock, speaks for.
    pub fn as_of(&self, at: Timestamp) -> Timestamp {
        at.plus_micros(-micros(self.rules.margin))
    }

    /// What a reading that speaks for `at` says of when, received now.
    pub fn times(&self, at: Timestamp, updated_at: Option<Timestamp>) -> Times {
        Times {
            at,
            received_at: self.clock.now().into(),
            updated_at,
        }
    }

    /// From when on a reading speaks for a moment later than `moment`. The server's clock is told in whole seconds.
    pub fn readable_after(&self, moment: Timestamp) -> Timestamp {
        moment.plus_micros(micros(self.rules.margin) + 1_100_000)
    }

    /// Waits until the projector has applied everything that is in the log now.
    pub async fn applied(&self, patience: Duration) -> Result<(), Failure> {
        let Some(log) = self.journal.identity().await? else {
            return Ok(());
        };
        let began = Instant::now();
        let mut pause = Duration::from_millis(10);
        loop {
            let position = applied::position(&self.pool).await?;
            let seq = position
                .filter(|(created, _)| *created == log.created)
                .map(|(_, seq)| seq);
            if log.last_seq == 0 || seq.is_some_and(|seq| seq >= log.last_seq) {
                return Ok(());
            }
            // Records that were erased at the log's end are never applied.
            if let Some(seq) = seq.filter(|_| began.elapsed() > Duration::from_secs(1))
                && self.journal.read(seq, &[]).await?.pending() == 0
            {
                return Ok(());
            }
            if began.elapsed() > patience {
                return Err(Failure::Behind);
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(Duration::from_millis(500));
        }
    }

    /// Appends readings, those that take something away first. Answers how many could not be written as records.
    pub async fn append_readings(&self, mut readings: Vec<Reading>) -> Result<usize, Failure> {
        readings.sort_by_key(|reading| !reading.is_removal());
        let now = Timestamp::from(self.clock.now());
        // Each is made into a record when its turn comes, and gone then: a first sweep reads all there is.
        let unwritten = stream::iter(readings)
            .map(|reading| async move {
                let Some(record) = reading.record(now) else {
                    return Ok(1);
                };
                drop(reading);
                match self.append(&record).await {
                    Ok(_) => Ok(0),
                    Err(AppendError::TooLarge) => Ok(1),
                    Err(error) => Err(error),
                }
            })
            .buffer_unordered(IN_FLIGHT)
            .try_fold(0, |sum, one| async move { Ok(sum + one) })
            .await?;
        Ok(unwritten)
    }

    /// Appends a record, again and again while the log cannot take it now.
    pub async fn append(&self, record: &Record) -> Result<Appended, AppendError> {
        let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(5));
        let began = Instant::now();
        loop {
            match self.journal.append(record).await {
                Err(AppendError::Unavailable(_) | AppendError::Full) if began.elapsed() < APPEND_PATIENCE => {
                    tokio::time::sleep(backoff.next_delay()).await;
                }
                Err(AppendError::TooLarge) => {
                    tracing::error!(
                        id = record.id,
                        subject = %record.subject,
                        bytes = record.body.len(),
                        "this record is larger than the log takes; it is left out"
                    );
                    return Err(AppendError::TooLarge);
                }
                outcome => return outcome,
            }
        }
    }
}

/// As many as fit.
pub(crate) fn micros(duration: Duration) -> i64 {
    i64::try_from(duration.as_micros()).unwrap_or(i64::MAX)
}
