//! The algebra that makes the log's order irrelevant: what is known of an object is a few registers, each of which
//! only ever grows.
//!
//! | register | ordered by |
//! |---|---|
//! | attributes | the object's `updated_at`, then when and by which event it was observed, then its content |
//! | seen | time, event, source |
//! | gone | time, event, source |
//!
//! Merging takes the greater of each. Greatest-of is commutative, associative and idempotent, so any order, any
//! duplication and any grouping of observations end in the same registers. Every ordering here is total down to the
//! content: two different values never compare equal, or the first to come would win.
//!
//! The same comparisons stand in SQL, in the projector's `store`. They must stay the same: moments are whole
//! microseconds and ids compare byte by byte (`collate "C"`).

use crate::directory::{Directory, Group, Text, User};
use crate::ids::{DirectoryId, EventId, GroupId, UserId};
use crate::record::Source;
use crate::timestamp::Timestamp;

/// Which record said so. Ordered by the event, then by the way it came.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Cause<'a> {
    /// The event's id.
    pub event: EventId<'a>,
    /// The way it came into the log.
    pub source: Source,
}

/// That an object was there, or was gone, at a time.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Mark<'a> {
    /// The time it holds for.
    pub at: Timestamp,
    /// The record that said so.
    pub cause: Cause<'a>,
}

/// What orders versions of an object's attributes.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version<'a> {
    /// The object's own `updated_at`, or what stands in for it.
    pub updated_at: Timestamp,
    /// When it was observed to look so: the event's `created_at`, or a sweep's time.
    pub observed_at: Timestamp,
    /// The record it was observed in.
    pub cause: Cause<'a>,
    /// The fingerprint of the object's text.
    pub digest: i64,
}

/// Attributes, and the version they are of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Versioned<'a, A> {
    /// Which version this is.
    pub version: Version<'a>,
    /// What the object said.
    pub attributes: A,
}

/// All that is known of one object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Registers<'a, A> {
    /// The directory it is in. An id belongs to one directory; should the wire ever name two, the greater stays.
    pub directory: DirectoryId<'a>,
    /// Of a membership: the organization its user or group named, the greatest of them. Objects have theirs among
    /// their attributes.
    pub organization: Option<Text<'a>>,
    /// The newest version of its attributes; memberships have none.
    pub attributes: Option<Versioned<'a, A>>,
    /// The newest time it was there.
    pub seen: Option<Mark<'a>>,
    /// The newest time it was gone.
    pub gone: Option<Mark<'a>>,
}

impl<A> Registers<'_, A> {
    /// Takes over whatever `other` knows that is greater. The order of merging never matters.
    pub fn merge(&mut self, other: Self) {
        if other.directory > self.directory {
            self.directory = other.directory;
        }
        if other.organization > self.organization {
            self.organization = other.organization;
        }
        let newer = match (&self.attributes, &other.attributes) {
            (_, None) => false,
            (None, Some(_)) => true,
            (Some(mine), Some(others)) => others.version > mine.version,
        };
        if newer {
            self.attributes = other.attributes;
        }
        // `None` is less than any mark.
        if other.seen > self.seen {
            self.seen = other.seen;
        }
        if other.gone > self.gone {
            self.gone = other.gone;
        }
    }

    /// When it was last seen, if ever.
    pub fn seen_at(&self) -> Option<Timestamp> {
        self.seen.as_ref().map(|mark| mark.at)
    }

    /// When it was last gone, if ever.
    pub fn gone_at(&self) -> Option<Timestamp> {
        self.gone.as_ref().map(|mark| mark.at)
    }

    /// Whether it is there by its own account: seen after it was last gone. At equal times it is gone: doubt fails
    /// closed.
    pub fn is_there(&self) -> bool {
        self.seen_at() > self.gone_at()
    }
}

/// What a record says of one object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Observation<'a> {
    /// Of a directory.
    Directory(Registers<'a, Directory<'a>>),
    /// Of a user.
    User(UserId<'a>, Registers<'a, User<'a>>),
    /// Of a group.
    Group(GroupId<'a>, Registers<'a, Group<'a>>),
    /// Of a membership. It has no attributes.
    Membership(GroupId<'a>, UserId<'a>, Registers<'a, ()>),
}
