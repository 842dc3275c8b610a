//! How far back the log reaches, and so what a build from it can know.

use std::time::Duration;

use journal::{Identity, Journal};
use schema::timestamp::Timestamp;
use sqlx::PgConnection;
use time::OffsetDateTime;

use crate::beside::Error;
use crate::holes::EVERYTHING;
use crate::store::losses;

/// How far clocks may differ (WorkOS's, ours and the broker's) in a comparison.
const CLOCKS: Duration = Duration::from_mins(1);

/// How far back the log reaches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reach {
    /// To its first record, and it never lost any record.
    Beginning,
    /// What was known before this moment may no longer be in any log.
    Since(Timestamp),
}

impl Reach {
    /// How far back the log reaches: to its first entry, to just after the newest entry lost from its middle, or to the last
    /// rewind, whichever is latest. A lost entry (a flipped bit in the broker's store, say) may have been somebody's removal.
    /// An empty log reaches only to `now`.
    pub(crate) async fn of(
        connection: &mut PgConnection,
        journal: &Journal,
        log: Identity,
        now: Timestamp,
    ) -> Result<Self, Error> {
        let begins = match log.first_seq {
            0 | 1 => None,
            seq if losses::erasures_took_all_before(connection, log.created, seq).await? => None,
            seq => Some(seq),
        };
        let missing = journal.missing().await?;
        let lost = losses::newest(connection, log.created, &missing).await?;
        let complete_from = match begins.max(lost) {
            None => None,
            Some(seq) => {
                let first = journal.first_at(seq, EVERYTHING).await?;
                Some(first.map_or(now, |entry| entry.appended_at))
            }
        };
        Ok(match complete_from.max(losses::last_noticed(connection).await?) {
            None => Self::Beginning,
            Some(cut) => Self::Since(cut),
        })
    }

    /// The moment up to which the log may know less than the live rows.
    pub fn cut(self) -> Option<OffsetDateTime> {
        match self {
            Self::Beginning => None,
            Self::Since(at) => Some(OffsetDateTime::from(at) + CLOCKS),
        }
    }

    /// Whether a loss just before the entry stored `at` is already accounted for.
    pub(crate) fn knows(self, at: Timestamp) -> bool {
        matches!(self, Self::Since(since) if at <= since)
    }

    /// The reach to assume for seeding once more, if the log reached to `before` when seeding began, and seeding took `took`.
    /// `None` if whatever was dropped since is within the tolerance for clocks.
    pub(crate) fn beyond(self, before: Self, took: Duration) -> Option<Self> {
        let Self::Since(now) = self else { return None };
        match before {
            Self::Since(before) if now <= before.plus(CLOCKS / 2) => None,
            // The log keeps dropping entries while seeding is done once more.
            _ => Some(Self::Since(now.plus(took * 2))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_log_drops_while_rows_are_put_in_moves_its_beginning() {
        let since = |seconds: i64| Reach::Since(Timestamp::from_micros(seconds * 1_000_000));
        let took = Duration::from_secs(10);
        for (before, now, further) in [
            (Reach::Beginning, Reach::Beginning, None),
            (Reach::Beginning, since(100), Some(since(120))),
            (since(100), since(100), None),
            (since(100), since(130), None),
            (since(100), since(131), Some(since(151))),
            (since(151), since(141), None),
            // The hole has aged out, along with what was recorded about it.
            (since(100), Reach::Beginning, None),
        ] {
            assert_eq!(now.beyond(before, took), further, "{before:?} {now:?}");
        }
    }
}
