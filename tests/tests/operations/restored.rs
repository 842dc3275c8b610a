//! What is lost with a server's disk, and how it is restored: the runbook's promises about backups and restores.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, ensure};
use tempfile::TempDir;
use tests::{Postgres, agrees, eventually};
use workos_sim::Faults;

use crate::observed::reconciler;
use crate::stand::{BOUND, Stand};

/// A cold copy of the log: the server's store, copied while the server was stopped.
struct CopyOfLog(TempDir);

impl CopyOfLog {
    async fn take(stand: &mut Stand) -> anyhow::Result<Self> {
        let dir = tempfile::Builder::new().prefix("dsync-copy-").tempdir()?;
        stand.nats.stop().await?;
        copy(&stand.nats.store(), &dir.path().join("store"))?;
        stand.nats.start_again().await?;
        Ok(Self(dir))
    }

    async fn put_back(&self, stand: &mut Stand) -> anyhow::Result<()> {
        stand.nats.stop().await?;
        let store: PathBuf = stand.nats.store();
        std::fs::remove_dir_all(&store)?;
        copy(&self.0.path().join("store"), &store)?;
        stand.nats.start_again().await
    }
}

fn copy(from: &Path, to: &Path) -> anyhow::Result<()> {
    let copied = Command::new("cp").arg("-a").arg(from).arg(to).status()?;
    ensure!(copied.success(), "cannot copy {}", from.display());
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_log_set_back_to_an_older_copy_is_noticed_and_loses_nothing() -> anyhow::Result<()> {
    let mut stand = Stand::up().await?;
    let _projector = stand.projector().start().await?;
    let _reconciler = reconciler(&stand).start().await?;
    let delivery = stand.deliver(Faults::none())?;
    stand.populate(10, 2)?;
    delivery.drained().await;
    eventually(BOUND, async || stand.agrees().await).await?;
    let copy = CopyOfLog::take(&mut stand).await?;
    stand.sim.burst(60)?;
    delivery.drained().await;
    eventually(BOUND, async || stand.agrees().await).await?;

    copy.put_back(&mut stand).await?;
    stand.sim.burst(20)?;
    delivery.drained().await;
    eventually(BOUND, async || {
        let noticed = stand.count("select count(*) from dsync.rewinds").await?;
        ensure!(noticed >= 1, "the rewind was not noticed");
        stand.agrees().await
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn log_and_database_set_back_to_older_copies_are_filled_up_from_workos() -> anyhow::Result<()> {
    let mut stand = Stand::up().await?;
    let _projector = stand.projector().start().await?;
    let _reconciler = reconciler(&stand).start().await?;
    let delivery = stand.deliver(Faults::none())?;
    stand.populate(10, 2)?;
    delivery.drained().await;
    eventually(BOUND, async || stand.agrees().await).await?;
    let log = CopyOfLog::take(&mut stand).await?;
    let database = stand.postgres.backup()?;
    stand.pool = stand.postgres.pool().await?;
    stand.sim.burst(60)?;
    delivery.drained().await;
    eventually(BOUND, async || stand.agrees().await).await?;

    // The burst's changes are in neither copy, and no webhook delivers them again.
    stand.postgres.restore(&database).await?;
    log.put_back(&mut stand).await?;
    stand.pool = stand.postgres.pool().await?;
    eventually(BOUND, async || stand.agrees().await).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_without_backup_is_filled_from_the_log() -> anyhow::Result<()> {
    let mut stand = Stand::up().await?;
    let projector = stand.projector().start().await?;
    let delivery = stand.deliver(Faults::none())?;
    stand.populate(10, 2)?;
    stand.sim.burst(60)?;
    delivery.drained().await;
    stand.agrees().await?;
    drop(projector);

    stand.postgres = Postgres::migrated().await?;
    stand.pool = stand.postgres.pool().await?;
    let _projector = stand.projector().start().await?;
    eventually(BOUND, async || stand.agrees().await).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_log_and_database_lost_everything_comes_from_workos() -> anyhow::Result<()> {
    let mut stand = Stand::up().await?;
    let delivery = stand.deliver(Faults::none())?;
    stand.populate(10, 2)?;
    stand.sim.burst(60)?;
    delivery.drained().await;
    stand.nats.wipe().await?;
    stand.postgres = Postgres::migrated().await?;
    stand.pool = stand.postgres.pool().await?;

    let _projector = stand.projector().start().await?;
    let _reconciler = reconciler(&stand).start().await?;
    eventually(BOUND, async || agrees(&stand.pool, &stand.sim.truth()).await)
        .await
        .context("the tables differ from the source")
}
