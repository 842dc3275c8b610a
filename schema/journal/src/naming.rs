//! The message ids under which a record is published: its own, and others if the broker does not decide on that one.
//!
//! A cluster's leader notes the id of each message it receives. Until that message is stored, or known not to be, the
//! leader answers another one with the same id neither "stored" nor "duplicate", but "in process". Usually this takes
//! milliseconds. But a leader that was split off may keep such a note of a message that was lost. When it leads again,
//! it refuses that id for the whole duplicate window, which is days (seen with NATS 2.15). So that the record is not
//! refused, it is stored under another name, from which its id can be read. At worst the log then holds it twice,
//! which changes nothing.

use std::borrow::Cow;
use std::time::{Duration, Instant};

use schema::ids::is_id;

/// How long the broker may take to decide on one name. An append's 3 seconds leave room for three.
const DECIDES_WITHIN: Duration = Duration::from_secs(1);

/// The name that a record is published under now.
#[derive(Debug)]
pub(crate) struct Naming {
    nth: u32,
    /// Since when the broker has not decided on this name.
    undecided_since: Option<Instant>,
}

impl Naming {
    /// The record's own id.
    pub(crate) const FIRST: Naming = Naming {
        nth: 1,
        undecided_since: None,
    };

    /// The message id for the record with this id: itself, then `<id>.2`, `<id>.3`…
    pub(crate) fn of<'a>(&self, id: &'a str) -> Cow<'a, str> {
        match self.nth {
            1 => Cow::Borrowed(id),
            nth => Cow::Owned(format!("{id}.{nth}")),
        }
    }

    /// Records that, at `now`, the broker had not decided on this name. Moves on to the next name if that has lasted too
    /// long. Returns whether it did.
    pub(crate) fn undecided(&mut self, now: Instant) -> bool {
        let since = *self.undecided_since.get_or_insert(now);
        let long = now.duration_since(since) >= DECIDES_WITHIN;
        if long {
            self.nth += 1;
            self.undecided_since = None;
        }
        long
    }
}

/// The id of the record that was published under this message id. No id contains a dot. A message id that is not ours is
/// returned as it is.
pub(crate) fn record_of(message_id: &str) -> &str {
    match message_id.split_once('.') {
        Some((id, nth)) if is_id(id) && nth.parse::<u32>().is_ok() => id,
        _ => message_id,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_next_name_is_taken_when_the_broker_does_not_decide_for_long() {
        let (mut naming, began) = (Naming::FIRST, Instant::now());
        let mut names = Vec::new();
        for tenth in 0..25 {
            naming.undecided(began + Duration::from_millis(100) * tenth);
            names.push(naming.of("event_1").into_owned());
        }
        names.dedup();
        assert_eq!(names, ["event_1", "event_1.2", "event_1.3"]);
    }

    #[test]
    fn a_records_id_is_told_from_each_of_its_names() {
        for (name, id) in [
            ("event_1", "event_1"),
            ("event_1.2", "event_1"),
            ("event_1.13", "event_1"),
            // Written by others.
            ("", ""),
            ("event.x", "event.x"),
            ("event.2.2", "event.2.2"),
            (".2", ".2"),
            ("event ü.2", "event ü.2"),
        ] {
            assert_eq!(record_of(name), id, "{name}");
        }
    }
}
