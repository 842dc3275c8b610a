//! Three copies in a cluster of three: one server may go at any time.

use std::time::Duration;

use anyhow::Context as _;
use journal::{Connection, Ensured, Journal, Limits};
use tests::{Nats, eventually};

use super::{BOUND, append_surely, limits, nth, read, settings};

async fn log_on_cluster(servers: &[Nats]) -> anyhow::Result<Journal> {
    let urls: Vec<String> = servers.iter().map(Nats::url).collect();
    let journal = Journal::connect(&Connection {
        url: urls.join(","),
        ..settings(&servers[0])
    })
    .await?;
    // Until the cluster has a leader nobody answers.
    eventually(BOUND, async || Ok(journal.ensure(&limits()).await?)).await?;
    Ok(journal)
}

/// The server that leads the stream is killed while a writer writes and a reader reads, twice. Often the reader's consumer
/// goes with it, or the connection.
#[tokio::test(flavor = "multi_thread")]
async fn with_three_copies_the_server_that_leads_may_be_killed() -> anyhow::Result<()> {
    const COUNT: usize = 1_000;
    let mut servers = Nats::cluster(3).await?;
    let journal = log_on_cluster(&servers).await?;
    let three = Limits {
        replicas: 3,
        ..limits()
    };
    let updated = eventually(BOUND, async || Ok(journal.ensure(&three).await?)).await?;
    assert!(
        updated == Ensured::Updated(vec!["replicas"]) || updated == Ensured::Unchanged,
        "{updated:?}"
    );
    let mut reader = eventually(BOUND, async || Ok(journal.read(0, &[]).await?)).await?;
    let reading = tokio::spawn(async move { read(&mut reader, COUNT).await });
    let writing = tokio::spawn({
        let journal = journal.clone();
        async move {
            let mut acknowledged = Vec::new();
            for n in 0..COUNT {
                let record = nth(n);
                acknowledged.push((append_surely(&journal, &record).await?, record.id));
            }
            anyhow::Ok(acknowledged)
        }
    });
    for _ in 0..2 {
        let before = last_seq(&journal).await?;
        let leader = leader_once_all_are_current(&servers).await?;
        servers[leader].kill();
        progress(&journal, before + 100).await?;
        servers[leader].start_again().await?;
        progress(&journal, before + 200).await?;
    }
    let acknowledged = tokio::time::timeout(BOUND, writing).await???;
    let entries = tokio::time::timeout(BOUND, reading).await???;
    let got: Vec<(u64, String)> = entries
        .into_iter()
        .map(|entry| (entry.seq, entry.record.id))
        .collect();
    assert_eq!(got, acknowledged);
    Ok(())
}

async fn last_seq(journal: &Journal) -> anyhow::Result<u64> {
    eventually(BOUND, async || {
        Ok(journal.identity().await?.map_or(0, |identity| identity.last_seq))
    })
    .await
}

async fn progress(journal: &Journal, seq: u64) -> anyhow::Result<()> {
    eventually(BOUND + Duration::from_secs(10), async || {
        let last = last_seq(journal).await?;
        anyhow::ensure!(last >= seq.min(1_000), "only {last} of {seq}");
        Ok(())
    })
    .await
}

/// One may only go when the others have everything.
async fn leader_once_all_are_current(servers: &[Nats]) -> anyhow::Result<usize> {
    eventually(BOUND, async || {
        let context = async_nats::jetstream::new(async_nats::connect(servers[0].url()).await?);
        let cluster = context
            .get_stream("DSYNC")
            .await?
            .cached_info()
            .cluster
            .clone()
            .unwrap_or_default();
        let current = cluster
            .replicas
            .iter()
            .filter(|peer| peer.current && !peer.offline)
            .count();
        anyhow::ensure!(current == 2, "{current} of 2 followers are current");
        let leader = cluster
            .leader
            .and_then(|name| name.strip_prefix('n')?.parse().ok());
        leader.context("the stream has no leader")
    })
    .await
}
