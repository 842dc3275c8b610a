//! Everything that runs: servers, programs, and a proxy on every connection between any two of them.
//!
//! Programs and Postgres are restarted if they end by themselves, as systemd or Kubernetes would. So is a broker whose
//! health check keeps failing because it cannot store. Such restarts are counted. A broker that ends by itself is an error.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use sqlx::PgPool;
use tempfile::TempDir;
use tests::{Nats, NatsOptions, Postgres, Program, Proxy, Running};
use workos_sim::Delivery;

use crate::disk::Disk;
use crate::plan::{Link, PROJECTORS, Place};
use crate::world::{SECRET, World};

/// The sizes of the disks in megabytes, with room to spare for what a run stores.
const NATS_DISK: usize = 96;
const POSTGRES_DISK: usize = 320;
/// The interval of the broker's health checks, and how many in a row must fail before it is restarted.
const PROBE: Duration = Duration::from_millis(300);
const PROBES: u32 = 3;

/// How a stage is set up.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Setting {
    pub(crate) seed: u64,
    /// Whether the servers have small disks of their own.
    pub(crate) disks: bool,
    /// Whether a reconciler runs.
    pub(crate) reconciler: bool,
    /// The percentage of events whose webhooks are never sent.
    pub(crate) lost: u8,
}

/// The supervisor's restarts, besides those of what a strike had ended.
#[derive(Debug, Default, Clone)]
pub(crate) struct Supervision {
    /// Programs of dsync that ended by themselves, with the end of their output.
    pub(crate) ended: Vec<String>,
    /// Restarts of a broker whose health check failed.
    pub(crate) broker_restarts: usize,
    /// Restarts of a Postgres that had ended by itself.
    pub(crate) postgres_restarts: usize,
}

/// Everything that runs. The servers' disks are unmounted before their directories are removed.
pub(crate) struct Stage {
    pub(crate) programs: BTreeMap<Place, Running>,
    pub(crate) delivery: Delivery,
    pub(crate) world: World,
    pub(crate) lines: BTreeMap<Link, Proxy>,
    pub(crate) clocks: BTreeMap<Place, PathBuf>,
    pub(crate) disks: BTreeMap<Place, Disk>,
    pub(crate) nats: Nats,
    pub(crate) postgres: Postgres,
    pub(crate) pool: PgPool,
    pub(crate) supervision: Supervision,
    pub(crate) http: reqwest::Client,
    unhealthy: (u32, Instant),
    _dir: TempDir,
}

impl Stage {
    pub(crate) async fn set(setting: Setting) -> anyhow::Result<Stage> {
        let dir = tempfile::Builder::new().prefix("dsync-soak-").tempdir()?;
        let (nats, postgres, disks) = servers(setting.disks).await?;
        let world = World::new(setting.seed).await?;
        let mut lines = lines(&nats, &postgres, &world)?;
        let mut clocks = BTreeMap::new();
        let mut programs = BTreeMap::new();
        let mut places = vec![Place::Ingest];
        places.extend((0..PROJECTORS).map(Place::Projector));
        places.extend(setting.reconciler.then_some(Place::Reconciler));
        for place in places {
            let clock = dir.path().join(format!("clock-{}", clocks.len()));
            std::fs::write(&clock, "0")?;
            let program = program(place, &lines, [&nats.url(), &postgres.url(), &world.sim.url()]);
            let program = program
                .env("WORKOS_API_KEY", world.sim.api_key())
                .env("DSYNC_TEST_CLOCK_WRONG_BY", clock.display().to_string());
            programs.insert(place, program.spawn()?);
            clocks.insert(place, clock);
        }
        let listens = programs[&Place::Ingest].listen_url();
        let hooks = Proxy::to(listens.trim_start_matches("http://"))?;
        let url = hooks.instead_of(&format!("{listens}/webhooks/workos"));
        lines.insert(Link::WorkosIngest, hooks);
        for program in programs.values_mut() {
            program.ready().await?;
        }
        let delivery = world.deliver(url, setting.seed, setting.lost)?;
        Ok(Stage {
            programs,
            delivery,
            world,
            lines,
            clocks,
            disks,
            pool: postgres.pool().await?,
            nats,
            postgres,
            supervision: Supervision::default(),
            http: reqwest::Client::builder()
                .timeout(Duration::from_secs(2))
                .no_proxy()
                .build()?,
            unhealthy: (0, Instant::now()),
            _dir: dir,
        })
    }

    /// Fails unless the tables show change `song` of the canary or a later one, every program is ready, and, if
    /// `caught_up` is given, catch-up has reached that time.
    pub(crate) async fn is_well(&self, song: u64, caught_up: Option<&str>) -> anyhow::Result<()> {
        let shown: Option<String> = sqlx::query_scalar("select job_title from directory.users where id = $1")
            .bind(self.world.canary())
            .fetch_optional(&self.pool)
            .await?
            .flatten();
        let shown: u64 = shown.and_then(|shown| shown.parse().ok()).unwrap_or_default();
        ensure!(
            shown >= song,
            "the tables show change {shown} of the canary, not {song}"
        );
        for (place, program) in &self.programs {
            let answer = self
                .http
                .get(format!("{}/readyz", program.admin_url()))
                .send()
                .await?;
            ensure!(
                answer.status().is_success(),
                "{place} is not ready: {}",
                answer.text().await?
            );
        }
        if let Some(since) = caught_up.filter(|_| self.programs.contains_key(&Place::Reconciler)) {
            let caught_up: bool = sqlx::query_scalar(
                "select coalesce(position >= $1::timestamptz, false) from dsync.duties where duty = 'catch_up'",
            )
            .bind(since)
            .fetch_one(&self.pool)
            .await?;
            ensure!(caught_up, "catch-up has not reached {since}");
        }
        Ok(())
    }

    /// Restarts programs and Postgres if they ended by themselves, and a broker whose health check keeps failing. Fails if
    /// the broker ended by itself.
    pub(crate) async fn supervise(&mut self) -> anyhow::Result<()> {
        for (place, program) in &mut self.programs {
            if let Err(error) = program.must_run() {
                self.supervision.ended.push(format!("{place}: {error:#}"));
                program.start_again()?;
            }
        }
        if self.postgres.must_run().is_err() {
            self.supervision.postgres_restarts += 1;
            self.postgres.start_again().await?;
        }
        self.nats.must_run()?;
        let (failed, asked) = self.unhealthy;
        if asked.elapsed() < PROBE {
            return Ok(());
        }
        let answer = self
            .http
            .get(format!("{}/healthz", self.nats.monitor_url()))
            .send()
            .await;
        let healthy = answer.is_ok_and(|answer| answer.status().is_success());
        let failed = if healthy { 0 } else { failed + 1 };
        self.unhealthy = (failed, Instant::now());
        if failed >= PROBES {
            self.unhealthy.0 = 0;
            self.supervision.broker_restarts += 1;
            self.nats.kill();
            self.nats.start_again().await?;
        }
        Ok(())
    }

    /// The end of every program's output.
    pub(crate) fn words(&self, lines: usize) -> String {
        let words = self.programs.iter();
        let words = words.map(|(place, program)| format!("--- {place}\n{}\n", program.tail(lines)));
        words.collect()
    }

    /// The program at a place. Every place has one, except that some runs have no reconciler.
    pub(crate) fn program(&mut self, place: Place) -> anyhow::Result<&mut Running> {
        self.programs
            .get_mut(&place)
            .with_context(|| format!("no {place} is running"))
    }
}

async fn servers(small_disks: bool) -> anyhow::Result<(Nats, Postgres, BTreeMap<Place, Disk>)> {
    let mut disks = BTreeMap::new();
    let mut nats = Nats::absent(NatsOptions::default())?;
    let mut postgres = Postgres::deferring().await?;
    if small_disks {
        std::fs::create_dir(nats.store())?;
        disks.insert(Place::Nats, Disk::over(&nats.store(), NATS_DISK)?);
        postgres.stop().await?;
        disks.insert(Place::Postgres, Disk::over(&postgres.data(), POSTGRES_DISK)?);
        postgres.start_again().await?;
    }
    nats.start_again().await?;
    Ok((nats, postgres, disks))
}

fn lines(nats: &Nats, postgres: &Postgres, world: &World) -> anyhow::Result<BTreeMap<Link, Proxy>> {
    let mut lines = BTreeMap::new();
    for n in 0..PROJECTORS {
        lines.insert(Link::ProjectorNats(n), Proxy::to(nats.address())?);
        lines.insert(Link::ProjectorPostgres(n), Proxy::to(postgres.address())?);
    }
    lines.insert(Link::IngestNats, Proxy::to(nats.address())?);
    lines.insert(Link::ReconcilerNats, Proxy::to(nats.address())?);
    lines.insert(Link::ReconcilerPostgres, Proxy::to(postgres.address())?);
    let api = world.sim.url();
    lines.insert(
        Link::ReconcilerWorkos,
        Proxy::to(api.trim_start_matches("http://"))?,
    );
    Ok(lines)
}

fn program(place: Place, lines: &BTreeMap<Link, Proxy>, [nats, postgres, workos]: [&str; 3]) -> Program {
    let program = |name, to_nats| Program::new(name).env("NATS_URL", lines[&to_nats].instead_of(nats));
    match place {
        Place::Projector(n) => program("dsync-projector", Link::ProjectorNats(n)).env(
            "DATABASE_URL",
            lines[&Link::ProjectorPostgres(n)].instead_of(postgres),
        ),
        Place::Reconciler => program("dsync-reconciler", Link::ReconcilerNats)
            .env(
                "DATABASE_URL",
                lines[&Link::ReconcilerPostgres].instead_of(postgres),
            )
            .env(
                "WORKOS_API_URL",
                lines[&Link::ReconcilerWorkos].instead_of(workos),
            )
            .env("EVENTS_POLL_INTERVAL", "1s")
            .env("EVENTS_HOLDBACK", "5s")
            .env("SWEEP_INTERVAL", "15s")
            .env("SWEEP_CLOCK_MARGIN", "3s"),
        _ => program("dsync-ingest", Link::IngestNats).env("WORKOS_WEBHOOK_SECRET", SECRET),
    }
}

/// Ends programs before servers, and servers before their disks, because the id of Postgres's shared memory is on its
/// disk.
impl Drop for Stage {
    fn drop(&mut self) {
        self.programs.clear();
        self.nats.kill();
        self.postgres.kill().ok();
    }
}
