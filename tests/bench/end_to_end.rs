//! From the socket to the committed row: users are updated by webhook, through ingest, the log and a projector, all on
//! this machine. Prints the rate, also as a share of what a bare endpoint answers in the same run, for comparison with
//! pipelines measured on other days, and the CPU time of each part. If `peers` are installed, they are measured, too: a
//! receiver and a worker in Node, as a team might write them, without history.
//!
//! Run: `SYNC=default ops/bench end_to_end` (`REQUESTS`, `CONNECTIONS`, `ROUNDS` set other sizes; without `SYNC` the broker
//! syncs each write).

#![allow(
    clippy::unwrap_used,
    clippy::cast_precision_loss,
    missing_docs,
    reason = "a benchmark"
)]

mod bare;
mod load;
mod peers;
mod servers;
mod webhooks;

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use async_nats::jetstream::consumer::PullConsumer;
use bare::Bare;
use load::load;
use peers::{Peer, STREAM};
use servers::Servers;
use tests::{cpu_seconds, database_cpu_seconds, peak_rss};
use webhooks::request;

const PEOPLE: usize = 5_000;

/// An event that changes its user's row.
fn body(n: usize) -> String {
    let filler = "x".repeat(850);
    let (user, at) = (n % PEOPLE, n / PEOPLE);
    format!(
        r#"{{"object":"event","id":"event_{n:026}","event":"dsync.user.updated","created_at":"2026-01-01T00:00:00.{at:03}Z","data":{{"id":"directory_user_{user:026}","directory_id":"directory_1","organization_id":"org_1","state":"active","job_title":"Engineer {n}","raw_attributes":{{"a":"{filler}"}},"updated_at":"2026-01-01T00:00:00.{at:03}Z"}}}}"#
    )
}

/// The parts, in the order in which their CPU time is printed.
const PARTS: [&str; 5] = ["ingest", "broker", "projector", "database", "generator"];

struct Round {
    /// Answers per second (`bare`) and rows per second (`ours`).
    bare: f64,
    bare_cpu: f64,
    ours: f64,
    /// CPU seconds of each part for 1,000 events.
    cpu: [f64; 5],
    theirs: Option<Theirs>,
}

/// The peers' figures: rows per second, and CPU seconds for 1,000 events, servers included.
#[derive(Clone, Copy)]
struct Theirs {
    rate: f64,
    cpu: f64,
}

/// The same pipeline in Node.
struct Pipeline {
    receiver: Peer,
    worker: Peer,
}

impl Pipeline {
    async fn up(servers: &Servers) -> anyhow::Result<Self> {
        let table = "create table peer_users (
            id text primary key, directory_id text, organization_id text, state text, job_title text,
            raw_attributes jsonb, updated_at timestamptz)";
        sqlx::raw_sql(table).execute(&servers.pool).await?;
        let receiver = Peer::receiver(&servers.nats).await?;
        let settings = [
            ("NATS_URL", &*servers.nats.url()),
            ("DATABASE_URL", &servers.postgres.url()),
            ("STREAM", STREAM),
        ];
        let worker = Peer::start("worker.js", &settings).await?;
        Ok(Self { receiver, worker })
    }

    /// Measures requests from socket to row. `end` is the number of all requests so far.
    async fn takes(
        &self,
        servers: &Servers,
        requests: Arc<Vec<Vec<u8>>>,
        connections: usize,
        end: u64,
    ) -> anyhow::Result<Theirs> {
        let broker = servers.nats.pid().context("no process id")?;
        let cpu = async || {
            let programs = cpu_seconds(self.receiver.pid)? + cpu_seconds(self.worker.pid)?;
            anyhow::Ok(programs + cpu_seconds(broker)? + database_cpu_seconds(&servers.pool).await?)
        };
        let count = requests.len() as f64;
        let (before, began) = (cpu().await?, Instant::now());
        load(&self.receiver.said, requests, connections).await?;
        let context = async_nats::jetstream::new(async_nats::connect(servers.nats.url()).await?);
        let mut consumer: PullConsumer = context.get_consumer_from_stream("worker", STREAM).await?;
        while consumer.info().await?.ack_floor.stream_sequence < end {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        Ok(Theirs {
            rate: count / began.elapsed().as_secs_f64(),
            cpu: (cpu().await? - before) / (count / 1e3),
        })
    }
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
        servers.ingest.pid().context("no process id")?,
        servers.nats.pid().context("no process id")?,
        projector.pid().context("no process id")?,
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
    let pipeline = if peers::installed() {
        Some(Pipeline::up(&servers).await?)
    } else {
        None
    };
    println!("end to end: {count} updates of {PEOPLE} users per round, over {connections} connections\n");
    let mut rounds = Vec::new();
    // The first round creates the rows.
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
        let end = u64::try_from((round + 1) * count)?;
        load(&servers.address(), requests.clone(), connections).await?;
        servers.applied(end).await?;
        let (took, after) = (began.elapsed(), cpu().await?);
        let mut spent = [0.0; 5];
        for (spent, (after, before)) in spent.iter_mut().zip(after.iter().zip(before)) {
            *spent = (after - before) / (count as f64 / 1e3);
        }
        let theirs = match &pipeline {
            Some(pipeline) => Some(pipeline.takes(&servers, requests, connections, end).await?),
            None => None,
        };
        if round > 0 {
            rounds.push(Round {
                bare,
                bare_cpu,
                ours: count as f64 / took.as_secs_f64(),
                cpu: spent,
                theirs,
            });
        }
    }
    told(&rounds);
    println!(
        "peak memory: ingest {:.0} MB, projector {:.0} MB",
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
        "from socket to row {:.0}/s, bare endpoint {:.0}/s, ratio {:.3}",
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
    if rounds.iter().any(|round| round.theirs.is_some()) {
        let of = |part: fn(&Round, Theirs) -> f64| {
            median(&|round| round.theirs.map_or(f64::NAN, |theirs| part(round, theirs)))
        };
        println!(
            "Node receiver and worker: {:.0}/s, {:.3} CPU s per 1,000 with servers; dsync is {:.2} times as fast, with {:.2} of the CPU",
            of(|_, theirs| theirs.rate),
            of(|_, theirs| theirs.cpu),
            of(|round, theirs| round.ours / theirs.rate),
            of(|round, theirs| round.cpu[..4].iter().sum::<f64>() / theirs.cpu)
        );
    }
}
