//! A lane that has nothing to do, and is ready for what comes.

use std::time::Duration;

use anyhow::{Context as _, ensure};
use projector::lane::Lane;
use rand::SeedableRng as _;
use rand::prelude::StdRng;
use tests::{Nats, Postgres, eventually};
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
