//! Why a lane's position moves by compare-and-set: with the same two workers and the same kills, a position that is
//! only a high-water mark loses events. The comparison with the source that judges every end-to-end test finds the
//! loss.
//!
//! Workers take batches from one log in turn, write them in any order and may be killed while holding a batch. A
//! restarted worker continues from the position in Postgres.

use anyhow::{Context as _, ensure};
use bytes::Bytes;
use journal::Entry;
use projector::apply::{self, Batch};
use projector::lane::Lane;
use projector::store::progress::{self, Position};
use rand::prelude::*;
use schema::record::{Received, Record, Source};
use schema::timestamp::Timestamp;
use service::clock::Clock;
use sqlx::PgPool;
use tests::{Postgres, differences};
use workos_sim::{DirectoryOptions, Options, Seed, Sim};

use super::clear;

/// What a worker compares the position with when it writes a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Rule {
    /// The start of the batch, as dsync does.
    CompareAndSet,
    /// Nothing: the position may be anywhere, as long as it does not move back.
    HighWaterMark,
}

/// A log of the simulator's events.
fn log(sim: &Sim) -> anyhow::Result<Vec<Entry>> {
    let appended_at = Timestamp::from(Clock::system().now());
    let entry = |(seq, event): (u64, workos_sim::Event)| {
        let body = Bytes::from(event.body().to_owned());
        match Record::receive(body, Source::Webhook, None, appended_at) {
            Received::Event(record) => Ok(Entry {
                seq,
                appended_at,
                record,
            }),
            other => anyhow::bail!("{other:?}"),
        }
    };
    (1..).zip(sim.events()).map(entry).collect()
}

async fn position(pool: &PgPool) -> anyhow::Result<Position> {
    progress::position(pool, Lane::All)
        .await?
        .context("the lane has not begun")
}

async fn mark(pool: &PgPool, seq: u64) -> anyhow::Result<()> {
    sqlx::query("update dsync.progress set seq = $1 where lane = 'all'")
        .bind(i64::try_from(seq)?)
        .execute(pool)
        .await?;
    Ok(())
}

/// Works through the log. Returns how often a batch was refused.
async fn work(pool: &PgPool, log: &[Entry], rule: Rule, seed: u64) -> anyhow::Result<usize> {
    let mut rng = StdRng::seed_from_u64(seed);
    let begin = Timestamp::from_micros(1);
    progress::begin(pool, "DSYNC", begin).await?;
    // The position after which the next batch is believed to begin, and the batch that each worker holds.
    let (mut next, mut held, mut turned_away) = (0, [None::<&[Entry]>, None], 0);
    while next < log.len() || held.iter().any(Option::is_some) {
        let worker = rng.random_range(0..2);
        let Some(batch) = held[worker].take() else {
            let size = rng.random_range(1..12).min(log.len() - next);
            held[worker] = (size > 0).then(|| &log[next..next + size]);
            next += size;
            continue;
        };
        let now = position(pool).await?;
        if rng.random_ratio(1, 4) {
            // Killed while holding a batch. The replacement continues from the position in Postgres.
            next = usize::try_from(now.seq)?;
            continue;
        }
        let last = batch.last().context("no batch is empty")?.seq;
        let from = match rule {
            Rule::CompareAndSet => Position {
                seq: batch[0].seq - 1,
                seq_appended_at: None,
                ..now
            },
            Rule::HighWaterMark => now,
        };
        let batch = Batch {
            lane: Lane::All,
            from,
            entries: batch,
            holes: &[],
            lease: ("worker", std::time::Duration::ZERO),
        };
        let mut connection = pool.acquire().await?;
        match apply::apply(&mut connection, batch, Clock::system().now()).await {
            // A high-water mark does not move back, even after an older batch was written.
            Ok(_) if last < now.seq => mark(pool, now.seq).await?,
            Ok(_) => {}
            Err(apply::Error::Overtaken) => {
                turned_away += 1;
                next = usize::try_from(position(pool).await?.seq)?;
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(turned_away)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_high_water_mark_loses_what_compare_and_set_keeps() -> anyhow::Result<()> {
    let sim = Sim::start(Options::default()).await?;
    let directory = sim.create_directory(DirectoryOptions::default())?;
    sim.seed(
        &directory,
        &Seed {
            users: 30,
            ..Seed::default()
        },
    )?;
    sim.burst(100)?;
    let (log, truth) = (log(&sim)?, sim.truth());
    let postgres = Postgres::migrated().await?;
    let pool = postgres.pool().await?;
    let (mut turned_away, mut lossy) = (0, 0);
    for seed in 0..4 {
        clear(&pool).await?;
        turned_away += work(&pool, &log, Rule::CompareAndSet, seed).await?;
        let lost = differences(&pool, &truth).await?;
        ensure!(
            lost.is_empty(),
            "seed {seed}: {} differences, {}",
            lost.len(),
            lost[0]
        );
        clear(&pool).await?;
        work(&pool, &log, Rule::HighWaterMark, seed).await?;
        lossy += usize::from(!differences(&pool, &truth).await?.is_empty());
    }
    ensure!(turned_away > 10, "only {turned_away} batches were refused");
    ensure!(
        lossy >= 1,
        "a high-water mark lost nothing in 4 runs, so this test proves nothing"
    );
    Ok(())
}
