//! The most important invariant: order, duplication and batching of the log, and the number of projectors, never change
//! the tables. Tested with random histories against a real Postgres and a real log.
//!
//! A test fails if any byte of any projected table differs from the same history applied once, in order, in one batch;
//! or if a view differs from what the pure fold calls live.

#![allow(clippy::unwrap_used, reason = "a test")]

mod counted;
mod cursor;
mod damaged;
mod erasing;
mod history;
mod holes;
mod incomplete;
mod projection;
mod rebuilding;
mod rebuilding_erased;
mod renewing;
mod silent;

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use journal::Journal;
use projection::{clear, log_on, random_records, record, shuffled, write, write_concurrently};
use projector::lane::Lane;
use projector::metrics::Metrics;
use projector::run::{Tuning, Worker};
use projector::store;
use rand::prelude::*;
use schema::event::Event;
use schema::json::storable;
use schema::observe::observe;
use schema::picture::Picture;
use schema::record::Record;
use service::clock::Clock;
use sqlx::{AssertSqlSafe, PgPool};
use tests::{Nats, Postgres, eventually};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// The most records in a batch.
const LARGEST: usize = 30;

const TABLES: [(&str, &str); 4] = [
    ("directories", "id"),
    ("users", "id"),
    ("groups", "id"),
    ("memberships", "group_id, user_id"),
];

/// The records of a mixed history; the same seed gives the same ones.
fn records(seed: u64) -> Vec<Record> {
    random_records(seed, 150)
}

/// The projected tables, with every register of every row, byte for byte.
async fn tables(pool: &PgPool) -> anyhow::Result<Vec<String>> {
    let mut all = Vec::new();
    for (table, key) in TABLES {
        let sql = format!("select '{table} ' || t::text from dsync.{table} as t order by {key}");
        all.extend(
            sqlx::query_scalar::<_, String>(AssertSqlSafe(sql))
                .fetch_all(pool)
                .await?,
        );
    }
    Ok(all)
}

/// The observations of all records, folded, borrowing from `texts`.
fn pictured<'a>(texts: &'a [String], records: &[Record]) -> Picture<'a> {
    let mut picture = Picture::default();
    for (text, record) in texts.iter().zip(records) {
        let event = Event::parse(text).unwrap();
        for observation in observe(&event, record.source, record.received_at).unwrap() {
            picture.add(observation);
        }
    }
    picture
}

fn texts(records: &[Record]) -> Vec<String> {
    records
        .iter()
        .map(|record| storable(&record.body).unwrap().into_owned())
        .collect()
}

/// Checks that the views show exactly what the pure fold calls live.
async fn views_agree(pool: &PgPool, records: &[Record]) -> anyhow::Result<()> {
    let texts = texts(records);
    let picture = pictured(&texts, records);
    let shown = |sql: &'static str| async move {
        let rows: Vec<String> = sqlx::query_scalar(sql).fetch_all(pool).await?;
        anyhow::Ok(rows.into_iter().collect::<BTreeSet<_>>())
    };
    let live: BTreeSet<String> = picture
        .directories
        .keys()
        .filter(|id| picture.directory_is_live(id))
        .map(ToString::to_string)
        .collect();
    ensure!(
        shown("select id from directory.directories").await? == live,
        "directories"
    );
    let live: BTreeSet<String> = picture
        .users
        .keys()
        .filter(|id| picture.user_is_live(id))
        .map(ToString::to_string)
        .collect();
    ensure!(shown("select id from directory.users").await? == live, "users");
    let live: BTreeSet<String> = picture
        .groups
        .keys()
        .filter(|id| picture.group_is_live(id))
        .map(ToString::to_string)
        .collect();
    ensure!(shown("select id from directory.groups").await? == live, "groups");
    let live: BTreeSet<String> = picture
        .memberships
        .keys()
        .filter(|(group, user)| picture.membership_is_live(group, user))
        .map(|(group, user)| format!("{group}/{user}"))
        .collect();
    ensure!(
        shown("select group_id || '/' || user_id from directory.memberships").await? == live,
        "memberships"
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn any_order_duplication_and_batching_by_any_number_of_writers_gives_equal_tables() -> anyhow::Result<()>
{
    let postgres = Postgres::migrated().await?;
    let pool = postgres.pool().await?;
    for seed in 0..54 {
        let records = records(seed);
        let mut rng = StdRng::seed_from_u64(seed);
        clear(&pool).await?;
        write(&pool, &records).await?;
        let expected = tables(&pool).await?;
        ensure!(
            expected.len() > 10,
            "seed {seed}: the history is too short to prove anything"
        );
        views_agree(&pool, &records)
            .await
            .with_context(|| format!("seed {seed}: a view differs from what is live"))?;
        clear(&pool).await?;
        let writers = [1, 2, 4][usize::try_from(seed % 3)?];
        write_concurrently(&pool, shuffled(&records, LARGEST, &mut rng), writers).await?;
        ensure!(
            tables(&pool).await? == expected,
            "seed {seed}, {writers} writers: the tables differ"
        );
    }
    Ok(())
}

/// Appends a history, shuffled and with repetitions, each record under a message id of its own.
async fn append(journal: &Journal, records: &[Record], rng: &mut StdRng) -> anyhow::Result<u64> {
    let mut last = 0;
    for (nth, mut record) in shuffled(records, LARGEST, rng).into_iter().flatten().enumerate() {
        record.id = format!("{}-{nth}", record.id);
        let journal::Appended::Stored { seq } = journal.append(&record).await? else {
            anyhow::bail!("a unique message id was taken for a duplicate");
        };
        last = seq;
    }
    Ok(last)
}

/// A worker with production settings, which works until `shutdown`.
fn worker(pool: PgPool, journal: Journal, shutdown: &CancellationToken) -> Worker {
    Worker {
        pool,
        journal,
        holder: "projector".to_owned(),
        clock: Clock::system(),
        metrics: Metrics::new(&prometheus::Registry::new()),
        tuning: Tuning::default(),
        shutdown: shutdown.clone(),
    }
}

/// Waits until somebody waits for a lock in `pg_locks` that satisfies `meant`.
async fn somebody_waits(pool: &PgPool, meant: &str) -> anyhow::Result<()> {
    eventually(Duration::from_mins(1), async || {
        let asked = format!("select exists (select from pg_locks where {meant} and not granted)");
        let waits: bool = sqlx::query_scalar(AssertSqlSafe(asked)).fetch_one(pool).await?;
        ensure!(waits, "nobody waits for a lock");
        Ok(())
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn projectors_that_all_hold_the_lease_at_once_give_equal_tables() -> anyhow::Result<()> {
    let (postgres, mut nats) = (Postgres::migrated().await?, Nats::start().await?);
    let pool = postgres.pool().await?;
    for seed in 100..112 {
        let records = records(seed);
        let mut rng = StdRng::seed_from_u64(seed);
        clear(&pool).await?;
        write(&pool, &records).await?;
        let expected = tables(&pool).await?;
        clear(&pool).await?;
        nats.wipe().await?;
        let journal = log_on(&nats).await?;
        let last = append(&journal, &records, &mut rng).await?;

        let projectors = [1, 2, 4][usize::try_from(seed % 3)?];
        let shutdown = CancellationToken::new();
        let mut tasks = JoinSet::new();
        for number in 0..projectors {
            let worker = Worker {
                holder: format!("projector {number}"),
                // Leases expire at once, so only the compare-and-set keeps projectors apart.
                tuning: Tuning {
                    lease: Duration::ZERO,
                    batch_records: rng.random_range(1..40),
                    batch_bytes: 1 << 20,
                    ..Tuning::default()
                },
                ..worker(postgres.pool().await?, log_on(&nats).await?, &shutdown)
            };
            for lane in Lane::EVERY {
                tasks.spawn(worker.clone().work(lane));
            }
        }
        eventually(Duration::from_mins(1), async || {
            let position = store::progress::position(&pool, Lane::All)
                .await?
                .context("not begun")?;
            ensure!(position.seq == last, "at {} of {last}", position.seq);
            Ok(())
        })
        .await?;
        shutdown.cancel();
        tasks.join_all().await;
        ensure!(
            tables(&pool).await? == expected,
            "seed {seed}, {projectors} projectors: the tables differ"
        );
    }
    Ok(())
}
