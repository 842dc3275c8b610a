//! The algebra that makes the order of the log irrelevant.
//!
//! What is known about an object is kept in a few registers, each of which only ever grows. Three of them carry times:
//!
//! | register | ordered by |
//! |---|---|
//! | attributes | the object's `updated_at`, time observed, event id, source, digest of the object's text |
//! | seen | time, event id, source |
//! | gone | time, event id, source |
//!
//! Merging takes the greater value of each register. Taking the greater value is commutative, associative and
//! idempotent, so the same observations lead to the same registers in any order, with any duplication and in any
//! grouping.
//!
//! This requires every order to be total, down to the content: two different values must never compare equal.
//! Otherwise the first to arrive would win, and the order would matter.
//!
//! The projector's `store` makes the same comparisons in SQL, and the two must agree. That is why times are whole
//! microseconds and ids compare byte by byte (`collate "C"`).

use crate::directory::{Directory, Group, Text, User};
use crate::ids::{DirectoryId, EventId, GroupId, UserId};
use crate::record::Source;
use crate::timestamp::Timestamp;

/// The record that an observation comes from. Ordered by event id, then by source.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Cause<'a> {
    /// The event's id.
    pub event: EventId<'a>,
    /// How the event reached the log.
    pub source: Source,
}

/// A time at which an object was there or was gone, and the record that says so. The later mark is the greater.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Mark<'a> {
    /// The time at which this held.
    pub at: Timestamp,
    /// The record that says so.
    pub cause: Cause<'a>,
}

/// The key that orders the versions of an object's attributes. Fields are compared in the order declared here.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version<'a> {
    /// The object's own `updated_at`, or the time that stands in for it.
    pub updated_at: Timestamp,
    /// When the object was observed to look like this: the event's `created_at`, or a sweep's time.
    pub observed_at: Timestamp,
    /// The record that observed it.
    pub cause: Cause<'a>,
    /// The digest of the object's text.
    pub digest: i64,
}

/// Attributes, and their version.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Versioned<'a, A> {
    /// Which version this is.
    pub version: Version<'a>,
    /// What the object said about itself.
    pub attributes: A,
}

/// Everything that is known about one object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Registers<'a, A> {
    /// The directory it is in. An object belongs to one directory. Should events ever name two, the greater id wins.
    pub directory: DirectoryId<'a>,
    /// For a membership, the organization that its user or group named; the greatest, if they named several. Objects
    /// hold theirs among their attributes.
    pub organization: Option<Text<'a>>,
    /// The newest version of its attributes. Memberships have none.
    pub attributes: Option<Versioned<'a, A>>,
    /// The latest time it was there.
    pub seen: Option<Mark<'a>>,
    /// The latest time it was gone.
    pub gone: Option<Mark<'a>>,
}

impl<A> Registers<'_, A> {
    /// Takes over each register of `other` that is greater. The order of merging never matters.
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
        // `None` compares less than any mark.
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

    /// Whether it is there, judged by its own registers alone: it was seen after it was last gone. At equal times it is
    /// gone: in doubt, access ends.
    pub fn is_there(&self) -> bool {
        self.seen_at() > self.gone_at()
    }
}

/// What a record says about one object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Observation<'a> {
    /// About a directory.
    Directory(Registers<'a, Directory<'a>>),
    /// About a user.
    User(UserId<'a>, Registers<'a, User<'a>>),
    /// About a group.
    Group(GroupId<'a>, Registers<'a, Group<'a>>),
    /// About the membership of a user in a group. It has no attributes.
    Membership(GroupId<'a>, UserId<'a>, Registers<'a, ()>),
}
