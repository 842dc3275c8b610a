//! Entries are read in order, each once, from any position.

use std::time::{Duration, Instant};

use journal::Error;
use schema::record::REMOVAL_SUBJECTS;
use tests::{Nats, holds};

use super::{log_on, nth, read, record, seqs};

#[tokio::test]
async fn from_any_position_with_and_without_filters() -> anyhow::Result<()> {
    let nats = Nats::start().await?;
    let journal = log_on(&nats).await?;
    for n in 1..=60 {
        journal.append(&nth(n)).await?;
    }
    for after in [0, 1, 29, 59] {
        let mut reader = journal.read(after, &[]).await?;
        assert_eq!(reader.pending(), 60 - after);
        let entries = read(&mut reader, usize::try_from(60 - after)?).await?;
        assert_eq!(seqs(&entries), (after + 1..=60).collect::<Vec<_>>());
        assert_eq!((reader.pending(), reader.position()), (0, 60));
    }
    let mut removals = journal.read(30, REMOVAL_SUBJECTS).await?;
    assert_eq!(removals.pending(), 10);
    let entries = read(&mut removals, 4).await?;
    assert_eq!(seqs(&entries), [33, 36, 39, 42]);
    assert_eq!(removals.pending(), 6);
    Ok(())
}

#[tokio::test]
async fn at_the_end_it_waits_and_then_returns_at_once_what_comes() -> anyhow::Result<()> {
    let nats = Nats::start().await?;
    let journal = log_on(&nats).await?;
    journal.append(&nth(1)).await?;
    let mut reader = journal.read(1, &[]).await?;
    for n in 2..=11 {
        // Abandoning a wait loses nothing.
        let waited = tokio::time::timeout(Duration::from_millis(10), reader.next_batch(100, 1 << 20)).await;
        assert!(waited.is_err());
        journal.append(&nth(n)).await?;
        let appended = Instant::now();
        let batch = reader.next_batch(100, 1 << 20).await?;
        assert_eq!(seqs(&batch), [u64::try_from(n)?]);
        assert!(
            appended.elapsed() < Duration::from_millis(500),
            "{:?}",
            appended.elapsed()
        );
    }
    Ok(())
}

#[tokio::test]
async fn a_batch_keeps_to_its_limits_and_the_rest_comes_next() -> anyhow::Result<()> {
    let nats = Nats::start().await?;
    let journal = log_on(&nats).await?;
    for n in 0..20 {
        let body = vec![b'x'; if n == 10 { 5_000 } else { 100 }];
        journal
            .append(&record(
                &n.to_string(),
                "dsync.directory_1.user.user_1.created",
                &body,
            ))
            .await?;
    }
    let mut reader = journal.read(0, &[]).await?;
    let mut got = Vec::new();
    while got.len() < 20 {
        let batch = reader.next_batch(7, 1_000).await?;
        let bytes: usize = batch.iter().map(|entry| entry.record.body.len()).sum();
        assert!(
            batch.len() <= 7 && (bytes <= 1_000 || batch.len() == 1),
            "{} entries, {bytes} bytes",
            batch.len()
        );
        got.extend(seqs(&batch));
    }
    assert_eq!(got, (1..=20).collect::<Vec<_>>());
    Ok(())
}

/// The log has more messages and more bytes than are ever requested at once. Nothing stalls, nothing is lost.
#[tokio::test(flavor = "multi_thread")]
async fn a_long_log_of_large_and_small_entries_is_read_through() -> anyhow::Result<()> {
    let nats = Nats::start().await?;
    let journal = log_on(&nats).await?;
    let sizes = (0..6_000).map(|n| if n % 100 == 0 { 700_000 } else { 300 });
    let appends = sizes.enumerate().map(|(n, size)| {
        let journal = journal.clone();
        async move {
            let body = vec![b'x'; size];
            journal
                .append(&record(
                    &n.to_string(),
                    "dsync.directory_1.user.user_1.created",
                    &body,
                ))
                .await
        }
    });
    let mut appends = futures_util::StreamExt::buffer_unordered(futures_util::stream::iter(appends), 32);
    while let Some(appended) = futures_util::StreamExt::next(&mut appends).await {
        appended?;
    }
    let mut reader = journal.read(0, &[]).await?;
    let mut expected = 1;
    let start = Instant::now();
    while expected <= 6_000 {
        for entry in reader.next_batch(2_000, 4 << 20).await? {
            assert_eq!(entry.seq, expected);
            expected += 1;
        }
    }
    // A stall would last at least until heartbeats are missed.
    assert!(start.elapsed() < Duration::from_secs(6), "{:?}", start.elapsed());
    Ok(())
}

#[tokio::test]
async fn a_position_beyond_the_end_is_an_error_not_a_wait() -> anyhow::Result<()> {
    let nats = Nats::start().await?;
    let journal = log_on(&nats).await?;
    journal.append(&nth(1)).await?;
    let refused = journal.read(2, &[]).await;
    assert!(matches!(
        refused,
        Err(Error::BeyondEnd {
            after_seq: 2,
            last_seq: 1
        })
    ));
    Ok(())
}

#[tokio::test]
async fn purged_entries_are_passed_over() -> anyhow::Result<()> {
    let nats = Nats::start().await?;
    let journal = log_on(&nats).await?;
    for n in 1..=30 {
        journal.append(&nth(n)).await?;
    }
    let client = async_nats::connect(nats.url()).await?;
    let stream = async_nats::jetstream::new(client).get_stream("DSYNC").await?;
    stream.purge().filter("dsync.directory_1.>").await?;
    journal.erase(2).await?;
    let mut reader = journal.read(0, &[]).await?;
    let expected: Vec<u64> = (1..=30).filter(|n| n % 10 != 1 && *n != 2).collect();
    assert_eq!(seqs(&read(&mut reader, expected.len()).await?), expected);
    // Even if everything after the position is gone.
    stream.purge().await?;
    let mut reader = journal.read(10, &[]).await?;
    journal.append(&nth(31)).await?;
    assert_eq!(seqs(&read(&mut reader, 1).await?), [31]);
    Ok(())
}

/// A quiet log is not a fault, even for longer than a pull request lasts and heartbeats may be missed.
#[tokio::test]
async fn a_quiet_log_is_no_error() -> anyhow::Result<()> {
    let nats = Nats::start().await?;
    let journal = log_on(&nats).await?;
    let mut reader = journal.read(0, &[]).await?;
    holds(Duration::from_secs(8), async || {
        match tokio::time::timeout(Duration::from_secs(2), reader.next_batch(10, 1 << 20)).await {
            Err(_) => Ok(()),
            Ok(Ok(entries)) => anyhow::bail!("read {} entries from an empty log", entries.len()),
            Ok(Err(error)) => Err(error.into()),
        }
    })
    .await
}

/// Messages that the client cannot receive from a consumer. For the first three, it drops the connection; the last, it
/// mistakes for one of the broker's own. None of them holds up the entries after it.
#[tokio::test]
async fn a_message_with_broken_headers_stops_nobody() -> anyhow::Result<()> {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let nats = Nats::start().await?;
    let journal = log_on(&nats).await?;
    journal.append(&nth(1)).await?;
    let headers: [&[u8]; 4] = [
        b"NATS/1.0\r\nX: \xff\xfe\r\n\r\n",
        b"NATS/1.0\r\nno colon\r\n\r\n",
        b"NATS/1.0 abc\r\n\r\n",
        b"NATS/1.0 100 Idle\r\n\r\n",
    ];
    let mut wire = b"CONNECT {\"verbose\":false,\"headers\":true}\r\n".to_vec();
    for header in headers {
        wire.extend(
            format!(
                "HPUB dsync.directory_1.user.user_2.deleted {} {}\r\n",
                header.len(),
                header.len() + 2
            )
            .bytes(),
        );
        wire.extend([header, b"{}\r\n"].concat());
    }
    wire.extend(b"PING\r\n");
    let mut socket = tokio::net::TcpStream::connect(nats.url().trim_start_matches("nats://")).await?;
    socket.write_all(&wire).await?;
    let mut heard = Vec::new();
    while !heard.windows(4).any(|word| word == b"PONG") {
        assert!(socket.read_buf(&mut heard).await? > 0);
    }
    super::append_surely(&journal, &nth(6)).await?;
    for filters in [&[][..], REMOVAL_SUBJECTS] {
        let expected: Vec<u64> = if filters.is_empty() {
            (1..=6).collect()
        } else {
            (2..=6).collect()
        };
        let entries = read(&mut journal.read(0, filters).await?, expected.len()).await?;
        assert_eq!(seqs(&entries), expected);
        assert_eq!(entries[expected.len() - 2].record.body, "{}");
    }
    Ok(())
}

#[tokio::test]
async fn a_foreign_message_is_read_with_sensible_values() -> anyhow::Result<()> {
    let nats = Nats::start().await?;
    let journal = log_on(&nats).await?;
    let client = async_nats::connect(nats.url()).await?;
    for subject in ["dsync.directory_1.user.user_1.missing", "dsync.anything"] {
        client.publish(subject, "not one of ours".into()).await?;
    }
    client.flush().await?;
    let entries = read(&mut journal.read(0, &[]).await?, 2).await?;
    assert_eq!(entries[0].record.source, schema::record::Source::Sweep);
    assert_eq!(entries[1].record.source, schema::record::Source::Webhook);
    assert_eq!(entries[1].record.id, "");
    assert_eq!(entries[1].record.received_at, entries[1].appended_at);
    Ok(())
}
