//! What readers and history cost: a tenant's login query with a million users, and events applied per second with and
//! without history, in turn on the same server.
//!
//! Run: `ops/bench readers` (`cargo bench -p tests --bench readers -- login`, or `-- history`, runs one of them; `USERS`
//! sets another size).

#![allow(
    clippy::unwrap_used,
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    missing_docs,
    reason = "a benchmark"
)]

mod events;
mod log;

use std::time::{Duration, Instant};

use projector::roles::apply;
use projector::roles_file::Rules;
use rand::prelude::*;
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use sqlx::{AssertSqlSafe, Connection as _, PgConnection, Row as _};
use tests::{Durability, Nats, Postgres};

use events::{Mix, Numbers, WINDOW, applied, fill, log_with, median};

const ROUNDS: usize = 5;
const EVENTS: usize = 20_000;
const NUMBERS: Numbers = Numbers {
    events: EVENTS,
    people: 4_000,
    apart: 1,
    group: |round, n| (round * 100 + n / 4_000) * 10 + n % 10,
};
const LOGINS: usize = 10_000;

/// `users` people in directories of a thousand, with ten groups for each directory and four for each person.
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

/// Logins of random people, one after another, through a tenant's connection, as an application would query.
async fn login() -> anyhow::Result<()> {
    let users: usize = std::env::var("USERS").map_or(Ok(1_000_000), |text| text.parse())?;
    let postgres = Postgres::migrated().await?;
    let pool = postgres.pool().await?;
    // One connection, because the statements form one transaction, which vacuum must follow.
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
    let mut tenant = PgConnection::connect(&postgres.url_as("app", "app")).await?;
    let mut rng = StdRng::seed_from_u64(1);
    let mut times = Vec::with_capacity(LOGINS);
    for _ in 0..LOGINS + 100 {
        times.push(ask(&mut tenant, users, &mut rng).await?);
    }
    let (queries, whole) = times.split_off(100).into_iter().unzip();
    tell("the query", queries);
    tell("with setting the tenant", whole);
    own_time(&postgres, users, &mut rng).await
}

/// The database's own time for a login, to bind and execute, from its log.
async fn own_time(postgres: &Postgres, users: usize, rng: &mut StdRng) -> anyhow::Result<()> {
    let pool = postgres.pool().await?;
    sqlx::raw_sql(
        "create role timed login password 'timed' in role dsync_tenant;
        alter role timed set log_min_duration_statement = 0",
    )
    .execute(&pool)
    .await?;
    let mut connection = PgConnection::connect(&postgres.url_as("timed", "timed")).await?;
    for _ in 0..LOGINS + 100 {
        ask(&mut connection, users, rng).await?;
    }
    let log = postgres.data().with_file_name("postgres.log");
    let log = std::fs::read_to_string(log)?;
    let durations = log
        .lines()
        .filter(|line| line.contains("directory.login"))
        .filter_map(|line| {
            let (milliseconds, what) = line.split_once("duration: ")?.1.split_once(" ms  ")?;
            Some((what.split(' ').next()?, milliseconds.parse::<f64>().ok()?))
        });
    let (mut times, mut bind) = (Vec::with_capacity(LOGINS), 0.0);
    for (what, milliseconds) in durations {
        match what {
            "bind" => bind = milliseconds,
            "execute" => times.push(Duration::from_secs_f64((bind + milliseconds) / 1e3)),
            _ => {}
        }
    }
    anyhow::ensure!(times.len() == LOGINS + 100, "the log has {} logins", times.len());
    tell("the database's own time", times.split_off(100));
    Ok(())
}

fn tell(name: &str, mut times: Vec<Duration>) {
    times.sort_unstable();
    println!(
        "{name:>24}: p50 {:.2} ms, p99 {:.2} ms, worst {:.2} ms",
        percentile(&times, 50.0),
        percentile(&times, 99.0),
        percentile(&times, 100.0)
    );
}

/// Logs in a random person. Returns the time of the query alone, and with setting the tenant.
async fn ask(
    connection: &mut PgConnection,
    users: usize,
    rng: &mut StdRng,
) -> anyhow::Result<(Duration, Duration)> {
    let user = rng.random_range(0..users);
    let organization = format!("org_{}", user % users.div_ceil(1000));
    let began = Instant::now();
    // As an application does: set the tenant, then query.
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
    Ok((query, whole))
}

/// Applies the same events with and without history, in alternating rounds.
async fn history() -> anyhow::Result<()> {
    println!("history: {EVENTS} events per round, one lane; fsync on; medians of {ROUNDS} rounds in turn");
    for (name, mix) in Mix::EVERY {
        let (postgres, nats) = (Postgres::with(Durability::Full).await?, Nats::start().await?);
        postgres.migrate().await?;
        let pool = postgres.pool().await?;
        let options: PgConnectOptions = postgres.url().parse()?;
        let options = options.options([("dsync.history", "off")]);
        let without = PgPoolOptions::new()
            .max_connections(4)
            .connect_with(options)
            .await?;
        let journal = log_with(&nats, WINDOW).await?;
        let (mut with_history, mut without_history) = (Vec::new(), Vec::new());
        for round in 0..2 * (ROUNDS + 1) {
            let last = fill(&journal, mix, NUMBERS, round).await?;
            let (pool, rates) = if round % 2 == 0 {
                (&pool, &mut with_history)
            } else {
                (&without, &mut without_history)
            };
            let rate = applied(pool, &journal, last, EVENTS).await?;
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
