//! What an operator does meanwhile: verifies, rebuilds and undoes that, sweeps, and erases people who are gone, through no
//! proxy. While a server is down or silent, such a command may fail; it may not hang, nor find or make a difference
//! between the tables and the log.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use rand::prelude::*;
use sqlx::PgPool;
use tests::{Output, Program, eventually};
use tokio::task::JoinHandle;
use workos_sim::Sim;

use crate::stage::Stage;

/// The pause between two commands.
const PAUSE: Duration = Duration::from_millis(500);

/// What the operator does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Deed {
    Verify,
    Rebuild,
    Undo,
    Erase,
    Sweep,
}

impl Deed {
    const ALL: [Deed; 5] = [Deed::Verify, Deed::Rebuild, Deed::Undo, Deed::Erase, Deed::Sweep];

    const fn as_str(self) -> &'static str {
        match self {
            Self::Verify => "verify",
            Self::Rebuild => "rebuild",
            Self::Undo => "rebuild --undo",
            Self::Erase => "erase",
            Self::Sweep => "sweep",
        }
    }
}

/// What came of it.
#[derive(Debug, Default, Clone)]
pub(crate) struct Deeds {
    /// Commands by name: how many were done, and how many failed.
    pub(crate) counts: BTreeMap<&'static str, (usize, usize)>,
    /// The people erased.
    pub(crate) erased: BTreeSet<String>,
    /// Whatever may not happen.
    pub(crate) wrong: Vec<String>,
}

/// Where the commands connect to, and what they ask.
#[derive(Clone)]
struct Desk {
    env: Vec<(&'static str, String)>,
    pool: PgPool,
    sim: Sim,
}

/// An operator at work, until dismissed.
pub(crate) struct Operator {
    task: JoinHandle<Deeds>,
    leaves: Arc<AtomicBool>,
}

impl Operator {
    pub(crate) fn hire(stage: &Stage, seed: u64) -> Operator {
        let desk = Desk::of(stage);
        let leaves = Arc::new(AtomicBool::new(false));
        let task = tokio::spawn(desk.work(StdRng::seed_from_u64(seed), Arc::clone(&leaves)));
        Operator { task, leaves }
    }

    /// Waits for the last command, and returns what came of all.
    pub(crate) async fn dismiss(self) -> anyhow::Result<Deeds> {
        self.leaves.store(true, Ordering::Relaxed);
        Ok(self.task.await?)
    }
}

/// What is wrong if the tables are not what the log says once everything is quiet.
pub(crate) async fn verified(stage: &Stage, patience: Duration) -> Option<String> {
    let verify = Desk::of(stage).command("dsync-projector", &["verify", "--json"]);
    let agrees = async || {
        let output = verify.run().await?;
        ensure!(output.status.success(), "{}{}", output.stdout, output.stderr);
        Ok(())
    };
    let outcome = eventually(patience, agrees).await;
    outcome
        .err()
        .map(|error| format!("the tables are not what the log says: {error:#}"))
}

impl Desk {
    fn of(stage: &Stage) -> Desk {
        let sim = stage.world.sim.clone();
        Desk {
            env: vec![
                ("NATS_URL", stage.nats.url()),
                ("DATABASE_URL", stage.postgres.url()),
                ("WORKOS_API_URL", sim.url()),
                ("WORKOS_API_KEY", sim.api_key().to_owned()),
                ("SWEEP_CLOCK_MARGIN", "3s".to_owned()),
            ],
            pool: stage.pool.clone(),
            sim,
        }
    }

    fn command(&self, program: &str, args: &[&str]) -> Program {
        let mut command = Program::new(program);
        for (name, value) in &self.env {
            // A program refuses what it does not know.
            let of_reconciler = name.starts_with("WORKOS") || name.starts_with("SWEEP");
            if program == "dsync-reconciler" || !of_reconciler {
                command = command.env(name, value.clone());
            }
        }
        args.iter().fold(command, |command, arg| command.arg(*arg))
    }

    async fn work(self, mut rng: StdRng, leaves: Arc<AtomicBool>) -> Deeds {
        let mut deeds = Deeds::default();
        while !leaves.load(Ordering::Relaxed) {
            tokio::time::sleep(PAUSE).await;
            let deed = *Deed::ALL
                .choose_weighted(&mut rng, |deed| if *deed == Deed::Verify { 3 } else { 1 })
                .unwrap_or(&Deed::Verify);
            let outcome = self.does(deed, &mut rng, &mut deeds).await;
            let count = deeds.counts.entry(deed.as_str()).or_default();
            match outcome {
                Ok(true) => count.0 += 1,
                Ok(false) => count.1 += 1,
                Err(error) => deeds.wrong.push(format!("{}: {error:#}", deed.as_str())),
            }
        }
        deeds
    }

    /// Whether the command was done. Fails if something happened that may not.
    async fn does(&self, deed: Deed, rng: &mut StdRng, deeds: &mut Deeds) -> anyhow::Result<bool> {
        let command = match deed {
            Deed::Verify => self.command("dsync-projector", &["verify", "--json"]),
            Deed::Rebuild => self.command("dsync-projector", &["rebuild", "--json"]),
            Deed::Undo => self.command("dsync-projector", &["rebuild", "--undo"]),
            Deed::Sweep => self.command("dsync-reconciler", &["sweep"]),
            Deed::Erase => {
                let Some(gone) = self.somebody_gone(rng, &deeds.erased).await else {
                    return Ok(false);
                };
                let command = self.command("dsync-projector", &["erase", "--user", &gone]);
                // Also if the command fails, which may be halfway.
                deeds.erased.insert(gone);
                command
            }
        };
        let Output {
            status,
            stdout,
            stderr,
        } = command.run().await.context("it hangs")?;
        match (status.code(), deed) {
            (Some(0), Deed::Rebuild) => {
                let report: serde_json::Value = serde_json::from_str(&stdout)?;
                ensure!(report["replaced"]["all"] == 0, "{stdout}");
                Ok(true)
            }
            // A sweep ends with 3 if it found something to repair.
            (Some(0), _) | (Some(3), Deed::Sweep) => Ok(true),
            (Some(1), _) => Ok(false),
            (code, _) => anyhow::bail!("ended with {code:?}: {stdout}{stderr}"),
        }
    }

    /// Somebody who is gone at WorkOS and from the tables, and was not erased.
    async fn somebody_gone(&self, rng: &mut StdRng, erased: &BTreeSet<String>) -> Option<String> {
        let gone = "select id from dsync.users as u
                    where not exists (select from directory.users as v where v.id = u.id) order by id";
        let gone: Vec<String> = sqlx::query_scalar(gone).fetch_all(&self.pool).await.ok()?;
        let truth = self.sim.truth();
        gone.into_iter()
            .filter(|id| {
                let mut directories = truth.directories.values();
                !erased.contains(id) && !directories.any(|one| one.users.contains_key(id))
            })
            .choose(rng)
    }
}
