//! The test stand: a simulated WorkOS, private servers, one ingest, and as many projectors as a test starts.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use futures_util::StreamExt as _;
use sqlx::PgPool;
use tests::{Nats, NatsOptions, Pooler, Postgres, Program, Running, agrees, eventually};
use workos_sim::{Delivery, DeliveryOptions, DirectoryOptions, Faults, Options, Seed, Sim};

pub(crate) const SECRET: &str = "whsec_of_the_stand_0123456789";
/// Long enough for a busy machine. Nothing that works takes this long.
pub(crate) const BOUND: Duration = Duration::from_mins(2);

pub(crate) struct Stand {
    pub(crate) sim: Sim,
    pub(crate) postgres: Postgres,
    pub(crate) nats: Nats,
    pub(crate) ingest: Running,
    pub(crate) pool: PgPool,
    /// The pooler through which programs reach the database, if any.
    pub(crate) pooler: Option<Pooler>,
    filter: &'static str,
}

impl Stand {
    /// Starts everything except projectors, which the tests start.
    pub(crate) async fn up() -> anyhow::Result<Self> {
        Self::logging("info").await
    }

    /// As [`Stand::up`], with programs that log at this level.
    pub(crate) async fn logging(filter: &'static str) -> anyhow::Result<Self> {
        Self::with(NatsOptions::default(), &[("RUST_LOG", filter)]).await
    }

    /// As [`Stand::up`], with options for the broker and settings for ingest.
    pub(crate) async fn with(nats: NatsOptions, settings: &[(&str, &'static str)]) -> anyhow::Result<Self> {
        let (postgres, nats) = tokio::try_join!(Postgres::migrated(), Nats::with(nats))?;
        let ingest = Program::new("dsync-ingest")
            .env("NATS_URL", nats.url())
            .env("WORKOS_WEBHOOK_SECRET", SECRET);
        let ingest = settings
            .iter()
            .fold(ingest, |ingest, (name, value)| ingest.env(name, *value))
            .start()
            .await?;
        let filter = settings
            .iter()
            .find(|(name, _)| *name == "RUST_LOG")
            .map_or("info", |(_, filter)| filter);
        let sim = Sim::start(Options::default()).await?;
        let pool = postgres.pool().await?;
        Ok(Self {
            sim,
            postgres,
            nats,
            ingest,
            pool,
            pooler: None,
            filter,
        })
    }

    pub(crate) fn projector(&self) -> Program {
        Program::new("dsync-projector")
            .env("NATS_URL", self.nats.url())
            .env(
                "DATABASE_URL",
                self.pooler
                    .as_ref()
                    .map_or_else(|| self.postgres.url(), Pooler::url),
            )
            .env("RUST_LOG", self.filter)
    }

    /// Waits until every directory was swept once.
    pub(crate) async fn swept(&self) -> anyhow::Result<()> {
        eventually(BOUND, async || {
            let due = self
                .count("select count(*) from dsync.sweeps where swept_at is null")
                .await?;
            ensure!(due == 0, "{due} directories are not swept yet");
            Ok(())
        })
        .await
    }

    pub(crate) fn webhook_url(&self) -> String {
        format!("{}/webhooks/workos", self.ingest.listen_url())
    }

    /// Delivers all events, past and future.
    pub(crate) fn deliver(&self, faults: Faults) -> anyhow::Result<Delivery> {
        Ok(self.sim.deliver(DeliveryOptions {
            faults,
            backoff: Duration::from_millis(50),
            backoff_max: Duration::from_secs(1),
            ..DeliveryOptions::new(self.webhook_url(), SECRET)
        })?)
    }

    /// Creates a directory of each shape, with people and groups.
    pub(crate) fn populate(&self, users: usize, groups: usize) -> anyhow::Result<Vec<String>> {
        let mut directories = Vec::new();
        for options in [
            DirectoryOptions::default(),
            DirectoryOptions::newer(),
            DirectoryOptions::awkward(),
        ] {
            let directory = self.sim.create_directory(options)?;
            let seed = Seed {
                users,
                groups,
                ..Seed::default()
            };
            self.sim.seed(&directory, &seed)?;
            directories.push(directory);
        }
        Ok(directories)
    }

    /// Waits until everything delivered is applied.
    pub(crate) async fn applied(&self) -> anyhow::Result<()> {
        let nats = async_nats::connect(self.nats.url()).await?;
        let stream = async_nats::jetstream::new(nats).get_stream("DSYNC").await?;
        eventually(BOUND, async || {
            let last = stream.get_info().await?.state.last_sequence;
            let applied: i64 = sqlx::query_scalar("select seq from dsync.progress where lane = 'all'")
                .fetch_one(&self.pool)
                .await?;
            ensure!(u64::try_from(applied)? == last, "applied {applied} of {last}");
            Ok(())
        })
        .await
    }

    /// Waits until everything delivered is applied, and compares the tables with the source.
    pub(crate) async fn agrees(&self) -> anyhow::Result<()> {
        self.applied().await?;
        agrees(&self.pool, &self.sim.truth())
            .await
            .context("tables and source differ")
    }

    pub(crate) async fn count(&self, sql: &'static str) -> anyhow::Result<i64> {
        Ok(sqlx::query_scalar(sql).fetch_one(&self.pool).await?)
    }
}

/// How long to wait for one message of the log. Callers read the whole log again after that.
const ANSWERS_WITHIN: Duration = Duration::from_secs(10);

/// The ids of all records in the log on the broker at `url`.
pub(crate) async fn logged(url: &str) -> anyhow::Result<BTreeSet<String>> {
    let nats = async_nats::connect(url).await?;
    let stream = async_nats::jetstream::new(nats).get_stream("DSYNC").await?;
    let last = stream.cached_info().state.last_sequence;
    let config = async_nats::jetstream::consumer::pull::OrderedConfig::default();
    let mut messages = stream.create_consumer(config).await?.messages().await?;
    let mut ids = BTreeSet::new();
    loop {
        let next = tokio::time::timeout(ANSWERS_WITHIN, messages.next()).await;
        let Some(message) = next.context("timed out before the end of the log")? else {
            break;
        };
        let message = message?;
        let id = message
            .headers
            .as_ref()
            .and_then(|headers| headers.get("Nats-Msg-Id"));
        // Remove the suffix of a further message id, used where the broker never decided on the first one.
        let id = id.context("a record without an id")?.as_str().split('.').next();
        ids.insert(id.unwrap_or_default().to_owned());
        let info = message.info().map_err(|error| anyhow::anyhow!("{error}"))?;
        if info.stream_sequence >= last {
            break;
        }
    }
    Ok(ids)
}

/// WorkOS on a bad day: a fifth of the events are duplicated, a fifth out of order, and a tenth sent again much later.
pub(crate) fn a_bad_day(seed: u64) -> Faults {
    Faults {
        seed,
        doubled: 20,
        shuffled: 20,
        shuffle_within: Duration::from_secs(3),
        stale: 10,
        stale_after: Duration::from_secs(5),
        ..Faults::default()
    }
}
