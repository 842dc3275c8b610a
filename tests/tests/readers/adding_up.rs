//! Holds the feed against the views: added up, its changes must make what the views show, and whoever polls must have seen
//! each of them.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::ensure;
use schema::record::Record;
use sqlx::PgPool;
use tests::{Change, History};

use super::write_concurrently;

/// The most faults shown.
const SHOWN: usize = 5;
/// The pause after a poll that found nothing, so that the poller leaves the processors to the writers.
const PAUSE: Duration = Duration::from_millis(5);

/// What a consumer saw.
pub(super) struct Polled {
    /// The numbers of the changes, in the order in which it saw them.
    pub(super) ids: Vec<i64>,
    /// How many polls found something while others still wrote.
    pub(super) meanwhile: usize,
}

/// Fails unless the changes are consistent and add up to the views. Returns their numbers.
pub(super) async fn adds_up(pool: &PgPool) -> anyhow::Result<Vec<i64>> {
    let history = History::read(pool).await?;
    let mut faults = history.faults();
    faults.extend(history.strays(pool).await?);
    let (count, some) = (faults.len(), &faults[..faults.len().min(SHOWN)]);
    ensure!(faults.is_empty(), "{count} faults:\n{}", some.join("\n"));
    Ok(history.ids())
}

/// Polls as a consumer would, until `done` is set and nothing is left.
pub(super) async fn poll(pool: PgPool, done: Arc<AtomicBool>) -> anyhow::Result<Polled> {
    let (mut ids, mut meanwhile) = (Vec::new(), 0);
    loop {
        let over = done.load(Ordering::SeqCst);
        let batch = Change::read(&pool, ids.last().copied().unwrap_or(0), 7).await?;
        if !batch.is_empty() {
            ids.extend(batch.iter().map(|change| change.id));
            meanwhile += usize::from(!over);
        } else if over {
            return Ok(Polled { ids, meanwhile });
        } else {
            tokio::time::sleep(PAUSE).await;
        }
    }
}

/// Writes `batches` with four writers while somebody polls through a pool of their own, and then `the_rest`. Checks that
/// the poller missed no change, and that the changes add up to the views.
///
/// A test should call this with the same two pools for all of its histories: new sessions plan every function anew,
/// which takes about as long as writing a history.
pub(super) async fn written_and_polled(
    pool: &PgPool,
    pollers: &PgPool,
    batches: Vec<Vec<Record>>,
    the_rest: impl AsyncFnOnce() -> anyhow::Result<()>,
) -> anyhow::Result<Polled> {
    let done = Arc::new(AtomicBool::new(false));
    let poller = tokio::spawn(poll(pollers.clone(), done.clone()));
    let written = write_concurrently(pool, batches, 4).await;
    let the_rest = the_rest().await;
    done.store(true, Ordering::SeqCst);
    let polled = poller.await??;
    written.and(the_rest)?;
    let ids = adds_up(pool).await?;
    ensure!(
        polled.ids == ids,
        "the poller saw {} of {}",
        polled.ids.len(),
        ids.len()
    );
    Ok(polled)
}
