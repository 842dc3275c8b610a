//! A lane that waits: for records, ready to apply them at once, and for a slow database.

use std::time::Duration;

use anyhow::{Context as _, ensure};
use projector::lane::Lane;
use projector::run::{Tuning, Worker};
use projector::store::{self, progress};
use rand::SeedableRng as _;
use rand::prelude::StdRng;
use sqlx::{Connection as _, PgConnection};
use tests::{Nats, Postgres, eventually, holds};
use tokio_util::sync::CancellationToken;

use crate::{append, log_on, pictured, records, texts, worker};

const BOUND: Duration = Duration::from_secs(20);

/// So that the first removal after a quiet time does not wait for a check of the connection.
#[tokio::test]
async fn a_lease_is_renewed_on_the_connection_that_batches_are_written_with() -> anyhow::Result<()> {
    let (postgres, nats) = tokio::try_join!(Postgres::migrated(), Nats::start())?;
    let (pool, journal) = (postgres.pool().await?, log_on(&nats).await?);
    append(&journal, &records(3), &mut StdRng::seed_from_u64(3)).await?;
    let shutdown = CancellationToken::new();
    let work = tokio::spawn(worker(postgres.pool().await?, journal, &shutdown).work(Lane::All));
    // The session that wrote a batch last ran `COMMIT`.
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
        ensure!(last.contains("set holder"), "the session's last query is {last}");
        Ok(())
    })
    .await?;
    shutdown.cancel();
    Ok(work.await?)
}

/// The time limit for the program's statements does not apply to a batch's, whatever is in it: a batch that the server
/// cancels would start again from scratch.
#[tokio::test]
async fn a_batchs_statements_may_take_longer_than_others() -> anyhow::Result<()> {
    let postgres = Postgres::migrated().await?;
    let mut connection = postgres.pool().await?.acquire().await?.detach();
    sqlx::raw_sql("set statement_timeout = '30s'")
        .execute(&mut connection)
        .await?;
    let limit = async |connection: &mut PgConnection| {
        let shown = sqlx::query_scalar::<_, String>("show statement_timeout");
        shown.fetch_one(connection).await
    };
    let records = records(3);
    let texts = texts(&records);
    for kind in ["dsync.user", "dsync.group", "dsync.deleted"] {
        let (some, of_them): (Vec<_>, Vec<_>) = records
            .iter()
            .zip(&texts)
            .filter(|(record, _)| record.event_type.starts_with(kind))
            .map(|(record, text)| (record.clone(), text.clone()))
            .unzip();
        ensure!(!some.is_empty(), "the history has no {kind}");
        let mut transaction = connection.begin().await?;
        store::write(&mut transaction, &pictured(&of_them, &some)).await?;
        ensure!(limit(&mut transaction).await? == "15min", "{kind}");
        transaction.commit().await?;
        ensure!(
            limit(&mut connection).await? == "30s",
            "{kind}: the setting outlives the transaction"
        );
    }
    Ok(())
}

/// A batch that was given up would start again from scratch, and be given up again. What ends with a large group, or
/// comes back with a directory, is written in one transaction, however long that takes.
#[tokio::test]
async fn a_batch_is_not_given_up_while_the_database_is_at_work_on_it() -> anyhow::Result<()> {
    // Longer than the time between two statements on a busy machine.
    const PATIENCE: Duration = Duration::from_millis(300);
    let (postgres, nats) = tokio::try_join!(Postgres::migrated(), Nats::start())?;
    let (pool, journal) = (postgres.pool().await?, log_on(&nats).await?);
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
