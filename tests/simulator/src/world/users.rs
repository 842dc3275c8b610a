//! Changes to users.

use serde_json::{Map, Value, json};

use super::World;
use crate::{
    change::{ChangeError, Thing},
    model::{Directory, Profile, User},
    options::RoleShape,
    people,
    versioned::When,
};

type Fields = Map<String, Value>;

impl World {
    /// Creates a user with made-up attributes, except for those in `set`. Emits `dsync.user.created`.
    pub(crate) fn create_user(&mut self, directory: &str, set: &Fields) -> Result<String, ChangeError> {
        let directory = self.directory(directory)?;
        let mut profile = people::profile(&mut self.rng, &directory);
        profile.set(set).map_err(ChangeError::BadField)?;
        Ok(self.add_user(&directory, profile))
    }

    fn add_user(&mut self, directory: &Directory, profile: Profile) -> String {
        let at = self.stamp();
        let user = User {
            id: self.new_id("directory_user", at),
            directory: directory.id.clone(),
            profile,
            announced_deleted: false,
            created_at: at,
            updated_at: at,
        };
        let id = user.id.clone();
        let index = self.users_of_directory.entry(directory.id.clone()).or_default();
        index.insert(id.clone());
        self.put_user(at, user.clone());
        let data = self.render_user(&user, directory, When::Now);
        self.emit("dsync.user.created", &directory.id, at, &data, &json!({}));
        id
    }

    /// Sets fields by name (`null` clears, unknown names are custom attributes). Emits `dsync.user.updated`, for
    /// deactivation (`state: inactive`), too. Does nothing if no value differs.
    pub(crate) fn update_user(&mut self, id: &str, set: &Fields) -> Result<(), ChangeError> {
        let (mut user, directory) = self.user(id)?;
        let previous = user.profile.set(set).map_err(ChangeError::BadField)?;
        if previous.is_empty() {
            return Ok(());
        }
        let at = self.stamp();
        user.updated_at = at;
        self.put_user(at, user.clone());
        let data = self.render_user(&user, &directory, When::Now);
        self.emit_updated("dsync.user.updated", &directory, at, data, previous);
        Ok(())
    }

    /// Deletes a user. Emits `dsync.user.deleted` and, with `removals`, `dsync.group.user_removed` for each of the
    /// user's groups after it.
    pub(crate) fn delete_user(&mut self, id: &str, removals: bool) -> Result<(), ChangeError> {
        let (user, directory) = self.user(id)?;
        let groups: Vec<_> = self.groups_with(id, When::Now).cloned().collect();
        let data = self.render_user(&user, &directory, When::Now);
        let at = self.later_stamp();
        self.users.entry(id.to_owned()).or_default().put(at, None);
        self.emit("dsync.user.deleted", &directory.id, at, &data, &json!({}));
        for group in groups.iter().filter(|_| removals) {
            self.announce_membership("user_removed", &user, group, &directory, at);
        }
        Ok(())
    }

    /// Brings back the person behind a user that is gone or no longer active: as a new user, with the old one's
    /// `idp_id` and email.
    pub(crate) fn return_user(&mut self, id: &str) -> Result<String, ChangeError> {
        let old = self
            .users
            .get(id)
            .and_then(|versions| versions.newest())
            .ok_or_else(|| ChangeError::not_there(Thing::User, id))?
            .clone();
        let directory = self.directory(&old.directory)?;
        let mut profile = old.profile.clone();
        profile.state = Some("active".to_owned());
        Ok(self.add_user(&directory, profile))
    }

    /// Emits `dsync.user.deleted`, but keeps the user, inactive, and the user's memberships. WorkOS does this where the
    /// deletion of inactive users is off.
    pub(crate) fn announce_deleted(&mut self, id: &str) -> Result<(), ChangeError> {
        let (mut user, directory) = self.user(id)?;
        let at = self.later_stamp();
        user.profile.state = Some("inactive".to_owned());
        user.announced_deleted = true;
        user.updated_at = at;
        self.put_user(at, user.clone());
        let data = self.render_user(&user, &directory, When::Now);
        self.emit("dsync.user.deleted", &directory.id, at, &data, &json!({}));
        Ok(())
    }

    /// Brings back a user whose deletion was announced. Emits `dsync.user.created` with the same id, and nothing about
    /// the user's memberships.
    pub(crate) fn reannounce_user(&mut self, id: &str) -> Result<(), ChangeError> {
        let (mut user, directory) = self.user(id)?;
        if !user.announced_deleted {
            return Err(ChangeError::NotAnnouncedDeleted(id.to_owned()));
        }
        let at = self.later_stamp();
        user.profile.state = Some("active".to_owned());
        user.announced_deleted = false;
        user.updated_at = at;
        self.put_user(at, user.clone());
        let data = self.render_user(&user, &directory, When::Now);
        self.emit("dsync.user.created", &directory.id, at, &data, &json!({}));
        Ok(())
    }

    /// Emits `dsync.user.updated`, with an unchanged `updated_at`, for users whose roles differ from those in `before`.
    pub(super) fn announce_role_changes(
        &mut self,
        before: &[(String, Vec<String>)],
    ) -> Result<(), ChangeError> {
        for (id, roles) in before {
            let (user, directory) = self.user(id)?;
            let shown = directory.options.roles != RoleShape::Neither;
            if !shown || self.roles(id, &directory, When::Now) == *roles {
                continue;
            }
            let at = self.stamp();
            let data = self.render_user(&user, &directory, When::Now);
            let mut previous = Map::new();
            previous.insert(
                "role".to_owned(),
                roles.first().map_or(Value::Null, |slug| json!({ "slug": slug })),
            );
            self.emit_updated("dsync.user.updated", &directory, at, data, previous);
        }
        Ok(())
    }
}
