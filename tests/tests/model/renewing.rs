//! A lane that waits: for something to do, ready for what comes; and for a database that takes its time.

use std::time::Duration;

use anyhow::{Context as _, ensure};
use projector::lane::Lane;
use projector::run::{Tuning, Worker};
use projector::store::progress;
use rand::SeedableRng as _;
use rand::prelude::StdRng;
use tests::{Nats, Postgres, eventually, holds};
use tokio_util::sync::CancellationToken;

use crate::{append, log, records, worker};

const BOUND: Duration = Duration::from_secs(20);

/// So that the first removal after a quiet time does not wait for a look at the connection.
#[tokio::test]
async fn a_lease_is_renewed_on_the_connection_that_batches_are_written_with() -> anyhow::Result<()> {
    let (postgres, nats) = tokio::try_join!(Postgres::migrated(), Nats::start())?;
    let (pool, journal) = (postgres.pool().await?, log(&nats).await?);
    append(&journal, &records(3), &mut StdRng::seed_from_u64(3)).await?;
    let shutdown = CancellationToken::new();
    let work = tokio::spawn(worker(postgres.pool().await?, journal, &shutdown).work(Lane::All));
    // It wrote, and its last word was that all of it counts.
    let mut writer = None;
    eventually(BOUND, async || {
        writer = sqlx::query_scalar::<_, i32>(
            "select pid from pg_stat_activity
             where datname = current_database() and pid <> pg_backend_pid() and query = 'COMMIT' and state = 'idle'",
        )
        .fetch_optional(&pool)
        .await?;
        writer.context("nothing was written yet").map(drop)
    })
    .await?;
    eventually(BOUND, async || {
        let last: String = sqlx::query_scalar("select query from pg_stat_activity where pid = $1")
            .bind(writer)
            .fetch_one(&pool)
            .await?;
        ensure!(last.contains("set holder"), "it was last asked: {last}");
        Ok(())
    })
    .await?;
    shutdown.cancel();
    Ok(work.await?)
}

/// A batch that was given up would begin again from nothing, and be given up again: what a large directory takes along
/// goes in one transaction, however long that takes.
#[tokio::test]
async fn a_batch_is_not_given_up_while_the_database_is_at_work_on_it() -> anyhow::Result<()> {
    // Longer than the way from one statement to the next on a busy machine.
    const PATIENCE: Duration = Duration::from_millis(300);
    let (postgres, nats) = tokio::try_join!(Postgres::migrated(), Nats::start())?;
    let (pool, journal) = (postgres.pool().await?, log(&nats).await?);
    let last = append(&journal, &records(3), &mut StdRng::seed_from_u64(3)).await?;
    let mut slow = pool.begin().await?;
    sqlx::query("lock table dsync.users in share mode")
        .execute(&mut *slow)
        .await?;
    let shutdown = CancellationToken::new();
    let worker = Worker {
        tuning: Tuning {
            patience: PATIENCE,
            ..Tuning::default()
        },
        ..worker(postgres.pool().await?, journal, &shutdown)
    };
    let retries = worker.metrics.batch_retries.clone();
    let work = tokio::spawn(worker.work(Lane::All));
    eventually(BOUND, async || {
        let waits: bool = sqlx::query_scalar(
            "select exists (select from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock')",
        )
        .fetch_one(&pool)
        .await?;
        ensure!(waits, "no statement waits for the table");
        Ok(())
    })
    .await?;
    let before = retries.get();
    holds(PATIENCE * 7, async || {
        ensure!(retries.get() == before, "the batch was given up");
        Ok(())
    })
    .await?;
    slow.rollback().await?;
    eventually(BOUND, async || {
        let position = progress::position(&pool, Lane::All).await?.context("not begun")?;
        ensure!(position.seq == last, "at {} of {last}", position.seq);
        Ok(())
    })
    .await?;
    shutdown.cancel();
    Ok(work.await?)
}
