//! All three programs with a test's settings, a simulated WorkOS, and a burst that must arrive.

use std::time::Duration;

use anyhow::{Context as _, ensure};
use sqlx::PgPool;
use tests::{Program, Running, agrees, eventually};
use workos_sim::{Delivery, DeliveryOptions, DirectoryOptions, Faults, Options, Seed, Sim};

pub(crate) const SECRET: &str = "whsec_of_the_guard_0123456789";
pub(crate) const BOUND: Duration = Duration::from_mins(2);

/// For each program, the setting that names the broker, and its value; the database; and further settings for ingest.
pub(crate) struct Settings<'s> {
    pub(crate) nats: [(&'static str, String); 3],
    pub(crate) nats_ca: Option<&'s str>,
    pub(crate) database: String,
    pub(crate) ingest: &'s [(&'s str, String)],
}

pub(crate) struct Pipeline {
    pub(crate) sim: Sim,
    pub(crate) ingest: Running,
    pub(crate) projector: Running,
    pub(crate) reconciler: Running,
}

impl Pipeline {
    pub(crate) async fn up(settings: &Settings<'_>) -> anyhow::Result<Pipeline> {
        let sim = Sim::start(Options::default()).await?;
        let [ingest, projector, reconciler] = &settings.nats;
        let program = |name: &str, (setting, value): &(&str, String)| {
            let program = Program::new(name).env(setting, value);
            match settings.nats_ca {
                Some(ca) => program.env("NATS_CA", ca),
                None => program,
            }
        };
        let receiver = program("dsync-ingest", ingest).env("WORKOS_WEBHOOK_SECRET", SECRET);
        let more = settings.ingest.iter();
        let receiver = more.fold(receiver, |program, (name, value)| program.env(name, value));
        let ingest = receiver.start().await?;
        let projector = program("dsync-projector", projector)
            .env("DATABASE_URL", &settings.database)
            .start()
            .await?;
        let reconciler = program("dsync-reconciler", reconciler)
            .env("DATABASE_URL", &settings.database)
            .env("WORKOS_API_URL", sim.url())
            .env("WORKOS_API_KEY", sim.api_key())
            .env("EVENTS_POLL_INTERVAL", "1s")
            .start()
            .await?;
        Ok(Pipeline {
            sim,
            ingest,
            projector,
            reconciler,
        })
    }

    /// Fills a directory with people and makes changes, with webhooks to `base`, some of which are lost. Waits until
    /// the tables agree, because the reconciler has recovered the lost events.
    pub(crate) async fn burst(
        &self,
        base: &str,
        authority: Option<String>,
        pool: &PgPool,
    ) -> anyhow::Result<()> {
        let faults = Faults {
            lost: 20,
            ..Faults::none()
        };
        let delivery = self.deliver(base, authority, faults)?;
        let directory = self.sim.create_directory(DirectoryOptions::default())?;
        let seed = Seed {
            users: 20,
            groups: 3,
            ..Seed::default()
        };
        self.sim.seed(&directory, &seed)?;
        self.sim.burst(150)?;
        let counts = delivery.drained().await;
        ensure!(counts.acked > 50 && counts.lost > 5, "{counts:?}");
        eventually(BOUND, async || agrees(pool, &self.sim.truth()).await)
            .await
            .context("the tables differ from the source")?;
        let metrics = self.reconciler.metrics().await?;
        let recovered = metrics.count("dsync_reconciler_events_recovered_total", &[]);
        ensure!(recovered > 0.0, "the reconciler recovered nothing");
        for program in [&self.ingest, &self.projector, &self.reconciler] {
            program.keeps_secrets(&[SECRET])?;
        }
        Ok(())
    }

    fn deliver(&self, base: &str, authority: Option<String>, faults: Faults) -> anyhow::Result<Delivery> {
        Ok(self.sim.deliver(DeliveryOptions {
            faults,
            authority,
            ..DeliveryOptions::new(format!("{base}/webhooks/workos"), SECRET)
        })?)
    }
}

/// Posts a body as WorkOS would, with any signature header.
pub(crate) async fn post(base: &str, header: Option<&str>, body: &str) -> anyhow::Result<reqwest::Response> {
    let request = reqwest::Client::new()
        .post(format!("{base}/webhooks/workos"))
        .body(body.to_owned());
    let request = match header {
        Some(header) => request.header("WorkOS-Signature", header),
        None => request,
    };
    Ok(request.send().await?)
}
