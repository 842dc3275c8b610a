//! From the socket to the committed row: users updated by webhook, through ingest, the log and a projector, everything on
//! this machine. As a share of what a bare endpoint answers in the same run, so that it can be compared with other
//! pipelines measured on other days; and the CPU that each part takes.
//!
//! Run: `cargo build --release --bins && SYNC=default cargo bench -p tests --bench end_to_end` (`REQUESTS`, `CONNECTIONS`,
//! `ROUNDS` for other sizes; without `SYNC` the broker syncs each write).

#![allow(
    clippy::unwrap_used,
    clippy::cast_precision_loss,
    missing_docs,
    reason = "a benchmark"
)]

mod bare;
mod load;
mod servers;
mod webhooks;

use std::sync::Arc;
use std::time::Instant;

use anyhow::Context as _;
use bare::Bare;
use load::load;
use servers::Servers;
use tests::{cpu_seconds, database_cpu_seconds, peak_rss};
use webhooks::request;

const PEOPLE: usize = 5_000;

/// Every event changes the row that it is about.
fn body(n: usize) -> String {
    let filler = "x".repeat(850);
    let (user, at) = (n % PEOPLE, n / PEOPLE);
    format!(
        r#"{{"object":"event","id":"event_{n:026}","event":"dsync.user.updated","created_at":"2026-01-01T00:00:00.{at:03}Z","data":{{"id":"directory_user_{user:026}","directory_id":"directory_1","organization_id":"org_1","state":"active","job_title":"Engineer {n}","raw_attributes":{{"a":"{filler}"}},"updated_at":"2026-01-01T00:00:00.{at:03}Z"}}}}"#
    )
}

/// The parts, in the order in which their CPU is told.
const PARTS: [&str; 5] = ["ingest", "broker", "projector", "database", "generator"];

struct Round {
    /// Answers and rows a second.
    bare: f64,
    bare_cpu: f64,
    ours: f64,
    /// CPU seconds for 1,000 events, of each part.
    cpu: [f64; 5],
}

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() -> anyhow::Result<()> {
    if bare::wanted() {
        return bare::serve().await;
    }
    let size = |name: &str, default: usize| std::env::var(name).map_or(Ok(default), |text| text.parse());
    let (count, connections) = (size("REQUESTS", 30_000)?, size("CONNECTIONS", 64)?);
    let servers = Servers::up().await?;
    let projector = servers.projector().start().await?;
    let pids = [
        servers.ingest.pid().context("its id")?,
        servers.nats.pid().context("its id")?,
        projector.pid().context("its id")?,
    ];
    let cpu = async || {
        let [ingest, broker, projector] = pids;
        anyhow::Ok([
            cpu_seconds(ingest)?,
            cpu_seconds(broker)?,
            cpu_seconds(projector)?,
            database_cpu_seconds(&servers.pool).await?,
            cpu_seconds(std::process::id())?,
        ])
    };
    println!("end to end: {count} updates of {PEOPLE} users a round, over {connections} connections\n");
    let mut rounds = Vec::new();
    // The first one makes the rows.
    for round in 0..=size("ROUNDS", 5)? {
        let bodies = (round * count..(round + 1) * count).map(|n| request(&body(n)));
        let requests = Arc::new(bodies.collect::<Vec<_>>());
        let endpoint = Bare::start().await?;
        let began = Instant::now();
        load(&endpoint.address, requests.clone(), connections).await?;
        let bare = count as f64 / began.elapsed().as_secs_f64();
        let bare_cpu = cpu_seconds(endpoint.pid)? / (count as f64 / 1e3);
        drop(endpoint);
        let (before, began) = (cpu().await?, Instant::now());
        load(&servers.address(), requests, connections).await?;
        servers.applied(u64::try_from((round + 1) * count)?).await?;
        let (took, after) = (began.elapsed(), cpu().await?);
        let mut spent = [0.0; 5];
        for (spent, (after, before)) in spent.iter_mut().zip(after.iter().zip(before)) {
            *spent = (after - before) / (count as f64 / 1e3);
        }
        if round > 0 {
            rounds.push(Round {
                bare,
                bare_cpu,
                ours: count as f64 / took.as_secs_f64(),
                cpu: spent,
            });
        }
    }
    told(&rounds);
    println!(
        "peak memory of ingest {:.0} MB, of the projector {:.0} MB",
        peak_rss(pids[0])? as f64 / 1e6,
        peak_rss(pids[2])? as f64 / 1e6
    );
    let changes: i64 = sqlx::query_scalar("select count(*) from dsync.changes")
        .fetch_one(&servers.pool)
        .await?;
    println!("{changes} rows of history");
    Ok(())
}

fn told(rounds: &[Round]) {
    let median = |of: &dyn Fn(&Round) -> f64| {
        let mut all: Vec<f64> = rounds.iter().map(of).collect();
        all.sort_by(f64::total_cmp);
        all[all.len() / 2]
    };
    println!(
        "{:.0}/s from socket to row, bare endpoint {:.0}/s: {:.3} of it",
        median(&|round| round.ours),
        median(&|round| round.bare),
        median(&|round| round.ours / round.bare)
    );
    println!(
        "bare endpoint: {:.3} CPU s per 1,000",
        median(&|round| round.bare_cpu)
    );
    for (part, name) in PARTS.iter().enumerate() {
        println!("{name}: {:.3} CPU s per 1,000", median(&|round| round.cpu[part]));
    }
    println!(
        "all: {:.3} CPU s per 1,000",
        median(&|round| round.cpu.iter().sum())
    );
}
