//! A record is stored once, unchanged, or refused with a reason.

use std::time::{Duration, Instant};

use futures_util::future::try_join_all;
use journal::{AppendError, Appended, Journal, Limits};
use tests::{Nats, NatsOptions, eventually};

use super::{BOUND, limits, log_on, nth, read, record, settings};

#[tokio::test]
async fn a_record_comes_back_as_it_went_in() -> anyhow::Result<()> {
    let nats = Nats::start().await?;
    let journal = log_on(&nats).await?;
    let every_byte: Vec<u8> = (0..=255).cycle().take(100_000).collect();
    let sent = record("event_1", "dsync.directory_1.user.user_1.created", &every_byte);
    assert_eq!(journal.append(&sent).await?, Appended::Stored { seq: 1 });

    let by_sequence = journal.entry(1).await?.expect("stored");
    let by_reading = read(&mut journal.read(0, &[]).await?, 1).await?.remove(0);
    for entry in [by_sequence, by_reading] {
        assert_eq!(entry.seq, 1);
        assert_eq!(entry.record, sent);
        let identity = journal.identity().await?.expect("there");
        assert!(entry.appended_at >= identity.created);
    }
    Ok(())
}

#[tokio::test]
async fn an_event_type_that_is_no_header_is_stored_all_the_same() -> anyhow::Result<()> {
    let nats = Nats::start().await?;
    let journal = log_on(&nats).await?;
    let mut odd = nth(1);
    odd.event_type = format!("dsync.\r\nNats-Msg-Id: x\u{1F600}{}", "y".repeat(100_000));
    odd.signature = None;
    journal.append(&odd).await?;
    let entry = journal.entry(1).await?.expect("stored");
    assert_eq!(entry.record.id, odd.id);
    assert_eq!(entry.record.signature, None);
    assert!(
        entry
            .record
            .event_type
            .starts_with("dsync.  Nats-Msg-Id: x\u{1F600}")
    );
    Ok(())
}

#[tokio::test]
async fn a_known_id_is_a_duplicate_also_after_the_broker_was_killed() -> anyhow::Result<()> {
    let mut nats = Nats::start().await?;
    let journal = log_on(&nats).await?;
    assert_eq!(journal.append(&nth(1)).await?, Appended::Stored { seq: 1 });
    assert_eq!(journal.append(&nth(2)).await?, Appended::Stored { seq: 2 });
    assert_eq!(journal.append(&nth(1)).await?, Appended::Duplicate { seq: 1 });
    nats.kill();
    nats.start_again().await?;
    let again = eventually(BOUND, async || Ok(journal.append(&nth(1)).await?)).await?;
    assert_eq!(again, Appended::Duplicate { seq: 1 });
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn many_append_at_once_and_none_waits_for_another() -> anyhow::Result<()> {
    let nats = Nats::start().await?;
    let journal = log_on(&nats).await?;
    let appends = (1..=500).map(|n| {
        let journal = journal.clone();
        async move { journal.append(&nth(n)).await }
    });
    let mut seqs: Vec<u64> = try_join_all(appends)
        .await?
        .into_iter()
        .map(|appended| match appended {
            Appended::Stored { seq } => seq,
            Appended::Duplicate { .. } => 0,
        })
        .collect();
    seqs.sort_unstable();
    assert_eq!(seqs, (1..=500).collect::<Vec<u64>>());
    Ok(())
}

#[tokio::test]
async fn what_is_larger_than_the_broker_takes_is_refused_at_once() -> anyhow::Result<()> {
    let nats = Nats::with(NatsOptions {
        max_payload: Some(10_000),
        ..NatsOptions::default()
    })
    .await?;
    let journal = log_on(&nats).await?;
    assert_eq!(journal.max_payload(), Some(10_000));
    let body = vec![b'x'; 10_000];
    let refused = journal
        .append(&record("large", "dsync.directory_1.user.user_1.created", &body))
        .await;
    assert_eq!(refused, Err(AppendError::TooLarge));
    // The connection still works.
    assert_eq!(journal.append(&nth(1)).await?, Appended::Stored { seq: 1 });
    Ok(())
}

#[tokio::test]
async fn a_full_log_refuses_drops_nothing_and_takes_again_when_there_is_room() -> anyhow::Result<()> {
    let nats = Nats::start().await?;
    let journal = Journal::connect(&settings(&nats)).await?;
    journal
        .ensure(&Limits {
            max_bytes: 20_000,
            ..limits()
        })
        .await?;
    let body = vec![b'x'; 1_000];
    let mut stored = 0;
    let refusal = loop {
        let next = record(
            &format!("event_{stored}"),
            "dsync.directory_1.user.user_1.created",
            &body,
        );
        match journal.append(&next).await {
            Ok(_) => stored += 1,
            Err(error) => break error,
        }
        assert!(stored < 100, "the log is never full");
    };
    assert_eq!(refusal, AppendError::Full);
    let identity = journal.identity().await?.expect("there");
    assert_eq!(
        (identity.first_seq, identity.last_seq, identity.messages),
        (1, stored, stored)
    );

    journal.erase(1).await?;
    let freed = record("after", "dsync.directory_1.user.user_1.created", &body[..500]);
    assert_eq!(
        journal.append(&freed).await?,
        Appended::Stored { seq: stored + 1 }
    );
    journal
        .ensure(&Limits {
            max_bytes: 40_000,
            ..limits()
        })
        .await?;
    let more = record("more", "dsync.directory_1.user.user_1.created", &body);
    assert_eq!(journal.append(&more).await?, Appended::Stored { seq: stored + 2 });
    Ok(())
}

#[tokio::test]
async fn a_broker_that_does_not_answer_is_unavailable_in_time_and_a_retry_tells_what_was_stored()
-> anyhow::Result<()> {
    let mut nats = Nats::start().await?;
    let journal = log_on(&nats).await?;
    nats.pause()?;
    let start = Instant::now();
    assert!(matches!(
        journal.append(&nth(1)).await,
        Err(AppendError::Unavailable(_))
    ));
    assert!(start.elapsed() < Duration::from_secs(4), "{:?}", start.elapsed());
    nats.resume()?;
    super::append_surely(&journal, &nth(1)).await?;
    let identity = journal.identity().await?.expect("there");
    assert_eq!(identity.messages, 1);
    Ok(())
}

#[tokio::test]
async fn without_a_stream_nothing_is_stored() -> anyhow::Result<()> {
    let nats = Nats::start().await?;
    let journal = Journal::connect(&settings(&nats)).await?;
    assert!(matches!(
        journal.append(&nth(1)).await,
        Err(AppendError::Unavailable(_))
    ));
    Ok(())
}
