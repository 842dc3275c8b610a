//! Behind a transaction pooler, which may give a server session to another client after each transaction.
//!
//! `ops/test` runs these if there is a PgBouncer that supports prepared statements: 1.21 or newer.

use std::time::Duration;

use anyhow::{Context as _, ensure};
use sqlx::Connection as _;
use tests::{Nats, Pooler, Postgres, eventually};
use workos_sim::Faults;

use crate::schema::{ingest, ready_at_once};
use crate::stand::{Stand, a_bad_day};
use crate::take_over::pair;
use crate::{rebuilding, schema};

/// A generous limit for what takes milliseconds.
const PATIENCE: Duration = Duration::from_secs(30);

/// A stand whose programs reach the database through a pooler.
async fn pooled() -> anyhow::Result<Stand> {
    let mut stand = Stand::up().await?;
    stand.pooler = Some(Pooler::start(&stand.postgres).await?);
    Ok(stand)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs PgBouncer 1.21 or newer"]
async fn source_and_tables_agree_and_who_falls_silent_is_replaced() -> anyhow::Result<()> {
    let stand = pooled().await?;
    let delivery = stand.deliver(a_bad_day(1))?;
    stand.populate(60, 6)?;
    let (mut worker, _other) = pair(&stand).await?;
    stand.sim.burst(300)?;
    delivery.hurry();
    let counts = delivery.drained().await;
    ensure!(counts.gave_up == 0 && counts.lost == 0, "{counts:?}");
    stand.agrees().await?;
    stand.sim.burst(300)?;
    worker.pause()?;
    delivery.hurry();
    delivery.drained().await;
    stand.agrees().await?;
    worker.resume()?;
    stand.sim.burst(100)?;
    delivery.hurry();
    delivery.drained().await;
    stand.agrees().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs PgBouncer 1.21 or newer"]
async fn three_projectors_may_start_on_an_empty_database_at_once() -> anyhow::Result<()> {
    let (postgres, nats) = tokio::try_join!(Postgres::start(), Nats::start())?;
    let pooler = Pooler::start(&postgres).await?;
    let _ingest = ingest(&nats).start().await?;
    let _all =
        ready_at_once(|| schema::projector(&postgres, &nats).env("DATABASE_URL", pooler.url())).await?;
    // No program keeps a session-level lock.
    let pool = postgres.pool().await?;
    eventually(PATIENCE, async || {
        let held: i64 = sqlx::query_scalar(
            "select count(*) from pg_locks as l join pg_stat_activity as a on a.pid = l.pid
            where l.locktype = 'advisory' and a.state = 'idle'",
        )
        .fetch_one(&pool)
        .await?;
        ensure!(held == 0, "{held} locks are held by idle sessions");
        Ok(())
    })
    .await
}

/// Others would get sessions with the commands' temporary tables and settings. Undo needs neither.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs PgBouncer 1.21 or newer"]
async fn verify_and_rebuild_refuse_and_leave_nothing_behind_and_undo_undoes() -> anyhow::Result<()> {
    let mut stand = pooled().await?;
    let _running = stand.projector().start().await?;
    let delivery = stand.deliver(Faults::none())?;
    stand.populate(5, 1)?;
    delivery.drained().await;
    stand.agrees().await?;
    for command in ["verify", "rebuild"] {
        let output = rebuilding::projector(&stand, &[command]).await?;
        ensure!(
            output.status.code() == Some(1) && output.stderr.contains("transaction pooler"),
            "{output:?}"
        );
    }
    let left: i64 = sqlx::query_scalar("select count(*) from pg_class where relpersistence = 't'")
        .fetch_one(&stand.pool)
        .await?;
    ensure!(left == 0, "{left} temporary tables are left");

    let tampered = "select count(*) from dsync.users where job_title = 'tampered'";
    sqlx::query("update dsync.users set job_title = 'tampered'")
        .execute(&stand.pool)
        .await?;
    let all = stand.count(tampered).await?;
    let pooler = stand.pooler.take();
    let rebuilt = rebuilding::projector(&stand, &["rebuild"]).await?;
    ensure!(
        all > 0 && rebuilt.status.success() && stand.count(tampered).await? == 0,
        "{rebuilt:?}"
    );
    stand.pooler = pooler;
    let undone = rebuilding::projector(&stand, &["rebuild", "--undo"]).await?;
    ensure!(
        undone.status.success() && stand.count(tampered).await? == all,
        "{undone:?}"
    );
    Ok(())
}

/// The query that asks what the session is doing goes through the pooler, too, and reaches that very session.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs PgBouncer 1.21 or newer"]
async fn an_answer_that_was_lost_is_given_up() -> anyhow::Result<()> {
    let postgres = Postgres::start().await?;
    let pooler = Pooler::start(&postgres).await?;
    let settings = service::postgres::PoolSettings {
        application_name: "test",
        max_connections: 2,
        statement_timeout: Duration::ZERO,
    };
    let pool = service::postgres::pool(&service::settings::Secret::from(pooler.url().as_str()), &settings)?;
    let mut kept = service::postgres::Kept::from(&pool).await?;
    let backend = kept.backend();
    kept.ready().await?.ping().await?;
    let lost = std::future::pending::<Result<(), sqlx::Error>>();
    let given_up = tokio::time::timeout(PATIENCE, backend.answered(Duration::from_millis(200), lost))
        .await
        .context("still waiting for the lost answer")?;
    ensure!(given_up.is_err());
    Ok(())
}
