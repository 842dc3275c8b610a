//! Brokers that are killed, frozen, late or recreated: nothing acknowledged is lost, order is kept, nobody waits
//! forever.

use std::time::Duration;

use journal::Appended::{Duplicate, Stored};
use journal::{Connection, Error, Journal, ReadError, Unavailable};
use tests::{Authority, Line, Nats, NatsOptions, Proxy, eventually, holds};
use tokio::task::JoinSet;

use super::{BOUND, append_surely, limits, log_on, nth, read, record, seqs, settings};

#[tokio::test]
async fn reading_goes_on_where_it_was_when_the_broker_is_killed() -> anyhow::Result<()> {
    let mut nats = Nats::start().await?;
    let journal = log_on(&nats).await?;
    for n in 1..=300 {
        journal.append(&nth(n)).await?;
    }
    let mut reader = journal.read(0, &[]).await?;
    let mut got = Vec::new();
    for round in 1..=5 {
        // When the broker is killed, it has sent some entries that were not returned yet.
        got.extend(seqs(&reader.next_batch(20, usize::MAX).await?));
        nats.kill();
        nats.start_again().await?;
        append_surely(&journal, &nth(300 + round)).await?;
    }
    got.extend(seqs(&read(&mut reader, 305 - got.len()).await?));
    assert_eq!(got, (1..=305).collect::<Vec<_>>());
    Ok(())
}

#[tokio::test]
async fn a_reader_at_the_end_gets_what_is_appended_after_a_restart() -> anyhow::Result<()> {
    let mut nats = Nats::start().await?;
    let journal = log_on(&nats).await?;
    let mut reader = journal.read(0, &[]).await?;
    let waiting = tokio::spawn(async move { read(&mut reader, 1).await });
    nats.kill();
    nats.start_again().await?;
    append_surely(&journal, &nth(1)).await?;
    let entries = tokio::time::timeout(BOUND, waiting).await???;
    assert_eq!(seqs(&entries), [1]);
    Ok(())
}

/// Writers that retry, a reader, and a broker killed over and over: everything acknowledged is read once, in order.
#[tokio::test(flavor = "multi_thread")]
async fn nothing_acknowledged_is_lost_when_the_broker_is_killed_mid_burst() -> anyhow::Result<()> {
    const WRITERS: usize = 4;
    const EACH: usize = 400;
    let mut nats = Nats::start().await?;
    let journal = log_on(&nats).await?;
    let mut reader = journal.read(0, &[]).await?;
    let reading = tokio::spawn(async move { read(&mut reader, WRITERS * EACH).await });
    let writers: Vec<_> = (0..WRITERS)
        .map(|writer| {
            let journal = journal.clone();
            tokio::spawn(async move {
                let mut acknowledged = Vec::new();
                for n in 0..EACH {
                    let record = nth(writer * EACH + n);
                    acknowledged.push((append_surely(&journal, &record).await?, record.id));
                }
                anyhow::Ok(acknowledged)
            })
        })
        .collect();
    for _ in 0..6 {
        let before = journal
            .identity()
            .await
            .ok()
            .flatten()
            .map_or(0, |identity| identity.last_seq);
        nats.kill();
        nats.start_again().await?;
        // Make some progress between kills.
        eventually(BOUND, async || {
            let now = journal.identity().await?.map_or(0, |identity| identity.last_seq);
            anyhow::ensure!(now >= before + 50 || now == u64::try_from(WRITERS * EACH)?);
            Ok(())
        })
        .await?;
    }
    let mut acknowledged = Vec::new();
    for writer in writers {
        acknowledged.extend(writer.await??);
    }
    acknowledged.sort_unstable();
    let entries = reading.await??;
    let got: Vec<(u64, String)> = entries
        .into_iter()
        .map(|entry| (entry.seq, entry.record.id))
        .collect();
    assert_eq!(got, acknowledged);
    Ok(())
}

#[tokio::test]
async fn a_broker_that_comes_up_later_is_found() -> anyhow::Result<()> {
    let mut nats = Nats::absent(NatsOptions::default())?;
    let journal = Journal::connect(&settings(&nats)).await?;
    assert!(matches!(
        journal.ready().await,
        Err(Error::Unavailable(Unavailable::Disconnected))
    ));
    assert!(matches!(
        journal.identity().await,
        Err(Error::Unavailable(Unavailable::Disconnected))
    ));
    assert_eq!(journal.max_payload(), None);
    nats.start_again().await?;
    eventually(BOUND, async || Ok(journal.ensure(&limits()).await?)).await?;
    journal.ready().await?;
    assert_eq!(*journal.connections().borrow(), 1);
    append_surely(&journal, &nth(1)).await?;
    Ok(())
}

#[tokio::test]
async fn connections_are_counted_and_readiness_tells_the_truth() -> anyhow::Result<()> {
    let mut nats = Nats::start().await?;
    let journal = log_on(&nats).await?;
    let mut connections = journal.connections();
    assert_eq!(*connections.borrow_and_update(), 1);
    nats.kill();
    eventually(BOUND, async || {
        anyhow::ensure!(journal.ready().await.is_err());
        Ok(())
    })
    .await?;
    nats.start_again().await?;
    tokio::time::timeout(BOUND, connections.changed()).await??;
    assert_eq!(*connections.borrow(), 2);
    eventually(BOUND, async || Ok(journal.ready().await?)).await
}

#[tokio::test]
async fn a_reader_of_a_frozen_broker_says_so_and_goes_on_later() -> anyhow::Result<()> {
    let mut nats = Nats::start().await?;
    let journal = log_on(&nats).await?;
    journal.append(&nth(1)).await?;
    let mut reader = journal.read(1, &[]).await?;
    nats.pause()?;
    let frozen = tokio::time::timeout(BOUND, reader.next_batch(10, 1 << 20)).await?;
    assert!(matches!(frozen, Err(ReadError::Unavailable(_))), "{frozen:?}");
    nats.resume()?;
    append_surely(&journal, &nth(2)).await?;
    assert_eq!(seqs(&read(&mut reader, 1).await?), [2]);
    Ok(())
}

#[tokio::test]
async fn a_log_made_anew_has_another_identity_and_ends_its_readers() -> anyhow::Result<()> {
    let mut nats = Nats::start().await?;
    let journal = log_on(&nats).await?;
    for n in 1..=3 {
        journal.append(&nth(n)).await?;
    }
    let old = journal.identity().await?.expect("there");
    let mut reader = journal.read(0, &[]).await?;
    read(&mut reader, 2).await?;

    nats.wipe().await?;
    let gone = eventually(BOUND, async || Ok(journal.identity().await?)).await?;
    assert_eq!(gone, None);
    let ended = eventually(BOUND, async || match reader.next_batch(10, 1 << 20).await {
        Err(ReadError::Replaced) => Ok(()),
        // It may still return what it had received before.
        other => anyhow::bail!("{other:?}"),
    });
    ended.await?;

    journal.ensure(&limits()).await?;
    for n in 1..=9 {
        append_surely(&journal, &nth(n)).await?;
    }
    let new = journal.identity().await?.expect("recreated");
    assert!(new.created > old.created);
    // The new log is longer than the old one was, but is still not the one on which this reader was opened.
    assert!(matches!(
        reader.next_batch(10, 1 << 20).await,
        Err(ReadError::Replaced)
    ));
    Ok(())
}

#[tokio::test]
async fn identity_survives_a_kill() -> anyhow::Result<()> {
    let mut nats = Nats::start().await?;
    let journal = log_on(&nats).await?;
    journal.append(&nth(1)).await?;
    let before = journal.identity().await?;
    nats.kill();
    nats.start_again().await?;
    let after = eventually(BOUND, async || Ok(journal.identity().await?)).await?;
    assert_eq!(after, before);
    Ok(())
}

/// An append waits long enough for a restart of the broker. The caller does not notice it.
#[tokio::test]
async fn an_append_outlasts_a_short_restart() -> anyhow::Result<()> {
    let mut nats = Nats::start().await?;
    let journal = log_on(&nats).await?;
    nats.pause()?;
    let record = nth(1);
    let append = journal.append(&record);
    let restart = async {
        tokio::task::yield_now().await;
        nats.kill();
        nats.start_again().await
    };
    let (appended, restarted) = tokio::join!(append, restart);
    restarted?;
    // Stored once, by the attempt before or after the kill.
    assert!(matches!(appended?, Stored { seq: 1 } | Duplicate { seq: 1 }));
    assert_eq!(journal.identity().await?.expect("there").messages, 1);
    Ok(())
}

/// Nothing is queued for an unreachable broker, so what was refused is not stored later by itself.
#[tokio::test]
async fn an_append_without_a_broker_fails_in_time() -> anyhow::Result<()> {
    let mut nats = Nats::start().await?;
    let journal = log_on(&nats).await?;
    nats.kill();
    eventually(BOUND, async || {
        anyhow::ensure!(journal.ready().await.is_err());
        Ok(())
    })
    .await?;
    let refused = tokio::time::timeout(Duration::from_secs(4), journal.append(&nth(1))).await?;
    assert!(refused.is_err());
    nats.start_again().await?;
    eventually(BOUND, async || Ok(journal.ready().await?)).await?;
    assert_eq!(journal.identity().await?.expect("there").messages, 0);
    Ok(())
}

/// A broker whose host is gone, or that hangs: it is connected, but takes nothing and says nothing, not even to pings.
/// More is unsent than fits between, and over TLS a connection cannot be closed before that was taken.
#[tokio::test(flavor = "multi_thread")]
async fn a_broker_that_takes_and_says_nothing_is_left_for_another() -> anyhow::Result<()> {
    let authority = Authority::new()?;
    let nats = Nats::with(NatsOptions {
        tls: Some(authority.certify(&["127.0.0.1"])?),
        ..NatsOptions::default()
    })
    .await?;
    let ways = [Proxy::to(nats.address())?, Proxy::to(nats.address())?];
    let journal = Journal::connect(&Connection {
        url: ways.each_ref().map(|way| way.instead_of(&nats.url())).join(","),
        ca: Some(authority.certificate()),
        ..settings(&nats)
    })
    .await?;
    eventually(BOUND, async || Ok(journal.ensure(&limits()).await?)).await?;
    for way in ways.iter().filter(|way| way.open() > 0) {
        way.set(Line::Silent);
    }
    let large = vec![b'x'; 900_000];
    let mut appending = JoinSet::new();
    for n in 0..40 {
        let (journal, record) = (
            journal.clone(),
            record(&format!("event_large_{n}"), "dsync.d.user.u.created", &large),
        );
        appending.spawn(async move { append_surely(&journal, &record).await });
    }
    while let Some(appended) = appending.join_next().await {
        appended??;
    }
    // Nothing that was meant for the silent one ends the new connection.
    let connections = *journal.connections().borrow();
    holds(Duration::from_secs(5), async || {
        anyhow::ensure!(
            *journal.connections().borrow() == connections,
            "the new broker was left, too"
        );
        Ok(())
    })
    .await?;
    assert_eq!(connections, 2);
    Ok(())
}
