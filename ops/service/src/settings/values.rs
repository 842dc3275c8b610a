//! Parsers for clap's `value_parser`, for values such as `15s`, `960KiB` and `10%`.

use std::fmt;
use std::time::Duration;

/// Why a value is refused, worded to follow the value in a sentence.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ValueError {
    /// Not written as a duration.
    #[error("is not a duration: write it like 15s, 5m, 1h or 30d")]
    NotADuration,
    /// Zero, where that would make no sense.
    #[error("must be longer than zero")]
    Zero,
    /// Longer than a century: certainly a mistake, and time arithmetic would overflow.
    #[error("is too long")]
    TooLong,
    /// Not written as a size.
    #[error("is not a size: write it like 4096, 960KiB or 10GiB")]
    NotASize,
    /// Not written as a percentage.
    #[error("is not a percentage from 0% to 100%: write it like 10% or 2.5%")]
    NotAPercentage,
}

const CENTURY: Duration = Duration::from_hours(24 * 36_525);

/// A duration longer than zero: `250ms`, `15s`, `5m`, `1h`, `30d`, also `1h 30m`. There are no other units.
pub fn duration(text: &str) -> Result<Duration, ValueError> {
    match duration_or_off(text)? {
        Duration::ZERO => Err(ValueError::Zero),
        duration => Ok(duration),
    }
}

/// A duration, or `0`, whose meaning depends on the setting ("off", say, or "keep").
pub fn duration_or_off(text: &str) -> Result<Duration, ValueError> {
    let duration = match text.trim() {
        "0" => Duration::ZERO,
        text if has_only_our_units(text) => {
            humantime::parse_duration(text).map_err(|_| ValueError::NotADuration)?
        }
        _ => return Err(ValueError::NotADuration),
    };
    if duration > CENTURY {
        Err(ValueError::TooLong)
    } else {
        Ok(duration)
    }
}

/// Whether all units are documented ones. The parser knows more, among them `M` for months, which is soon written for
/// minutes.
fn has_only_our_units(text: &str) -> bool {
    text.split(|c: char| !c.is_alphabetic())
        .all(|unit| matches!(unit, "" | "ms" | "s" | "m" | "h" | "d"))
}

/// A number of bytes: `4096`, `960KiB`, `10GiB`, `1GB` (a billion).
pub fn size(text: &str) -> Result<u64, ValueError> {
    text.trim()
        .parse::<bytesize::ByteSize>()
        .map(|size| size.as_u64())
        .map_err(|_| ValueError::NotASize)
}

/// A percentage from `0%` to `100%`, rounded to two decimals.
pub fn percent(text: &str) -> Result<Percent, ValueError> {
    let number: f64 = text
        .trim()
        .strip_suffix('%')
        .and_then(|n| n.trim_end().parse().ok())
        .ok_or(ValueError::NotAPercentage)?;
    if !(0.0..=100.0).contains(&number) {
        return Err(ValueError::NotAPercentage);
    }
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "0 to 10,000, checked above"
    )]
    let hundredths = (number * 100.0).round() as u32;
    Ok(Percent { hundredths })
}

/// A share of a whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Percent {
    hundredths: u32,
}

impl Percent {
    /// Whether `part` is more than this share of `whole`. Exact, in integers.
    pub fn is_exceeded_by(self, part: u64, whole: u64) -> bool {
        u128::from(part) * 10_000 > u128::from(whole) * u128::from(self.hundredths)
    }
}

impl fmt::Display for Percent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}%", f64::from(self.hundredths) / 100.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_written_for_people() {
        for (text, seconds) in [
            ("15s", 15),
            ("5m", 300),
            ("1h", 3600),
            ("30d", 2_592_000),
            ("1h 30m", 5400),
            ("1h30m", 5400),
            (" 15 s ", 15),
        ] {
            assert_eq!(duration(text), Ok(Duration::from_secs(seconds)), "{text}");
            assert_eq!(duration_or_off(text), Ok(Duration::from_secs(seconds)), "{text}");
        }
        assert_eq!(duration("250ms"), Ok(Duration::from_millis(250)));
        assert_eq!(duration_or_off("0"), Ok(Duration::ZERO));
        assert_eq!(duration_or_off("0s"), Ok(Duration::ZERO));
        assert_eq!(duration("0"), Err(ValueError::Zero));
        assert_eq!(duration("0m"), Err(ValueError::Zero));
    }

    #[test]
    fn what_is_no_duration_is_refused() {
        for text in [
            "",
            " ",
            "15",
            "-5s",
            "5 parsecs",
            "1.5.2h",
            "s",
            "∞",
            "15s!",
            "99999999999999999999s",
            "5M",
            "1h 5M",
            "1w",
            "1y",
            "5min",
            "5 minutes",
            "3days",
            "5S",
            "1us",
            "1µs",
            "1ns",
        ] {
            assert_eq!(duration(text), Err(ValueError::NotADuration), "{text}");
        }
        assert_eq!(duration("40000d"), Err(ValueError::TooLong));
    }

    #[test]
    fn sizes_are_written_for_people() {
        for (text, bytes) in [
            ("0", 0),
            ("4096", 4096),
            ("960KiB", 983_040),
            ("10 GiB", 10 << 30),
            ("1GB", 1_000_000_000),
        ] {
            assert_eq!(size(text), Ok(bytes), "{text}");
        }
        for text in ["", "KiB", "-1", "10 gibberish", "0x10", "1.5.2KiB"] {
            assert_eq!(size(text), Err(ValueError::NotASize), "{text}");
        }
    }

    #[test]
    fn percentages_are_exact() {
        let ten = percent("10%").unwrap();
        assert!(!ten.is_exceeded_by(10, 100));
        assert!(ten.is_exceeded_by(11, 100));
        assert!(percent("0%").unwrap().is_exceeded_by(1, u64::MAX));
        assert!(!percent("100%").unwrap().is_exceeded_by(u64::MAX, u64::MAX));
        let fine = percent(" 2.5 % ").unwrap();
        assert_eq!(fine.to_string(), "2.5%");
        assert!(fine.is_exceeded_by(26, 1000) && !fine.is_exceeded_by(25, 1000));
        for text in ["10", "%", "-1%", "101%", "NaN%", "inf%", "ten%", ""] {
            assert_eq!(percent(text), Err(ValueError::NotAPercentage), "{text}");
        }
    }
}
