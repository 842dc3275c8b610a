//! What a webhook costs in ingest, as a ratio to the parts that it cannot do without: a bare axum endpoint that reads
//! and verifies, a bare publish that waits for JetStream's acknowledgement, and the load generator itself, each
//! measured alone in the same run. On a given number of cores, the sum of their CPU times limits any program made of
//! those parts. If `peers` are installed, the receiver that a team might write itself is measured, too.
//!
//! Run: `ops/bench ingest` (`REQUESTS`, `CONNECTIONS`, `ROUNDS` set other sizes). Each round measures all of them in
//! turn; the figures are medians of the rounds. The CPU ratio is the figure to quote, because rates
//! suffer from whatever else the machine does.

#![allow(
    clippy::unwrap_used,
    clippy::cast_precision_loss,
    missing_docs,
    reason = "a benchmark"
)]

mod bare;
mod load;
mod peers;
mod webhooks;

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use async_nats::jetstream;
use futures_util::{StreamExt as _, stream};
use tests::{Nats, NatsOptions, cpu_seconds, peak_rss};

use bare::Bare;
use load::load;
use peers::Peer;
use webhooks::{receiver, request};

/// The other headers of the log's messages, with the same lengths, so that the broker gets as many bytes in both cases.
const LIKE_OURS: [(&str, &str); 4] = [
    ("Dsync-Event", "dsync.user.updated"),
    ("Dsync-Source", "webhook"),
    ("Dsync-Received-At", "2026-01-01T00:00:00.000000Z"),
    (
        "WorkOS-Signature",
        "t=1767225600000, v1=0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef",
    ),
];

fn body(n: usize) -> String {
    let filler = "x".repeat(850);
    format!(
        r#"{{"object":"event","id":"event_{n:026}","event":"dsync.user.updated","created_at":"2026-01-01T00:00:00.000Z","data":{{"id":"directory_user_{:026}","directory_id":"directory_1","organization_id":"org_1","state":"active","raw_attributes":{{"a":"{filler}"}}}}}}"#,
        n % 5_000
    )
}

/// CPU seconds per 1,000 requests.
#[derive(Clone, Copy)]
struct Cost {
    program: f64,
    generator: f64,
    broker: f64,
    rate: f64,
}

fn own() -> u32 {
    std::process::id()
}

async fn bare_endpoint(requests: &Arc<Vec<Vec<u8>>>, connections: usize) -> anyhow::Result<Cost> {
    let bare = Bare::start().await?;
    let (program, generator, began) = (cpu_seconds(bare.pid)?, cpu_seconds(own())?, Instant::now());
    load(&bare.address, requests.clone(), connections).await?;
    let thousands = requests.len() as f64 / 1e3;
    Ok(Cost {
        program: (cpu_seconds(bare.pid)? - program) / thousands,
        generator: (cpu_seconds(own())? - generator) / thousands,
        broker: 0.0,
        rate: requests.len() as f64 / began.elapsed().as_secs_f64(),
    })
}

async fn bare_publish(nats: &Nats, count: usize, in_flight: usize) -> anyhow::Result<Cost> {
    let context = jetstream::new(async_nats::connect(nats.url()).await?);
    let config = jetstream::stream::Config {
        name: "BARE".to_owned(),
        subjects: vec!["bare.>".to_owned()],
        duplicate_window: Duration::from_hours(96),
        ..jetstream::stream::Config::default()
    };
    context.create_stream(config).await?;
    let broker_pid = nats.pid().context("no process id")?;
    let (program, broker, began) = (cpu_seconds(own())?, cpu_seconds(broker_pid)?, Instant::now());
    stream::iter(0..count)
        .map(|n| {
            let context = &context;
            async move {
                let mut headers = async_nats::HeaderMap::new();
                headers.insert("Nats-Msg-Id", format!("event_{n:026}"));
                for (name, value) in LIKE_OURS {
                    headers.insert(name, value);
                }
                let subject = format!("bare.directory_1.user.{:026}.updated", n % 5_000);
                let ack = context
                    .publish_with_headers(subject, headers, body(n).into())
                    .await
                    .unwrap();
                ack.await.unwrap();
            }
        })
        .buffer_unordered(in_flight)
        .for_each(async |()| {})
        .await;
    let thousands = count as f64 / 1e3;
    let rate = count as f64 / began.elapsed().as_secs_f64();
    context.delete_stream("BARE").await?;
    Ok(Cost {
        program: (cpu_seconds(own())? - program) / thousands,
        generator: 0.0,
        broker: (cpu_seconds(broker_pid)? - broker) / thousands,
        rate,
    })
}

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() -> anyhow::Result<()> {
    if bare::wanted() {
        return bare::serve().await;
    }
    let size = |name: &str, default: usize| std::env::var(name).map_or(Ok(default), |text| text.parse());
    let (count, connections) = (size("REQUESTS", 30_000)?, size("CONNECTIONS", 64)?);
    let nats = Nats::with(NatsOptions {
        lazy_sync: true,
        ..NatsOptions::default()
    })
    .await?;
    let ingest = receiver(&nats).await?;
    let ours = Receiver {
        pid: ingest.pid().context("no process id")?,
        address: ingest.listen_url().trim_start_matches("http://").to_owned(),
    };
    println!("ingest: {count} webhooks over {connections} connections; the broker's default sync\n");
    let peer = if peers::installed() {
        Some(Peer::receiver(&nats).await?)
    } else {
        None
    };
    let theirs = peer.as_ref().map(|peer| Receiver {
        pid: peer.pid,
        address: peer.said.clone(),
    });
    let (mut rounds, mut answered, mut theirs_answered) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..size("ROUNDS", 7)? {
        let bodies = (round * count..(round + 1) * count).map(|n| request(&body(n)));
        let requests = Arc::new(bodies.collect::<Vec<_>>());
        rounds.push(Round {
            endpoint: bare_endpoint(&requests, connections).await?,
            publish: bare_publish(&nats, count, connections).await?,
            ours: receiving(&ours, &nats, &requests, connections, &mut answered).await?,
            theirs: match &theirs {
                Some(theirs) => {
                    Some(receiving(theirs, &nats, &requests, connections, &mut theirs_answered).await?)
                }
                None => None,
            },
        });
    }
    told(&rounds)?;
    for (name, receiver, mut answered) in [("ours", Some(ours), answered), ("Node", theirs, theirs_answered)]
    {
        let Some(receiver) = receiver else { continue };
        answered.sort();
        println!(
            "{name} answered after p50 {:.1} ms, p99 {:.1} ms; peak memory {:.0} MB",
            answered[answered.len() / 2].as_secs_f64() * 1e3,
            answered[answered.len() * 99 / 100].as_secs_f64() * 1e3,
            peak_rss(receiver.pid)? as f64 / 1e6
        );
    }
    Ok(())
}

/// A program that takes webhooks to a log: dsync-ingest, or a peer.
struct Receiver {
    pid: u32,
    address: String,
}

async fn receiving(
    receiver: &Receiver,
    nats: &Nats,
    requests: &Arc<Vec<Vec<u8>>>,
    connections: usize,
    answered: &mut Vec<Duration>,
) -> anyhow::Result<Cost> {
    let broker_pid = nats.pid().context("no process id")?;
    let before = (
        cpu_seconds(receiver.pid)?,
        cpu_seconds(own())?,
        cpu_seconds(broker_pid)?,
    );
    let began = Instant::now();
    answered.extend(load(&receiver.address, requests.clone(), connections).await?);
    let thousands = requests.len() as f64 / 1e3;
    Ok(Cost {
        program: (cpu_seconds(receiver.pid)? - before.0) / thousands,
        generator: (cpu_seconds(own())? - before.1) / thousands,
        broker: (cpu_seconds(broker_pid)? - before.2) / thousands,
        rate: requests.len() as f64 / began.elapsed().as_secs_f64(),
    })
}

/// All measurements of a round, made one after another.
struct Round {
    endpoint: Cost,
    publish: Cost,
    ours: Cost,
    theirs: Option<Cost>,
}

impl Round {
    /// CPU seconds of the indispensable parts for 1,000 requests.
    fn parts(&self) -> f64 {
        self.endpoint.program + self.endpoint.generator + self.publish.program + self.publish.broker
    }

    fn whole(&self) -> f64 {
        self.ours.program + self.ours.broker + self.ours.generator
    }
}

/// Picks a measurement, if it was made.
type Of = fn(&Round) -> Option<Cost>;

fn told(rounds: &[Round]) -> anyhow::Result<()> {
    let median = |of: &dyn Fn(&Round) -> f64| {
        let mut all: Vec<f64> = rounds.iter().map(of).collect();
        all.sort_by(f64::total_cmp);
        all[all.len() / 2]
    };
    println!(
        "{:>28}  {:>9}  {:>8}  {:>9}  {:>8}",
        "CPU s per 1,000", "program", "broker", "generator", "rate /s"
    );
    let costs: [(&str, Of); 4] = [
        ("bare axum, verifying", |round| Some(round.endpoint)),
        ("bare publish", |round| Some(round.publish)),
        ("dsync-ingest", |round| Some(round.ours)),
        ("Node receiver", |round| round.theirs),
    ];
    for (name, cost) in costs {
        if !rounds.iter().any(|round| cost(round).is_some()) {
            continue;
        }
        let of = |part: fn(Cost) -> f64| median(&|round| cost(round).map_or(f64::NAN, part));
        println!(
            "{name:>28}  {:>9.4}  {:>8.4}  {:>9.4}  {:>8.0}",
            of(|cost| cost.program),
            of(|cost| cost.broker),
            of(|cost| cost.generator),
            of(|cost| cost.rate)
        );
    }
    let cores = std::thread::available_parallelism()?.get() as f64;
    println!(
        "\ncomposed limit: {:.0}/s on {cores} cores; reached: {:.2}",
        median(&|round| cores / round.parts() * 1e3),
        median(&|round| round.ours.rate * round.parts() / cores / 1e3)
    );
    println!(
        "CPU of the parts ÷ CPU with dsync-ingest: {:.2}; of the program alone: {:.2}",
        median(&|round| round.parts() / round.whole()),
        median(&|round| (round.endpoint.program + round.publish.program) / round.ours.program)
    );
    println!(
        "dsync-ingest ÷ bare axum, by rate: {:.3}",
        median(&|round| round.ours.rate / round.endpoint.rate)
    );
    if rounds.iter().any(|round| round.theirs.is_some()) {
        println!(
            "dsync-ingest ÷ Node receiver, by rate: {:.2}; Node receiver ÷ dsync-ingest, by CPU with the broker's: {:.2}",
            median(&|round| round
                .theirs
                .map_or(f64::NAN, |theirs| round.ours.rate / theirs.rate)),
            median(&|round| round.theirs.map_or(f64::NAN, |theirs| {
                (theirs.program + theirs.broker) / (round.ours.program + round.ours.broker)
            }))
        );
    }
    Ok(())
}
