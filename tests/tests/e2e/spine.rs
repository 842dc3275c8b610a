//! From WorkOS to the tables, on a bad day.

use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use tests::eventually;
use workos_sim::{Change, Faults};

use crate::stand::{BOUND, SECRET, Stand, a_bad_day};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn source_and_tables_agree_after_doubled_shuffled_and_stale_webhooks() -> anyhow::Result<()> {
    // Secrets must not leak even at the most verbose level.
    let stand = Stand::logging("trace").await?;
    let (mut first, mut second) = (stand.projector().start().await?, stand.projector().start().await?);
    let delivery = stand.deliver(a_bad_day(1))?;
    stand.populate(60, 6)?;
    stand.sim.burst(600)?;
    delivery.hurry();
    let counts = delivery.drained().await;
    ensure!(
        counts.doubled > 50 && counts.shuffled > 50 && counts.stale > 20,
        "too few faults: {counts:?}"
    );
    ensure!(counts.gave_up == 0 && counts.lost == 0, "{counts:?}");
    stand.agrees().await?;

    let ingest = stand.ingest.metrics().await?;
    let accepted = ingest.get("dsync_ingest_webhooks_total", &[("outcome", "accepted")])?;
    let duplicate = ingest.get("dsync_ingest_webhooks_total", &[("outcome", "duplicate")])?;
    #[expect(clippy::cast_precision_loss, reason = "a few thousand")]
    let (events, acked) = (counts.events as f64, counts.acked as f64);
    ensure!(
        (accepted - events).abs() < 0.5,
        "{accepted} stored of {events} events"
    );
    ensure!(
        (accepted + duplicate - acked).abs() < 0.5,
        "{accepted} + {duplicate} of {acked} acknowledged"
    );

    // Records that both lanes applied are counted by one of them, and every record that was not stale was applied.
    for program in [&mut first, &mut second] {
        program.keeps_secrets(&[SECRET])?;
    }
    stand.ingest.keeps_secrets(&[SECRET])?;
    let emails: Vec<String> =
        sqlx::query_scalar("select email from directory.users where email is not null limit 20")
            .fetch_all(&stand.pool)
            .await?;
    let emails: Vec<&str> = emails.iter().map(String::as_str).collect();
    ensure!(emails.len() == 20, "nobody has an email");
    for program in [&first, &second, &stand.ingest] {
        program.keeps_secrets(&emails)?;
    }
    first.terminate().await?;
    second.terminate().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn records_that_come_one_by_one_share_transactions() -> anyhow::Result<()> {
    let stand = Stand::up().await?;
    let projector = stand.projector().start().await?;
    let log = async_nats::jetstream::new(async_nats::connect(stand.nats.url()).await?);
    let batches = async || {
        projector
            .metrics()
            .await?
            .get("dsync_projector_batch_events_count", &[])
    };
    let (before, began) = (batches().await?, Instant::now());
    let mut count = 0;
    while began.elapsed() < Duration::from_millis(600) {
        count += 1;
        let body = format!(
            r#"{{"id":"event_{count}","event":"dsync.user.updated","created_at":"2026-01-01T00:00:00Z","data":{{"id":"directory_user_{count}","directory_id":"directory_1","state":"active"}}}}"#
        );
        log.publish("dsync.directory_1.user.directory_user_1.updated", body.into())
            .await?
            .await?;
    }
    stand.applied().await?;
    // None of them takes access away, so one lane reads them all, whose transactions begin 50 ms apart.
    let (made, most) = (
        batches().await? - before,
        began.elapsed().as_secs_f64() * 20.0 + 2.0,
    );
    ensure!(
        made >= 1.0 && made <= most,
        "{made} transactions for {count} records, {most:.0} at most"
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_removal_overtakes_a_backlog() -> anyhow::Result<()> {
    let stand = Stand::up().await?;
    let projector = stand.projector().start().await?;
    let delivery = stand.deliver(Faults::none())?;
    let directory = stand.populate(10, 2)?.remove(0);
    delivery.drained().await;
    stand.agrees().await?;

    // Somebody else holds the lane `all`, and does nothing.
    sqlx::query(
        "update dsync.progress set holder = 'a stranger', held_until = now() + interval '1 hour' where lane = 'all'",
    )
    .execute(&stand.pool)
    .await?;
    eventually(BOUND, async || {
        let held = projector
            .metrics()
            .await?
            .get("dsync_projector_lane_held", &[("lane", "all")])?;
        ensure!(held < 0.5, "the projector still works the lane");
        Ok(())
    })
    .await?;
    let before = stand
        .count("select seq from dsync.progress where lane = 'all'")
        .await?;
    let users: Vec<String> =
        sqlx::query_scalar("select id from directory.users where directory_id = $1 order by id")
            .bind(&directory)
            .fetch_all(&stand.pool)
            .await?;
    stand.sim.burst(50)?;
    // Pick somebody whom the burst did not delete.
    let is_removed = |user: &String| {
        let user = user.clone();
        let removals = false;
        stand.sim.change(Change::DeleteUser { user, removals }).is_ok()
    };
    let user = users.into_iter().find(is_removed).context("nobody is left")?;
    eventually(BOUND, async || {
        let there: bool = sqlx::query_scalar("select exists (select from directory.users where id = $1)")
            .bind(&user)
            .fetch_one(&stand.pool)
            .await?;
        ensure!(!there, "the user is still shown");
        Ok(())
    })
    .await?;
    let now = stand
        .count("select seq from dsync.progress where lane = 'all'")
        .await?;
    ensure!(now == before, "the lane `all` moved from {before} to {now}");

    sqlx::query("update dsync.progress set holder = null where lane = 'all'")
        .execute(&stand.pool)
        .await?;
    delivery.drained().await;
    stand.agrees().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_metrics_say_is_what_happened() -> anyhow::Result<()> {
    let stand = Stand::up().await?;
    let projector = stand.projector().start().await?;
    let delivery = stand.deliver(Faults::none())?;
    stand.populate(20, 3)?;
    stand.sim.burst(200)?;
    let counts = delivery.drained().await;
    stand.agrees().await?;
    eventually(BOUND, async || {
        let metrics = projector.metrics().await?;
        let outcomes = ["applied", "stale", "dead"];
        let counted: f64 = outcomes
            .iter()
            .map(|outcome| metrics.count("dsync_projector_events_total", &[("outcome", outcome)]))
            .sum();
        #[expect(clippy::cast_precision_loss, reason = "a few thousand")]
        let events = counts.events as f64;
        ensure!(counted >= events, "{counted} counted of {events}");
        ensure!(
            metrics.get("dsync_projector_pending_messages", &[])?.abs() < 0.5,
            "pending"
        );
        ensure!(
            metrics.get("dsync_projector_dead_letters", &[])?.abs() < 0.5,
            "dead letters"
        );
        ensure!(
            metrics.get("dsync_projector_deprovision_seconds_count", &[])? > 0.5,
            "no removal was timed"
        );
        ensure!(
            metrics.get("dsync_projector_freshness_seconds_count", &[])? >= 0.5,
            "nothing was timed"
        );
        Ok(())
    })
    .await?;
    ensure!(counts.events > 300, "{counts:?}");
    // The promise is seconds, and a busy machine may take some. An hour would mean the wrong clock.
    let metrics = projector.metrics().await?;
    let mean = metrics.get("dsync_projector_deprovision_seconds_sum", &[])?
        / metrics.get("dsync_projector_deprovision_seconds_count", &[])?;
    ensure!(Duration::from_secs_f64(mean) < Duration::from_mins(2), "{mean} s");
    Ok(())
}
