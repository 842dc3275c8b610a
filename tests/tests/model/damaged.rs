//! One of three copies has lost an entry, because a bit in its store flipped. Its server does not know, and consumers
//! that happen to be placed there leave out the entry.

use std::time::Duration;

use anyhow::{Context as _, ensure};
use journal::{Appended, Connection, Journal, Limits};
use projector::erase::drain;
use projector::lane::Lane;
use projector::run::{Tuning, Worker};
use projector::store::erased::note_purges;
use projector::store::progress;
use schema::record::{Received, Record, Source};
use schema::timestamp::Timestamp;
use sqlx::PgPool;
use tests::{Cluster, Postgres, eventually};
use tokio_util::sync::CancellationToken;

use crate::rebuilding::{BOUND, tools};
use crate::worker;

const SMALL: usize = 60;
/// Large entries, more than fit in one file of the broker's store: the broker reads its last file completely when it
/// starts.
const LARGE: usize = 10;
const ALL: usize = SMALL + LARGE;

fn told(nth: usize) -> Record {
    let bytes = if nth < SMALL { 100 } else { 900_000 };
    let body = serde_json::json!({
        "id": format!("event_{nth:04}"), "event": "dsync.something.new",
        "data": {"directory_id": "d1", "text": "x".repeat(bytes)},
    });
    match Record::receive(
        body.to_string().into(),
        Source::Webhook,
        None,
        Timestamp::from_micros(0),
    ) {
        Received::Event(record) => record,
        Received::Quarantined(..) | Received::NotOurs => panic!("the record must be addressable"),
    }
}

/// The number of entries that a consumer returns, wherever it is placed.
async fn read(journal: &Journal, last: u64) -> anyhow::Result<usize> {
    let mut reader = eventually(BOUND, async || Ok(journal.read(0, &[]).await?)).await?;
    let mut count = 0;
    while reader.position() < last {
        count += tokio::time::timeout(BOUND, reader.next_batch(1_000, 1 << 30))
            .await??
            .len();
    }
    Ok(count)
}

/// Works the lane `all` from the beginning. Returns the number of records applied.
async fn work(pool: &PgPool, journal: &Journal, last: u64) -> anyhow::Result<u64> {
    sqlx::query("update dsync.progress set seq = 0, seq_appended_at = null, holder = null")
        .execute(pool)
        .await?;
    let shutdown = CancellationToken::new();
    let worker = Worker {
        // Small batches, so that missing entries are requested in parts.
        tuning: Tuning {
            batch_records: 50,
            ..Tuning::default()
        },
        ..worker(pool.clone(), journal.clone(), &shutdown)
    };
    let metrics = worker.metrics.clone();
    let task = tokio::spawn(worker.work(Lane::All));
    eventually(BOUND, async || {
        let position = progress::position(pool, Lane::All)
            .await?
            .context("the lane has not begun")?;
        ensure!(position.seq >= last, "at {} of {last}", position.seq);
        Ok(())
    })
    .await?;
    shutdown.cancel();
    task.await?;
    ensure!(metrics.log_lost_entries.get() == 0, "the log lost nothing");
    Ok(metrics.events.with_label_values(&["other", "stale"]).get())
}

/// A log in three copies, of which the one on `damaged` has lost an entry.
struct Stage {
    cluster: Cluster,
    journal: Journal,
    /// The log's last sequence.
    last: u64,
    /// The sequence of the entry that one copy lost.
    lost: u64,
    /// The server with that copy.
    damaged: usize,
}

impl Stage {
    async fn set() -> anyhow::Result<Self> {
        let mut cluster = Cluster::start(3).await?;
        let journal = Journal::connect(&Connection {
            url: cluster.url(),
            creds: None,
            ca: None,
            stream: "DSYNC".to_owned(),
            name: "damaged".to_owned(),
        })
        .await?;
        let limits = Limits {
            replicas: 3,
            max_age: Duration::ZERO,
            max_bytes: 0,
            dedup_window: Duration::from_mins(1),
        };
        eventually(BOUND, async || Ok(journal.ensure(&limits).await?)).await?;
        let (mut last, mut the_30th) = (0, 0);
        for nth in 0..ALL {
            let record = told(nth);
            let appended = eventually(BOUND, async || Ok(journal.append(&record).await?)).await?;
            let (Appended::Stored { seq } | Appended::Duplicate { seq }) = appended;
            (last, the_30th) = (seq, if nth == 30 { seq } else { the_30th });
        }
        let leader = eventually(BOUND, async || cluster.leader("DSYNC").await).await?;
        let damaged = (leader + 1) % 3;
        let server = &mut cluster.servers[damaged];
        server.stop().await?;
        ensure!(server.turn_over_a_bit("event_0030")? == 1);
        server.start_again().await?;
        Ok(Self {
            cluster,
            journal,
            last,
            lost: the_30th,
            damaged,
        })
    }

    /// Has the leader step down until the server with the damaged copy leads, or another one.
    async fn let_lead(&self, damaged: bool) -> anyhow::Result<()> {
        eventually(BOUND, async || {
            let leader = self.cluster.leader("DSYNC").await?;
            if (leader == self.damaged) == damaged {
                return Ok(());
            }
            let client = async_nats::connect(self.cluster.servers[0].url()).await?;
            let step_down = "$JS.API.STREAM.LEADER.STEPDOWN.DSYNC";
            client.request(step_down, "".into()).await?;
            anyhow::bail!("server {leader} leads")
        })
        .await
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_one_copy_lost_is_applied_and_built_all_the_same() -> anyhow::Result<()> {
    let postgres = Postgres::migrated().await?;
    let pool = postgres.pool().await?;
    let Stage {
        cluster: _cluster,
        journal,
        last,
        ..
    } = Stage::set().await?;
    let mut consumers = 0;
    while read(&journal, last).await? == ALL {
        consumers += 1;
        ensure!(
            consumers < 200,
            "no consumer leaves anything out, so this test proves nothing"
        );
    }
    // Each pass uses new consumers, a few of which are placed on the damaged copy.
    progress::begin(
        &pool,
        "DSYNC",
        journal.identity().await?.context("no log")?.created,
    )
    .await?;
    for pass in 0..20 {
        let applied = work(&pool, &journal, last).await?;
        ensure!(applied == ALL as u64, "pass {pass}: applied {applied} of {ALL}");
        let verified = tools(&pool, &journal).verify().await?;
        ensure!(verified.records == ALL as u64, "pass {pass}: {verified:?}");
    }
    Ok(())
}

/// The leader does not know the message, and so cannot say that it is still there.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_only_the_leaders_copy_lost_is_purged_from_the_others() -> anyhow::Result<()> {
    let postgres = Postgres::migrated().await?;
    let pool = postgres.pool().await?;
    let stage = Stage::set().await?;
    let journal = &stage.journal;
    let entry = async || eventually(BOUND, async || Ok(journal.entry(stage.lost).await?)).await;
    ensure!(
        entry().await?.is_some(),
        "the leader's copy is not the damaged one"
    );
    let created = journal.identity().await?.context("no log")?.created;
    note_purges(&mut *pool.acquire().await?, created, &[stage.lost]).await?;
    stage.let_lead(true).await?;
    ensure!(entry().await?.is_none(), "the copy is not damaged");
    let purged = eventually(BOUND, async || Ok(drain(&pool, journal).await?)).await?;
    ensure!(purged == 1);
    stage.let_lead(false).await?;
    ensure!(entry().await?.is_none(), "other copies still have it");
    Ok(())
}
