//! How fast records are appended and acknowledged, as a ratio to what the broker itself does with the same messages: the
//! bare client publishes them with the same number in flight. Both are measured in turn on the same server.
//!
//! Run: `ops/bench append`. It prints a line for each number in flight. The ratio is the figure to quote.

#![allow(clippy::unwrap_used, missing_docs, reason = "a benchmark")]

mod log;

use std::time::{Duration, Instant};

use async_nats::jetstream;
use bytes::Bytes;
use futures_util::{StreamExt as _, stream};
use journal::{Journal, Limits};
use schema::record::{Record, Source, Subject};
use schema::timestamp::Timestamp;
use tests::{Nats, eventually};

const ROUNDS: usize = 5;

fn body(n: usize) -> Bytes {
    let filler = "x".repeat(900);
    Bytes::from(format!(
        r#"{{"object":"event","id":"event_{n:026}","event":"dsync.user.updated","created_at":"2026-01-01T00:00:00.000Z",
            "data":{{"id":"directory_user_{n:026}","directory_id":"directory_1","state":"active","raw_attributes":{{"a":"{filler}"}}}}}}"#
    ))
}

fn record(n: usize) -> Record {
    Record {
        subject: Subject::from_log(format!(
            "dsync.directory_1.user.directory_user_{:026}.updated",
            n % 5_000
        )),
        id: format!("event_{n:026}"),
        event_type: "dsync.user.updated".to_owned(),
        source: Source::Webhook,
        received_at: Timestamp::from_micros(1_790_000_000_000_000),
        signature: Some(format!("t=1790000000000, v1={}", "0".repeat(64))),
        body: body(n),
    }
}

async fn ours(journal: &Journal, from: usize, count: usize, in_flight: usize) -> f64 {
    let began = Instant::now();
    stream::iter(from..from + count)
        .map(|n| async move { journal.append(&record(n)).await.unwrap() })
        .buffer_unordered(in_flight)
        .for_each(async |_| {})
        .await;
    rate(count, began.elapsed())
}

async fn bare(context: &jetstream::Context, from: usize, count: usize, in_flight: usize) -> f64 {
    let began = Instant::now();
    stream::iter(from..from + count)
        .map(|n| async move {
            let mut headers = async_nats::HeaderMap::new();
            headers.insert("Nats-Msg-Id", format!("event_{n:026}"));
            headers.insert("Dsync-Event", "dsync.user.updated");
            headers.insert("Dsync-Source", "webhook");
            headers.insert("Dsync-Received-At", "2026-09-21T14:13:20Z");
            headers.insert(
                "WorkOS-Signature",
                format!("t=1790000000000, v1={}", "0".repeat(64)),
            );
            let subject = format!("dsync.directory_1.user.directory_user_{:026}.updated", n % 5_000);
            context
                .publish_with_headers(subject, headers, body(n))
                .await
                .unwrap()
                .await
                .unwrap()
        })
        .buffer_unordered(in_flight)
        .for_each(async |_| {})
        .await;
    rate(count, began.elapsed())
}

#[expect(clippy::cast_precision_loss, reason = "counts are small")]
fn rate(count: usize, took: Duration) -> f64 {
    count as f64 / took.as_secs_f64()
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// Brokers, each with a copy of the stream.
async fn brokers(replicas: usize) -> anyhow::Result<(Vec<Nats>, Journal)> {
    let servers = match replicas {
        1 => vec![Nats::start().await?],
        more => Nats::cluster(more).await?,
    };
    let journal = log::connect(servers[0].url()).await?;
    let limits = Limits {
        replicas,
        max_age: Duration::ZERO,
        max_bytes: 0,
        dedup_window: Duration::from_hours(96),
    };
    // A cluster must elect a leader first.
    eventually(Duration::from_secs(30), async || {
        Ok(journal.ensure(&limits).await?)
    })
    .await?;
    Ok((servers, journal))
}

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() -> anyhow::Result<()> {
    println!(
        "append: records of 1.2 kB, acknowledged; sync_interval always; medians of {ROUNDS} rounds in turn\n"
    );
    println!(
        "{:>8}  {:>9}  {:>12}  {:>12}  {:>12}",
        "replicas", "in flight", "ours /s", "bare /s", "ours ÷ bare"
    );
    for (replicas, in_flight, count) in [
        (1, 1, 1_000),
        (1, 64, 4_000),
        (1, 1_024, 8_000),
        (3, 1, 500),
        (3, 64, 4_000),
        (3, 1_024, 8_000),
    ] {
        let (servers, journal) = brokers(replicas).await?;
        let context = jetstream::new(async_nats::connect(servers[0].url()).await?);
        let (mut a, mut b, mut ratios) = (Vec::new(), Vec::new(), Vec::new());
        for round in 0..=ROUNDS {
            let from = round * 2 * count;
            let ours = ours(&journal, from, count, in_flight).await;
            let bare = bare(&context, from + count, count, in_flight).await;
            // The first round warms up.
            if round > 0 {
                a.push(ours);
                b.push(bare);
                ratios.push(ours / bare);
            }
        }
        println!(
            "{replicas:>8}  {in_flight:>9}  {:>12.0}  {:>12.0}  {:>12.2}",
            median(a),
            median(b),
            median(ratios)
        );
    }
    Ok(())
}
