//! What a comparison found: what to append, what to report, what to read again. Judging fills it; the caller appends
//! what is in it.

use schema::timestamp::Timestamp;
use serde_json::Value;

use crate::difference::{Difference, Entity, Kind};
use crate::memberships::Side;
use crate::plan::Verdict;
use crate::reading::Reading;
use crate::store::checks::{Target, What};

/// A difference too young to judge, what to read again, and the time that the new reading must be later than.
pub type Young = (Difference, Target, Timestamp);

/// Everything found in one directory.
#[derive(Debug, Default)]
pub struct Findings {
    /// Observations that repair what was found.
    pub readings: Vec<Reading>,
    /// Drift: the differences that these readings repair.
    pub drift: Vec<Difference>,
    /// Deletions that are held back.
    pub held: Vec<Difference>,
    /// Differences too young to judge.
    pub young: Vec<Young>,
    /// Objects of which `WorkOS` shows an older version than it reported before.
    pub older: Vec<Difference>,
    /// Objects that could not be read, or could not be written as a record.
    pub unreadable: usize,
}

/// One object that was compared.
#[derive(Debug)]
pub struct Judged<'a> {
    /// What kind of object.
    pub entity: Entity,
    /// The directory it is in; for a directory, anything.
    pub directory: &'a str,
    /// Its id; for a membership, `<group_id>/<user_id>`.
    pub id: &'a str,
    /// The columns that differ.
    pub columns: Vec<String>,
    /// Their values, in the tables and at `WorkOS`.
    pub values: Option<Value>,
    /// For a membership: whose list to read it from again, which is not the side it was read from.
    pub side: Side,
}

impl Findings {
    /// Records a verdict. `reading` is called only if the verdict is drift.
    pub fn take(&mut self, judged: Judged<'_>, verdict: Verdict, reading: impl FnOnce() -> Reading) {
        let (directory, entity, id) = (judged.directory, judged.entity, judged.id);
        let difference = |kind, judged: Judged<'_>| Difference {
            entity: judged.entity,
            kind,
            id: judged.id.to_owned(),
            columns: judged.columns,
            values: judged.values,
        };
        match verdict {
            Verdict::Same => {}
            Verdict::Drift(kind) => {
                self.drift.push(difference(kind, judged));
                self.readings.push(reading());
            }
            Verdict::TooYoung(kind, until) => {
                let target = target(directory, entity, id, judged.side);
                self.young.push((difference(kind, judged), target, until));
            }
            Verdict::Older => self.older.push(difference(Kind::Differs, judged)),
        }
    }
}

/// What to read again for one object.
fn target(directory: &str, entity: Entity, id: &str, side: Side) -> Target {
    let (group, user) = id.split_once('/').unwrap_or_default();
    let (directory, what, id) = match (entity, side) {
        (Entity::Directory, _) => (id, What::Directory, id),
        (Entity::User, _) => (directory, What::User, id),
        (Entity::Group, _) => (directory, What::Group, id),
        (Entity::Membership, Side::User) => (directory, What::MembershipsOfUser, user),
        (Entity::Membership, Side::Group) => (directory, What::MembershipsOfGroup, group),
    };
    Target {
        directory: directory.to_owned(),
        what,
        id: id.to_owned(),
    }
}
