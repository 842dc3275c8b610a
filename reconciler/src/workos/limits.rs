//! How fast we may ask. `WorkOS` allows 4 requests/s per directory on `/directory_users` and 6,000 a minute in all; we
//! stay 2 % below, because what we send evenly does not arrive evenly.
//!
//! One [`Limits`] is shared by everything a process does. Whoever waits for the same directory is served in the order
//! it came, so that one long walk is not starved by many short ones.

use std::collections::HashMap;
use std::num::NonZeroU32;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use governor::clock::MonotonicClock;
use governor::middleware::NoOpMiddleware;
use governor::state::{InMemoryState, NotKeyed};
use governor::{Quota, RateLimiter};
use tokio::sync::Mutex as TurnMutex;
use tokio::time::Instant;

/// Between two requests to `/directory_users` of one directory: 3.92 a second, never two at once.
const DIRECTORY_PERIOD: Duration = Duration::from_millis(255);
/// Requests in all: 98 a second, and `BURST` more at most in any minute.
const GLOBAL_PER_SECOND: NonZeroU32 = NonZeroU32::new(98).expect("not zero");
const BURST: NonZeroU32 = NonZeroU32::new(20).expect("not zero");
const ONE: NonZeroU32 = NonZeroU32::MIN;

type Limiter = RateLimiter<NotKeyed, InMemoryState, MonotonicClock, NoOpMiddleware<std::time::Instant>>;

/// The limits, and what was used of them. Cheap to clone; clones share it.
#[derive(Clone)]
pub struct Limits {
    all: Arc<Lane>,
    directories: Arc<Mutex<HashMap<String, Arc<Lane>>>>,
}

/// One limit, and the queue before it.
struct Lane {
    limiter: Limiter,
    turn: TurnMutex<()>,
    /// Nothing is sent before this moment: we were told to wait.
    not_before: Mutex<Option<Instant>>,
}

impl Lane {
    fn new(quota: Quota) -> Self {
        Self {
            limiter: RateLimiter::direct_with_clock(quota, MonotonicClock),
            turn: TurnMutex::new(()),
            not_before: Mutex::default(),
        }
    }

    async fn pass(&self) {
        let _turn = self.turn.lock().await;
        loop {
            let until = *self.not_before.lock().unwrap_or_else(PoisonError::into_inner);
            match until {
                Some(until) if until > Instant::now() => tokio::time::sleep_until(until).await,
                _ => break,
            }
        }
        self.limiter.until_ready().await;
    }

    fn pause(&self, time: Duration) {
        let until = Instant::now() + time;
        let mut not_before = self.not_before.lock().unwrap_or_else(PoisonError::into_inner);
        if not_before.is_none_or(|earlier| earlier < until) {
            *not_before = Some(until);
        }
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            all: Arc::new(Lane::new(Quota::per_second(GLOBAL_PER_SECOND).allow_burst(BURST))),
            directories: Arc::default(),
        }
    }
}

impl Limits {
    /// Waits until a request may be sent: to `/directory_users` of `directory`, or to anything else.
    pub async fn pass(&self, directory: Option<&str>) {
        if let Some(directory) = directory {
            self.lane(directory).pass().await;
        }
        self.all.pass().await;
    }

    /// We were told that we ask too often: nothing like it is sent for `time`.
    pub fn pause(&self, directory: Option<&str>, time: Duration) {
        match directory {
            Some(directory) => self.lane(directory).pause(time),
            None => self.all.pause(time),
        }
    }

    /// Forgets directories that nobody waits for, so that the map does not grow for ever.
    fn lane(&self, directory: &str) -> Arc<Lane> {
        let mut lanes = self.directories.lock().unwrap_or_else(PoisonError::into_inner);
        if lanes.len() > 10_000 {
            lanes.retain(|_, lane| Arc::strong_count(lane) > 1);
        }
        let lane = lanes.entry(directory.to_owned()).or_insert_with(|| {
            let quota = Quota::with_period(DIRECTORY_PERIOD).unwrap_or_else(|| Quota::per_second(ONE));
            Arc::new(Lane::new(quota.allow_burst(ONE)))
        });
        Arc::clone(lane)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_directory_gets_less_than_four_a_second_and_others_do_not_wait_for_it() {
        let limits = Limits::default();
        let start = Instant::now();
        for _ in 0..5 {
            limits.pass(Some("d1")).await;
        }
        let took = start.elapsed();
        assert!(took >= Duration::from_secs(1), "five requests within {took:?}");
        assert!(took < Duration::from_millis(1_400), "five requests took {took:?}");
        let other = Instant::now();
        limits.pass(Some("d2")).await;
        assert!(other.elapsed() < Duration::from_millis(100));
    }

    #[tokio::test]
    async fn a_pause_holds_back_whoever_asks_the_same() {
        let limits = Limits::default();
        limits.pause(Some("d1"), Duration::from_millis(300));
        let start = Instant::now();
        limits.pass(Some("d2")).await;
        limits.pass(None).await;
        assert!(start.elapsed() < Duration::from_millis(150));
        limits.pass(Some("d1")).await;
        assert!(start.elapsed() >= Duration::from_millis(300));
    }
}
