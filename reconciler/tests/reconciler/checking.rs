//! Objects in doubt are read at once and again after the margin, not at the next pass.

use std::time::Duration;

use anyhow::ensure;
use workos_sim::{Change, DirectoryOptions, Seed};

use crate::stand::{MARGIN, Stand, drift, told};

async fn seeded() -> anyhow::Result<(Stand, String, Vec<String>, Vec<String>)> {
    let stand = Stand::up().await?;
    let directory = stand.sim.create_directory(DirectoryOptions::newer())?;
    let seeded = stand.sim.seed(&directory, &Seed::default())?;
    stand.log_all().await?;
    stand.agrees().await?;
    stand.settle();
    Ok((stand, directory, seeded.users, seeded.groups))
}

#[tokio::test]
async fn memberships_of_a_user_that_came_back_are_read_anew() -> anyhow::Result<()> {
    let (stand, _, users, groups) = seeded().await?;
    let user = &users[0];
    stand.sim.add_member(&groups[0], user)?;
    stand.log_all().await?;
    ensure!(stand.shows_member(&groups[0], user).await?);
    stand.settle();
    // Announced as deleted though it was kept, and later announced again, without a word of its memberships.
    stand.sim.change(Change::AnnounceDeleted { user: user.clone() })?;
    stand.log_all().await?;
    ensure!(!stand.shows_user(user).await?);
    stand.advance(Duration::from_secs(30));
    stand.sim.change(Change::ReannounceUser { user: user.clone() })?;
    stand.log_all().await?;
    ensure!(stand.shows_user(user).await? && !stand.shows_member(&groups[0], user).await?);
    // Too early to tell: a reading speaks for a moment before it was gone.
    stand.check().await?;
    ensure!(!stand.shows_member(&groups[0], user).await?);
    stand.advance(MARGIN);
    ensure!(stand.check().await? >= 1);
    ensure!(stand.shows_member(&groups[0], user).await?, "still void");
    stand.agrees().await?;
    ensure!(
        stand.count("select count(*) from dsync.checks").await? == 0,
        "still in doubt"
    );
    ensure!(stand.check().await? == 0);
    Ok(())
}

#[tokio::test]
async fn what_an_event_spoke_of_after_it_was_gone_is_looked_at() -> anyhow::Result<()> {
    let (stand, directory, users, groups) = seeded().await?;
    // Deleted, and its memberships said to be removed afterwards: the user's updated_at did not move.
    let (gone, kept) = (&users[0], &users[1]);
    stand.sim.add_member(&groups[0], kept)?;
    stand.sim.add_member(&groups[1], gone)?;
    stand.sim.change(Change::AnnounceDeleted { user: kept.clone() })?;
    stand.log_all().await?;
    stand.advance(Duration::from_secs(2));
    stand.sim.remove_member(&groups[0], kept)?;
    stand.sim.change(Change::DeleteUser {
        user: gone.clone(),
        removals: true,
    })?;
    stand.log_all().await?;
    ensure!(!stand.shows_user(kept).await? && !stand.shows_user(gone).await?);
    let in_doubt = stand.count("select count(*) from dsync.checks").await?;
    ensure!(in_doubt >= 1, "nobody in doubt");
    stand.settle();
    for _ in 0..3 {
        stand.check().await?;
        stand.advance(Duration::from_secs(15));
    }
    ensure!(stand.shows_user(kept).await?, "WorkOS has it");
    ensure!(!stand.shows_user(gone).await?, "resurrected");
    ensure!(
        stand.count("select count(*) from dsync.checks").await? == 0,
        "still in doubt"
    );
    stand.settle();
    drift(&stand.sweep(&directory).await?);
    stand.agrees().await
}

#[tokio::test]
async fn what_a_sweep_found_too_young_is_read_again_and_not_before_it_can_tell() -> anyhow::Result<()> {
    let (stand, directory, users, _) = seeded().await?;
    stand.sim.change(Change::DeleteUser {
        user: users[0].clone(),
        removals: false,
    })?;
    // Seen a moment ago, and gone since without a word.
    let fresh = stand.sim.create_user(&directory)?;
    stand.log_all().await?;
    stand.sim.change(Change::DeleteUser {
        user: fresh.clone(),
        removals: false,
    })?;
    stand.log(|_, _| false).await?;
    let report = stand.sweep(&directory).await?;
    let young: Vec<String> = report.too_young.iter().map(told).collect();
    ensure!(young == [format!("user extra {fresh}")], "{young:?}");
    ensure!(stand.check().await? == 0, "read before it can tell");
    stand.advance(MARGIN + Duration::from_secs(2));
    ensure!(stand.check().await? == 1);
    ensure!(!stand.shows_user(&fresh).await?);
    ensure!(stand.count("select count(*) from dsync.rereads").await? == 0);
    stand.agrees().await
}

#[tokio::test]
async fn a_directory_that_came_back_is_swept_out_of_turn() -> anyhow::Result<()> {
    let (stand, _, users, _) = seeded().await?;
    stand.pass().await;
    // An event says it was deleted, and a later one that it is there; what it holds is void until it is seen again.
    sqlx::query("update dsync.directories set gone_at = now() + interval '1 second', seen_at = now() + interval '2 seconds'")
        .execute(&stand.pool)
        .await?;
    ensure!(!stand.shows_user(&users[0]).await?);
    let mut program = stand.program().env("SWEEP_CLOCK_MARGIN", "0s").start().await?;
    stand.agrees_soon().await?;
    ensure!(
        stand
            .count("select count(*) from dsync.sweeps where drift > 0")
            .await?
            == 1
    );
    program.terminate().await?;
    ensure!(
        stand
            .count("select count(*) from directory.sync_status where last_drift > 0")
            .await?
            == 1
    );
    Ok(())
}
