//! A log that no longer reaches back to its beginning: the reconciler lists again what a rebuild from it would lose.

use std::time::Duration;

use anyhow::{Context as _, ensure};
use serde_json::Value;
use tests::{Output, Program};
use workos_sim::{Change, DirectoryOptions, Seed};

use crate::stand::Stand;

async fn projector(stand: &Stand, args: &[&str]) -> anyhow::Result<Output> {
    let mut program = Program::new("dsync-projector")
        .env("DATABASE_URL", stand.postgres.url())
        .env("NATS_URL", stand.nats.url());
    for arg in args {
        program = program.arg(*arg);
    }
    program.run().await
}

/// The log forgets all but its newest records, as its max age would make it do.
async fn forget_all_but(stand: &Stand, keep: u64) -> anyhow::Result<()> {
    let nats = async_nats::connect(stand.nats.url()).await?;
    let stream = async_nats::jetstream::new(nats).get_stream("DSYNC").await?;
    let end = stand.log_end().await?;
    stream.purge().sequence(end - keep + 1).await?;
    Ok(())
}

#[tokio::test]
async fn a_log_without_its_beginning_is_completed_from_workos_before_a_rebuild() -> anyhow::Result<()> {
    let stand = Stand::in_real_time().await?;
    let seed = Seed {
        users: 40,
        groups: 4,
        ..Seed::default()
    };
    for options in [DirectoryOptions::default(), DirectoryOptions::newer()] {
        let directory = stand.sim.create_directory(options)?;
        stand.sim.seed(&directory, &seed)?;
    }
    let events = stand.sim.events();
    let hired = events.iter().find(|event| event.kind == "dsync.user.created");
    let hired = hired.context("nobody was hired")?;
    let user = hired.json()["data"]["id"].as_str().context("an id")?.to_owned();
    stand.sim.change(Change::DeleteUser {
        user: user.clone(),
        removals: false,
    })?;
    stand.log_all().await?;
    stand.agrees().await?;
    forget_all_but(&stand, 5).await?;

    let output = projector(&stand, &["verify", "--json"]).await?;
    ensure!(output.status.success(), "{output:?}");
    let told: Value = serde_json::from_str(&output.stdout)?;
    ensure!(told["differences"] == serde_json::json!([]), "{told}");
    ensure!(
        told["complete_since"].is_string() && !told["older"][0]["some"][0].is_null(),
        "{told}"
    );
    let output = projector(&stand, &["rebuild"]).await?;
    ensure!(
        output.status.code() == Some(1) && output.stderr.contains("rebuild --sweep"),
        "{output:?}"
    );
    stand.agrees().await?;

    sqlx::raw_sql("update dsync.users set email = 'tampered' where seen_at > gone_at")
        .execute(&stand.pool)
        .await?;
    let _reconciler = stand
        .program()
        .env("SWEEP_CLOCK_MARGIN", "1s")
        .env("EVENTS_POLL_INTERVAL", "0")
        .start()
        .await?;
    let output = projector(&stand, &["rebuild", "--sweep", "--json"]).await?;
    ensure!(output.status.success(), "{output:?}");
    stand.agrees_soon().await?;
    let missing = stand
        .count("select count(*) from dsync.users as u where not exists
             (select from dsync.sweeps as s where s.directory_id = u.directory_id and s.relisted_at >= s.relist_at)")
        .await?;
    ensure!(missing == 0, "every directory was listed");

    // What was gone before the log began is still gone: a late webhook does not bring it back.
    stand.append(hired).await?;
    ensure!(!stand.shows_user(&user).await?, "resurrected");
    let output = projector(&stand, &["verify"]).await?;
    ensure!(output.status.success(), "{output:?}");
    Ok(())
}

#[tokio::test]
async fn a_rebuild_that_waits_for_lists_nobody_makes_stops_when_told() -> anyhow::Result<()> {
    let stand = Stand::in_real_time().await?;
    let directory = stand.sim.create_directory(DirectoryOptions::default())?;
    stand.sim.seed(&directory, &Seed::default())?;
    stand.log_all().await?;
    stand.agrees().await?;
    forget_all_but(&stand, 2).await?;
    let output = projector(&stand, &["rebuild", "--sweep"]).await?;
    ensure!(output.stderr.contains("start dsync-reconciler"), "{output:?}");
    sqlx::query("insert into dsync.sweeps (directory_id) values ($1)")
        .bind(&directory)
        .execute(&stand.pool)
        .await?;
    let waiting = projector(&stand, &["rebuild", "--sweep"]);
    let ended = tokio::time::timeout(Duration::from_secs(3), waiting).await;
    ensure!(ended.is_err(), "nobody has listed anything: {ended:?}");
    stand.agrees().await
}
