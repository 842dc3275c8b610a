//! Bounds: bodies that are too large, too many requests, and shutdown.

use std::sync::Arc;

use ingest::in_flight::Bounds;
use ingest::routes::HEADERS_ROOM;
use serde_json::json;
use tests::{Nats, NatsOptions};
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;

use crate::app::{App, PATH, Setup};
use crate::support::{Client, user_created};

fn padded(event: &str, length: usize) -> String {
    let body = user_created(event);
    format!("{body}{}", " ".repeat(length - body.len()))
}

#[tokio::test]
async fn a_body_too_large_is_refused_by_its_announcement_or_as_soon_as_it_shows() {
    let broker = Nats::start().await.unwrap();
    let app = App::start(
        &broker,
        Setup {
            max_body: 2000,
            ..Setup::default()
        },
    )
    .await;
    assert_eq!(
        app.post(padded("event_1", 2000)).await.json(),
        (200, json!({"status": "accepted"}))
    );
    let refused = app.post(padded("event_2", 2001)).await;
    assert_eq!(refused.json(), (413, json!({"error": "payload too large"})));
    assert_eq!(refused.header("connection"), Some("close"));
    // None of the body was sent, and ingest did not ask for it.
    let announced = format!(
        "POST {PATH} HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 99999999999\r\n\r\n"
    );
    assert_eq!(app.ask(announced).await.status, 413);
    // Without an announced length, the body is refused at the first byte too many, although it has not ended.
    let mut client = app.client().await;
    client
        .say(format!(
            "POST {PATH} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
        ))
        .await;
    for _ in 0..2 {
        client.say(format!("3e8\r\n{}\r\n", "x".repeat(1000))).await;
    }
    client.say("1\r\nx\r\n").await;
    assert_eq!(client.hear().await.unwrap().status, 413);
    client.closed().await;
    assert_eq!(app.outcomes("too_large"), 3);
    assert_eq!(app.log().await.len(), 1);
}

#[tokio::test]
async fn a_chunked_body_is_one_body() {
    let broker = Nats::start().await.unwrap();
    let app = App::start(&broker, Setup::default()).await;
    let body = user_created("event_1");
    let mut client = app.client().await;
    let signature = app.signature(body.as_bytes());
    client
        .say(format!(
            "POST {PATH} HTTP/1.1\r\nHost: x\r\nWorkOS-Signature: {signature}\r\nTransfer-Encoding: chunked\r\n\r\n"
        ))
        .await;
    for part in body.as_bytes().chunks(7) {
        client
            .say(format!(
                "{:x}\r\n{}\r\n",
                part.len(),
                std::str::from_utf8(part).unwrap()
            ))
            .await;
    }
    client.say("0\r\n\r\n").await;
    assert_eq!(client.hear().await.unwrap().status, 200);
    assert_eq!(app.log().await[0].record.body, body.as_bytes());
}

#[tokio::test]
async fn what_the_broker_cannot_take_is_refused_up_front_and_all_below_is_stored() {
    let broker = Nats::with(NatsOptions {
        max_payload: Some(20_000),
        ..NatsOptions::default()
    })
    .await
    .unwrap();
    let app = App::start(&broker, Setup::default()).await;
    let limit = 20_000 - HEADERS_ROOM;
    assert_eq!(
        app.post(padded("event_1", limit)).await.json(),
        (200, json!({"status": "accepted"}))
    );
    assert_eq!(app.post(padded("event_2", limit + 1)).await.status, 413);
    // The longest possible headers still fit.
    let mut body = user_created(&format!("event_{}", "1".repeat(122)));
    body = body.replace("dsync.user.created", &format!("dsync.user.{}", "x".repeat(117)));
    body += &" ".repeat(limit - body.len());
    let mut signature = app.signature(body.as_bytes());
    signature += &" ".repeat(1000 - signature.len());
    signature += ",more=than-enough";
    let request = crate::support::post(PATH, &[("WorkOS-Signature", &signature)], body.as_bytes());
    assert_eq!(
        app.ask(request).await.json(),
        (200, json!({"status": "accepted"}))
    );
    assert_eq!(app.log().await.len(), 2);
}

async fn bounded(broker: &Nats, bounds: Bounds) -> App {
    let setup = Setup {
        bounds,
        ..Setup::default()
    };
    App::start(broker, setup).await
}

/// Sends a webhook to a broker that is frozen, so that it stays in flight.
async fn held_up(app: &App, body: String) -> Client {
    let mut client = app.client().await;
    client.say(app.signed(body)).await;
    app.in_flight(1).await;
    client
}

#[tokio::test]
async fn requests_above_the_limit_are_told_to_come_again_and_those_below_go_on() {
    let mut broker = Nats::start().await.unwrap();
    let bounds = Bounds {
        requests: 1,
        bytes: 1 << 20,
    };
    let app = bounded(&broker, bounds).await;
    broker.pause().unwrap();
    let mut first = held_up(&app, user_created("event_1")).await;
    // The first may still be about to take the only place.
    let refused = crate::support::until("refused at once", async || {
        let reply = app.post(user_created("event_2")).await;
        (reply.header("retry-after") == Some("1")).then_some(reply)
    })
    .await;
    assert_eq!(refused.json(), (503, json!({"error": "service unavailable"})));
    broker.resume().unwrap();
    assert_eq!(first.hear().await.unwrap().status, 200);
    app.in_flight(0).await;
    assert_eq!(app.post(user_created("event_3")).await.status, 200);
}

/// Half a body comes from anybody, and keeps nobody else out.
#[tokio::test]
async fn half_a_body_makes_room_for_a_whole_one() {
    let broker = Nats::start().await.unwrap();
    for bounds in [
        Bounds {
            requests: 1,
            bytes: 1 << 20,
        },
        Bounds {
            requests: 10,
            bytes: 3000,
        },
    ] {
        let app = bounded(&broker, bounds).await;
        let request = app.signed(padded("event_half", 2500));
        let mut slow = app.client().await;
        slow.say(&request[..request.len() - 10]).await;
        app.in_flight(1).await;
        for n in 0..3 {
            let whole = padded(&format!("event_{n}_{}", bounds.requests), 2500);
            assert_eq!(app.post(whole).await.status, 200, "{bounds:?}");
        }
        let cut_off = slow.hear().await.unwrap();
        assert_eq!(cut_off.json(), (408, json!({"error": "request timeout"})));
        assert_eq!(cut_off.header("connection"), Some("close"));
        app.in_flight(0).await;
        assert_eq!((app.outcomes("incomplete"), app.outcomes("accepted")), (1, 3));
    }
}

/// What the broker has not taken stays in memory, even after its sender was told to come again.
#[tokio::test]
async fn bytes_above_the_limit_are_told_to_come_again_until_the_broker_has_taken_them() {
    let mut broker = Nats::start().await.unwrap();
    let bounds = Bounds {
        requests: 100,
        bytes: 8 << 20,
    };
    let app = bounded(&broker, bounds).await;
    broker.pause().unwrap();
    let large = 900 << 10;
    // The first wave also fills what lies between here and the broker.
    for wave in 0..3 {
        let mut senders = Vec::new();
        for n in 0..20 {
            let mut client = app.client().await;
            let request = app.signed(padded(&format!("event_{wave}_{n}"), large));
            senders.push(tokio::spawn(async move {
                // One that is refused is closed before it has sent everything.
                let _ = client.0.write_all(&request).await;
                let _ = client.hear().await;
            }));
        }
        for sender in senders {
            sender.await.unwrap();
        }
    }
    app.in_flight(0).await;
    let refused = app.post(padded("event_other", large)).await;
    assert_eq!(refused.header("retry-after"), Some("1"), "{refused:?}");
    broker.resume().unwrap();
    crate::support::until("stored", async || {
        (app.post(padded("event_other", large)).await.status == 200).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_burst_with_doubles_is_stored_once_each() {
    let broker = Nats::start().await.unwrap();
    let app = Arc::new(App::start(&broker, Setup::default()).await);
    let mut tasks = Vec::new();
    for client in 0..16 {
        let app = Arc::clone(&app);
        tasks.push(tokio::spawn(async move {
            let mut connection = app.client().await;
            // Every event is sent by two of the clients.
            for n in 0..40 {
                let event = format!("event_{}", (client / 2) * 40 + n);
                connection.say(app.signed(user_created(&event))).await;
                assert_eq!(connection.hear().await.unwrap().status, 200, "{event}");
            }
        }));
    }
    for task in tasks {
        task.await.unwrap();
    }
    let mut ids: Vec<_> = app.log().await.into_iter().map(|entry| entry.record.id).collect();
    assert_eq!(ids.len(), 320);
    ids.sort();
    ids.dedup();
    assert_eq!(ids.len(), 320);
    assert_eq!((app.outcomes("accepted"), app.outcomes("duplicate")), (320, 320));
}

#[tokio::test]
async fn at_the_end_what_is_under_way_is_answered_and_nothing_new_is_taken() {
    let broker = Nats::start().await.unwrap();
    let mut app = App::start(&broker, Setup::default()).await;
    let request = app.signed(user_created("event_1"));
    let (begin, end) = request.split_at(request.len() - 10);
    let mut last = app.client().await;
    last.say(begin).await;
    app.in_flight(1).await;
    app.context.shutdown.cancel();
    crate::support::until("closed to new ones", async || {
        TcpStream::connect(app.addr).await.err()
    })
    .await;
    last.say(end).await;
    let reply = last.hear().await.unwrap();
    assert_eq!(reply.json(), (200, json!({"status": "accepted"})));
    assert_eq!(reply.header("connection"), Some("close"));
    (&mut app.task).await.unwrap();
}
