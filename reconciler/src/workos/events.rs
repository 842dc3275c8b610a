//! The Events API, asked in whichever form it accepts. The documentation, the SDKs and the live API disagree: types as
//! `events[]=a&events[]=b` or `events=a,b`, a cursor with `range_start` or without, `order` obeyed or ignored. A form
//! that was refused once is not tried again. A cursor is first sent without `range_start`: that form is the documented
//! one, and an API that ignored the cursor beside it would return its first page forever.

use schema::event::TYPES;
use schema::timestamp::Timestamp;
use time::OffsetDateTime;
use time::macros::format_description;

use super::answer::Page;
use super::client::{Api, ApiError, Ask, Endpoint};
use super::pages::PAGE;

/// The types that every API knows. One that does not know one of [`TYPES`] refuses the whole request.
const CORE: &[&str] = &[
    "dsync.activated",
    "dsync.deleted",
    "dsync.user.created",
    "dsync.user.updated",
    "dsync.user.deleted",
    "dsync.group.created",
    "dsync.group.updated",
    "dsync.group.deleted",
    "dsync.group.user_added",
    "dsync.group.user_removed",
];

/// The time range of the events asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Range {
    /// From this time on.
    pub start: Timestamp,
    /// Up to this time; `None`: up to now.
    pub end: Option<Timestamp>,
}

/// The form of request that the API accepts, as far as is known.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Ways {
    /// Types are joined by commas instead of sent as one parameter each.
    joined: bool,
    /// Only the types that every API knows are sent.
    core_only: bool,
    /// A cursor is sent with `range_start`.
    ranged_cursor: bool,
}

impl Ways {
    /// The next form in which to ask for a first page; `None`: all were refused.
    fn other(self) -> Option<Self> {
        match (self.joined, self.core_only) {
            (false, _) => Some(Self { joined: true, ..self }),
            (true, false) => Some(Self {
                joined: false,
                core_only: true,
                ..self
            }),
            (true, true) => None,
        }
    }

    fn query(self, range: &Range, after: Option<&str>) -> Vec<(&'static str, String)> {
        let types = if self.core_only { CORE } else { TYPES };
        let mut query: Vec<(&str, String)> = if self.joined {
            vec![("events", types.join(","))]
        } else {
            types
                .iter()
                .map(|kind| ("events[]", (*kind).to_owned()))
                .collect()
        };
        query.push(("limit", PAGE.to_string()));
        query.push(("order", "asc".to_owned()));
        if after.is_none() || self.ranged_cursor {
            query.push(("range_start", zulu(range.start)));
        }
        query.extend(range.end.map(|end| ("range_end", zulu(end))));
        query.extend(after.map(|after| ("after", after.to_owned())));
        query
    }
}

/// A page of events, or a refused cursor.
#[derive(Debug)]
pub enum Listed {
    /// The page.
    Page(Page),
    /// The cursor was refused: its event is no longer kept.
    CursorRefused,
}

impl Api {
    /// The events of `range` after the event `after`, oldest first. Finds out which form is accepted, and keeps that in
    /// `ways`.
    pub async fn events(
        &self,
        ways: &mut Ways,
        range: &Range,
        after: Option<&str>,
    ) -> Result<Listed, ApiError> {
        let mut way = *ways;
        loop {
            let ask = Ask {
                endpoint: Endpoint::Events,
                id: None,
                query: way.query(range, after),
                directory: None,
            };
            let refusal = match self.get(&ask).await {
                Ok(answer) => {
                    *ways = way;
                    return Ok(Listed::Page(Page::of(&answer)?));
                }
                Err(refusal @ ApiError::Refused(_)) => refusal,
                Err(error) => return Err(error),
            };
            way = match after {
                // The first page was accepted in this form. So the API refuses the cursor, or a cursor alone.
                Some(_) if way.ranged_cursor => return Ok(Listed::CursorRefused),
                Some(_) => Ways {
                    ranged_cursor: true,
                    ..way
                },
                None => way.other().ok_or(refusal)?,
            };
        }
    }
}

/// A time in the only format that the API accepts: with `Z`, in milliseconds.
fn zulu(moment: Timestamp) -> String {
    let format = format_description!("[year]-[month]-[day]T[hour]:[minute]:[second].[subsecond digits:3]Z");
    OffsetDateTime::from(moment).format(format).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_way_of_asking_is_tried_once() {
        let mut ways = vec![Ways::default()];
        while let Some(next) = ways[ways.len() - 1].other() {
            ways.push(next);
        }
        let tried: Vec<_> = ways.iter().map(|way| (way.joined, way.core_only)).collect();
        assert_eq!(
            tried,
            [(false, false), (true, false), (false, true), (true, true)]
        );
    }

    #[test]
    fn a_question_names_its_range_in_the_z_form() {
        let range = Range {
            start: Timestamp::parse("2026-01-01T00:00:00.5+01:00").unwrap(),
            end: None,
        };
        let way = Ways {
            joined: true,
            core_only: true,
            ranged_cursor: false,
        };
        let first = way.query(&range, None);
        assert!(first.contains(&("range_start", "2025-12-31T23:00:00.500Z".to_owned())));
        assert!(first[0].1.starts_with("dsync.activated,dsync.deleted,"));
        let next = way.query(&range, Some("event_1"));
        assert!(next.iter().all(|(name, _)| *name != "range_start"));
        assert!(next.contains(&("after", "event_1".to_owned())));
        let ranged = Ways {
            ranged_cursor: true,
            ..way
        };
        let next = ranged.query(&range, Some("event_1"));
        assert!(next.contains(&first[first.len() - 1]));
    }
}
