//! Messages that somebody else put into the log, in whatever way: they are set aside or applied, and stop nobody.

use std::path::Path;

use anyhow::ensure;
use async_nats::HeaderMap;
use tests::eventually;
use workos_sim::Faults;

use crate::stand::{BOUND, Stand};

const SUBJECT: &str = "dsync.directory_x.user.directory_user_x.updated";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn headers_and_subjects_that_postgres_cannot_hold_stop_nobody() -> anyhow::Result<()> {
    let stand = Stand::up().await?;
    let projector = stand.projector().start().await?;
    let log = async_nats::jetstream::new(async_nats::connect(stand.nats.url()).await?);
    let overlong = "x".repeat(60_000);
    let fine = r#"{"id":"event_f","event":"dsync.user.updated","data":{"id":"u","directory_id":"d"}}"#;
    for (subject, header, value) in [
        (SUBJECT, "Dsync-Event", "a\0b"),
        (SUBJECT, "Dsync-Event", &overlong),
        (SUBJECT, "Nats-Msg-Id", "id\0\u{1b}[31m"),
        (SUBJECT, "Dsync-Source", "\0"),
        (SUBJECT, "Dsync-Received-At", "9999-12-31T23:59:59-23:59"),
        (SUBJECT, "WorkOS-Signature", "\0"),
        ("dsync.nul\0.user.u.updated", "Dsync-Event", "x"),
        ("dsync.x", "Dsync-Event", "x"),
    ] {
        for body in ["no event", fine] {
            let mut headers = HeaderMap::new();
            headers.insert(header, value);
            log.publish_with_headers(subject, headers, body.into())
                .await?
                .await?;
        }
    }
    let delivery = stand.deliver(Faults::none())?;
    stand.populate(5, 1)?;
    delivery.drained().await;
    stand.applied().await?;
    ensure!(stand.count("select count(*) from dsync.dead_letters").await? >= 7);
    ensure!(
        stand
            .count("select count(*) from directory.users where id <> 'u'")
            .await?
            == 15,
        "genuine events must be applied"
    );
    let output = projector.output();
    let obeyed = output.find(|c: char| c.is_control() && c != '\n');
    ensure!(
        obeyed.is_none(),
        "the program's log contains control characters: {:?}",
        obeyed.map(|at| &output[at.saturating_sub(80)..(at + 20).min(output.len())])
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn postgres_refuses_nothing_of_what_fuzzing_found() -> anyhow::Result<()> {
    let stand = Stand::up().await?;
    let _projector = stand.projector().start().await?;
    let log = async_nats::jetstream::new(async_nats::connect(stand.nats.url()).await?);
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus");
    let mut sent = 0;
    for target in ["event", "letters"] {
        for file in std::fs::read_dir(corpus.join(target))? {
            let input = std::fs::read(file?.path())?;
            for part in input.split(|byte| *byte == 0x1E) {
                let body = if target == "letters" {
                    part.get(2..).unwrap_or_default()
                } else {
                    part
                };
                log.publish(SUBJECT, body.to_vec().into()).await?.await?;
                sent += 1;
            }
        }
    }
    ensure!(sent > 40, "{sent}");
    eventually(BOUND, async || {
        let applied = stand
            .count("select seq from dsync.progress where lane = 'all'")
            .await?;
        ensure!(applied == sent, "applied {applied} of {sent}");
        Ok(())
    })
    .await?;
    let refused = "select count(*) from dsync.dead_letters where reason like '%Postgres%'";
    ensure!(
        stand.count(refused).await? == 0,
        "Postgres refused something that should have been repaired"
    );
    ensure!(stand.count("select count(*) from dsync.users").await? > 0);
    Ok(())
}
