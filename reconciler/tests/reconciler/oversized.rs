//! Objects too large for the broker: what they take away is stored nevertheless.

use std::collections::BTreeSet;

use anyhow::{Context as _, ensure};
use serde_json::json;
use workos_sim::{Change, DirectoryOptions, Seed};

use crate::catching_up::HOLDBACK;
use crate::stand::{Stand, told};

/// More than the broker takes in one message, which is 1 MiB here.
const LARGE: usize = 1 << 20;

/// A directory that is in the tables, with some users and a group. Then all of them get too large, one user is
/// deactivated, one leaves the group, and the first one's job title changes.
async fn grown(stand: &Stand) -> anyhow::Result<Grown> {
    let directory = stand.sim.create_directory(DirectoryOptions::newer())?;
    let seeded = stand.sim.seed(&directory, &Seed::default())?;
    let (users, group) = (&seeded.users[..3], &seeded.groups[0]);
    stand.sim.add_member(group, &users[2])?;
    stand.log_all().await?;
    stand.agrees().await?;
    stand.settle();
    let large = "x".repeat(LARGE);
    for (user, set) in [
        (&users[0], json!({ "job_title": "Cook" })),
        (&users[1], json!({ "state": "inactive" })),
        (&users[2], json!({})),
    ] {
        let mut set = set;
        set["raw_attributes"] = json!({ "photo": large });
        stand.sim.change(Change::UpdateUser {
            user: user.clone(),
            set: Change::fields(set),
        })?;
    }
    stand.sim.remove_member(group, &users[2])?;
    Ok(Grown {
        directory,
        group: group.clone(),
        users: users.to_vec(),
    })
}

struct Grown {
    directory: String,
    group: String,
    users: Vec<String>,
}

impl Grown {
    /// What was taken away is gone, and nothing else.
    async fn is_gone(&self, stand: &Stand) -> anyhow::Result<()> {
        let [changed, deactivated, left] = &self.users[..] else {
            anyhow::bail!("{:?}", self.users);
        };
        ensure!(now(stand, changed, &self.group).await?.0);
        ensure!(!now(stand, deactivated, &self.group).await?.0);
        ensure!(now(stand, left, &self.group).await? == (true, false));
        Ok(())
    }
}

/// Whether the user is active, and whether the group has the user.
async fn now(stand: &Stand, user: &str, group: &str) -> anyhow::Result<(bool, bool)> {
    stand.applied().await?;
    let asked =
        "select active, exists (select from directory.memberships where user_id = id and group_id = $2)
                 from directory.users where id = $1";
    Ok(sqlx::query_as(asked)
        .bind(user)
        .bind(group)
        .fetch_one(&stand.pool)
        .await?)
}

#[tokio::test]
async fn a_removal_too_large_for_the_log_is_caught_up_without_the_attributes() -> anyhow::Result<()> {
    let stand = Stand::up().await?;
    let mut catch_up = stand.catch_up(HOLDBACK);
    catch_up.poll().await?.context("no lease")?;
    let grown = grown(&stand).await?;
    let end = stand.log_end().await?;
    let polled = catch_up.poll().await?.context("no lease")?;
    // What takes nothing away is left out, as before.
    ensure!(
        polled.recovered == 2 && stand.log_end().await? == end + 2,
        "{polled:?}"
    );
    grown.is_gone(&stand).await?;
    Ok(())
}

#[tokio::test]
async fn a_deactivation_too_large_for_the_log_is_swept_without_the_attributes() -> anyhow::Result<()> {
    let stand = Stand::up().await?;
    let grown = grown(&stand).await?;
    stand.log(|_, _| false).await?;
    stand.settle();
    let report = stand.sweep(&grown.directory).await?;
    ensure!(report.unreadable == 2, "{report:?}");
    grown.is_gone(&stand).await?;
    // As much of it as the log takes is shown, so it differs no longer. The others still do.
    let end = stand.log_end().await?;
    stand.settle();
    let report = stand.sweep(&grown.directory).await?;
    let found: BTreeSet<String> = report.drift.iter().map(told).collect();
    let others = [&grown.users[0], &grown.users[2]];
    ensure!(
        found == others.map(|user| format!("user differs {user}")).into() && stand.log_end().await? == end,
        "{report:?}"
    );
    // Unless something else about it changes.
    stand.sim.change(Change::UpdateUser {
        user: grown.users[1].clone(),
        set: Change::fields(json!({ "job_title": "Cook", "state": "suspended" })),
    })?;
    stand.log(|_, _| false).await?;
    stand.settle();
    stand.sweep(&grown.directory).await?;
    ensure!(stand.log_end().await? == end + 1);
    Ok(())
}
