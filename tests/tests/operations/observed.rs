//! A day of operation in a minute: everything runs, everything that is counted happens, and a real Prometheus watches.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use journal::{Connection, Journal};
use schema::record::{Received, Record, Source};
use schema::timestamp::Timestamp;
use tests::{Program, Running, agrees, eventually};
use workos_sim::{Change, Faults, Millis, Sim};

use crate::dashboards::{self, substituted, without_fallback};
use crate::prometheus::Prometheus;
use crate::scraped::{self, complete, ours};
use crate::stand::{BOUND, SECRET, Stand};

/// Panels that show their fallback here, because nothing is wrong.
const EMPTY_WHEN_WELL: [&str; 1] = ["dsync-overview / Alerts firing"];

struct Scene {
    stand: Stand,
    projectors: [Running; 2],
    reconciler: Running,
    prometheus: Prometheus,
}

impl Scene {
    async fn set() -> anyhow::Result<Self> {
        let stand = Stand::up().await?;
        let projectors = [stand.projector().start().await?, stand.projector().start().await?];
        let reconciler = reconciler(&stand).start().await?;
        let prometheus = Prometheus::over(&[
            ("dsync-ingest", &[&stand.ingest]),
            ("dsync-projector", &[&projectors[0], &projectors[1]]),
            ("dsync-reconciler", &[&reconciler]),
        ])
        .await?;
        prometheus.scraped(BOUND, 4).await?;
        Ok(Self {
            stand,
            projectors,
            reconciler,
            prometheus,
        })
    }

    /// Makes everything happen: webhooks that arrive and that do not, people who come and go, drift, a bad signature,
    /// an unreadable body, and errors from WorkOS.
    async fn play(&self) -> anyhow::Result<()> {
        let stand = &self.stand;
        stand.sim.tune(|tuning| tuning.faults.errors = 10);
        let delivery = stand.deliver(Faults {
            lost: 20,
            doubled: 20,
            ..Faults::default()
        })?;
        let directory = stand.populate(20, 3)?.remove(0);
        stand.sim.burst(100)?;
        silently(&stand.sim, &directory)?;
        for signature in [
            workos_sim::sign(SECRET, now(), b"not json"),
            "t=1, v1=00".to_owned(),
        ] {
            reqwest::Client::new()
                .post(stand.webhook_url())
                .header("WorkOS-Signature", signature)
                .body("not json")
                .send()
                .await?;
        }
        delivery.drained().await;
        // After the first scrapes, so that counters are seen to grow.
        for _ in 0..3 {
            stand.sim.burst(30)?;
            let user = stand.sim.create_user(&directory)?;
            stand.sim.change(Change::DeleteUser {
                user,
                removals: false,
            })?;
            delivery.drained().await;
            stand.applied().await?;
        }
        Ok(())
    }

    /// Checks that every program has exactly the metrics in its list.
    async fn metrics_are_complete(&self) -> anyhow::Result<()> {
        let holder = if self.works().await? {
            &self.projectors[0]
        } else {
            &self.projectors[1]
        };
        for (program, list, name) in [
            (&self.stand.ingest, scraped::INGEST, "dsync-ingest"),
            (holder, scraped::PROJECTOR, "dsync-projector"),
            (&self.reconciler, scraped::RECONCILER, "dsync-reconciler"),
        ] {
            eventually(BOUND, async || complete(program.metrics().await?.text(), list))
                .await
                .context(name)?;
        }
        Ok(())
    }

    /// Whether the first projector works the lane `all`.
    async fn works(&self) -> anyhow::Result<bool> {
        let metrics = self.projectors[0].metrics().await?;
        Ok(metrics.get("dsync_projector_lane_held", &[("lane", "all")])? > 0.5)
    }

    /// Checks that every query of every panel returns data, even without its fallback.
    async fn panels_have_data(&self) -> anyhow::Result<()> {
        let dashboards = dashboards::all()?;
        let panels = dashboards.iter().flat_map(|dashboard| &dashboard.panels);
        let mut queries = BTreeSet::new();
        for panel in panels {
            for query in panel.queries.iter().map(|query| substituted(query)) {
                if !EMPTY_WHEN_WELL.contains(&panel.name.as_str()) {
                    queries.insert((panel.name.clone(), without_fallback(&query).to_owned()));
                }
                queries.insert((panel.name.clone(), query));
            }
        }
        ensure!(queries.len() > 50, "only {} queries", queries.len());
        eventually(BOUND, async || {
            let mut failed = Vec::new();
            for (panel, query) in &queries {
                match self.prometheus.values(query).await {
                    Ok(values) if values.iter().any(|value| value.is_finite()) => {}
                    Ok(values) => failed.push(format!("{panel}: {query}\n    returns {values:?}")),
                    Err(error) => failed.push(format!("{panel}: {query}\n    {error}")),
                }
            }
            ensure!(failed.is_empty(), "panels without data:\n{}", failed.join("\n"));
            Ok(())
        })
        .await
    }

    /// Checks that every rule is evaluated without error, on series that exist, and that no alert fires.
    async fn rules_are_sound(&self) -> anyhow::Result<()> {
        let rules = self.prometheus.rules().await?;
        ensure!(rules.len() > 30, "only {} rules", rules.len());
        let names = self.prometheus.names().await?;
        for rule in &rules {
            ensure!(rule.error.is_empty(), "{}: {}", rule.name, rule.error);
            ensure!(rule.state != "firing", "{} fires", rule.name);
            ensure!(
                rule.kind == "recording" || rule.runbook.starts_with("ops/runbook.md#"),
                "{} has no link to the runbook",
                rule.name
            );
            let unknown: Vec<_> = ours(&rule.query).difference(&names).cloned().collect();
            ensure!(
                unknown.is_empty(),
                "{} uses {unknown:?}, which do not exist",
                rule.name
            );
        }
        Ok(())
    }
}

/// A reconciler that sweeps and catches up all the time, with a small clock margin.
pub(crate) fn reconciler(stand: &Stand) -> Program {
    Program::new("dsync-reconciler")
        .env("NATS_URL", stand.nats.url())
        .env("DATABASE_URL", stand.postgres.url())
        .env("WORKOS_API_URL", stand.sim.url())
        .env("WORKOS_API_KEY", stand.sim.api_key())
        .env("EVENTS_POLL_INTERVAL", "1s")
        .env("EVENTS_HOLDBACK", "1s")
        .env("SWEEP_INTERVAL", "2s")
        .env("SWEEP_CLOCK_MARGIN", "1s")
}

/// Makes a change without an event, for a sweep to find.
fn silently(sim: &Sim, directory: &str) -> anyhow::Result<()> {
    let user = sim.create_user(directory)?;
    let set = Change::fields(serde_json::json!({ "job_title": "Drifter" }));
    let inner = Box::new(Change::UpdateUser { user, set });
    sim.change(Change::Silently { inner })?;
    Ok(())
}

fn now() -> Millis {
    workos_sim::Clock::system().now()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn metrics_dashboards_and_alerts_are_what_a_real_prometheus_says() -> anyhow::Result<()> {
    let scene = Scene::set().await?;
    scene.play().await?;
    scene.metrics_are_complete().await?;
    scene.panels_have_data().await?;
    scene.rules_are_sound().await
}

/// An alert without a waiting time fires, so rules, labels and annotations work in a real Prometheus.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_log_that_is_lost_raises_the_alarm() -> anyhow::Result<()> {
    let mut stand = Stand::up().await?;
    let projector = stand.projector().start().await?;
    let delivery = stand.deliver(Faults::none())?;
    stand.populate(5, 1)?;
    delivery.drained().await;
    stand.applied().await?;
    let prometheus = Prometheus::over(&[("dsync-projector", &[&projector])]).await?;
    prometheus.scraped(BOUND, 1).await?;
    stand.nats.wipe().await?;
    state(&prometheus, "DsyncLogRewound", "firing").await
}

/// Appends meaningless entries, more than fit in one file of the broker's store.
async fn filled(journal: &Journal, name: &str) -> anyhow::Result<()> {
    for number in 0..12 {
        let id = format!("filler_{name}_{number}");
        let body = serde_json::json!({
            "id": id, "event": "dsync.something.new", "data": {"directory_id": "d_filler", "text": "x".repeat(900_000)},
        });
        let body = body.to_string().into();
        let Received::Event(record) = Record::receive(body, Source::Webhook, None, Timestamp::from_micros(0))
        else {
            anyhow::bail!("the record cannot be addressed");
        };
        journal.append(&record).await?;
    }
    Ok(())
}

/// Nothing reports the lost change again, and the Events API no longer lists it. A sweep repairs it, long before one is
/// due.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_turned_over_bit_of_the_brokers_store_raises_the_alarm_and_is_swept_up() -> anyhow::Result<()> {
    let mut stand = Stand::up().await?;
    let mut projector = stand.projector().start().await?;
    let _reconciler = reconciler(&stand).env("SWEEP_INTERVAL", "1h").start().await?;
    let delivery = stand.deliver(Faults::none())?;
    stand.populate(10, 2)?;
    delivery.drained().await;
    stand.agrees().await?;
    stand.swept().await?;
    let prometheus = Prometheus::over(&[("dsync-projector", &[&projector])]).await?;
    prometheus.scraped(BOUND, 1).await?;
    state(&prometheus, "DsyncLogLostEntries", "inactive").await?;

    projector.kill();
    let journal = Journal::connect(&Connection {
        url: stand.nats.url(),
        creds: None,
        ca: None,
        stream: "DSYNC".to_owned(),
        name: "filler".to_owned(),
    })
    .await?;
    filled(&journal, "before").await?;
    let before = delivery.acknowledged().len();
    stand.sim.burst(60)?;
    delivery.drained().await;
    let told = delivery.acknowledged();
    let damaged = &told
        .get(before + 5)
        .context("the burst made too few events")?
        .event;
    filled(&journal, "after").await?;
    stand.sim.tune(|tuning| tuning.events.retention = Duration::ZERO);
    stand.nats.stop().await?;
    ensure!(stand.nats.turn_over_a_bit(damaged)? == 1);
    stand.nats.start_again().await?;
    projector.start_again()?;
    state(&prometheus, "DsyncLogLostEntries", "firing").await?;
    let rewinds = projector
        .metrics()
        .await?
        .get("dsync_projector_log_rewinds_total", &[])?;
    ensure!(rewinds < 0.5, "a rewind although the log goes on where it was");
    eventually(BOUND, async || agrees(&stand.pool, &stand.sim.truth()).await).await
}

/// Load balancers send nothing to an ingest that is not ready, so webhook metrics may not show an outage. The
/// projector's lanes do.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_log_or_database_nobody_holds_a_lane() -> anyhow::Result<()> {
    const ALERT: &str = "DsyncNoLaneHolder";
    let mut stand = Stand::up().await?;
    let projector = stand.projector().start().await?;
    let prometheus = Prometheus::over(&[("dsync-projector", &[&projector])]).await?;
    prometheus.scraped(BOUND, 1).await?;
    state(&prometheus, ALERT, "inactive").await?;
    stand.nats.kill();
    state(&prometheus, ALERT, "pending").await?;
    stand.nats.start_again().await?;
    state(&prometheus, ALERT, "inactive").await?;
    stand.postgres.kill()?;
    state(&prometheus, ALERT, "pending").await?;
    stand.postgres.start_again().await?;
    state(&prometheus, ALERT, "inactive").await
}

async fn state(prometheus: &Prometheus, alert: &str, expected: &str) -> anyhow::Result<()> {
    eventually(BOUND, async || {
        let rules = prometheus.rules().await?;
        let found = rules.iter().find(|rule| rule.name == alert);
        let state = &found.context("no such alert")?.state;
        ensure!(state == expected, "{alert} is {state}, not {expected}");
        Ok(())
    })
    .await
}
