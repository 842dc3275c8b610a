//! Everything between a webhook and a row: private servers that sync as in production, ingest and, if wanted, a
//! projector. With `SYNC=default` the broker syncs only every two minutes, which is its default.

use std::time::Duration;

use sqlx::PgPool;
use tests::{Durability, Nats, NatsOptions, Postgres, Program, Running};

use crate::webhooks::receiver;

pub(crate) struct Servers {
    pub(crate) postgres: Postgres,
    pub(crate) nats: Nats,
    pub(crate) ingest: Running,
    pub(crate) pool: PgPool,
}

impl Servers {
    /// Starts everything except the projector.
    pub(crate) async fn up() -> anyhow::Result<Self> {
        let options = NatsOptions {
            lazy_sync: std::env::var("SYNC").is_ok_and(|sync| sync == "default"),
            ..NatsOptions::default()
        };
        let (postgres, nats) = (
            Postgres::with(Durability::Full).await?,
            Nats::with(options).await?,
        );
        postgres.migrate().await?;
        let ingest = receiver(&nats).await?;
        let pool = postgres.pool().await?;
        Ok(Self {
            postgres,
            nats,
            ingest,
            pool,
        })
    }

    /// The address to which webhooks are sent.
    pub(crate) fn address(&self) -> String {
        self.ingest.listen_url().trim_start_matches("http://").to_owned()
    }

    pub(crate) fn projector(&self) -> Program {
        Program::new("dsync-projector")
            .env("NATS_URL", self.nats.url())
            .env("DATABASE_URL", self.postgres.url())
            .env("RUST_LOG", "warn")
    }

    /// The position up to which the log is applied.
    pub(crate) async fn position(&self) -> anyhow::Result<u64> {
        let seq: Option<i64> = sqlx::query_scalar("select seq from dsync.progress where lane = 'all'")
            .fetch_optional(&self.pool)
            .await?;
        Ok(seq.unwrap_or_default().unsigned_abs())
    }

    /// Waits until the log is applied up to `end`.
    pub(crate) async fn applied(&self, end: u64) -> anyhow::Result<()> {
        while self.position().await? < end {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        Ok(())
    }
}
