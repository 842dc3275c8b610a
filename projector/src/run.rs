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
//! Every stretch of work begins at the position that Postgres holds, and whatever ends it ends it whole: nothing is
//! carried over in memory. So a crash, a lost connection, a lost lease and a restart are one case. A database that is
//! down costs waiting and never a dead letter.

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
use crate::store::erased;
use crate::store::progress::{self, Found, Position};
use crate::watch::{Verdict, appended_at, judge};

/// How often it is renewed while nothing is applied.
const RENEW: Duration = Duration::from_millis(1_500);
/// A renewal that takes longer is none: the connection is given up.
const RENEWED_WITHIN: Duration = Duration::from_secs(5);
/// How often one that stands by asks for the lease.
const STAND_BY: Duration = Duration::from_secs(1);
/// How far apart transactions of the lane of everything begin at least, so that under load many records share one: each
/// costs the database about as much as five records do. What takes access away has a lane of its own that never waits.
const APART: Duration = Duration::from_millis(10);
/// How often the log is compared with the position while working.
const COMPARE: Duration = Duration::from_secs(10);

/// How a lane works. Only tests have reason to change it.
#[derive(Debug, Clone, Copy)]
pub struct Tuning {
    /// How long a lease holds without being renewed: the longest a dead projector keeps others waiting.
    pub lease: Duration,
    /// Records in a batch at most.
    pub batch_records: usize,
    /// Bytes of bodies in a batch at most, or one record.
    pub batch_bytes: usize,
    /// After so long the database is asked whether it is at work on a batch; if it is, it may go on. All that goes with
    /// a large group, or comes back with a directory, is one transaction, which may take minutes.
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
    /// The log's name.
    pub stream: String,
    /// Who holds leases, unlike any other process.
    pub holder: String,
    /// What time it is.
    pub clock: Clock,
    /// What is counted.
    pub metrics: Metrics,
    /// How it works.
    pub tuning: Tuning,
    /// When to stop.
    pub shutdown: CancellationToken,
}

/// What ended a stretch of work without an error.
enum End {
    /// Another projector holds the lease.
    StandBy,
    /// Begin anew at the position that Postgres holds now.
    Again,
    /// We are told to stop.
    Shutdown,
}

/// What a working lane does next.
enum Next {
    /// Renew the lease.
    Renew,
    /// Compare the log with the position.
    Compare,
    /// Apply what came.
    Apply(Vec<Entry>),
}

/// Why a stretch of work could not go on.
#[derive(Debug, thiserror::Error)]
enum Stop {
    #[error("the log's stream does not exist yet; ingest or the reconciler makes it")]
    NoStream,
    #[error("what the log lacks cannot be told: it changes, or its copies differ (see `nats stream info`)")]
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
    /// Works `lane` until shutdown: alone, or in turn with other projectors.
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
            tracing::debug!(lane = lane.as_str(), error = %described(&error), "the lease runs out by itself");
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
            // Erased for another database, or lost before: nothing projected from this log will ever have been more.
            let missing = self.journal.missing().await?;
            answered(erased::overwritten(&self.pool, log.created, &missing)).await?;
            answered(progress::begin(&self.pool, &self.stream, log.created)).await?;
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

    /// Takes or renews the lease; where the lane stands, unless it is another's.
    async fn hold(&self, executor: impl PgExecutor<'_>, lane: Lane) -> sqlx::Result<Option<Position>> {
        progress::hold(executor, lane, &self.holder, self.tuning.lease).await
    }

    /// Reads and applies from `position` on, keeping the lease and an eye on the log.
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
                    // On the connection that batches are written with: so it proves itself before a batch waits for it.
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
            if lane == Lane::All {
                not_before = tokio::time::Instant::now() + APART;
            }
            let backend = connection.backend();
            let applying = apply::apply(connection.ready().await?, batch, self.clock.now());
            match backend.answered(self.tuning.patience, applying).await {
                Ok(applied) => {
                    position = batch.to();
                    self.count(lane, &entries, &applied, began.elapsed());
                    self.tell_lost(&applied.lost);
                    if applied.to_purge > 0
                        && let Err(error) = crate::erase::drain(&self.pool, &self.journal).await
                    {
                        // Noted in the database: upkeep tries again.
                        tracing::warn!(lane = lane.as_str(), %error, "late records of erased people stay in the log for now");
                    }
                    // It read on behind what was left out of this batch.
                    if position.seq < reader.position() {
                        return Ok(End::Again);
                    }
                }
                Err(apply::Error::Overtaken) => return Ok(End::Again),
                Err(apply::Error::Database(error)) => return Err(error.into()),
            }
        }
    }

    /// What `entries` leave out that is nowhere; what only their consumer left out is put in. None: begin anew.
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
        // None is left before what the log dropped: who begins there finds that.
        Ok((!entries.is_empty()).then_some(found))
    }

    /// Whether the log goes on from `position`. If not, the lanes were sent to where they must go on.
    async fn is_same_log(&self, lane: Lane, position: Position) -> Result<bool, Stop> {
        let log = self.journal.identity().await?.ok_or(Stop::NoStream)?;
        let there = appended_at(&self.journal, position.seq, log).await?;
        let found = Found {
            created: log.created,
            first_seq: log.first_seq,
            last_seq: log.last_seq,
        };
        match judge(position, log, there, lane) {
            Verdict::Same => Ok(true),
            Verdict::Rewound => {
                if answered(progress::rewind(&self.pool, lane, position, found)).await? {
                    self.metrics.log_rewinds.inc();
                    tracing::error!(
                        lane = lane.as_str(),
                        applied = position.seq,
                        last = log.last_seq,
                        "the log lost its end or was made anew: reading all of it again; every directory is due for a sweep"
                    );
                }
                Ok(false)
            }
            Verdict::Gap if self.is_explained(position, log.first_seq).await? => Ok(true),
            Verdict::Gap => {
                if answered(progress::skip_gap(&self.pool, lane, position, found)).await? {
                    self.metrics.log_rewinds.inc();
                    tracing::error!(
                        lane = lane.as_str(),
                        applied = position.seq,
                        first = log.first_seq,
                        "the log dropped records before they were applied (its max age): every directory is due for a sweep"
                    );
                }
                Ok(false)
            }
        }
    }

    /// Whether erasures took all that the log lacks between `position` and its first entry, or it is noted as lost.
    async fn is_explained(&self, position: Position, first_seq: u64) -> sqlx::Result<bool> {
        let dropped = [Hole {
            after: position.seq,
            before: first_seq,
        }];
        let mut connection = answered(self.pool.acquire()).await?;
        let left = erased::unexplained(&mut connection, position.stream_created, &dropped);
        Ok(answered(left).await?.is_empty())
    }

    /// Once for each batch: whoever reads the log again finds the note.
    fn tell_lost(&self, holes: &[Hole]) {
        let [first, ..] = holes else { return };
        let lost = holes.iter().map(|hole| hole.lacks()).sum();
        self.metrics.log_lost_entries.inc_by(lost);
        tracing::error!(
            lost,
            after = first.after,
            before = holes.last().map(|hole| hole.before),
            "the log lost entries from its middle before they were applied, and no erasure took them: every directory is \
             due for catch-up and sweep, which bring back what they said. Look for damage to the broker's disk; \
             ops/runbook.md, DsyncLogLostEntries"
        );
    }

    fn count(&self, lane: Lane, entries: &[Entry], applied: &Applied, took: Duration) {
        self.metrics.batch_seconds.observe(took.as_secs_f64());
        #[expect(clippy::cast_precision_loss, reason = "a batch is small")]
        self.metrics.batch_events.observe(entries.len() as f64);
        let now = Timestamp::from(self.clock.now());
        for (entry, fate) in entries.iter().zip(&applied.records) {
            let outcome = match fate {
                Fate::Applied { created_at } => {
                    self.observe_age(entry, *created_at, now);
                    "applied"
                }
                // What both lanes read is counted once: what the removals lane applied is no news to the other.
                Fate::Stale if lane == Lane::All && entry.record.subject.is_removal() => continue,
                Fate::Dead if lane == Lane::Removals => continue,
                Fate::Stale => "stale",
                Fate::Dead => "dead",
            };
            self.metrics.count(&entry.record.event_type, outcome);
        }
    }

    fn observe_age(&self, entry: &Entry, created_at: Option<Timestamp>, now: Timestamp) {
        let Some(created_at) = created_at else { return };
        #[expect(clippy::cast_precision_loss, reason = "an age in microseconds")]
        let age = (now.as_micros().saturating_sub(created_at.as_micros()) as f64 / 1e6).max(0.0);
        self.metrics.freshness_seconds.observe(age);
        if entry.record.subject.is_removal() {
            self.metrics.deprovision_seconds.observe(age);
        }
    }
}

/// What to say of what stopped a stretch: trouble that passes is a warning, a defect an error.
fn tell(lane: Lane, stop: &Stop) {
    let lane = lane.as_str();
    match stop {
        Stop::Database(error) if Trouble::of(error) != Trouble::Transient => {
            tracing::error!(lane, error = %stop, "cannot write the projection; nothing is lost, trying again");
        }
        _ => tracing::warn!(lane, error = %stop, "waiting, then trying again"),
    }
}
