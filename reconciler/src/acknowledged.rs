//! Events that the log acknowledged recently, and that need not be appended again. Pure.
//!
//! An event that is forgotten too early is only appended once more, and the log drops it as a duplicate. So their
//! number can be bounded; otherwise months of events, read in one go, would all be kept in memory.

use std::collections::HashMap;

use schema::timestamp::Timestamp;

/// How many are kept: a few megabytes, and more than a holdback contains, except during a first sync.
const MOST: usize = 50_000;

/// Ids of events, and when each happened.
#[derive(Debug, Default)]
pub struct Acknowledged {
    ids: HashMap<String, Timestamp>,
}

impl Acknowledged {
    /// Whether this event was acknowledged recently.
    pub fn has(&self, id: &str) -> bool {
        self.ids.contains_key(id)
    }

    /// Adds one. If there are too many, drops the older half.
    pub fn add(&mut self, id: String, at: Timestamp) {
        self.ids.insert(id, at);
        if self.ids.len() > MOST {
            let mut times: Vec<Timestamp> = self.ids.values().copied().collect();
            let (_, middle, _) = times.select_nth_unstable(MOST / 2);
            let middle = *middle;
            self.ids.retain(|_, at| *at > middle);
        }
    }

    /// Forgets those that happened before `moment`.
    pub fn forget_before(&mut self, moment: Timestamp) {
        self.ids.retain(|_, at| *at >= moment);
    }

    /// Forgets all.
    pub fn clear(&mut self) {
        self.ids = HashMap::new();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn very_many_are_not_kept_and_the_newest_are() {
        let mut acknowledged = Acknowledged::default();
        for number in 0..300_000 {
            acknowledged.add(format!("event_{number}"), Timestamp::from_micros(number));
            assert!(acknowledged.ids.len() <= MOST);
        }
        assert!(
            acknowledged.has("event_299999")
                && acknowledged.has("event_280000")
                && !acknowledged.has("event_1")
        );
        acknowledged.forget_before(Timestamp::from_micros(299_999));
        assert_eq!(acknowledged.ids.len(), 1);
    }

    #[test]
    fn very_many_of_one_moment_are_not_kept_either() {
        let mut acknowledged = Acknowledged::default();
        for number in 0..100_000 {
            acknowledged.add(format!("event_{number}"), Timestamp::from_micros(7));
            assert!(acknowledged.ids.len() <= MOST);
        }
    }
}
