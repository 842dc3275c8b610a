//! Holds the feed against the views: added up, its changes must make what the views show, and whoever polls must have seen
//! each of them.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::ensure;
use rand::prelude::*;
use schema::record::Record;
use serde_json::Value;
use sqlx::{PgPool, Row as _};
use tests::{Postgres, shared_out};

use super::{rows, write};

/// A change as a consumer sees it.
#[derive(Debug, Clone)]
pub(super) struct Change {
    pub(super) id: i64,
    entity: String,
    entity_id: String,
    operation: String,
    organization_id: Option<String>,
    changed: Vec<String>,
    before: Option<Value>,
    after: Option<Value>,
}

pub(super) async fn changes(pool: &PgPool, after: i64, limit: i64) -> anyhow::Result<Vec<Change>> {
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
pub(super) async fn poll(pool: PgPool, done: Arc<AtomicBool>) -> anyhow::Result<Vec<i64>> {
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
