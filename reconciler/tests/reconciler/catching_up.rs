//! The catch-up as the only source, and beside webhooks: everything arrives once, and what webhooks lost is counted.

use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use tests::eventually;
use workos_sim::{Change, DirectoryOptions, Endpoint, EventsOptions, Seed};

use crate::stand::{BOUND, Stand};

pub(crate) const HOLDBACK: Duration = Duration::from_mins(1);

#[tokio::test]
async fn with_every_webhook_lost_all_arrive_and_all_are_counted() -> anyhow::Result<()> {
    let stand = Stand::up().await?;
    let mut catch_up = stand.catch_up(HOLDBACK);
    catch_up.poll().await?.context("no lease")?;
    for options in [DirectoryOptions::default(), DirectoryOptions::awkward()] {
        let directory = stand.sim.create_directory(options)?;
        stand.sim.seed(
            &directory,
            &Seed {
                users: 120,
                ..Seed::default()
            },
        )?;
    }
    stand.sim.burst(200)?;
    stand.sim.change(Change::CreateToken {
        directory: stand
            .sim
            .truth()
            .directories
            .keys()
            .next()
            .context("none")?
            .clone(),
    })?;
    let ours = stand
        .sim
        .events()
        .iter()
        .filter(|event| event.kind != "dsync.schedule.changed")
        .count();
    let polled = catch_up.poll().await?.context("no lease")?;
    ensure!(polled.recovered == ours, "{polled:?} of {ours}");
    stand.agrees().await?;
    let end = stand.log_end().await?;
    // The overlap is read again, but not appended again.
    let again = catch_up.poll().await?.context("no lease")?;
    ensure!(again.recovered == 0 && again.listed == ours, "{again:?}");
    ensure!(stand.log_end().await? == end);
    let counted = stand
        .work
        .metrics
        .events_recovered
        .with_label_values(&["dsync.group.user_added"])
        .get();
    let joined = stand
        .sim
        .events()
        .iter()
        .filter(|event| event.kind == "dsync.group.user_added")
        .count();
    ensure!(counted == joined as u64, "{counted} of {joined}");
    Ok(())
}

#[tokio::test]
async fn what_webhooks_brought_is_a_duplicate_and_only_the_lost_is_recovered() -> anyhow::Result<()> {
    let stand = Stand::up().await?;
    stand.catch_up(HOLDBACK).poll().await?;
    let directory = stand.sim.create_directory(DirectoryOptions::default())?;
    stand.sim.seed(&directory, &Seed::default())?;
    let lost = stand.log(|number, _| number % 10 != 3).await?;
    // A new process knows nothing of what is in the log.
    let mut catch_up = stand.catch_up(HOLDBACK);
    let polled = catch_up.poll().await?.context("no lease")?;
    ensure!(polled.recovered == lost && lost > 10, "{polled:?}, lost {lost}");
    stand.agrees().await
}

#[tokio::test]
async fn events_that_are_listed_late_are_not_skipped() -> anyhow::Result<()> {
    let stand = Stand::up().await?;
    stand
        .sim
        .tune(|tuning| tuning.events.holdback = Duration::from_secs(20));
    let mut catch_up = stand.catch_up(HOLDBACK);
    catch_up.poll().await?;
    let directory = stand.sim.create_directory(DirectoryOptions::default())?;
    stand.sim.seed(
        &directory,
        &Seed {
            users: 20,
            ..Seed::default()
        },
    )?;
    let mut recovered = 0;
    for _ in 0..20 {
        stand.sim.burst(15)?;
        stand.advance(Duration::from_secs(2));
        recovered += catch_up.poll().await?.context("no lease")?.recovered;
    }
    stand.advance(Duration::from_secs(20));
    recovered += catch_up.poll().await?.context("no lease")?.recovered;
    let ours = stand
        .sim
        .events()
        .iter()
        .filter(|event| event.kind != "dsync.schedule.changed")
        .count();
    ensure!(recovered == ours, "{recovered} of {ours}");
    stand.agrees().await
}

#[tokio::test]
async fn it_copes_with_each_form_of_the_api() -> anyhow::Result<()> {
    let forms: [fn(&mut EventsOptions); 3] = [
        |events| events.after_excludes_range = true,
        |events| events.range_overrides_after = true,
        |events| events.after_needs_range = true,
    ];
    for form in forms {
        let stand = Stand::up().await?;
        stand.sim.tune(|tuning| form(&mut tuning.events));
        let mut catch_up = stand.catch_up(HOLDBACK);
        catch_up.poll().await?;
        let directory = stand.sim.create_directory(DirectoryOptions::default())?;
        stand.sim.seed(
            &directory,
            &Seed {
                users: 200,
                ..Seed::default()
            },
        )?;
        catch_up.poll().await?;
        stand.agrees().await?;
    }
    Ok(())
}

#[tokio::test]
async fn an_absence_of_weeks_is_read_in_ranges_and_one_beyond_retention_leads_to_sweeps() -> anyhow::Result<()>
{
    let stand = Stand::up().await?;
    let day = Duration::from_hours(24);
    let mut catch_up = stand.catch_up(HOLDBACK);
    catch_up.poll().await?;
    let directory = stand.sim.create_directory(DirectoryOptions::default())?;
    for _ in 0..8 {
        stand.sim.seed(
            &directory,
            &Seed {
                users: 5,
                groups: 1,
                ..Seed::default()
            },
        )?;
        stand.advance(day * 10);
    }
    stand.sim.take_requests();
    catch_up.poll().await?;
    stand.agrees().await?;
    let requests = stand.sim.take_requests();
    ensure!(
        requests.iter().all(|request| request.status == 200),
        "{requests:?}"
    );
    ensure!(requests.len() >= 3, "{requests:?}");
    // Away for longer than events are kept: every directory is due.
    stand.pass().await;
    let due = "select count(*) from dsync.sweeps where again_at <= now()";
    ensure!(stand.count(due).await? == 0);
    stand.advance(day * 100);
    catch_up.poll().await?;
    ensure!(stand.count(due).await? == 1);
    Ok(())
}

#[tokio::test]
async fn the_position_moves_only_after_the_log_acknowledged() -> anyhow::Result<()> {
    let mut stand = Stand::up().await?;
    let mut catch_up = stand.catch_up(HOLDBACK);
    catch_up.poll().await?;
    let directory = stand.sim.create_directory(DirectoryOptions::default())?;
    stand.advance(Duration::from_hours(1));
    stand.sim.seed(&directory, &Seed::default())?;
    stand.advance(Duration::from_hours(1));
    let position = "select extract(epoch from position)::bigint from dsync.duties where duty = 'catch_up'";
    let before = stand.count(position).await?;
    stand.nats.kill();
    let polled = tokio::time::timeout(Duration::from_secs(5), catch_up.poll()).await;
    ensure!(
        polled.is_err() || polled.is_ok_and(|polled| polled.is_err()),
        "it went on without a log"
    );
    ensure!(
        stand.count(position).await? == before,
        "moved without an acknowledgement"
    );
    stand.nats.start_again().await?;
    catch_up.poll().await?.context("no lease")?;
    ensure!(stand.count(position).await? > before);
    stand.agrees_soon().await
}

#[tokio::test]
async fn a_log_made_anew_is_filled_again_and_every_directory_swept() -> anyhow::Result<()> {
    let mut stand = Stand::up().await?;
    let mut catch_up = stand.catch_up(HOLDBACK);
    catch_up.poll().await?;
    let directory = stand.sim.create_directory(DirectoryOptions::newer())?;
    stand.sim.seed(&directory, &Seed::default())?;
    stand.log_all().await?;
    stand.agrees().await?;
    // Long ago: from the catch-up's position, only what happens now would be read.
    stand.advance(Duration::from_hours(1));
    catch_up.poll().await?.context("no lease")?;
    stand.pass().await;
    drop(catch_up);
    sqlx::query("update dsync.duties set holder = null, held_until = null")
        .execute(&stand.pool)
        .await?;
    let mut program = stand
        .program()
        .env("EVENTS_POLL_INTERVAL", "1s")
        .env("SWEEP_CLOCK_MARGIN", "60s")
        .start()
        .await?;
    stand.nats.wipe().await?;
    let events = stand.sim.events().len();
    eventually(BOUND, async || {
        let rewinds = stand.count("select count(*) from dsync.rewinds").await?;
        ensure!(rewinds > 0, "the loss is not noticed");
        let swept = stand
            .count("select count(*) from dsync.sweeps where swept_at > (select max(noticed_at) from dsync.rewinds)")
            .await?;
        ensure!(swept == 1, "not swept since");
        let listed = stand.log_end().await?;
        ensure!(listed >= events as u64, "{listed} of {events} in the log");
        Ok(())
    })
    .await
    .with_context(|| program.tail(30))?;
    stand.agrees_soon().await?;
    program.terminate().await
}

#[tokio::test]
async fn as_the_only_source_in_real_time_all_arrives_within_interval_and_holdback() -> anyhow::Result<()> {
    let stand = Stand::in_real_time().await?;
    stand
        .sim
        .tune(|tuning| tuning.events.holdback = Duration::from_secs(2));
    let mut program = stand
        .program()
        .env("EVENTS_POLL_INTERVAL", "1s")
        .env("EVENTS_HOLDBACK", "10s")
        .env("SWEEP_INTERVAL", "0")
        .start()
        .await?;
    eventually(BOUND, async || {
        ensure!(
            stand.count("select count(position) from dsync.duties").await? == 1,
            "not begun"
        );
        Ok(())
    })
    .await?;
    let directory = stand.sim.create_directory(DirectoryOptions::default())?;
    stand.sim.seed(
        &directory,
        &Seed {
            users: 30,
            ..Seed::default()
        },
    )?;
    stand.sim.burst(50)?;
    let began = Instant::now();
    stand.agrees_soon().await?;
    let took = began.elapsed();
    ensure!(took < Duration::from_secs(8), "{took:?}");
    let ours = stand
        .sim
        .events()
        .iter()
        .filter(|event| event.kind != "dsync.schedule.changed")
        .count();
    let metrics = program.metrics().await?;
    let recovered = metrics.count("dsync_reconciler_events_recovered_total", &[]);
    #[expect(clippy::cast_precision_loss, reason = "a few hundred")]
    let ours = ours as f64;
    ensure!((recovered - ours).abs() < 0.5, "{recovered} of {ours}");
    let began = stand.work.clock.now().unix_timestamp() - 60;
    eventually(BOUND, async || {
        let metrics = program.metrics().await?;
        let until = metrics.get("dsync_reconciler_caught_up_timestamp_seconds", &[])?;
        #[expect(clippy::cast_precision_loss, reason = "seconds")]
        let began = began as f64;
        ensure!(until > began, "{until}");
        Ok(())
    })
    .await?;
    let requests = stand.sim.requests();
    ensure!(
        requests
            .iter()
            .any(|request| request.endpoint == Endpoint::Events)
    );
    ensure!(
        requests.iter().all(|request| request.endpoint != Endpoint::Users),
        "swept though it is off"
    );
    program.terminate().await
}

#[tokio::test]
async fn a_clock_of_ours_that_is_ahead_loses_nothing() -> anyhow::Result<()> {
    let stand = Stand::up().await?;
    stand.clock.advance(time::Duration::hours(2));
    let mut catch_up = stand.catch_up(HOLDBACK);
    catch_up.poll().await?;
    let directory = stand.sim.create_directory(DirectoryOptions::default())?;
    stand.sim.seed(&directory, &Seed::default())?;
    let polled = catch_up.poll().await?.context("no lease")?;
    ensure!(polled.recovered == stand.sim.events().len(), "{polled:?}");
    stand.agrees().await
}
