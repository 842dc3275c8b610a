//! How fast events are applied, as a ratio to what Postgres does with the same rows: a bare set-based upsert of the
//! final rows, in batches of the same size. Both are measured in turn on the same server.
//!
//! Dsync's figure covers the whole way from the log: reading, decoding, folding, registers, history and position. A
//! membership's event brings its user and its group along, so the bare upsert writes these rows, too; the ratio to the
//! membership rows alone is printed beside it. Run: `ops/bench project`. The ratio is the figure to quote.

#![allow(
    clippy::unwrap_used,
    clippy::cast_precision_loss,
    missing_docs,
    reason = "a benchmark"
)]

mod events;
mod log;

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use sqlx::{PgConnection, PgPool};
use tests::{Durability, Nats, Postgres};

use events::{Mix, Numbers, WINDOW, applied, fill, log_with, median};

const ROUNDS: usize = 3;
const EVENTS: usize = 10_000;

const NUMBERS: Numbers = Numbers {
    events: EVENTS,
    people: 2_000,
    apart: 1,
    group: |round, n| (round * 100 + n / 2_000) * 10 + n % 10,
};

/// What is upserted without dsync.
#[derive(Clone, Copy)]
enum Rows {
    /// All rows that the events say something of.
    All,
    /// Of memberships, only their own rows.
    OfMemberships,
}

/// Upserts the same final rows into tables with the same columns and indexes; the last writer wins. Sends each column
/// as an array and commits once for each batch, as dsync does.
async fn bare(pool: &PgPool, mix: Mix, rows: Rows, round: usize) -> anyhow::Result<f64> {
    let numbers: Vec<usize> = (0..EVENTS).collect();
    let mut took = Duration::ZERO;
    for batch in numbers.chunks(2_000) {
        let mut transaction = pool.begin().await?;
        let connection = &mut *transaction;
        match mix {
            Mix::FirstSync => took += bare_users(connection, batch, round * EVENTS, 0).await?,
            Mix::Updates => took += bare_users(connection, batch, 0, round + 1).await?,
            Mix::Memberships => {
                if let Rows::All = rows {
                    let users: BTreeSet<usize> = batch.iter().map(|n| n % NUMBERS.people).collect();
                    let users: Vec<usize> = users.into_iter().collect();
                    took += bare_users(connection, &users, 0, 0).await?;
                    took += bare_groups(connection, batch, round).await?;
                }
                took += bare_memberships(connection, batch, round).await?;
            }
        }
        let began = Instant::now();
        transaction.commit().await?;
        took += began.elapsed();
    }
    Ok(EVENTS as f64 / took.as_secs_f64())
}

async fn bare_groups(
    connection: &mut PgConnection,
    batch: &[usize],
    round: usize,
) -> anyhow::Result<Duration> {
    let groups: BTreeMap<usize, usize> = batch
        .iter()
        .map(|n| ((NUMBERS.group)(round, *n), n % 10))
        .collect();
    let (groups, directories): (Vec<String>, Vec<String>) = groups
        .into_iter()
        .map(|(group, directory)| {
            (
                format!("directory_group_{group:026}"),
                format!("directory_{directory}"),
            )
        })
        .unzip();
    let began = Instant::now();
    sqlx::query(BARE_GROUPS)
        .bind(groups)
        .bind(directories)
        .execute(connection)
        .await?;
    Ok(began.elapsed())
}

async fn bare_users(
    connection: &mut PgConnection,
    batch: &[usize],
    offset: usize,
    updated: usize,
) -> anyhow::Result<Duration> {
    let column =
        |make: &dyn Fn(usize) -> String| -> Vec<String> { batch.iter().map(|n| make(offset + n)).collect() };
    let filler = "x".repeat(400);
    let query = sqlx::query(BARE_USERS)
        .bind(column(&|n| format!("directory_user_{n:026}")))
        .bind(column(&|n| format!("directory_{}", n % 10)))
        .bind(column(&|_| "org_1".to_owned()))
        .bind(column(&|n| format!("idp_{n}")))
        .bind(column(&|n| format!("user{n}@example.com")))
        .bind(column(&|_| "First".to_owned()))
        .bind(column(&|n| format!("Last{n}")))
        .bind(column(&|_| "active".to_owned()))
        .bind(column(&|_| "member".to_owned()))
        .bind(column(&|_| format!(r#"{{"a":"{filler}","b":[1,2,3]}}"#)))
        .bind(column(&|n| format!(r#"{{"department":"d{}"}}"#, n % 7)))
        .bind(column(&|_| format!("2026-01-01T00:00:{updated:02}.000Z")));
    let began = Instant::now();
    query.execute(connection).await?;
    Ok(began.elapsed())
}

async fn bare_memberships(
    connection: &mut PgConnection,
    batch: &[usize],
    round: usize,
) -> anyhow::Result<Duration> {
    let groups: Vec<String> = batch
        .iter()
        .map(|n| format!("directory_group_{:026}", (NUMBERS.group)(round, *n)))
        .collect();
    let users: Vec<String> = batch
        .iter()
        .map(|n| format!("directory_user_{:026}", n % NUMBERS.people))
        .collect();
    let directories: Vec<String> = batch.iter().map(|n| format!("directory_{}", n % 10)).collect();
    let began = Instant::now();
    sqlx::query(BARE_MEMBERSHIPS)
        .bind(groups)
        .bind(users)
        .bind(directories)
        .execute(connection)
        .await?;
    Ok(began.elapsed())
}

const BARE_TABLES: &str = "
    create schema bare;
    create table bare.users (like dsync.users including all);
    create table bare.groups (like dsync.groups including all);
    create table bare.memberships (like dsync.memberships including all);
";

const BARE_USERS: &str = "
    insert into bare.users (id, directory_id, organization_id, idp_id, email, first_name, last_name, state, role,
        raw_attributes, custom_attributes, updated_at, seen_at, version_updated_at)
    select x.a, x.b, x.c, x.d, x.e, x.f, x.g, x.h, x.i, x.j::jsonb, x.k::jsonb, x.l::timestamptz, x.l::timestamptz,
        x.l::timestamptz
    from unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::text[], $6::text[], $7::text[], $8::text[],
        $9::text[], $10::text[], $11::text[], $12::text[]) as x (a, b, c, d, e, f, g, h, i, j, k, l)
    order by x.a
    on conflict (id) do update set
        idp_id = excluded.idp_id, email = excluded.email, first_name = excluded.first_name, last_name = excluded.last_name,
        state = excluded.state, role = excluded.role, raw_attributes = excluded.raw_attributes,
        custom_attributes = excluded.custom_attributes, updated_at = excluded.updated_at, seen_at = excluded.seen_at,
        version_updated_at = excluded.version_updated_at
";

const BARE_GROUPS: &str = "
    insert into bare.groups (id, directory_id, organization_id, name, updated_at, seen_at, version_updated_at)
    select x.g, x.d, 'org_1', 'Group', '2026-01-01', '2026-01-01', '2026-01-01'
    from unnest($1::text[], $2::text[]) as x (g, d) order by x.g
    on conflict (id) do update set
        name = excluded.name, updated_at = excluded.updated_at, seen_at = excluded.seen_at,
        version_updated_at = excluded.version_updated_at
";

const BARE_MEMBERSHIPS: &str = "
    insert into bare.memberships (group_id, user_id, directory_id, organization_id, seen_at)
    select x.g, x.u, x.d, 'org_1', now()
    from unnest($1::text[], $2::text[], $3::text[]) as x (g, u, d) order by x.g, x.u
    on conflict (group_id, user_id) do update set seen_at = excluded.seen_at
";

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() -> anyhow::Result<()> {
    println!("project: {EVENTS} events per round, one lane; fsync on; medians of {ROUNDS} rounds in turn\n");
    println!(
        "{:>24}  {:>9}  {:>9}  {:>11}  {:>15}",
        "", "ours /s", "bare /s", "ours ÷ bare", "rows of history"
    );
    for (name, mix) in Mix::EVERY {
        let (postgres, nats) = (Postgres::with(Durability::Full).await?, Nats::start().await?);
        postgres.migrate().await?;
        let pool = postgres.pool().await?;
        sqlx::raw_sql(BARE_TABLES).execute(&pool).await?;
        let journal = log_with(&nats, WINDOW).await?;
        let kinds: &[(Rows, &str)] = match mix {
            Mix::FirstSync | Mix::Updates => &[(Rows::All, "")],
            Mix::Memberships => &[(Rows::All, ""), (Rows::OfMemberships, ", their rows only")],
        };
        let mut ours = Vec::new();
        let mut limits: Vec<(Vec<f64>, Vec<f64>)> = vec![(Vec::new(), Vec::new()); kinds.len()];
        for round in 0..=ROUNDS {
            let last = fill(&journal, mix, NUMBERS, round).await?;
            let applied = applied(&pool, &journal, last, EVENTS).await?;
            if round > 0 {
                ours.push(applied);
            }
            for ((rows, _), (rates, ratios)) in kinds.iter().zip(&mut limits) {
                // Each has memberships of its own, so that both insert.
                let round_of = match rows {
                    Rows::All => round,
                    Rows::OfMemberships => round + ROUNDS + 1,
                };
                let bare = bare(&pool, mix, *rows, round_of).await?;
                if round > 0 {
                    rates.push(bare);
                    ratios.push(applied / bare);
                }
            }
        }
        let history: i64 = sqlx::query_scalar("select count(*) from dsync.changes")
            .fetch_one(&pool)
            .await?;
        let ours = median(ours);
        for ((_, what), (rates, ratios)) in kinds.iter().zip(limits) {
            println!(
                "{:>24}  {ours:>9.0}  {:>9.0}  {:>11.2}  {history:>15}",
                format!("{name}{what}"),
                median(rates),
                median(ratios)
            );
        }
    }
    Ok(())
}
