//! A run with the real WorkOS: the programs with the keys of a WorkOS environment, receiving webhooks through a tunnel.
//!
//! Of the directories' contents, only counts are printed.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::bail;

use crate::programs::{Programs, Settings, WEBHOOK_PATH, WORDS};
use crate::screen::Screen;
use crate::servers::Servers;
use crate::service::{given, launch};
use crate::stay::stay;
use crate::summary;
use crate::verdict::Verdict;

/// Where dsync-ingest listens unless `LISTEN_ADDR` is set: a fixed port, so that a tunnel can be configured for it.
const LISTEN_ADDR: &str = "127.0.0.1:8080";
/// Settings that are passed on to the programs unchanged.
const PASSED_ON: [&str; 13] = [
    "EVENTS_HOLDBACK",
    "EVENTS_POLL_INTERVAL",
    "LOG_FORMAT",
    "RUST_LOG",
    "SWEEP_CLOCK_MARGIN",
    "SWEEP_INTERVAL",
    "SWEEP_MAX_DELETIONS",
    "TRUSTED_PROXIES",
    "WEBHOOK_ALLOWED_IPS",
    "WEBHOOK_MAX_BODY",
    "WEBHOOK_PATH",
    "WEBHOOK_TOLERANCE",
    "WORKOS_API_URL",
];
/// Passes after which continuing drift can no longer be the first sync.
const PASSES: u32 = 5;
/// How often to check whether a pass is over.
const LOOK: Duration = Duration::from_millis(200);
/// How long the tables may take to show what a pass found.
const APPLIED_WITHIN: Duration = Duration::from_mins(10);
/// The exit codes of `dsync-reconciler sweep` without and with drift.
const NO_DRIFT: i32 = 0;
const DRIFT: i32 = 3;

/// The keys of a WorkOS environment.
pub(crate) struct Keys {
    api_key: String,
    webhook_secret: String,
}

/// One of the two keys is missing.
#[derive(Debug, thiserror::Error)]
#[error(
    "{there} is set but {missing} is not. Set both to use the real WorkOS, or neither to use the simulated one."
)]
pub(crate) struct HalfSet {
    there: &'static str,
    missing: &'static str,
}

/// Everything, running.
pub(crate) struct Up {
    programs: Programs,
    servers: Servers,
    keys: Keys,
    listen: String,
    /// Whether a whole pass over WorkOS found no drift. Without `--once` no pass is made and this is `Agree`.
    pub(crate) verdict: Verdict,
}

impl Keys {
    /// Reads them from this process's environment; `None` if neither is set.
    pub(crate) fn given() -> Result<Option<Keys>, HalfSet> {
        const NAMES: [&str; 2] = ["WORKOS_API_KEY", "WORKOS_WEBHOOK_SECRET"];
        let [key, secret] = NAMES.map(|name| std::env::var(name).ok().filter(|value| !value.is_empty()));
        let [there, missing] = match (key, secret) {
            (None, None) => return Ok(None),
            (Some(api_key), Some(webhook_secret)) => {
                return Ok(Some(Keys {
                    api_key,
                    webhook_secret,
                }));
            }
            (Some(_), None) => NAMES,
            (None, Some(_)) => [NAMES[1], NAMES[0]],
        };
        Err(HalfSet { there, missing })
    }
}

impl Up {
    /// Starts everything and prints where to point WorkOS. With `once`, sweeps until there is no drift.
    pub(crate) async fn start(screen: &Screen, logs: &Path, once: bool, keys: Keys) -> anyhow::Result<Up> {
        let servers = Servers::prepare(screen).await?;
        let began = Instant::now();
        let bar = screen.spinner("starting the programs");
        let listen = std::env::var("LISTEN_ADDR").unwrap_or_else(|_| LISTEN_ADDR.to_owned());
        let settings = Settings {
            ingest: vec![
                ("LISTEN_ADDR", listen.clone()),
                ("WORKOS_WEBHOOK_SECRET", keys.webhook_secret.clone()),
            ],
            reconciler: vec![("WORKOS_API_KEY", keys.api_key.clone())],
            all: given(&PASSED_ON),
        };
        let programs = Programs::start(&servers, settings, logs).await?;
        drop(bar);
        screen.done("programs", began, &[WORDS.to_owned()]);
        let mut up = Up {
            programs,
            servers,
            keys,
            listen,
            verdict: Verdict::Agree,
        };
        up.show_places(screen, logs);
        if once {
            up.verdict = up.first_sync(screen, logs).await?;
        }
        Ok(up)
    }

    /// Sweeps until a whole pass over WorkOS finds no drift, and prints the row counts.
    async fn first_sync(&self, screen: &Screen, logs: &Path) -> anyhow::Result<Verdict> {
        for pass in 1..=PASSES {
            let began = Instant::now();
            let bar = screen.spinner("reading all directories from WorkOS");
            let drift = self.sweep(logs).await?;
            bar.say("applying the differences found");
            let position = self.servers.applied_within(APPLIED_WITHIN).await?;
            drop(bar);
            let found = if drift {
                "differences found and repaired"
            } else {
                "no drift"
            };
            let what = format!(
                "pass {pass}: {found}; {} records in the log, all applied",
                summary::count(position.stored)
            );
            screen.done("sweep", began, &[what]);
            if !drift {
                summary::tables(&self.servers.pool, screen).await?;
                screen.heading("WorkOS and database agree: a full pass found no drift.");
                return Ok(Verdict::Agree);
            }
        }
        screen.heading(&format!(
            "WorkOS and database DIFFER: each of {PASSES} passes found drift."
        ));
        Ok(Verdict::Differ)
    }

    /// Makes one pass, however long it takes. Returns whether there was drift.
    async fn sweep(&self, logs: &Path) -> anyhow::Result<bool> {
        let mut settings = self.servers.settings();
        settings.extend(given(&PASSED_ON));
        settings.push(("WORKOS_API_KEY", self.keys.api_key.clone()));
        let name = "dsync-reconciler-sweep";
        let mut sweep = launch(name, "dsync-reconciler", &["sweep"], &settings, logs)?;
        let status = loop {
            if let Some(status) = sweep.exited()? {
                break status;
            }
            tokio::time::sleep(LOOK).await;
        };
        match status.code() {
            Some(NO_DRIFT) => Ok(false),
            Some(DRIFT) => Ok(true),
            _ => bail!(
                "dsync-reconciler sweep failed. The end of its output:\n{}",
                sweep.tail(30)
            ),
        }
    }

    /// Shows the status until this is dropped.
    pub(crate) async fn stay(&mut self, screen: &Screen) -> anyhow::Result<()> {
        stay(screen, &self.servers, &mut self.programs, || Ok(String::new())).await
    }

    fn show_places(&mut self, screen: &Screen, logs: &Path) {
        let path = std::env::var("WEBHOOK_PATH").unwrap_or_else(|_| WEBHOOK_PATH.to_owned());
        screen
            .heading("Point WorkOS here (dashboard: Webhooks, events dsync.*), through a tunnel of your own");
        screen.line(&format!(
            "  https://<your tunnel>{path}  →  http://{}{path}",
            self.listen
        ));
        screen.heading("Where everything listens (until Ctrl-C)");
        summary::places(screen, &self.servers, &mut self.programs, Vec::new(), logs);
    }
}
