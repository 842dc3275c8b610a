//! The time of day as an input.
//!
//! This is the only place in the workspace that asks the system what time it is (clippy forbids it elsewhere), so
//! that every rule about age, order and retention can be tested at any moment. Measuring how long something took
//! is another matter: that is [`std::time::Instant`]'s work, not this module's.

use std::sync::{Arc, Mutex, PoisonError};

use time::{Duration, OffsetDateTime};

/// Answers what time it is. Cheap to clone; clones of a fixed clock move together.
#[derive(Clone, Debug)]
pub struct Clock(Source);

#[derive(Clone, Debug)]
enum Source {
    System,
    Fixed(Arc<Mutex<OffsetDateTime>>),
}

impl Clock {
    /// The machine's own clock.
    pub fn system() -> Self {
        Self(Source::System)
    }

    /// A clock that stands still at `at` until it is told otherwise. For tests.
    pub fn fixed(at: OffsetDateTime) -> Self {
        Self(Source::Fixed(Arc::new(Mutex::new(at))))
    }

    /// The time now, in UTC.
    #[expect(clippy::disallowed_methods, reason = "the one place that may")]
    pub fn now(&self) -> OffsetDateTime {
        match &self.0 {
            Source::System => OffsetDateTime::now_utc(),
            Source::Fixed(at) => *at.lock().unwrap_or_else(PoisonError::into_inner),
        }
    }

    /// Moves a fixed clock to `at`.
    ///
    /// # Panics
    /// On the system clock: a test that believes it moves time must not go on as if it had.
    pub fn set(&self, at: OffsetDateTime) {
        self.change(|now| *now = at);
    }

    /// Moves a fixed clock by `by`, which may be negative.
    ///
    /// # Panics
    /// On the system clock, as [`Clock::set`].
    pub fn advance(&self, by: Duration) {
        self.change(|now| *now += by);
    }

    fn change(&self, change: impl FnOnce(&mut OffsetDateTime)) {
        match &self.0 {
            Source::System => panic!("the system clock cannot be set"),
            Source::Fixed(at) => change(&mut at.lock().unwrap_or_else(PoisonError::into_inner)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fixed_clock_stands_still_and_its_clones_move_with_it() {
        let clock = Clock::fixed(OffsetDateTime::UNIX_EPOCH);
        let other = clock.clone();
        assert_eq!(clock.now(), clock.now());
        other.advance(Duration::minutes(3));
        assert_eq!(clock.now(), OffsetDateTime::UNIX_EPOCH + Duration::minutes(3));
        clock.set(OffsetDateTime::UNIX_EPOCH);
        assert_eq!(other.now(), OffsetDateTime::UNIX_EPOCH);
    }

    #[test]
    fn the_system_clock_goes_on_and_is_in_utc() {
        let clock = Clock::system();
        assert!(clock.now() <= clock.now());
        assert!(clock.now().offset().is_utc());
        assert!(clock.now().year() >= 2026);
    }

    #[test]
    #[should_panic(expected = "cannot be set")]
    fn the_system_clock_is_not_for_setting() {
        Clock::system().advance(Duration::SECOND);
    }
}
