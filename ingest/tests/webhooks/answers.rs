//! Every answer to a webhook, and the order of the checks.

use ingest::signature::{HEADER, sign};
use schema::record::Source;
use serde_json::json;
use service::settings::Secret;
use tests::Nats;
use time::Duration;

use crate::app::{App, PATH, Setup};
use crate::support::{post, user_created};

#[tokio::test]
async fn an_event_is_accepted_once_and_stored_byte_for_byte() {
    let broker = Nats::start().await.unwrap();
    let app = App::start(&broker, Setup::default()).await;
    let body = user_created("event_1");
    let first = app.post(&body).await;
    assert_eq!(first.json(), (200, json!({"status": "accepted"})));
    assert_eq!(first.header("content-type"), Some("application/json"));
    // A retry has a new signature and may even be formatted differently: only the event's id counts.
    app.context.clock.advance(Duration::minutes(1));
    assert_eq!(
        app.post(&body).await.json(),
        (200, json!({"status": "duplicate"}))
    );
    assert_eq!(
        app.post(format!("{body} ")).await.json(),
        (200, json!({"status": "duplicate"}))
    );
    let log = app.log().await;
    assert_eq!(log.len(), 1);
    let record = &log[0].record;
    app.context.clock.advance(Duration::minutes(-1));
    assert_eq!(record.body, body.as_bytes());
    assert_eq!(
        record.subject.as_str(),
        "dsync.directory_1.user.directory_user_1.created"
    );
    assert_eq!(
        (record.id.as_str(), record.event_type.as_str()),
        ("event_1", "dsync.user.created")
    );
    assert_eq!(
        (record.source, record.received_at),
        (Source::Webhook, app.context.clock.now().into())
    );
    assert_eq!(
        record.signature.as_deref(),
        Some(app.signature(body.as_bytes()).as_str())
    );
    assert_eq!((app.outcomes("accepted"), app.outcomes("duplicate")), (1, 2));
    assert_eq!(app.metric("dsync_ingest_publish_seconds_count"), 3);
    app.in_flight(0).await;
}

#[tokio::test]
async fn an_event_of_another_product_is_ignored() {
    let broker = Nats::start().await.unwrap();
    let app = App::start(&broker, Setup::default()).await;
    let reply = app
        .post(r#"{"id":"event_1","event":"connection.activated","data":{"id":"conn_1"}}"#)
        .await;
    assert_eq!(reply.json(), (200, json!({"status": "ignored"})));
    assert_eq!(app.log().await.len(), 0);
    assert_eq!(app.outcomes("ignored"), 1);
}

#[tokio::test]
async fn what_cannot_be_addressed_is_quarantined_as_it_came() {
    let broker = Nats::start().await.unwrap();
    let app = App::start(&broker, Setup::default()).await;
    let odd: [&[u8]; 6] = [
        b"not json at all",
        b"\xff\x00\xfe",
        b"",
        b"[]",
        br#"{"id":"event_1","event":"dsync.user.created","data":{"directory_id":"directory_1"}}"#,
        br#"{"id":"an id with spaces","event":"dsync.user.created","data":{"id":"u","directory_id":"d"}}"#,
    ];
    for body in odd {
        for _retry in 0..2 {
            assert_eq!(
                app.post(body).await.json(),
                (200, json!({"status": "quarantined"})),
                "{body:?}"
            );
        }
    }
    let log = app.log().await;
    assert_eq!(
        log.iter()
            .map(|entry| entry.record.body.as_ref())
            .collect::<Vec<_>>(),
        odd
    );
    assert!(log.iter().all(|entry| entry.record.subject.is_quarantine()));
    assert_eq!(app.outcomes("quarantined"), 12);
}

#[tokio::test]
async fn whatever_is_wrong_with_a_signature_the_answer_is_the_same() {
    let broker = Nats::start().await.unwrap();
    let app = App::start(&broker, Setup::default()).await;
    let body = user_created("event_1");
    let good = app.signature(body.as_bytes());
    let now = app.context.clock.now();
    let signed = |secret: &str, at| sign(&Secret::from(secret), at, body.as_bytes()).unwrap();
    let headers = [
        vec![],
        vec![(HEADER, String::new())],
        vec![(HEADER, "nonsense".to_owned())],
        vec![(HEADER, signed("whsec_other", now))],
        vec![(HEADER, signed("whsec_one", now - Duration::seconds(181)))],
        vec![(HEADER, signed("whsec_one", now + Duration::seconds(181)))],
        vec![(HEADER, good.clone()), (HEADER, good.clone())],
        vec![(HEADER, format!("{good}{}", ",v0=x".repeat(300)))],
        vec![("Stripe-Signature", good.clone())],
        vec![(HEADER, app.signature(b"another body"))],
    ];
    let mut answers = Vec::new();
    for headers in &headers {
        let headers: Vec<_> = headers
            .iter()
            .map(|(name, value)| (*name, value.as_str()))
            .collect();
        let mut reply = app.ask(post(PATH, &headers, body.as_bytes())).await;
        assert_eq!(
            reply.json(),
            (401, json!({"error": "unauthorized"})),
            "{headers:?}"
        );
        reply.head = reply
            .head
            .lines()
            .filter(|line| !line.starts_with("date: "))
            .collect();
        answers.push(reply);
    }
    answers.dedup();
    assert_eq!(answers.len(), 1, "an attacker can tell these apart: {answers:?}");
    assert_eq!(app.outcomes("unauthorized"), headers.len() as u64);
    assert_eq!(app.log().await.len(), 0);
    let lower_case = post(PATH, &[("workos-signature", &good)], body.as_bytes());
    assert_eq!(app.ask(lower_case).await.status, 200);
}

#[tokio::test]
async fn while_rotating_every_secret_signs() {
    let broker = Nats::start().await.unwrap();
    let app = App::start(
        &broker,
        Setup {
            secrets: "whsec_old, whsec_new",
            ..Setup::default()
        },
    )
    .await;
    for (secret, event, status) in [
        ("whsec_old", "event_1", 200),
        ("whsec_new", "event_2", 200),
        ("whsec_gone", "event_3", 401),
    ] {
        let body = user_created(event);
        let header = sign(&Secret::from(secret), app.context.clock.now(), body.as_bytes()).unwrap();
        assert_eq!(
            app.ask(post(PATH, &[(HEADER, &header)], body.as_bytes()))
                .await
                .status,
            status,
            "{secret}"
        );
    }
    assert_eq!(app.log().await.len(), 2);
}

#[tokio::test]
async fn only_one_path_and_one_method_are_there() {
    let broker = Nats::start().await.unwrap();
    let app = App::start(&broker, Setup::default()).await;
    let body = user_created("event_1");
    let header = app.signature(body.as_bytes());
    for path in [
        "/",
        "/webhooks",
        "/webhooks/workos/",
        "/webhooks/WORKOS",
        "/webhooks//workos",
        "/metrics",
        "/readyz",
    ] {
        let reply = app.ask(post(path, &[(HEADER, &header)], body.as_bytes())).await;
        assert_eq!(reply.json(), (404, json!({"error": "not found"})), "{path}");
    }
    for method in ["GET", "PUT", "DELETE", "PATCH", "OPTIONS"] {
        let reply = app
            .ask(format!("{method} {PATH} HTTP/1.1\r\nHost: x\r\n\r\n"))
            .await;
        assert_eq!(
            reply.json(),
            (405, json!({"error": "method not allowed"})),
            "{method}"
        );
        assert_eq!(reply.header("allow"), Some("post"));
    }
    // A query does not change the path.
    let reply = app
        .ask(post(
            &format!("{PATH}?from=workos"),
            &[(HEADER, &header)],
            body.as_bytes(),
        ))
        .await;
    assert_eq!(reply.status, 200);
    assert_eq!(app.log().await.len(), 1);
}

#[tokio::test]
async fn senders_off_the_list_are_refused_and_proxies_believed_only_when_trusted() {
    let broker = Nats::start().await.unwrap();
    let allowed = Some("workos, 192.0.2.0/24");
    let direct = App::start(
        &broker,
        Setup {
            allowed,
            ..Setup::default()
        },
    )
    .await;
    let body = user_created("event_1");
    let header = direct.signature(body.as_bytes());
    let from = |forwarded: &'static str| {
        post(
            PATH,
            &[(HEADER, header.as_str()), ("X-Forwarded-For", forwarded)],
            body.as_bytes(),
        )
    };
    assert_eq!(
        direct.post(&body).await.json(),
        (403, json!({"error": "forbidden"}))
    );
    assert_eq!(direct.ask(from("3.217.146.166")).await.status, 403);
    assert_eq!(direct.outcomes("forbidden"), 2);
    let proxied = App::start(
        &broker,
        Setup {
            allowed,
            proxies: Some("127.0.0.0/8"),
            ..Setup::default()
        },
    )
    .await;
    for (forwarded, status) in [
        ("3.217.146.166", 200),
        ("192.0.2.77", 200),
        ("203.0.113.1", 403),
        ("3.217.146.166, 203.0.113.1", 403),
        ("203.0.113.1, 3.217.146.166", 200),
        ("3.217.146.166, 127.0.0.2", 200),
        ("3.217.146.166, who knows", 403),
    ] {
        assert_eq!(proxied.ask(from(forwarded)).await.status, status, "{forwarded}");
    }
    assert_eq!(proxied.log().await.len(), 1);
}

#[tokio::test]
async fn what_is_wrong_in_several_ways_is_answered_by_the_first() {
    let broker = Nats::start().await.unwrap();
    let setup = || Setup {
        max_body: 2000,
        ..Setup::default()
    };
    let fenced = App::start(
        &broker,
        Setup {
            allowed: Some("192.0.2.1"),
            ..setup()
        },
    )
    .await;
    let open = App::start(&broker, setup()).await;
    let large = vec![b'x'; 3000];
    let get = |path: &str| format!("GET {path} HTTP/1.1\r\nHost: x\r\nContent-Length: 3000\r\n\r\n");
    assert_eq!(fenced.ask(get("/nowhere")).await.status, 404);
    assert_eq!(fenced.ask(get(PATH)).await.status, 405);
    assert_eq!(fenced.ask(post(PATH, &[], &large)).await.status, 403);
    assert_eq!(open.ask(post(PATH, &[], &large)).await.status, 413);
    assert_eq!(open.ask(post(PATH, &[], &large[..10])).await.status, 401);
    assert_eq!(open.post(&large[..10]).await.status, 200);
}

#[tokio::test]
async fn one_connection_serves_many_webhooks_even_in_one_breath() {
    let broker = Nats::start().await.unwrap();
    let app = App::start(&broker, Setup::default()).await;
    let mut client = app.client().await;
    let mut breath = Vec::new();
    for n in 0..20 {
        breath.extend(app.signed(user_created(&format!("event_{n}"))));
    }
    client.say(breath).await;
    for n in 0..20 {
        assert_eq!(
            client.hear().await.unwrap().json(),
            (200, json!({"status": "accepted"})),
            "{n}"
        );
    }
    let stored: Vec<_> = app.log().await.into_iter().map(|entry| entry.record.id).collect();
    assert_eq!(stored, (0..20).map(|n| format!("event_{n}")).collect::<Vec<_>>());
}
