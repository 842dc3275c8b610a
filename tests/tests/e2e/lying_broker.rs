//! A broker that loses acknowledged messages, because it lost power before it had synced them. The loss is noticed, and
//! repaired without a person, from what the Events API still lists or from what the state API shows now. (SIGKILL is
//! not enough, because the kernel keeps what was written, so the store is set back to an older copy instead.)

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::ensure;
use tests::{Program, Running, agrees, eventually};
use workos_sim::Faults;

use crate::stand::{BOUND, Stand, logged};

fn reconciler(stand: &Stand) -> Program {
    Program::new("dsync-reconciler")
        .env("NATS_URL", stand.nats.url())
        .env("DATABASE_URL", stand.postgres.url())
        .env("WORKOS_API_URL", stand.sim.url())
        .env("WORKOS_API_KEY", stand.sim.api_key())
        .env("EVENTS_POLL_INTERVAL", "1s")
        .env("EVENTS_HOLDBACK", "1s")
        .env("SWEEP_CLOCK_MARGIN", "2s")
}

/// Starts the stand and delivers a populated world to the log.
async fn settled() -> anyhow::Result<(Stand, workos_sim::Delivery)> {
    let stand = Stand::up().await?;
    let delivery = stand.deliver(Faults::none())?;
    stand.populate(15, 3)?;
    delivery.drained().await;
    Ok((stand, delivery))
}

async fn rewinds(projector: &Running) -> anyhow::Result<()> {
    eventually(BOUND, async || {
        let noticed = projector
            .metrics()
            .await?
            .get("dsync_projector_log_rewinds_total", &[])?;
        ensure!(noticed > 0.5, "no alarm");
        Ok(())
    })
    .await
}

/// Waits until catch-up has read past the current time.
async fn caught_up(stand: &Stand) -> anyhow::Result<()> {
    let since = workos_sim::Clock::system().now().rfc3339();
    eventually(BOUND, async || {
        let done: bool = sqlx::query_scalar(
            "select coalesce(position >= $1::timestamptz + interval '1 s', false) from dsync.duties where duty = 'catch_up'",
        )
        .bind(&since)
        .fetch_one(&stand.pool)
        .await?;
        ensure!(done, "catch-up is behind");
        Ok(())
    })
    .await
}

async fn tables_heal(stand: &Stand) -> anyhow::Result<()> {
    eventually(BOUND, async || agrees(&stand.pool, &stand.sim.truth()).await).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_it_lost_comes_back_from_the_events_api() -> anyhow::Result<()> {
    let (mut stand, delivery) = settled().await?;
    let projector = stand.projector().start().await?;
    let _reconciler = reconciler(&stand).env("SWEEP_INTERVAL", "0").start().await?;
    caught_up(&stand).await?;
    let store = stand.nats.copy_of_store()?;
    stand.sim.burst(150)?;
    delivery.drained().await;
    stand.agrees().await?;
    caught_up(&stand).await?;
    stand.nats.set_back(&store).await?;
    rewinds(&projector).await?;
    // The log must get the events back even though the tables have them: rebuilds and other readers of the log need
    // them.
    let told: BTreeSet<String> = delivery.acknowledged().into_iter().map(|one| one.event).collect();
    eventually(BOUND, async || {
        let logged = logged(&stand.nats.url()).await?;
        let missing = stand.sim.events();
        let missing = missing
            .iter()
            .filter(|event| told.contains(&event.id) && !logged.contains(&event.id));
        // The API does not list event types that it does not know.
        let missing: Vec<&str> = missing
            .map(|event| event.kind.as_str())
            .filter(|kind| !kind.contains("schedule"))
            .collect();
        ensure!(
            missing.is_empty(),
            "{} events are still not in the log, such as {:?}",
            missing.len(),
            missing[0]
        );
        Ok(())
    })
    .await?;
    tables_heal(&stand).await
}

/// The Events API no longer lists any events, so only a sweep can help, and nobody asks for one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_it_lost_and_nobody_lists_is_swept_up() -> anyhow::Result<()> {
    let (mut stand, delivery) = settled().await?;
    let mut projector = stand.projector().start().await?;
    let _reconciler = reconciler(&stand).env("SWEEP_INTERVAL", "1h").start().await?;
    stand.agrees().await?;
    stand.swept().await?;
    caught_up(&stand).await?;
    let store = stand.nats.copy_of_store()?;
    stand.sim.burst(30)?;
    delivery.drained().await;
    stand.agrees().await?;
    // More events, none of which the projector reads before they are lost.
    projector.kill();
    stand.sim.burst(30)?;
    delivery.drained().await;
    stand.sim.tune(|tuning| tuning.events.retention = Duration::ZERO);
    stand.nats.set_back(&store).await?;
    projector.start_again()?;
    rewinds(&projector).await?;
    tables_heal(&stand).await
}

/// Losing what no lane had applied yet leaves no gap at any position: the log is as long as what was applied, or
/// longer.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_it_lost_before_anybody_read_it_is_noticed_and_comes_back() -> anyhow::Result<()> {
    let (mut stand, delivery) = settled().await?;
    let mut projector = stand.projector().start().await?;
    let _reconciler = reconciler(&stand).env("SWEEP_INTERVAL", "0").start().await?;
    stand.agrees().await?;
    caught_up(&stand).await?;
    let store = stand.nats.copy_of_store()?;
    // The projector sees how long the log is, but applies none of it.
    sqlx::query("update dsync.progress set holder = 'a stranger', held_until = now() + interval '1 hour'")
        .execute(&stand.pool)
        .await?;
    eventually(BOUND, async || {
        let held = projector.metrics().await?.get("dsync_projector_lane_held", &[])?;
        ensure!(held < 0.5, "the projector still works");
        Ok(())
    })
    .await?;
    stand.sim.burst(60)?;
    delivery.drained().await;
    eventually(BOUND, async || {
        let pending = projector
            .metrics()
            .await?
            .get("dsync_projector_pending_messages", &[])?;
        ensure!(pending > 20.0, "it has seen {pending} records");
        Ok(())
    })
    .await?;
    // Long enough ago that catch-up does not read it again anyway.
    caught_up(&stand).await?;
    caught_up(&stand).await?;
    stand.nats.set_back(&store).await?;
    sqlx::query("update dsync.progress set holder = null")
        .execute(&stand.pool)
        .await?;
    rewinds(&projector).await?;
    tables_heal(&stand).await?;
    projector.terminate().await
}
