//! Entries missing from the log where the lane `all` expects them: reported once if the broker lost them, and never if
//! they are missing for any other reason.

use anyhow::{Context as _, ensure};
use journal::{Entry, Journal};
use projector::holes::{Hole, Reading, complete};
use projector::lane::Lane;
use projector::metrics::Metrics;
use projector::store::losses;
use projector::watch::gauges;
use prometheus::Registry;
use rand::SeedableRng as _;
use rand::prelude::StdRng;
use sqlx::PgPool;
use tests::{Nats, Postgres, eventually};
use tokio_util::sync::CancellationToken;

use crate::rebuilding::{self, BOUND, tools, until_rewound};
use crate::{append, log_on, records};

struct Stage {
    _postgres: Postgres,
    nats: Nats,
    pool: PgPool,
    journal: Journal,
    /// The log's last sequence.
    last: u64,
}

impl Stage {
    async fn set() -> anyhow::Result<Self> {
        let (postgres, nats) = (Postgres::migrated().await?, Nats::start().await?);
        let (pool, journal) = (postgres.pool().await?, log_on(&nats).await?);
        let last = append(&journal, &records(7), &mut StdRng::seed_from_u64(7)).await?;
        Ok(Self {
            _postgres: postgres,
            nats,
            pool,
            journal,
            last,
        })
    }

    /// Appends more. Returns the previous end of the log.
    async fn more(&mut self) -> anyhow::Result<u64> {
        let end = self.last;
        self.last = append(&self.journal, &records(8), &mut StdRng::seed_from_u64(8)).await?;
        Ok(end)
    }

    /// Works `lane` until its position is `seq` or later. Returns the number of entries that it found lost.
    async fn work(&self, lane: Lane, seq: u64) -> anyhow::Result<u64> {
        let metrics = rebuilding::work(&self.pool, &self.nats, lane, seq).await?;
        Ok(metrics.log_lost_entries.get())
    }

    /// The recorded losses, each as the sequences before and after it.
    async fn noted(&self) -> anyhow::Result<Vec<(i64, i64)>> {
        let noted = "select old_seq, new_seq from dsync.rewinds where old_created = new_created order by id";
        Ok(sqlx::query_as(noted).fetch_all(&self.pool).await?)
    }

    /// Removes entries without a record of it, as when the broker loses them or drops them by age.
    async fn lose(&self, seqs: impl IntoIterator<Item = u64>) -> anyhow::Result<()> {
        for seq in seqs {
            ensure!(self.journal.erase(seq).await?, "{seq} was not there");
        }
        Ok(())
    }

    /// Removes an entry as an erasure does.
    async fn erase(&self, seq: u64) -> anyhow::Result<()> {
        let created = self.journal.identity().await?.context("no log")?.created;
        losses::overwritten(&self.pool, created, &[seq]).await?;
        self.lose([seq]).await
    }

    async fn read(&self) -> anyhow::Result<Vec<Entry>> {
        let mut reader = self.journal.read(0, &[]).await?;
        let mut entries = Vec::new();
        while reader.position() < self.last {
            entries.append(&mut reader.next_batch(1_000, 1 << 24).await?);
        }
        Ok(entries)
    }

    /// Completes `entries` with what a consumer left out, and returns the holes. `over_dropped` is true for a build,
    /// false for a lane.
    async fn complete(
        &self,
        entries: &mut Vec<Entry>,
        records: usize,
        over_dropped: bool,
    ) -> anyhow::Result<Vec<Hole>> {
        let reading = Reading {
            created: self.journal.identity().await?.context("no log")?.created,
            position: 0,
            over_dropped,
            records,
            bytes: 1 << 24,
        };
        let mut connection = self.pool.acquire().await?;
        complete(&mut connection, &self.journal, reading, entries)
            .await?
            .context("the holes cannot be determined")
    }

    /// Lets the lane `all` read the log again. Returns the number of entries that it found lost.
    async fn again(&self) -> anyhow::Result<u64> {
        sqlx::query("update dsync.progress set seq = 0, seq_appended_at = null")
            .execute(&self.pool)
            .await?;
        self.work(Lane::All, self.last).await
    }
}

fn seqs(entries: &[Entry]) -> Vec<u64> {
    entries.iter().map(|entry| entry.seq).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_broker_lost_ahead_of_the_lane_is_told_once() -> anyhow::Result<()> {
    let mut stage = Stage::set().await?;
    stage.work(Lane::Removals, 0).await?;
    ensure!(stage.work(Lane::All, stage.last).await? == 0);
    let begin = stage.more().await?;
    // A hole right where the lane continues, a hole further on in which one entry was erased, and an entry that was
    // only erased.
    stage
        .lose([begin + 1, begin + 10, begin + 11, begin + 13])
        .await?;
    stage.erase(begin + 12).await?;
    stage.erase(begin + 20).await?;
    let lost = stage.work(Lane::All, stage.last).await?;
    ensure!(lost == 4, "{lost} entries");
    let hole = |after: u64, before: u64| -> anyhow::Result<_> {
        Ok((i64::try_from(after)?, i64::try_from(before)?))
    };
    let holes = [
        hole(begin, begin + 2)?,
        hole(begin + 9, begin + 12)?,
        hole(begin + 12, begin + 14)?,
    ];
    ensure!(stage.noted().await? == holes, "{:?}", stage.noted().await?);

    // Reading the log again, because a rebuild was undone or the log lost its end, reports only new losses.
    ensure!(stage.again().await? == 0);
    ensure!(stage.noted().await? == holes);
    stage.lose([begin + 5]).await?;
    ensure!(stage.again().await? == 1);
    ensure!(stage.noted().await?.last() == Some(&hole(begin + 4, begin + 6)?));
    // The same if the entries between the holes were erased since, which joins them into one hole.
    let noted = stage.noted().await?.len();
    for seq in [begin + 6, begin + 7, begin + 8, begin + 9, begin + 14] {
        stage.erase(seq).await?;
    }
    let told = stage.again().await?;
    ensure!(
        told == 0 && stage.noted().await?.len() == noted,
        "{told} entries, {:?}",
        stage.noted().await?
    );
    stage.lose([begin + 15]).await?;
    ensure!(stage.again().await? == 1);
    ensure!(stage.noted().await?.last() == Some(&hole(begin + 14, begin + 16)?));
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_erased_or_never_there_is_not_lost() -> anyhow::Result<()> {
    let mut stage = Stage::set().await?;
    // Erasures for another database, before this one began.
    stage.lose([3, 4, 9]).await?;
    stage.work(Lane::Removals, 0).await?;
    stage.work(Lane::All, stage.last).await?;
    let at = stage.more().await?;
    for seq in [at + 1, at + 4, at + 5] {
        stage.erase(seq).await?;
    }
    // A lane that reads only some subjects sees gaps all the time.
    stage.work(Lane::Removals, stage.last / 2).await?;
    let lost = stage.work(Lane::All, at + 50).await?;
    stage.nats.stop().await?;
    stage.nats.start_again().await?;
    let lost = lost + stage.work(Lane::All, stage.last).await?;
    let notes: i64 = sqlx::query_scalar("select count(*) from dsync.rewinds")
        .fetch_one(&stage.pool)
        .await?;
    ensure!(lost == 0 && notes == 0, "{lost} lost, {notes} recorded");
    Ok(())
}

/// For a log without any entry, the broker reports that entry 0 is missing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_log_that_was_empty_when_it_was_begun_lacks_nothing() -> anyhow::Result<()> {
    let (postgres, nats) = (Postgres::migrated().await?, Nats::start().await?);
    let (pool, journal) = (postgres.pool().await?, log_on(&nats).await?);
    let stage = Stage {
        _postgres: postgres,
        nats,
        pool,
        journal,
        last: 0,
    };
    stage.work(Lane::All, 0).await?;
    stage.work(Lane::Removals, 0).await?;
    let noted: i64 = sqlx::query_scalar("select count(*) from dsync.overwritten")
        .fetch_one(&stage.pool)
        .await?;
    let since = tools(&stage.pool, &stage.journal).verify().await?.complete_since;
    ensure!(
        noted == 0 && since.is_none(),
        "{noted} erasures recorded, complete since {since:?}"
    );
    Ok(())
}

/// In a quiet log, everything has aged out except the next entry, which was erased before the lane came to it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_erased_behind_all_that_aged_out_is_no_gap() -> anyhow::Result<()> {
    let mut stage = Stage::set().await?;
    stage.work(Lane::All, stage.last).await?;
    let at = stage.more().await?;
    stage.lose(1..=at).await?;
    stage.erase(at + 1).await?;
    stage.work(Lane::All, stage.last).await?;
    let notes: i64 = sqlx::query_scalar("select count(*) from dsync.rewinds")
        .fetch_one(&stage.pool)
        .await?;
    ensure!(notes == 0, "{notes} losses recorded");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_aged_out_before_it_was_sent_is_not_lost_but_a_gap_to_a_lane() -> anyhow::Result<()> {
    let mut stage = Stage::set().await?;
    stage.work(Lane::All, stage.last).await?;
    let at = stage.more().await?;
    let mut entries = stage.read().await?;
    stage.lose(1..=at + 30).await?;
    entries.retain(|entry| entry.seq <= at || entry.seq > at + 25);
    let expected = seqs(&entries);
    let holes = stage.complete(&mut entries, 1_000, true).await?;
    ensure!(holes.is_empty() && seqs(&entries) == expected, "{holes:?}");
    // What is missing before the first entry is no hole, because the lane has not begun.
    let mut late = entries.clone();
    late.retain(|entry| entry.seq > at);
    let holes = stage.complete(&mut late, 1_000, false).await?;
    ensure!(holes.is_empty() && seqs(&late).first() == Some(&(at + 26)));
    // Otherwise the lane stops at that position, and finds that what follows was dropped.
    let holes = stage.complete(&mut entries, 1_000, false).await?;
    ensure!(
        holes.is_empty() && seqs(&entries).last() == Some(&at),
        "{holes:?}"
    );
    ensure!(stage.work(Lane::All, stage.last).await? == 0);
    let gap = (i64::try_from(at)?, i64::try_from(at + 31)?);
    ensure!(stage.noted().await? == [gap], "{:?}", stage.noted().await?);
    Ok(())
}

/// A consumer on a damaged copy of the log leaves out entries that other copies have.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_only_a_consumer_left_out_is_asked_for() -> anyhow::Result<()> {
    let stage = Stage::set().await?;
    stage.lose([12]).await?;
    let all = stage.read().await?;
    let mut entries = all.clone();
    entries.retain(|entry| !(10..=15).contains(&entry.seq));
    let holes = stage.complete(&mut entries, 1_000, false).await?;
    ensure!(
        seqs(&entries) == [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 13, 14, 15],
        "{:?}",
        seqs(&entries)
    );
    ensure!(
        holes
            == [Hole {
                after: 11,
                before: 13
            }],
        "{holes:?}"
    );
    entries.retain(|entry| entry.seq < 10);
    entries.extend(all.iter().filter(|entry| entry.seq > 15).cloned());
    stage.complete(&mut entries, 2, false).await?;
    ensure!(seqs(&entries).last() == Some(&11), "{:?}", seqs(&entries));
    // If many are missing, only some are requested at once, because the lease must be renewed.
    entries = all.clone();
    entries.retain(|entry| entry.seq <= 12 || entry.seq == stage.last);
    stage.complete(&mut entries, 1_000, false).await?;
    ensure!(entries.len() == 11 + 100, "{}", entries.len());
    // The entry after the hole was erased since it was read, or the server that answers lacks it.
    entries = all.clone();
    entries.retain(|entry| !(20..=22).contains(&entry.seq));
    stage.lose([23]).await?;
    stage.complete(&mut entries, 1_000, false).await?;
    ensure!(
        seqs(&entries).ends_with(&[19, 20, 21, 22]),
        "{:?}",
        seqs(&entries)
    );
    // The server that answers has nothing of what was read, so nothing can be determined.
    entries = all;
    entries.retain(|entry| !(30..=32).contains(&entry.seq));
    stage.lose(33..=stage.last).await?;
    ensure!(stage.complete(&mut entries, 1_000, false).await.is_err());
    Ok(())
}

/// Whatever was erased, a log that was set back has lost it, and gives its sequences to other entries.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_erased_before_the_log_was_set_back_explains_no_later_loss() -> anyhow::Result<()> {
    for is_read in [true, false] {
        let mut stage = Stage::set().await?;
        stage.work(Lane::Removals, 0).await?;
        stage.work(Lane::All, stage.last).await?;
        let earlier = stage.nats.copy_of_store()?;
        let end = stage.more().await?;
        stage.erase(end + 3).await?;
        if is_read {
            stage.work(Lane::All, stage.last).await?;
            stage.nats.set_back(&earlier).await?;
            eventually(BOUND, async || Ok(stage.journal.identity().await?)).await?;
            until_rewound(&stage.pool, &stage.nats, end).await?;
        } else {
            let metrics = Metrics::new(&Registry::new());
            let (rewinds, shutdown) = (metrics.log_rewinds.clone(), CancellationToken::new());
            let pending = metrics.pending_messages.clone();
            let watching = tokio::spawn(gauges(
                stage.pool.clone(),
                stage.journal.clone(),
                metrics,
                shutdown.clone(),
            ));
            eventually(BOUND, async || {
                ensure!(pending.get() > 0);
                Ok(())
            })
            .await?;
            stage.nats.set_back(&earlier).await?;
            eventually(BOUND, async || {
                ensure!(rewinds.get() == 1);
                Ok(())
            })
            .await?;
            shutdown.cancel();
            watching.await?;
        }
        stage.more().await?;
        stage.lose([end + 3]).await?;
        let lost = stage.work(Lane::All, stage.last).await?;
        ensure!(lost == 1, "read {is_read}: {lost} entries");
    }
    Ok(())
}
