//! What readers and their history cost: a tenant's login query at a million users, and events applied per second with
//! history and without, in turn on the same server.
//!
//! Run: `cargo bench -p tests --bench readers` (`-- login` or `-- history` for one of them; `USERS` for another size).

#![allow(
    clippy::unwrap_used,
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    missing_docs,
    reason = "a benchmark"
)]

use std::time::{Duration, Instant};

use anyhow::Context as _;
use bytes::Bytes;
use futures_util::{StreamExt as _, stream};
use journal::{Connection, Journal, Limits};
use projector::lane::Lane;
use projector::metrics::Metrics;
use projector::roles::apply;
use projector::roles_file::Rules;
use projector::run::{Tuning, Worker};
use projector::store::progress;
use rand::prelude::*;
use schema::record::{Received, Record, Source};
use schema::timestamp::Timestamp;
use service::clock::Clock;
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use sqlx::{AssertSqlSafe, PgPool, Row as _};
use tests::{Durability, Nats, Postgres};
use tokio_util::sync::CancellationToken;

const ROUNDS: usize = 5;
const EVENTS: usize = 20_000;
const LOGINS: usize = 10_000;

/// `users` people in directories of a thousand, ten groups each directory, four groups each person.
fn people(users: usize) -> String {
    let directories = users.div_ceil(1000);
    format!(
        "begin;
        set local dsync.history = off;
        insert into dsync.directories (id, organization_id, state, seen_at)
            select 'directory_' || d, 'org_' || d, 'active', now() from generate_series(0, {directories} - 1) as d;
        insert into dsync.users (id, directory_id, organization_id, idp_id, email, state, role, roles, custom_attributes,
                raw_attributes, created_at, updated_at, seen_at)
            select 'directory_user_' || u, 'directory_' || u % {directories}, 'org_' || u % {directories}, 'idp_' || u,
                'User' || u || '@Example.com', 'active', 'member', '{{member}}',
                jsonb_build_object('department', 'd' || u % 7), jsonb_build_object('filler', repeat('x', 400)),
                now(), now(), now()
            from generate_series(0, {users} - 1) as u;
        insert into dsync.groups (id, directory_id, organization_id, name, seen_at)
            select 'directory_group_' || d || '_' || g, 'directory_' || d, 'org_' || d, 'Group ' || g, now()
            from generate_series(0, {directories} - 1) as d, generate_series(0, 9) as g;
        insert into dsync.memberships (group_id, user_id, directory_id, organization_id, seen_at)
            select 'directory_group_' || u % {directories} || '_' || (u / {directories} + g) % 10, 'directory_user_' || u,
                'directory_' || u % {directories}, 'org_' || u % {directories}, now()
            from generate_series(0, {users} - 1) as u, generate_series(0, 3) as g;
        commit;
        vacuum analyze"
    )
}

const RULES: &str = "
    [priorities]
    admin = 10
    [[group]]
    role = 'admin'
    name = 'Group 1'
    [[group]]
    role = 'editor'
    name = 'Group 2'
    organization = 'org_7'
    [[attribute]]
    role = 'finance'
    path = ['department']
    value = 'd3'
    [[default]]
    role = 'guest'
";

fn percentile(sorted: &[Duration], of_hundred: f64) -> f64 {
    let place = (sorted.len() as f64 * of_hundred / 100.0) as usize;
    sorted[place.min(sorted.len() - 1)].as_secs_f64() * 1e3
}

/// Logins of random people, each by a tenant's connection as an application would ask, one after another.
async fn login() -> anyhow::Result<()> {
    let users: usize = std::env::var("USERS").map_or(Ok(1_000_000), |text| text.parse())?;
    let postgres = Postgres::migrated().await?;
    let pool = postgres.pool().await?;
    // One connection: the statements are one transaction, and vacuum stands outside of it.
    let mut connection = pool.acquire().await?;
    for statement in people(users).split(';') {
        sqlx::raw_sql(AssertSqlSafe(statement.to_owned()))
            .execute(&mut *connection)
            .await?;
    }
    apply(&pool, &Rules::default(), true).await?;
    let began = Instant::now();
    let plan = apply(&pool, &Rules::parse(RULES)?, true).await?;
    println!(
        "login: {users} users, {} memberships; rules for all applied in {:.1} s, {} roles gained or lost",
        users * 4,
        began.elapsed().as_secs_f64(),
        plan.differences.len()
    );
    sqlx::raw_sql("create role app login password 'app' in role dsync_tenant")
        .execute(&pool)
        .await?;
    let options: PgConnectOptions = postgres.url_as("app", "app").parse()?;
    let tenant = PgPoolOptions::new()
        .max_connections(1)
        .connect_with(options)
        .await?;
    let mut rng = StdRng::seed_from_u64(1);
    let mut times = Vec::with_capacity(LOGINS);
    let mut connection = tenant.acquire().await?;
    for nth in 0..LOGINS + 100 {
        let user = rng.random_range(0..users);
        let organization = format!("org_{}", user % users.div_ceil(1000));
        let began = Instant::now();
        // What an application does: say who asks, then ask.
        sqlx::query("select set_config('dsync.organization_id', $1, false)")
            .bind(&organization)
            .execute(&mut *connection)
            .await?;
        let asked = Instant::now();
        let row = sqlx::query("select * from directory.login($1, $2)")
            .bind(&organization)
            .bind(format!("user{user}@example.com"))
            .fetch_one(&mut *connection)
            .await?;
        let (whole, query) = (began.elapsed(), asked.elapsed());
        anyhow::ensure!(row.get::<String, _>("user_id") == format!("directory_user_{user}"));
        if nth >= 100 {
            times.push((query, whole));
        }
    }
    for (name, of) in [("the query", 0), ("with setting the tenant", 1)] {
        let mut sorted: Vec<Duration> = times
            .iter()
            .map(|time| if of == 0 { time.0 } else { time.1 })
            .collect();
        sorted.sort_unstable();
        println!(
            "{name:>24}: p50 {:.2} ms, p99 {:.2} ms, worst {:.2} ms",
            percentile(&sorted, 50.0),
            percentile(&sorted, 99.0),
            percentile(&sorted, 100.0)
        );
    }
    Ok(())
}

#[derive(Clone, Copy)]
enum Mix {
    /// First contact: every user new.
    FirstSync,
    /// Every user there already, updated.
    Updates,
    /// Memberships, each with both objects embedded.
    Memberships,
}

fn user(n: usize, updated: usize) -> String {
    let filler = "x".repeat(400);
    format!(
        r#"{{"id":"directory_user_{n:026}","directory_id":"directory_{}","organization_id":"org_1","idp_id":"idp_{n}",
            "email":"user{n}@example.com","first_name":"First","last_name":"Last{n}","state":"active",
            "raw_attributes":{{"a":"{filler}","b":[1,2,3]}},"custom_attributes":{{"department":"d{}"}},
            "role":{{"slug":"member"}},"created_at":"2026-01-01T00:00:00.000Z","updated_at":"2026-01-01T00:00:{updated:02}.000Z"}}"#,
        n % 10,
        n % 7
    )
}

fn record(mix: Mix, round: usize, n: usize) -> Record {
    let (kind, data) = match mix {
        Mix::FirstSync => ("dsync.user.created", user(round * EVENTS + n, 0)),
        Mix::Updates => ("dsync.user.updated", user(n, round + 1)),
        Mix::Memberships => (
            "dsync.group.user_added",
            format!(
                r#"{{"directory_id":"directory_{}","user":{},"group":{{"id":"directory_group_{:026}","directory_id":"directory_{}",
                    "name":"Group","updated_at":"2026-01-01T00:00:00.000Z"}}}}"#,
                n % 10,
                user(n % 4_000, 0),
                (round * 100 + n / 4_000) * 10 + n % 10,
                n % 10
            ),
        ),
    };
    let body = format!(
        r#"{{"object":"event","id":"event_{round:04}{n:022}","event":"{kind}","created_at":"2026-01-01T00:01:00.000Z","data":{data}}}"#
    );
    match Record::receive(
        Bytes::from(body),
        Source::Webhook,
        None,
        Timestamp::from_micros(0),
    ) {
        Received::Event(record) => record,
        other => panic!("{other:?}"),
    }
}

/// Applies what waits in the log and answers events a second.
async fn applied(pool: &PgPool, journal: &Journal, last: u64) -> anyhow::Result<f64> {
    let shutdown = CancellationToken::new();
    let worker = Worker {
        pool: pool.clone(),
        journal: journal.clone(),
        stream: "DSYNC".to_owned(),
        holder: "bench".to_owned(),
        clock: Clock::system(),
        metrics: Metrics::new(&prometheus::Registry::new()),
        tuning: Tuning::default(),
        shutdown: shutdown.clone(),
    };
    let began = Instant::now();
    let task = tokio::spawn(worker.work(Lane::All));
    while progress::position(pool, Lane::All)
        .await?
        .is_none_or(|position| position.seq < last)
    {
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    let took = began.elapsed();
    shutdown.cancel();
    task.await?;
    Ok(EVENTS as f64 / took.as_secs_f64())
}

async fn log_on(nats: &Nats) -> anyhow::Result<Journal> {
    let settings = Connection {
        url: nats.url(),
        creds: None,
        ca: None,
        stream: "DSYNC".to_owned(),
        name: "bench".to_owned(),
    };
    let journal = Journal::connect(&settings).await?;
    let limits = Limits {
        replicas: 1,
        max_age: Duration::ZERO,
        max_bytes: 0,
        dedup_window: Duration::from_hours(96),
    };
    journal.ensure(&limits).await?;
    Ok(journal)
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// The same events, applied with history and without, round by round in turn.
async fn history() -> anyhow::Result<()> {
    println!("history: {EVENTS} events a round, one lane; fsync on; medians of {ROUNDS} rounds in turn");
    for (name, mix) in [
        ("first sync", Mix::FirstSync),
        ("updates", Mix::Updates),
        ("memberships", Mix::Memberships),
    ] {
        let (postgres, nats) = (Postgres::with(Durability::Full).await?, Nats::start().await?);
        postgres.migrate().await?;
        let pool = postgres.pool().await?;
        let options: PgConnectOptions = postgres.url().parse()?;
        let options = options.options([("dsync.history", "off")]);
        let without = PgPoolOptions::new()
            .max_connections(4)
            .connect_with(options)
            .await?;
        let journal = log_on(&nats).await?;
        let (mut with_history, mut without_history) = (Vec::new(), Vec::new());
        for round in 0..2 * (ROUNDS + 1) {
            stream::iter(0..EVENTS)
                .map(|n| {
                    let journal = &journal;
                    async move { journal.append(&record(mix, round, n)).await.unwrap() }
                })
                .buffer_unordered(512)
                .for_each(async |_| {})
                .await;
            let last = journal.identity().await?.context("the stream")?.last_seq;
            let (pool, rates) = if round % 2 == 0 {
                (&pool, &mut with_history)
            } else {
                (&without, &mut without_history)
            };
            let rate = applied(pool, &journal, last).await?;
            // The first round of each warms up.
            if round > 1 {
                rates.push(rate);
            }
        }
        let rows: i64 = sqlx::query_scalar("select count(*) from dsync.changes")
            .fetch_one(&pool)
            .await?;
        let (with_history, without_history) = (median(with_history), median(without_history));
        println!(
            "{name:>24}: {with_history:.0} events/s with, {without_history:.0} without: {:.2}; {rows} rows of history",
            with_history / without_history
        );
    }
    Ok(())
}

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() -> anyhow::Result<()> {
    let only = std::env::args().find(|argument| ["login", "history"].contains(&argument.as_str()));
    if only.as_deref() != Some("history") {
        login().await?;
    }
    if only.as_deref() != Some("login") {
        history().await?;
    }
    Ok(())
}
