//! The first sync of a large customer: people, groups and memberships by webhook, through ingest and projector
//! together, as a ratio to the slower of the two alone. Also prints the space it takes for 100,000 people: bytes of
//! log, tables, indexes and history, and the broker's memory.
//!
//! Run: `ops/bench first_sync` (`USERS` sets another size; there are a hundredth as many groups, and five times as many
//! memberships).

#![allow(
    clippy::unwrap_used,
    clippy::cast_precision_loss,
    missing_docs,
    reason = "a benchmark"
)]

mod load;
mod servers;
mod webhooks;

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use load::load;
use servers::Servers;
use tests::{cpu_seconds, peak_rss, rss};
use webhooks::request;

const CONNECTIONS: usize = 64;
const AT: &str = "2026-01-01T00:00:00.000Z";

fn user(n: usize) -> String {
    format!(
        r#"{{"object":"directory_user","id":"directory_user_{n:026}","directory_id":"directory_1","organization_id":"org_1","idp_id":"00u{n:017}","email":"first.last{n}@customer.example.com","first_name":"First{n}","last_name":"Last{n}","job_title":"Engineer","state":"active","role":{{"slug":"member"}},"roles":[{{"slug":"member"}}],"custom_attributes":{{"department_name":"Engineering","employee_type":"employee","cost_center_name":"cc{}"}},"raw_attributes":{{"schemas":["urn:ietf:params:scim:schemas:core:2.0:User"],"userName":"first.last{n}@customer.example.com","name":{{"givenName":"First{n}","familyName":"Last{n}"}},"emails":[{{"primary":true,"type":"work","value":"first.last{n}@customer.example.com"}}],"displayName":"First{n} Last{n}","active":true,"groups":[],"locale":"en-US","externalId":"00u{n:017}"}},"created_at":"{AT}","updated_at":"{AT}"}}"#,
        n % 40
    )
}

fn group(n: usize) -> String {
    format!(
        r#"{{"object":"directory_group","id":"directory_group_{n:026}","idp_id":"grp{n}","directory_id":"directory_1","organization_id":"org_1","name":"Group {n}","raw_attributes":{{"displayName":"Group {n}"}},"created_at":"{AT}","updated_at":"{AT}"}}"#
    )
}

fn event(n: usize, kind: &str, data: &str) -> Vec<u8> {
    request(&format!(
        r#"{{"object":"event","id":"event_{n:026}","event":"{kind}","created_at":"2026-01-01T00:01:00.000Z","data":{data}}}"#
    ))
}

/// The events of the directory's first sync.
fn everything(users: usize) -> Vec<Vec<u8>> {
    let groups = (users / 100).max(1);
    let directory = format!(
        r#"{{"id":"directory_1","organization_id":"org_1","name":"Customer","type":"okta scim v2.0","state":"active","created_at":"{AT}","updated_at":"{AT}"}}"#
    );
    let mut all = vec![event(0, "dsync.activated", &directory)];
    for n in 0..users {
        all.push(event(all.len(), "dsync.user.created", &user(n)));
    }
    for n in 0..groups {
        all.push(event(all.len(), "dsync.group.created", &group(n)));
    }
    for n in 0..users * 5 {
        let (user, group) = (user(n / 5), group((n / 5 + n % 5 * 7) % groups));
        let data = format!(r#"{{"directory_id":"directory_1","user":{user},"group":{group}}}"#);
        all.push(event(all.len(), "dsync.group.user_added", &data));
    }
    all
}

async fn send(servers: &Servers, users: usize) -> anyhow::Result<u64> {
    let requests = Arc::new(everything(users));
    load(&servers.address(), requests.clone(), CONNECTIONS).await?;
    Ok(u64::try_from(requests.len())?)
}

fn bytes_under(path: &Path) -> std::io::Result<u64> {
    let mut sum = 0;
    for entry in std::fs::read_dir(path)? {
        let entry = entry?;
        sum += match entry.metadata()? {
            there if there.is_dir() => bytes_under(&entry.path())?,
            there => there.len(),
        };
    }
    Ok(sum)
}

async fn sizes(servers: &Servers, users: usize) -> anyhow::Result<()> {
    let scale = 100_000.0 / users as f64 / 1e6;
    println!("\nfor 100,000 people, 1,000 groups, 500,000 memberships (scaled from {users} people), in MB:");
    println!(
        "{:>40}  {:>7.0}",
        "log",
        bytes_under(&servers.nats.store())? as f64 * scale
    );
    let broker = rss(servers.nats.pid().context("no process id")?)?;
    println!(
        "{:>40}  {:>7.0} (measured, not scaled)",
        "broker's memory",
        broker as f64 / 1e6
    );
    for (what, tables) in [
        ("users", "users"),
        ("groups", "groups"),
        ("memberships", "memberships"),
        ("history", "changes_%"),
    ] {
        let (heap, indexes): (i64, i64) = sqlx::query_as(
            "select coalesce(sum(pg_table_size(c.oid)), 0)::bigint, coalesce(sum(pg_indexes_size(c.oid)), 0)::bigint
             from pg_class as c where c.relnamespace = 'dsync'::regnamespace and c.relkind = 'r' and c.relname like $1",
        )
        .bind(tables)
        .fetch_one(&servers.pool)
        .await?;
        let (heap, indexes) = (heap as f64 * scale, indexes as f64 * scale);
        println!("{what:>40}  {heap:>7.0}, and indexes {indexes:.0}");
    }
    Ok(())
}

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() -> anyhow::Result<()> {
    let users: usize = std::env::var("USERS").map_or(Ok(10_000), |text| text.parse())?;
    let alone = Servers::up().await?;
    let began = Instant::now();
    let count = send(&alone, users).await?;
    let ingest = began.elapsed();
    let began = Instant::now();
    let running = alone.projector().start().await?;
    alone.applied(count).await?;
    let projector = began.elapsed();
    drop(running);
    drop(alone);

    let both = Servers::up().await?;
    let running = both.projector().start().await?;
    let began = Instant::now();
    send(&both, users).await?;
    both.applied(count).await?;
    let whole = began.elapsed();
    let rate = |took: Duration| count as f64 / took.as_secs_f64();
    println!("first sync: {users} people, {count} events, over {CONNECTIONS} connections\n");
    println!(
        "ingest alone {:.0}/s, projector alone {:.0}/s, both {:.0}/s",
        rate(ingest),
        rate(projector),
        rate(whole)
    );
    println!(
        "time for both ÷ time of the slower alone: {:.2}",
        whole.as_secs_f64() / ingest.max(projector).as_secs_f64()
    );
    for (name, program) in [("ingest", &both.ingest), ("projector", &running)] {
        let pid = program.pid().context("no process id")?;
        println!(
            "{name}: {:.3} CPU s per 1,000 events, peak memory {:.0} MB",
            cpu_seconds(pid)? / (count as f64 / 1e3),
            peak_rss(pid)? as f64 / 1e6
        );
    }
    sizes(&both, users).await
}
