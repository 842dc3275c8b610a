//! The service: the loops that make the log complete and the tables true, side by side until shutdown.
//!
//! | loop | every | shared how |
//! |---|---|---|
//! | catch-up | `EVENTS_POLL_INTERVAL` | one process, by lease |
//! | list of directories | `SWEEP_INTERVAL` | one process, by lease |
//! | sweeps | each directory every `SWEEP_INTERVAL`, or sooner when due | each directory one process, by lease |
//! | single reads | a second | under the directory's lease |
//! | leases renewed | 4 s | – |
//! | the log's stream | at every connection, and 5 s | – |
//!
//! Each loop is idempotent and takes no hints: what is due is in the database, and a loop that fails begins anew. So a
//! crash, a lost lease and a restart are one case.

use std::time::{Duration, Instant};

use journal::{Journal, Limits};
use service::postgres::{answered, answered_within, described};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::catch_up::{CatchUp, Settings};
use crate::checks::Checker;
use crate::directories;
use crate::lease::LEASE;
use crate::store::duties::{self, Duty};
use crate::store::sweeps::{self, Cadence};
use crate::sweep::{Mode, sweep};
use crate::work::{Failure, Work};

/// How often it is asked what is due.
const POLL: Duration = Duration::from_secs(1);
/// Directories swept at once: enough to use up the limit of all requests at 4 a second each.
const SWEEPS_AT_ONCE: usize = 26;
/// How often it is seen to the log's stream.
const STREAM: Duration = Duration::from_secs(5);
/// How often the gauges are brought up to date.
const GAUGES: Duration = Duration::from_secs(5);
/// Beyond the margin: how long after a directory came back it is swept.
const SLACK: Duration = Duration::from_secs(2);

/// Starts every loop.
pub fn start(
    tasks: &mut JoinSet<()>,
    work: &Work,
    limits: Limits,
    catch_up: Settings,
    sweep_every: Duration,
    shutdown: &CancellationToken,
) {
    if !catch_up.every.is_zero() {
        tasks.spawn(CatchUp::new(work.clone(), catch_up).run(shutdown.clone()));
    }
    if !sweep_every.is_zero() {
        tasks.spawn(list_directories(work.clone(), sweep_every, shutdown.clone()));
        tasks.spawn(sweeps_loop(work.clone(), sweep_every, shutdown.clone()));
    }
    tasks.spawn(Checker::new(work.clone()).run(shutdown.clone()));
    tasks.spawn(gauges(work.clone(), shutdown.clone()));
    tasks.spawn(keep_stream(work.journal.clone(), limits, shutdown.clone()));
}

/// Makes the log's stream anew when it was lost: at every connection, and now and then. What it is like is ingest's to say:
/// two programs with other limits would change it back and forth.
async fn keep_stream(journal: Journal, limits: Limits, shutdown: CancellationToken) {
    let mut connections = journal.connections();
    loop {
        connections.borrow_and_update();
        if let Err(error) = journal.create_missing(&limits).await {
            tracing::warn!(%error, "the log's stream cannot be seen to now; trying again");
        }
        tokio::select! {
            () = shutdown.cancelled() => return,
            _ = connections.changed() => {}
            () = tokio::time::sleep(STREAM) => {}
        }
    }
}

async fn list_directories(work: Work, every: Duration, shutdown: CancellationToken) {
    while pause(POLL, &shutdown).await {
        let listed = tokio::select! {
            () = shutdown.cancelled() => return,
            listed = list_if_due(&work, every) => listed,
        };
        if let Err(error) = listed {
            tracing::warn!(%error, "the list of directories cannot be read now; trying again");
            pause(Duration::from_secs(10), &shutdown).await;
        }
    }
}

async fn list_if_due(work: &Work, every: Duration) -> Result<(), Failure> {
    let holder = work.leases.holder();
    if !answered(duties::claim_directories(&work.pool, holder, LEASE, every)).await? {
        return Ok(());
    }
    let began = answered(duties::now(&work.pool)).await?;
    let renewed = async {
        let mut renewed = Instant::now();
        while renewed.elapsed() < LEASE {
            tokio::time::sleep(LEASE / 4).await;
            let holding = duties::hold(&work.pool, Duty::Directories, holder, LEASE);
            match answered_within(LEASE / 2, holding).await {
                Ok(true) => renewed = Instant::now(),
                Ok(false) => break,
                Err(error) => tracing::debug!(error = %described(&error), "not renewed"),
            }
        }
        Failure::LeaseLost
    };
    let passed = tokio::select! {
        passed = directories::pass(work, Mode::default()) => passed.and_then(|pass| pass.complete()),
        lost = renewed => Err(lost),
    };
    if passed.is_ok() {
        answered(duties::done(&work.pool, Duty::Directories, began)).await?;
    }
    answered(duties::release(&work.pool, Duty::Directories, holder)).await?;
    passed
}

async fn sweeps_loop(work: Work, every: Duration, shutdown: CancellationToken) {
    let cadence = Cadence {
        every,
        margin: work.rules.margin + SLACK,
    };
    let mut running = JoinSet::new();
    loop {
        while running.len() < SWEEPS_AT_ONCE {
            match claim(&work, cadence).await {
                Ok(Some(lease)) => {
                    let work = work.clone();
                    let shutdown = shutdown.clone();
                    running.spawn(async move {
                        // Told to stop: what was read is thrown away, nothing was written.
                        shutdown
                            .run_until_cancelled(Box::pin(sweep(&work, &lease, Mode::default())))
                            .await;
                        lease.release().await;
                    });
                }
                Ok(None) => break,
                Err(error) => {
                    tracing::warn!(error = %described(&error), "no directory can be taken now");
                    break;
                }
            }
        }
        tokio::select! {
            () = shutdown.cancelled() => break,
            () = tokio::time::sleep(POLL) => {}
            Some(_) = running.join_next() => {}
        }
    }
    while running.join_next().await.is_some() {}
}

async fn claim(work: &Work, cadence: Cadence) -> sqlx::Result<Option<crate::lease::Lease>> {
    let claimed = work.leases.claim(cadence).await?;
    if claimed.is_some() {
        return Ok(claimed);
    }
    // Directories that an event made known since.
    answered(sweeps::add(&work.pool, &[])).await?;
    Ok(None)
}

/// Keeps the gauges that every reconciler shows.
async fn gauges(work: Work, shutdown: CancellationToken) {
    loop {
        match answered(sweeps::summary(&work.pool)).await {
            Ok((oldest, held)) => {
                work.metrics.held_deletions.set(held);
                if let Some(oldest) = oldest {
                    work.metrics.oldest_sweep.set(oldest.unix_timestamp());
                }
            }
            Err(error) => tracing::debug!(error = %described(&error), "no gauges now"),
        }
        if !pause(GAUGES, &shutdown).await {
            return;
        }
    }
}

/// Waits; `false` when told to stop meanwhile.
async fn pause(time: Duration, shutdown: &CancellationToken) -> bool {
    shutdown
        .run_until_cancelled(tokio::time::sleep(time))
        .await
        .is_some()
}
