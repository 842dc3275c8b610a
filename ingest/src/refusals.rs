//! Limits how many refusals are logged. Anybody can cause as many as they like, and log lines that fill the disk would
//! stop a broker on the same disk from writing. So a few a second are logged, with the number left out. Metrics count
//! them all.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// How many are logged in each interval.
const TOLD: u32 = 10;
/// An interval.
const STRETCH: Duration = Duration::from_secs(1);

/// How many refusals were logged recently.
#[derive(Debug, Default)]
pub struct Refusals(Mutex<Lately>);

#[derive(Debug, Default)]
struct Lately {
    since: Option<Instant>,
    told: u32,
    /// Left out since the last one that was logged.
    untold: u64,
}

impl Refusals {
    /// `Some` if one more may be logged at `now`. The inner value is how many were left out since the last one that was
    /// logged; `None` if none was.
    pub fn tell(&self, now: Instant) -> Option<Option<u64>> {
        let mut lately = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if lately
            .since
            .is_none_or(|since| now.saturating_duration_since(since) >= STRETCH)
        {
            lately.since = Some(now);
            lately.told = 0;
        }
        if lately.told == TOLD {
            lately.untold += 1;
            return None;
        }
        lately.told += 1;
        let untold = std::mem::take(&mut lately.untold);
        Some((untold > 0).then_some(untold))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_few_a_second_are_told_and_the_others_counted() {
        let (refusals, began) = (Refusals::default(), Instant::now());
        let told = |now: Instant| (0..500).filter(|_| refusals.tell(now).is_some()).count();
        assert_eq!(told(began), 10);
        assert_eq!(told(began + STRETCH / 2), 0);
        let later = began + STRETCH;
        assert_eq!(refusals.tell(later), Some(Some(990)));
        assert_eq!(refusals.tell(later), Some(None));
        assert_eq!(told(later), 8);
        // Two threads may have read the clock in either order.
        assert_eq!(refusals.tell(began), None);
    }
}
