//! The test bed: a simulated WorkOS, private servers, a projector, and reconcilers in this process or as programs.
//! WorkOS's clock and ours stand still until a test moves them, unless it asks for real time.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::Context as _;
use bytes::Bytes;
use journal::{Connection, Journal, Limits};
use projector::lane::Lane;
use projector::run::{Tuning, Worker};
use prometheus::Registry;
use reconciler::catch_up::{CatchUp, Settings};
use reconciler::checks::Checker;
use reconciler::command;
use reconciler::lease::Leases;
use reconciler::metrics::Metrics;
use reconciler::report::{DirectoryReport, Report};
use reconciler::sweep::{Mode, sweep};
use reconciler::work::{Rules, Work};
use reconciler::workos::client::{Api, ClientSettings};
use schema::record::{Received, Record, Source};
use service::clock::Clock;
use service::settings::{Secret, percent};
use sqlx::PgPool;
use tests::{Nats, Postgres, Program, agrees, eventually};
use tokio_util::sync::CancellationToken;
use workos_sim::{Event, Millis, Options, Sim};

/// Long enough for a crowded machine; nothing waits this long when it works.
pub(crate) const BOUND: Duration = Duration::from_mins(2);
/// The margin of reconcilers in this process.
pub(crate) const MARGIN: Duration = Duration::from_mins(1);

/// The log's limits, which are not the reconciler's defaults.
pub(crate) const LIMITS: Limits = Limits {
    replicas: 1,
    max_age: Duration::ZERO,
    max_bytes: 0,
    dedup_window: Duration::from_hours(1),
};

pub(crate) struct Stand {
    pub(crate) sim: Sim,
    pub(crate) postgres: Postgres,
    pub(crate) nats: Nats,
    pub(crate) pool: PgPool,
    pub(crate) journal: Journal,
    pub(crate) clock: Clock,
    pub(crate) work: Work,
    pub(crate) logged: AtomicUsize,
    shutdown: CancellationToken,
}

impl Drop for Stand {
    fn drop(&mut self) {
        self.shutdown.cancel();
    }
}

impl Stand {
    /// Everything up, with clocks that stand still at a whole second.
    pub(crate) async fn up() -> anyhow::Result<Self> {
        let now = Clock::system().now().replace_nanosecond(0)?;
        let millis = Millis(i64::try_from(now.unix_timestamp_nanos() / 1_000_000)?);
        Self::with(Options::at(millis), Clock::fixed(now)).await
    }

    /// Everything up, in real time.
    pub(crate) async fn in_real_time() -> anyhow::Result<Self> {
        Self::with(Options::default(), Clock::system()).await
    }

    async fn with(options: Options, clock: Clock) -> anyhow::Result<Self> {
        let (postgres, nats) = tokio::try_join!(Postgres::migrated(), Nats::start())?;
        let sim = Sim::start(options).await?;
        let pool = service_pool(&postgres.url())?;
        let journal = Journal::connect(&Connection {
            url: nats.url(),
            creds: None,
            ca: None,
            stream: "DSYNC".to_owned(),
            name: "test".to_owned(),
        })
        .await?;
        journal.ensure(&LIMITS).await?;
        let work = work(&sim, &pool, &journal, &clock)?;
        let keeper = CancellationToken::new();
        tokio::spawn(work.leases.clone().keep(keeper.clone()));
        let stand = Self {
            sim,
            postgres,
            nats,
            pool,
            journal,
            clock,
            work,
            logged: AtomicUsize::new(0),
            shutdown: keeper,
        };
        stand.project();
        Ok(stand)
    }

    /// Starts a projector in this process.
    fn project(&self) {
        let worker = Worker {
            pool: self.pool.clone(),
            journal: self.journal.clone(),
            holder: "projector".to_owned(),
            clock: Clock::system(),
            metrics: projector::metrics::Metrics::new(&Registry::new()),
            tuning: Tuning::default(),
            shutdown: self.shutdown.clone(),
        };
        for lane in Lane::EVERY {
            tokio::spawn(worker.clone().work(lane));
        }
    }

    /// Another reconciler, in this process, with its own leases and limits.
    pub(crate) fn another(&self) -> anyhow::Result<Work> {
        let work = work(&self.sim, &self.pool, &self.journal, &self.clock)?;
        tokio::spawn(work.leases.clone().keep(self.shutdown.clone()));
        Ok(work)
    }

    /// The program, with every setting it needs.
    pub(crate) fn program(&self) -> Program {
        Program::new("dsync-reconciler")
            .env("DATABASE_URL", self.postgres.url())
            .env("NATS_URL", self.nats.url())
            .env("WORKOS_API_URL", self.sim.url())
            .env("WORKOS_API_KEY", self.sim.api_key())
    }

    /// Moves both clocks.
    pub(crate) fn advance(&self, by: Duration) {
        self.clock.advance(time::Duration::seconds_f64(by.as_secs_f64()));
        self.sim.clock().advance(by);
    }

    /// Makes everything so far old enough for any reading that follows.
    pub(crate) fn settle(&self) {
        self.advance(MARGIN + Duration::from_secs(5));
    }

    /// Sends the events since the last call to the log, as webhooks do. `keep` picks which ones arrive; the others are
    /// lost, and their number is returned.
    pub(crate) async fn log(&self, keep: impl Fn(usize, &Event) -> bool) -> anyhow::Result<usize> {
        let events = self.sim.events();
        let from = self.logged.swap(events.len(), Ordering::SeqCst);
        let mut lost = 0;
        for (number, event) in events.iter().enumerate().skip(from) {
            if keep(number, event) {
                self.append(event).await?;
            } else {
                lost += 1;
            }
        }
        Ok(lost)
    }

    /// Sends all of them.
    pub(crate) async fn log_all(&self) -> anyhow::Result<()> {
        self.log(|_, _| true).await.map(drop)
    }

    /// Sends one event to the log, as a webhook does.
    pub(crate) async fn append(&self, event: &Event) -> anyhow::Result<()> {
        let body = Bytes::copy_from_slice(event.body().as_bytes());
        if let Received::Event(record) | Received::Quarantined(record, _) =
            Record::receive(body, Source::Webhook, None, self.clock.now().into())
        {
            // Retried until it is stored, as a webhook is.
            eventually(BOUND, async || Ok(self.journal.append(&record).await?)).await?;
        }
        Ok(())
    }

    /// Waits until everything in the log is applied.
    pub(crate) async fn applied(&self) -> anyhow::Result<()> {
        self.work.applied(BOUND).await.context("not applied")
    }

    /// Checks that everything in the log is applied, and that the tables are what the source says.
    pub(crate) async fn agrees(&self) -> anyhow::Result<()> {
        self.applied().await?;
        agrees(&self.pool, &self.sim.truth()).await
    }

    /// The sequence of the log's newest entry.
    pub(crate) async fn log_end(&self) -> anyhow::Result<u64> {
        let identity = self.journal.identity().await?.context("no stream")?;
        Ok(identity.last_seq)
    }

    /// One sweep of one directory.
    pub(crate) async fn sweep(&self, directory: &str) -> anyhow::Result<DirectoryReport> {
        sweep_with(&self.work, directory).await
    }

    /// One pass over everything.
    pub(crate) async fn pass(&self) -> Report {
        command::pass(&self.work, None, Mode::default()).await
    }

    /// A catch-up in this process.
    pub(crate) fn catch_up(&self, holdback: Duration) -> CatchUp {
        CatchUp::new(
            self.work.clone(),
            Settings {
                every: Duration::from_secs(1),
                holdback,
            },
        )
    }

    /// The same reconciler with the API key of another environment.
    pub(crate) fn with_key_of(&self, other: &Sim) -> anyhow::Result<Work> {
        Ok(Work {
            api: work(other, &self.pool, &self.work.journal, &self.work.clock)?.api,
            ..self.work.clone()
        })
    }

    /// Reads what is in doubt or due now, in one round. Returns how many targets that were.
    pub(crate) async fn check(&self) -> anyhow::Result<usize> {
        self.applied().await?;
        let read = Checker::new(self.work.clone()).round().await?;
        self.applied().await?;
        Ok(read)
    }

    pub(crate) async fn shows_user(&self, user: &str) -> anyhow::Result<bool> {
        self.applied().await?;
        Ok(
            sqlx::query_scalar("select exists (select from directory.users where id = $1)")
                .bind(user)
                .fetch_one(&self.pool)
                .await?,
        )
    }

    pub(crate) async fn shows_member(&self, group: &str, user: &str) -> anyhow::Result<bool> {
        self.applied().await?;
        Ok(sqlx::query_scalar(
            "select exists (select from directory.memberships where group_id = $1 and user_id = $2)",
        )
        .bind(group)
        .bind(user)
        .fetch_one(&self.pool)
        .await?)
    }

    pub(crate) async fn count(&self, sql: &'static str) -> anyhow::Result<i64> {
        Ok(sqlx::query_scalar(sql).fetch_one(&self.pool).await?)
    }

    /// Waits until the tables are what the source says.
    pub(crate) async fn agrees_soon(&self) -> anyhow::Result<()> {
        eventually(BOUND, async || agrees(&self.pool, &self.sim.truth()).await).await
    }
}

/// One sweep of one directory by this reconciler.
pub(crate) async fn sweep_with(work: &Work, directory: &str) -> anyhow::Result<DirectoryReport> {
    let lease = work
        .leases
        .take(directory, true)
        .await?
        .context("someone has it")?;
    let report = sweep(work, &lease, Mode::default()).await;
    lease.release().await;
    Ok(report)
}

/// Checks that a sweep read everything, and returns what it found: `entity kind id`.
pub(crate) fn drift(report: &DirectoryReport) -> Vec<String> {
    assert!(report.complete, "{report:?}");
    report.drift.iter().map(told).collect()
}

/// A difference as text.
pub(crate) fn told(difference: &reconciler::difference::Difference) -> String {
    let (entity, kind) = (difference.entity.as_str(), difference.kind.as_str());
    format!("{entity} {kind} {}", difference.id)
}

/// A pool such as the program has.
pub(crate) fn service_pool(url: &str) -> anyhow::Result<PgPool> {
    let settings = service::postgres::PoolSettings {
        application_name: "test",
        max_connections: 16,
        statement_timeout: Duration::from_mins(1),
    };
    Ok(service::postgres::pool(&Secret::from(url), &settings)?)
}

fn work(sim: &Sim, pool: &PgPool, journal: &Journal, clock: &Clock) -> anyhow::Result<Work> {
    let metrics = Metrics::new(&Registry::new());
    let settings = ClientSettings {
        timeout: Duration::from_secs(3),
        patience: Duration::from_secs(30),
        ..ClientSettings::new(sim.url().parse()?, Secret::from(sim.api_key()))
    };
    let holder = format!("test-{:016x}", rand::random::<u64>());
    Ok(Work {
        pool: pool.clone(),
        journal: journal.clone(),
        api: Api::new(settings, clock.clone(), metrics.clone())?,
        clock: clock.clone(),
        metrics,
        leases: Leases::new(pool.clone(), &holder),
        rules: Rules {
            margin: MARGIN,
            max_deletions: percent("10%")?,
            patience: BOUND,
        },
    })
}
