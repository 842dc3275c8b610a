//! Postgres fails over to a standby that lacks the last commits. Programs find the primary at one address, which at
//! some moment begins to lead to the new primary, as a service name or a virtual address would.

use std::time::{Duration, Instant};

use anyhow::ensure;
use sqlx::PgPool;
use tests::{Cut, Line, Nats, Postgres, Program, Proxy, Running, agrees, eventually};
use workos_sim::{Delivery, DeliveryOptions, DirectoryOptions, EventsOptions, Options, Seed, Sim, Tuning};

use crate::stand::{BOUND, SECRET};

struct Stage {
    primary: Postgres,
    standby: Postgres,
    /// The connection between the standby and the primary.
    stream: Proxy,
    /// The address at which the programs find the primary.
    name: Proxy,
    sim: Sim,
    delivery: Delivery,
    projectors: Vec<Running>,
    reconciler: Running,
    _ingest: Running,
    _nats: Nats,
}

impl Stage {
    async fn set() -> anyhow::Result<Stage> {
        let (primary, nats) = tokio::try_join!(Postgres::migrated(), Nats::start())?;
        let stream = Proxy::to(primary.address())?;
        let standby = primary.standby(&stream.address()).await?;
        let name = Proxy::to(primary.address())?;
        let sim = Sim::start(Options {
            tuning: Tuning {
                events: EventsOptions::default(),
                ..Tuning::default()
            },
            ..Options::default()
        })
        .await?;
        let program = |program| Program::new(program).env("NATS_URL", nats.url());
        let with_tables = |it| program(it).env("DATABASE_URL", name.instead_of(&primary.url()));
        let ingest = program("dsync-ingest")
            .env("WORKOS_WEBHOOK_SECRET", SECRET)
            .start()
            .await?;
        let mut projectors = Vec::new();
        for _ in 0..2 {
            projectors.push(with_tables("dsync-projector").start().await?);
        }
        let reconciler = with_tables("dsync-reconciler")
            .env("WORKOS_API_URL", sim.url())
            .env("WORKOS_API_KEY", sim.api_key())
            .env("EVENTS_POLL_INTERVAL", "1s")
            .env("EVENTS_HOLDBACK", "3s")
            .env("SWEEP_INTERVAL", "10s")
            .env("SWEEP_CLOCK_MARGIN", "2s")
            .start()
            .await?;
        let delivery = sim.deliver(DeliveryOptions {
            backoff_max: Duration::from_secs(1),
            ..DeliveryOptions::new(format!("{}/webhooks/workos", ingest.listen_url()), SECRET)
        })?;
        for options in [DirectoryOptions::default(), DirectoryOptions::newer()] {
            let directory = sim.create_directory(options)?;
            sim.seed(
                &directory,
                &Seed {
                    users: 15,
                    groups: 3,
                    ..Seed::default()
                },
            )?;
        }
        let stage = Stage {
            primary,
            standby,
            stream,
            name,
            sim,
            delivery,
            projectors,
            reconciler,
            _ingest: ingest,
            _nats: nats,
        };
        stage.agrees_on(&stage.standby.pool().await?).await?;
        Ok(stage)
    }

    async fn agrees_on(&self, pool: &PgPool) -> anyhow::Result<()> {
        self.delivery.drained().await;
        eventually(BOUND, async || agrees(pool, &self.sim.truth()).await).await
    }

    /// Makes commits that the standby does not get.
    async fn commits_that_are_missed(&self) -> anyhow::Result<()> {
        self.stream.set(Line::Silent);
        self.sim.burst(100)?;
        let primary = self.primary.pool().await?;
        self.agrees_on(&primary).await?;
        let standby = self.standby.pool().await?;
        ensure!(
            agrees(&standby, &self.sim.truth()).await.is_err(),
            "the standby lacks nothing"
        );
        Ok(())
    }

    /// Checks that everything works on the new primary, for further changes, too.
    async fn goes_on(&self) -> anyhow::Result<()> {
        let began = Instant::now();
        let pool = self.standby.pool().await?;
        self.sim.burst(100)?;
        self.agrees_on(&pool).await?;
        println!(
            "the tables of the new primary show the truth after {:?}",
            began.elapsed()
        );
        let dead: i64 = sqlx::query_scalar("select count(*) from dsync.dead_letters")
            .fetch_one(&pool)
            .await?;
        ensure!(dead == 0, "an outage must not make dead letters");
        let since = workos_sim::Clock::system().now().rfc3339();
        eventually(BOUND, async || {
            for program in self.projectors.iter().chain([&self.reconciler]) {
                ensure!(program.readiness().await? == 200, "not ready:\n{}", program.tail(5));
            }
            let caught_up = "select coalesce(position >= $1::timestamptz, false) from dsync.duties where duty = 'catch_up'";
            let caught_up: bool = sqlx::query_scalar(caught_up).bind(&since).fetch_one(&pool).await?;
            ensure!(caught_up, "catch-up makes no progress:\n{}", self.reconciler.tail(5));
            let swept = "select coalesce(bool_and(swept_at >= $1::timestamptz), false) from dsync.sweeps";
            let swept: bool = sqlx::query_scalar(swept).bind(&since).fetch_one(&pool).await?;
            ensure!(swept, "sweeps make no progress:\n{}", self.reconciler.tail(5));
            Ok(())
        })
        .await?;
        println!("everything works on the new primary after {:?}", began.elapsed());
        Ok(())
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_promoted_standby_that_misses_the_last_commits_converges() -> anyhow::Result<()> {
    let mut stage = Stage::set().await?;
    stage.commits_that_are_missed().await?;
    stage.primary.kill()?;
    // The address leads to the standby before it accepts writes.
    stage.name.turn_to(stage.standby.address());
    stage.sim.burst(50)?;
    eventually(BOUND, async || {
        for program in &stage.projectors {
            ensure!(program.readiness().await? == 503, "ready on a read-only server");
        }
        Ok(())
    })
    .await?;
    stage.standby.promote().await?;
    stage.goes_on().await
}

/// The primary does not die, but falls silent and never closes a connection, as if its host were gone.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_to_a_primary_that_fell_silent_are_given_up() -> anyhow::Result<()> {
    let mut stage = Stage::set().await?;
    stage.commits_that_are_missed().await?;
    // Every program has queries in progress.
    let primary = stage.primary.pool().await?;
    let mut locks = primary.begin().await?;
    for table in ["progress", "duties", "sweeps"] {
        let lock = format!("lock table dsync.{table} in exclusive mode");
        sqlx::query(sqlx::AssertSqlSafe(lock))
            .execute(&mut *locks)
            .await?;
    }
    eventually(BOUND, async || {
        let waiting = "select count(*) from pg_stat_activity where wait_event_type = 'Lock' and application_name like $1";
        for (program, least) in [("dsync-projector", 4_i64), ("dsync-reconciler", 2)] {
            let waits: i64 = sqlx::query_scalar(waiting).bind(program).fetch_one(&primary).await?;
            ensure!(waits >= least, "only {waits} sessions of {program} wait");
        }
        Ok(())
    })
    .await?;
    stage.primary.pause()?;
    stage.name.turn_to(stage.standby.address());
    stage.standby.promote().await?;
    stage.goes_on().await?;
    // For the harness, which cannot clean up after a frozen server.
    stage.name.cut(Cut::Reset);
    stage.primary.resume()?;
    drop(locks);
    Ok(())
}
