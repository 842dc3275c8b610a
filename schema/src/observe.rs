//! What an event observes: one event in, at most three observations out, no state and no clock.
//!
//! Each observation holds for a time, and that time decides what it can override:
//!
//! - An object that an event describes is seen at the object's own `updated_at`. So an object embedded in a late
//!   membership event cannot bring back what has been deleted since.
//! - Memberships, removals, and objects that a sweep listed take the time of the event.
//! - No object is seen later than it was reported. An `updated_at` in the future would otherwise outlive every removal.

use crate::directory::{self, Object, Times};
use crate::event::{Change, Event, Kind, MembershipData};
use crate::ids::DirectoryId;
use crate::json::{self, Malformed};
use crate::observation::{Cause, Mark, Observation, Registers, Version, Versioned};
use crate::record::Source;
use crate::timestamp::Timestamp;

/// The observations that `event` makes, which arrived through `source` and was received at `received_at`. Empty for
/// events that change nothing. Fails if the event is of a kind that makes observations, but its data cannot be read.
pub fn observe<'a>(
    event: &Event<'a>,
    source: Source,
    received_at: Timestamp,
) -> Result<Vec<Observation<'a>>, Malformed> {
    let observer = Observer {
        cause: Cause {
            event: event.id.clone(),
            source,
        },
        at: event.created_at.unwrap_or(received_at),
        // A sweep's time is the time of its read less a margin, within which the object may well have been updated.
        told_at: match (source, event.created_at) {
            (Source::Sweep, Some(at)) => at.max(received_at),
            (_, at) => at.unwrap_or(received_at),
        },
    };
    let data = event.data.get();
    match event.kind {
        Kind::Directory(change) => {
            let Object {
                id,
                attributes,
                digest,
                ..
            } = directory::directory(data)?;
            let times = attributes.times;
            Ok(vec![Observation::Directory(
                observer.object(change, id, attributes, times, digest),
            )])
        }
        Kind::User(change) => {
            let Object {
                id,
                directory,
                attributes,
                digest,
            } = directory::user(data)?;
            let home = directory.ok_or(Malformed::Missing("directory_id"))?;
            let times = attributes.times;
            Ok(vec![Observation::User(
                id,
                observer.object(change, home, attributes, times, digest),
            )])
        }
        Kind::Group(change) => {
            let Object {
                id,
                directory,
                attributes,
                digest,
            } = directory::group(data)?;
            let home = directory.ok_or(Malformed::Missing("directory_id"))?;
            let times = attributes.times;
            Ok(vec![Observation::Group(
                id,
                observer.object(change, home, attributes, times, digest),
            )])
        }
        Kind::Membership(change) => observer.membership(change, &MembershipData::parse(event.data)?),
        Kind::Token | Kind::Other | Kind::Foreign => Ok(Vec::new()),
    }
}

struct Observer<'a> {
    cause: Cause<'a>,
    /// The time of the observation: the event's.
    at: Timestamp,
    /// When the object was reported or read. It cannot have been updated later.
    told_at: Timestamp,
}

impl<'a> Observer<'a> {
    fn mark(&self, at: Timestamp) -> Mark<'a> {
        Mark {
            at,
            cause: self.cause.clone(),
        }
    }

    fn object<A>(
        &self,
        change: Change,
        directory: DirectoryId<'a>,
        attributes: A,
        times: Times,
        digest: i64,
    ) -> Registers<'a, A> {
        let updated_at = times.speaks_for().unwrap_or(self.at).min(self.told_at);
        let seen_at = match change {
            Change::Told => updated_at,
            Change::Seen => self.at,
            Change::Gone => {
                let gone = Some(self.mark(self.at));
                return Registers {
                    directory,
                    organization: None,
                    attributes: None,
                    seen: None,
                    gone,
                };
            }
        };
        let version = Version {
            updated_at,
            observed_at: self.at,
            cause: self.cause.clone(),
            digest,
        };
        Registers {
            directory,
            organization: None,
            attributes: Some(Versioned { version, attributes }),
            seen: Some(self.mark(seen_at)),
            gone: None,
        }
    }

    fn membership(
        &self,
        change: Change,
        data: &MembershipData<'a>,
    ) -> Result<Vec<Observation<'a>>, Malformed> {
        let user = directory::user(data.user.get())?;
        let group = directory::group(data.group.get())?;
        let home = data
            .directory_id
            .and_then(json::string)
            .and_then(DirectoryId::new)
            .or_else(|| user.directory.clone())
            .or_else(|| group.directory.clone())
            .ok_or(Malformed::Missing("directory_id"))?;
        let (seen, gone) = match change {
            Change::Told | Change::Seen => (Some(self.mark(self.at)), None),
            Change::Gone => (None, Some(self.mark(self.at))),
        };
        let named = &user.attributes.organization_id;
        let organization = named
            .as_ref()
            .or(group.attributes.organization_id.as_ref())
            .cloned();
        let membership = Registers {
            directory: home.clone(),
            organization,
            attributes: None,
            seen,
            gone,
        };
        let mut all = vec![Observation::Membership(
            group.id.clone(),
            user.id.clone(),
            membership,
        )];
        let times = user.attributes.times;
        if let Some(registers) = self.embedded(&home, user.directory, times, user.attributes, user.digest) {
            all.push(Observation::User(user.id, registers));
        }
        let times = group.attributes.times;
        if let Some(registers) = self.embedded(&home, group.directory, times, group.attributes, group.digest)
        {
            all.push(Observation::Group(group.id, registers));
        }
        Ok(all)
    }

    /// What an embedded object says about itself: nothing, unless it says as of when. Giving it the event's time would
    /// let the removal of a membership bring back a deleted user.
    fn embedded<A>(
        &self,
        home: &DirectoryId<'a>,
        own: Option<DirectoryId<'a>>,
        times: Times,
        attributes: A,
        digest: i64,
    ) -> Option<Registers<'a, A>> {
        times.speaks_for()?;
        let directory = own.unwrap_or_else(|| home.clone());
        Some(self.object(Change::Told, directory, attributes, times, digest))
    }
}
