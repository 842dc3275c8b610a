//! Random records, and writing them to the tables as a projector does. Serves the tests of `model` and of `readers`.

use std::time::Duration;

use anyhow::{Context as _, ensure};
use bytes::Bytes;
use journal::{Connection, Entry, Journal, Limits};
use projector::fold::{Outcome, Texts, fold};
use projector::store;
use rand::prelude::*;
use schema::record::{Received, Record, Source};
use schema::timestamp::Timestamp;
use sqlx::{AssertSqlSafe, PgConnection, PgPool};
use tests::{Nats, shared_out};

use crate::history::history;

/// Tables in which a database without any record has rows, too: those that the migrations insert, and an operator's
/// rules for roles, which refer to one of those.
const KEPT: [&str; 8] = [
    "schema_history",
    "feed",
    "history",
    "duties",
    "every_tenant",
    "role_versions",
    "role_priorities",
    "role_rules",
];

pub(crate) fn record(body: &[u8], source: Source) -> Record {
    let at = Timestamp::from_micros(1_714_557_600_000_000);
    match Record::receive(Bytes::copy_from_slice(body), source, None, at) {
        Received::Event(record) | Received::Quarantined(record, _) => record,
        Received::NotOurs => panic!("all events here are directory events"),
    }
}

/// A random history as records; the same seed gives the same ones.
pub(crate) fn random_records(seed: u64, length: usize) -> Vec<Record> {
    records_of_day(seed, length, 1)
}

/// The same on another day of the month. All of its times are later than those in a history of an earlier day.
pub(crate) fn records_of_day(seed: u64, length: usize, day: usize) -> Vec<Record> {
    let bodies = history(seed, length).into_iter().enumerate();
    let records = bodies.map(|(nth, body)| {
        let source = match (body.is_sweep, nth % 3) {
            (true, _) => Source::Sweep,
            (false, 0) => Source::EventsApi,
            (false, _) => Source::Webhook,
        };
        let json = String::from_utf8_lossy(&body.json).replace("2024-05-01", &format!("2024-05-{day:02}"));
        record(json.as_bytes(), source)
    });
    records.collect()
}

/// The records shuffled, with a third of them repeated, in batches of random sizes up to `largest`.
pub(crate) fn shuffled(records: &[Record], largest: usize, rng: &mut StdRng) -> Vec<Vec<Record>> {
    let again = records.sample(rng, records.len() / 3).cloned();
    let mut all: Vec<Record> = records.iter().cloned().chain(again).collect();
    all.shuffle(rng);
    let mut batches = Vec::new();
    while !all.is_empty() {
        let size = rng.random_range(1..=largest).min(all.len());
        batches.push(all.drain(..size).collect());
    }
    batches
}

/// Writes a batch in a transaction of its own, as a projector does.
pub(crate) async fn write(pool: &PgPool, records: &[Record]) -> anyhow::Result<()> {
    let mut transaction = pool.begin().await?;
    write_within(&mut transaction, records).await?;
    transaction.commit().await?;
    Ok(())
}

/// Fails if a record cannot be understood: a projector would set it aside, and the test would prove nothing.
pub(crate) async fn write_within(transaction: &mut PgConnection, records: &[Record]) -> anyhow::Result<()> {
    let entries: Vec<Entry> = records
        .iter()
        .map(|record| Entry {
            seq: 1,
            appended_at: record.received_at,
            record: record.clone(),
        })
        .collect();
    let texts = Texts::of(&entries);
    let fold = fold(&entries, &texts);
    for (record, outcome) in records.iter().zip(&fold.outcomes) {
        ensure!(!matches!(outcome, Outcome::Dead(_)), "{}: {outcome:?}", record.id);
    }
    store::write(transaction, &fold.picture).await?;
    Ok(())
}

/// Writes batches concurrently, each writer taking the next one. Only the statements themselves keep order from
/// mattering.
pub(crate) async fn write_concurrently(
    pool: &PgPool,
    batches: Vec<Vec<Record>>,
    writers: usize,
) -> anyhow::Result<()> {
    let pool = pool.clone();
    let written = move |batch: Vec<Record>| {
        let pool = pool.clone();
        async move { write(&pool, &batch).await }
    };
    shared_out(batches, writers, written).await
}

/// Empties the tables, so that a test can begin anew in the same database. Asks the catalogue for them, so that a new
/// table is not forgotten.
pub(crate) async fn clear(pool: &PgPool) -> anyhow::Result<()> {
    let tables: Option<String> = sqlx::query_scalar(
        "select string_agg('dsync.' || quote_ident(relname), ', ') from pg_class
         where relnamespace = 'dsync'::regnamespace and relkind in ('r', 'p') and not relispartition
            and relname <> all ($1)",
    )
    .bind(KEPT.as_slice())
    .fetch_one(pool)
    .await?;
    let tables = tables.context("the database has no tables")?;
    sqlx::raw_sql(AssertSqlSafe(format!("truncate {tables}")))
        .execute(pool)
        .await?;
    Ok(())
}

/// Creates a log, and returns a handle to it.
pub(crate) async fn log_on(nats: &Nats) -> anyhow::Result<Journal> {
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
        // The shortest possible, so that what is appended again later is stored again.
        dedup_window: Duration::from_millis(100),
    };
    journal.ensure(&limits).await?;
    Ok(journal)
}
