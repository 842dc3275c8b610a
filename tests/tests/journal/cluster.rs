//! Three copies in a cluster of three: any one server may fail at any time.

use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use futures_util::future::try_join_all;
use journal::{Appended, Connection, Ensured, Journal, Limits};
use schema::record::Record;
use tests::{Cluster, eventually, holds};

use super::{BOUND, append_surely, limits, nth, read, settings};

/// Creates a log with three copies.
async fn log_on_cluster(cluster: &Cluster) -> anyhow::Result<Journal> {
    let journal = Journal::connect(&Connection {
        url: cluster.url(),
        ..settings(&cluster.servers[0])
    })
    .await?;
    // Until the cluster has a leader, nothing answers.
    eventually(BOUND, async || Ok(journal.ensure(&limits()).await?)).await?;
    let three = Limits {
        replicas: 3,
        ..limits()
    };
    eventually(BOUND, async || {
        let updated = journal.ensure(&three).await?;
        ensure!(
            updated == Ensured::Updated(vec!["replicas"]) || updated == Ensured::Unchanged,
            "{updated:?}"
        );
        Ok(())
    })
    .await?;
    Ok(journal)
}

/// The server that leads the log, once the others have everything, so that one may fail.
async fn leader(cluster: &Cluster) -> anyhow::Result<usize> {
    eventually(BOUND, async || cluster.leader("DSYNC").await).await
}

/// Twice, the server that leads the stream is killed while a writer writes and a reader reads. Often, the reader's
/// consumer or connection is lost with it.
#[tokio::test(flavor = "multi_thread")]
async fn with_three_copies_the_server_that_leads_may_be_killed() -> anyhow::Result<()> {
    const COUNT: usize = 1_000;
    let mut cluster = Cluster::start(3).await?;
    let journal = log_on_cluster(&cluster).await?;
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
        let leader = leader(&cluster).await?;
        cluster.servers[leader].kill();
        progress(&journal, before + 100).await?;
        cluster.servers[leader].start_again().await?;
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

/// While one of the appends is being replicated, the broker knows the record's id, but not yet its outcome.
#[tokio::test(flavor = "multi_thread")]
async fn of_one_record_appended_by_several_at_once_none_is_refused() -> anyhow::Result<()> {
    let cluster = Cluster::start(3).await?;
    let journal = log_on_cluster(&cluster).await?;
    leader(&cluster).await?;
    let mut stored = 0;
    for n in 0..100 {
        let record = nth(n);
        let appended = try_join_all((0..8).map(|_| journal.append(&record))).await?;
        let is_stored = |one: &&Appended| matches!(one, Appended::Stored { .. });
        let first = appended.iter().filter(is_stored).count();
        // Stored more than once only if, on a busy machine, the broker stays undecided for a second.
        ensure!((1..8).contains(&first), "{appended:?}");
        stored += first as u64;
    }
    assert_eq!(last_seq(&journal).await?, stored);
    Ok(())
}

/// A leader that is cut off notes the ids of messages but decides on none. It is reconnected in time to stay the
/// leader, and then decides on everything that it was sent, including the record under its second message id. So both
/// ids are in the log, which shows that the second one was used.
#[tokio::test(flavor = "multi_thread")]
async fn what_a_broker_does_not_decide_on_goes_under_another_name() -> anyhow::Result<()> {
    let cluster = Cluster::start(3).await?;
    let journal = log_on_cluster(&cluster).await?;
    let mut names = Vec::new();
    // On a busy machine, the others may have elected another leader in the meantime.
    for n in 0..5 {
        let leader = leader(&cluster).await?;
        names = stored_while_cut_off(&cluster, leader, nth(n)).await?;
        let [first, second] = [format!("event_{n}"), format!("event_{n}.2")];
        let again = append_surely(&journal, &nth(n)).await?;
        assert!(names.iter().any(|(seq, _, id)| *seq == again && *id == first));
        assert!(names.iter().all(|(_, _, id)| *id == first), "{names:?}");
        if names.iter().map(|(_, name, _)| name).eq([&first, &second]) {
            return Ok(());
        }
    }
    bail!("never stored under a second message id; the last attempt left {names:?}")
}

/// Appends a record through the leader, while that has noted the record's id and is cut off from the others. Returns
/// what is in the log afterwards: sequences, message ids, and the ids of records.
async fn stored_while_cut_off(
    cluster: &Cluster,
    leader: usize,
    record: Record,
) -> anyhow::Result<Vec<(u64, String, String)>> {
    let server = &cluster.servers[leader];
    let journal = Journal::connect(&settings(server)).await?;
    let last = eventually(BOUND, async || last_seq(&journal).await).await?;
    let raw = async_nats::connect(server.url()).await?;
    let mut headers = async_nats::HeaderMap::new();
    headers.insert("Nats-Msg-Id", record.id.as_str());
    cluster.isolate(leader);
    raw.publish_with_headers(record.subject.as_str().to_owned(), headers, "noted".into())
        .await?;
    raw.flush().await?;
    let mut appending = tokio::spawn({
        let (journal, record) = (journal.clone(), record.clone());
        async move { append_surely(&journal, &record).await }
    });
    holds(Duration::from_millis(1_500), async || {
        ensure!(!appending.is_finished(), "stored while cut off");
        Ok(())
    })
    .await?;
    cluster.rejoin();
    tokio::time::timeout(BOUND, &mut appending).await???;
    let mut names = Vec::new();
    let context = async_nats::jetstream::new(async_nats::connect(server.url()).await?);
    let end = eventually(BOUND, async || last_seq(&journal).await).await?;
    for seq in last + 1..=end {
        let stream = context.get_stream("DSYNC").await?;
        let message = stream.get_raw_message(seq).await?;
        let name = message
            .headers
            .get("Nats-Msg-Id")
            .context("no message id")?
            .to_string();
        let entry = journal.entry(seq).await?.context("an entry is missing")?;
        names.push((seq, name, entry.record.id));
    }
    Ok(names)
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
        ensure!(last >= seq.min(1_000), "only {last} of {seq}");
        Ok(())
    })
    .await
}
