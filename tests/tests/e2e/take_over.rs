//! Several projectors: one works, another takes over when it dies or freezes.

use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use tests::{Running, eventually};
use workos_sim::Faults;

use crate::stand::{BOUND, Stand};

async fn holds(program: &Running) -> anyhow::Result<bool> {
    Ok(program
        .metrics()
        .await?
        .get("dsync_projector_lane_held", &[("lane", "all")])?
        > 0.5)
}

/// Starts two projectors. Returns the one that works the lane `all` first.
pub(crate) async fn pair(stand: &Stand) -> anyhow::Result<(Running, Running)> {
    let (one, two) = (stand.projector().start().await?, stand.projector().start().await?);
    let first_works = eventually(BOUND, async || match (holds(&one).await?, holds(&two).await?) {
        (true, false) => Ok(true),
        (false, true) => Ok(false),
        both => anyhow::bail!("held: {both:?}"),
    })
    .await?;
    Ok(if first_works { (one, two) } else { (two, one) })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_takes_over_from_a_dead_one_within_seconds() -> anyhow::Result<()> {
    let stand = Stand::up().await?;
    let delivery = stand.deliver(Faults::none())?;
    stand.populate(5, 1)?;
    delivery.drained().await;
    let (mut worker, other) = pair(&stand).await?;
    stand.agrees().await?;
    worker.kill();
    let began = Instant::now();
    stand.sim.burst(50)?;
    delivery.drained().await;
    stand.agrees().await?;
    ensure!(
        holds(&other).await.context("the one that is left")?,
        "no projector holds the lane"
    );
    ensure!(
        began.elapsed() < Duration::from_mins(1),
        "took over after {:?}",
        began.elapsed()
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_frozen_one_is_replaced_and_does_no_harm_when_it_wakes() -> anyhow::Result<()> {
    let stand = Stand::up().await?;
    let delivery = stand.deliver(Faults::none())?;
    stand.populate(5, 1)?;
    delivery.drained().await;
    let (mut worker, other) = pair(&stand).await?;
    stand.agrees().await?;
    worker.pause()?;
    stand.sim.burst(100)?;
    delivery.drained().await;
    stand.agrees().await?;
    worker.resume()?;
    stand.sim.burst(100)?;
    delivery.drained().await;
    stand.agrees().await?;
    ensure!(
        holds(&other).await? != holds(&worker).await?,
        "exactly one must work"
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn told_to_stop_it_hands_over_at_once() -> anyhow::Result<()> {
    let stand = Stand::up().await?;
    let delivery = stand.deliver(Faults::none())?;
    stand.populate(5, 1)?;
    delivery.drained().await;
    let (mut worker, other) = pair(&stand).await?;
    stand.agrees().await?;
    worker.terminate().await?;
    let left: Option<String> =
        sqlx::query_scalar("select holder from dsync.progress where lane = 'all' and holder like $1")
            .bind(format!("{}-%", worker.pid().unwrap_or_default()))
            .fetch_optional(&stand.pool)
            .await?;
    ensure!(left.is_none(), "the lease was not given back");
    eventually(BOUND, async || {
        ensure!(holds(&other).await?, "not taken over");
        Ok(())
    })
    .await
}

/// Upkeep may wait for a lock, or work for minutes: a stop must not wait for it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn told_to_stop_it_breaks_upkeep_off() -> anyhow::Result<()> {
    let stand = Stand::up().await?;
    let mut held = stand.pool.begin().await?;
    sqlx::query("lock table dsync.replaced in access exclusive mode")
        .execute(&mut *held)
        .await?;
    let mut projector = stand.projector().start().await?;
    eventually(BOUND, async || {
        let waits = stand
            .count(
                "select count(*) from pg_locks where not granted and relation = 'dsync.replaced'::regclass",
            )
            .await?;
        ensure!(waits > 0, "upkeep does not wait");
        Ok(())
    })
    .await?;
    let began = Instant::now();
    projector.terminate().await?;
    ensure!(
        began.elapsed() < Duration::from_secs(15),
        "stopped after {:?}",
        began.elapsed()
    );
    Ok(())
}
