//! Changes to groups, memberships and the roles that groups give.

use rand::RngExt;
use serde_json::{Map, Value, json};

use super::World;
use crate::{
    change::ChangeError,
    clock::Millis,
    model::{Directory, Group, User},
    people, render,
    versioned::{Versioned, When},
};

impl World {
    /// Creates a group. Emits `dsync.group.created`. A role, if given, is assigned before the group has members.
    pub(crate) fn create_group(
        &mut self,
        directory: &str,
        name: Option<String>,
        role: Option<String>,
    ) -> Result<String, ChangeError> {
        let directory = self.directory(directory)?;
        let name = name.unwrap_or_else(|| people::team(&mut self.rng));
        let lacking = directory.options.sparse && self.rng.random_bool(0.3);
        let at = self.stamp();
        let group = Group {
            id: self.new_id("directory_group", at),
            directory: directory.id.clone(),
            idp_id: (!lacking).then(|| format!("{:016x}", self.rng.random::<u64>())),
            raw_attributes: (!lacking).then(|| json!({ "displayName": name })),
            name: Some(name),
            role,
            created_at: at,
            updated_at: at,
        };
        let index = self.groups_of_directory.entry(directory.id.clone()).or_default();
        index.insert(group.id.clone());
        self.put_group(at, group.clone());
        let data = render::group(&group, &directory);
        self.emit("dsync.group.created", &directory.id, at, &data, &json!({}));
        Ok(group.id)
    }

    /// Renames a group. Emits `dsync.group.updated`.
    pub(crate) fn rename_group(&mut self, id: &str, name: &str) -> Result<(), ChangeError> {
        let (mut group, directory) = self.group(id)?;
        let mut previous = Map::new();
        previous.insert("name".to_owned(), json!(group.name));
        let at = self.stamp();
        group.name = Some(name.to_owned());
        group.updated_at = at;
        self.put_group(at, group.clone());
        let data = render::group(&group, &directory);
        self.emit_updated("dsync.group.updated", &directory, at, data, previous);
        Ok(())
    }

    /// Deletes a group. Emits `dsync.group.deleted`, no `user_removed` for its members, and `dsync.user.updated` for
    /// those whose roles change.
    pub(crate) fn delete_group(&mut self, id: &str) -> Result<(), ChangeError> {
        let (group, directory) = self.group(id)?;
        let before = self.roles_of_members(&group, &directory);
        let at = self.later_stamp();
        self.groups.entry(id.to_owned()).or_default().put(at, None);
        let data = render::group(&group, &directory);
        self.emit("dsync.group.deleted", &directory.id, at, &data, &json!({}));
        self.announce_role_changes(&before)
    }

    /// Assigns a role to a group, or takes it away. Emits `dsync.user.updated` for the members whose roles change. The
    /// group itself does not change.
    pub(crate) fn assign_role(&mut self, id: &str, role: Option<String>) -> Result<(), ChangeError> {
        let (mut group, directory) = self.group(id)?;
        group.role = role;
        let before = self.roles_of_members(&group, &directory);
        let at = self.stamp();
        self.put_group(at, group);
        self.announce_role_changes(&before)
    }

    fn roles_of_members(&self, group: &Group, directory: &Directory) -> Vec<(String, Vec<String>)> {
        let members = self.members(&group.id, When::Now).into_iter();
        members
            .map(|user| {
                let roles = self.roles(&user, directory, When::Now);
                (user, roles)
            })
            .collect()
    }

    /// Adds a member. Emits `dsync.group.user_added`. Changes no `updated_at`. Does nothing if the user is in the
    /// group.
    pub(crate) fn add_member(&mut self, group: &str, user: &str) -> Result<(), ChangeError> {
        self.set_member(group, user, true)
    }

    /// Removes a member. Emits `dsync.group.user_removed`. Changes no `updated_at`. Does nothing if the user is not in
    /// the group.
    pub(crate) fn remove_member(&mut self, group: &str, user: &str) -> Result<(), ChangeError> {
        self.set_member(group, user, false)
    }

    fn set_member(&mut self, group_id: &str, user_id: &str, member: bool) -> Result<(), ChangeError> {
        let (group, directory) = self.group(group_id)?;
        let (user, _) = self.user(user_id)?;
        if user.directory != group.directory {
            return Err(ChangeError::TwoDirectories);
        }
        if self.is_member(group_id, user_id, When::Now) == member {
            return Ok(());
        }
        let key = (group_id.to_owned(), user_id.to_owned());
        let touched = self.memberships.get(&key).and_then(Versioned::touched);
        let mut at = self.stamp();
        if touched >= Some(at) {
            at = self.later_stamp();
        }
        self.memberships
            .entry(key)
            .or_default()
            .put(at, member.then_some(()));
        let users = self.users_of_group.entry(group_id.to_owned()).or_default();
        users.insert(user_id.to_owned());
        let groups = self.groups_of_user.entry(user_id.to_owned()).or_default();
        groups.insert(group_id.to_owned());
        let verb = if member { "user_added" } else { "user_removed" };
        self.announce_membership(verb, &user, &group, &directory, at);
        Ok(())
    }

    /// Emits a membership event with both objects in full, and with the user's roles after the change.
    pub(super) fn announce_membership(
        &mut self,
        verb: &str,
        user: &User,
        group: &Group,
        directory: &Directory,
        at: Millis,
    ) {
        let data: Value = json!({
            "directory_id": directory.id,
            "user": self.render_user(user, directory, When::Now),
            "group": render::group(group, directory),
        });
        self.emit(
            &format!("dsync.group.{verb}"),
            &directory.id,
            at,
            &data,
            &json!({}),
        );
    }
}
