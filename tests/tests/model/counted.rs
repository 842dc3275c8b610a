//! What the projector counts about itself.

use std::time::Duration;

use anyhow::{Context as _, ensure};
use projector::erase::erase;
use projector::lane::Lane;
use projector::run::Worker;
use projector::store::progress::{self, hold};
use projector::watch::gauges;
use prometheus::Registry;
use prometheus::core::Collector as _;
use schema::record::{Record, Source};
use serde_json::json;
use sqlx::PgPool;
use tests::{Nats, Postgres, eventually, holds};
use time::OffsetDateTime;
use tokio_util::sync::CancellationToken;

use crate::{log_on, record, worker};

const BOUND: Duration = Duration::from_mins(1);

fn told(id: &str, kind: &str, user: &str, second: u32) -> Record {
    let at = format!("2026-01-01T00:00:{second:02}.000Z");
    let body = json!({
        "id": id, "event": format!("dsync.user.{kind}"), "created_at": at,
        "data": {"id": user, "directory_id": "d1", "email": format!("{user}@example.com"), "updated_at": at},
    });
    record(body.to_string().as_bytes(), Source::Webhook)
}

async fn reaches(pool: &PgPool, lane: Lane, seq: u64) -> anyhow::Result<()> {
    eventually(BOUND, async || {
        let position = progress::position(pool, lane).await?.context("not begun")?;
        ensure!(position.seq == seq, "at {} of {seq}", position.seq);
        Ok(())
    })
    .await
}

/// The lane `all` reads a removal after the lane `removals` has written it. Counted again, at the backlog's age, it would
/// look like access that was taken away late.
#[tokio::test]
async fn a_removal_is_counted_once_and_at_the_age_at_which_it_took_effect() -> anyhow::Result<()> {
    let (postgres, nats) = tokio::try_join!(Postgres::migrated(), Nats::start())?;
    let (pool, journal) = (postgres.pool().await?, log_on(&nats).await?);
    for (n, user) in ["u1", "u2", "u3"].into_iter().enumerate() {
        journal
            .append(&told(&format!("e{n}u"), "updated", user, 1))
            .await?;
        journal
            .append(&told(&format!("e{n}d"), "deleted", user, 2))
            .await?;
    }
    // Somebody else holds the lane `all` and does nothing.
    let created = journal.identity().await?.context("no log")?.created;
    progress::begin(&pool, "DSYNC", created).await?;
    ensure!(hold(&pool, Lane::All, "another", BOUND * 10).await?.is_some());
    let shutdown = CancellationToken::new();
    let worker: Worker = worker(postgres.pool().await?, journal, &shutdown);
    let metrics = worker.metrics.clone();
    let tasks: Vec<_> = Lane::EVERY
        .into_iter()
        .map(|lane| tokio::spawn(worker.clone().work(lane)))
        .collect();
    reaches(&pool, Lane::Removals, 6).await?;
    progress::release(&pool, Lane::All, "another").await?;
    reaches(&pool, Lane::All, 6).await?;
    shutdown.cancel();
    for task in tasks {
        task.await?;
    }
    let of = |kind, outcome| metrics.events.with_label_values(&[kind, outcome]).get();
    ensure!(
        metrics.deprovision_seconds.get_sample_count() == 3 && of("dsync.user.deleted", "applied") == 3,
        "{} and {}: {:?}",
        metrics.deprovision_seconds.get_sample_count(),
        of("dsync.user.deleted", "applied"),
        metrics.events.collect()
    );
    ensure!(of("dsync.user.updated", "applied") == 3);
    for lane in Lane::EVERY {
        ensure!(
            metrics.lane_batches.with_label_values(&[lane.as_str()]).get() >= 1,
            "{lane:?}"
        );
    }
    Ok(())
}

/// The same if the lane `all` is first: to the other one it is stale then.
#[tokio::test]
async fn a_removal_that_the_lane_all_applies_first_is_counted_once() -> anyhow::Result<()> {
    let (postgres, nats) = tokio::try_join!(Postgres::migrated(), Nats::start())?;
    let (pool, journal) = (postgres.pool().await?, log_on(&nats).await?);
    // The last one says nothing new.
    for (id, kind, second) in [("e1", "updated", 1), ("e2", "deleted", 3), ("e3", "deleted", 2)] {
        journal.append(&told(id, kind, "u1", second)).await?;
    }
    let created = journal.identity().await?.context("no log")?.created;
    progress::begin(&pool, "DSYNC", created).await?;
    ensure!(hold(&pool, Lane::Removals, "another", BOUND).await?.is_some());
    let shutdown = CancellationToken::new();
    let worker: Worker = worker(postgres.pool().await?, journal, &shutdown);
    let events = worker.metrics.events.clone();
    let tasks = Lane::EVERY.map(|lane| tokio::spawn(worker.clone().work(lane)));
    reaches(&pool, Lane::All, 3).await?;
    progress::release(&pool, Lane::Removals, "another").await?;
    reaches(&pool, Lane::Removals, 3).await?;
    shutdown.cancel();
    for task in tasks {
        task.await?;
    }
    let of = |outcome| events.with_label_values(&["dsync.user.deleted", outcome]).get();
    ensure!(
        (of("applied"), of("stale")) == (1, 1),
        "{} applied, {} stale",
        of("applied"),
        of("stale")
    );
    Ok(())
}

/// What was erased from the log's end will never be applied, so nobody may wait for it, or be woken because of it.
#[tokio::test]
async fn what_was_erased_from_the_logs_end_is_not_pending() -> anyhow::Result<()> {
    let (postgres, nats) = tokio::try_join!(Postgres::migrated(), Nats::start())?;
    let (pool, journal) = (postgres.pool().await?, log_on(&nats).await?);
    for (id, user) in [("e1", "u1"), ("e2", "u2"), ("e3", "u3")] {
        journal.append(&told(id, "updated", user, 1)).await?;
    }
    let created = journal.identity().await?.context("no log")?.created;
    progress::begin(&pool, "DSYNC", created).await?;
    sqlx::raw_sql("update dsync.progress set seq = 1")
        .execute(&pool)
        .await?;
    let metrics = projector::metrics::Metrics::new(&Registry::new());
    let shutdown = CancellationToken::new();
    let gauge = metrics.pending_messages.clone();
    let watching = tokio::spawn(gauges(pool.clone(), journal.clone(), metrics, shutdown.clone()));
    let shows = async |expected: i64| {
        eventually(BOUND, async || {
            ensure!(gauge.get() == expected, "{} pending", gauge.get());
            Ok(())
        })
        .await
    };
    shows(2).await?;
    let now = OffsetDateTime::UNIX_EPOCH;
    erase(&pool, &journal, "u3", true, now).await?;
    // The sequence of the erased one still counts while another is before it.
    holds(Duration::from_secs(6), async || {
        ensure!(gauge.get() > 0, "nothing pending");
        Ok(())
    })
    .await?;
    erase(&pool, &journal, "u2", true, now).await?;
    shows(0).await?;
    shutdown.cancel();
    Ok(watching.await?)
}

/// While the database is down, nobody knows how much is pending. The whole log would look like a projector that is stuck.
#[tokio::test]
async fn what_is_pending_is_not_guessed_while_the_database_is_down() -> anyhow::Result<()> {
    let (postgres, nats) = tokio::try_join!(Postgres::migrated(), Nats::start())?;
    let (pool, journal) = (postgres.pool().await?, log_on(&nats).await?);
    journal.append(&told("e1", "updated", "u1", 1)).await?;
    pool.close().await;
    let metrics = projector::metrics::Metrics::new(&Registry::new());
    let gauge = metrics.pending_messages.clone();
    gauge.set(0);
    let shutdown = CancellationToken::new();
    let watching = tokio::spawn(gauges(pool, journal, metrics, shutdown.clone()));
    holds(Duration::from_secs(3), async || {
        ensure!(gauge.get() == 0, "{} pending", gauge.get());
        Ok(())
    })
    .await?;
    shutdown.cancel();
    Ok(watching.await?)
}
