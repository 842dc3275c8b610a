//! The envelope around every event, and the kinds of event: WorkOS's `dsync.*`, known or not, and the reconciler's own
//! `sweep.*`, which have the same shape.

use serde_json::value::RawValue;

use crate::ids::EventId;
use crate::json::{self, Malformed, members};
use crate::timestamp::Timestamp;

/// The types of WorkOS's Directory Sync events, as documented.
pub const TYPES: &[&str] = &[
    "dsync.activated",
    "dsync.deactivated",
    "dsync.deleted",
    "dsync.user.created",
    "dsync.user.updated",
    "dsync.user.deleted",
    "dsync.group.created",
    "dsync.group.updated",
    "dsync.group.deleted",
    "dsync.group.user_added",
    "dsync.group.user_removed",
    "dsync.token.created",
    "dsync.token.revoked",
];

/// The types of the reconciler's own events.
pub const SWEEP_TYPES: &[&str] = &[
    "sweep.directory.listed",
    "sweep.directory.missing",
    "sweep.user.listed",
    "sweep.user.missing",
    "sweep.group.listed",
    "sweep.group.missing",
    "sweep.membership.listed",
    "sweep.membership.missing",
];

/// The value of a metric's label `event`: the type if it is one of the above, otherwise `other`, so that new types at
/// WorkOS cannot create an unlimited number of series.
pub fn label(event_type: &str) -> &'static str {
    let mut known = TYPES.iter().chain(SWEEP_TYPES);
    known
        .find(|known| **known == event_type)
        .map_or("other", |known| known)
}

/// What happened, according to the event's type. Types that WorkOS adds are [`Kind::Other`], not errors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// `dsync.activated|deactivated|deleted`, `sweep.directory.…`.
    Directory(Change),
    /// `dsync.user.created|updated|deleted`, `sweep.user.…`.
    User(Change),
    /// `dsync.group.created|updated|deleted`, `sweep.group.…`.
    Group(Change),
    /// `dsync.group.user_added|user_removed`, `sweep.membership.…`.
    Membership(Change),
    /// `dsync.token.…`: carries no state that we project.
    Token,
    /// Any other `dsync.…`: kept in the log and counted, but carries no state that we project.
    Other,
    /// Not a Directory Sync event at all.
    Foreign,
}

/// What an event says about its object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// The object exists and looks like this, as of its own `updated_at`.
    Told,
    /// The object exists as of the event's time: a membership was added, or a sweep saw the object.
    Seen,
    /// The object is gone as of the event's time.
    Gone,
}

impl Kind {
    /// The kind that an event's type, such as `dsync.user.created`, stands for.
    pub fn of(event_type: &str) -> Self {
        let sweep = |verb: &str| match verb {
            "listed" => Some(Change::Seen),
            "missing" => Some(Change::Gone),
            _ => None,
        };
        let mut words = event_type.split('.');
        match (words.next(), words.next(), words.next(), words.next()) {
            (Some("dsync"), Some("activated" | "deactivated"), None, None) => Self::Directory(Change::Told),
            (Some("dsync"), Some("deleted"), None, None) => Self::Directory(Change::Gone),
            (Some("dsync"), Some("user"), Some("created" | "updated"), None) => Self::User(Change::Told),
            (Some("dsync"), Some("user"), Some("deleted"), None) => Self::User(Change::Gone),
            (Some("dsync"), Some("group"), Some("created" | "updated"), None) => Self::Group(Change::Told),
            (Some("dsync"), Some("group"), Some("deleted"), None) => Self::Group(Change::Gone),
            (Some("dsync"), Some("group"), Some("user_added"), None) => Self::Membership(Change::Seen),
            (Some("dsync"), Some("group"), Some("user_removed"), None) => Self::Membership(Change::Gone),
            (Some("dsync"), Some("token"), _, _) => Self::Token,
            (Some("dsync"), Some(_), _, _) => Self::Other,
            (Some("sweep"), Some(entity), Some(verb), None) => match (entity, sweep(verb)) {
                ("directory", Some(change)) => Self::Directory(change),
                ("user", Some(change)) => Self::User(change),
                ("group", Some(change)) => Self::Group(change),
                ("membership", Some(change)) => Self::Membership(change),
                _ => Self::Foreign,
            },
            _ => Self::Foreign,
        }
    }
}

/// An event's envelope. Its content stays JSON text until someone needs it.
#[derive(Debug, Clone)]
pub struct Event<'a> {
    /// The event's id.
    pub id: EventId<'a>,
    /// Its type, as received.
    pub event_type: json::Name<'a>,
    /// The kind of event that this type stands for.
    pub kind: Kind,
    /// When it happened, by WorkOS's clock; `None` if missing or unreadable.
    pub created_at: Option<Timestamp>,
    /// The object or, for a membership, the directory's id and both objects, as JSON text.
    pub data: &'a RawValue,
}

impl<'a> Event<'a> {
    /// Reads the envelope in `text`, which must be [`storable`](json::storable).
    pub fn parse(text: &'a str) -> Result<Self, Malformed> {
        let [id, event_type, created_at, data] = members(text, &["id", "event", "created_at", "data"])?;
        let event_type = event_type
            .and_then(json::string)
            .ok_or(Malformed::Missing("event"))?;
        Ok(Self {
            id: id
                .and_then(json::string)
                .and_then(EventId::new)
                .ok_or(Malformed::Missing("id"))?,
            kind: Kind::of(&event_type),
            event_type,
            created_at: created_at
                .and_then(json::text)
                .and_then(|text| Timestamp::parse(&text)),
            data: data.ok_or(Malformed::Missing("data"))?,
        })
    }
}

/// The parts of a membership event's `data`, as JSON text.
#[derive(Debug, Clone, Copy)]
pub struct MembershipData<'a> {
    /// The directory both are in.
    pub directory_id: Option<&'a RawValue>,
    /// The user, a full object in WorkOS's events.
    pub user: &'a RawValue,
    /// The group, likewise.
    pub group: &'a RawValue,
}

impl<'a> MembershipData<'a> {
    /// Reads the `data` of a membership event.
    pub fn parse(data: &'a RawValue) -> Result<Self, Malformed> {
        let [directory_id, user, group] = members(data.get(), &["directory_id", "user", "group"])?;
        Ok(Self {
            directory_id,
            user: user.ok_or(Malformed::Missing("user"))?,
            group: group.ok_or(Malformed::Missing("group"))?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_known_and_unknown() {
        for (event_type, kind) in [
            ("dsync.activated", Kind::Directory(Change::Told)),
            ("dsync.deactivated", Kind::Directory(Change::Told)),
            ("dsync.deleted", Kind::Directory(Change::Gone)),
            ("dsync.user.updated", Kind::User(Change::Told)),
            ("dsync.group.user_removed", Kind::Membership(Change::Gone)),
            ("dsync.user.merged", Kind::Other),
            ("dsync.user.created.v2", Kind::Other),
            ("dsync.paused", Kind::Other),
            ("dsync.token.revoked", Kind::Token),
            ("sweep.membership.listed", Kind::Membership(Change::Seen)),
            ("sweep.user.missing", Kind::User(Change::Gone)),
            ("sweep.user.created", Kind::Foreign),
            ("user.created", Kind::Foreign),
            ("dsync", Kind::Foreign),
            ("", Kind::Foreign),
        ] {
            assert_eq!(Kind::of(event_type), kind, "{event_type}");
        }
    }

    #[test]
    fn every_type_that_has_a_label_is_known() {
        for event_type in TYPES.iter().chain(SWEEP_TYPES) {
            assert_eq!(label(event_type), *event_type);
            let kind = Kind::of(event_type);
            assert!(!matches!(kind, Kind::Other | Kind::Foreign), "{event_type}");
        }
        for event_type in ["dsync.user.merged", "dsync.user.created.v2", "user.created", ""] {
            assert_eq!(label(event_type), "other", "{event_type}");
        }
    }

    #[test]
    fn an_envelope_needs_id_type_and_data() {
        let event = Event::parse(r#"{"id":"event_1","event":"dsync.user.created","data":{},"x":1}"#).unwrap();
        assert_eq!((event.id.as_str(), event.created_at), ("event_1", None));
        for (text, missing) in [
            (r#"{"event":"dsync.user.created","data":{}}"#, "id"),
            (r#"{"id":7,"event":"dsync.user.created","data":{}}"#, "id"),
            (r#"{"id":"event_1","data":{}}"#, "event"),
            (
                r#"{"id":"event_1","event":"dsync.user.created","data":null}"#,
                "data",
            ),
        ] {
            assert_eq!(Event::parse(text).unwrap_err(), Malformed::Missing(missing));
        }
    }
}
