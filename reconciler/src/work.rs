//! What sweeps, single reads and the catch-up share, and two things they do: wait until the tables say what the log
//! says, and append.

use std::panic::AssertUnwindSafe;
use std::time::{Duration, Instant};

use futures_util::{FutureExt as _, StreamExt as _, TryStreamExt as _, stream};
use journal::{AppendError, Appended, Journal};
use schema::record::Record;
use schema::reduce::reduced;
use schema::timestamp::Timestamp;
use service::clock::Clock;
use service::postgres::{answered_within, described};
use service::retry::Backoff;
use service::settings::Percent;
use sqlx::PgPool;

use crate::lease::Leases;
use crate::metrics::Metrics;
use crate::plan::Times;
use crate::reading::Reading;
use crate::store::applied;
use crate::workos::client::{Api, ApiError};

/// How many appends await their acknowledgements at once.
pub const IN_FLIGHT: usize = 64;
/// The resolution of the server's clock, whole seconds, and a little more.
const CLOCK_STEP: Duration = Duration::from_millis(1_100);
/// How long the append of one record is retried.
const APPEND_PATIENCE: Duration = Duration::from_mins(1);

/// How sweeps judge.
#[derive(Clone, Copy, Debug)]
pub struct Rules {
    /// How old the data in an answer is assumed to be.
    pub margin: Duration,
    /// How many deletions at once are believed.
    pub max_deletions: Percent,
    /// How long a sweep waits for the projector.
    pub patience: Duration,
}

/// What everything here works with. Cheap to clone.
#[derive(Clone)]
pub struct Work {
    /// The projection (read only) and the reconciler's own tables.
    pub pool: PgPool,
    /// The log.
    pub journal: Journal,
    /// `WorkOS`.
    pub api: Api,
    /// The clock.
    pub clock: Clock,
    /// The metrics.
    pub metrics: Metrics,
    /// The directories this process may send requests for.
    pub leases: Leases,
    /// How sweeps judge.
    pub rules: Rules,
}

/// Why something could not be completed.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// `WorkOS` did not answer, or not usably.
    #[error(transparent)]
    Api(#[from] ApiError),
    /// The database.
    #[error("the database: {}", described(.0))]
    Database(#[from] sqlx::Error),
    /// The log.
    #[error("the log: {0}")]
    Log(#[from] journal::Error),
    /// The log did not accept a record.
    #[error("the log: {0}")]
    Append(#[from] AppendError),
    /// The projector did not apply everything in the log while we waited: what it has not applied yet would look
    /// like differences.
    #[error("the projector is behind the log; comparing now would report false differences")]
    Behind,
    /// Another reconciler works on this directory now.
    #[error("another reconciler took over this directory")]
    LeaseLost,
    /// Neither `WorkOS` nor the tables know this directory.
    #[error("there is no such directory")]
    Unknown,
    /// `WorkOS` lists none of the directories that readers see.
    #[error(
        "WorkOS lists none of the directories that the tables have: is WORKOS_API_KEY another environment's? If they are \
         really gone, approve that with `dsync-reconciler approve`"
    )]
    OtherEnvironment,
    /// A list lacked objects that exist when read one by one.
    #[error("a list from WorkOS was incomplete ({0})")]
    Incomplete(&'static str),
    /// Objects were not listed, and the reads to confirm that they are gone failed. All others are dealt with.
    #[error("cannot confirm that objects missing from a list are gone ({0}: {1})")]
    Unconfirmed(&'static str, usize),
    /// The work panicked. Other work goes on.
    #[error("a bug in dsync: this panicked; the panic's own message is on standard error")]
    Panicked,
}

/// How long to wait for the database. Longer than the server lets a statement take, which ends it first.
const STORED_WITHIN: Duration = Duration::from_secs(75);

/// Waits for the database, but not forever: an answer that got lost on the way would end a directory's sweeps for good,
/// because its lease is renewed over another connection.
pub(crate) fn stored<T>(
    asking: impl Future<Output = sqlx::Result<T>>,
) -> impl Future<Output = sqlx::Result<T>> {
    answered_within(STORED_WITHIN, asking)
}

impl Failure {
    /// Whether it is about one object or list, so that others can still be read: an API key that is not accepted concerns
    /// all, and so does any failure that is not `WorkOS`'s.
    pub(crate) fn is_of_one_read(&self) -> bool {
        matches!(self, Self::Api(error) if !matches!(error, ApiError::Unauthorized(_)))
    }
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
    /// The time that a reading answered at `at`, by the server's clock, speaks for.
    pub fn as_of(&self, at: Timestamp) -> Timestamp {
        at.minus(self.rules.margin)
    }

    /// The times of a reading that speaks for `at` and is received now.
    pub fn times(&self, at: Timestamp, updated_at: Option<Timestamp>) -> Times {
        Times {
            at,
            received_at: self.clock.now().into(),
            updated_at,
        }
    }

    /// From when on a reading speaks for a time later than `moment`, given that the server's clock has whole seconds.
    pub fn readable_after(&self, moment: Timestamp) -> Timestamp {
        moment.plus(self.rules.margin).plus(CLOCK_STEP)
    }

    /// Waits until the projector has applied everything that is in the log now.
    pub async fn applied(&self, patience: Duration) -> Result<(), Failure> {
        let Some(log) = self.journal.identity().await? else {
            return Ok(());
        };
        let began = Instant::now();
        let mut pause = Duration::from_millis(10);
        loop {
            let position = stored(applied::position(&self.pool)).await?;
            let seq = position
                .filter(|(created, _)| *created == log.created)
                .map(|(_, seq)| seq);
            if log.last_seq == 0 || seq.is_some_and(|seq| seq >= log.last_seq) {
                return Ok(());
            }
            // Records that were erased at the end of the log are never applied.
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

    /// Appends readings, removals first. Returns how many could not be written as records.
    pub async fn append_readings(&self, mut readings: Vec<Reading>) -> Result<usize, Failure> {
        readings.sort_by_key(|reading| !reading.is_removal());
        let now = Timestamp::from(self.clock.now());
        // Each becomes a record only when its turn comes, and is then dropped: a first sweep has readings of
        // everything.
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

    /// Appends a record, retrying for a while if the log is unavailable or full. One that is too large is stored without
    /// its objects' attributes if it takes something away.
    pub async fn append(&self, record: &Record) -> Result<Appended, AppendError> {
        match self.append_whole(record).await {
            Err(AppendError::TooLarge) => {}
            outcome => return outcome,
        }
        let outcome = match reduced(record) {
            Some(reduced) => self.append_whole(&reduced).await,
            None => Err(AppendError::TooLarge),
        };
        let (id, subject, bytes) = (&record.id, &record.subject, record.body.len());
        match outcome {
            Err(AppendError::TooLarge) => {
                tracing::error!(id, %subject, bytes, "this record is larger than the log accepts; it is left out");
            }
            Ok(Appended::Stored { .. }) => {
                tracing::warn!(
                    id, %subject, bytes,
                    "this record is larger than the log accepts; it takes something away and is stored without attributes"
                );
            }
            _ => {}
        }
        outcome
    }

    async fn append_whole(&self, record: &Record) -> Result<Appended, AppendError> {
        let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(5));
        let began = Instant::now();
        loop {
            match self.journal.append(record).await {
                Err(AppendError::Unavailable(_) | AppendError::Full) if began.elapsed() < APPEND_PATIENCE => {
                    tokio::time::sleep(backoff.next_delay()).await;
                }
                outcome => return outcome,
            }
        }
    }
}
