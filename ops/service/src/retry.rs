//! How long to wait before the next attempt. The delays grow, are jittered, and never end.
//!
//! This is the only code that names the `backoff` crate, and it uses only its arithmetic (`next_backoff`). The crate is
//! no longer maintained (see `deny.toml`). To replace it, change only this file. What is worth retrying is not decided
//! here.

use std::time::Duration;

use backoff::ExponentialBackoff;
use backoff::backoff::Backoff as _;
use tokio_util::sync::CancellationToken;

/// Growing, jittered delays between attempts.
#[derive(Debug)]
pub struct Backoff {
    delays: ExponentialBackoff,
    max: Duration,
}

impl Backoff {
    /// Delays that begin around `first`, grow by half each time, and never exceed `max`.
    pub fn new(first: Duration, max: Duration) -> Self {
        let mut delays = ExponentialBackoff {
            initial_interval: first.min(max),
            max_interval: max,
            max_elapsed_time: None,
            ..ExponentialBackoff::default()
        };
        delays.reset();
        Self { delays, max }
    }

    /// The delay before the next attempt: between half and one and a half times the current step, at most `max`.
    pub fn next_delay(&mut self) -> Duration {
        self.delays.next_backoff().unwrap_or(self.max).min(self.max)
    }

    /// Starts over with short delays. Call it after a success.
    pub fn reset(&mut self) {
        self.delays.reset();
    }

    /// Waits for [`Backoff::next_delay`], or until `shutdown`. False after a shutdown: stop retrying.
    pub async fn wait(&mut self, shutdown: &CancellationToken) -> bool {
        let delay = self.next_delay();
        shutdown
            .run_until_cancelled(tokio::time::sleep(delay))
            .await
            .is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FIRST: Duration = Duration::from_millis(100);
    const MAX: Duration = Duration::from_secs(5);

    #[test]
    fn delays_grow_to_the_maximum_and_never_end() {
        let mut backoff = Backoff::new(FIRST, MAX);
        let delays: Vec<_> = (0..10_000).map(|_| backoff.next_delay()).collect();
        assert!(
            delays[0] >= FIRST / 2 && delays[0] <= FIRST * 3 / 2,
            "{:?}",
            delays[0]
        );
        assert!(delays.iter().all(|d| *d <= MAX));
        assert!(delays[20..].iter().all(|d| *d >= MAX / 2));
    }

    #[test]
    fn delays_are_jittered() {
        let first: std::collections::HashSet<_> =
            (0..50).map(|_| Backoff::new(FIRST, MAX).next_delay()).collect();
        assert!(first.len() > 10, "only {} different first delays", first.len());
    }

    #[test]
    fn a_success_begins_again() {
        let mut backoff = Backoff::new(FIRST, MAX);
        for _ in 0..100 {
            backoff.next_delay();
        }
        backoff.reset();
        assert!(backoff.next_delay() <= FIRST * 3 / 2);
    }

    #[test]
    fn a_first_delay_above_the_maximum_is_the_maximum() {
        assert!(Backoff::new(MAX * 10, MAX).next_delay() <= MAX);
    }

    #[tokio::test]
    async fn a_shutdown_ends_the_wait() {
        let shutdown = CancellationToken::new();
        let hour = Duration::from_hours(1);
        let mut backoff = Backoff::new(hour, hour);
        shutdown.cancel();
        assert!(!backoff.wait(&shutdown).await);
        assert!(
            Backoff::new(Duration::ZERO, Duration::ZERO)
                .wait(&CancellationToken::new())
                .await
        );
    }
}
