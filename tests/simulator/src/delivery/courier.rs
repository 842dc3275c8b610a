//! The task behind a delivery: takes up events as they are emitted, sends what is due, and records the answers.
//!
//! It decides nothing itself: `faults` decides each event's fate, and `queue` when it is due.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use tokio::{sync::watch, task::JoinSet};

use super::{
    Acknowledged, DeliveryOptions, Orders, Progress,
    queue::{Parcel, Patience, Queue},
};
use crate::{shared::Shared, sign::sign};

/// Status and body.
pub(super) type Answer = (u16, String);

/// The task behind a delivery.
pub(super) struct Courier {
    pub(super) shared: Arc<Shared>,
    pub(super) client: reqwest::Client,
    pub(super) options: Arc<DeliveryOptions>,
    pub(super) emissions: watch::Receiver<usize>,
    pub(super) orders: watch::Receiver<Orders>,
    pub(super) progress: watch::Sender<Progress>,
    pub(super) queue: Queue,
    pub(super) in_flight: JoinSet<(Parcel, Option<Answer>)>,
    pub(super) cursor: usize,
    pub(super) repeated: usize,
    pub(super) next_slot: Instant,
    pub(super) acknowledged: Arc<Mutex<Vec<Acknowledged>>>,
}

impl Courier {
    pub(super) async fn run(mut self) {
        loop {
            let orders = self.orders.borrow_and_update().clone();
            self.take_up(&orders);
            let wait = self.dispatch(&orders);
            self.report();
            let pause = tokio::time::sleep(wait.unwrap_or(Duration::from_hours(1)));
            tokio::select! {
                Some(joined) = self.in_flight.join_next() => self.settle(joined),
                changed = self.emissions.changed() => if changed.is_err() { return },
                changed = self.orders.changed() => if changed.is_err() { return },
                () = pause, if wait.is_some() => {}
            }
        }
    }

    fn take_up(&mut self, orders: &Orders) {
        let now = Instant::now();
        self.emissions.borrow_and_update();
        {
            let world = self.shared.world();
            for (index, event) in world.events().iter().enumerate().skip(self.cursor) {
                self.queue.take_up(index, &event.id, &orders.faults, now);
            }
            self.cursor = world.events().len();
        }
        for index in &orders.again[self.repeated..] {
            let parcel = Parcel {
                event: *index,
                attempt: 0,
                first_try: None,
                slow: None,
            };
            self.queue.put(now, parcel);
        }
        self.repeated = orders.again.len();
    }

    /// Sends what is due, as far as concurrency and rate allow. Returns how long until there may be more to send, or
    /// `None` if something else must happen first.
    fn dispatch(&mut self, orders: &Orders) -> Option<Duration> {
        while !orders.paused && self.in_flight.len() < self.options.concurrency.max(1) {
            let now = Instant::now();
            if !orders.hurry && self.next_slot > now {
                return self.queue.next_due().map(|_| self.next_slot - now);
            }
            let Some(parcel) = self.queue.pop(now, orders.hurry) else {
                return self
                    .queue
                    .next_due()
                    .map(|due| due.saturating_duration_since(now));
            };
            if let Some(rate) = self.options.rate {
                self.next_slot = self.next_slot.max(now) + Duration::from_secs_f64(1.0 / rate.max(0.001));
            }
            self.send(parcel, orders.hurry);
        }
        None
    }

    fn send(&mut self, mut parcel: Parcel, hurry: bool) {
        parcel.first_try.get_or_insert_with(Instant::now);
        self.queue.counts.sent += 1;
        self.queue.counts.retried += u64::from(parcel.attempt > 0);
        let event = self.shared.world().events()[parcel.event].clone();
        let (client, options, clock) = (
            self.client.clone(),
            self.options.clone(),
            self.shared.clock.clone(),
        );
        let dawdle = parcel.slow.filter(|_| !hurry);
        self.in_flight.spawn(async move {
            if let Some(dawdle) = dawdle {
                tokio::time::sleep(dawdle).await;
            }
            let signature = sign(&options.secret, clock.now(), event.body().as_bytes());
            let request = client
                .post(&options.url)
                .header("Content-Type", "application/json")
                .header("User-Agent", "WorkOS-Webhooks")
                .header("WorkOS-Signature", signature)
                .body(event.body().to_owned());
            let answer = match request.send().await {
                Ok(answer) => {
                    let status = answer.status().as_u16();
                    // Read to its end, so that the connection can be used again.
                    Some((status, answer.text().await.unwrap_or_default()))
                }
                Err(_) => None,
            };
            (parcel, answer)
        });
    }

    fn settle(&mut self, joined: Result<(Parcel, Option<Answer>), tokio::task::JoinError>) {
        let Ok((parcel, answer)) = joined else { return };
        let status = answer.as_ref().map(|(status, _)| *status);
        if let Some((200..300, answer)) = answer {
            let event = self.shared.world().events()[parcel.event].id.clone();
            let mut acknowledged = self.acknowledged.lock().unwrap_or_else(PoisonError::into_inner);
            acknowledged.push(Acknowledged { event, answer });
        }
        let patience = Patience {
            backoff: self.options.backoff,
            backoff_max: self.options.backoff_max,
            give_up: self.options.give_up,
        };
        self.queue.settle(parcel, status, patience, Instant::now());
    }

    fn report(&self) {
        self.progress.send_replace(Progress {
            taken_up: self.cursor + self.repeated,
            pending: self.queue.len() + self.in_flight.len(),
            counts: self.queue.counts.clone(),
        });
    }
}
