//! Made-up events, the log in which they wait, and the rate at which they are applied from there.

use std::time::{Duration, Instant};

use anyhow::Context as _;
use bytes::Bytes;
use futures_util::{StreamExt as _, stream};
use journal::{Journal, Limits};
use projector::lane::Lane;
use projector::metrics::Metrics;
use projector::run::{Tuning, Worker};
use projector::store::progress;
use schema::record::{Received, Record, Source};
use schema::timestamp::Timestamp;
use service::clock::Clock;
use sqlx::PgPool;
use tests::Nats;
use tokio_util::sync::CancellationToken;

/// The kind of events.
#[derive(Clone, Copy)]
pub(crate) enum Mix {
    /// New users.
    FirstSync,
    /// Updates of existing users.
    Updates,
    /// Memberships, each with both objects embedded.
    Memberships,
}

impl Mix {
    /// All mixes, with their names.
    pub(crate) const EVERY: [(&str, Mix); 3] = [
        ("first sync", Mix::FirstSync),
        ("updates", Mix::Updates),
        ("memberships", Mix::Memberships),
    ];
}

/// The sizes.
#[derive(Clone, Copy)]
pub(crate) struct Numbers {
    /// Events per round.
    pub(crate) events: usize,
    /// The number of people with memberships.
    pub(crate) people: usize,
    /// How far apart the numbers of updated users are.
    pub(crate) apart: usize,
    /// The group of a round's nth membership.
    pub(crate) group: fn(round: usize, n: usize) -> usize,
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

fn record(mix: Mix, numbers: Numbers, round: usize, n: usize) -> Record {
    let (kind, data) = match mix {
        Mix::FirstSync => ("dsync.user.created", user(round * numbers.events + n, 0)),
        Mix::Updates => ("dsync.user.updated", user(n * numbers.apart, round + 1)),
        Mix::Memberships => (
            "dsync.group.user_added",
            format!(
                r#"{{"directory_id":"directory_{}","user":{},"group":{{"id":"directory_group_{:026}","directory_id":"directory_{}",
                    "name":"Group","updated_at":"2026-01-01T00:00:00.000Z"}}}}"#,
                n % 10,
                user(n % numbers.people, 0),
                (numbers.group)(round, n),
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

/// Creates a log whose de-duplication window is `window`.
pub(crate) async fn log_with(nats: &Nats, window: Duration) -> anyhow::Result<Journal> {
    let journal = crate::log::connect(nats.url()).await?;
    let limits = Limits {
        replicas: 1,
        max_age: Duration::ZERO,
        max_bytes: 0,
        dedup_window: window,
    };
    journal.ensure(&limits).await?;
    Ok(journal)
}

/// The default de-duplication window.
pub(crate) const WINDOW: Duration = Duration::from_hours(96);

/// Appends a round's events to the log, and returns its last sequence.
pub(crate) async fn fill(journal: &Journal, mix: Mix, numbers: Numbers, round: usize) -> anyhow::Result<u64> {
    stream::iter(0..numbers.events)
        .map(|n| async move { journal.append(&record(mix, numbers, round, n)).await.unwrap() })
        .buffer_unordered(512)
        .for_each(async |_| {})
        .await;
    Ok(journal.identity().await?.context("no stream")?.last_seq)
}

/// Applies the log up to `last`, which is this many events. Returns the number of events per second.
pub(crate) async fn applied(
    pool: &PgPool,
    journal: &Journal,
    last: u64,
    events: usize,
) -> anyhow::Result<f64> {
    let shutdown = CancellationToken::new();
    let worker = Worker {
        pool: pool.clone(),
        journal: journal.clone(),
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
    Ok(events as f64 / took.as_secs_f64())
}

/// The median.
pub(crate) fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
