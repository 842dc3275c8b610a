//! Webhooks over real HTTP: signatures, checked by the official SDK, retries, and each fault.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on should fail loudly")]

mod support;

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
    time::{Duration, UNIX_EPOCH},
};

use axum::{Router, body::Bytes, extract::State, http::HeaderMap, http::StatusCode, routing::post};
use support::sim_with;
use workos_sim::{DeliveryOptions, DirectoryOptions, Faults, From, Seed, Sim};

const BOUND: Duration = Duration::from_secs(30);
const SECRET: &str = "whsec_for_tests";

/// What an endpoint received (signature and body, in order), and how it answers the first attempts at each body.
#[derive(Clone, Default)]
struct Receiver {
    got: Arc<Mutex<Vec<(String, String)>>>,
    refuse_first: usize,
}

async fn receive(State(receiver): State<Receiver>, headers: HeaderMap, body: Bytes) -> StatusCode {
    let body = String::from_utf8(body.to_vec()).unwrap();
    let signature = headers["WorkOS-Signature"].to_str().unwrap().to_owned();
    let mut got = receiver.got.lock().unwrap();
    let attempts = got.iter().filter(|(_, earlier)| *earlier == body).count();
    got.push((signature, body));
    if attempts < receiver.refuse_first {
        StatusCode::SERVICE_UNAVAILABLE
    } else {
        StatusCode::OK
    }
}

impl Receiver {
    async fn listen(&self) -> String {
        let router = Router::new()
            .route("/hook", post(receive))
            .with_state(self.clone());
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/hook", listener.local_addr().unwrap());
        tokio::spawn(async move { axum::serve(listener, router).await });
        url
    }

    fn got(&self) -> Vec<(String, String)> {
        self.got.lock().unwrap().clone()
    }

    /// How often each body was received.
    fn times(&self) -> BTreeMap<String, usize> {
        let mut times = BTreeMap::new();
        for (_, body) in self.got() {
            *times.entry(body).or_default() += 1;
        }
        times
    }
}

async fn sim() -> (Sim, String) {
    let seed = Seed {
        users: 40,
        groups: 4,
        ..Seed::default()
    };
    let (sim, directory, _) = sim_with(DirectoryOptions::awkward(), &seed).await;
    (sim, directory)
}

#[tokio::test]
async fn the_official_sdk_accepts_every_signature() {
    let (sim, _) = sim().await;
    let receiver = Receiver::default();
    let delivery = sim
        .deliver_to(receiver.listen().await, SECRET, Faults::none())
        .unwrap();
    let counts = delivery.drained_within(BOUND).await.unwrap();
    let now = UNIX_EPOCH + Duration::from_millis(u64::try_from(sim.clock().now().0).unwrap());
    let verifier = workos::WebhookVerifier::new(SECRET).with_clock(move || now);
    let forger = workos::WebhookVerifier::new("another").with_clock(move || now);
    for (signature, body) in receiver.got() {
        let event = verifier.construct_event(&signature, &body).unwrap();
        assert_eq!(event.object, "event");
        assert!(forger.verify_payload(&signature, &body).is_err());
    }
    let mut sent: Vec<String> = sim.events().iter().map(|event| event.body().to_owned()).collect();
    sent.sort();
    assert_eq!(receiver.times().into_keys().collect::<Vec<_>>(), sent);
    assert_eq!((counts.acked, counts.retried), (sent.len() as u64, 0));
}

#[tokio::test]
async fn refused_deliveries_are_tried_again_with_a_fresh_signature() {
    let (sim, _) = sim().await;
    let receiver = Receiver {
        refuse_first: 2,
        ..Receiver::default()
    };
    let events = sim.events().len();
    let options = DeliveryOptions {
        backoff: Duration::from_millis(5),
        ..DeliveryOptions::new(receiver.listen().await, SECRET)
    };
    let delivery = sim.deliver(options).unwrap();
    let counts = delivery.drained_within(BOUND).await.unwrap();
    assert!(receiver.times().values().all(|times| *times == 3));
    assert_eq!(counts.retried, 2 * events as u64);
    assert_eq!(counts.answers[&503], 2 * events as u64);
    assert_eq!(counts.acked, events as u64);

    // A delivery signed later has the later time.
    let old = receiver.got()[0].clone();
    sim.clock().advance(Duration::from_hours(1));
    let id = sim.events()[0].id.clone();
    assert!(delivery.redeliver(&id) && !delivery.redeliver("event_unknown"));
    delivery.drained_within(BOUND).await.unwrap();
    let (signature, body) = receiver.got().last().unwrap().clone();
    assert_eq!(body, sim.events()[0].body());
    assert!(signature.split(',').next() > old.0.split(',').next());
}

#[tokio::test]
async fn patience_has_an_end() {
    let (sim, _) = sim().await;
    let options = DeliveryOptions {
        backoff: Duration::from_millis(1),
        give_up: Duration::ZERO,
        // Nothing listens there: port 1 is privileged and unused.
        ..DeliveryOptions::new("http://127.0.0.1:1/hook", SECRET)
    };
    let counts = sim.deliver(options).unwrap().drained_within(BOUND).await.unwrap();
    assert_eq!(counts.gave_up, sim.events().len() as u64);
    assert_eq!(counts.unanswered, counts.gave_up);
}

#[tokio::test]
async fn each_fault_does_what_it_says() {
    let (sim, _) = sim().await;
    let events = sim.events().len() as u64;
    let receiver = Receiver::default();
    let faults = Faults {
        seed: 3,
        lost: 20,
        doubled: 20,
        shuffled: 30,
        shuffle_within: Duration::from_hours(1),
        stale: 20,
        stale_after: Duration::from_hours(2),
        slow: 10,
        slow_for: Duration::from_hours(1),
    };
    let options = DeliveryOptions {
        faults,
        concurrency: 1,
        ..DeliveryOptions::new(receiver.listen().await, SECRET)
    };
    let delivery = sim.deliver(options).unwrap();
    delivery.hurry();
    let counts = delivery.drained_within(BOUND).await.unwrap();
    for hit in [
        counts.lost,
        counts.doubled,
        counts.shuffled,
        counts.stale,
        counts.slow,
    ] {
        assert!(hit > 0, "{counts:?}");
    }
    assert_eq!(counts.events, events);
    assert_eq!(counts.acked, events - counts.lost + counts.doubled + counts.stale);
    assert_eq!(receiver.times().len() as u64, events - counts.lost);
    let order: Vec<String> = receiver.got().into_iter().map(|(_, body)| body).collect();
    let mut sorted = order.clone();
    sorted.sort();
    assert_ne!(order, sorted, "later events must overtake those held back");
}

#[tokio::test]
async fn from_now_on_paused_and_resumed() {
    let (sim, directory) = sim().await;
    let receiver = Receiver::default();
    let options = DeliveryOptions {
        from: From::Now,
        ..DeliveryOptions::new(receiver.listen().await, SECRET)
    };
    let delivery = sim.deliver(options).unwrap();
    delivery.pause();
    sim.create_user(&directory).unwrap();
    let mut progress = delivery.watch();
    let seen = progress.wait_for(|progress| progress.pending == 1);
    tokio::time::timeout(BOUND, seen).await.unwrap().unwrap();
    assert_eq!(receiver.got(), []);
    delivery.resume();
    delivery.drained_within(BOUND).await.unwrap();
    assert_eq!(receiver.got().len(), 1);
    assert_eq!(receiver.got()[0].1, sim.events().last().unwrap().body());
}

#[tokio::test]
async fn not_faster_than_the_rate() {
    let (sim, _) = sim().await;
    let receiver = Receiver::default();
    let options = DeliveryOptions {
        rate: Some(100.0),
        ..DeliveryOptions::new(receiver.listen().await, SECRET)
    };
    let start = std::time::Instant::now();
    let delivery = sim.deliver(options).unwrap();
    let wanted = 20;
    let mut progress = delivery.watch();
    let seen = progress.wait_for(|progress| progress.counts.acked >= wanted);
    tokio::time::timeout(BOUND, seen).await.unwrap().unwrap();
    assert!(
        start.elapsed() >= Duration::from_millis(180),
        "{:?}",
        start.elapsed()
    );
}
