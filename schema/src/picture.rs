//! The fold of many observations: per object, the greatest value of each register. The projector folds each batch into
//! a [`Picture`] and writes that to the tables. Tests fold whole histories into one and ask it what readers should see.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

use crate::directory::{Directory, Group, User};
use crate::ids::{DirectoryId, GroupId, UserId};
use crate::observation::{Observation, Registers};

/// What is known about each object, ordered by key: writers that lock rows in this order cannot deadlock.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Picture<'a> {
    /// Directories by id.
    pub directories: BTreeMap<DirectoryId<'a>, Registers<'a, Directory<'a>>>,
    /// Users by id.
    pub users: BTreeMap<UserId<'a>, Registers<'a, User<'a>>>,
    /// Groups by id.
    pub groups: BTreeMap<GroupId<'a>, Registers<'a, Group<'a>>>,
    /// Memberships by group and user.
    pub memberships: BTreeMap<(GroupId<'a>, UserId<'a>), Registers<'a, ()>>,
}

fn merge<'a, K: Ord, A>(rows: &mut BTreeMap<K, Registers<'a, A>>, key: K, registers: Registers<'a, A>) {
    match rows.entry(key) {
        Entry::Vacant(place) => {
            place.insert(registers);
        }
        Entry::Occupied(mut place) => place.get_mut().merge(registers),
    }
}

impl<'a> Picture<'a> {
    /// Merges an observation in. The order of observations never matters.
    pub fn add(&mut self, observation: Observation<'a>) {
        match observation {
            Observation::Directory(registers) => {
                merge(&mut self.directories, registers.directory.clone(), registers);
            }
            Observation::User(id, registers) => merge(&mut self.users, id, registers),
            Observation::Group(id, registers) => merge(&mut self.groups, id, registers),
            Observation::Membership(group, user, registers) => {
                merge(&mut self.memberships, (group, user), registers);
            }
        }
    }

    /// Whether nothing was added.
    pub fn is_empty(&self) -> bool {
        self.directories.is_empty()
            && self.users.is_empty()
            && self.groups.is_empty()
            && self.memberships.is_empty()
    }

    /// Whether a directory is live: it was seen after it was last gone.
    pub fn directory_is_live(&self, id: &DirectoryId<'a>) -> bool {
        self.directories.get(id).is_some_and(Registers::is_there)
    }

    /// Whether a user is live: its directory is not gone, and the user was seen after both were last gone.
    pub fn user_is_live(&self, id: &UserId<'a>) -> bool {
        self.users
            .get(id)
            .is_some_and(|user| self.is_live_in_directory(user))
    }

    /// Whether a group is live, by the same rules as a user.
    pub fn group_is_live(&self, id: &GroupId<'a>) -> bool {
        self.groups
            .get(id)
            .is_some_and(|group| self.is_live_in_directory(group))
    }

    /// Whether a membership is live: it, its user and its group are live, all three are in the same directory, and it
    /// was seen after the user, the group and the directory were each last gone. So when a user comes back, its
    /// memberships are void until they are seen again.
    pub fn membership_is_live(&self, group: &GroupId<'a>, user: &UserId<'a>) -> bool {
        let Some(membership) = self.memberships.get(&(group.clone(), user.clone())) else {
            return false;
        };
        let (Some(member), Some(of)) = (self.users.get(user), self.groups.get(group)) else {
            return false;
        };
        membership.directory == member.directory
            && membership.directory == of.directory
            && self.is_live_in_directory(membership)
            && self.is_live_in_directory(member)
            && self.is_live_in_directory(of)
            && membership.seen_at() > member.gone_at().max(of.gone_at())
    }

    /// An unknown directory does not count as gone, because events about its contents may arrive first.
    fn is_live_in_directory<A>(&self, contained: &Registers<'a, A>) -> bool {
        let directory = self.directories.get(&contained.directory);
        contained.is_there()
            && directory.is_none_or(|directory| {
                directory.gone.is_none()
                    || (directory.is_there() && contained.seen_at() > directory.gone_at())
            })
    }
}
