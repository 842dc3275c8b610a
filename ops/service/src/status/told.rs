//! The values on a status screen: each as JSON, and as text for people.

use std::time::Duration;

use indicatif::HumanCount;
use serde_json::{Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

/// A value as JSON, and as text for people.
#[derive(Clone, Debug, PartialEq)]
pub struct Told {
    pub(super) json: Value,
    pub(super) shown: String,
}

impl Told {
    /// A text, or nothing.
    pub fn text(text: Option<impl Into<String>>) -> Self {
        let text = text.map(Into::into);
        Self {
            shown: text.clone().unwrap_or_else(|| "–".to_owned()),
            json: json!(text),
        }
    }

    /// A number of things.
    pub fn count(count: u64) -> Self {
        Self {
            json: json!(count),
            shown: HumanCount(count).to_string(),
        }
    }

    /// A number of things that may be too many to count, so that counting stopped at `most` + 1. That number stands for
    /// itself and any larger one, in JSON too.
    pub fn counted(count: u64, most: u64) -> Self {
        if count <= most {
            return Self::count(count);
        }
        Self {
            json: json!(count),
            shown: format!("over {}", HumanCount(most)),
        }
    }

    /// A size in bytes.
    pub fn bytes(bytes: u64) -> Self {
        Self {
            json: json!(bytes),
            shown: indicatif::HumanBytes(bytes).to_string(),
        }
    }

    /// A length of time.
    pub fn duration(duration: Duration) -> Self {
        Self {
            json: json!(duration.as_secs_f64()),
            shown: spoken(duration.as_secs()),
        }
    }

    /// A time, shown as how long ago it was or how soon it will be.
    pub fn moment(at: Option<OffsetDateTime>, now: OffsetDateTime) -> Self {
        let Some(at) = at else {
            return Self::text(None::<String>);
        };
        let seconds = (now - at).whole_seconds();
        let length = spoken(seconds.unsigned_abs());
        Self {
            json: json!(at.format(&Rfc3339).ok()),
            shown: if seconds < 0 {
                format!("in {length}")
            } else {
                format!("{length} ago")
            },
        }
    }
}

/// A number of seconds in the unit that suits its size.
fn spoken(seconds: u64) -> String {
    match seconds {
        0..120 => format!("{seconds} s"),
        120..7_200 => format!("{} min", seconds / 60),
        7_200..172_800 => format!("{} h", seconds / 3_600),
        _ => format!("{} d", seconds / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_too_many_to_count_is_told_as_such() {
        let (most, more) = (Told::counted(10_000, 10_000), Told::counted(10_001, 10_000));
        assert_eq!((most.shown.as_str(), &most.json), ("10,000", &json!(10_000)));
        assert_eq!((more.shown.as_str(), &more.json), ("over 10,000", &json!(10_001)));
    }

    #[test]
    fn moments_are_told_by_their_distance() {
        let now = OffsetDateTime::UNIX_EPOCH + Duration::from_secs(1_000_000);
        for (seconds, shown) in [
            (0, "0 s ago"),
            (119, "119 s ago"),
            (121, "2 min ago"),
            (8_000, "2 h ago"),
            (900_000, "10 d ago"),
            (-5, "in 5 s"),
        ] {
            let at = now - time::Duration::seconds(seconds);
            assert_eq!(Told::moment(Some(at), now).shown, shown);
        }
    }
}
