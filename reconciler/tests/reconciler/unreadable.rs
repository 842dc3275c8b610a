//! What cannot be read, or makes a sweep panic, keeps nothing else from being repaired.

use std::time::Duration;

use anyhow::{Context as _, ensure};
use reconciler::work::Work;
use serde_json::json;
use workos_sim::{Change, DirectoryOptions, Seed};

use crate::checking::{doubt, seeded};
use crate::scripted::{client_bearing, failing};
use crate::stand::{Stand, drift, sweep_with, told};

/// A reconciler that sends its requests to `url`, with little patience.
fn asking(stand: &Stand, url: &str) -> anyhow::Result<Work> {
    Ok(Work {
        api: client_bearing(url, Duration::from_millis(300))?,
        ..stand.work.clone()
    })
}

#[tokio::test]
async fn one_object_that_cannot_be_read_keeps_no_other_from_being_repaired() -> anyhow::Result<()> {
    let stand = Stand::up().await?;
    let directory = stand.sim.create_directory(DirectoryOptions::newer())?;
    let seeded = stand.sim.seed(&directory, &Seed::default())?;
    let (users, groups) = (seeded.users, seeded.groups);
    for user in &users[3..5] {
        stand.sim.add_member(&groups[0], user)?;
    }
    stand.log_all().await?;
    stand.agrees().await?;
    stand.settle();
    for user in &users[..2] {
        let user = user.clone();
        stand.sim.change(Change::DeleteUser {
            user,
            removals: false,
        })?;
    }
    stand.sim.change(Change::UpdateUser {
        user: users[2].clone(),
        set: Change::fields(json!({ "state": "inactive" })),
    })?;
    for user in &users[3..5] {
        stand.sim.remove_member(&groups[0], user)?;
    }
    stand.log(|_, _| false).await?;
    stand.settle();
    // Two users are gone and two have left a group; of each pair, one cannot be read.
    let never = [
        format!("/directory_users/{}", users[0]),
        format!("user={}", users[3]),
    ];
    let (url, _) = failing(&stand.sim, move |path| {
        never.iter().any(|part| path.contains(part))
    })
    .await?;
    let work = asking(&stand, &url)?;
    let report = sweep_with(&work, &directory).await?;
    let error = report.error.as_deref().context("no error")?;
    ensure!(
        !report.complete && error.contains("are gone (user: 1)"),
        "{error}"
    );
    let found: Vec<String> = report.drift.iter().map(told).collect();
    let (mut extra, others): (Vec<&String>, Vec<&String>) =
        found.iter().partition(|one| one.contains(" extra "));
    extra.sort();
    let mut expected = [
        format!("user extra {}", users[1]),
        format!("membership extra {}/{}", groups[0], users[4]),
    ];
    expected.sort();
    ensure!(
        extra == expected.iter().collect::<Vec<_>>() && report.held.is_empty(),
        "{found:?}"
    );
    ensure!(
        others.contains(&&format!("user differs {}", users[2])),
        "{found:?}"
    );
    // What could not be read is unchanged.
    ensure!(stand.shows_user(&users[0]).await? && !stand.shows_user(&users[1]).await?);
    ensure!(
        stand.shows_member(&groups[0], &users[3]).await?
            && !stand.shows_member(&groups[0], &users[4]).await?
    );
    ensure!(
        stand
            .count("select count(*) from dsync.sweeps where swept_at is null and failures = 1")
            .await?
            == 1,
        "noted as swept"
    );
    stand.settle();
    ensure!(drift(&stand.sweep(&directory).await?).len() == 2);
    stand.agrees().await
}

#[tokio::test]
async fn a_panic_in_one_directory_stops_nothing_else_and_is_not_repeated_at_once() -> anyhow::Result<()> {
    let stand = Stand::up().await?;
    let mut seeded = Vec::new();
    for _ in 0..2 {
        let directory = stand.sim.create_directory(DirectoryOptions::newer())?;
        let users = stand.sim.seed(&directory, &Seed::default())?.users;
        seeded.push((directory, users));
    }
    stand.log_all().await?;
    stand.agrees().await?;
    // A time that no program writes, and that the reconciler's clock cannot hold.
    let [(odd, odd_users), (other, other_users)] = &seeded[..] else {
        unreachable!()
    };
    sqlx::query("update dsync.users set seen_at = 'infinity' where id = $1")
        .bind(&odd_users[0])
        .execute(&stand.pool)
        .await?;
    for user in [&odd_users[0], &other_users[0]] {
        stand.sim.change(Change::DeleteUser {
            user: user.clone(),
            removals: false,
        })?;
    }
    stand.log(|_, _| false).await?;
    stand.settle();
    let report = stand.sweep(odd).await?;
    ensure!(
        report
            .error
            .as_deref()
            .is_some_and(|error| error.contains("panicked")),
        "{report:?}"
    );
    let waiting = "select count(*) from dsync.sweeps where failures = 1 and retry_at > now()";
    ensure!(
        stand.count(waiting).await? == 1,
        "it would be swept again at once"
    );
    let report = stand.sweep(other).await?;
    ensure!(report.error.is_none(), "{report:?}");
    ensure!(!stand.shows_user(&other_users[0]).await?);
    // The same where single objects are read.
    stand.sim.change(Change::DeleteUser {
        user: odd_users[1].clone(),
        removals: false,
    })?;
    stand.log(|_, _| false).await?;
    stand.settle();
    sqlx::query(
        "insert into dsync.rereads (target, id, directory_id, due_at)
         select 'user', u.id, u.directory_id, '-infinity' from dsync.users as u where u.id = any($1)",
    )
    .bind(&odd_users[..2])
    .execute(&stand.pool)
    .await?;
    ensure!(stand.check().await? == 2);
    ensure!(!stand.shows_user(&odd_users[1]).await?);
    Ok(())
}

#[tokio::test]
async fn a_directory_that_cannot_be_read_keeps_no_other_from_being_listed() -> anyhow::Result<()> {
    let stand = Stand::up().await?;
    let mut directories = Vec::new();
    for _ in 0..3 {
        directories.push(stand.sim.create_directory(DirectoryOptions::newer())?);
    }
    stand.log_all().await?;
    stand.agrees().await?;
    stand.settle();
    for directory in &directories[..2] {
        let directory = directory.clone();
        stand.sim.change(Change::DeleteDirectory { directory })?;
    }
    let new = stand.sim.create_directory(DirectoryOptions::newer())?;
    stand.log(|_, _| false).await?;
    stand.settle();
    let never = format!("/directories/{}", directories[0]);
    let (url, _) = failing(&stand.sim, move |path| path.contains(&never)).await?;
    let work = asking(&stand, &url)?;
    let report = reconciler::command::pass(&work, None, reconciler::sweep::Mode::default()).await;
    let error = report.error.as_deref().context("no error")?;
    ensure!(error.contains("are gone (directory: 1)"), "{error}");
    let found: Vec<String> = report
        .directories
        .iter()
        .flat_map(|one| &one.drift)
        .map(told)
        .collect();
    ensure!(
        found.contains(&format!("directory extra {}", directories[1]))
            && found.contains(&format!("directory missing {new}"))
            && found.len() == 2,
        "{}",
        report.text()
    );
    // What could not be read is unchanged.
    stand.applied().await?;
    ensure!(stand.count("select count(*) from directory.directories").await? == 3);
    stand.pass().await;
    stand.agrees().await
}

#[tokio::test]
async fn times_that_no_program_writes_keep_no_other_doubt_waiting() -> anyhow::Result<()> {
    let (stand, _, users, _) = seeded().await?;
    for user in &users[..3] {
        doubt(&stand, user).await?;
    }
    for (user, set) in users.iter().zip([
        "version_observed_at = 'infinity'",
        "seen_at = '-infinity', gone_at = '-infinity'",
    ]) {
        let set = format!("update dsync.users set {set} where id = $1");
        sqlx::query(sqlx::AssertSqlSafe(set))
            .bind(user)
            .execute(&stand.pool)
            .await?;
    }
    ensure!(stand.count("select count(*) from dsync.checks").await? == 3);
    ensure!(stand.check().await? == 3);
    ensure!(!stand.shows_user(&users[0]).await?, "not compared, yet repaired");
    ensure!(stand.shows_user(&users[1]).await? && stand.shows_user(&users[2]).await?);
    Ok(())
}

#[tokio::test]
async fn a_group_whose_members_cannot_be_read_keeps_nothing_else_from_being_repaired() -> anyhow::Result<()> {
    let (stand, directory, users, groups) = seeded().await?;
    for group in &groups[..2] {
        stand.sim.add_member(group, &users[0])?;
    }
    stand.log_all().await?;
    stand.agrees().await?;
    stand.settle();
    for group in &groups[..2] {
        stand.sim.remove_member(group, &users[0])?;
    }
    stand.sim.change(Change::DeleteUser {
        user: users[1].clone(),
        removals: false,
    })?;
    stand.log(|_, _| false).await?;
    stand.settle();
    let never = format!("group={}", groups[0]);
    let (url, _) = failing(&stand.sim, move |path| path.contains(&never)).await?;
    let report = sweep_with(&asking(&stand, &url)?, &directory).await?;
    let error = report.error.as_deref().context("no error")?;
    ensure!(!report.complete && error.contains("(membership: 1)"), "{error}");
    ensure!(!stand.shows_user(&users[1]).await?, "{report:?}");
    ensure!(!stand.shows_member(&groups[1], &users[0]).await?, "{report:?}");
    ensure!(stand.shows_member(&groups[0], &users[0]).await?, "{report:?}");
    stand.settle();
    ensure!(
        drift(&stand.sweep(&directory).await?) == [format!("membership extra {}/{}", groups[0], users[0])]
    );
    stand.agrees().await
}
