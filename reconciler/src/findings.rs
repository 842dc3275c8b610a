//! What a comparison found: what to append, what to tell, what to read again. Filled by plain judgement, emptied by
//! whoever appends.

use schema::timestamp::Timestamp;
use serde_json::Value;

use crate::difference::{Difference, Entity, Kind};
use crate::plan::Verdict;
use crate::reading::Reading;
use crate::store::checks::{Target, What};

/// A difference too young to be judged, what to read again, and after which moment.
pub type Young = (Difference, Target, Timestamp);

/// Everything found in one directory.
#[derive(Debug, Default)]
pub struct Findings {
    /// Observations that repair what was found.
    pub readings: Vec<Reading>,
    /// Drift: what is wrong, and repaired by them.
    pub drift: Vec<Difference>,
    /// Deletions that are held back.
    pub held: Vec<Difference>,
    /// Differences too young to be judged, and what to read again after which moment.
    pub young: Vec<Young>,
    /// Objects of which `WorkOS` shows an older version than it told.
    pub older: Vec<Difference>,
    /// Objects that could not be read, or not be written as a record.
    pub unreadable: usize,
}

/// One object that was compared.
#[derive(Debug)]
pub struct Judged<'a> {
    /// What kind of object.
    pub entity: Entity,
    /// The directory it is in.
    pub directory: &'a str,
    /// Its id; of a membership `<group_id>/<user_id>`.
    pub id: &'a str,
    /// The columns that differ.
    pub columns: Vec<String>,
    /// What they hold and should hold.
    pub values: Option<Value>,
    /// Of a membership: the side from which to read it again, which is not the side it was read from.
    pub side: What,
}

impl Findings {
    /// Takes up a verdict. `reading` is made only if the verdict is drift.
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

/// What to read to see one object again.
fn target(directory: &str, entity: Entity, id: &str, side: What) -> Target {
    let (what, id) = match entity {
        Entity::Directory => (What::Directory, id),
        Entity::User => (What::User, id),
        Entity::Group => (What::Group, id),
        Entity::Membership => {
            let (group, user) = id.split_once('/').unwrap_or_default();
            match side {
                What::MembershipsOfGroup => (side, group),
                _ => (What::MembershipsOfUser, user),
            }
        }
    };
    Target {
        directory: directory.to_owned(),
        what,
        id: id.to_owned(),
    }
}
