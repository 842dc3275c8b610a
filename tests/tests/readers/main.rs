//! What readers get: history and the feed (and what those cost to write), roles, isolation, forgetting. One module for
//! each promise, all against real servers.

#![allow(
    clippy::unwrap_used,
    clippy::similar_names,
    clippy::needless_pass_by_value,
    clippy::format_push_string,
    clippy::format_collect,
    clippy::too_many_lines,
    reason = "tests: written as stories, with data made by hand"
)]

mod adding_up;
mod as_of;
mod bodies;
mod changes;
mod ends;
mod ends_of_groups;
mod forgetting;
mod heap_only;
#[path = "../model/history.rs"]
mod history;
mod in_rust;
mod isolation;
mod planned;
mod recipes;
mod rights;
mod roles;
mod roles_by_hand;
mod upkeep;

use std::time::Duration;

use anyhow::Context as _;
use bytes::Bytes;
use journal::{Appended, Connection, Entry, Journal, Limits};
use projector::fold::{Texts, fold};
use projector::store;
use schema::record::{Received, Record, Source};
use schema::timestamp::Timestamp;
use serde_json::Value;
use sqlx::{AssertSqlSafe, PgConnection, PgPool};
use tests::{Nats, Postgres};
use workos_sim::Sim;

/// Long enough for a busy machine. Nothing that works takes this long.
const BOUND: Duration = Duration::from_mins(2);

fn record(body: &[u8], source: Source) -> Record {
    let at = Timestamp::from_micros(1_714_557_600_000_000);
    match Record::receive(Bytes::copy_from_slice(body), source, None, at) {
        Received::Event(record) | Received::Quarantined(record, _) => record,
        Received::NotOurs => panic!("all events here are directory events"),
    }
}

/// The random history of the model tests, as records.
fn random_records(seed: u64, length: usize) -> Vec<Record> {
    records_of_day(seed, length, 1)
}

/// The same on another day of the month. All of its times are later than those in a history of an earlier day.
fn records_of_day(seed: u64, length: usize, day: usize) -> Vec<Record> {
    history::history(seed, length)
        .iter()
        .map(|body| {
            let source = if body.is_sweep {
                Source::Sweep
            } else {
                Source::Webhook
            };
            let json =
                String::from_utf8_lossy(&body.json).replace("2024-05-01", &format!("2024-05-{day:02}"));
            record(json.as_bytes(), source)
        })
        .collect()
}

/// Writes a batch in a transaction of its own, as a projector does.
async fn write(pool: &PgPool, records: &[Record]) -> anyhow::Result<()> {
    let mut transaction = pool.begin().await?;
    write_within(&mut transaction, records).await?;
    transaction.commit().await?;
    Ok(())
}

async fn write_within(transaction: &mut PgConnection, records: &[Record]) -> anyhow::Result<()> {
    let entries: Vec<Entry> = records
        .iter()
        .map(|record| Entry {
            seq: 1,
            appended_at: record.received_at,
            record: record.clone(),
        })
        .collect();
    let texts = Texts::of(&entries);
    store::write(transaction, &fold(&entries, &texts).picture).await?;
    Ok(())
}

/// Writes one event given as JSON.
async fn tell(pool: &PgPool, body: Value) -> anyhow::Result<()> {
    write(pool, &[record(body.to_string().as_bytes(), Source::Webhook)]).await
}

/// The simulator's events from the `from`th on, as records.
fn events(sim: &Sim, from: usize) -> Vec<Record> {
    sim.events()[from..]
        .iter()
        .map(|event| record(event.body().as_bytes(), Source::Webhook))
        .collect()
}

/// Creates a log, and returns a handle to it.
async fn log_on(nats: &Nats) -> anyhow::Result<Journal> {
    let journal = Journal::connect(&Connection {
        url: nats.url(),
        creds: None,
        ca: None,
        stream: "DSYNC".to_owned(),
        name: "test".to_owned(),
    })
    .await?;
    let limits = Limits {
        replicas: 1,
        max_age: Duration::ZERO,
        max_bytes: 0,
        // Short, so that a late retry is stored again.
        dedup_window: Duration::from_millis(100),
    };
    journal.ensure(&limits).await?;
    Ok(journal)
}

async fn append(journal: &Journal, records: &[Record]) -> anyhow::Result<u64> {
    let mut last = 0;
    for record in records {
        let (Appended::Stored { seq } | Appended::Duplicate { seq }) = journal.append(record).await?;
        last = last.max(seq);
    }
    Ok(last)
}

/// Connects as an application: with a login that was granted `role`, confined to `organization` if one is given.
async fn reader(postgres: &Postgres, role: &str, organization: Option<&str>) -> anyhow::Result<PgPool> {
    let (login, password) = (format!("app_of_{role}"), "of-the-application");
    let admin = postgres.pool().await?;
    let statement = format!(
        "do $$ begin
            if not exists (select from pg_roles where rolname = '{login}') then
                create role {login} login password '{password}' in role {role};
            end if;
        end $$"
    );
    sqlx::raw_sql(AssertSqlSafe(statement)).execute(&admin).await?;
    let mut options: sqlx::postgres::PgConnectOptions = postgres.url_as(&login, password).parse()?;
    if let Some(organization) = organization {
        options = options.options([("dsync.organization_id", organization)]);
    }
    sqlx::postgres::PgPoolOptions::new()
        .max_connections(2)
        .acquire_timeout(Duration::from_secs(20))
        .connect_with(options)
        .await
        .context("the application cannot connect")
}

/// The rows of a query as JSON, sorted by their text.
async fn rows(pool: &PgPool, query: impl Into<String>) -> anyhow::Result<Vec<Value>> {
    let sql = format!(
        "select to_jsonb(q) from ({}) as q order by to_jsonb(q)::text",
        query.into()
    );
    Ok(sqlx::query_scalar(AssertSqlSafe(sql)).fetch_all(pool).await?)
}

/// The first column of a query's first row, as text.
async fn text(pool: &PgPool, query: impl Into<String>) -> anyhow::Result<Option<String>> {
    let sql = format!("select q.v::text from ({}) as q (v)", query.into());
    Ok(sqlx::query_scalar(AssertSqlSafe(sql))
        .fetch_optional(pool)
        .await?
        .flatten())
}
