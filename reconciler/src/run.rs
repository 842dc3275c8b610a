//! The service: the loops that keep the log complete and the tables correct, running side by side until shutdown.
//!
//! | loop | every | shared how |
//! |---|---|---|
//! | catch-up | `EVENTS_POLL_INTERVAL` | one process, by lease |
//! | list of directories | `SWEEP_INTERVAL` | one process, by lease |
//! | sweeps | each directory every `SWEEP_INTERVAL`, or sooner when due | each directory one process, by lease |
//! | single reads | second | under the directory's lease |
//! | renewal of leases | 4 s | – |
//! | check of the log's stream | new connection, and 5 s | – |
//!
//! Each loop is idempotent and depends on no signals: what is due is in the database, and a loop that fails starts
//! over. So a crash, a lost lease and a restart are the same case.

use std::time::{Duration, Instant};

use journal::{Journal, Limits};
use service::postgres::{answered, answered_within, described};
use time::OffsetDateTime;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::catch_up::{CatchUp, Settings};
use crate::checks::Checker;
use crate::directories;
use crate::lease::{LEASE, USED};
use crate::store::duties::{self, Duty};
use crate::store::sweeps::{self, Cadence, Summary};
use crate::sweep::{Mode, sweep};
use crate::work::{Failure, Work, contained};

/// How often the loops look for what is due.
const POLL: Duration = Duration::from_secs(1);
/// Directories swept at once: at 4 requests a second each, enough to use up the overall limit.
const SWEEPS_AT_ONCE: usize = 26;
/// How often the log's stream is checked.
const STREAM: Duration = Duration::from_secs(5);
/// How often the gauges are updated.
const GAUGES: Duration = Duration::from_secs(5);
/// Added to the margin before a directory that came back is swept.
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
    tasks.spawn(gauges(work.clone(), !catch_up.every.is_zero(), shutdown.clone()));
    tasks.spawn(keep_stream(work.journal.clone(), limits, shutdown.clone()));
}

/// Recreates the log's stream if it was lost; checks at every connection and every few seconds. The stream's settings
/// are left to ingest: two programs with different limits would change them back and forth.
async fn keep_stream(journal: Journal, limits: Limits, shutdown: CancellationToken) {
    let mut connections = journal.connections();
    loop {
        connections.borrow_and_update();
        if let Err(error) = journal.create_missing(&limits).await {
            tracing::warn!(%error, "cannot check the log's stream; trying again");
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
            tracing::warn!(%error, "the pass over the list of directories failed; trying again");
            pause(Duration::from_secs(10), &shutdown).await;
        }
    }
}

async fn list_if_due(work: &Work, every: Duration) -> Result<(), Failure> {
    let (holder, asked) = (work.leases.holder(), Instant::now());
    let claim = duties::claim_directories(&work.pool, holder, LEASE, every);
    let Some(began) = answered(claim).await? else {
        return Ok(());
    };
    let passed = tokio::select! {
        passed = contained(directories::pass(work, Mode::default())) => passed.and_then(|pass| pass.complete()),
        () = until_lost(work, asked) => Err(Failure::LeaseLost),
    };
    if passed.is_ok() {
        answered(duties::done(&work.pool, Duty::Directories, began)).await?;
    }
    answered(duties::release(&work.pool, Duty::Directories, holder)).await?;
    passed
}

/// Renews the lease of the list of directories, which the database was asked for at `asked`, until that fails for too long.
async fn until_lost(work: &Work, asked: Instant) {
    let mut asked = asked;
    loop {
        let renewing = async {
            tokio::time::sleep(LEASE / 4).await;
            let now = Instant::now();
            let holding = duties::hold(&work.pool, Duty::Directories, work.leases.holder(), LEASE);
            (now, answered_within(LEASE / 2, holding).await)
        };
        match tokio::time::timeout_at((asked + USED).into(), renewing).await {
            Ok((now, Ok(true))) => asked = now,
            Ok((_, Ok(false))) | Err(_) => return,
            Ok((_, Err(error))) => tracing::debug!(error = %described(&error), "cannot renew the lease"),
        }
    }
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
                        // On shutdown, the sweep is dropped, and what it read is discarded.
                        shutdown
                            .run_until_cancelled(Box::pin(sweep(&work, &lease, Mode::default())))
                            .await;
                        lease.release().await;
                    });
                }
                Ok(None) => break,
                Err(error) => {
                    tracing::warn!(error = %described(&error), "cannot claim a directory to sweep; trying again");
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
    // Adds directories that events have made known since.
    answered(sweeps::add(&work.pool, &[])).await?;
    Ok(None)
}

/// Updates the gauges that every reconciler shows.
async fn gauges(work: Work, catches_up: bool, shutdown: CancellationToken) {
    loop {
        match answered(sweeps::summary(&work.pool)).await {
            Ok(Summary {
                oldest,
                caught_up,
                held,
            }) => {
                work.metrics.held_deletions.set(held);
                // 0 where there is no directory, and so none to be swept.
                let seconds = |at: Option<OffsetDateTime>| at.map_or(0, OffsetDateTime::unix_timestamp);
                work.metrics.oldest_sweep.set(seconds(oldest));
                work.metrics
                    .caught_up
                    .set(seconds(caught_up.filter(|_| catches_up)));
            }
            Err(error) => tracing::debug!(error = %described(&error), "cannot update the gauges"),
        }
        if !pause(GAUGES, &shutdown).await {
            return;
        }
    }
}

/// Waits. `false`: told to stop meanwhile.
async fn pause(time: Duration, shutdown: &CancellationToken) -> bool {
    shutdown
        .run_until_cancelled(tokio::time::sleep(time))
        .await
        .is_some()
}
