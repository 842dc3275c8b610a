//! The subcommands as an operator sees them: output, exit codes, settings, metrics.

use anyhow::{Context as _, ensure};
use journal::Ensured;
use tests::eventually;
use workos_sim::{DirectoryOptions, Seed};

use crate::stand::{BOUND, LIMITS, Stand};

#[tokio::test]
async fn exit_codes_and_reports() -> anyhow::Result<()> {
    let stand = Stand::up().await?;
    let directory = stand.sim.create_directory(DirectoryOptions::newer())?;
    stand.sim.seed(&directory, &Seed::default())?;
    stand.log(|number, _| number % 5 != 0).await?;
    stand.settle();
    let end = stand.log_end().await?;
    let dry = stand.program().arg("sweep").arg("--dry-run").run().await?;
    ensure!(dry.status.code() == Some(3), "{dry:?}");
    ensure!(dry.stdout.contains("nothing was repaired: dry run"), "{dry:?}");
    ensure!(dry.stdout.contains(&format!("{directory}: 50 users")), "{dry:?}");
    ensure!(stand.log_end().await? == end, "a dry run appended");
    // A subcommand gets its limits from the shell it is called from.
    ensure!(
        stand.journal.ensure(&LIMITS).await? == Ensured::Unchanged,
        "a dry run changed the log's limits"
    );
    ensure!(
        stand.count("select count(swept_at) from dsync.sweeps").await? == 0,
        "a dry run was noted"
    );

    let one = stand
        .program()
        .arg("sweep")
        .arg("--directory")
        .arg(&directory)
        .arg("--json")
        .run()
        .await?;
    ensure!(one.status.code() == Some(3), "{one:?}");
    let report: serde_json::Value = serde_json::from_str(&one.stdout)?;
    let found = &report["directories"][0];
    ensure!(
        found["directory_id"] == directory.as_str() && found["complete"] == true,
        "{report}"
    );
    ensure!(
        found["drift"]
            .as_array()
            .context("no drift")?
            .iter()
            .all(|one| one["values"].is_null()),
        "{report}"
    );
    ensure!(found["requests"].as_u64() > Some(3), "{report}");
    // What was repaired is shown when the command ends.
    tests::agrees(&stand.pool, &stand.sim.truth()).await?;

    let none = stand.program().arg("sweep").run().await?;
    ensure!(none.status.code() == Some(0), "{none:?}");
    ensure!(none.stdout.contains("1 directory, 0 differences"), "{none:?}");

    let unknown = stand
        .program()
        .arg("sweep")
        .arg("--directory")
        .arg("directory_unknown")
        .run()
        .await?;
    ensure!(unknown.status.code() == Some(1), "{unknown:?}");
    ensure!(unknown.stdout.contains("no such directory"), "{unknown:?}");
    ensure!(
        stand.count("select count(*) from dsync.sweeps").await? == 1,
        "an unknown directory was kept"
    );

    let wrong = stand
        .program()
        .env("WORKOS_API_KEY", "sk_wrong")
        .arg("sweep")
        .run()
        .await?;
    ensure!(
        wrong.status.code() == Some(1) && wrong.stdout.contains("does not accept the API key"),
        "{wrong:?}"
    );
    Ok(())
}

#[tokio::test]
async fn bad_settings_are_refused_in_one_line() -> anyhow::Result<()> {
    let stand = Stand::up().await?;
    for (name, value, words) in [
        ("WORKOS_API_URL", "not a url", "WORKOS_API_URL (--workos-api-url)"),
        ("WORKOS_API_KEY", " ", "WORKOS_API_KEY (--workos-api-key)"),
        (
            "SWEEP_MAX_DELETIONS",
            "10",
            "SWEEP_MAX_DELETIONS (--sweep-max-deletions)",
        ),
        ("SWEEP_INTERVAL", "hourly", "SWEEP_INTERVAL (--sweep-interval)"),
        ("EVENTS_HOLDBACK", "-5s", "EVENTS_HOLDBACK (--events-holdback)"),
    ] {
        let refused = stand.program().env(name, value).run().await?;
        ensure!(refused.status.code() == Some(2), "{name}: {refused:?}");
        ensure!(
            refused.stderr.contains(words) && refused.stderr.lines().count() == 1,
            "{refused:?}"
        );
    }
    let help = stand.program().arg("--help").run().await?;
    ensure!(
        help.status.success() && !help.stdout.contains(stand.sim.api_key()),
        "{help:?}"
    );
    Ok(())
}

#[tokio::test]
async fn approve_says_that_it_waits_for_another_reconciler() -> anyhow::Result<()> {
    let stand = Stand::up().await?;
    let directory = stand.sim.create_directory(DirectoryOptions::newer())?;
    stand.log_all().await?;
    stand.applied().await?;
    let lease = stand
        .work
        .leases
        .take(&directory, true)
        .await?
        .context("not free")?;
    let mut approve = stand.program().arg("approve").arg(&directory).spawn()?;
    eventually(BOUND, async || {
        ensure!(
            approve.output().contains("waiting for it"),
            "{}",
            approve.output()
        );
        Ok(())
    })
    .await?;
    lease.release().await;
    approve.exit(BOUND).await?;
    ensure!(
        approve.output().contains("nothing is held back"),
        "{}",
        approve.output()
    );
    Ok(())
}

#[tokio::test]
async fn the_service_tells_what_it_does() -> anyhow::Result<()> {
    let stand = Stand::in_real_time().await?;
    let directory = stand.sim.create_directory(DirectoryOptions::newer())?;
    stand.sim.seed(&directory, &Seed::default())?;
    stand.log(|number, _| number % 5 != 0).await?;
    // From when the catch-up was still on.
    sqlx::query("update dsync.duties set position = now() where duty = 'catch_up'")
        .execute(&stand.pool)
        .await?;
    let mut program = stand
        .program()
        .env("SWEEP_CLOCK_MARGIN", "1s")
        .env("EVENTS_POLL_INTERVAL", "0")
        .start()
        .await?;
    stand.agrees_soon().await?;
    eventually(BOUND, async || {
        let metrics = program.metrics().await?;
        ensure!(
            metrics.count("dsync_reconciler_sweep_seconds_count", &[]) >= 1.0,
            "not swept"
        );
        ensure!(
            metrics.get("dsync_reconciler_oldest_sweep_timestamp_seconds", &[])? > 1.0,
            "no time"
        );
        Ok(())
    })
    .await?;
    let metrics = program.metrics().await?;
    ensure!(
        metrics
            .get("dsync_reconciler_caught_up_timestamp_seconds", &[])?
            .abs()
            < 0.5,
        "it is off"
    );
    let missing = metrics.get("dsync_reconciler_drift_total", &[("kind", "missing")])?;
    ensure!(missing > 0.0, "{}", metrics.text());
    let answered = metrics.get(
        "dsync_reconciler_api_requests_total",
        &[("endpoint", "users"), ("status", "200")],
    )?;
    ensure!(answered >= 1.0);
    for name in ["dsync_reconciler_held_deletions", "dsync_build_info"] {
        metrics.get(name, &[])?;
    }
    ensure!(!metrics.text().contains(&directory), "a label per tenant");
    let status: (String, Option<time::OffsetDateTime>, Option<time::OffsetDateTime>, Option<i64>, i64) = sqlx::query_as(
        "select directory_id, last_event_at, last_swept_at, last_drift, held_deletions from directory.sync_status",
    )
    .fetch_one(&stand.pool)
    .await?;
    ensure!(
        status.0 == directory && status.1.is_some() && status.2.is_some(),
        "{status:?}"
    );
    ensure!(status.3 > Some(0) && status.4 == 0, "{status:?}");
    program.terminate().await
}

#[tokio::test]
async fn it_is_ready_when_all_three_answer() -> anyhow::Result<()> {
    let mut stand = Stand::up().await?;
    let mut program = stand.program().start().await?;
    ensure!(program.readiness().await? == 200);
    stand.nats.kill();
    eventually(BOUND, async || {
        ensure!(program.readiness().await? == 503, "still ready");
        Ok(())
    })
    .await?;
    stand.nats.start_again().await?;
    program.ready().await?;
    let mut wrong = stand.program().env("WORKOS_API_KEY", "sk_wrong").spawn()?;
    eventually(BOUND, async || {
        ensure!(wrong.readiness().await? == 503, "ready with a wrong key");
        Ok(())
    })
    .await?;
    wrong.terminate().await?;
    program.terminate().await
}
