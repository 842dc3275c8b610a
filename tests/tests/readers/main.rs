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
#[path = "../model/projection.rs"]
mod projection;
mod recipes;
mod rights;
mod roles;
mod roles_by_hand;
mod upkeep;

use std::time::Duration;

use anyhow::Context as _;
use journal::{Appended, Journal};
use projection::{
    clear, log_on, random_records, record, records_of_day, shuffled, write, write_concurrently, write_within,
};
use schema::record::{Record, Source};
use serde_json::Value;
use sqlx::{AssertSqlSafe, PgPool};
use tests::Postgres;
use workos_sim::Sim;

/// Long enough for a busy machine. Nothing that works takes this long.
const BOUND: Duration = Duration::from_mins(2);

/// How many random histories a test goes through: `usual`, or `HISTORIES` for a longer run.
fn histories(usual: u64) -> anyhow::Result<u64> {
    Ok(std::env::var("HISTORIES").map_or(Ok(usual), |text| text.parse())?)
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
