//! The private database and the private log, created for this run and deleted after it.

use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use journal::{Connection, Journal};
use sqlx::PgPool;
use tests::{Durability, Nats, Postgres, Program};

use crate::screen::Screen;
use crate::service::Setting;

/// The log's name, which is the programs' default.
pub(crate) const STREAM: &str = "DSYNC";

/// Both servers, and connections for observing them.
pub(crate) struct Servers {
    /// The database.
    pub postgres: Postgres,
    /// The broker, which syncs every write before it acknowledges it.
    pub nats: Nats,
    /// Connections to the database.
    pub pool: PgPool,
    /// The log.
    pub journal: Journal,
}

/// The length of the log, and how much of it is in the tables.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Position {
    /// Records in the log.
    pub stored: u64,
    /// How many of these the projector has applied.
    pub applied: u64,
}

impl Servers {
    /// Starts both, creates the schema, and reports each step.
    pub(crate) async fn prepare(screen: &Screen) -> anyhow::Result<Servers> {
        let began = Instant::now();
        let bar = screen.spinner("starting Postgres and NATS");
        let servers = Servers::start().await?;
        drop(bar);
        let what = format!(
            "Postgres {} and NATS, private, on 127.0.0.1 only",
            servers.version().await?
        );
        screen.done("servers", began, &[what]);
        let began = Instant::now();
        screen.done("schema", began, &[servers.migrate().await?]);
        Ok(servers)
    }

    async fn start() -> anyhow::Result<Servers> {
        let (postgres, nats) = tokio::try_join!(Postgres::with(Durability::Full), Nats::start())?;
        let pool = postgres.pool().await?;
        let connection = Connection {
            url: nats.url(),
            creds: None,
            ca: None,
            stream: STREAM.to_owned(),
            name: "dsync-local".to_owned(),
        };
        let journal = Journal::connect(&connection).await?;
        Ok(Servers {
            postgres,
            nats,
            pool,
            journal,
        })
    }

    async fn version(&self) -> anyhow::Result<String> {
        let version: String = sqlx::query_scalar("show server_version")
            .fetch_one(&self.pool)
            .await?;
        Ok(version.split(' ').next().unwrap_or_default().to_owned())
    }

    /// Migrates as an operator would.
    async fn migrate(&self) -> anyhow::Result<String> {
        let program = Program::new("dsync-projector").arg("migrate");
        let output = program.env("DATABASE_URL", self.postgres.url()).run().await?;
        ensure!(
            output.status.success(),
            "dsync-projector migrate failed: {}",
            output.stderr
        );
        Ok(format!(
            "dsync-projector migrate: {} migrations applied",
            output.stdout.lines().count()
        ))
    }

    /// The settings that tell programs where both servers are.
    pub(crate) fn settings(&self) -> Vec<Setting> {
        vec![
            ("DATABASE_URL", self.postgres.url()),
            ("NATS_URL", self.nats.url()),
            ("DSYNC_STREAM", STREAM.to_owned()),
        ]
    }

    /// How far log and tables are.
    pub(crate) async fn position(&self) -> anyhow::Result<Position> {
        // Read `applied` first, so that it never exceeds `stored`.
        let applied: i64 =
            sqlx::query_scalar("select coalesce(min(seq), 0) from dsync.progress where lane = 'all'")
                .fetch_one(&self.pool)
                .await
                .context("cannot read the projector's position")?;
        let identity = self.journal.identity().await?;
        Ok(Position {
            stored: identity.map_or(0, |identity| identity.last_seq),
            applied: u64::try_from(applied)?,
        })
    }

    /// Waits until everything now in the log is in the tables.
    pub(crate) async fn applied_within(&self, bound: Duration) -> anyhow::Result<Position> {
        let goal = self.position().await?.stored;
        tests::eventually(bound, async || {
            let position = self.position().await?;
            ensure!(
                position.applied >= goal,
                "{} of {goal} records applied",
                position.applied
            );
            Ok(position)
        })
        .await
    }
}
