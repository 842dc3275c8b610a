//! The long-running loop of one lane.
//!
//! ```text
//!              lease is another's                         lease lost, overtaken, log changed, any error
//!            ┌───────────────────┐                      ┌──────────────────────────────────────────────┐
//!            ▼                   │                      ▼                                              │
//!   ┌─────────────────┐    ┌─────┴──────┐  lease   ┌─────────────────────┐  same log  ┌────────────────┴───┐
//!   │ wait (1 s, or   ├───►│ ask for    ├─────────►│ compare the log     ├───────────►│ read, fold, write, │
//!   │ backing off)    │    │ the lease  │          │ with the position   │            │ advance; renew     │
//!   └─────────────────┘    └────────────┘          └──────────┬──────────┘            └────────────────────┘
//!                                                             │ rewound: every lane back to the beginning
//! ```
//!
//! Every stretch of work begins at the position stored in Postgres, and carries nothing over in memory from the one
//! before. So a crash, a lost connection, a lost lease and a restart are all the same case. A database that is down costs
//! time, never a dead letter.

use std::time::{Duration, Instant};

use journal::{Entry, Journal, Reader};
use schema::timestamp::Timestamp;
use service::clock::Clock;
use service::postgres::{Kept, Trouble, answered, answered_within, described};
use service::retry::Backoff;
use sqlx::postgres::PgExecutor;
use sqlx::{PgConnection, PgPool};
use tokio_util::sync::CancellationToken;

use crate::apply::{self, Applied, Batch, Fate};
use crate::holes::{self, Hole, Reading};
use crate::lane::Lane;
use crate::metrics::Metrics;
use crate::store::losses;
use crate::store::progress::{self, Position};
use crate::watch::{Verdict, appended_at, judge};

/// How often the lease is renewed while nothing is applied.
const RENEW: Duration = Duration::from_millis(1_500);
/// A renewal that takes longer has failed: the connection is dropped.
const RENEWED_WITHIN: Duration = Duration::from_secs(5);
/// How often a standby asks for the lease.
const STAND_BY: Duration = Duration::from_secs(1);
/// The shortest interval between the starts of two transactions of the lane `all`, unless it is behind. So under load many
/// records share a transaction, which costs the database about as much as five records, and a sync of the disk that the
/// broker may share. Removals have a lane of their own, which never waits.
const APART: Duration = Duration::from_millis(50);
/// How often the log is compared with the position while working.
const COMPARE: Duration = Duration::from_secs(10);

/// How a lane works. Only tests have reason to change it.
#[derive(Debug, Clone, Copy)]
pub struct Tuning {
    /// How long a lease lasts without renewal, and so the longest that a dead projector keeps others waiting.
    pub lease: Duration,
    /// Maximum number of records in a batch.
    pub batch_records: usize,
    /// Maximum size of a batch's bodies, in bytes. A single record may exceed it.
    pub batch_bytes: usize,
    /// How long to wait for a batch before asking the database whether it is still working on it. If it is, the wait goes
    /// on: everything that comes back with a directory or a large group is one transaction, which may take minutes.
    pub patience: Duration,
}

impl Default for Tuning {
    fn default() -> Self {
        Self {
            lease: Duration::from_secs(5),
            batch_records: 1_000,
            batch_bytes: 4 << 20,
            patience: Duration::from_mins(2),
        }
    }
}

/// What a lane works with. Cheap to clone.
#[derive(Clone)]
pub struct Worker {
    /// The projection.
    pub pool: PgPool,
    /// The log.
    pub journal: Journal,
    /// The name under which this process holds leases. No other process has the same.
    pub holder: String,
    /// The clock.
    pub clock: Clock,
    /// The metrics.
    pub metrics: Metrics,
    /// Batch sizes and time limits.
    pub tuning: Tuning,
    /// Cancelled at shutdown.
    pub shutdown: CancellationToken,
}

/// What ended a stretch of work without an error.
enum End {
    /// Another projector holds the lease.
    StandBy,
    /// Start over from the position that Postgres holds now.
    Again,
    /// Shutdown was requested.
    Shutdown,
}

/// What a working lane does next.
enum Next {
    /// Renew the lease.
    Renew,
    /// Compare the log with the position.
    Compare,
    /// Apply the records that arrived.
    Apply(Vec<Entry>),
}

/// Why a stretch of work failed.
#[derive(Debug, thiserror::Error)]
enum Stop {
    #[error("the log's stream does not exist yet; dsync-ingest or dsync-reconciler creates it")]
    NoStream,
    #[error(
        "cannot determine what the log lacks: it is changing, or its copies differ (see `nats stream info`)"
    )]
    Unsettled,
    #[error("the log: {0}")]
    Log(#[from] journal::Error),
    #[error("the log: {0}")]
    Read(#[from] journal::ReadError),
    #[error("the database: {}", described(.0))]
    Database(#[from] sqlx::Error),
}

impl From<holes::Error> for Stop {
    fn from(error: holes::Error) -> Self {
        match error {
            holes::Error::Log(error) => error.into(),
            holes::Error::Database(error) => error.into(),
        }
    }
}

impl Worker {
    /// Works `lane` until shutdown, whenever this projector holds the lease.
    pub async fn work(self, lane: Lane) {
        let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(10));
        let held = self.metrics.lane_held.with_label_values(&[lane.as_str()]);
        loop {
            let began = Instant::now();
            let end = self.stretch(lane).await;
            held.set(0);
            match end {
                Ok(End::Shutdown) => break,
                Ok(End::Again) => {}
                Ok(End::StandBy) => self.pause(STAND_BY).await,
                Err(stop) => {
                    tell(lane, &stop);
                    self.metrics.batch_retries.inc();
                    if began.elapsed() > Duration::from_secs(30) {
                        backoff.reset();
                    }
                    backoff.wait(&self.shutdown).await;
                }
            }
            if self.shutdown.is_cancelled() {
                break;
            }
        }
        if let Err(error) = progress::release(&self.pool, lane, &self.holder).await {
            tracing::debug!(
                lane = lane.as_str(),
                error = %described(&error),
                "cannot release the lease; it expires by itself"
            );
        }
    }

    async fn pause(&self, time: Duration) {
        tokio::select! {
            () = self.shutdown.cancelled() => {}
            () = tokio::time::sleep(time) => {}
        }
    }

    /// One stretch of work: from asking for the lease to whatever ends it.
    async fn stretch(&self, lane: Lane) -> Result<End, Stop> {
        let log = self.journal.identity().await?.ok_or(Stop::NoStream)?;
        if answered(progress::position(&self.pool, lane)).await?.is_none() {
            // Entries that are missing now were erased for another database or lost earlier. Nothing in this database was
            // ever projected from them, so they must not count as lost.
            let missing = self.journal.missing().await?;
            answered(losses::overwritten(&self.pool, log.created, &missing)).await?;
            answered(progress::begin(
                &self.pool,
                self.journal.stream_name(),
                log.created,
            ))
            .await?;
        }
        let Some(position) = answered(self.hold(&self.pool, lane)).await? else {
            return Ok(End::StandBy);
        };
        if !self.is_same_log(lane, position).await? {
            return Ok(End::Again);
        }
        let reader = self.journal.read(position.seq, lane.subjects()).await?;
        self.metrics.lane_held.with_label_values(&[lane.as_str()]).set(1);
        tracing::info!(lane = lane.as_str(), seq = position.seq, "working this lane");
        self.follow(lane, position, reader).await
    }

    /// Takes or renews the lease. Returns where the lane stands; `None` while another projector holds the lease.
    async fn hold(&self, executor: impl PgExecutor<'_>, lane: Lane) -> sqlx::Result<Option<Position>> {
        progress::hold(executor, lane, &self.holder, self.tuning.lease).await
    }

    /// Reads and applies from `position` on, while renewing the lease and checking that the log is still the same.
    async fn follow(&self, lane: Lane, mut position: Position, mut reader: Reader) -> Result<End, Stop> {
        let mut connections = self.journal.connections();
        connections.mark_unchanged();
        let mut connection = Kept::from(&self.pool).await?;
        let Tuning {
            batch_records: records,
            batch_bytes: bytes,
            ..
        } = self.tuning;
        let mut renew = tokio::time::interval(RENEW);
        let mut compare = tokio::time::interval_at(tokio::time::Instant::now() + COMPARE, COMPARE);
        let mut not_before = tokio::time::Instant::now();
        loop {
            let next = tokio::select! {
                biased;
                () = self.shutdown.cancelled() => return Ok(End::Shutdown),
                _ = renew.tick() => Next::Renew,
                _ = compare.tick() => Next::Compare,
                _ = connections.changed() => Next::Compare,
                entries = async {
                    tokio::time::sleep_until(not_before).await;
                    reader.next_batch(records, bytes).await
                } => Next::Apply(entries?),
            };
            let mut entries = match next {
                Next::Apply(entries) => entries,
                Next::Renew => {
                    // On the connection that writes the batches, so that a dead one is noticed before a batch needs it.
                    let renewing = self.hold(connection.ready().await?, lane);
                    match answered_within(RENEWED_WITHIN, renewing).await? {
                        Some(held) if held == position => continue,
                        Some(_) => return Ok(End::Again),
                        None => return Ok(End::StandBy),
                    }
                }
                Next::Compare if self.is_same_log(lane, position).await? => continue,
                Next::Compare => return Ok(End::Again),
            };
            let looked = self.look_for_holes(lane, position, connection.ready().await?, &mut entries);
            let Some(holes) = looked.await? else {
                return Ok(End::Again);
            };
            let batch = Batch {
                lane,
                from: position,
                entries: &entries,
                holes: &holes,
                lease: (&self.holder, self.tuning.lease),
            };
            let began = Instant::now();
            // A full batch means that more records are waiting.
            if lane == Lane::All && entries.len() < records {
                not_before = tokio::time::Instant::now() + APART;
            }
            let backend = connection.backend();
            let applying = apply::apply(connection.ready().await?, batch, self.clock.now());
            match backend.answered(self.tuning.patience, applying).await {
                Ok(applied) => {
                    position = batch.to();
                    self.count(lane, &entries, &applied, began.elapsed());
                    self.tell_lost(&applied.lost);
                    // The batch ends before what the reader has already read: read the rest again.
                    if position.seq < reader.position() {
                        return Ok(End::Again);
                    }
                }
                Err(apply::Error::Overtaken) => return Ok(End::Again),
                Err(apply::Error::Database(error)) => return Err(error.into()),
            }
        }
    }

    /// Returns the holes in `entries` that nothing explains. What only the consumer left out is inserted. `None` means to
    /// start over.
    async fn look_for_holes(
        &self,
        lane: Lane,
        position: Position,
        connection: &mut PgConnection,
        entries: &mut Vec<Entry>,
    ) -> Result<Option<Vec<Hole>>, Stop> {
        if lane == Lane::Removals {
            return Ok(Some(Vec::new()));
        }
        let reading = Reading {
            created: position.stream_created,
            position: position.seq,
            over_dropped: false,
            records: self.tuning.batch_records,
            bytes: self.tuning.batch_bytes,
        };
        let looking = holes::complete(connection, &self.journal, reading, entries);
        let Some(looked) = self.shutdown.run_until_cancelled(looking).await else {
            return Ok(None);
        };
        let found = looked?.ok_or(Stop::Unsettled)?;
        // If the log dropped what comes next, no entries are left. The next stretch begins there and notices the gap.
        Ok((!entries.is_empty()).then_some(found))
    }

    /// Whether the log continues from `position`. If not, the lanes have been moved to where they must resume.
    async fn is_same_log(&self, lane: Lane, position: Position) -> Result<bool, Stop> {
        let log = self.journal.identity().await?.ok_or(Stop::NoStream)?;
        let there = appended_at(&self.journal, position.seq, log).await?;
        match judge(position, log, there, lane) {
            Verdict::Same => Ok(true),
            Verdict::Rewound => {
                if answered(progress::rewind(&self.pool, lane, position, log)).await? {
                    self.metrics.log_rewinds.inc();
                    tracing::error!(
                        lane = lane.as_str(),
                        applied = position.seq,
                        last = log.last_seq,
                        "the log lost its end or was recreated: reading it again from its beginning; every directory is due for a sweep"
                    );
                }
                Ok(false)
            }
            Verdict::Gap if self.is_explained(position, log.first_seq).await? => Ok(true),
            Verdict::Gap => {
                if answered(progress::skip_gap(&self.pool, lane, position, log)).await? {
                    self.metrics.log_rewinds.inc();
                    tracing::error!(
                        lane = lane.as_str(),
                        applied = position.seq,
                        first = log.first_seq,
                        "the log dropped records because of its max age before they were applied: every directory is due for a sweep"
                    );
                }
                Ok(false)
            }
        }
    }

    /// Whether everything missing between `position` and the log's first entry was erased, or is already recorded as lost.
    async fn is_explained(&self, position: Position, first_seq: u64) -> sqlx::Result<bool> {
        let dropped = [Hole {
            after: position.seq,
            before: first_seq,
        }];
        let mut connection = answered(self.pool.acquire()).await?;
        let left = losses::unexplained(&mut connection, position.stream_created, &dropped);
        Ok(answered(left).await?.is_empty())
    }

    /// Reports the entries that a batch found lost. Each loss is reported once: a lane that reads the log again finds it
    /// recorded.
    fn tell_lost(&self, holes: &[Hole]) {
        let [first, ..] = holes else { return };
        let lost = holes.iter().map(|hole| hole.lacks()).sum();
        self.metrics.log_lost_entries.inc_by(lost);
        tracing::error!(
            lost,
            after = first.after,
            before = holes.last().map(|hole| hole.before),
            "the log lost entries from its middle before they were applied, and no erasure took them: every directory is \
             due for catch-up and sweep, which recover what was lost. Look for damage to the broker's disk; see \
             ops/runbook.md, DsyncLogLostEntries"
        );
    }

    fn count(&self, lane: Lane, entries: &[Entry], applied: &Applied, took: Duration) {
        self.metrics
            .lane_batches
            .with_label_values(&[lane.as_str()])
            .inc();
        self.metrics.batch_seconds.observe(took.as_secs_f64());
        #[expect(clippy::cast_precision_loss, reason = "a batch is small")]
        self.metrics.batch_events.observe(entries.len() as f64);
        let now = Timestamp::from(self.clock.now());
        for (entry, fate) in entries.iter().zip(&applied.records) {
            let outcome = match fate {
                // Only the lane `all` counts dead ones.
                Fate::Dead if lane == Lane::Removals => continue,
                Fate::Dead => "dead",
                // Both lanes read removals, and the first to apply one counts it. To the other it is stale, or shows up as
                // applied because another record in the batch changed the same row.
                _ if entry.record.subject.is_removal() && entry.seq <= applied.other => continue,
                Fate::Stale => "stale",
                Fate::Applied { created_at } => {
                    self.observe_age(entry, *created_at, now);
                    "applied"
                }
            };
            self.metrics.count(&entry.record.event_type, outcome);
        }
    }

    fn observe_age(&self, entry: &Entry, created_at: Option<Timestamp>, now: Timestamp) {
        let Some(created_at) = created_at else { return };
        let age = now.since(created_at).as_secs_f64();
        self.metrics.freshness_seconds.observe(age);
        if entry.record.subject.is_removal() {
            self.metrics.deprovision_seconds.observe(age);
        }
    }
}

/// Logs why a stretch failed: as a warning if it passes by itself, as an error if it is a defect.
fn tell(lane: Lane, stop: &Stop) {
    let lane = lane.as_str();
    match stop {
        Stop::Database(error) if Trouble::of(error) != Trouble::Transient => {
            tracing::error!(lane, error = %stop, "cannot write the projection; nothing is lost, retrying");
        }
        _ => tracing::warn!(lane, error = %stop, "cannot work this lane now; retrying after a pause"),
    }
}
