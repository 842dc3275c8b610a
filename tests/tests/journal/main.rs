//! The log against a real broker: the promises of `journal`, one module for each.

mod appending;
mod cluster;
mod credentials;
mod forgetting;
mod outages;
mod reading;
mod settings;

use std::time::{Duration, Instant};

use journal::{Appended, Connection, Entry, Journal, Limits, Reader};
use schema::record::{Record, Source, Subject};
use schema::timestamp::Timestamp;
use tests::Nats;
use tokio::time::timeout;

const BOUND: Duration = Duration::from_secs(30);

fn settings(nats: &Nats) -> Connection {
    Connection {
        url: nats.url(),
        creds: None,
        ca: None,
        stream: "DSYNC".to_owned(),
        name: "test".to_owned(),
    }
}

fn limits() -> Limits {
    Limits {
        replicas: 1,
        max_age: Duration::ZERO,
        max_bytes: 0,
        dedup_window: Duration::from_hours(4),
    }
}

/// Creates a log, and returns a handle to it.
async fn log_on(nats: &Nats) -> anyhow::Result<Journal> {
    let journal = Journal::connect(&settings(nats)).await?;
    journal.ensure(&limits()).await?;
    Ok(journal)
}

fn record(id: &str, subject: &str, body: &[u8]) -> Record {
    Record {
        subject: Subject::from_log(subject),
        id: id.to_owned(),
        event_type: "dsync.user.created".to_owned(),
        source: Source::Webhook,
        received_at: Timestamp::from_micros(1_790_000_000_123_456),
        signature: Some("t=1790000000000, v1=00ff".to_owned()),
        body: bytes::Bytes::copy_from_slice(body),
    }
}

/// The `n`th record of a series, about user `n` in one of ten directories.
fn nth(n: usize) -> Record {
    let verb = if n.is_multiple_of(3) { "deleted" } else { "created" };
    let subject = format!("dsync.directory_{}.user.user_{n}.{verb}", n % 10);
    record(
        &format!("event_{n}"),
        &subject,
        format!("{{\"n\":{n}}}").as_bytes(),
    )
}

/// Appends until it is acknowledged, as a caller that retries would.
async fn append_surely(journal: &Journal, record: &Record) -> anyhow::Result<u64> {
    let start = Instant::now();
    loop {
        match journal.append(record).await {
            Ok(Appended::Stored { seq } | Appended::Duplicate { seq }) => return Ok(seq),
            Err(error) => paced(start, error).await?,
        }
    }
}

/// Reads `count` entries, calling again after errors.
async fn read(reader: &mut Reader, count: usize) -> anyhow::Result<Vec<Entry>> {
    let start = Instant::now();
    let mut entries = Vec::new();
    while entries.len() < count {
        match timeout(BOUND, reader.next_batch(count - entries.len(), usize::MAX)).await? {
            Ok(batch) => entries.extend(batch),
            Err(error) => paced(start, error).await?,
        }
    }
    Ok(entries)
}

/// Pauses before the next attempt. Fails with `error` once the bound is reached.
async fn paced(start: Instant, error: impl Into<anyhow::Error>) -> anyhow::Result<()> {
    if start.elapsed() > BOUND {
        return Err(error.into());
    }
    tokio::time::sleep(Duration::from_millis(20)).await;
    Ok(())
}

fn seqs(entries: &[Entry]) -> Vec<u64> {
    entries.iter().map(|entry| entry.seq).collect()
}
