//! One bad record stops nobody: it is set aside, and can be shown, retried or given up.

use anyhow::{Context as _, ensure};
use serde_json::Value;
use tests::{Output, eventually};
use workos_sim::{Change, Faults};

use crate::stand::{BOUND, Stand};

async fn letters(stand: &Stand, args: &[&str]) -> anyhow::Result<Output> {
    let mut program = stand.projector().arg("dead-letters");
    for arg in args {
        program = program.arg(*arg);
    }
    program.run().await
}

async fn waiting(stand: &Stand) -> anyhow::Result<i64> {
    stand
        .count("select count(*) from dsync.dead_letters where state = 'dead'")
        .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_postgres_refuses_is_set_aside_alone_and_applied_when_it_is_taken() -> anyhow::Result<()> {
    let stand = Stand::up().await?;
    // Any constraint that one record violates.
    sqlx::query("alter table dsync.users add constraint no_poison check (first_name <> 'Poison')")
        .execute(&stand.pool)
        .await?;
    let delivery = stand.deliver(Faults::none())?;
    let directory = stand.populate(20, 2)?.remove(0);
    for first_name in ["Fine", "Poison", "Good", "Poison"] {
        let user = stand.sim.create_user(&directory)?;
        let set = Change::fields(serde_json::json!({ "first_name": first_name }));
        stand.sim.change(Change::UpdateUser { user, set })?;
    }
    delivery.drained().await;
    // When the projector starts, everything is waiting: one batch with two bad records in it.
    let projector = stand.projector().start().await?;
    stand.applied().await?;
    ensure!(waiting(&stand).await? == 2, "two are set aside");
    ensure!(
        stand
            .count("select count(*) from directory.users where first_name in ('Fine', 'Good')")
            .await?
            == 2,
        "others"
    );
    ensure!(!projector.output().contains("Poison"), "a value was logged");

    let list: Vec<Value> = serde_json::from_str(&letters(&stand, &["list", "--json"]).await?.stdout)?;
    ensure!(list.len() == 2, "{list:?}");
    let reason = list[0]["reason"].as_str().context("a reason")?;
    ensure!(reason.contains("23514") && !reason.contains("Poison"), "{reason}");
    let id = list[0]["id"].to_string();
    ensure!(
        letters(&stand, &["show", &id]).await?.stdout.contains("Poison"),
        "`show` must print the content"
    );

    let failed = letters(&stand, &["retry", &id]).await?;
    ensure!(
        failed.status.code() == Some(1) && failed.stdout.contains("failed again"),
        "{}",
        failed.stdout
    );
    sqlx::query("alter table dsync.users drop constraint no_poison")
        .execute(&stand.pool)
        .await?;
    let retried = letters(&stand, &["retry", "--all"]).await?;
    ensure!(retried.status.success(), "{}{}", retried.stdout, retried.stderr);
    ensure!(waiting(&stand).await? == 0, "none is left");
    stand.agrees().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_understood_is_set_aside_once_and_can_be_given_up() -> anyhow::Result<()> {
    let stand = Stand::up().await?;
    let mut projector = stand.projector().start().await?;
    let nats = async_nats::connect(stand.nats.url()).await?;
    // Somebody published directly to the log.
    for body in [
        "",
        "not json",
        "{\"id\":\"event_1\",\"event\":\"dsync.user.created\",\"data\":{}}",
    ] {
        let log = async_nats::jetstream::new(nats.clone());
        log.publish("dsync.directory_x.user.directory_user_x.created", body.into())
            .await?
            .await?;
    }
    let delivery = stand.deliver(Faults::none())?;
    stand.populate(5, 1)?;
    delivery.drained().await;
    stand.agrees().await?;
    ensure!(waiting(&stand).await? == 3, "three are set aside");
    eventually(BOUND, async || {
        let shown = projector
            .metrics()
            .await?
            .get("dsync_projector_dead_letters", &[])?;
        ensure!((shown - 3.0).abs() < 0.5, "{shown}");
        Ok(())
    })
    .await?;
    let dropped = letters(&stand, &["drop", "1", "2", "3"]).await?;
    ensure!(dropped.status.success(), "{}", dropped.stdout);
    ensure!(
        letters(&stand, &["list"])
            .await?
            .stdout
            .contains("no dead letters"),
        "dropped"
    );

    // Reading the log again does not set them aside again.
    projector.terminate().await?;
    sqlx::query("update dsync.progress set seq = 0, seq_appended_at = null")
        .execute(&stand.pool)
        .await?;
    projector.start_again()?;
    projector.ready().await?;
    stand.agrees().await?;
    ensure!(waiting(&stand).await? == 0, "set aside again");
    let unknown = letters(&stand, &["retry", "99"]).await?;
    ensure!(
        unknown.status.code() == Some(1) && unknown.stdout.contains("no such"),
        "{}",
        unknown.stdout
    );
    Ok(())
}
