//! Objects in doubt are read at once and again after the margin, not at the next pass.

use std::collections::BTreeSet;
use std::sync::PoisonError;
use std::time::Duration;

use anyhow::ensure;
use reconciler::checks::Checker;
use reconciler::work::Work;
use workos_sim::{Change, DirectoryOptions, Seed};

use crate::scripted::{client_bearing, failing};
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

#[tokio::test]
async fn targets_that_cannot_be_read_keep_no_other_waiting() -> anyhow::Result<()> {
    let (stand, _, mut users, groups) = seeded().await?;
    users.truncate(4);
    users.sort();
    for user in &users {
        stand.sim.add_member(&groups[0], user)?;
        stand.sim.change(Change::AnnounceDeleted { user: user.clone() })?;
    }
    stand.log_all().await?;
    stand.advance(Duration::from_secs(2));
    for user in &users {
        stand.sim.remove_member(&groups[0], user)?;
    }
    stand.log_all().await?;
    stand.settle();
    let (good, bad) = (users[3].clone(), users[..3].to_vec());
    let never = move |path: &str| {
        bad.iter()
            .any(|user| path.contains(&format!("/directory_users/{user}")))
    };
    let (url, asked) = failing(&stand.sim, never).await?;
    let mut checker = Checker::new(Work {
        api: client_bearing(&url, Duration::from_millis(300))?,
        ..stand.work.clone()
    });
    stand.applied().await?;
    ensure!(checker.round().await? == 4);
    stand.advance(Duration::from_secs(15));
    // All are due again. Those that were not tried yet come first: one more that fails, and the good one.
    ensure!(checker.round().await? == 4);
    ensure!(stand.shows_user(&good).await?, "kept waiting");
    // Of the three, two were tried in that round.
    asked.lock().unwrap_or_else(PoisonError::into_inner).clear();
    checker.round().await?;
    let tried = asked.lock().unwrap_or_else(PoisonError::into_inner).clone();
    let tried: BTreeSet<&String> = tried
        .iter()
        .filter(|path| path.contains("/directory_users/"))
        .collect();
    ensure!(
        tried.len() == 1 && tried.iter().all(|path| path.ends_with(&users[1])),
        "not put off: {tried:?}"
    );
    ensure!(
        stand
            .count("select count(*) from dsync.checks where target = 'user'")
            .await?
            == 3
    );
    // Once they can be read, they are.
    stand.check().await?;
    for user in &users {
        ensure!(stand.shows_user(user).await?, "{user} is not back");
    }
    Ok(())
}

#[tokio::test]
async fn very_many_doubts_of_one_directory_do_not_hide_those_of_another() -> anyhow::Result<()> {
    let (stand, _, users, _) = seeded().await?;
    let many = stand.sim.create_directory(DirectoryOptions::newer())?;
    let seed = Seed {
        users: 1_050,
        groups: 1,
        ..Seed::default()
    };
    stand.sim.seed(&many, &seed)?;
    stand.log_all().await?;
    stand.applied().await?;
    stand.settle();
    // An event spoke of each after it was gone; of the one in the other directory last.
    sqlx::query(
        "update dsync.users set version_observed_at = now() - interval '70 s',
            gone_at = now() - case directory_id when $1 then interval '80 s' else interval '75 s' end,
            seen_at = now() - interval '90 s'
        where directory_id = $1 or id = $2",
    )
    .bind(&many)
    .bind(&users[0])
    .execute(&stand.pool)
    .await?;
    stand.settle();
    stand.sim.take_requests();
    Checker::new(stand.work.clone()).round().await?;
    let requests = stand.sim.take_requests();
    let path = format!("/directory_users/{}", users[0]);
    ensure!(
        requests.iter().any(|request| request.uri.starts_with(&path)),
        "not its turn"
    );
    // And the round ends before all of the one directory were read, so that the next can begin.
    ensure!(requests.len() <= 41, "{} requests", requests.len());
    Ok(())
}
