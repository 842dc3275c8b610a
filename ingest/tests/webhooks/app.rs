//! The program's parts, assembled in this process so that tests control the clock and the limits.

use std::net::SocketAddr;
use std::time::Duration;

use ingest::accept::Acceptor;
use ingest::in_flight::{Bounds, InFlight};
use ingest::metrics::Metrics;
use ingest::refusals::Refusals;
use ingest::routes::{Ingest, Webhooks};
use ingest::sender::{Networks, Senders};
use ingest::signature::{HEADER, Verifier, sign};
use ingest::stream::Stream;
use journal::{Connection, Entry, Journal, Limits};
use service::boot::Context;
use service::clock::Clock;
use service::settings::Secret;
use tests::Nats;
use time::macros::datetime;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

use crate::support::{Client, Reply, post, until};

pub(crate) const PATH: &str = "/webhooks/workos";

/// What may differ from test to test.
pub(crate) struct Setup {
    pub(crate) secrets: &'static str,
    pub(crate) allowed: Option<&'static str>,
    pub(crate) proxies: Option<&'static str>,
    pub(crate) max_body: usize,
    pub(crate) body_time: Duration,
    pub(crate) header_read: Duration,
    pub(crate) bounds: Bounds,
    pub(crate) log_max_bytes: u64,
}

impl Default for Setup {
    fn default() -> Self {
        Self {
            secrets: "whsec_one",
            allowed: None,
            proxies: None,
            max_body: 960 << 10,
            body_time: Duration::from_secs(10),
            header_read: Duration::from_secs(5),
            bounds: Bounds::default(),
            log_max_bytes: 0,
        }
    }
}

/// A running ingest.
pub(crate) struct App {
    pub(crate) addr: SocketAddr,
    pub(crate) journal: Journal,
    pub(crate) context: Context,
    pub(crate) task: JoinHandle<()>,
    secret: Secret,
}

impl App {
    /// Starts ingest and waits until the log is set up.
    pub(crate) async fn start(broker: &Nats, setup: Setup) -> Self {
        let app = Self::begin(broker, setup).await;
        app.ready().await;
        app
    }

    /// Starts ingest without waiting for the log.
    pub(crate) async fn begin(broker: &Nats, setup: Setup) -> Self {
        let context = Context::new(
            "dsync-ingest",
            "0.0.0",
            Clock::fixed(datetime!(2026-11-01 12:00 UTC)),
        );
        let metrics = Metrics::new(&context.metrics).unwrap();
        let (url, stream, name) = (broker.url(), "DSYNC".to_owned(), "test".to_owned());
        let journal = Journal::connect(&Connection {
            url,
            creds: None,
            ca: None,
            stream,
            name,
        })
        .await
        .unwrap();
        let limits = Limits {
            replicas: 1,
            max_age: Duration::ZERO,
            max_bytes: setup.log_max_bytes,
            dedup_window: Duration::from_mins(5),
        };
        let stream = Stream::keep(journal.clone(), limits, context.shutdown.clone());
        stream.report_to(&context.readiness);
        let secret = Secret::from(setup.secrets);
        let ingest = Ingest {
            path: PATH.to_owned(),
            senders: Senders::new(
                setup.allowed.map(|list| Networks::parse_senders(list).unwrap()),
                setup.proxies.map(|list| Networks::parse(list).unwrap()),
            ),
            max_body: setup.max_body,
            body_time: setup.body_time,
            in_flight: InFlight::new(setup.bounds, metrics.inflight.clone()),
            refusals: Refusals::default(),
            verifier: Verifier::new(&secret, Duration::from_mins(3)).unwrap(),
            acceptor: Acceptor {
                journal: journal.clone(),
                stream,
                metrics: metrics.clone(),
            },
            clock: context.clock.clone(),
            metrics,
        };
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let limits = service::http::Limits {
            connections: 100,
            header_read: setup.header_read,
            lifetime: Duration::from_mins(5),
            drain: Duration::from_secs(10),
        };
        let task = tokio::spawn(service::http::serve(
            listener,
            Webhooks::new(ingest),
            limits,
            context.shutdown.clone(),
        ));
        Self {
            addr,
            journal,
            context,
            task,
            secret,
        }
    }

    pub(crate) async fn ready(&self) {
        until("ready", async || {
            self.context.readiness.missing().await.is_empty().then_some(())
        })
        .await;
    }

    /// Waits until it is not ready, and returns why.
    pub(crate) async fn not_ready(&self) -> String {
        until("not ready", async || {
            let missing = self.context.readiness.missing().await;
            missing.first().map(|missing| missing.reason.clone())
        })
        .await
    }

    pub(crate) async fn client(&self) -> Client {
        Client::connect(self.addr).await
    }

    pub(crate) fn signature(&self, body: &[u8]) -> String {
        sign(&self.secret, self.context.clock.now(), body).unwrap()
    }

    /// The bytes of a signed webhook.
    pub(crate) fn signed(&self, body: impl AsRef<[u8]>) -> Vec<u8> {
        post(PATH, &[(HEADER, &self.signature(body.as_ref()))], body.as_ref())
    }

    /// Sends `request` on a connection of its own.
    pub(crate) async fn ask(&self, request: impl AsRef<[u8]>) -> Reply {
        let mut client = self.client().await;
        client.say(request).await;
        client.hear().await.expect("an answer")
    }

    /// Posts a signed webhook.
    pub(crate) async fn post(&self, body: impl AsRef<[u8]>) -> Reply {
        self.ask(self.signed(body)).await
    }

    /// Everything in the log.
    pub(crate) async fn log(&self) -> Vec<Entry> {
        let mut entries = Vec::new();
        let last = self.journal.identity().await.unwrap().unwrap().last_seq;
        for seq in 1..=last {
            entries.extend(self.journal.entry(seq).await.unwrap());
        }
        entries
    }

    /// The value of a metric, by its name and labels in Prometheus's text format.
    pub(crate) fn metric(&self, name: &str) -> u64 {
        let text = prometheus::TextEncoder::new()
            .encode_to_string(&self.context.metrics.gather())
            .unwrap();
        let line = text
            .lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line.unwrap_or_else(|| panic!("no {name} in\n{text}"))
            .parse()
            .unwrap()
    }

    /// How many webhooks had this outcome.
    pub(crate) fn outcomes(&self, outcome: &str) -> u64 {
        self.metric(&format!("dsync_ingest_webhooks_total{{outcome=\"{outcome}\"}}"))
    }

    /// Waits until exactly `count` webhooks are in flight.
    pub(crate) async fn in_flight(&self, count: u64) {
        until("in flight", async || {
            (self.metric("dsync_ingest_inflight") == count).then_some(())
        })
        .await;
    }
}

impl Drop for App {
    fn drop(&mut self) {
        self.context.shutdown.cancel();
        self.task.abort();
    }
}
