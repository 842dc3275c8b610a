//! Faults of delivery, decided for each event from a seed. The same seed gives the same event the same fate, whatever
//! the timing. Pure.

use std::time::Duration;

use rand::{RngExt, SeedableRng, rngs::StdRng};
use serde::{Deserialize, Serialize};

use crate::ids::hash;

/// Faults of delivery, in percent of events.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Faults {
    /// Decides which events are hit.
    pub seed: u64,
    /// Never delivered at all.
    pub lost: u8,
    /// Delivered twice.
    pub doubled: u8,
    /// Held back by up to [`Faults::shuffle_within`], so that later events overtake it.
    pub shuffled: u8,
    /// The longest hold-back.
    pub shuffle_within: Duration,
    /// Delivered once more, [`Faults::stale_after`] later.
    pub stale: u8,
    /// How late the stale repetition is.
    pub stale_after: Duration,
    /// Posted only after a pause of [`Faults::slow_for`], which takes up one of the concurrent requests.
    pub slow: u8,
    /// How long a slow sender pauses.
    pub slow_for: Duration,
}

impl Default for Faults {
    fn default() -> Self {
        Self {
            seed: 0,
            lost: 0,
            doubled: 0,
            shuffled: 0,
            shuffle_within: Duration::from_secs(3),
            stale: 0,
            stale_after: Duration::from_secs(5),
            slow: 0,
            slow_for: Duration::from_millis(500),
        }
    }
}

impl Faults {
    /// No faults.
    pub fn none() -> Self {
        Self::default()
    }
}

/// The fate of one event.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Fate {
    pub(crate) lost: bool,
    pub(crate) doubled: bool,
    pub(crate) held_back: Option<Duration>,
    pub(crate) stale_after: Option<Duration>,
    pub(crate) slow: Option<Duration>,
}

/// Decides the fate of one event.
pub(crate) fn fate(faults: &Faults, event_id: &str) -> Fate {
    let mut rng = StdRng::seed_from_u64(hash(faults.seed, event_id));
    let mut hit = |percent: u8| rng.random_range(0..100) < percent;
    let (lost, doubled, shuffled) = (hit(faults.lost), hit(faults.doubled), hit(faults.shuffled));
    let (stale, slow) = (hit(faults.stale), hit(faults.slow));
    if lost {
        return Fate {
            lost,
            ..Fate::default()
        };
    }
    Fate {
        lost,
        doubled,
        held_back: shuffled.then(|| faults.shuffle_within.mul_f64(rng.random::<f64>())),
        stale_after: stale.then_some(faults.stale_after),
        slow: slow.then_some(faults.slow_for),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentages_are_met_and_repeatable() {
        let faults = Faults {
            seed: 7,
            lost: 10,
            doubled: 20,
            ..Faults::none()
        };
        let fates: Vec<Fate> = (0..2_000)
            .map(|index| fate(&faults, &format!("event_{index}")))
            .collect();
        let lost = fates.iter().filter(|fate| fate.lost).count();
        let doubled = fates.iter().filter(|fate| fate.doubled).count();
        assert!((150..250).contains(&lost), "{lost}");
        assert!((300..430).contains(&doubled), "{doubled}");
        assert_eq!(fates[11], fate(&faults, "event_11"));
        assert_eq!(fate(&Faults::none(), "event_1"), Fate::default());
    }
}
