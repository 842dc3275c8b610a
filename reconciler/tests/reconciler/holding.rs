//! What is held stays held until somebody approves it or `WorkOS` lists it again, and what is approved ends.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use bytes::Bytes;
use reconciler::command;
use reconciler::difference::Entity;
use reconciler::key::ObjectKey;
use reconciler::store::held;
use reconciler::sweep::Mode;
use reconciler::work::Work;
use schema::record::{Received, Record, Source};
use serde_json::Value;
use service::postgres::PoolSettings;
use service::settings::Secret;
use tests::{Postgres, eventually};
use tokio::sync::watch;
use workos_sim::{Change, DirectoryOptions};

use crate::guarding::{Guarded, directory_of};
use crate::scripted::{client_bearing, edited, gated};
use crate::stand::{BOUND, MARGIN, Stand, sweep_with, told};

impl Guarded {
    /// Takes everybody out of these groups, without an event. Returns who was in them.
    async fn empty_silently(&self, groups: &[String]) -> anyhow::Result<BTreeSet<String>> {
        let mut users = BTreeSet::new();
        for group in groups {
            for user in self.members(group).await? {
                self.stand.sim.remove_member(group, &user)?;
                users.insert(user);
            }
        }
        self.stand.log(|_, _| false).await?;
        self.stand.settle();
        Ok(users)
    }

    /// Whom readers see in a group.
    async fn members(&self, group: &str) -> anyhow::Result<Vec<String>> {
        self.stand.applied().await?;
        Ok(
            sqlx::query_scalar("select user_id from directory.memberships where group_id = $1")
                .bind(group)
                .fetch_all(&self.stand.pool)
                .await?,
        )
    }

    /// Has `WorkOS` report these events once more, as having happened now.
    async fn report_again(&self, kind: &str, bodies: Vec<Value>) -> anyhow::Result<()> {
        let now = schema::timestamp::Timestamp::from(self.stand.clock.now());
        for (number, mut body) in bodies.into_iter().enumerate() {
            body["id"] = format!("event_01M83ZZZZZZZZZZZZZZZZZZZ{number:02}").into();
            body["event"] = kind.into();
            body["created_at"] = now.to_string().into();
            let body = Bytes::from(body.to_string());
            let Received::Event(record) = Record::receive(body, Source::Webhook, None, now) else {
                anyhow::bail!("not an event");
            };
            self.stand.journal.append(&record).await?;
        }
        self.stand.applied().await
    }

    /// The events of this kind, as they were sent.
    fn events(&self, kind: &str) -> Vec<Value> {
        let events = self.stand.sim.events();
        events
            .iter()
            .filter(|event| event.kind == kind)
            .map(workos_sim::Event::json)
            .collect()
    }

    async fn approved_by(&self, work: &Work) -> anyhow::Result<Value> {
        let mut out = Vec::new();
        command::run_approve(work, &self.directory, true, &mut out).await?;
        Ok(serde_json::from_slice(&out)?)
    }
}

/// A customer's provider that empties large groups. What is held is recorded anew by every sweep.
#[tokio::test]
async fn very_many_held_deletions_can_be_recorded_again() -> anyhow::Result<()> {
    let postgres = Postgres::migrated().await?;
    // Compared one by one, they would take well over a minute.
    let settings = PoolSettings {
        application_name: "test",
        max_connections: 2,
        statement_timeout: Duration::from_secs(20),
    };
    let pool = service::postgres::pool(&Secret::from(postgres.url().as_str()), &settings)?;
    let keys: Vec<ObjectKey> = (0..100_000)
        .map(|number| {
            let group = format!("directory_group_01M832YW3GB1X6H4Q65T{:06}", number % 300);
            ObjectKey::membership(&group, &format!("directory_user_01M832YW3GB1X6H4Q65T{number:06}"))
        })
        .collect();
    for these in [&keys[..], &keys[..], &keys[..50_000], &keys[10..]] {
        held::replace(&pool, "d1", Entity::Membership, these).await?;
        let held = held::of(&pool, "d1", Entity::Membership).await?;
        ensure!(
            held.iter().collect::<BTreeSet<_>>() == these.iter().collect(),
            "{} held",
            held.len()
        );
    }
    held::remove(&pool, "d1", Entity::Membership, &keys).await?;
    ensure!(held::of(&pool, "d1", Entity::Membership).await?.is_empty());
    Ok(())
}

/// A reconciler for which these objects are never listed. `WorkOS` has them when asked.
async fn never_listing(stand: &Stand, list: &'static str, ids: &[String]) -> anyhow::Result<Work> {
    let hidden = ids.to_vec();
    let url = edited(&stand.sim, move |path, object| {
        if path.starts_with(list) && hidden.iter().any(|id| object["id"] == id.as_str()) {
            *object = Value::Null;
        }
    });
    Ok(Work {
        api: client_bearing(&url.await?, Duration::from_secs(5))?,
        ..stand.work.clone()
    })
}

#[tokio::test]
async fn a_user_whom_no_list_has_keeps_no_mass_deletion_from_being_held_and_approved() -> anyhow::Result<()> {
    let guarded = directory_of(60).await?;
    let (hidden, gone) = (&guarded.users[20], &guarded.users[..15]);
    let work = never_listing(&guarded.stand, "/directory_users?", std::slice::from_ref(hidden)).await?;
    guarded.delete_silently(gone).await?;
    for _ in 0..2 {
        let report = sweep_with(&work, &guarded.directory).await?;
        ensure!(
            report.error.is_none() && report.drift.is_empty() && report.held.len() == 15,
            "{report:?}"
        );
        ensure!(guarded.rows_held().await? == 15);
    }
    let done = guarded.approved_by(&work).await?;
    ensure!(done["deleted"] == 15 && done["there_after_all"] == 0, "{done}");
    guarded.stand.agrees().await?;
    ensure!(guarded.stand.shows_user(hidden).await?, "it exists");
    Ok(())
}

/// Of more than a hundred, an approval reads only a sample, unless it finds that the list lacks what exists.
#[tokio::test]
async fn what_no_list_has_and_a_sweep_found_makes_an_approval_of_very_many_read_each() -> anyhow::Result<()> {
    let guarded = directory_of(10).await?;
    let made = (0..130).map(|number| {
        guarded
            .stand
            .sim
            .create_group(&guarded.directory, &format!("{number}"))
    });
    let mut groups = made.collect::<Result<Vec<String>, _>>()?;
    groups.sort();
    guarded.stand.log_all().await?;
    guarded.stand.settle();
    // The first of those that no list has is in a sweep's sample. The other two are neither in that nor in an approval's.
    let hidden = [0, 3, 4].map(|number| groups[number].clone());
    for group in groups[..110].iter().filter(|group| !hidden.contains(group)) {
        let group = group.clone();
        guarded.stand.sim.change(Change::DeleteGroup { group })?;
    }
    guarded.stand.log(|_, _| false).await?;
    guarded.stand.settle();
    let work = never_listing(&guarded.stand, "/directory_groups?", &hidden).await?;
    let report = sweep_with(&work, &guarded.directory).await?;
    ensure!(report.held.len() == 109, "{report:?}");
    let done = guarded.approved_by(&work).await?;
    ensure!(done["deleted"] == 107 && done["there_after_all"] == 2, "{done}");
    guarded.stand.agrees().await
}

/// Events about people whom the state API lacks: the case in which the state API is wrong.
#[tokio::test]
async fn an_event_about_a_held_user_does_not_lift_the_hold() -> anyhow::Result<()> {
    let guarded = directory_of(60).await?;
    let (gone, told_of) = (&guarded.users[..20], &guarded.users[..10]);
    let created = guarded.events("dsync.user.created");
    guarded.delete_silently(gone).await?;
    let report = guarded.stand.sweep(&guarded.directory).await?;
    ensure!(report.held.len() == 20, "{report:?}");
    let now = schema::timestamp::Timestamp::from(guarded.stand.clock.now()).to_string();
    let mut bodies = created;
    bodies.retain(|body| told_of.iter().any(|id| body["data"]["id"] == id.as_str()));
    for body in &mut bodies {
        body["data"]["updated_at"] = now.clone().into();
    }
    ensure!(bodies.len() == 10);
    guarded.report_again("dsync.user.updated", bodies).await?;
    // Each is also to be read by itself, as an earlier sweep may have asked.
    crate::checking::reread(&guarded.stand, "user", told_of, &guarded.directory, 120.0).await?;
    guarded.stand.advance(Duration::from_secs(5));
    let report = guarded.stand.sweep(&guarded.directory).await?;
    ensure!(
        report.held.len() == 20 && guarded.rows_held().await? == 20,
        "{report:?}"
    );
    guarded.stand.advance(MARGIN + Duration::from_secs(3));
    ensure!(guarded.stand.check().await? == 10);
    guarded.stand.sweep(&guarded.directory).await?;
    ensure!(guarded.shown().await? == 60, "nobody approved anything");
    ensure!(guarded.rows_held().await? == 20);
    guarded.stand.settle();
    let done = guarded.approved_by(&guarded.stand.work).await?;
    ensure!(done["deleted"] == 20, "{done}");
    guarded.stand.agrees().await
}

#[tokio::test]
async fn an_event_about_a_held_membership_does_not_lift_the_hold() -> anyhow::Result<()> {
    let guarded = directory_of(40).await?;
    let mut bodies = guarded.events("dsync.group.user_added");
    guarded.empty_silently(&guarded.groups[..3]).await?;
    let report = guarded.stand.sweep(&guarded.directory).await?;
    let held = report.held.len();
    ensure!(held > 10, "{report:?}");
    let is_held = |body: &Value| {
        let (group, user) = (&body["data"]["group"]["id"], &body["data"]["user"]["id"]);
        let id = format!(
            "{}/{}",
            group.as_str().unwrap_or_default(),
            user.as_str().unwrap_or_default()
        );
        report.held.iter().any(|one| one.id == id)
    };
    bodies.retain(is_held);
    bodies.truncate(5);
    ensure!(bodies.len() == 5);
    guarded.report_again("dsync.group.user_added", bodies).await?;
    guarded.stand.advance(Duration::from_secs(5));
    let rows = i64::try_from(held)?;
    for _ in 0..2 {
        let report = guarded.stand.sweep(&guarded.directory).await?;
        ensure!(
            report.held.len() == held && guarded.rows_held().await? == rows,
            "{report:?}"
        );
        guarded.stand.settle();
        guarded.stand.check().await?;
    }
    let done = guarded.approved_by(&guarded.stand.work).await?;
    ensure!(done["deleted"] == held, "{done}");
    guarded.stand.agrees().await
}

/// The people left the groups, which is held. Then they left altogether.
#[tokio::test]
async fn approved_memberships_end_though_their_users_are_gone() -> anyhow::Result<()> {
    let guarded = directory_of(40).await?;
    let users = guarded.empty_silently(&guarded.groups[..3]).await?;
    let report = guarded.stand.sweep(&guarded.directory).await?;
    let held = report.held.len();
    ensure!(held > 10, "{report:?}");
    let users: Vec<String> = users.into_iter().collect();
    guarded.delete_silently(&users).await?;
    // The key of another environment finds none of them, nor the directory.
    let other = workos_sim::Sim::start(workos_sim::Options::at(guarded.stand.sim.clock().now())).await?;
    let wrong = guarded.approved_by(&guarded.stand.with_key_of(&other)?).await;
    ensure!(
        wrong.is_err_and(|error| error
            .to_string()
            .contains(&format!("{held} objects could not be read"))),
        "approved with the wrong key"
    );
    let rows = i64::try_from(held)?;
    ensure!(guarded.rows_held().await? == rows);
    ensure!(!guarded.members(&guarded.groups[0]).await?.is_empty());
    let done = guarded.approved_by(&guarded.stand.work).await?;
    ensure!(done["deleted"] == held && done["there_after_all"] == 0, "{done}");
    for group in &guarded.groups[..3] {
        ensure!(guarded.members(group).await?.is_empty());
    }
    ensure!(guarded.rows_held().await? == 0);
    Ok(())
}

#[tokio::test]
async fn what_another_environments_key_does_not_find_is_not_approved() -> anyhow::Result<()> {
    let guarded = directory_of(40).await?;
    guarded.delete_silently(&guarded.users[..20]).await?;
    guarded.stand.sweep(&guarded.directory).await?;
    ensure!(guarded.rows_held().await? == 20);
    let other = workos_sim::Sim::start(workos_sim::Options::at(guarded.stand.sim.clock().now())).await?;
    other.create_directory(DirectoryOptions::default())?;
    let wrong = guarded.approved_by(&guarded.stand.with_key_of(&other)?).await;
    let refused = wrong.err().context("approved with the wrong key")?.to_string();
    ensure!(refused.contains("20 objects could not be read"), "{refused}");
    ensure!(guarded.rows_held().await? == 20 && guarded.shown().await? == 40);
    let done = guarded.approved_by(&guarded.stand.work).await?;
    ensure!(done["deleted"] == 20 && guarded.shown().await? == 20, "{done}");
    Ok(())
}

/// Not even of the last directory: the list no longer shows whether the key is ours.
#[tokio::test]
async fn what_was_held_in_a_directory_whose_end_is_approved_goes_with_it() -> anyhow::Result<()> {
    let guarded = directory_of(40).await?;
    guarded.delete_silently(&guarded.users[..20]).await?;
    guarded.stand.sweep(&guarded.directory).await?;
    ensure!(guarded.rows_held().await? == 20);
    // Another one, that is gone, too.
    let other = guarded.stand.sim.create_directory(DirectoryOptions::newer())?;
    guarded.stand.log_all().await?;
    guarded.stand.settle();
    for directory in [&guarded.directory, &other] {
        let directory = directory.clone();
        guarded.stand.sim.change(Change::DeleteDirectory { directory })?;
    }
    guarded.stand.log(|_, _| false).await?;
    guarded.stand.settle();
    guarded.stand.pass().await;
    ensure!(guarded.rows_held().await? == 22 && guarded.shown().await? == 40);
    let done = guarded.approved_by(&guarded.stand.work).await?;
    ensure!(done["deleted"] == 1, "{done}");
    ensure!(guarded.rows_held().await? == 1 && guarded.shown().await? == 0);
    Ok(())
}

#[tokio::test]
async fn only_what_is_recorded_as_held_is_logged_as_held() -> anyhow::Result<()> {
    let guarded = directory_of(40).await?;
    guarded.delete_silently(&guarded.users[..20]).await?;
    let words = "held back until approved with";
    let dry = guarded
        .stand
        .program()
        .arg("sweep")
        .arg("--dry-run")
        .run()
        .await?;
    ensure!(
        dry.stdout.contains("held back until approved: 20 users extra"),
        "{dry:?}"
    );
    ensure!(
        !dry.stderr.contains(words) && guarded.rows_held().await? == 0,
        "{dry:?}"
    );
    let sweep = guarded.stand.program().arg("sweep").run().await?;
    ensure!(
        sweep.stderr.contains(words) && guarded.rows_held().await? == 20,
        "{sweep:?}"
    );
    // The same of directories.
    let (directory, other) = (guarded.directory.clone(), DirectoryOptions::default());
    guarded.stand.sim.create_directory(other)?;
    guarded.stand.log_all().await?;
    guarded.stand.settle();
    let other = workos_sim::Sim::start(workos_sim::Options::at(guarded.stand.sim.clock().now())).await?;
    for dry in [true, false] {
        let mut program = guarded.stand.program().arg("sweep");
        if dry {
            program = program.arg("--dry-run");
        }
        program = program
            .env("WORKOS_API_URL", other.url())
            .env("WORKOS_API_KEY", other.api_key());
        let sweep = program.run().await?;
        let rows: i64 = sqlx::query_scalar(
            "select count(*) from dsync.held_deletions where entity = 'directory' and directory_id = $1",
        )
        .bind(&directory)
        .fetch_one(&guarded.stand.pool)
        .await?;
        ensure!(
            sweep.stderr.contains(words) != dry && (rows == 0) == dry,
            "{sweep:?}"
        );
    }
    Ok(())
}

#[tokio::test]
async fn a_pass_that_began_before_an_approval_holds_nothing_again() -> anyhow::Result<()> {
    let stand = Stand::up().await?;
    let mut ours = Vec::new();
    for _ in 0..2 {
        ours.push(stand.sim.create_directory(DirectoryOptions::newer())?);
    }
    stand.log_all().await?;
    stand.agrees().await?;
    stand.settle();
    for directory in &ours {
        let directory = directory.clone();
        stand.sim.change(Change::DeleteDirectory { directory })?;
    }
    stand.log(|_, _| false).await?;
    stand.settle();
    stand.pass().await;
    ensure!(stand.count("select count(*) from dsync.held_deletions").await? == 2);
    // A pass that is still reading the directories when one is approved.
    let (open, opened) = watch::channel(false);
    let (url, asked) = gated(&stand.sim, &format!("/directories/{}", ours[1]), opened).await?;
    let work = Work {
        api: client_bearing(&url, BOUND)?,
        ..stand.work.clone()
    };
    let passing = tokio::spawn(async move { command::pass(&work, None, Mode::default()).await });
    eventually(BOUND, async || {
        ensure!(*asked.borrow(), "not asked yet");
        Ok(())
    })
    .await?;
    command::run_approve(&stand.work, &ours[0], false, &mut Vec::new()).await?;
    open.send(true).context("nobody waits")?;
    passing.await?;
    let held: Vec<String> = sqlx::query_scalar("select directory_id from dsync.held_deletions")
        .fetch_all(&stand.pool)
        .await?;
    ensure!(held == [ours[1].clone()], "{held:?}");
    Ok(())
}

/// Users' `groups` field still names a group that somebody has left. `WorkOS`'s lists do not.
#[tokio::test]
async fn a_stale_groups_field_brings_back_no_membership_that_ended() -> anyhow::Result<()> {
    let stand = Stand::up().await?;
    let directory = stand.sim.create_directory(DirectoryOptions::default())?;
    let seed = workos_sim::Seed {
        users: 60,
        groups: 6,
        ..workos_sim::Seed::default()
    };
    let seeded = stand.sim.seed(&directory, &seed)?;
    let (group, user) = (
        stand.sim.create_group(&directory, "Group")?,
        seeded.users[30].clone(),
    );
    stand.sim.add_member(&group, &user)?;
    stand.log_all().await?;
    stand.settle();
    stand.sim.remove_member(&group, &user)?;
    stand.log_all().await?;
    ensure!(!stand.shows_member(&group, &user).await?);
    stand.settle();
    let (stale, its) = ((group.clone(), user.clone()), directory.clone());
    let url = edited(&stand.sim, move |path, object| {
        if path.starts_with("/directory_users?")
            && object["id"] == stale.1.as_str()
            && let Some(groups) = object["groups"].as_array_mut()
        {
            groups.push(serde_json::json!({ "id": stale.0, "directory_id": its, "name": "Group" }));
        }
    });
    let work = Work {
        api: client_bearing(&url.await?, Duration::from_secs(5))?,
        ..stand.work.clone()
    };
    for _ in 0..2 {
        let report = sweep_with(&work, &directory).await?;
        let found: Vec<String> = report.drift.iter().map(told).collect();
        ensure!(
            report.complete && found.iter().all(|one| !one.starts_with("membership")),
            "{report:?}"
        );
        ensure!(!stand.shows_member(&group, &user).await?, "it ended");
        stand.settle();
    }
    stand.agrees().await
}
