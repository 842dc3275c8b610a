//! Sweeps find and repair whatever the log missed, and find nothing where nothing is wrong.

use anyhow::{Context as _, ensure};
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use reconciler::memberships::Way;
use serde_json::json;
use workos_sim::{Change, DirectoryOptions, Seed};

use crate::scripted::{client, edited};
use crate::stand::{Stand, drift, sweep_with, told};

#[tokio::test]
async fn with_a_third_of_the_webhooks_lost_one_pass_makes_all_equal_and_a_second_finds_nothing()
-> anyhow::Result<()> {
    let stand = Stand::up().await?;
    for options in [
        DirectoryOptions::default(),
        DirectoryOptions::newer(),
        DirectoryOptions::awkward(),
    ] {
        let directory = stand.sim.create_directory(options)?;
        let seed = Seed {
            users: 150,
            groups: 12,
            ..Seed::default()
        };
        stand.sim.seed(&directory, &seed)?;
    }
    stand.sim.burst(300)?;
    let mut rng = StdRng::seed_from_u64(7);
    let chances: Vec<bool> = (0..stand.sim.events().len())
        .map(|_| rng.random_bool(0.7))
        .collect();
    let lost = stand.log(|number, _| chances[number]).await?;
    ensure!(lost > 200, "{lost} lost");
    ensure!(stand.agrees().await.is_err(), "nothing to repair");
    stand.settle();
    let first = stand.pass().await;
    ensure!(!first.is_incomplete(), "{}", first.text());
    ensure!(first.has_drift());
    for report in &first.directories {
        ensure!(
            report.too_young.is_empty() && report.older.is_empty(),
            "{}",
            first.text()
        );
        let way = report.memberships_read.context("not read")?;
        ensure!(matches!(way, Way::Field | Way::ByGroup), "{way:?}");
    }
    stand.agrees().await?;
    let end = stand.log_end().await?;
    stand.settle();
    let second = stand.pass().await;
    ensure!(
        !second.is_incomplete() && !second.has_drift(),
        "{}",
        second.text()
    );
    ensure!(stand.log_end().await? == end, "the second pass appended");
    Ok(())
}

#[tokio::test]
async fn drift_in_every_direction_is_found_once_with_its_columns() -> anyhow::Result<()> {
    let stand = Stand::up().await?;
    let directory = stand.sim.create_directory(DirectoryOptions::newer())?;
    let seeded = stand.sim.seed(&directory, &Seed::default())?;
    stand.log_all().await?;
    stand.agrees().await?;
    stand.settle();
    let (users, groups) = (&seeded.users, &seeded.groups);
    let new_user = stand.sim.create_user(&directory)?;
    let new_group = stand.sim.create_group(&directory, "New")?;
    stand.sim.add_member(&new_group, &users[0])?;
    stand.sim.change(Change::UpdateUser {
        user: users[1].clone(),
        set: Change::fields(json!({ "email": "moved@example.com", "state": "inactive" })),
    })?;
    stand.sim.change(Change::DeleteUser {
        user: users[2].clone(),
        removals: false,
    })?;
    stand.sim.change(Change::DeleteGroup {
        group: groups[1].clone(),
    })?;
    stand.sim.change(Change::AssignRole {
        group: new_group.clone(),
        role: Some("owner".to_owned()),
    })?;
    // None of that reaches the log.
    stand.log(|_, _| false).await?;
    stand.settle();
    let dry = reconciler::command::pass(
        &stand.work,
        Some(&directory),
        reconciler::sweep::Mode {
            dry_run: true,
            values: true,
        },
    )
    .await;
    let dry_drift: Vec<String> = dry.directories[0].drift.iter().map(told).collect();
    let report = stand.sweep(&directory).await?;
    let found = drift(&report);
    ensure!(found == dry_drift, "{found:?} {dry_drift:?}");
    for expected in [
        format!("user missing {new_user}"),
        format!("group missing {new_group}"),
        format!("membership missing {new_group}/{}", users[0]),
        format!("user differs {}", users[1]),
        format!("user extra {}", users[2]),
        format!("group extra {}", groups[1]),
    ] {
        ensure!(found.contains(&expected), "{expected} is not in {found:?}");
    }
    let changed = dry.directories[0]
        .drift
        .iter()
        .find(|one| one.id == users[1])
        .context("gone")?;
    for column in ["email", "state", "custom_attributes", "updated_at"] {
        ensure!(changed.columns.iter().any(|one| one == column), "{changed:?}");
    }
    let values = changed.values.as_ref().context("no values")?;
    ensure!(values["email"]["workos"] == "moved@example.com", "{values}");
    // A role changes without the user's updated_at.
    let owner = dry.directories[0]
        .drift
        .iter()
        .find(|one| one.id == users[0])
        .context("gone")?;
    ensure!(owner.columns.contains(&"role".to_owned()), "{owner:?}");
    stand.agrees().await?;
    stand.settle();
    ensure!(drift(&stand.sweep(&directory).await?).is_empty());
    let drift_column = stand
        .count("select last_drift from directory.sync_status")
        .await?;
    ensure!(drift_column == 0);
    Ok(())
}

#[tokio::test]
async fn memberships_are_read_in_the_cheapest_complete_way() -> anyhow::Result<()> {
    let stand = Stand::up().await?;
    let many = Seed {
        users: 250,
        groups: 4,
        ..Seed::default()
    };
    let few = Seed {
        users: 5,
        groups: 40,
        ..Seed::default()
    };
    for (options, seed, way) in [
        (DirectoryOptions::default(), &many, Way::Field),
        (DirectoryOptions::newer(), &many, Way::ByGroup),
        (DirectoryOptions::newer(), &few, Way::ByUser),
    ] {
        let directory = stand.sim.create_directory(options)?;
        stand.sim.seed(&directory, seed)?;
        stand.log_all().await?;
        stand.applied().await?;
        stand.settle();
        let report = stand.sweep(&directory).await?;
        ensure!(drift(&report).is_empty(), "{report:?}");
        ensure!(report.memberships_read == Some(way), "{report:?}");
        let expected = match way {
            Way::Field => 1..=9,
            Way::ByGroup => 4..=12,
            _ => 5..=5,
        };
        ensure!(expected.contains(&report.membership_requests), "{report:?}");
    }
    stand.agrees().await
}

#[tokio::test]
async fn groups_that_are_never_filled_are_not_read_as_member_of_nothing() -> anyhow::Result<()> {
    let stand = Stand::up().await?;
    let directory = stand.sim.create_directory(DirectoryOptions::newer())?;
    stand.sim.seed(&directory, &Seed::default())?;
    stand.log_all().await?;
    stand.agrees().await?;
    ensure!(stand.count("select count(*) from directory.memberships").await? > 20);
    stand.settle();
    let report = stand.sweep(&directory).await?;
    ensure!(drift(&report).is_empty() && report.held.is_empty(), "{report:?}");
    stand.agrees().await
}

#[tokio::test]
async fn a_directory_that_is_gone_and_one_that_is_new_are_noticed() -> anyhow::Result<()> {
    let stand = Stand::up().await?;
    let kept = stand.sim.create_directory(DirectoryOptions::default())?;
    let gone = stand.sim.create_directory(DirectoryOptions::default())?;
    stand.sim.seed(&gone, &Seed::default())?;
    stand.log_all().await?;
    stand.agrees().await?;
    stand.settle();
    stand.sim.change(Change::DeleteDirectory {
        directory: gone.clone(),
    })?;
    let new = stand.sim.create_directory(DirectoryOptions::newer())?;
    stand.sim.seed(&new, &Seed::default())?;
    stand.log(|_, _| false).await?;
    stand.settle();
    let report = stand.pass().await;
    let of = |id: &str| -> Vec<String> {
        let directory = report.directories.iter().find(|one| one.directory_id == id);
        directory
            .map(|one| one.drift.iter().map(told).collect())
            .unwrap_or_default()
    };
    ensure!(
        of(&gone) == [format!("directory extra {gone}")],
        "{}",
        report.text()
    );
    ensure!(
        of(&new).contains(&format!("directory missing {new}")),
        "{}",
        report.text()
    );
    ensure!(of(&kept).is_empty(), "{}", report.text());
    stand.agrees().await?;
    stand.settle();
    let report = stand.pass().await;
    ensure!(
        !report.has_drift() && !report.is_incomplete(),
        "{}",
        report.text()
    );
    // When read by its id, it is gone, too, and that is no longer drift.
    let one = stand.sweep(&gone).await?;
    ensure!(one.error.is_some() && one.drift.is_empty(), "{one:?}");
    Ok(())
}

#[tokio::test]
async fn who_is_erased_stays_so() -> anyhow::Result<()> {
    let stand = Stand::up().await?;
    let directory = stand.sim.create_directory(DirectoryOptions::default())?;
    let seeded = stand.sim.seed(&directory, &Seed::default())?;
    stand.log_all().await?;
    stand.agrees().await?;
    let user = &seeded.users[0];
    for sql in [
        "insert into dsync.erased (user_id, erased_at) values ($1, now())",
        "delete from dsync.users where id = $1",
        "delete from dsync.memberships where user_id = $1",
    ] {
        sqlx::query(sql).bind(user).execute(&stand.pool).await?;
    }
    stand.settle();
    let end = stand.log_end().await?;
    let report = stand.sweep(&directory).await?;
    ensure!(drift(&report).is_empty(), "{report:?}");
    ensure!(stand.log_end().await? == end);
    Ok(())
}

#[tokio::test]
async fn a_groups_field_that_is_filled_for_some_only_is_not_believed() -> anyhow::Result<()> {
    let stand = Stand::up().await?;
    let directory = stand.sim.create_directory(DirectoryOptions::default())?;
    let seed = Seed {
        users: 120,
        ..Seed::default()
    };
    stand.sim.seed(&directory, &seed)?;
    stand.log(|number, _| number % 6 != 0).await?;
    stand.applied().await?;
    stand.settle();
    // All but one of those that say they are in no group are right, so asking some of them proves nothing.
    let wrong: String = sqlx::query_scalar("select min(user_id) from directory.memberships")
        .fetch_one(&stand.pool)
        .await?;
    let url = edited(&stand.sim, move |path, object| {
        if path.starts_with("/directory_users?directory=") && object["id"] == wrong.as_str() {
            object["groups"] = json!([]);
        }
    })
    .await?;
    let work = reconciler::work::Work {
        api: client(&url)?,
        ..stand.work.clone()
    };
    let report = sweep_with(&work, &directory).await?;
    drift(&report);
    ensure!(report.memberships_read == Some(Way::ByGroup), "{report:?}");
    ensure!(report.held.is_empty(), "{report:?}");
    stand.agrees().await
}
