//! What a reading means for a row: the time rule, and nothing else. Pure.
//!
//! A reading says what an object was like at its time T (the server's clock less the margin), and it is merged into the
//! registers like any event. So the only question is whether it would win there:
//!
//! - If it would, the difference is drift, and one appended observation repairs it.
//! - If it would not because something newer than T is known, the difference is too young: the reading may be older
//!   than what an event has just reported. Nothing is appended; the object is read again once a reading can be newer.
//! - If it would not, although nothing newer than T is known, `WorkOS` shows an older version than it reported before.
//!   That is reported and left alone: no observation could change it, and as drift it would be reported forever.
//!
//! So a sweep in flight can neither resurrect what was just removed nor remove what was just created (the ABA cases).

use schema::timestamp::Timestamp;

use crate::difference::Kind;

/// The row of one object or membership, as far as it matters to a reading that has it. The default: there is none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct RowState {
    /// Whether readers see it.
    pub shown: bool,
    /// The latest time at which it, or anything it depends on, was gone. It is shown only if it was seen later.
    pub void_at: Option<Timestamp>,
    /// The version of its attributes: the object's `updated_at`, and when that version was observed.
    pub version: Option<(Timestamp, Timestamp)>,
}

/// What follows from comparing a reading with the row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Nothing to do.
    Same,
    /// The tables are wrong, and this reading repairs them.
    Drift(Kind),
    /// Only a reading that speaks for a time later than this timestamp can tell.
    TooYoung(Kind, Timestamp),
    /// `WorkOS` shows an older version than it reported before.
    Older,
}

/// The times of a reading.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Times {
    /// The time it speaks for.
    pub at: Timestamp,
    /// When it is received. No object speaks for a later time.
    pub received_at: Timestamp,
    /// The object's own `updated_at`, or what stands in for it.
    pub updated_at: Option<Timestamp>,
}

/// The verdict on an object that was there. `differs`: whether any column that readers see does.
pub fn there(row: &RowState, differs: bool, times: Times) -> Verdict {
    let Times {
        at,
        received_at,
        updated_at,
    } = times;
    if !row.shown {
        return match row.void_at {
            Some(void_at) if void_at >= at => Verdict::TooYoung(Kind::Missing, void_at),
            _ => Verdict::Drift(Kind::Missing),
        };
    }
    if !differs {
        return Verdict::Same;
    }
    let (shown_version, observed_at) = match row.version {
        // At equal versions, ids would decide, and that is no reason to append.
        Some(version) if (updated_at.unwrap_or(at).min(at.max(received_at)), at) <= version => version,
        _ => return Verdict::Drift(Kind::Differs),
    };
    let newest = shown_version.max(observed_at);
    if newest >= at {
        Verdict::TooYoung(Kind::Differs, newest)
    } else {
        Verdict::Older
    }
}

/// The verdict on an object that was not there at `at`. `seen_at`: when it was last seen; `None` if readers do not see
/// it.
pub fn gone(seen_at: Option<Timestamp>, at: Timestamp) -> Verdict {
    match seen_at {
        None => Verdict::Same,
        Some(seen_at) if seen_at > at => Verdict::TooYoung(Kind::Extra, seen_at),
        // At equal times, gone wins.
        Some(_) => Verdict::Drift(Kind::Extra),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_micros(seconds * 1_000_000)
    }

    /// A reading as of 100, received at 160.
    fn read(updated_at: Option<i64>) -> Times {
        Times {
            at: at(100),
            received_at: at(160),
            updated_at: updated_at.map(at),
        }
    }

    fn shown(version: (i64, i64)) -> RowState {
        RowState {
            shown: true,
            void_at: None,
            version: Some((at(version.0), at(version.1))),
        }
    }

    #[test]
    fn what_was_never_known_is_drift_and_what_was_just_removed_is_too_young() {
        let removed = |seconds| RowState {
            void_at: Some(at(seconds)),
            ..RowState::default()
        };
        for (row, verdict) in [
            (RowState::default(), Verdict::Drift(Kind::Missing)),
            (removed(99), Verdict::Drift(Kind::Missing)),
            // At equal times, gone wins, so this reading would change nothing.
            (removed(100), Verdict::TooYoung(Kind::Missing, at(100))),
            (removed(130), Verdict::TooYoung(Kind::Missing, at(130))),
        ] {
            assert_eq!(there(&row, true, read(Some(5))), verdict, "{row:?}");
        }
    }

    #[test]
    fn what_looks_different_is_drift_only_if_the_reading_would_win() {
        for (version, updated_at, verdict) in [
            // A newer version wins whenever it was read.
            ((50, 130), Some(60), Verdict::Drift(Kind::Differs)),
            // The same version (a role, say) wins if observed later.
            ((50, 60), Some(50), Verdict::Drift(Kind::Differs)),
            ((50, 130), Some(50), Verdict::TooYoung(Kind::Differs, at(130))),
            ((50, 100), Some(50), Verdict::TooYoung(Kind::Differs, at(100))),
            // An older version than the one an event has just reported: a lagging read.
            ((120, 121), Some(50), Verdict::TooYoung(Kind::Differs, at(121))),
            // Reported long before: WorkOS contradicts itself.
            ((80, 81), Some(50), Verdict::Older),
            // An object dated in the future speaks for no later time than its receipt.
            ((161, 20), Some(999), Verdict::TooYoung(Kind::Differs, at(161))),
            // An object without times speaks for the reading's time.
            ((50, 60), None, Verdict::Drift(Kind::Differs)),
        ] {
            let row = shown(version);
            assert_eq!(
                there(&row, true, read(updated_at)),
                verdict,
                "{version:?} {updated_at:?}"
            );
            assert_eq!(there(&row, false, read(updated_at)), Verdict::Same);
        }
    }

    #[test]
    fn what_is_not_there_is_drift_unless_it_was_seen_since() {
        for (seen_at, verdict) in [
            (Some(99), Verdict::Drift(Kind::Extra)),
            (Some(100), Verdict::Drift(Kind::Extra)),
            (Some(101), Verdict::TooYoung(Kind::Extra, at(101))),
            (None, Verdict::Same),
        ] {
            assert_eq!(gone(seen_at.map(at), at(100)), verdict, "{seen_at:?}");
        }
    }
}
