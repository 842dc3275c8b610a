//! The simulator's time: milliseconds since the Unix epoch, from the system clock or from a clock that a test moves.
//!
//! Nothing else in this crate reads the time of day. Durations of network work are measured elsewhere with
//! `std::time::Instant`, which the simulated clock does not affect.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
    time::Duration,
};

use serde::{Deserialize, Serialize};
use time::{OffsetDateTime, format_description::well_known::Rfc3339, macros::format_description};

/// A moment: milliseconds since the Unix epoch, UTC.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Millis(pub i64);

impl Millis {
    /// `2026-01-15T12:00:00.000Z`, as WorkOS writes it.
    pub fn rfc3339(self) -> String {
        let format =
            format_description!("[year]-[month]-[day]T[hour]:[minute]:[second].[subsecond digits:3]Z");
        self.date_time().format(format).unwrap_or_default()
    }

    /// `2023-04-28 20:05:31.093`: UTC, without `T` or zone, as in some of WorkOS's own samples.
    pub fn spaced(self) -> String {
        let format =
            format_description!("[year]-[month]-[day] [hour]:[minute]:[second].[subsecond digits:3]");
        self.date_time().format(format).unwrap_or_default()
    }

    /// The form of the HTTP `Date` header; whole seconds.
    pub fn http_date(self) -> String {
        let format = format_description!(
            "[weekday repr:short], [day] [month repr:short] [year] [hour]:[minute]:[second] GMT"
        );
        self.date_time().format(format).unwrap_or_default()
    }

    /// Parses RFC 3339 with a `Z`. `None` for anything else, numeric offsets included, because WorkOS requires `Z`.
    pub fn parse_zulu(text: &str) -> Option<Self> {
        let parsed = text
            .ends_with('Z')
            .then(|| OffsetDateTime::parse(text, &Rfc3339).ok())
            .flatten()?;
        i64::try_from(parsed.unix_timestamp_nanos() / 1_000_000)
            .ok()
            .map(Self)
    }

    /// This moment, later by `by`.
    #[must_use]
    pub fn plus(self, by: Duration) -> Self {
        Self(self.0.saturating_add(millis(by)))
    }

    /// This moment, earlier by `by`.
    #[must_use]
    pub fn minus(self, by: Duration) -> Self {
        Self(self.0.saturating_sub(millis(by)))
    }

    fn date_time(self) -> OffsetDateTime {
        OffsetDateTime::from_unix_timestamp_nanos(i128::from(self.0) * 1_000_000)
            .unwrap_or(OffsetDateTime::UNIX_EPOCH)
    }
}

impl fmt::Display for Millis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.rfc3339())
    }
}

fn millis(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}

/// Where the simulator's time comes from. Clones share one clock.
#[derive(Clone, Debug)]
pub struct Clock(Inner);

#[derive(Clone, Debug)]
enum Inner {
    System,
    Fixed(Arc<AtomicI64>),
}

impl Clock {
    /// The machine's clock.
    pub fn system() -> Self {
        Self(Inner::System)
    }

    /// A clock that stays at `at` until [`Clock::set`] or [`Clock::advance`] moves it.
    pub fn fixed(at: Millis) -> Self {
        Self(Inner::Fixed(Arc::new(AtomicI64::new(at.0))))
    }

    /// The time now.
    pub fn now(&self) -> Millis {
        match &self.0 {
            Inner::System => system_now(),
            Inner::Fixed(at) => Millis(at.load(Ordering::SeqCst)),
        }
    }

    /// Moves a fixed clock to `at`. Has no effect on a system clock.
    pub fn set(&self, at: Millis) {
        if let Inner::Fixed(cell) = &self.0 {
            cell.store(at.0, Ordering::SeqCst);
        }
    }

    /// Moves a fixed clock forward by `by`. Has no effect on a system clock.
    pub fn advance(&self, by: Duration) {
        if let Inner::Fixed(cell) = &self.0 {
            cell.fetch_add(millis(by), Ordering::SeqCst);
        }
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "the simulator stands for another company's servers: it shares no clock with ours"
)]
fn system_now() -> Millis {
    let nanos = OffsetDateTime::now_utc().unix_timestamp_nanos();
    Millis(i64::try_from(nanos / 1_000_000).unwrap_or(i64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_moment_in_every_form() {
        let moment = Millis(1_682_712_331_093);
        assert_eq!(moment.rfc3339(), "2023-04-28T20:05:31.093Z");
        assert_eq!(moment.spaced(), "2023-04-28 20:05:31.093");
        assert_eq!(moment.http_date(), "Fri, 28 Apr 2023 20:05:31 GMT");
        assert_eq!(Millis::parse_zulu("2023-04-28T20:05:31.093Z"), Some(moment));
        assert_eq!(Millis::parse_zulu("2023-04-28T20:05:31.093+00:00"), None);
        assert_eq!(Millis::parse_zulu("Z"), None);
    }
}
