//! Webhooks: every event that the world emits is signed and posted to one endpoint, with retries and with faults.
//!
//! A delivery is a task of its own, driven by the world's counter of emissions. It sleeps until something is due, and
//! reports its progress through a watch channel, so that callers can wait for it without polling.

mod courier;
mod faults;
mod queue;

use std::{
    fmt,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use courier::Courier;
pub use faults::Faults;
pub use queue::Counts;
use queue::Queue;
use serde::Serialize;
use tokio::{
    sync::watch,
    task::{AbortHandle, JoinSet},
};

use crate::shared::Shared;

/// Where a delivery begins.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum From {
    /// With the first event ever emitted.
    #[default]
    Beginning,
    /// With the next event emitted.
    Now,
}

/// How webhooks are delivered to one endpoint.
#[derive(Clone)]
pub struct DeliveryOptions {
    /// The URL to post to.
    pub url: String,
    /// Signs the webhooks. Never shown.
    pub secret: String,
    /// The faults to inject.
    pub faults: Faults,
    /// The most requests in flight at once.
    pub concurrency: usize,
    /// The most requests per second; unlimited if `None`.
    pub rate: Option<f64>,
    /// The pause before the first retry; each further pause is twice as long.
    pub backoff: Duration,
    /// The longest pause.
    pub backoff_max: Duration,
    /// How long after the first attempt a delivery is given up.
    pub give_up: Duration,
    /// How long an answer may take.
    pub timeout: Duration,
    /// The first event to deliver.
    pub from: From,
    /// The only certificate authority (PEM) to trust if `url` is `https`; if `None`, those that the system trusts.
    pub authority: Option<String>,
}

impl fmt::Debug for DeliveryOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Everything that matters when a test fails, without the secret.
        f.debug_struct("DeliveryOptions")
            .field("url", &self.url)
            .field("faults", &self.faults)
            .finish_non_exhaustive()
    }
}

impl DeliveryOptions {
    /// No faults, eight at once, retries after 0.5 s, 1 s, 2 s … for three days.
    pub fn new(url: impl Into<String>, secret: impl Into<String>) -> Self {
        Self {
            url: url.into(),
            secret: secret.into(),
            faults: Faults::none(),
            concurrency: 8,
            rate: None,
            backoff: Duration::from_millis(500),
            backoff_max: Duration::from_mins(1),
            give_up: Duration::from_hours(72),
            timeout: Duration::from_secs(15),
            from: From::Beginning,
            authority: None,
        }
    }
}

/// How far a delivery has come.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Progress {
    /// Emitted events taken up so far, redeliveries included.
    pub taken_up: usize,
    /// Requests in flight or still to be made.
    pub pending: usize,
    /// The outcome of the others.
    pub counts: Counts,
}

#[derive(Clone, Debug)]
struct Orders {
    faults: Faults,
    paused: bool,
    hurry: bool,
    /// Indexes of events to send once more; only ever grows.
    again: Vec<usize>,
}

/// A webhook that was answered with 2xx.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Acknowledged {
    /// The event's id.
    pub event: String,
    /// The body of the answer.
    pub answer: String,
}

/// A running delivery. It ends when this is dropped.
#[derive(Debug)]
pub struct Delivery {
    shared: Arc<Shared>,
    progress: watch::Receiver<Progress>,
    orders: watch::Sender<Orders>,
    acknowledged: Arc<Mutex<Vec<Acknowledged>>>,
    task: AbortHandle,
}

impl Drop for Delivery {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Delivery {
    /// Starts delivering.
    pub(crate) fn start(shared: Arc<Shared>, options: DeliveryOptions) -> Result<Self, reqwest::Error> {
        let mut client = reqwest::Client::builder().timeout(options.timeout).no_proxy();
        if let Some(authority) = &options.authority {
            client = client.tls_certs_only([reqwest::Certificate::from_pem(authority.as_bytes())?]);
        }
        let client = client.build()?;
        let orders = watch::Sender::new(Orders {
            faults: options.faults.clone(),
            paused: false,
            hurry: false,
            again: Vec::new(),
        });
        let (progress_sender, progress) = watch::channel(Progress::default());
        let emissions = shared.world().emissions();
        let cursor = if options.from == From::Now {
            *emissions.borrow()
        } else {
            0
        };
        let acknowledged = Arc::default();
        let courier = Courier {
            shared: shared.clone(),
            client,
            options: Arc::new(options),
            emissions,
            orders: orders.subscribe(),
            progress: progress_sender,
            queue: Queue::default(),
            in_flight: JoinSet::new(),
            cursor,
            repeated: 0,
            next_slot: Instant::now(),
            acknowledged: Arc::clone(&acknowledged),
        };
        let task = tokio::spawn(courier.run()).abort_handle();
        Ok(Self {
            shared,
            progress,
            orders,
            acknowledged,
            task,
        })
    }

    /// How far it has come.
    pub fn progress(&self) -> Progress {
        self.progress.borrow().clone()
    }

    /// Every webhook answered with 2xx so far, in the order of the answers.
    pub fn acknowledged(&self) -> Vec<Acknowledged> {
        self.acknowledged
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// A receiver that sees every change of progress.
    pub fn watch(&self) -> watch::Receiver<Progress> {
        self.progress.clone()
    }

    /// Waits until every event emitted before this call is delivered, lost or given up.
    pub async fn drained(&self) -> Counts {
        let emitted = self.shared.world().events().len();
        let again = self.orders.borrow().again.len();
        let mut progress = self.progress.clone();
        let done = progress
            .wait_for(|progress| progress.taken_up >= emitted + again && progress.pending == 0)
            .await;
        done.map(|progress| progress.counts.clone()).unwrap_or_default()
    }

    /// Waits as [`Delivery::drained`] does. Fails with the progress so far if that takes longer than `bound`.
    pub async fn drained_within(&self, bound: Duration) -> Result<Counts, Progress> {
        let drained = tokio::time::timeout(bound, self.drained()).await;
        drained.map_err(|_| self.progress())
    }

    /// Skips all delays from now on, except the back-off of retries, and keeps the order that the delays gave.
    pub fn hurry(&self) {
        self.orders.send_modify(|orders| orders.hurry = true);
    }

    /// Sends nothing until [`Delivery::resume`]. Requests in flight are finished.
    pub fn pause(&self) {
        self.orders.send_modify(|orders| orders.paused = true);
    }

    /// Ends a pause.
    pub fn resume(&self) {
        self.orders.send_modify(|orders| orders.paused = false);
    }

    /// Changes the faults for events taken up from now on.
    pub fn set_faults(&self, faults: Faults) {
        self.orders.send_modify(|orders| orders.faults = faults);
    }

    /// Sends an old event once more, unchanged. Returns `false` if there is no such event.
    pub fn redeliver(&self, event_id: &str) -> bool {
        let found = self
            .shared
            .world()
            .events()
            .iter()
            .position(|event| event.id == event_id);
        if let Some(index) = found {
            self.orders.send_modify(|orders| orders.again.push(index));
        }
        found.is_some()
    }
}
