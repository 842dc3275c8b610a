//! Kills, restarts and lost stores while everything runs: nothing acknowledged is lost, and nobody has to intervene.

use std::time::Duration;

use anyhow::ensure;
use rand::prelude::*;
use tests::{Running, eventually};
use workos_sim::Faults;

use crate::stand::{BOUND, Stand, a_bad_day};

/// Waits until the position of the lane `all` has moved past `seq`, and returns it.
async fn progress(stand: &Stand, seq: i64) -> anyhow::Result<i64> {
    eventually(BOUND, async || {
        let now = stand
            .count("select coalesce(max(seq), 0) from dsync.progress where lane = 'all'")
            .await?;
        ensure!(now > seq, "the position is still {now}");
        Ok(now)
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn projectors_killed_at_random_lose_nothing() -> anyhow::Result<()> {
    let stand = Stand::up().await?;
    let mut projectors: Vec<Running> = Vec::new();
    for _ in 0..3 {
        projectors.push(stand.projector().start().await?);
    }
    let delivery = stand.deliver(a_bad_day(2))?;
    stand.populate(30, 5)?;
    let mut rng = StdRng::seed_from_u64(2);
    let mut seq = 0;
    for _ in 0..8 {
        stand.sim.burst(60)?;
        seq = progress(&stand, seq).await?;
        let victim = projectors.choose_mut(&mut rng).unwrap();
        victim.kill();
        victim.start_again()?;
    }
    delivery.hurry();
    delivery.drained().await;
    stand.agrees().await?;
    ensure!(
        stand.count("select count(*) from dsync.dead_letters").await? == 0,
        "kills must not make dead letters"
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_broker_killed_in_the_middle_loses_nothing_acknowledged() -> anyhow::Result<()> {
    let mut stand = Stand::up().await?;
    let _projector = stand.projector().start().await?;
    let delivery = stand.deliver(a_bad_day(3))?;
    stand.populate(30, 5)?;
    let mut seq = 0;
    for _ in 0..3 {
        stand.sim.burst(150)?;
        seq = progress(&stand, seq).await?;
        stand.nats.kill();
        // Deliveries are answered with 503 now, and retried.
        let refused = delivery.progress().counts.answers.get(&503).copied().unwrap_or(0);
        stand.sim.burst(30)?;
        delivery.hurry();
        eventually(BOUND, async || {
            let now = delivery.progress().counts.answers.get(&503).copied().unwrap_or(0);
            ensure!(now > refused, "no delivery was refused yet");
            Ok(())
        })
        .await?;
        stand.nats.start_again().await?;
    }
    let counts = delivery.drained().await;
    ensure!(counts.gave_up == 0, "{counts:?}");
    stand.agrees().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn postgres_set_back_to_an_older_copy_catches_up_by_itself() -> anyhow::Result<()> {
    let mut stand = Stand::up().await?;
    let _projector = stand.projector().start().await?;
    let delivery = stand.deliver(Faults::none())?;
    stand.populate(20, 3)?;
    delivery.drained().await;
    stand.agrees().await?;
    let copy = stand.postgres.backup()?;
    stand.sim.burst(300)?;
    delivery.drained().await;
    stand.agrees().await?;
    stand.postgres.restore(&copy).await?;
    stand.pool = stand.postgres.pool().await?;
    stand.agrees().await?;
    ensure!(
        stand.count("select count(*) from dsync.rewinds").await? == 0,
        "a rewind although the log did not change"
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_that_is_down_is_waited_for() -> anyhow::Result<()> {
    let mut stand = Stand::up().await?;
    let projector = stand.projector().start().await?;
    let delivery = stand.deliver(Faults::none())?;
    stand.populate(10, 2)?;
    delivery.drained().await;
    stand.agrees().await?;
    stand.postgres.kill()?;
    stand.sim.burst(100)?;
    delivery.drained().await;
    eventually(BOUND, async || {
        ensure!(projector.readiness().await? == 503, "ready without a database");
        Ok(())
    })
    .await?;
    stand.postgres.start_again().await?;
    stand.pool = stand.postgres.pool().await?;
    stand.agrees().await?;
    ensure!(
        stand.count("select count(*) from dsync.dead_letters").await? == 0,
        "an outage must not make dead letters"
    );
    eventually(BOUND, async || {
        ensure!(projector.readiness().await? == 200, "not ready again");
        Ok(())
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_log_made_anew_is_noticed_and_read_from_its_beginning() -> anyhow::Result<()> {
    let mut stand = Stand::up().await?;
    let projector = stand.projector().start().await?;
    let delivery = stand.deliver(Faults::none())?;
    stand.populate(10, 2)?;
    delivery.drained().await;
    stand.agrees().await?;
    let before = stand
        .count("select seq from dsync.progress where lane = 'all'")
        .await?;
    stand.nats.wipe().await?;
    // Fewer events than the old log had. A position carried over would wait forever.
    stand.sim.burst(20)?;
    let counts = delivery.drained().await;
    ensure!(counts.gave_up == 0, "{counts:?}");
    eventually(BOUND, async || {
        let noticed = stand.count("select count(*) from dsync.rewinds").await?;
        ensure!(noticed >= 1, "not noticed");
        let metrics = projector.metrics().await?;
        ensure!(
            metrics.get("dsync_projector_log_rewinds_total", &[])? > 0.5,
            "no alarm"
        );
        Ok(())
    })
    .await?;
    // The tables still have what was in the lost log, and also have what is in the new one.
    stand.agrees().await?;
    let after = stand
        .count("select seq from dsync.progress where lane = 'all'")
        .await?;
    ensure!(after < before, "the new log is longer: {after} after {before}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_frozen_database_delays_and_loses_nothing() -> anyhow::Result<()> {
    let mut stand = Stand::up().await?;
    let _projector = stand.projector().start().await?;
    let delivery = stand.deliver(Faults::none())?;
    stand.populate(10, 2)?;
    delivery.drained().await;
    stand.postgres.pause()?;
    stand.sim.burst(100)?;
    let counts = tokio::time::timeout(Duration::from_mins(1), delivery.drained()).await?;
    ensure!(counts.gave_up == 0, "ingest needs no database: {counts:?}");
    stand.postgres.resume()?;
    stand.agrees().await
}
