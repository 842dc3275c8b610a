//! Rate limits. `WorkOS` allows 4 requests/s per directory on `/directory_users` and 6,000 a minute in total.
//!
//! Requests sent evenly do not arrive evenly: one that was held up on its way arrives closer to the next ones. So
//! besides being spaced, each request waits for one second after the arrival of the fourth request before it. That
//! arrival is taken to be the time of its answer less the shortest round trip so far. On a quiet line that costs nothing.
//!
//! One [`Limits`] is shared by everything a process does. Requests that wait for the same directory are served in the
//! order they came, so that one long walk is not starved by many short ones.

use std::collections::{HashMap, VecDeque};
use std::num::NonZeroU32;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use governor::clock::MonotonicClock;
use governor::middleware::NoOpMiddleware;
use governor::state::{InMemoryState, NotKeyed};
use governor::{Quota, RateLimiter};
use tokio::sync::Mutex as TurnMutex;
use tokio::time::Instant;

/// Requests a second to `/directory_users` of one directory.
const PER_SECOND: usize = 4;
/// The time between two of them: never two at once, and 3.98 a second.
const PERIOD: Duration = Duration::from_millis(251);
/// The second in which no more than four may arrive, plus a little for differences between clocks.
const SECOND: Duration = Duration::from_millis(1_003);
/// After this long, an unanswered request counts as arrived.
const ARRIVED_WITHIN: Duration = Duration::from_secs(1);
/// How often to check whether an unanswered request was answered.
const LOOK: Duration = Duration::from_millis(5);
/// Requests in total: 98 a second, and at most `BURST` more in any minute.
const GLOBAL_PER_SECOND: NonZeroU32 = NonZeroU32::new(98).expect("not zero");
const BURST: NonZeroU32 = NonZeroU32::new(20).expect("not zero");
const ONE: NonZeroU32 = NonZeroU32::MIN;

type Limiter = RateLimiter<NotKeyed, InMemoryState, MonotonicClock, NoOpMiddleware<std::time::Instant>>;

/// The limits, and how much of them was used. Cheap to clone; clones share both.
#[derive(Clone)]
pub struct Limits {
    all: Arc<Bucket>,
    directories: Arc<Mutex<HashMap<String, Arc<Bucket>>>>,
}

/// One limit, and the queue of those who wait for it.
struct Bucket {
    limiter: Limiter,
    turn: TurnMutex<()>,
    /// Nothing is sent before this time, because we were told to wait.
    not_before: Mutex<Option<Instant>>,
    recent: Mutex<Recent>,
}

/// The last few requests of a directory.
#[derive(Default)]
struct Recent {
    sent: VecDeque<Sent>,
    quickest: Option<Duration>,
    count: u64,
}

struct Sent {
    number: u64,
    at: Instant,
    answered: Option<Instant>,
}

/// Permission to send one request. Call [`Pass::answered`] once it was answered.
pub struct Pass {
    bucket: Option<(Arc<Bucket>, u64)>,
}

impl Pass {
    /// The request was answered, or failed, now.
    pub fn answered(self) {
        let Some((bucket, number)) = self.bucket else {
            return;
        };
        let now = Instant::now();
        let mut recent = lock(&bucket.recent);
        let Some(sent) = recent.sent.iter_mut().find(|sent| sent.number == number) else {
            return;
        };
        sent.answered = Some(now);
        let took = now - sent.at;
        recent.quickest = Some(recent.quickest.map_or(took, |quickest| quickest.min(took)));
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Recent {
    /// When the next request may be sent, and whether that is certain.
    fn next(&self) -> Option<(Instant, bool)> {
        let fourth = self.sent.len().checked_sub(PER_SECOND)?;
        let sent = &self.sent[fourth];
        Some(match sent.answered {
            Some(answered) => (answered - self.quickest.unwrap_or_default() + SECOND, true),
            None => (sent.at + ARRIVED_WITHIN + SECOND, false),
        })
    }

    fn note(&mut self) -> u64 {
        self.count += 1;
        self.sent.push_back(Sent {
            number: self.count,
            at: Instant::now(),
            answered: None,
        });
        if self.sent.len() > PER_SECOND {
            self.sent.pop_front();
        }
        self.count
    }
}

impl Bucket {
    fn new(quota: Quota) -> Self {
        Self {
            limiter: RateLimiter::direct_with_clock(quota, MonotonicClock),
            turn: TurnMutex::new(()),
            not_before: Mutex::default(),
            recent: Mutex::default(),
        }
    }

    /// Waits for a turn. If a pause begins meanwhile, waits for one after it.
    async fn pass(&self) {
        loop {
            // Another request may have been told to wait for longer meanwhile.
            while let Some(until) = self.paused_until() {
                tokio::time::sleep_until(until).await;
            }
            self.limiter.until_ready().await;
            if self.paused_until().is_none() {
                return;
            }
        }
    }

    /// The same for a directory. Returns the number of the request.
    async fn pass_spaced(&self, all: &Bucket) -> u64 {
        let _turn = self.turn.lock().await;
        loop {
            self.pass().await;
            all.pass().await;
            self.spaced().await;
            // Each of the three may take long, and a pause may begin in any of them.
            if self.paused_until().is_none() && all.paused_until().is_none() {
                return lock(&self.recent).note();
            }
        }
    }

    /// Waits until it is a second since the fourth request before arrived.
    async fn spaced(&self) {
        loop {
            let next = lock(&self.recent).next();
            match next {
                Some((at, true)) if at > Instant::now() => tokio::time::sleep_until(at).await,
                Some((at, false)) if at > Instant::now() => tokio::time::sleep(LOOK).await,
                _ => return,
            }
        }
    }

    fn paused_until(&self) -> Option<Instant> {
        lock(&self.not_before).filter(|until| *until > Instant::now())
    }

    fn pause(&self, time: Duration) {
        let until = Instant::now() + time;
        let mut not_before = lock(&self.not_before);
        if not_before.is_none_or(|earlier| earlier < until) {
            *not_before = Some(until);
        }
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            all: Arc::new(Bucket::new(
                Quota::per_second(GLOBAL_PER_SECOND).allow_burst(BURST),
            )),
            directories: Arc::default(),
        }
    }
}

impl Limits {
    /// Waits until a request may be sent: to `/directory_users` of `directory` or, with `None`, to anything else.
    pub async fn pass(&self, directory: Option<&str>) -> Pass {
        let Some(directory) = directory else {
            self.all.pass().await;
            return Pass { bucket: None };
        };
        let bucket = self.bucket(directory);
        let number = bucket.pass_spaced(&self.all).await;
        Pass {
            bucket: Some((bucket, number)),
        }
    }

    /// We were told to slow down: nothing is sent under the same limit for `time`.
    pub fn pause(&self, directory: Option<&str>, time: Duration) {
        match directory {
            Some(directory) => self.bucket(directory).pause(time),
            None => self.all.pause(time),
        }
    }

    /// Forgets directories that nobody waits for, so that the map does not grow forever.
    fn bucket(&self, directory: &str) -> Arc<Bucket> {
        let mut buckets = lock(&self.directories);
        if buckets.len() > 10_000 {
            buckets.retain(|_, bucket| Arc::strong_count(bucket) > 1);
        }
        let bucket = buckets.entry(directory.to_owned()).or_insert_with(|| {
            let quota = Quota::with_period(PERIOD).unwrap_or_else(|| Quota::per_second(ONE));
            Arc::new(Bucket::new(quota.allow_burst(ONE)))
        });
        Arc::clone(bucket)
    }
}

#[cfg(test)]
mod tests {
    use std::pin::Pin;

    use super::*;

    #[tokio::test]
    async fn a_directory_gets_less_than_four_a_second_and_others_do_not_wait_for_it() {
        let limits = Limits::default();
        let start = Instant::now();
        for _ in 0..5 {
            limits.pass(Some("d1")).await.answered();
        }
        let took = start.elapsed();
        assert!(took >= Duration::from_secs(1), "five requests within {took:?}");
        assert!(took < Duration::from_millis(1_400), "five requests took {took:?}");
        let other = Instant::now();
        limits.pass(Some("d2")).await.answered();
        assert!(other.elapsed() < Duration::from_millis(100));
    }

    #[tokio::test]
    async fn what_was_held_up_on_its_way_counts_from_when_it_can_have_arrived() {
        let limits = Limits::default();
        limits.pass(Some("d1")).await.answered();
        let start = Instant::now();
        let slow = limits.pass(Some("d1")).await;
        for _ in 0..2 {
            limits.pass(Some("d1")).await.answered();
        }
        limits.pass(Some("d1")).await.answered();
        // The second request takes 1.2 s to be answered. Until a second after that, a fourth may not follow it.
        tokio::time::sleep_until(start + Duration::from_millis(1_450)).await;
        slow.answered();
        limits.pass(Some("d1")).await.answered();
        let took = start.elapsed();
        assert!(took >= Duration::from_millis(2_400), "{took:?}");
    }

    #[tokio::test]
    async fn a_pause_holds_back_whoever_asks_the_same() {
        let limits = Limits::default();
        limits.pause(Some("d1"), Duration::from_millis(300));
        let start = Instant::now();
        limits.pass(Some("d2")).await.answered();
        limits.pass(None).await.answered();
        assert!(start.elapsed() < Duration::from_millis(150));
        limits.pass(Some("d1")).await.answered();
        assert!(start.elapsed() >= Duration::from_millis(300));
    }

    /// A request that waits for its turn.
    async fn waiting(limits: &Limits, directory: Option<&str>) -> Pin<Box<impl Future<Output = Pass>>> {
        loop {
            let mut pass = Box::pin(limits.pass(directory));
            if tokio::time::timeout(Duration::ZERO, &mut pass).await.is_err() {
                return pass;
            }
        }
    }

    #[tokio::test]
    async fn a_pause_holds_back_those_too_who_are_waiting_for_their_turn() {
        let pause = Duration::from_millis(400);
        for (asked, paused) in [(None, None), (Some("d1"), Some("d1")), (Some("d1"), None)] {
            let limits = Limits::default();
            let request = waiting(&limits, asked).await;
            let start = Instant::now();
            limits.pause(paused, pause);
            request.await.answered();
            assert!(
                start.elapsed() >= pause,
                "{asked:?}, {paused:?}: {:?}",
                start.elapsed()
            );
        }
    }

    #[tokio::test]
    async fn a_pause_of_one_limit_may_begin_while_that_of_another_is_waited_out() {
        let limits = Limits::default();
        limits.pause(None, Duration::from_millis(200));
        let request = waiting(&limits, Some("d1")).await;
        let start = Instant::now();
        limits.pause(Some("d1"), Duration::from_millis(600));
        request.await.answered();
        assert!(
            start.elapsed() >= Duration::from_millis(600),
            "{:?}",
            start.elapsed()
        );
    }
}
