//! The time of day as an input.
//!
//! This is the only place in the workspace that reads the system clock (clippy forbids it elsewhere), so that every
//! rule about age, order and retention can be tested at any time. To measure how long something takes, use
//! [`std::time::Instant`] instead.
//!
//! Debug builds can be given a clock that jumps ([`WRONG_BY`]), for tests of whole programs. Release builds have no
//! code for it.

use std::sync::{Arc, Mutex, PoisonError};

use time::{Duration, OffsetDateTime};

/// In debug builds, names a file with the number of seconds to add to the machine's clock. The file is read on every
/// call.
#[cfg(debug_assertions)]
pub const WRONG_BY: &str = "DSYNC_TEST_CLOCK_WRONG_BY";

/// Tells the time. Cheap to clone; clones of a fixed clock move together.
#[derive(Clone, Debug)]
pub struct Clock(Source);

#[derive(Clone, Debug)]
enum Source {
    System,
    Fixed(Arc<Mutex<OffsetDateTime>>),
    #[cfg(debug_assertions)]
    Wrong(Arc<std::path::Path>),
}

impl Clock {
    /// The machine's own clock.
    pub fn system() -> Self {
        #[cfg(debug_assertions)]
        if let Some(file) = std::env::var_os(WRONG_BY) {
            return Self(Source::Wrong(std::path::PathBuf::from(file).into()));
        }
        Self(Source::System)
    }

    /// A clock that stands still at `at` until it is moved. For tests.
    pub fn fixed(at: OffsetDateTime) -> Self {
        Self(Source::Fixed(Arc::new(Mutex::new(at))))
    }

    /// The time now, in UTC.
    #[expect(clippy::disallowed_methods, reason = "the only place that may")]
    pub fn now(&self) -> OffsetDateTime {
        match &self.0 {
            Source::System => OffsetDateTime::now_utc(),
            Source::Fixed(at) => *at.lock().unwrap_or_else(PoisonError::into_inner),
            #[cfg(debug_assertions)]
            Source::Wrong(file) => OffsetDateTime::now_utc() + wrong_by(file),
        }
    }

    /// Moves a fixed clock to `at`.
    ///
    /// # Panics
    /// On the system clock: a test that tries to move it must not continue as if it had.
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
            Source::Fixed(at) => change(&mut at.lock().unwrap_or_else(PoisonError::into_inner)),
            _ => panic!("the system clock cannot be set"),
        }
    }
}

/// The offset in the file; zero if the file cannot be read or parsed.
#[cfg(debug_assertions)]
fn wrong_by(file: &std::path::Path) -> Duration {
    let seconds = std::fs::read_to_string(file).unwrap_or_default();
    Duration::seconds(seconds.trim().parse().unwrap_or_default())
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
    #[cfg(debug_assertions)]
    fn a_wrong_clock_is_wrong_by_what_its_file_says() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let clock = Clock(Source::Wrong(file.path().into()));
        for (text, seconds) in [("", 0), ("-600\n", -600), ("600", 600), ("soon", 0)] {
            std::fs::write(file.path(), text).unwrap();
            let wrong = clock.now() - Clock(Source::System).now();
            assert_eq!(
                (wrong - Duration::seconds(seconds)).whole_seconds(),
                0,
                "{text}: {wrong}"
            );
        }
    }

    #[test]
    #[should_panic(expected = "cannot be set")]
    fn the_system_clock_is_not_for_setting() {
        Clock::system().advance(Duration::SECOND);
    }
}
