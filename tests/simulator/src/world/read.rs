//! Reads of the world, now or as of some moment. Nothing here changes anything.

use std::sync::Arc;

use serde_json::Value;

use super::World;
use crate::{
    model::{Directory, Group, User},
    render,
    versioned::When,
};

impl World {
    pub(crate) fn directory_at(&self, id: &str, when: When) -> Option<&Directory> {
        self.directories.get(id)?.get(when)
    }

    /// The user, if both user and directory exist.
    pub(crate) fn user_at(&self, id: &str, when: When) -> Option<&Arc<User>> {
        let user = self.users.get(id)?.get(when)?;
        self.directory_at(&user.directory, when).map(|_| user)
    }

    /// The group, if both group and directory exist.
    pub(crate) fn group_at(&self, id: &str, when: When) -> Option<&Group> {
        let group = self.groups.get(id)?.get(when)?;
        self.directory_at(&group.directory, when).map(|_| group)
    }

    /// Whether both exist and the user is in the group.
    pub(crate) fn is_member(&self, group: &str, user: &str, when: When) -> bool {
        let key = (group.to_owned(), user.to_owned());
        self.memberships
            .get(&key)
            .is_some_and(|membership| membership.get(when).is_some())
            && self.user_at(user, when).is_some()
            && self.group_at(group, when).is_some()
    }

    /// The existing users of a directory, in order of creation.
    pub(crate) fn live_users(&self, directory: &str, when: When) -> impl Iterator<Item = &Arc<User>> {
        let ids = self.users_of_directory.get(directory);
        ids.into_iter()
            .flatten()
            .filter_map(move |id| self.user_at(id, when))
    }

    /// The existing groups of a directory, in order of creation.
    pub(crate) fn live_groups(&self, directory: &str, when: When) -> impl Iterator<Item = &Group> {
        let ids = self.groups_of_directory.get(directory);
        ids.into_iter()
            .flatten()
            .filter_map(move |id| self.group_at(id, when))
    }

    /// The groups that a user is in.
    pub(crate) fn groups_with(&self, user: &str, when: When) -> impl Iterator<Item = &Group> {
        let ids = self.groups_of_user.get(user);
        ids.into_iter()
            .flatten()
            .filter(move |group| self.is_member(group, user, when))
            .filter_map(move |group| self.group_at(group, when))
    }

    /// The ids of a group's members.
    pub(crate) fn members(&self, group: &str, when: When) -> Vec<String> {
        let ids = self.users_of_group.get(group);
        ids.into_iter()
            .flatten()
            .filter(|user| self.is_member(group, user, when))
            .cloned()
            .collect()
    }

    /// The numbers of live directories, users, groups and memberships.
    pub(crate) fn counts(&self) -> [usize; 4] {
        let live = |id: &&String| self.directory_at(id, When::Now).is_some();
        self.directory_ids.iter().filter(live).fold([0; 4], |sum, id| {
            let groups: Vec<&Group> = self.live_groups(id, When::Now).collect();
            let members = groups
                .iter()
                .map(|group| self.members(&group.id, When::Now).len());
            let of_one = [
                1,
                self.live_users(id, When::Now).count(),
                groups.len(),
                members.sum(),
            ];
            std::array::from_fn(|index| sum[index] + of_one[index])
        })
    }

    /// A user's roles, strongest first: those from groups, or else the directory's default.
    pub(crate) fn roles(&self, user: &str, directory: &Directory, when: When) -> Vec<String> {
        let mut roles: Vec<String> = self
            .groups_with(user, when)
            .filter_map(|group| group.role.clone())
            .collect();
        if roles.is_empty() {
            roles.extend(directory.options.default_role.clone());
        }
        render::sort_roles(&mut roles);
        roles
    }

    /// A user as shown in events and, apart from `groups`, in lists.
    pub(crate) fn render_user(&self, user: &User, directory: &Directory, when: When) -> Value {
        render::user(user, directory, &self.roles(&user.id, directory, when)).into()
    }
}
