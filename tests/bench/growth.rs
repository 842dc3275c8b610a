//! How size affects speed: events appended and applied per second with a large log and large tables, as a ratio to the
//! same with small ones, measured in turn. Also prints the memory that a log's subjects take in the broker, which
//! operators must provide for.
//!
//! Run: `ops/bench growth` (`USERS`, `MESSAGES` set sizes other than 5 and 10 million; the log takes 1.2 kB of disk
//! per message, the tables 1 kB per user).

#![allow(
    clippy::unwrap_used,
    clippy::cast_precision_loss,
    missing_docs,
    reason = "a benchmark"
)]

#[expect(dead_code, reason = "it has other mixes and windows, too")]
mod events;
mod log;

use std::time::{Duration, Instant};

use anyhow::Context as _;
use bytes::Bytes;
use futures_util::{StreamExt as _, stream};
use journal::Journal;
use projector::store::progress;
use schema::record::{Record, Source, Subject};
use schema::timestamp::Timestamp;
use sqlx::{AssertSqlSafe, PgPool};
use tests::{Durability, Nats, NatsOptions, Postgres, rss};

use events::{Mix, Numbers, applied, fill, log_with, median};

const ROUNDS: usize = 5;
const EVENTS: usize = 20_000;
const SMALL: usize = 100_000;
/// Shorter than filling the log takes, so that the broker's memory of message ids is not part of the measurement.
const WINDOW: Duration = Duration::from_secs(10);

/// A log and tables of a given size.
struct World {
    nats: Nats,
    journal: Journal,
    _postgres: Postgres,
    pool: PgPool,
    numbers: Numbers,
}

impl World {
    async fn of(users: usize, messages: usize) -> anyhow::Result<Self> {
        let nats = Nats::with(NatsOptions {
            lazy_sync: true,
            ..NatsOptions::default()
        })
        .await?;
        let postgres = Postgres::with(Durability::Full).await?;
        postgres.migrate().await?;
        let journal = log_with(&nats, WINDOW).await?;
        let world = Self {
            pool: postgres.pool().await?,
            nats,
            journal,
            _postgres: postgres,
            numbers: Numbers {
                events: EVENTS,
                people: users,
                apart: users / EVENTS,
                group: |_, n| n,
            },
        };
        world.write_log(messages).await?;
        world.write_tables(users).await?;
        Ok(world)
    }

    /// Writes old messages about half as many users, and sets the lane's position as if it had read them.
    async fn write_log(&self, messages: usize) -> anyhow::Result<()> {
        let (empty, mut told) = (self.memory()?, SMALL);
        for from in (0..messages).step_by(SMALL) {
            stream::iter(from..messages.min(from + SMALL))
                .map(|n| async move { self.journal.append(&old(n, messages / 2)).await.unwrap() })
                .buffer_unordered(512)
                .for_each(async |_| {})
                .await;
            let there = messages.min(from + SMALL);
            if there >= told || there == messages {
                println!(
                    "{:>10} messages on {:>9} subjects: the broker's memory {:>5.0} MB, {:.0} MB more than empty",
                    there,
                    there.min(messages / 2),
                    self.memory()?,
                    self.memory()? - empty
                );
                told *= 10;
            }
        }
        let log = self.journal.identity().await?.context("no stream")?;
        progress::begin(&self.pool, "DSYNC", log.created).await?;
        sqlx::query("update dsync.progress set seq = $1")
            .bind(i64::try_from(log.last_seq)?)
            .execute(&self.pool)
            .await?;
        Ok(())
    }

    async fn write_tables(&self, users: usize) -> anyhow::Result<()> {
        let statement = format!(
            "begin;
            set local dsync.history = off;
            insert into dsync.users (id, directory_id, organization_id, own_organization_id, idp_id, email, state, role,
                    roles, custom_attributes, raw_attributes, created_at, updated_at, seen_at)
                select 'directory_user_' || lpad(u::text, 26, '0'), 'directory_' || u % 10, 'org_1', 'org_1',
                    'idp_' || u, 'user' || u || '@example.com', 'active', 'member', '{{member}}',
                    jsonb_build_object('department', 'd' || u % 7), jsonb_build_object('a', repeat('x', 400)),
                    '2026-01-01', '2025-01-01', '2025-01-01'
                from generate_series(0, {users} - 1) as u;
            commit;
            vacuum analyze"
        );
        let mut connection = self.pool.acquire().await?;
        for part in statement.split(';') {
            sqlx::raw_sql(AssertSqlSafe(part.to_owned()))
                .execute(&mut *connection)
                .await?;
        }
        Ok(())
    }

    /// The broker's memory in MB.
    fn memory(&self) -> anyhow::Result<f64> {
        Ok(rss(self.nats.pid().context("no process id")?)? as f64 / 1e6)
    }

    /// Events appended and applied per second.
    async fn round(&self, round: usize) -> anyhow::Result<[f64; 2]> {
        let began = Instant::now();
        let last = fill(&self.journal, Mix::Updates, self.numbers, round).await?;
        let appended = EVENTS as f64 / began.elapsed().as_secs_f64();
        Ok([appended, applied(&self.pool, &self.journal, last, EVENTS).await?])
    }
}

fn old(n: usize, subjects: usize) -> Record {
    let (user, filler) = (n % subjects, "x".repeat(900));
    Record {
        subject: Subject::from_log(format!(
            "dsync.directory_{}.user.directory_user_{user:026}.updated",
            user % 10
        )),
        id: format!("event_old_{n:022}"),
        event_type: "dsync.user.updated".to_owned(),
        source: Source::Webhook,
        received_at: Timestamp::from_micros(1_760_000_000_000_000),
        signature: None,
        body: Bytes::from(filler),
    }
}

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() -> anyhow::Result<()> {
    let size = |name: &str, default: usize| std::env::var(name).map_or(Ok(default), |text| text.parse());
    let (users, messages) = (size("USERS", 5_000_000)?, size("MESSAGES", 10_000_000)?);
    let small = World::of(SMALL, SMALL).await?;
    let mut large = World::of(users, messages).await?;
    let mut rates: [Vec<[f64; 2]>; 2] = [Vec::new(), Vec::new()];
    for round in 0..=ROUNDS {
        let both = [small.round(round).await?, large.round(round).await?];
        // The first round warms up.
        if round > 0 {
            for (rates, rate) in rates.iter_mut().zip(both) {
                rates.push(rate);
            }
        }
    }
    println!(
        "\n{EVENTS} updates per round, spread over all users; the broker's default sync; medians of {ROUNDS} rounds in turn\n"
    );
    println!(
        "{:>12}  {:>14}  {:>14}  {:>14}",
        "events /s", "100k and 100k", "large", "large ÷ small"
    );
    for (place, name) in ["appended", "applied"].into_iter().enumerate() {
        let of = |world: usize| rates[world].iter().map(|rate| rate[place]).collect::<Vec<_>>();
        let ratios = of(1)
            .iter()
            .zip(of(0))
            .map(|(large, small)| large / small)
            .collect();
        println!(
            "{name:>12}  {:>14.0}  {:>14.0}  {:>14.2}",
            median(of(0)),
            median(of(1)),
            median(ratios)
        );
    }
    let began = Instant::now();
    large.nats.stop().await?;
    large.nats.start_again().await?;
    large.journal.identity().await?.context("no stream")?;
    println!(
        "\nthe broker with the large log, stopped and started again, answered after {:.1} s; memory {:.0} MB",
        began.elapsed().as_secs_f64(),
        large.memory()?
    );
    Ok(())
}
