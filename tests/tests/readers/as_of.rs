//! Who was a member, and who had access, at any past moment.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context as _, ensure};
use projector::{backlog, store};
use rand::prelude::*;
use serde_json::{Value, json};
use sqlx::PgPool;
use tests::{Postgres, agrees};
use workos_sim::{DirectoryOptions, Options, Seed, Sim, Truth};

use super::{clear, events, histories, records_of_day, rows, text, write};

const MOMENTS: usize = 50;

/// The source's state at a moment: users, with the attributes on which access depends, and memberships.
fn of_source(truth: &Truth) -> (BTreeMap<String, Value>, BTreeSet<String>) {
    let (mut users, mut memberships) = (BTreeMap::new(), BTreeSet::new());
    for directory in truth.directories.values() {
        for (id, user) in &directory.users {
            let said = json!({
                "email": user.email, "active": user.active, "first_name": user.first_name, "role": user.role,
                "organization_id": user.organization_id, "custom_attributes": user.custom_attributes,
            });
            users.insert(id.clone(), said);
        }
        let pairs = directory.memberships.iter();
        memberships.extend(pairs.map(|(group, user)| format!("{group}/{user}")));
    }
    (users, memberships)
}

async fn of_tables(
    pool: &PgPool,
    users: &str,
    memberships: &str,
) -> anyhow::Result<(BTreeMap<String, Value>, BTreeSet<String>)> {
    let columns = "id, email, active, first_name, role, organization_id, custom_attributes";
    let mut found = BTreeMap::new();
    for mut row in rows(pool, format!("select {columns} from {users}")).await? {
        let id = row.as_object_mut().unwrap().remove("id").unwrap();
        found.insert(id.as_str().unwrap().to_owned(), row);
    }
    let pairs = rows(
        pool,
        format!("select group_id || '/' || user_id as pair from {memberships}"),
    )
    .await?;
    let pairs = pairs.iter().map(|row| row["pair"].as_str().unwrap().to_owned());
    Ok((found, pairs.collect()))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn past_moments_look_as_the_source_did_then() -> anyhow::Result<()> {
    let postgres = Postgres::migrated().await?;
    let pool = postgres.pool().await?;
    let sim = Sim::start(Options::default()).await?;
    for options in [DirectoryOptions::default(), DirectoryOptions::newer()] {
        let directory = sim.create_directory(options)?;
        let seed = Seed {
            users: 15,
            groups: 4,
            ..Seed::default()
        };
        sim.seed(&directory, &seed)?;
    }
    let mut rng = StdRng::seed_from_u64(4);
    let (mut told, mut moments) = (0, Vec::new());
    for number in 0..MOMENTS {
        if number == 30 {
            let gone = sim.truth().directories.keys().next().unwrap().clone();
            sim.change(workos_sim::Change::DeleteDirectory { directory: gone })?;
        }
        sim.burst(rng.random_range(1..12))?;
        let mut new = events(&sim, told);
        told += new.len();
        while !new.is_empty() {
            let size = rng.random_range(1..=8).min(new.len());
            let batch: Vec<_> = new.drain(..size).collect();
            write(&pool, &batch).await?;
        }
        agrees(&pool, &sim.truth()).await?;
        let moment = text(&pool, "select clock_timestamp()").await?.unwrap();
        // Also compare complete rows, byte for byte.
        let whole = rows(&pool, "select * from directory.users").await?;
        moments.push((moment, sim.truth(), whole));
    }
    let counts: BTreeSet<usize> = moments.iter().map(|(_, _, whole)| whole.len()).collect();
    ensure!(counts.len() > 5, "too little happened to prove anything");
    moments.shuffle(&mut rng);
    for (moment, truth, whole) in &moments {
        let users = format!("directory.users_at('{moment}')");
        let memberships = format!("directory.memberships_at('{moment}')");
        let found = of_tables(&pool, &users, &memberships).await?;
        ensure!(found == of_source(truth), "at {moment}, the source was different");
        ensure!(
            rows(&pool, format!("select * from {users}")).await? == *whole,
            "at {moment}, the view was different"
        );
    }
    Ok(())
}

/// The rows of the views now, or at `moment`.
async fn views(pool: &PgPool, moment: Option<&str>) -> anyhow::Result<Vec<Vec<Value>>> {
    let mut all = Vec::new();
    for view in ["users", "groups", "memberships"] {
        let at = moment.map_or(String::new(), |moment| format!("_at('{moment}')"));
        // Only the view, not history, has a membership's current `seen_at`.
        let but = if view == "memberships" { " - 'seen_at'" } else { "" };
        let query = format!("select to_jsonb(v){but} as row from directory.{view}{at} as v");
        all.push(rows(pool, query).await?);
    }
    Ok(all)
}

/// Random histories with every oddity, while the deferred history of ended directories and groups is written, and after
/// it.
#[tokio::test]
async fn past_moments_look_as_the_views_did_then_while_history_is_written() -> anyhow::Result<()> {
    let postgres = Postgres::deferring().await?;
    let pool = postgres.pool().await?;
    let mut looked = 0;
    for seed in 0..6 {
        let mut rng = StdRng::seed_from_u64(seed);
        let mut moments = Vec::new();
        for day in 1..=8 {
            let mut records = records_of_day(seed * 100 + day as u64, 50, day);
            while !records.is_empty() {
                let size = rng.random_range(1..=8).min(records.len());
                let batch: Vec<_> = records.drain(..size).collect();
                write(&pool, &batch).await?;
                let now = text(&pool, "select clock_timestamp()").await?.unwrap();
                moments.push((now, views(&pool, None).await?));
                if store::backlog::count(&pool).await? > 0 {
                    looked += 1;
                    let (moment, then) = moments.choose(&mut rng).unwrap();
                    ensure!(
                        views(&pool, Some(moment)).await? == *then,
                        "seed {seed}, day {day}: at {moment}"
                    );
                    let (listed, part) = (rng.random_range(1..4), rng.random_range(1..3));
                    backlog::write_listed(&pool, listed, part).await?;
                }
            }
        }
        backlog::drain(&pool).await?;
        for (moment, then) in moments.sample(&mut rng, 30) {
            ensure!(
                views(&pool, Some(moment)).await? == *then,
                "seed {seed}: at {moment}"
            );
        }
        clear(&pool).await?;
    }
    ensure!(looked > 100, "history was unfinished only {looked} times");
    Ok(())
}

/// If null meant now, a caller that forgot to pass the moment would take the answer for one about the past.
#[tokio::test]
async fn of_no_moment_there_is_no_answer() -> anyhow::Result<()> {
    let postgres = Postgres::migrated().await?;
    let pool = postgres.pool().await?;
    for function in ["users_at", "groups_at", "memberships_at"] {
        let error = rows(&pool, format!("select * from directory.{function}(null)"))
            .await
            .err();
        let error = error.with_context(|| format!("{function} answers"))?;
        ensure!(format!("{error:#}").contains("of which moment"), "{error:#}");
    }
    Ok(())
}

#[tokio::test]
async fn before_history_is_kept_there_is_no_answer() -> anyhow::Result<()> {
    let postgres = Postgres::migrated().await?;
    let pool = postgres.pool().await?;
    for function in ["users_at", "groups_at", "memberships_at"] {
        let error = rows(&pool, format!("select * from directory.{function}('2020-01-01')"))
            .await
            .err()
            .context("an answer without history")?;
        ensure!(
            format!("{error:#}").contains("history is kept since"),
            "{error:#}"
        );
        ensure!(
            rows(&pool, format!("select * from directory.{function}('2100-01-01')"))
                .await?
                .is_empty()
        );
    }
    Ok(())
}

/// What is left of a row of an erased person in the past.
fn blanked(row: &Value, erased: &BTreeSet<String>) -> Value {
    let mut row = row.clone();
    let object = row["row"].as_object_mut().unwrap();
    if object.contains_key("email") && erased.contains(object["id"].as_str().unwrap()) {
        let kept = [
            "id",
            "directory_id",
            "organization_id",
            "active",
            "created_at",
            "updated_at",
        ];
        object.retain(|name, value| kept.contains(&name.as_str()) && !value.is_null());
    }
    row
}

/// The same while people are erased, and some of these erasures are undone.
#[tokio::test]
async fn past_moments_look_as_the_views_did_then_though_people_are_erased() -> anyhow::Result<()> {
    let postgres = Postgres::deferring().await?;
    let pool = postgres.pool().await?;
    let (histories, mut forgotten) = (histories(3)?, 0);
    for seed in 0..histories {
        let mut rng = StdRng::seed_from_u64(seed + 1000);
        let mut moments: Vec<(String, Vec<Vec<Value>>)> = Vec::new();
        let mut erased = BTreeSet::new();
        for day in 1..=8 {
            let mut records = records_of_day(seed * 100 + 7000 + day as u64, 50, day);
            while !records.is_empty() {
                let size = rng.random_range(1..=8).min(records.len());
                let batch: Vec<_> = records.drain(..size).collect();
                write(&pool, &batch).await?;
                let now = text(&pool, "select clock_timestamp()").await?.unwrap();
                moments.push((now, views(&pool, None).await?));
                if rng.random_ratio(1, 3) {
                    let (listed, part) = (rng.random_range(1..4), rng.random_range(1..3));
                    backlog::write_listed(&pool, listed, part).await?;
                }
                if rng.random_ratio(1, 6) {
                    let users = rows(&pool, "select id from dsync.users").await?;
                    if let Some(user) = users.choose(&mut rng) {
                        let id = user["id"].as_str().unwrap().to_owned();
                        store::erase::forget(&pool, &id, true, time::OffsetDateTime::UNIX_EPOCH).await?;
                        forgotten += 1;
                        if rng.random_bool(0.5) {
                            store::erase::undo(&pool, &id).await?;
                        }
                        erased.insert(id);
                        let now = text(&pool, "select clock_timestamp()").await?.unwrap();
                        moments.push((now, views(&pool, None).await?));
                    }
                }
                let (moment, then) = moments.choose(&mut rng).unwrap();
                let found = views(&pool, Some(moment)).await?;
                compare(&found, then, &erased)
                    .with_context(|| format!("seed {seed}, day {day}: at {moment}"))?;
            }
        }
        backlog::drain(&pool).await?;
        for (moment, then) in moments.sample(&mut rng, 30) {
            compare(&views(&pool, Some(moment)).await?, then, &erased)
                .with_context(|| format!("seed {seed}: at {moment}"))?;
        }
        clear(&pool).await?;
    }
    ensure!(forgotten > 5 * histories, "only {forgotten} people were erased");
    Ok(())
}

fn compare(found: &[Vec<Value>], then: &[Vec<Value>], erased: &BTreeSet<String>) -> anyhow::Result<()> {
    let all = |views: &[Vec<Value>]| {
        views
            .iter()
            .map(|rows| {
                let mut rows: Vec<String> = rows.iter().map(|row| blanked(row, erased).to_string()).collect();
                rows.sort();
                rows
            })
            .collect::<Vec<_>>()
    };
    let (found, then) = (all(found), all(then));
    for (found, then) in found.iter().zip(&then) {
        let missing: Vec<_> = then.iter().filter(|row| !found.contains(row)).collect();
        let extra: Vec<_> = found.iter().filter(|row| !then.contains(row)).collect();
        ensure!(
            missing.is_empty() && extra.is_empty(),
            "missing {missing:#?}, extra {extra:#?}"
        );
    }
    Ok(())
}
