//! What a sweep does not believe: half a list, and mass deletions.

use std::time::Duration;

use anyhow::{Context as _, ensure};
use reconciler::command;
use reconciler::sweep::Mode;
use reconciler::work::Work;
use tests::{Output, eventually};
use workos_sim::{Change, DirectoryOptions, Seed};

use crate::scripted::{client_bearing, failing};
use crate::stand::{BOUND, Stand, drift, sweep_with, told};

pub(crate) struct Guarded {
    pub(crate) stand: Stand,
    pub(crate) directory: String,
    pub(crate) users: Vec<String>,
    pub(crate) groups: Vec<String>,
}

pub(crate) async fn directory_of(users: usize) -> anyhow::Result<Guarded> {
    let stand = Stand::up().await?;
    let directory = stand.sim.create_directory(DirectoryOptions::newer())?;
    let seed = Seed {
        users,
        groups: 6,
        ..Seed::default()
    };
    let seeded = stand.sim.seed(&directory, &seed)?;
    stand.log_all().await?;
    stand.agrees().await?;
    stand.settle();
    Ok(Guarded {
        stand,
        directory,
        users: seeded.users,
        groups: seeded.groups,
    })
}

impl Guarded {
    async fn approve(&self) -> anyhow::Result<Output> {
        let program = self.stand.program().arg("approve");
        program.arg(&self.directory).run().await
    }

    pub(crate) async fn delete_silently(&self, users: &[String]) -> anyhow::Result<()> {
        for user in users {
            self.stand.sim.change(Change::DeleteUser {
                user: user.clone(),
                removals: false,
            })?;
        }
        self.stand.log(|_, _| false).await?;
        self.stand.settle();
        Ok(())
    }

    /// A reconciler for which reads of these users fail.
    async fn not_reading(&self, users: &[String]) -> anyhow::Result<Work> {
        let never: Vec<String> = users
            .iter()
            .map(|user| format!("/directory_users/{user}"))
            .collect();
        let (url, _) = failing(&self.stand.sim, move |path| {
            never.iter().any(|part| path.contains(part))
        })
        .await?;
        Ok(Work {
            api: client_bearing(&url, Duration::from_millis(300))?,
            ..self.stand.work.clone()
        })
    }

    pub(crate) async fn rows_held(&self) -> anyhow::Result<i64> {
        self.stand
            .count("select count(*) from dsync.held_deletions")
            .await
    }

    pub(crate) async fn shown(&self) -> anyhow::Result<i64> {
        self.stand.applied().await?;
        self.stand.count("select count(*) from directory.users").await
    }

    pub(crate) async fn held(&self) -> anyhow::Result<i64> {
        self.stand
            .count("select sum(held_deletions)::bigint from directory.sync_status")
            .await
    }
}

#[tokio::test]
async fn an_honest_small_deletion_passes_and_a_mass_deletion_waits_for_approval() -> anyhow::Result<()> {
    let guarded = directory_of(60).await?;
    guarded.delete_silently(&guarded.users[..10]).await?;
    let report = guarded.stand.sweep(&guarded.directory).await?;
    ensure!(drift(&report).len() == 10 && report.held.is_empty(), "{report:?}");
    guarded.stand.agrees().await?;

    guarded.delete_silently(&guarded.users[10..30]).await?;
    let report = guarded.stand.sweep(&guarded.directory).await?;
    ensure!(drift(&report).is_empty() && report.held.len() == 20, "{report:?}");
    ensure!(guarded.shown().await? == 50 && guarded.held().await? == 20);
    let again = guarded.stand.sweep(&guarded.directory).await?;
    ensure!(again.held.len() == 20 && guarded.held().await? == 20, "{again:?}");

    let sweep = guarded.stand.program().arg("sweep").run().await?;
    ensure!(
        sweep.status.code() == Some(3),
        "held deletions are drift: {sweep:?}"
    );
    ensure!(
        sweep.stdout.contains("held back until approved: 20 users extra"),
        "{sweep:?}"
    );
    for (id, words) in [("directory_unknown", "no directory"), ("a.b", "not an id")] {
        let refused = guarded.stand.program().arg("approve").arg(id).run().await?;
        ensure!(
            !refused.status.success() && refused.stderr.contains(words),
            "{refused:?}"
        );
    }
    let approve = guarded.approve().await?;
    ensure!(approve.status.success(), "{approve:?}");
    ensure!(approve.stdout.contains("20 deletions approved"), "{approve:?}");
    guarded.stand.agrees().await?;
    ensure!(guarded.held().await? == 0);
    let nothing = guarded.approve().await?;
    ensure!(
        nothing.status.code() == Some(1) && nothing.stderr.contains("nothing is held"),
        "{nothing:?}"
    );
    Ok(())
}

#[tokio::test]
async fn approval_looks_once_more_and_a_later_pass_forgets_what_is_back() -> anyhow::Result<()> {
    let guarded = directory_of(40).await?;
    // Memberships are held, too; each kind is counted separately.
    for group in &guarded.groups[..3] {
        let members: Vec<String> =
            sqlx::query_scalar("select user_id from directory.memberships where group_id = $1")
                .bind(group)
                .fetch_all(&guarded.stand.pool)
                .await?;
        for user in members {
            guarded.stand.sim.remove_member(group, &user)?;
        }
    }
    guarded.stand.log(|_, _| false).await?;
    guarded.stand.settle();
    let report = guarded.stand.sweep(&guarded.directory).await?;
    let held = report.held.len();
    ensure!(
        held > 10
            && report
                .held
                .iter()
                .all(|one| told(one).starts_with("membership extra")),
        "{report:?}"
    );
    let (group, user) = report.held[0].id.split_once('/').context("no pair")?;
    // One is added again after it was held, and its event is lost.
    guarded.stand.sim.add_member(group, user)?;
    guarded.stand.log(|_, _| false).await?;
    let mut out = Vec::new();
    reconciler::command::run_approve(&guarded.stand.work, &guarded.directory, true, &mut out).await?;
    let done: serde_json::Value = serde_json::from_slice(&out)?;
    ensure!(
        done["deleted"] == held - 1 && done["there_after_all"] == 1,
        "{done}"
    );
    ensure!(guarded.stand.shows_member(group, user).await?, "wrongly deleted");
    // Roles, which follow from memberships, are found by the next pass that is late enough.
    guarded.stand.settle();
    drift(&guarded.stand.sweep(&guarded.directory).await?);
    guarded.stand.agrees().await?;

    // Held, and then there again: no longer held.
    guarded.delete_silently(&guarded.users[..20]).await?;
    guarded.stand.sweep(&guarded.directory).await?;
    ensure!(guarded.held().await? == 20);
    for user in &guarded.users[..20] {
        sqlx::query("update dsync.users set gone_at = now() + interval '1 day' where id = $1")
            .bind(user)
            .execute(&guarded.stand.pool)
            .await?;
    }
    guarded.stand.sweep(&guarded.directory).await?;
    ensure!(guarded.held().await? == 0);
    Ok(())
}

#[tokio::test]
async fn a_list_with_half_its_data_deletes_and_holds_nothing() -> anyhow::Result<()> {
    let guarded = directory_of(60).await?;
    let lost = guarded.stand.sim.create_user(&guarded.directory)?;
    guarded.stand.log(|_, _| false).await?;
    guarded.stand.settle();
    let halved = guarded.directory.clone();
    guarded
        .stand
        .sim
        .tune(|tuning| tuning.faults.halved.extend([halved]));
    let report = guarded.stand.sweep(&guarded.directory).await?;
    ensure!(!report.complete && report.error.is_some(), "{report:?}");
    ensure!(report.held.is_empty() && guarded.held().await? == 0, "{report:?}");
    let found: Vec<String> = report.drift.iter().map(told).collect();
    ensure!(found.iter().all(|one| one.contains(" missing ")), "{found:?}");
    ensure!(guarded.shown().await? >= 60);
    guarded.stand.sim.tune(|tuning| tuning.faults.halved.clear());
    guarded.stand.settle();
    drift(&guarded.stand.sweep(&guarded.directory).await?);
    guarded.stand.agrees().await?;
    ensure!(guarded.stand.shows_user(&lost).await?);
    Ok(())
}

#[tokio::test]
async fn lists_that_are_cut_short_now_and_then_delete_nothing() -> anyhow::Result<()> {
    let guarded = directory_of(40).await?;
    for seed in 0..4 {
        guarded.stand.sim.tune(|tuning| {
            tuning.faults.seed = seed;
            tuning.faults.cut_short = 15;
        });
        let report = guarded.stand.sweep(&guarded.directory).await?;
        let found: Vec<String> = report.drift.iter().map(told).collect();
        ensure!(
            found.iter().all(|one| !one.starts_with("user extra")),
            "seed {seed}: {found:?}"
        );
        guarded.stand.settle();
    }
    guarded.stand.sim.tune(|tuning| tuning.faults.cut_short = 0);
    drift(&guarded.stand.sweep(&guarded.directory).await?);
    guarded.stand.agrees().await
}

#[tokio::test]
async fn a_directory_that_never_answers_stops_nobody_else() -> anyhow::Result<()> {
    let guarded = directory_of(20).await?;
    let other = guarded.stand.sim.create_directory(DirectoryOptions::newer())?;
    guarded.stand.sim.seed(&other, &Seed::default())?;
    guarded.stand.log(|number, _| number % 3 != 0).await?;
    guarded.stand.settle();
    guarded.stand.sim.tune(|tuning| {
        tuning.faults.errors = 10;
        tuning.faults.hangs = 2;
        tuning.faults.hang_for = Duration::from_secs(10);
    });
    let report = guarded.stand.pass().await;
    ensure!(!report.is_incomplete(), "{}", report.text());
    eventually(BOUND, async || guarded.stand.agrees().await).await
}

#[tokio::test]
async fn approval_of_very_many_reads_the_list_again_and_takes_no_hour() -> anyhow::Result<()> {
    let guarded = directory_of(150).await?;
    guarded.delete_silently(&guarded.users[..120]).await?;
    let report = guarded.stand.sweep(&guarded.directory).await?;
    ensure!(report.held.len() == 120, "{report:?}");
    guarded.stand.settle();
    guarded.stand.sim.take_requests();
    let approve = guarded.approve().await?;
    ensure!(
        approve.stdout.contains("120 deletions approved, 0"),
        "{approve:?}"
    );
    let requests = guarded.stand.sim.take_requests().len();
    ensure!(requests < 60, "{requests} requests");
    guarded.stand.agrees().await
}

#[tokio::test]
async fn what_is_held_waits_for_approval_though_it_would_be_few_by_now() -> anyhow::Result<()> {
    let guarded = directory_of(100).await?;
    guarded.delete_silently(&guarded.users[..11]).await?;
    let report = guarded.stand.sweep(&guarded.directory).await?;
    ensure!(report.held.len() == 11, "{report:?}");
    // More people come, so that eleven are less than a tenth, and one is gone of which nobody knew.
    for _ in 0..30 {
        guarded.stand.sim.create_user(&guarded.directory)?;
    }
    guarded.stand.log_all().await?;
    guarded.delete_silently(&guarded.users[11..12]).await?;
    let report = guarded.stand.sweep(&guarded.directory).await?;
    ensure!(
        report.held.len() == 11 && drift(&report) == [format!("user extra {}", guarded.users[11])],
        "{report:?}"
    );
    ensure!(guarded.shown().await? == 129 && guarded.rows_held().await? == 11);
    let approve = guarded.approve().await?;
    ensure!(approve.status.success(), "{approve:?}");
    guarded.stand.agrees().await
}

#[tokio::test]
async fn directories_that_are_all_gone_wait_for_approval_each() -> anyhow::Result<()> {
    let guarded = directory_of(20).await?;
    let other = guarded.stand.sim.create_directory(DirectoryOptions::default())?;
    guarded.stand.log_all().await?;
    guarded.stand.settle();
    for directory in [&guarded.directory, &other] {
        guarded.stand.sim.change(Change::DeleteDirectory {
            directory: directory.clone(),
        })?;
    }
    guarded.stand.log(|_, _| false).await?;
    guarded.stand.settle();
    let report = guarded.stand.pass().await;
    let held: Vec<String> = report
        .directories
        .iter()
        .flat_map(|one| &one.held)
        .map(told)
        .collect();
    ensure!(
        held.len() == 2 && guarded.shown().await? == 20,
        "{}",
        report.text()
    );
    let approve = guarded.approve().await?;
    ensure!(approve.status.success(), "{approve:?}");
    ensure!(guarded.shown().await? == 0);
    // Nobody approved that of the other one, and nobody asks in vain about it again and again meanwhile.
    let report = guarded.stand.pass().await;
    let still: Vec<String> = report
        .directories
        .iter()
        .flat_map(|one| &one.held)
        .map(told)
        .collect();
    ensure!(still == [format!("directory extra {other}")], "{}", report.text());
    let swept = sweep_with(&guarded.stand.work, &other).await?;
    ensure!(swept.held.len() == 1, "{swept:?}");
    ensure!(
        guarded
            .stand
            .count("select count(*) from dsync.sweeps where retry_at > now()")
            .await?
            == 1,
        "it is due again at once"
    );
    let approve = guarded.stand.program().arg("approve").arg(&other).run().await?;
    ensure!(approve.status.success(), "{approve:?}");
    guarded.stand.agrees().await
}

#[tokio::test]
async fn a_mass_deletion_of_which_one_cannot_be_read_is_held_and_one_of_which_none_can_is_not()
-> anyhow::Result<()> {
    let guarded = directory_of(60).await?;
    let mut gone = guarded.users[..20].to_vec();
    gone.sort();
    guarded.delete_silently(&gone).await?;
    let blind = guarded.not_reading(&gone).await?;
    let report = sweep_with(&blind, &guarded.directory).await?;
    ensure!(
        !report.complete && report.drift.is_empty() && report.held.is_empty(),
        "{report:?}"
    );
    ensure!(guarded.shown().await? == 60 && guarded.rows_held().await? == 0);

    let nearly = guarded.not_reading(&gone[..1]).await?;
    let report = sweep_with(&nearly, &guarded.directory).await?;
    ensure!(
        !report.complete && report.drift.is_empty() && report.held.len() == 20,
        "{report:?}"
    );
    ensure!(guarded.shown().await? == 60 && guarded.rows_held().await? == 20);
    // What could be read is approved; the other one waits.
    let mut out = Vec::new();
    let approved = command::run_approve(&nearly, &guarded.directory, true, &mut out).await;
    ensure!(
        approved.is_err_and(|error| error.to_string().contains("1 objects could not be read")),
        "nothing is said of it"
    );
    let done: serde_json::Value = serde_json::from_slice(&out)?;
    ensure!(done["deleted"] == 19 && done["there_after_all"] == 0, "{done}");
    ensure!(guarded.shown().await? == 41 && guarded.rows_held().await? == 1);
    let approve = guarded.approve().await?;
    ensure!(approve.status.success(), "{approve:?}");
    guarded.stand.agrees().await
}

#[tokio::test]
async fn deletions_held_in_a_directory_that_ends_are_held_no_longer() -> anyhow::Result<()> {
    let guarded = directory_of(60).await?;
    guarded.delete_silently(&guarded.users[..20]).await?;
    guarded.stand.sweep(&guarded.directory).await?;
    ensure!(guarded.rows_held().await? == 20);
    guarded.stand.sim.change(Change::DeleteDirectory {
        directory: guarded.directory.clone(),
    })?;
    // An event reported it, so no list will find it gone.
    guarded.stand.log_all().await?;
    guarded.stand.settle();
    ensure!(guarded.shown().await? == 0);
    let dry = command::pass(
        &guarded.stand.work,
        Some(&guarded.directory),
        Mode {
            dry_run: true,
            values: false,
        },
    );
    dry.await;
    ensure!(guarded.rows_held().await? == 20, "a dry run cleared them");
    guarded.stand.sweep(&guarded.directory).await?;
    ensure!(guarded.rows_held().await? == 0, "held for ever");
    Ok(())
}

#[tokio::test]
async fn very_many_deletions_held_in_a_directory_that_ended_can_be_approved() -> anyhow::Result<()> {
    let guarded = directory_of(130).await?;
    guarded.delete_silently(&guarded.users[..105]).await?;
    guarded.stand.sweep(&guarded.directory).await?;
    ensure!(guarded.rows_held().await? == 105);
    guarded.stand.sim.change(Change::DeleteDirectory {
        directory: guarded.directory.clone(),
    })?;
    guarded.stand.log_all().await?;
    guarded.stand.settle();
    let approve = guarded.approve().await?;
    ensure!(
        approve.status.success() && approve.stdout.contains("105 deletions approved, 0"),
        "{approve:?}"
    );
    ensure!(guarded.rows_held().await? == 0);
    Ok(())
}
