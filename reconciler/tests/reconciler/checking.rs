//! Objects in doubt are read at once and again after the margin, not at the next pass.

use std::collections::BTreeSet;
use std::sync::PoisonError;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use reconciler::checks::Checker;
use reconciler::work::Work;
use reconciler::workos::pages::{List, Pages, id_of};
use tests::eventually;
use tokio_util::sync::CancellationToken;
use workos_sim::{Change, DirectoryOptions, Seed};

use crate::scripted::{client_bearing, failing};
use crate::stand::{BOUND, MARGIN, Stand, drift, told};

pub(crate) async fn seeded() -> anyhow::Result<(Stand, String, Vec<String>, Vec<String>)> {
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
    // Announced as deleted though it was kept, and later announced again, without any event for its memberships.
    stand.sim.change(Change::AnnounceDeleted { user: user.clone() })?;
    stand.log_all().await?;
    ensure!(!stand.shows_user(user).await?);
    stand.advance(Duration::from_secs(30));
    stand.sim.change(Change::ReannounceUser { user: user.clone() })?;
    stand.log_all().await?;
    ensure!(stand.shows_user(user).await? && !stand.shows_member(&groups[0], user).await?);
    // Too early to tell: a reading speaks for a time before the user was gone.
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
    // Deleted, with its memberships reported as removed afterwards; the user's updated_at did not change.
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
    // Seen a moment ago, and deleted since without an event.
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
    // One event says it was deleted, a later one that it is there; its contents are void until they are seen again.
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
    // All are due again. Those not tried yet come first: one more that fails, and the good one.
    ensure!(checker.round().await? == 4);
    ensure!(stand.shows_user(&good).await?, "kept waiting");
    // Two of the three were tried in that round.
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
    // An event mentioned each after it was gone; the one in the other directory came last.
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
    // And the round ends before all of the large directory's users were read, so that the next can begin.
    ensure!(requests.len() <= 41, "{} requests", requests.len());
    Ok(())
}

#[tokio::test]
async fn one_directory_that_answers_nothing_keeps_no_other_waiting() -> anyhow::Result<()> {
    let (stand, _, users, _) = seeded().await?;
    let other = stand.sim.create_directory(DirectoryOptions::newer())?;
    let other = stand.sim.seed(&other, &Seed::default())?.users;
    stand.log_all().await?;
    stand.agrees().await?;
    let (silent, honest) = (users[0].clone(), other[0].clone());
    let path = format!("/directory_users/{silent}");
    let never = path.clone();
    let (url, asked) = failing(&stand.sim, move |asked| asked.starts_with(&never)).await?;
    let checker = Checker::new(Work {
        api: client_bearing(&url, Duration::from_mins(10))?,
        ..stand.work.clone()
    });
    let shutdown = CancellationToken::new();
    let running = tokio::spawn(checker.run(shutdown.clone()));
    doubt(&stand, &silent).await?;
    eventually(BOUND, async || {
        let asked = asked.lock().unwrap_or_else(PoisonError::into_inner);
        ensure!(
            asked.iter().any(|asked| asked.starts_with(&path)),
            "not asked for"
        );
        Ok(())
    })
    .await?;
    doubt(&stand, &honest).await?;
    eventually(Duration::from_secs(20), async || {
        ensure!(stand.shows_user(&honest).await?, "kept waiting");
        Ok(())
    })
    .await?;
    ensure!(!stand.shows_user(&silent).await?);
    shutdown.cancel();
    tokio::time::timeout(Duration::from_secs(5), running).await??;
    Ok(())
}

/// Puts a user in doubt: an event mentioned it after it was gone, long enough ago for a reading to tell.
pub(crate) async fn doubt(stand: &Stand, user: &str) -> anyhow::Result<()> {
    sqlx::query(
        "update dsync.users set seen_at = now() - interval '90 s', gone_at = now() - interval '80 s',
            version_observed_at = now() - interval '70 s'
        where id = $1",
    )
    .bind(user)
    .execute(&stand.pool)
    .await?;
    stand.settle();
    Ok(())
}

/// Schedules objects to be read again, as a sweep would that found them too young; they were due some seconds ago.
pub(crate) async fn reread(
    stand: &Stand,
    what: &str,
    ids: &[String],
    directory: &str,
    due: f64,
) -> anyhow::Result<()> {
    let now = stand.clock.now();
    sqlx::query(
        "insert into dsync.rereads (target, id, directory_id, due_at)
        select $1, id, $3, $4 - make_interval(secs => $5) from unnest($2::text[]) as x (id)",
    )
    .bind(what)
    .bind(ids)
    .bind(directory)
    .bind(now)
    .bind(due)
    .execute(&stand.pool)
    .await?;
    Ok(())
}

#[tokio::test]
async fn very_many_rereads_of_one_directory_do_not_hide_those_of_another() -> anyhow::Result<()> {
    let (stand, directory, users, _) = seeded().await?;
    let many: Vec<String> = (0..1_500)
        .map(|number| format!("directory_user_{number}"))
        .collect();
    reread(&stand, "user", &many, "directory_many", 60.0).await?;
    reread(&stand, "user", &users[..1], &directory, 1.0).await?;
    stand.sim.take_requests();
    Checker::new(stand.work.clone()).round().await?;
    let path = format!("/directory_users/{}", users[0]);
    let requests = stand.sim.take_requests();
    ensure!(
        requests.iter().any(|request| request.uri.starts_with(&path)),
        "not its turn"
    );
    Ok(())
}

/// A list of members that lacks half of them, and the same half when read again.
#[tokio::test]
async fn half_a_list_read_apart_takes_nobody_out_of_a_group() -> anyhow::Result<()> {
    let (stand, directory, ..) = seeded().await?;
    let made = (0..16).map(|number| stand.sim.create_group(&directory, &format!("Group {number}")));
    let made = made.collect::<Result<Vec<String>, _>>()?;
    // A group that is in users' own lists: every list lacks half of what there is.
    let halve = |these: &[String]| {
        let these = these.to_vec();
        stand
            .sim
            .tune(|tuning| tuning.faults.halved = these.into_iter().collect());
    };
    halve(std::slice::from_ref(&directory));
    let page = Pages::of(&stand.work.api, List::groups(&directory))
        .next()
        .await?;
    let listed = page.context("no page")?.objects;
    let listed: Vec<String> = listed.iter().filter_map(|object| id_of(object)).collect();
    let group = made.into_iter().find(|group| listed.contains(group));
    let group = [group.context("none is listed")?];
    for (members, sweeps) in [(10, 0), (60, 1)] {
        halve(&[]);
        for _ in 0..members {
            let user = stand.sim.create_user(&directory)?;
            stand.sim.add_member(&group[0], &user)?;
        }
        stand.log_all().await?;
        stand.agrees().await?;
        stand.settle();
        halve(std::slice::from_ref(&directory));
        reread(&stand, "memberships_of_group", &group, &directory, 1.0).await?;
        ensure!(stand.check().await? == 1);
        stand
            .agrees()
            .await
            .with_context(|| format!("{members} members"))?;
        // With this many members, a sweep decides, because it sees all lists together.
        let asked = stand.count("select count(again_at) from dsync.sweeps").await?;
        ensure!(asked == sweeps, "{asked} sweeps asked for with {members} members");
    }
    Ok(())
}

#[tokio::test]
async fn who_left_a_group_without_a_word_is_out_when_either_side_is_read_apart() -> anyhow::Result<()> {
    for what in ["memberships_of_group", "memberships_of_user"] {
        let (stand, directory, _, groups) = seeded().await?;
        let user = stand.sim.create_user(&directory)?;
        stand.sim.add_member(&groups[0], &user)?;
        stand.log_all().await?;
        stand.settle();
        ensure!(stand.shows_member(&groups[0], &user).await?);
        stand.sim.remove_member(&groups[0], &user)?;
        stand.log(|_, _| false).await?;
        stand.settle();
        let side = if what == "memberships_of_user" {
            &user
        } else {
            &groups[0]
        };
        reread(&stand, what, std::slice::from_ref(side), &directory, 1.0).await?;
        ensure!(stand.check().await? == 1);
        ensure!(!stand.shows_member(&groups[0], &user).await?, "{what}");
    }
    Ok(())
}
