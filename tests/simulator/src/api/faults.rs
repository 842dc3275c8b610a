//! Faults in the API's answers, decided for each request from a seed. Pure.

use std::{collections::BTreeSet, time::Duration};

use rand::{RngExt, SeedableRng, rngs::StdRng};
use serde::{Deserialize, Serialize};

use crate::ids::hash;

/// Faults of the API, in percent of requests.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ApiFaults {
    /// Decides, together with the number of requests so far, which requests are hit.
    pub seed: u64,
    /// Answered with 500.
    pub errors: u8,
    /// Not answered for [`ApiFaults::hang_for`], then with 504.
    pub hangs: u8,
    /// How long a hanging request hangs.
    pub hang_for: Duration,
    /// Answered after [`ApiFaults::slow_for`].
    pub slow: u8,
    /// How long a slow answer is delayed.
    pub slow_for: Duration,
    /// Answered with the state as it was [`ApiFaults::lag`] ago.
    pub lagging: u8,
    /// How old a lagging read is, by the simulator's clock.
    pub lag: Duration,
    /// Lists cut short: half of the page and no `after`, with 200.
    pub cut_short: u8,
    /// Directories for which every list lacks half of the objects, always the same half, with 200. Reads of single
    /// objects are complete.
    pub halved: BTreeSet<String>,
}

impl Default for ApiFaults {
    fn default() -> Self {
        Self {
            seed: 0,
            errors: 0,
            hangs: 0,
            hang_for: Duration::from_mins(1),
            slow: 0,
            slow_for: Duration::from_millis(500),
            lagging: 0,
            lag: Duration::from_secs(5),
            cut_short: 0,
            halved: BTreeSet::new(),
        }
    }
}

/// How much of a list is shown.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Half {
    #[default]
    Whole,
    /// Half of the page, pretending to be the end of the list.
    CutShort,
    /// Every second object is never shown.
    EverySecond,
}

impl Half {
    pub(crate) fn shows(self, id: &str) -> bool {
        self != Self::EverySecond || hash(1, id).is_multiple_of(2)
    }
}

/// The faults that hit one request.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Mishap {
    pub(crate) error: bool,
    pub(crate) hang: Option<Duration>,
    pub(crate) slow: Option<Duration>,
    pub(crate) lag: Option<Duration>,
    pub(crate) cut_short: bool,
}

/// Decides the faults of the `number`th request.
pub(crate) fn mishap(faults: &ApiFaults, number: usize) -> Mishap {
    let mut rng = StdRng::seed_from_u64(hash(faults.seed, &number.to_string()));
    let mut hit = |percent: u8| rng.random_range(0..100) < percent;
    Mishap {
        error: hit(faults.errors),
        hang: hit(faults.hangs).then_some(faults.hang_for),
        slow: hit(faults.slow).then_some(faults.slow_for),
        lag: hit(faults.lagging).then_some(faults.lag),
        cut_short: hit(faults.cut_short),
    }
}
