//! Behind a transaction pooler, which gives the server's sessions to whoever begins the next transaction.
//!
//! `ops/test` runs these where there is a PgBouncer that knows prepared statements: 1.21 or newer.

use std::time::Duration;

use anyhow::ensure;
use sqlx::Connection as _;
use tests::{Nats, Pooler, Postgres, Program, eventually};

use crate::stand::{SECRET, Stand, a_bad_day};

/// Long for what takes milliseconds.
const PATIENCE: Duration = Duration::from_secs(30);

fn projector(nats: &Nats, pooler: &Pooler) -> Program {
    Program::new("dsync-projector")
        .env("NATS_URL", nats.url())
        .env("DATABASE_URL", pooler.url())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs PgBouncer 1.21 or newer"]
async fn source_and_tables_agree_and_who_falls_silent_is_replaced() -> anyhow::Result<()> {
    let stand = Stand::up().await?;
    let pooler = Pooler::start(&stand.postgres).await?;
    let mut running = Vec::new();
    for _ in 0..2 {
        running.push(projector(&stand.nats, &pooler).start().await?);
    }
    let delivery = stand.deliver(a_bad_day(1))?;
    stand.populate(60, 6)?;
    stand.sim.burst(300)?;
    delivery.hurry();
    let counts = delivery.drained().await;
    ensure!(counts.gave_up == 0 && counts.lost == 0, "{counts:?}");
    stand.agrees().await?;
    let mut frozen = running.swap_remove(0);
    frozen.pause()?;
    stand.sim.burst(300)?;
    delivery.hurry();
    delivery.drained().await;
    stand.agrees().await?;
    frozen.resume()?;
    for mut program in running {
        program.terminate().await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs PgBouncer 1.21 or newer"]
async fn three_projectors_may_start_on_an_empty_database_at_once() -> anyhow::Result<()> {
    let (postgres, nats) = tokio::try_join!(Postgres::start(), Nats::start())?;
    let pooler = Pooler::start(&postgres).await?;
    let _ingest = Program::new("dsync-ingest")
        .env("NATS_URL", nats.url())
        .env("WORKOS_WEBHOOK_SECRET", SECRET)
        .start()
        .await?;
    let mut all = Vec::new();
    for _ in 0..3 {
        all.push(projector(&nats, &pooler).spawn()?);
    }
    for one in &mut all {
        one.ready().await?;
    }
    // Nobody keeps a lock that only a session would give back.
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

/// Temporary tables and settings would be met by others.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs PgBouncer 1.21 or newer"]
async fn verify_and_rebuild_refuse_and_leave_nothing_behind() -> anyhow::Result<()> {
    let stand = Stand::up().await?;
    let pooler = Pooler::start(&stand.postgres).await?;
    let mut running = projector(&stand.nats, &pooler).start().await?;
    for command in ["verify", "rebuild"] {
        let output = projector(&stand.nats, &pooler).arg(command).run().await?;
        ensure!(
            output.status.code() == Some(1) && output.stderr.contains("transaction pooler"),
            "{output:?}"
        );
    }
    let left: i64 = sqlx::query_scalar("select count(*) from pg_class where relpersistence = 't'")
        .fetch_one(&stand.pool)
        .await?;
    ensure!(left == 0, "{left} temporary tables are left");
    running.terminate().await
}

/// The look at what the server is at work on comes through the pooler too, on the very session that it looks at.
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
    let given_up = backend.answered(Duration::from_millis(200), lost);
    let given_up = tokio::time::timeout(PATIENCE, given_up).await;
    ensure!(matches!(given_up, Ok(Err(_))), "it is waited for for ever");
    Ok(())
}
