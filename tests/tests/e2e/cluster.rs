//! The log on three brokers, of which one is killed, one is split off from the others, and each is restarted in turn,
//! while webhooks come in. Everything acknowledged is in the log, and the tables show the truth.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use tests::{Cluster, Postgres, Program, Running, agrees, eventually};
use workos_sim::{Delivery, DeliveryOptions, DirectoryOptions, Options, Seed, Sim};

use crate::stand::{BOUND, SECRET, a_bad_day, logged};

struct Stage {
    cluster: Cluster,
    _postgres: Postgres,
    pool: sqlx::PgPool,
    sim: Sim,
    delivery: Delivery,
    ingest: Running,
    projector: Running,
}

impl Stage {
    async fn set() -> anyhow::Result<Stage> {
        let (cluster, postgres) = tokio::try_join!(Cluster::start(3), Postgres::migrated())?;
        let program = |name| {
            Program::new(name)
                .env("NATS_URL", cluster.url())
                .env("DSYNC_STREAM_REPLICAS", "3")
        };
        let mut ingest = program("dsync-ingest")
            .env("WORKOS_WEBHOOK_SECRET", SECRET)
            .spawn()?;
        eventually(BOUND, async || ingest.ready().await).await?;
        let projector = program("dsync-projector")
            .env("DATABASE_URL", postgres.url())
            .start()
            .await?;
        let sim = Sim::start(Options::default()).await?;
        let directory = sim.create_directory(DirectoryOptions::default())?;
        sim.seed(
            &directory,
            &Seed {
                users: 15,
                groups: 3,
                ..Seed::default()
            },
        )?;
        let delivery = sim.deliver(DeliveryOptions {
            faults: a_bad_day(5),
            backoff: Duration::from_millis(50),
            backoff_max: Duration::from_secs(1),
            timeout: Duration::from_secs(5),
            ..DeliveryOptions::new(format!("{}/webhooks/workos", ingest.listen_url()), SECRET)
        })?;
        let stage = Stage {
            cluster,
            pool: postgres.pool().await?,
            _postgres: postgres,
            sim,
            delivery,
            ingest,
            projector,
        };
        stage.gets_through(30).await.context("before anything happened")?;
        Ok(stage)
    }

    /// Makes changes until `more` further webhooks are acknowledged.
    async fn gets_through(&self, more: usize) -> anyhow::Result<Duration> {
        let began = std::time::Instant::now();
        let before = self.delivery.acknowledged().len();
        eventually(BOUND, async || {
            self.sim.burst(2)?;
            let since = self.delivery.acknowledged().len() - before;
            ensure!(
                since >= more,
                "{since} of {more} got through; ingest's output:\n{}",
                self.ingest.tail(5)
            );
            Ok(())
        })
        .await?;
        Ok(began.elapsed())
    }

    /// The server that ingest is connected to.
    async fn broker_of_ingest(&self) -> anyhow::Result<usize> {
        for (n, server) in self.cluster.servers.iter().enumerate() {
            let connections = reqwest::get(format!("{}/connz", server.monitor_url()))
                .await?
                .text()
                .await?;
            if connections.contains("\"dsync-ingest\"") {
                return Ok(n);
            }
        }
        anyhow::bail!("ingest is not connected to any server")
    }

    async fn leader(&self) -> anyhow::Result<usize> {
        eventually(BOUND, async || self.cluster.leader("DSYNC").await).await
    }

    /// Everything arrives, nothing acknowledged is missing from the log, and the tables show the truth.
    async fn is_whole(&self) -> anyhow::Result<()> {
        self.leader().await?;
        let counts = match self.delivery.drained_within(BOUND).await {
            Ok(counts) => counts,
            Err(progress) => bail!("{progress:?}; ingest's output:\n{}", self.ingest.tail(20)),
        };
        ensure!(counts.gave_up == 0, "{counts:?}");
        // Now that all servers are together again, the log may briefly be without a leader once more.
        let logged = eventually(BOUND, async || self.logged().await).await?;
        let acknowledged: BTreeSet<String> = self
            .delivery
            .acknowledged()
            .into_iter()
            .map(|one| one.event)
            .collect();
        let lost: Vec<&String> = acknowledged.difference(&logged).collect();
        ensure!(
            lost.is_empty(),
            "{} of {} acknowledged events are lost, such as {:?}",
            lost.len(),
            acknowledged.len(),
            lost[0]
        );
        ensure!(
            acknowledged.len() > 50,
            "only {} were acknowledged",
            acknowledged.len()
        );
        eventually(BOUND, async || agrees(&self.pool, &self.sim.truth()).await)
            .await
            .with_context(|| {
                format!(
                    "the log has everything; the projector's output:\n{}",
                    self.projector.tail(20)
                )
            })
    }

    /// No projector took the log for another one, or for one that lost its end.
    async fn is_not_alarmed(&self) -> anyhow::Result<()> {
        let rewinds: i64 = sqlx::query_scalar("select count(*) from dsync.rewinds")
            .fetch_one(&self.pool)
            .await?;
        ensure!(
            rewinds == 0,
            "{rewinds} false alarms:\n{}",
            self.projector.tail(20)
        );
        Ok(())
    }

    async fn logged(&self) -> anyhow::Result<BTreeSet<String>> {
        let url = self.cluster.servers[0].url();
        let nats = async_nats::connect(&url).await?;
        let stream = async_nats::jetstream::new(nats).get_stream("DSYNC").await?;
        ensure!(
            stream.cached_info().config.num_replicas == 3,
            "the log is not replicated"
        );
        logged(&url).await
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broker_killed_and_each_restarted_in_turn_lose_nothing() -> anyhow::Result<()> {
    let mut stage = Stage::set().await?;
    let leader = stage.leader().await?;
    stage.cluster.servers[leader].kill();
    let took = stage.gets_through(40).await.context("with the leader killed")?;
    println!("with the leader killed, 40 webhooks got through in {took:?}");
    stage.cluster.servers[leader].start_again().await?;
    for n in 0..3 {
        // A server may stop once the others have everything.
        stage.leader().await?;
        stage.cluster.servers[n].stop().await?;
        stage
            .gets_through(20)
            .await
            .with_context(|| format!("without n{n}"))?;
        stage.cluster.servers[n].start_again().await?;
    }
    stage.is_whole().await?;
    stage.is_not_alarmed().await
}

/// First the leader is split off, which for a while believes that it still leads. Then the server that ingest is
/// connected to is split off, which still answers ingest's pings, but stores nothing. What it reports as the log's end
/// is outdated, and must not be taken for a loss.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_split_loses_nothing_and_the_larger_part_goes_on() -> anyhow::Result<()> {
    let stage = Stage::set().await?;
    for of_ingest in [false, true] {
        let leader = stage.leader().await?;
        let n = if of_ingest {
            stage.broker_of_ingest().await?
        } else {
            leader
        };
        stage.cluster.isolate(n);
        let took = stage
            .gets_through(40)
            .await
            .with_context(|| format!("with n{n} split off"))?;
        println!("with n{n} split off, 40 webhooks got through in {took:?}");
        stage.cluster.join();
    }
    stage.is_whole().await?;
    stage.is_not_alarmed().await
}
