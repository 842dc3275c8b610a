//! How soon a removal is visible: the time from sending the webhook to the first read that no longer shows the person,
//! without a backlog at 500 events a second, and with a backlog of 100,000 events. Then the same log is read by
//! `rebuild`, as a ratio to the lane that read it live.
//!
//! Run: `ops/bench latency` (`BACKLOG`, `SECONDS` and `RATE`, the events per second, set other sizes).

#![allow(
    clippy::unwrap_used,
    clippy::cast_precision_loss,
    missing_docs,
    reason = "a benchmark"
)]

mod log;
mod removals;
mod servers;
mod webhooks;

use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use bytes::Bytes;
use futures_util::{StreamExt as _, stream};
use journal::Journal;
use schema::record::{Received, Record, Source};
use schema::timestamp::Timestamp;
use serde_json::Value;
use service::clock::Clock;
use tests::{cpu_seconds, database_cpu_seconds, peak_rss};

use removals::{Reader, Removal, told};
use servers::Servers;
use webhooks::{Client, request};

const PEOPLE: usize = 20_000;
/// The programs whose CPU time is measured.
const PROGRAMS: [&str; 4] = ["ingest", "projector", "broker", "database"];
/// The number of connections for these events.
const SENDERS: u32 = 16;
/// Measured removals per second.
const PROBES: u64 = 10;

fn user(n: usize, state: &str, updated: &str) -> String {
    let filler = "x".repeat(400);
    format!(
        r#"{{"id":"directory_user_{n:026}","directory_id":"directory_{}","organization_id":"org_1","idp_id":"idp_{n}","email":"user{n}@example.com","first_name":"First","last_name":"Last{n}","state":"{state}","raw_attributes":{{"a":"{filler}"}},"custom_attributes":{{}},"created_at":"2026-01-01T00:00:00.000Z","updated_at":"{updated}"}}"#,
        n % 10
    )
}

fn now() -> Timestamp {
    Clock::system().now().into()
}

fn event(id: &str, kind: &str, n: usize) -> String {
    let at = now().to_string();
    let data = user(n, "active", &at);
    format!(r#"{{"object":"event","id":"event_{id}","event":"{kind}","created_at":"{at}","data":{data}}}"#)
}

struct Bench {
    servers: Servers,
}

impl Bench {
    async fn journal(&self) -> anyhow::Result<Journal> {
        log::connect(self.servers.nats.url()).await
    }

    async fn client(&self) -> anyhow::Result<Client> {
        Client::to(&self.servers.address()).await
    }

    /// CPU seconds used so far, in the order of [`PROGRAMS`]. `pid` is the projector's process id.
    async fn used(&self, pid: u32) -> anyhow::Result<[f64; 4]> {
        Ok([
            cpu_seconds(self.servers.ingest.pid().context("no process id")?)?,
            cpu_seconds(pid)?,
            cpu_seconds(self.servers.nats.pid().context("no process id")?)?,
            database_cpu_seconds(&self.servers.pool).await?,
        ])
    }

    /// Appends `count` events directly to the log, for people numbered from `from` up.
    async fn fill(&self, kind: &str, tag: &str, from: usize, count: usize) -> anyhow::Result<()> {
        let journal = self.journal().await?;
        let journal = &journal;
        stream::iter(from..from + count)
            .map(|n| async move {
                let body = Bytes::from(event(&format!("{tag}{n:020}"), kind, n % PEOPLE));
                let received = now();
                let Received::Event(record) = Record::receive(body, Source::Webhook, None, received) else {
                    panic!("an event")
                };
                journal.append(&record).await.unwrap();
            })
            .buffer_unordered(512)
            .for_each(async |()| {})
            .await;
        Ok(())
    }

    async fn applied(&self) -> anyhow::Result<()> {
        let end = self
            .journal()
            .await?
            .identity()
            .await?
            .context("no stream")?
            .last_seq;
        self.servers.applied(end).await
    }

    /// Measures removals at their rate, of people numbered from `from` up, until `done` returns true.
    async fn probe(
        &self,
        from: usize,
        mut done: impl AsyncFnMut() -> anyhow::Result<bool>,
    ) -> anyhow::Result<Vec<Removal>> {
        let mut reader = Reader::to(&self.servers.postgres.url()).await?;
        let mut client = self.client().await?;
        let mut every = tokio::time::interval(Duration::from_secs(1) / u32::try_from(PROBES)?);
        let mut times = Vec::new();
        for n in from.. {
            every.tick().await;
            if done().await? {
                break;
            }
            let event = event(&format!("gone{n:020}"), "dsync.user.deleted", n);
            let id = format!("directory_user_{n:026}");
            times.push(Removal::by(&event, &id, &mut client, &mut reader).await?);
        }
        Ok(times)
    }
}

/// `rate` is the number of events per second besides the removals that are measured.
async fn quiet(bench: &Bench, pid: u32, seconds: u64, rate: u32) -> anyhow::Result<()> {
    let mut traffic = tokio::task::JoinSet::new();
    let senders = if rate == 0 { 0 } else { SENDERS };
    for sender in 0..senders {
        let mut client = bench.client().await?;
        traffic.spawn(async move {
            // Start the senders one after another.
            let first = tokio::time::Instant::now() + Duration::from_secs(1) * sender / rate;
            let mut every = tokio::time::interval_at(first, Duration::from_secs(1) * SENDERS / rate);
            for n in (sender..).step_by(SENDERS as usize) {
                every.tick().await;
                let (id, person) = (format!("quiet{n:020}"), 10_000 + n as usize % 10_000);
                client
                    .send(&request(&event(&id, "dsync.user.updated", person)))
                    .await?;
            }
            anyhow::Ok(())
        });
    }
    let (before, until) = (
        bench.used(pid).await?,
        Instant::now() + Duration::from_secs(seconds),
    );
    let times = bench.probe(0, async || Ok(Instant::now() > until)).await?;
    let after = bench.used(pid).await?;
    ensure!(traffic.try_join_next().is_none(), "a sender stopped early");
    traffic.abort_all();
    told(&format!("without a backlog, at {rate} events/s"), &times);
    let thousands = seconds as f64 * f64::from(rate) / 1e3 + times.len() as f64 / 1e3;
    for (name, (before, after)) in PROGRAMS.into_iter().zip(before.into_iter().zip(after)) {
        println!(
            "  {name}: {:.2} CPU s per 1,000 events",
            (after - before) / thousands
        );
    }
    bench.applied().await
}

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() -> anyhow::Result<()> {
    let size = |name: &str, default: usize| std::env::var(name).map_or(Ok(default), |text| text.parse());
    let (backlog, seconds) = (size("BACKLOG", 100_000)?, size("SECONDS", 20)?);
    let rate = u32::try_from(size("RATE", 500)?)?;
    let bench = Bench {
        servers: Servers::up().await?,
    };
    let mut projector = bench.servers.projector().start().await?;
    bench.fill("dsync.user.created", "new", 0, PEOPLE).await?;
    bench.applied().await?;
    let pid = projector.pid().context("no process id")?;
    quiet(&bench, pid, seconds as u64, rate).await?;
    // Gives back its leases, so that the next projector need not wait for them to expire.
    projector.terminate().await?;

    let from = bench.servers.position().await?;
    bench.fill("dsync.user.updated", "wait", 0, backlog).await?;
    let (end, began) = (from + backlog as u64, Instant::now());
    let mut projector = bench.servers.projector().start().await?;
    let pid = projector.pid().context("no process id")?;
    let times = bench
        .probe(5_000, async || Ok(bench.servers.position().await? >= end))
        .await?;
    let took = began.elapsed().as_secs_f64();
    told(&format!("with {backlog} events waiting"), &times);
    bench.applied().await?;
    let live = backlog as f64 / took;
    println!(
        "the lane applied them at {live:.0}/s ({:.3} CPU s per 1,000 in the projector), peak memory {:.0} MB",
        cpu_seconds(pid)? / (backlog as f64 / 1e3),
        peak_rss(pid)? as f64 / 1e6
    );
    projector.terminate().await?;

    let output = bench
        .servers
        .projector()
        .arg("rebuild")
        .arg("--json")
        .run()
        .await?;
    ensure!(output.status.success(), "{output:?}");
    let report: Value = serde_json::from_str(&output.stdout)?;
    let rate =
        report["records"].as_f64().context("records")? / report["seconds"].as_f64().context("seconds")?;
    println!(
        "rebuild of the same log: {rate:.0}/s, rebuild ÷ lane: {:.2}; rows replaced: {}",
        rate / live,
        report["replaced"]["all"]
    );
    Ok(())
}
