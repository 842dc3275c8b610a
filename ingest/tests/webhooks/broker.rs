//! The log is unreachable, frozen, full, lost or deleted. Each time ingest answers 503, acknowledges nothing that is
//! not stored, and recovers without a restart.

use std::time::Duration;

use serde_json::json;
use tests::{Nats, NatsOptions};

use crate::app::{App, Setup};
use crate::support::{Reply, jetstream, until, user_created};

fn assert_come_again(reply: &Reply, after: &str) {
    assert_eq!(reply.json(), (503, json!({"error": "service unavailable"})));
    assert_eq!(reply.header("retry-after"), Some(after));
}

/// Retries as WorkOS does until the event is stored. An attempt that was answered 503 may have been stored after all;
/// then the last attempt is a duplicate.
async fn until_stored(app: &App, event: &str) {
    until("stored", async || {
        (app.post(user_created(event)).await.status == 200).then_some(())
    })
    .await;
}

async fn stored(app: &App) -> Vec<String> {
    app.log().await.into_iter().map(|entry| entry.record.id).collect()
}

#[tokio::test]
async fn a_broker_that_comes_late_is_waited_for() {
    let mut broker = Nats::absent(NatsOptions::default()).unwrap();
    let app = App::begin(&broker, Setup::default()).await;
    assert_come_again(&app.post(user_created("event_1")).await, "5");
    // Requests that do not need the log are answered as usual.
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
    assert!(missing[0].reason.contains("not set up"), "{}", missing[0].reason);
    broker.start_again().await.unwrap();
    app.ready().await;
    assert_eq!(
        app.post(user_created("event_1")).await.json(),
        (200, json!({"status": "accepted"}))
    );
    assert_eq!(app.log().await.len(), 1);
}

#[tokio::test]
async fn a_broker_that_goes_is_missed_until_it_is_back() {
    let mut broker = Nats::start().await.unwrap();
    let app = App::start(&broker, Setup::default()).await;
    assert_eq!(app.post(user_created("event_1")).await.status, 200);
    broker.stop().await.unwrap();
    assert_come_again(&app.post(user_created("event_2")).await, "5");
    assert_eq!(app.context.readiness.missing().await[0].name, "log");
    broker.start_again().await.unwrap();
    until_stored(&app, "event_2").await;
    app.ready().await;
    assert_eq!(
        app.post(user_created("event_1")).await.json(),
        (200, json!({"status": "duplicate"}))
    );
    assert_eq!(stored(&app).await, ["event_1", "event_2"]);
    assert!(app.outcomes("unavailable") >= 1);
}

#[tokio::test]
async fn a_frozen_broker_is_not_waited_for_and_the_retry_is_recognised() {
    let mut broker = Nats::start().await.unwrap();
    let app = App::start(&broker, Setup::default()).await;
    broker.pause().unwrap();
    assert_come_again(&app.post(user_created("event_1")).await, "5");
    // The request of a sender that hangs up does not stay in flight.
    let mut gone = app.client().await;
    gone.say(app.signed(user_created("event_2"))).await;
    app.in_flight(1).await;
    drop(gone);
    app.in_flight(0).await;
    broker.resume().unwrap();
    for event in ["event_1", "event_2"] {
        until_stored(&app, event).await;
    }
    let mut stored = stored(&app).await;
    stored.sort();
    assert_eq!(stored, ["event_1", "event_2"]);
}

#[tokio::test]
async fn a_full_log_refuses_and_forgets_nothing_until_there_is_room() {
    let broker = Nats::start().await.unwrap();
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
    jetstream(&broker, "STREAM.PURGE.DSYNC", "").await;
    assert_eq!(
        app.post(user_created(&format!("event_{stored}"))).await.json(),
        (200, json!({"status": "accepted"}))
    );
}

#[tokio::test]
async fn a_log_that_was_lost_is_made_anew_though_nobody_posts_or_asks() {
    let mut broker = Nats::start().await.unwrap();
    let app = App::start(&broker, Setup::default()).await;
    assert_eq!(app.post(user_created("event_1")).await.status, 200);
    broker.wipe().await.unwrap();
    until("the log", async || app.journal.identity().await.ok().flatten()).await;
    assert_eq!(
        app.post(user_created("event_1")).await.json(),
        (200, json!({"status": "accepted"}))
    );
}

#[tokio::test]
async fn a_log_that_was_deleted_is_made_anew_by_the_next_webhook() {
    let broker = Nats::start().await.unwrap();
    let app = App::start(&broker, Setup::default()).await;
    assert_eq!(app.post(user_created("event_1")).await.status, 200);
    jetstream(&broker, "STREAM.DELETE.DSYNC", "").await;
    assert_come_again(&app.post(user_created("event_2")).await, "5");
    until_stored(&app, "event_2").await;
    assert_eq!(stored(&app).await, ["event_2"]);
}

#[tokio::test]
async fn a_log_that_was_deleted_is_made_anew_when_readiness_asks() {
    let broker = Nats::start().await.unwrap();
    let app = App::start(&broker, Setup::default()).await;
    jetstream(&broker, "STREAM.DELETE.DSYNC", "").await;
    let missing = app.context.readiness.missing().await;
    assert_eq!(missing[0].reason, "there is no stream of this name");
    app.ready().await;
    assert_eq!(stored(&app).await, Vec::<String>::new());
}

#[tokio::test]
async fn nothing_is_stored_while_the_stream_cannot_be_what_the_settings_say() {
    let broker = Nats::start().await.unwrap();
    // Another stream takes our subjects: an append would be acknowledged but never read.
    jetstream(
        &broker,
        "STREAM.CREATE.OTHER",
        r#"{"name":"OTHER","subjects":["dsync.>"]}"#,
    )
    .await;
    let app = App::begin(&broker, Setup::default()).await;
    until("the broker's reason", async || {
        let missing = app.context.readiness.missing().await;
        missing
            .first()
            .filter(|missing| missing.reason.contains("overlap"))
            .map(|_| ())
    })
    .await;
    assert_come_again(&app.post(user_created("event_1")).await, "5");
    jetstream(&broker, "STREAM.DELETE.OTHER", "").await;
    until_stored(&app, "event_1").await;
    tokio::time::timeout(Duration::from_secs(5), app.ready())
        .await
        .unwrap();
}

/// A stream of the log's own name that forgets: its acknowledgements are worth nothing.
#[tokio::test]
async fn a_log_recreated_so_that_it_loses_records_is_not_used_until_it_is_set_right() {
    let broker = Nats::start().await.unwrap();
    let app = App::start(&broker, Setup::default()).await;
    // Of what readiness sees, only the time of creation will differ.
    assert_eq!(app.context.readiness.missing().await, []);
    // Brokers refuse to change the storage of a stream that exists.
    let forgetful = r#"{"name":"DSYNC","subjects":["dsync.>"],"storage":"memory"}"#;
    jetstream(&broker, "STREAM.DELETE.DSYNC", "").await;
    jetstream(&broker, "STREAM.CREATE.DSYNC", forgetful).await;
    let reason = app.not_ready().await;
    assert!(
        reason.contains("storage") && reason.contains("would lose or refuse entries"),
        "{reason}"
    );
    assert_come_again(&app.post(user_created("event_1")).await, "5");
    jetstream(&broker, "STREAM.DELETE.DSYNC", "").await;
    until_stored(&app, "event_1").await;
    app.ready().await;
    assert_eq!(stored(&app).await, ["event_1"]);
}

/// Its time of creation stays the same.
#[tokio::test]
async fn a_log_edited_so_that_it_loses_records_is_set_right_when_readiness_asks() {
    let broker = Nats::start().await.unwrap();
    let app = App::start(&broker, Setup::default()).await;
    assert_eq!(app.post(user_created("event_1")).await.status, 200);
    assert_eq!(app.context.readiness.missing().await, []);
    let edited = r#"{"name":"DSYNC","subjects":["dsync.>"],"storage":"file","discard":"old","max_msgs_per_subject":1}"#;
    jetstream(&broker, "STREAM.UPDATE.DSYNC", edited).await;
    until("set right", async || {
        app.context.readiness.missing().await;
        let info = jetstream(&broker, "STREAM.INFO.DSYNC", "").await;
        (info.contains(r#""discard":"new""#) && info.contains(r#""max_msgs_per_subject":-1"#)).then_some(())
    })
    .await;
    for event in ["event_2", "event_3"] {
        until_stored(&app, event).await;
    }
    assert_eq!(stored(&app).await, ["event_1", "event_2", "event_3"]);
}

/// It takes nothing more, and no broker opens it again.
#[tokio::test]
async fn a_sealed_log_is_not_ready() {
    let broker = Nats::start().await.unwrap();
    let app = App::start(&broker, Setup::default()).await;
    assert_eq!(app.post(user_created("event_1")).await.status, 200);
    assert_eq!(app.context.readiness.missing().await, []);
    let sealed = r#"{"name":"DSYNC","subjects":["dsync.>"],"storage":"file","discard":"new","sealed":true}"#;
    jetstream(&broker, "STREAM.UPDATE.DSYNC", sealed).await;
    let reason = app.not_ready().await;
    assert!(reason.contains("sealed"), "{reason}");
    assert_come_again(&app.post(user_created("event_2")).await, "5");
    // What an operator does about it.
    jetstream(&broker, "STREAM.DELETE.DSYNC", "").await;
    until_stored(&app, "event_2").await;
    app.ready().await;
}

/// The settings that a webhook shows to be too narrow are set right at once: readiness does not look at them.
#[tokio::test]
async fn a_log_edited_so_that_it_takes_too_little_is_set_right_by_the_next_webhook() {
    let broker = Nats::start().await.unwrap();
    let app = App::start(&broker, Setup::default()).await;
    let stream =
        r#"{"name":"DSYNC","subjects":["dsync.>"],"storage":"file","discard":"new","allow_direct":true"#;
    let edits = [
        // First: it drops what is already too much.
        (r#""max_msgs_per_subject":1,"discard_new_per_subject":true"#, 503),
        (r#""max_msgs":2"#, 503),
        (r#""max_msg_size":20"#, 413),
    ];
    assert_eq!(app.post(user_created("event_0")).await.status, 200);
    let mut events = vec!["event_0".to_owned()];
    for (edit, refused) in edits {
        jetstream(&broker, "STREAM.UPDATE.DSYNC", &format!("{stream},{edit}}}")).await;
        let event = format!("event_{}", events.len());
        assert_eq!(app.post(user_created(&event)).await.status, refused, "{edit}");
        until_stored(&app, &event).await;
        events.push(event);
    }
    assert_eq!(stored(&app).await, events);
}

/// The log is deleted, and a stream of another name takes its subjects, as after a restore: that stream acknowledges,
/// but nobody reads it.
#[tokio::test]
async fn what_another_stream_stores_is_not_acknowledged() {
    let broker = Nats::start().await.unwrap();
    let app = App::start(&broker, Setup::default()).await;
    assert_eq!(app.post(user_created("event_1")).await.status, 200);
    jetstream(&broker, "STREAM.DELETE.DSYNC", "").await;
    jetstream(
        &broker,
        "STREAM.CREATE.OTHER",
        r#"{"name":"OTHER","subjects":["dsync.>"]}"#,
    )
    .await;
    for _ in 0..3 {
        assert_come_again(&app.post(user_created("event_2")).await, "5");
    }
    jetstream(&broker, "STREAM.DELETE.OTHER", "").await;
    until_stored(&app, "event_2").await;
    assert_eq!(stored(&app).await, ["event_2"]);
}
