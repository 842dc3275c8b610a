//! One record of the log: its subject, how it arrived, and its body byte for byte.

use bytes::Bytes;
use sha2::{Digest as _, Sha256};

use crate::address::{Address, Unaddressable, address};
use crate::timestamp::Timestamp;

/// How a record reached the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Source {
    /// WorkOS posted it.
    Webhook,
    /// The catch-up found it in the Events API.
    EventsApi,
    /// A sweep saw it in the state API.
    Sweep,
}

impl Source {
    /// The value of the header `Dsync-Source`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Webhook => "webhook",
            Self::EventsApi => "events_api",
            Self::Sweep => "sweep",
        }
    }

    /// The source with this name, as in the header; `None` if there is no such source.
    pub fn parse(text: &str) -> Option<Self> {
        [Self::Webhook, Self::EventsApi, Self::Sweep]
            .into_iter()
            .find(|source| source.as_str() == text)
    }

    /// The one-character code stored in the tables. Codes sort in the same order as sources.
    pub const fn code(self) -> &'static str {
        match self {
            Self::Webhook => "a",
            Self::EventsApi => "b",
            Self::Sweep => "c",
        }
    }
}

/// A subject of the log. Those we write are built only from validated ids.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Subject(String);

impl Subject {
    /// The subject for signed bodies that are not an event we can address.
    pub fn quarantine() -> Self {
        Self("dsync.quarantine".to_owned())
    }

    /// A subject read back from the log, or built from parts that are known to be ids.
    pub fn from_log(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// The subject as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The id of the directory that the record belongs to; `None` for the quarantine.
    pub fn directory(&self) -> Option<&str> {
        let mut words = self.0.split('.');
        match (words.next(), words.next(), words.next()) {
            (Some("dsync"), Some(directory), Some(_)) => Some(directory),
            _ => None,
        }
    }

    /// The id of the user that the record is about, if it is about a user or a membership.
    pub fn user(&self) -> Option<&str> {
        let mut words = self.0.split('.').skip(2);
        match words.next()? {
            "user" => words.next(),
            "membership" => words.nth(1),
            _ => None,
        }
    }

    /// Whether this is the subject for unaddressable bodies.
    pub fn is_quarantine(&self) -> bool {
        self.0 == "dsync.quarantine"
    }

    /// Whether a record under this subject takes access away: it is about something that is projected, and the
    /// subject's last word says so.
    pub fn is_removal(&self) -> bool {
        matches!(
            self.0.split('.').nth(2),
            Some("directory" | "user" | "group" | "membership")
        ) && matches!(
            self.0.rsplit('.').next(),
            Some("deleted" | "deactivated" | "removed" | "missing")
        )
    }
}

impl std::fmt::Display for Subject {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

/// Filters for reading only the subjects whose last word takes access away.
pub const REMOVAL_SUBJECTS: &[&str] = &[
    "dsync.*.directory.deleted",
    "dsync.*.directory.deactivated",
    "dsync.*.directory.missing",
    "dsync.*.user.*.deleted",
    "dsync.*.user.*.deactivated",
    "dsync.*.user.*.missing",
    "dsync.*.group.*.deleted",
    "dsync.*.group.*.missing",
    "dsync.*.membership.*.*.removed",
    "dsync.*.membership.*.*.missing",
];

/// One record of the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// The subject it is filed under.
    pub subject: Subject,
    /// The id by which the log recognises duplicates: the event's id or, for a body without one, its SHA-256 in hex.
    pub id: String,
    /// The event's type; `unknown` if that could not be read or would not fit a header.
    pub event_type: String,
    /// How it reached the log.
    pub source: Source,
    /// When we received it.
    pub received_at: Timestamp,
    /// The header `WorkOS-Signature` as received; webhooks only.
    pub signature: Option<String>,
    /// The body, byte for byte.
    pub body: Bytes,
}

/// What to do with a received body.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Received {
    /// A Directory Sync event: append it.
    Event(Record),
    /// Genuine, but not an event we can address, for the reason given: append it to the quarantine.
    Quarantined(Record, Unaddressable),
    /// An event of another product: nothing to do.
    NotOurs,
}

impl Record {
    /// Addresses a body whose origin has been verified. Nothing is lost: a body that cannot be addressed is
    /// quarantined.
    pub fn receive(
        body: Bytes,
        source: Source,
        signature: Option<String>,
        received_at: Timestamp,
    ) -> Received {
        let record = |subject, id, event_type, body| Self {
            subject,
            id,
            event_type,
            source,
            received_at,
            signature,
            body,
        };
        match address(&body, source) {
            Address::Ours {
                id,
                event_type,
                subject,
            } => Received::Event(record(subject, id, event_type, body)),
            Address::NotOurs => Received::NotOurs,
            Address::Unaddressable { id, event_type, why } => {
                let id = id.unwrap_or_else(|| hex::encode(Sha256::digest(&body)));
                let event_type = event_type.unwrap_or_else(|| "unknown".to_owned());
                Received::Quarantined(record(Subject::quarantine(), id, event_type, body), why)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn removals_are_told_by_the_last_word() {
        for filter in REMOVAL_SUBJECTS {
            assert!(
                Subject::from_log(filter.replace('*', "x")).is_removal(),
                "{filter}"
            );
        }
        for other in [
            "dsync.d.user.u.updated",
            "dsync.d.membership.g.u.added",
            "dsync.quarantine",
            "dsync.d.other.deleted",
            "dsync.d.token.removed",
        ] {
            assert!(!Subject::from_log(other).is_removal(), "{other}");
        }
    }

    #[test]
    fn a_subject_names_its_directory_and_its_user() {
        for (subject, directory, user) in [
            ("dsync.d.user.u.created", Some("d"), Some("u")),
            ("dsync.d.membership.g.u.added", Some("d"), Some("u")),
            ("dsync.d.group.g.created", Some("d"), None),
            ("dsync.d.directory.deleted", Some("d"), None),
            ("dsync.d.other.merged", Some("d"), None),
            ("dsync.quarantine", None, None),
        ] {
            let subject = Subject::from_log(subject);
            assert_eq!(
                (subject.directory(), subject.user()),
                (directory, user),
                "{subject}"
            );
        }
    }

    #[test]
    fn sources_are_ordered_like_their_codes() {
        let sources = [Source::Webhook, Source::EventsApi, Source::Sweep];
        assert!(sources.is_sorted() && sources.map(Source::code).is_sorted());
        for source in sources {
            assert_eq!(Source::parse(source.as_str()), Some(source));
        }
    }

    #[test]
    fn nothing_is_lost() {
        let at = Timestamp::from_micros(0);
        for odd in [
            &b"\xff\xfe"[..],
            b"",
            b"{}",
            b"[1]",
            b"{\"event\":\"dsync.user.created\"}",
        ] {
            let received = Record::receive(Bytes::from_static(odd), Source::Webhook, None, at);
            let Received::Quarantined(record, _) = received else {
                panic!("{odd:?}")
            };
            assert_eq!((record.body.as_ref(), record.id.len()), (odd, 64));
        }
    }
}
