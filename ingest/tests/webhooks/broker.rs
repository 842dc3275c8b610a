//! The log away, frozen, full, lost, deleted: 503 each time, nothing acknowledged that is not stored, and all well again
//! without a restart.

use std::time::Duration;

use serde_json::json;

use crate::app::{App, Setup};
use crate::support::{Broker, Reply, until, user_created};

fn assert_come_again(reply: &Reply, after: &str) {
    assert_eq!(reply.json(), (503, json!({"error": "service unavailable"})));
    assert_eq!(reply.header("retry-after"), Some(after));
}

async fn until_accepted(app: &App, event: &str) {
    until("accepted", || async {
        let (status, body) = app.post(user_created(event)).await.json();
        (status == 200 && body["status"] == "accepted").then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_broker_that_comes_late_is_waited_for() {
    let mut broker = Broker::reserve("");
    let app = App::begin(&broker, Setup::default()).await;
    assert_come_again(&app.post(user_created("event_1")).await, "5");
    // What needs no log is answered all the same.
    assert_eq!(
        app.post(r#"{"id":"event_2","event":"user.created","data":{}}"#)
            .await
            .status,
        200
    );
    assert_eq!(
        app.ask(crate::support::post(crate::app::PATH, &[], b"x"))
            .await
            .status,
        401
    );
    let missing = app.context.readiness.missing().await;
    assert_eq!((missing.len(), missing[0].name), (1, "log"));
    assert!(
        missing[0].reason.contains("no connection"),
        "{}",
        missing[0].reason
    );
    broker.up().await;
    app.ready().await;
    assert_eq!(
        app.post(user_created("event_1")).await.json(),
        (200, json!({"status": "accepted"}))
    );
    assert_eq!(app.log().await.len(), 1);
}

#[tokio::test]
async fn a_broker_that_goes_is_missed_until_it_is_back() {
    let mut broker = Broker::start("").await;
    let app = App::start(&broker, Setup::default()).await;
    assert_eq!(app.post(user_created("event_1")).await.status, 200);
    broker.down();
    assert_come_again(&app.post(user_created("event_2")).await, "5");
    assert_eq!(app.context.readiness.missing().await[0].name, "log");
    broker.up().await;
    until_accepted(&app, "event_2").await;
    app.ready().await;
    assert_eq!(
        app.post(user_created("event_1")).await.json(),
        (200, json!({"status": "duplicate"}))
    );
    let stored: Vec<_> = app.log().await.into_iter().map(|entry| entry.record.id).collect();
    assert_eq!(stored, ["event_1", "event_2"]);
    assert!(app.outcomes("unavailable") >= 1);
}

#[tokio::test]
async fn a_frozen_broker_is_not_waited_for_and_the_retry_is_recognised() {
    let broker = Broker::start("").await;
    let app = App::start(&broker, Setup::default()).await;
    broker.signal("STOP");
    assert_come_again(&app.post(user_created("event_1")).await, "5");
    // A sender that hangs up does not stay in flight.
    let mut gone = app.client().await;
    gone.say(app.signed(user_created("event_2"))).await;
    app.in_flight(1).await;
    drop(gone);
    app.in_flight(0).await;
    broker.signal("CONT");
    for event in ["event_1", "event_2"] {
        until("stored", || async {
            (app.post(user_created(event)).await.status == 200).then_some(())
        })
        .await;
    }
    let mut stored: Vec<_> = app.log().await.into_iter().map(|entry| entry.record.id).collect();
    stored.sort();
    assert_eq!(stored, ["event_1", "event_2"]);
}

#[tokio::test]
async fn a_full_log_refuses_and_forgets_nothing_until_there_is_room() {
    let broker = Broker::start("").await;
    let app = App::start(
        &broker,
        Setup {
            log_max_bytes: 16 << 10,
            ..Setup::default()
        },
    )
    .await;
    let mut stored = 0;
    let refused = loop {
        let reply = app.post(user_created(&format!("event_{stored}"))).await;
        if reply.status != 200 {
            break reply;
        }
        stored += 1;
        assert!(stored < 1000, "a log without a limit");
    };
    assert_come_again(&refused, "60");
    assert!(stored > 5);
    let log = app.log().await;
    assert_eq!((log.len(), log[0].record.id.as_str()), (stored, "event_0"));
    app.journal.purge("dsync.>").await.unwrap();
    assert_eq!(
        app.post(user_created(&format!("event_{stored}"))).await.json(),
        (200, json!({"status": "accepted"}))
    );
}

#[tokio::test]
async fn a_log_that_was_lost_or_deleted_is_made_anew() {
    let mut broker = Broker::start("").await;
    let app = App::start(&broker, Setup::default()).await;
    assert_eq!(app.post(user_created("event_1")).await.status, 200);
    broker.lose_everything();
    broker.up().await;
    until_accepted(&app, "event_1").await;
    // Nobody reconnects here: that the stream is gone shows when nothing answers for it.
    broker.say("PUB $JS.API.STREAM.DELETE.DSYNC 0\r\n").await;
    until_accepted(&app, "event_1").await;
    assert_eq!(app.log().await.len(), 1);
}

#[tokio::test]
async fn nothing_is_stored_while_the_stream_cannot_be_what_the_settings_say() {
    let broker = Broker::start("").await;
    // Another stream takes our subjects: an append would be acknowledged, and never read.
    let other = r#"{"name":"OTHER","subjects":["dsync.>"]}"#;
    broker
        .say(&format!(
            "PUB $JS.API.STREAM.CREATE.OTHER {}\r\n{other}",
            other.len()
        ))
        .await;
    let app = App::begin(&broker, Setup::default()).await;
    let reason = until("the broker's words", || async {
        let missing = app.context.readiness.missing().await;
        missing
            .first()
            .map(|m| m.reason.clone())
            .filter(|reason| !reason.contains("connection"))
    })
    .await;
    assert!(
        reason.contains("no stream") || reason.contains("overlap"),
        "{reason}"
    );
    assert_come_again(&app.post(user_created("event_1")).await, "5");
    broker.say("PUB $JS.API.STREAM.DELETE.OTHER 0\r\n").await;
    until_accepted(&app, "event_1").await;
    tokio::time::timeout(Duration::from_secs(5), app.ready())
        .await
        .unwrap();
}
