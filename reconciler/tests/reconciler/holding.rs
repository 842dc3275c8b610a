//! What is held stays held until somebody approves it or `WorkOS` lists it again, and what is approved ends.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::ensure;
use reconciler::command;
use reconciler::difference::Entity;
use reconciler::key::ObjectKey;
use reconciler::store::held;
use reconciler::work::Work;
use serde_json::Value;
use service::postgres::PoolSettings;
use service::settings::Secret;
use tests::Postgres;
use workos_sim::Change;

use crate::guarding::{Guarded, directory_of};
use crate::scripted::{client_bearing, edited};
use crate::stand::{Stand, sweep_with};

impl Guarded {
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
