//! The Events API: lists what was emitted, oldest first whatever `order` says. Some events become visible only after a
//! while.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::{answer::Answer, call::Query, paging::Page};
use crate::{clock::Millis, event::Event, ids::hash};

const DAY: Duration = Duration::from_hours(24);

/// How the Events API behaves.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct EventsOptions {
    /// The longest time until an event becomes visible. The delay differs by event, so events do not appear in the
    /// order of ids. Zero shows them at once.
    pub holdback: Duration,
    /// How far back events are kept.
    pub retention: Duration,
    /// The longest range that one request may ask for.
    pub longest_range: Duration,
    /// Whether `after` together with `range_start` is refused.
    pub after_excludes_range: bool,
    /// Whether `after` is ignored when given together with `range_start`.
    pub range_overrides_after: bool,
    /// Whether `after` without `range_start` is refused.
    pub after_needs_range: bool,
}

impl Default for EventsOptions {
    fn default() -> Self {
        Self {
            holdback: Duration::ZERO,
            retention: 90 * DAY,
            longest_range: 30 * DAY,
            after_excludes_range: false,
            range_overrides_after: false,
            after_needs_range: false,
        }
    }
}

impl EventsOptions {
    fn visible(&self, event: &Event, now: Millis) -> bool {
        event.created_at >= now.minus(self.retention)
            && (self.holdback.is_zero() || now >= event.created_at.plus(self.delay(&event.id)))
    }

    /// How long this event is held back; one in four for the whole time.
    fn delay(&self, id: &str) -> Duration {
        let eighths = u32::try_from(hash(0x5eed, id) % 11).unwrap_or(0).min(8);
        self.holdback * eighths / 8
    }
}

/// Answers `GET /events`. `events` are in the order of their ids.
pub(crate) fn answer(events: &[Event], options: &EventsOptions, now: Millis, query: &Query) -> Answer {
    list(events, options, now, query).unwrap_or_else(|refusal| refusal)
}

fn list(events: &[Event], options: &EventsOptions, now: Millis, query: &Query) -> Result<Answer, Answer> {
    let kinds = query.event_types();
    if kinds.is_empty() {
        return Err(Answer::unprocessable("events", "Validation failed."));
    }
    let limit = query.page()?.limit;
    let (start, end) = range(options, now, query)?;
    let organization = query.get("organization_id");
    let wanted = |event: &&Event| {
        kinds.contains(&event.kind.as_str())
            && start.is_none_or(|start| event.created_at >= start)
            && end.is_none_or(|end| event.created_at < end)
            && organization.is_none_or(|wanted| event.organization.as_deref() == Some(wanted))
            && options.visible(event, now)
    };
    let named = query
        .get("after")
        .filter(|_| !(options.range_overrides_after && start.is_some()));
    let after = cursor(events, options, now, named)?;
    let before = cursor(events, options, now, query.get("before"))?;
    let first = after.map_or(0, |index| index + 1);
    let last = before.unwrap_or(events.len()).max(first);
    let window = events[first..last].iter().filter(wanted);
    let mut found: Vec<&Event> = if before.is_some() && after.is_none() {
        window.rev().take(limit + 1).collect()
    } else {
        window.take(limit + 1).collect()
    };
    let more = found.len() > limit;
    found.truncate(limit);
    let backwards = before.is_some() && after.is_none();
    if backwards {
        found.reverse();
    }
    let id = |event: &&Event| event.id.clone();
    let (newest, oldest) = (found.last().map(id), found.first().map(id));
    let page = Page {
        ids: Vec::new(),
        before: oldest
            .as_deref()
            .filter(|_| if backwards { more } else { after.is_some() }),
        after: newest.as_deref().filter(|_| backwards || more),
    };
    let bodies: Vec<&RawValue> = found.iter().map(|event| &*event.raw).collect();
    Ok(Answer::list(&bodies, &page))
}

/// The range that is asked for. Without a start or a cursor, it begins thirty days before its end.
fn range(
    options: &EventsOptions,
    now: Millis,
    query: &Query,
) -> Result<(Option<Millis>, Option<Millis>), Answer> {
    let (start, end) = (query.moment("range_start")?, query.moment("range_end")?);
    let cursor = query.get("after").or(query.get("before"));
    if options.after_excludes_range && cursor.is_some() && start.is_some() {
        return Err(Answer::bad_request("after and range_start exclude each other."));
    }
    if options.after_needs_range && cursor.is_some() && start.is_none() {
        return Err(Answer::bad_request("after needs range_start."));
    }
    let until = end.unwrap_or(now);
    match start {
        Some(start) if start > until => Err(Answer::bad_request("range_start is later than range_end.")),
        Some(start) if start < until.minus(options.longest_range) => {
            Err(Answer::bad_request("The range is longer than 30 days."))
        }
        None if cursor.is_none() => Ok((Some(until.minus(options.longest_range)), end)),
        start => Ok((start, end)),
    }
}

/// The position of a cursor. A cursor that never existed, or is no longer retained, is refused.
fn cursor(
    events: &[Event],
    options: &EventsOptions,
    now: Millis,
    id: Option<&str>,
) -> Result<Option<usize>, Answer> {
    let Some(id) = id else { return Ok(None) };
    let found = events.binary_search_by(|event| event.id.as_str().cmp(id)).ok();
    let kept = found.filter(|index| events[*index].created_at >= now.minus(options.retention));
    kept.map(Some)
        .ok_or_else(|| Answer::bad_request("The cursor is not the id of an event that is retained."))
}
