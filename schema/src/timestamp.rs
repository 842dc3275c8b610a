//! A point in time, in Postgres's resolution: microseconds.

use std::fmt;
use std::time::Duration;

use time::format_description::well_known::Rfc3339;
use time::{OffsetDateTime, UtcOffset};

/// Microseconds since the Unix epoch.
///
/// Parsing cuts off finer digits. Postgres would round them away, and two times that are equal in Postgres must be equal
/// in memory too. Otherwise the fold could pick a different winner than the table does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp(i64);

impl Timestamp {
    /// A time from microseconds since the Unix epoch.
    pub const fn from_micros(micros: i64) -> Self {
        Self(micros)
    }

    /// Microseconds since the Unix epoch.
    pub const fn as_micros(self) -> i64 {
        self.0
    }

    /// Parses RFC 3339 and the variants that WorkOS also sends: a space instead of the `T`, and no zone (meaning UTC).
    pub fn parse(text: &str) -> Option<Self> {
        let text = text.trim();
        let bytes = text.as_bytes();
        if bytes.len() < 19 || !text.is_ascii() {
            return None;
        }
        let zoned = matches!(bytes[bytes.len() - 1], b'Z' | b'z') || text[19..].contains(['+', '-']);
        let moment = if zoned && matches!(bytes[10], b'T' | b't') {
            OffsetDateTime::parse(text, &Rfc3339)
        } else {
            let zone = if zoned { "" } else { "Z" };
            OffsetDateTime::parse(&format!("{}T{}{zone}", &text[..10], &text[11..]), &Rfc3339)
        };
        // The year must be 0000 to 9999 in UTC too, or the time could not be stored or displayed.
        let moment = moment.ok()?.checked_to_offset(UtcOffset::UTC)?;
        (moment.year() >= 0).then(|| moment.into())
    }

    /// The time `duration` later, in whole microseconds; the latest possible time if there is none so late.
    #[must_use]
    pub fn plus(self, duration: Duration) -> Self {
        Self(self.0.saturating_add(micros(duration)))
    }

    /// The time `duration` earlier, in whole microseconds; the earliest possible time if there is none so early.
    #[must_use]
    pub fn minus(self, duration: Duration) -> Self {
        Self(self.0.saturating_sub(micros(duration)))
    }

    /// How much later this time is than `earlier`; zero if it is not later.
    pub fn since(self, earlier: Self) -> Duration {
        let micros = self.0.saturating_sub(earlier.0);
        Duration::from_micros(u64::try_from(micros).unwrap_or(0))
    }
}

impl From<OffsetDateTime> for Timestamp {
    fn from(moment: OffsetDateTime) -> Self {
        let micros = moment.unix_timestamp_nanos().div_euclid(1_000);
        Self(i64::try_from(micros).unwrap_or(if micros < 0 { i64::MIN } else { i64::MAX }))
    }
}

impl From<Timestamp> for OffsetDateTime {
    /// A time outside the years ±9999 becomes the Unix epoch. [`Timestamp::parse`] never returns one.
    fn from(moment: Timestamp) -> Self {
        OffsetDateTime::from_unix_timestamp_nanos(i128::from(moment.0) * 1_000)
            .unwrap_or(OffsetDateTime::UNIX_EPOCH)
    }
}

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = OffsetDateTime::from(*self)
            .format(&Rfc3339)
            .map_err(|_| fmt::Error)?;
        f.write_str(&text)
    }
}

fn micros(duration: Duration) -> i64 {
    i64::try_from(duration.as_micros()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_every_form_workos_sends() {
        let expected = Timestamp::parse("2023-04-28T20:05:31.093Z").unwrap();
        for form in [
            "2023-04-28 20:05:31.093",
            "2023-04-28T20:05:31.093",
            "2023-04-28 20:05:31.093Z",
            "2023-04-28t20:05:31.093z",
            "2023-04-28T22:05:31.093+02:00",
            "2023-04-28 15:05:31.093-05:00",
            " 2023-04-28T20:05:31.093000999Z ",
        ] {
            assert_eq!(Timestamp::parse(form), Some(expected), "{form}");
        }
    }

    #[test]
    fn refuses_what_is_no_moment() {
        for form in [
            "",
            "yesterday",
            "2023-04-28",
            "2023-13-01T00:00:00Z",
            "1682712331",
            "２０23-04-28T20:05:31Z",
            "9999-12-31T23:59:59-23:59",
            "0000-01-01T00:00:00+23:59",
        ] {
            assert_eq!(Timestamp::parse(form), None, "{form}");
        }
    }

    #[test]
    fn moves_by_durations_within_its_range() {
        let (noon, minute) = (Timestamp::from_micros(43_200_000_000), Duration::from_mins(1));
        assert_eq!(noon.plus(minute).since(noon), minute);
        assert_eq!(noon.plus(minute).minus(minute), noon);
        assert_eq!(noon.since(noon.plus(minute)), Duration::ZERO);
        let (first, last) = (Timestamp::from_micros(i64::MIN), Timestamp::from_micros(i64::MAX));
        assert_eq!(
            (noon.minus(Duration::MAX), last.plus(minute)),
            (Timestamp::from_micros(43_200_000_000 - i64::MAX), last)
        );
        assert_eq!(last.since(first), Duration::from_micros(i64::MAX.unsigned_abs()));
    }

    #[test]
    fn shows_itself_as_it_is_read() {
        let moment = Timestamp::parse("2023-04-28T20:05:31.093001Z").unwrap();
        assert_eq!(Timestamp::parse(&moment.to_string()), Some(moment));
        assert_eq!(
            OffsetDateTime::from(moment).unix_timestamp_nanos(),
            1_682_712_331_093_001_000
        );
    }
}
