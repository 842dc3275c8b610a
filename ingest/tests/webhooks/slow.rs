//! Slow clients: silent, sending byte by byte, or half closed. Each is closed, and none keeps others waiting.

use std::time::{Duration, Instant};

use tests::Nats;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::app::{App, PATH, Setup};
use crate::support::user_created;

const HEADERS: Duration = Duration::from_millis(400);
const BODY: Duration = Duration::from_millis(600);

async fn app(broker: &Nats) -> App {
    App::start(
        broker,
        Setup {
            header_read: HEADERS,
            body_time: BODY,
            ..Setup::default()
        },
    )
    .await
}

#[tokio::test]
async fn silence_and_half_a_head_are_closed() {
    let broker = Nats::start().await.unwrap();
    let app = app(&broker).await;
    for begin in [
        "",
        "POST ",
        &format!("POST {PATH} HTTP/1.1\r\nHost: x\r\nWorkOS-Sig"),
    ] {
        let mut client = app.client().await;
        client.say(begin).await;
        let began = Instant::now();
        client.closed().await;
        assert!(
            began.elapsed() > HEADERS / 2 && began.elapsed() < HEADERS * 8,
            "{:?}",
            began.elapsed()
        );
    }
}

#[tokio::test]
async fn dripped_heads_are_closed() {
    let broker = Nats::start().await.unwrap();
    let app = app(&broker).await;
    let (mut read, mut write) = app.client().await.0.into_split();
    let drip = tokio::spawn(async move {
        write
            .write_all(format!("POST {PATH} HTTP/1.1\r\nHost: x\r\nX: ").as_bytes())
            .await
            .unwrap();
        while write.write_all(b"x").await.is_ok() {
            tokio::time::sleep(HEADERS / 10).await;
        }
    });
    let began = Instant::now();
    let _ = read.read_to_end(&mut Vec::new()).await;
    assert!(began.elapsed() < HEADERS * 8, "{:?}", began.elapsed());
    tokio::time::timeout(crate::support::BOUND, drip)
        .await
        .unwrap()
        .unwrap();
}

#[tokio::test]
async fn dripped_bodies_are_answered_408_and_closed() {
    let broker = Nats::start().await.unwrap();
    let app = app(&broker).await;
    let request = app.signed(user_created("event_1"));
    let head = request.windows(4).position(|w| w == b"\r\n\r\n").unwrap() + 4;
    let (mut read, mut write) = app.client().await.0.into_split();
    let drip = tokio::spawn(async move {
        write.write_all(&request[..head]).await.unwrap();
        for byte in &request[head..] {
            if write.write_all(&[*byte]).await.is_err() {
                break;
            }
            tokio::time::sleep(BODY / 20).await;
        }
    });
    let began = Instant::now();
    let mut said = Vec::new();
    let _ = read.read_to_end(&mut said).await;
    assert!(
        said.starts_with(b"HTTP/1.1 408 "),
        "{}",
        String::from_utf8_lossy(&said)
    );
    assert!(began.elapsed() < BODY * 8, "{:?}", began.elapsed());
    drip.abort();
    assert_eq!(app.outcomes("incomplete"), 1);
    assert_eq!(app.log().await.len(), 0);
}

#[tokio::test]
async fn a_client_that_leaves_in_the_middle_leaves_nothing() {
    let broker = Nats::start().await.unwrap();
    let app = app(&broker).await;
    let request = app.signed(user_created("event_1"));
    // The connection is closed, or only half closed: nothing more is sent, but the client still listens.
    for half in [false, true] {
        let mut client = app.client().await;
        client.say(&request[..request.len() - 10]).await;
        app.in_flight(1).await;
        if half {
            client.0.shutdown().await.unwrap();
            client.closed().await;
        } else {
            drop(client);
        }
        app.in_flight(0).await;
    }
    assert_eq!(app.log().await.len(), 0);
}

#[tokio::test]
async fn slow_ones_do_not_hold_up_others() {
    let broker = Nats::start().await.unwrap();
    let app = app(&broker).await;
    let mut slow = Vec::new();
    for _ in 0..50 {
        let mut client = app.client().await;
        client
            .say(format!(
                "POST {PATH} HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\nx"
            ))
            .await;
        slow.push(client);
    }
    let began = Instant::now();
    assert_eq!(app.post(user_created("event_1")).await.status, 200);
    assert!(began.elapsed() < BODY, "{:?}", began.elapsed());
    for mut client in slow {
        client.closed().await;
    }
    app.in_flight(0).await;
}
