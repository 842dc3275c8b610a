//! The feed: it adds up to the views, nobody who polls it misses a change, and each change names its cause.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context as _, ensure};
use rand::prelude::*;
use schema::record::Record;
use serde_json::{Value, json};
use sqlx::postgres::PgListener;
use sqlx::{PgPool, Row as _};
use tests::{Nats, Postgres, Program, agrees, eventually, shared_out};
use workos_sim::{DirectoryOptions, Options, Seed, Sim};

use super::{BOUND, append, events, log_on, random_records, rows, tell, text, write};

/// A change as a consumer sees it.
#[derive(Debug, Clone)]
pub(super) struct Change {
    id: i64,
    entity: String,
    entity_id: String,
    operation: String,
    organization_id: Option<String>,
    changed: Vec<String>,
    before: Option<Value>,
    after: Option<Value>,
}

async fn changes(pool: &PgPool, after: i64, limit: i64) -> anyhow::Result<Vec<Change>> {
    let found = sqlx::query(
        "select change_id, entity, entity_id, operation, organization_id, changed, before, after
         from directory.changes where change_id > $1 order by change_id limit $2",
    )
    .bind(after)
    .bind(limit)
    .fetch_all(pool)
    .await?;
    found
        .iter()
        .map(|row| {
            Ok(Change {
                id: row.try_get("change_id")?,
                entity: row.try_get("entity")?,
                entity_id: row.try_get("entity_id")?,
                operation: row.try_get("operation")?,
                organization_id: row.try_get("organization_id")?,
                changed: row.try_get("changed")?,
                before: row.try_get("before")?,
                after: row.try_get("after")?,
            })
        })
        .collect()
}

/// The part of a row whose changes count. A membership that was only seen again has not changed.
fn essence(row: &Value) -> Value {
    let mut row = row.clone();
    if row.get("group_id").is_some() {
        row.as_object_mut().unwrap().remove("seen_at");
    }
    row
}

/// The columns in which two rows differ, by name.
fn differing(before: &Value, after: &Value) -> Vec<String> {
    let (before, after) = (essence(before), essence(after));
    let names = after.as_object().unwrap().keys();
    let mut names: Vec<String> = names
        .filter(|name| before[*name] != after[*name])
        .cloned()
        .collect();
    names.sort_unstable();
    names
}

/// Whether a change's columns are consistent.
fn fits(change: &Change) -> bool {
    let tenant = |row: &Value| row["organization_id"].as_str() == change.organization_id.as_deref();
    match (change.operation.as_str(), &change.before, &change.after) {
        ("created", None, Some(after)) => change.changed.is_empty() && tenant(after),
        ("deleted", Some(before), None) => change.changed.is_empty() && tenant(before),
        ("updated", Some(before), Some(after)) => {
            !change.changed.is_empty()
                && change.changed == differing(before, after)
                && tenant(before)
                && tenant(after)
        }
        _ => false,
    }
}

/// The rows that the changes add up to. Fails unless every change follows from those before it.
fn added_up(changes: &[Change]) -> anyhow::Result<BTreeMap<(String, String), Value>> {
    let mut rows: BTreeMap<(String, String), Value> = BTreeMap::new();
    for change in changes {
        let key = (change.entity.clone(), change.entity_id.clone());
        let shown = rows.get(&key).map(essence);
        ensure!(
            shown == change.before.as_ref().map(essence),
            "{change:?} does not follow from {shown:?}"
        );
        ensure!(fits(change), "{change:?} is inconsistent");
        match &change.after {
            Some(after) => rows.insert(key, after.clone()),
            None => rows.remove(&key),
        };
    }
    Ok(rows)
}

/// The rows of the views, keyed in the same way as changes.
async fn shown(pool: &PgPool) -> anyhow::Result<BTreeMap<(String, String), Value>> {
    let mut all = BTreeMap::new();
    for (entity, view) in [
        ("directory", "directories"),
        ("user", "users"),
        ("group", "groups"),
        ("membership", "memberships"),
    ] {
        for row in rows(pool, format!("select * from directory.{view}")).await? {
            let id = match entity {
                "membership" => format!(
                    "{}/{}",
                    row["group_id"].as_str().unwrap(),
                    row["user_id"].as_str().unwrap()
                ),
                _ => row["id"].as_str().unwrap().to_owned(),
            };
            all.insert((entity.to_owned(), id), row);
        }
    }
    Ok(all)
}

pub(super) async fn adds_up(pool: &PgPool) -> anyhow::Result<Vec<Change>> {
    let all = changes(pool, 0, i64::MAX).await?;
    let essences = |rows: &BTreeMap<(String, String), Value>| -> BTreeMap<(String, String), Value> {
        rows.iter()
            .map(|(key, row)| (key.clone(), essence(row)))
            .collect()
    };
    let (added, shown) = (essences(&added_up(&all)?), essences(&shown(pool).await?));
    for (key, row) in &shown {
        ensure!(
            added.get(key) == Some(row),
            "{key:?}: shown {row}, the changes add up to {:?}",
            added.get(key)
        );
    }
    for key in added.keys() {
        ensure!(
            shown.contains_key(key),
            "{key:?} is not shown, but the changes add up to it"
        );
    }
    // A change must be in the directory in which the tenant saw the object.
    let elsewhere = rows(
        pool,
        "select change_id, operation, directory_id, before, after from directory.changes
         where directory_id is distinct from case operation when 'deleted' then before else after end ->> 'directory_id'",
    )
    .await?;
    ensure!(
        elsewhere.is_empty(),
        "changes in another directory: {elsewhere:?}"
    );
    Ok(all)
}

/// Polls as a consumer would, until `done` is set and nothing is left. Returns the ids that it saw, in order.
async fn poll(pool: PgPool, done: Arc<AtomicBool>) -> anyhow::Result<Vec<i64>> {
    let mut seen: Vec<i64> = Vec::new();
    loop {
        let over = done.load(Ordering::SeqCst);
        let batch = changes(&pool, seen.last().copied().unwrap_or(0), 7).await?;
        if batch.is_empty() && over {
            return Ok(seen);
        }
        seen.extend(batch.iter().map(|change| change.id));
    }
}

/// Writes batches concurrently, each writer taking the next one.
async fn write_concurrently(pool: &PgPool, batches: Vec<Vec<Record>>, writers: usize) -> anyhow::Result<()> {
    let pool = pool.clone();
    let written = move |batch: Vec<Record>| {
        let pool = pool.clone();
        async move { write(&pool, &batch).await }
    };
    shared_out(batches, writers, written).await
}

pub(super) async fn clear(pool: &PgPool) -> anyhow::Result<()> {
    let tables = "dsync.directories, dsync.users, dsync.groups, dsync.memberships, dsync.changes, \
                  dsync.history_backlog, dsync.history_told_early, dsync.group_history_backlog, \
                  dsync.group_history_told_early";
    sqlx::raw_sql(sqlx::AssertSqlSafe(format!("truncate {tables}")))
        .execute(pool)
        .await?;
    Ok(())
}

/// The records shuffled, some of them repeated, in small batches.
pub(super) fn shuffled(mut records: Vec<Record>, rng: &mut StdRng) -> Vec<Vec<Record>> {
    let again: Vec<Record> = records.sample(rng, records.len() / 3).cloned().collect();
    records.extend(again);
    records.shuffle(rng);
    let mut batches = Vec::new();
    while !records.is_empty() {
        let size = rng.random_range(1..=12).min(records.len());
        batches.push(records.drain(..size).collect());
    }
    batches
}

/// Writes `batches` with four writers while somebody polls, and then `the_rest`. Checks that the poller missed no
/// change, and that the changes add up to the views. Returns the number of changes.
pub(super) async fn written_and_polled(
    postgres: &Postgres,
    batches: Vec<Vec<Record>>,
    the_rest: impl AsyncFnOnce() -> anyhow::Result<()>,
) -> anyhow::Result<usize> {
    let pool = postgres.pool().await?;
    let done = Arc::new(AtomicBool::new(false));
    let poller = tokio::spawn(poll(postgres.pool().await?, done.clone()));
    let written = write_concurrently(&pool, batches, 4).await;
    let the_rest = the_rest().await;
    done.store(true, Ordering::SeqCst);
    let polled = poller.await??;
    written.and(the_rest)?;
    let all = adds_up(&pool).await?;
    let ids: Vec<i64> = all.iter().map(|change| change.id).collect();
    ensure!(polled == ids, "the poller saw {} of {}", polled.len(), ids.len());
    Ok(ids.len())
}

/// Random histories with few objects, contradictions and every oddity, written by four writers while somebody polls.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn changes_add_up_to_the_views_and_a_poller_sees_each() -> anyhow::Result<()> {
    let postgres = Postgres::migrated().await?;
    let pool = postgres.pool().await?;
    let mut most = 0;
    for seed in 0..40 {
        let mut rng = StdRng::seed_from_u64(seed);
        clear(&pool).await?;
        let batches = shuffled(random_records(seed, 200), &mut rng);
        let written = written_and_polled(&postgres, batches, async || Ok(())).await;
        most = most.max(written.with_context(|| format!("seed {seed}"))?);
    }
    ensure!(most > 100, "the histories are too short to prove anything");
    Ok(())
}

/// The whole way: a log, four projector processes, and a consumer that is woken by NOTIFY.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn four_projectors_write_one_history() -> anyhow::Result<()> {
    let (postgres, nats) = tokio::try_join!(Postgres::migrated(), Nats::start())?;
    let (pool, journal) = (postgres.pool().await?, log_on(&nats).await?);
    let sim = Sim::start(Options::default()).await?;
    for options in [
        DirectoryOptions::default(),
        DirectoryOptions::newer(),
        DirectoryOptions::awkward(),
    ] {
        let directory = sim.create_directory(options)?;
        sim.seed(
            &directory,
            &Seed {
                users: 40,
                groups: 6,
                ..Seed::default()
            },
        )?;
    }
    let mut listener = PgListener::connect_with(&pool).await?;
    listener.listen("directory_changes").await?;
    let done = Arc::new(AtomicBool::new(false));
    let poller = tokio::spawn(poll(postgres.pool().await?, done.clone()));
    let mut projectors = Vec::new();
    for _ in 0..4 {
        let program = Program::new("dsync-projector")
            .env("NATS_URL", nats.url())
            .env("DATABASE_URL", postgres.url());
        projectors.push(program.start().await?);
    }
    let mut from = 0;
    for _ in 0..8 {
        let mut new = events(&sim, from);
        from += new.len();
        new.shuffle(&mut rand::rng());
        append(&journal, &new).await?;
        // Projectors hold the lanes in turn.
        projectors[0].terminate().await?;
        projectors[0].start_again()?;
        projectors.rotate_left(1);
        sim.burst(60)?;
    }
    append(&journal, &events(&sim, from)).await?;
    eventually(BOUND, async || agrees(&pool, &sim.truth()).await).await?;
    done.store(true, Ordering::SeqCst);
    let polled = poller.await??;
    let all = adds_up(&pool).await?;
    ensure!(polled == all.iter().map(|change| change.id).collect::<Vec<_>>());
    let mut told = BTreeSet::new();
    while let Ok(notification) =
        tokio::time::timeout(std::time::Duration::from_millis(300), listener.recv()).await
    {
        told.insert(notification?.payload().parse::<i64>()?);
    }
    ensure!(told.last() == polled.last(), "the last change was not announced");
    Ok(())
}

pub(super) fn user(id: &str, second: u32, more: Value) -> Value {
    let mut user = json!({
        "id": id, "directory_id": "d1", "organization_id": "org_1", "state": "active", "email": "ann@example.com",
        "updated_at": moment(second)
    });
    user.as_object_mut()
        .unwrap()
        .extend(more.as_object().unwrap().clone());
    user
}

pub(super) fn event(id: &str, kind: &str, second: u32, data: Value) -> Value {
    json!({"id": id, "event": kind, "created_at": moment(second), "data": data})
}

fn moment(second: u32) -> String {
    format!("2026-01-01T00:00:{second:02}.000Z")
}

fn membership(id: &str, kind: &str, second: u32) -> Value {
    let group = json!({"id": "g1", "directory_id": "d1", "organization_id": "org_1", "name": "Staff", "updated_at": moment(1)});
    event(
        id,
        kind,
        second,
        json!({"directory_id": "d1", "user": user("u1", 1, json!({})), "group": group}),
    )
}

#[tokio::test]
async fn each_change_names_its_cause_and_what_is_not_one_leaves_no_row() -> anyhow::Result<()> {
    let postgres = Postgres::migrated().await?;
    let pool = postgres.pool().await?;
    let directory =
        json!({"id": "d1", "organization_id": "org_1", "state": "linked", "updated_at": moment(1)});
    for (told, expected) in [
        (
            event("e1", "dsync.activated", 1, directory.clone()),
            vec!["created directory d1 e1 1"],
        ),
        (
            membership("e2", "dsync.group.user_added", 2),
            vec![
                "created group g1 e2 2",
                "created membership g1/u1 e2 2",
                "created user u1 e2 2",
            ],
        ),
        (membership("e3", "dsync.group.user_added", 3), vec![]),
        (
            event(
                "e0",
                "dsync.user.created",
                1,
                user("u1", 0, json!({"email": "old"})),
            ),
            vec![],
        ),
        (
            event(
                "e4",
                "dsync.user.updated",
                4,
                user("u1", 4, json!({"email": "new@example.com"})),
            ),
            vec!["updated user u1 e4 4 {email,updated_at}"],
        ),
        (
            event(
                "e4",
                "dsync.user.updated",
                4,
                user("u1", 4, json!({"email": "new@example.com"})),
            ),
            vec![],
        ),
        (
            event("e5", "dsync.user.deleted", 5, user("u1", 4, json!({}))),
            vec!["deleted membership g1/u1 e5 5", "deleted user u1 e5 5"],
        ),
        (membership("e6", "dsync.group.user_removed", 6), vec![]),
        (
            event("e7", "dsync.user.created", 7, user("u1", 7, json!({}))),
            vec!["created user u1 e7 7"],
        ),
        (
            membership("e8", "dsync.group.user_added", 8),
            vec!["created membership g1/u1 e8 8"],
        ),
        (
            event(
                "e9",
                "dsync.group.deleted",
                9,
                json!({"id": "g1", "directory_id": "d1"}),
            ),
            vec!["deleted group g1 e9 9", "deleted membership g1/u1 e9 9"],
        ),
        (
            event("e10", "dsync.deleted", 10, directory),
            vec!["deleted directory d1 e10 10", "deleted user u1 e10 10"],
        ),
    ] {
        let last = text(&pool, "select coalesce(max(change_id), 0) from directory.changes")
            .await?
            .unwrap();
        tell(&pool, told.clone()).await?;
        let found = rows(
            &pool,
            format!(
                "select operation || ' ' || entity || ' ' || entity_id || ' ' || event_id || ' '
                    || extract(second from occurred_at)::int
                    || case operation when 'updated' then ' ' || changed::text else '' end as change
                 from directory.changes where change_id > {last} and source = 'webhook'"
            ),
        )
        .await?;
        let mut found: Vec<&str> = found.iter().map(|row| row["change"].as_str().unwrap()).collect();
        found.sort_unstable();
        ensure!(found == expected, "{told}: {found:?}");
    }
    adds_up(&pool).await?;
    Ok(())
}

#[tokio::test]
async fn a_number_written_in_another_way_is_no_change() -> anyhow::Result<()> {
    let postgres = Postgres::migrated().await?;
    let pool = postgres.pool().await?;
    for (second, level) in [(1, json!(1)), (2, json!(1.0)), (3, json!(2)), (4, json!(2.0))] {
        let more = json!({"custom_attributes": {"level": level, "team": "a"}});
        let id = format!("e{second}");
        tell(
            &pool,
            event(&id, "dsync.user.updated", second, user("u1", 1, more)),
        )
        .await?;
    }
    let told = text(
        &pool,
        "select string_agg(event_id || ' ' || operation || ' ' || changed::text, ', ' order by change_id)
         from directory.changes",
    )
    .await?;
    let expected = "e1 created {}, e3 updated {custom_attributes}";
    ensure!(told.as_deref() == Some(expected), "{told:?}");
    Ok(())
}

#[tokio::test]
async fn a_directory_that_changes_hands_leaves_one_tenant_and_enters_the_other() -> anyhow::Result<()> {
    let postgres = Postgres::migrated().await?;
    let pool = postgres.pool().await?;
    let directory = |organization: &str, second| {
        let data = json!({"id": "d1", "organization_id": organization, "state": "linked", "updated_at": moment(second)});
        event(&format!("e{second}"), "dsync.activated", second, data)
    };
    tell(&pool, directory("org_1", 1)).await?;
    tell(
        &pool,
        event("e2", "dsync.user.created", 2, user("u1", 2, json!({}))),
    )
    .await?;
    tell(&pool, directory("org_2", 3)).await?;
    let found = rows(
        &pool,
        "select change_id, operation, organization_id, event_id from directory.changes where entity = 'user'",
    )
    .await?;
    let found: Vec<String> = found
        .iter()
        .map(|row| {
            format!(
                "{} {} {}",
                row["operation"], row["organization_id"], row["event_id"]
            )
            .replace('"', "")
        })
        .collect();
    assert_eq!(
        found,
        ["created org_1 e2", "deleted org_1 e3", "created org_2 e3"]
    );
    adds_up(&pool).await?;
    Ok(())
}

#[tokio::test]
async fn who_moves_to_a_directory_of_another_tenant_is_deleted_in_the_old_directory() -> anyhow::Result<()> {
    let postgres = Postgres::migrated().await?;
    let pool = postgres.pool().await?;
    for n in 1..=2 {
        let data = json!({
            "id": format!("d{n}"), "organization_id": format!("org_{n}"), "state": "linked", "updated_at": moment(1)
        });
        tell(&pool, event(&format!("e{n}"), "dsync.activated", 1, data)).await?;
    }
    let group = |second, directory: &str| json!({"id": "g1", "directory_id": directory, "name": "Staff", "updated_at": moment(second)});
    for (second, directory) in [(2, "d1"), (3, "d2")] {
        let user = user("u1", second, json!({"directory_id": directory}));
        let id = |kind: &str| format!("{kind}{second}");
        tell(&pool, event(&id("u"), "dsync.user.updated", second, user.clone())).await?;
        tell(
            &pool,
            event(&id("g"), "dsync.group.updated", second, group(second, directory)),
        )
        .await?;
        let both = json!({"directory_id": directory, "user": user, "group": group(second, directory)});
        tell(&pool, event(&id("m"), "dsync.group.user_added", second, both)).await?;
    }
    for entity in ["user", "group", "membership"] {
        let found = rows(
            &pool,
            format!(
                "select to_char(change_id, '0000') as change_id, operation, organization_id, directory_id
                 from directory.changes where entity = '{entity}'"
            ),
        )
        .await?;
        let found: Vec<String> = found
            .iter()
            .map(|row| {
                let text = |name: &str| row[name].as_str().unwrap_or("none").to_owned();
                format!(
                    "{} {} {}",
                    text("operation"),
                    text("organization_id"),
                    text("directory_id")
                )
            })
            .collect();
        assert_eq!(
            found,
            ["created org_1 d1", "deleted org_1 d1", "created org_2 d2"],
            "{entity}"
        );
    }
    adds_up(&pool).await?;
    Ok(())
}

#[tokio::test]
async fn a_batch_is_announced_once_and_one_without_changes_not_at_all() -> anyhow::Result<()> {
    let postgres = Postgres::migrated().await?;
    let pool = postgres.pool().await?;
    let mut listener = PgListener::connect_with(&pool).await?;
    listener.listen("directory_changes").await?;
    let batch: Vec<Record> = (0..30)
        .map(|n| {
            event(
                &format!("e{n}"),
                "dsync.user.created",
                2,
                user(&format!("u{n}"), 2, json!({})),
            )
        })
        .chain([membership("m1", "dsync.group.user_added", 3)])
        .map(|body| super::record(body.to_string().as_bytes(), schema::record::Source::Webhook))
        .collect();
    write(&pool, &batch).await?;
    write(&pool, &batch).await?;
    tell(
        &pool,
        event("last", "dsync.user.created", 2, user("last", 2, json!({}))),
    )
    .await?;
    let mut told = Vec::new();
    for _ in 0..2 {
        told.push(
            tokio::time::timeout(BOUND, listener.recv())
                .await??
                .payload()
                .to_owned(),
        );
    }
    let highest = rows(
        &pool,
        "select max(change_id)::text as highest from directory.changes group by entity_id = 'last'",
    )
    .await?;
    let highest: Vec<&str> = highest
        .iter()
        .map(|row| row["highest"].as_str().unwrap())
        .collect();
    assert_eq!(told, highest);
    Ok(())
}

#[tokio::test]
async fn a_rebuild_may_write_without_history() -> anyhow::Result<()> {
    let postgres = Postgres::migrated().await?;
    let pool = postgres.pool().await?;
    let mut transaction = pool.begin().await?;
    sqlx::raw_sql("set local dsync.history = off")
        .execute(&mut *transaction)
        .await?;
    sqlx::raw_sql("insert into dsync.users (id, directory_id, seen_at) values ('u', 'd', now())")
        .execute(&mut *transaction)
        .await?;
    transaction.commit().await?;
    assert_eq!(changes(&pool, 0, 10).await?.len(), 0);
    assert_eq!(rows(&pool, "select id from directory.users").await?.len(), 1);
    Ok(())
}
