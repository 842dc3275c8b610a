//! The programs: one dsync-ingest, two projectors (one works, the other takes over when it ends), and the reconciler.

use std::path::Path;

use crate::servers::Servers;
use crate::service::{Service, Setting};

/// The path at which dsync-ingest receives webhooks.
pub(crate) const WEBHOOK_PATH: &str = "/webhooks/workos";

const PROJECTORS: usize = 2;

/// The programs, in words.
pub(crate) const WORDS: &str = "dsync-ingest, dsync-projector twice (one stands by), dsync-reconciler";

/// The programs' settings, except for where the servers are.
#[derive(Default)]
pub(crate) struct Settings {
    /// For dsync-ingest.
    pub ingest: Vec<Setting>,
    /// For the reconciler.
    pub reconciler: Vec<Setting>,
    /// For all programs.
    pub all: Vec<Setting>,
}

/// The running programs.
pub(crate) struct Programs {
    /// Receives webhooks.
    pub ingest: Service,
    /// Write the tables.
    pub projectors: Vec<Service>,
    /// Recovers what was lost.
    pub reconciler: Service,
}

impl Programs {
    /// Starts them all and waits until each is ready. The schema must exist.
    pub(crate) async fn start(
        servers: &Servers,
        settings: Settings,
        logs: &Path,
    ) -> anyhow::Result<Programs> {
        let with = |own: Vec<Setting>| -> Vec<Setting> {
            let all = settings.all.iter().cloned();
            servers.settings().into_iter().chain(all).chain(own).collect()
        };
        let ingest = Service::start("dsync-ingest", "dsync-ingest", &with(settings.ingest), logs)?;
        let projectors = (1..=PROJECTORS).map(|number| {
            Service::start(
                &format!("dsync-projector-{number}"),
                "dsync-projector",
                &with(Vec::new()),
                logs,
            )
        });
        let projectors = projectors.collect::<anyhow::Result<Vec<Service>>>()?;
        let reconciler = Service::start(
            "dsync-reconciler",
            "dsync-reconciler",
            &with(settings.reconciler),
            logs,
        )?;
        let mut programs = Programs {
            ingest,
            projectors,
            reconciler,
        };
        for service in programs.every() {
            service.ready().await?;
        }
        Ok(programs)
    }

    /// All of them.
    pub(crate) fn every(&mut self) -> impl Iterator<Item = &mut Service> {
        std::iter::once(&mut self.ingest)
            .chain(&mut self.projectors)
            .chain(std::iter::once(&mut self.reconciler))
    }

    /// Fails if one has ended, with the end of its output.
    pub(crate) fn must_run(&mut self) -> anyhow::Result<()> {
        self.every().try_for_each(Service::must_run)
    }

    /// The names of those that have ended.
    pub(crate) fn ended(&mut self) -> Vec<String> {
        let ended = self.every().filter_map(|service| {
            let ended = service.has_ended();
            ended.then(|| service.name().to_owned())
        });
        ended.collect()
    }
}
