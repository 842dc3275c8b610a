//! The webhooks still to be sent, in the order in which they are due, and counts of the outcomes of the others. No I/O.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use serde::Serialize;

use super::faults::{Fate, Faults, fate};

/// The outcomes of deliveries so far.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Counts {
    /// Events taken up.
    pub events: u64,
    /// Requests made.
    pub sent: u64,
    /// Deliveries answered with 2xx (a duplicated event counts twice).
    pub acked: u64,
    /// Requests that retried one not answered with 2xx.
    pub retried: u64,
    /// Events never sent.
    pub lost: u64,
    /// Events sent twice.
    pub doubled: u64,
    /// Events held back.
    pub shuffled: u64,
    /// Events sent again late.
    pub stale: u64,
    /// Events sent slowly.
    pub slow: u64,
    /// Deliveries given up after too many failures.
    pub gave_up: u64,
    /// Requests without any answer.
    pub unanswered: u64,
    /// Answers by status.
    pub answers: BTreeMap<u16, u64>,
}

/// One delivery to be made.
#[derive(Clone, Debug)]
pub(crate) struct Parcel {
    /// Index of the event in the order of emission.
    pub(crate) event: usize,
    pub(crate) attempt: u32,
    pub(crate) first_try: Option<Instant>,
    pub(crate) slow: Option<Duration>,
}

/// When a failed delivery is tried again.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Patience {
    pub(crate) backoff: Duration,
    pub(crate) backoff_max: Duration,
    pub(crate) give_up: Duration,
}

/// Parcels by due time.
#[derive(Debug, Default)]
pub(crate) struct Queue {
    waiting: BTreeMap<(Instant, u64), Parcel>,
    serial: u64,
    pub(crate) counts: Counts,
}

impl Queue {
    /// Takes up an emitted event, as its fate decides.
    pub(crate) fn take_up(&mut self, event: usize, id: &str, faults: &Faults, now: Instant) {
        let Fate {
            lost,
            doubled,
            held_back,
            stale_after,
            slow,
        } = fate(faults, id);
        self.counts.events += 1;
        self.counts.lost += u64::from(lost);
        self.counts.doubled += u64::from(doubled);
        self.counts.shuffled += u64::from(held_back.is_some());
        self.counts.stale += u64::from(stale_after.is_some());
        self.counts.slow += u64::from(slow.is_some());
        if lost {
            return;
        }
        let parcel = Parcel {
            event,
            attempt: 0,
            first_try: None,
            slow,
        };
        let due = now + held_back.unwrap_or_default();
        if doubled {
            self.put(due, parcel.clone());
        }
        if let Some(later) = stale_after {
            self.put(due + later, parcel.clone());
        }
        self.put(due, parcel);
    }

    pub(crate) fn put(&mut self, due: Instant, parcel: Parcel) {
        self.serial += 1;
        self.waiting.insert((due, self.serial), parcel);
    }

    /// The next parcel that is due. In a hurry, any parcel counts as due except retries, so that a failing endpoint is
    /// not flooded.
    pub(crate) fn pop(&mut self, now: Instant, hurry: bool) -> Option<Parcel> {
        let may_go = |due: Instant, parcel: &Parcel| due <= now || (hurry && parcel.attempt == 0);
        let mut candidates = self.waiting.iter().take(if hurry { usize::MAX } else { 1 });
        let key = candidates
            .find(|(key, parcel)| may_go(key.0, parcel))
            .map(|(key, _)| *key)?;
        self.waiting.remove(&key)
    }

    pub(crate) fn next_due(&self) -> Option<Instant> {
        self.waiting.first_key_value().map(|(key, _)| key.0)
    }

    pub(crate) fn len(&self) -> usize {
        self.waiting.len()
    }

    /// Records an answer (`None` if there was none), and puts a failed parcel back unless it is time to give up.
    pub(crate) fn settle(
        &mut self,
        mut parcel: Parcel,
        status: Option<u16>,
        patience: Patience,
        now: Instant,
    ) {
        match status {
            Some(status) => *self.counts.answers.entry(status).or_default() += 1,
            None => self.counts.unanswered += 1,
        }
        if status.is_some_and(|status| (200..300).contains(&status)) {
            self.counts.acked += 1;
            return;
        }
        let first_try = *parcel.first_try.get_or_insert(now);
        let pause = patience
            .backoff
            .saturating_mul(1 << parcel.attempt.min(20))
            .min(patience.backoff_max);
        if now + pause > first_try + patience.give_up {
            self.counts.gave_up += 1;
            return;
        }
        parcel.attempt += 1;
        self.put(now + pause, parcel);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATIENCE: Patience = Patience {
        backoff: Duration::from_secs(1),
        backoff_max: Duration::from_secs(8),
        give_up: Duration::from_secs(10),
    };

    #[test]
    fn failures_back_off_and_end() {
        let start = Instant::now();
        let mut queue = Queue::default();
        queue.take_up(0, "event_1", &Faults::none(), start);
        let mut now = start;
        let mut pauses = Vec::new();
        while let Some(due) = queue.next_due() {
            pauses.push(due.duration_since(now).as_secs());
            now = due;
            let parcel = queue.pop(now, false).unwrap();
            queue.settle(parcel, Some(503), PATIENCE, now);
        }
        assert_eq!(
            pauses,
            [0, 1, 2, 4],
            "the next pause of 8 s would end after the 10 s of patience"
        );
        assert_eq!((queue.counts.gave_up, queue.counts.answers[&503]), (1, 4));
    }

    #[test]
    fn a_hurry_ignores_due_times_but_not_their_order() {
        let start = Instant::now();
        let mut queue = Queue::default();
        let faults = Faults {
            stale: 100,
            ..Faults::none()
        };
        queue.take_up(0, "event_1", &faults, start);
        queue.take_up(1, "event_2", &faults, start);
        let order: Vec<usize> = std::iter::from_fn(|| queue.pop(start, true))
            .map(|parcel| parcel.event)
            .collect();
        assert_eq!(order, [0, 1, 0, 1]);
    }
}
