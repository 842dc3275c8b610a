//! Changes to organizations and directories.

use rand::RngExt;
use serde_json::{Map, Value, json};

use super::World;
use crate::{
    change::{ChangeError, Thing},
    model::Directory,
    options::{DirectoryOptions, Owner},
    people, render,
};

impl World {
    /// Creates an organization. Emits nothing.
    pub(crate) fn create_organization(&mut self, name: Option<String>) -> String {
        let at = self.stamp();
        let id = self.new_id("org", at);
        let name = name.unwrap_or_else(|| people::company(&mut self.rng));
        self.organizations.insert(id.clone(), name);
        id
    }

    /// Creates a directory. Emits `dsync.activated` if its state is `active`, otherwise nothing.
    pub(crate) fn create_directory(&mut self, options: DirectoryOptions) -> Result<String, ChangeError> {
        let organization = self.owner(&options.owner)?;
        let name = options.name.clone();
        let name = name.unwrap_or_else(|| people::company(&mut self.rng));
        let at = self.stamp();
        let id = self.new_id("directory", at);
        let directory = Directory {
            id: id.clone(),
            organization,
            external_key: format!("{:012x}", self.rng.random::<u64>() >> 16),
            domain: format!("{}.example.com", people::word(&mut self.rng).to_lowercase()),
            name,
            state: options.state.clone(),
            options,
            created_at: at,
            updated_at: at,
        };
        self.directory_ids.insert(id.clone());
        self.put_directory(at, directory.clone());
        if directory.state == "active" {
            self.announce_directory("dsync.activated", &directory);
        }
        Ok(id)
    }

    fn owner(&mut self, owner: &Owner) -> Result<Option<String>, ChangeError> {
        match owner {
            Owner::New => Ok(Some(self.create_organization(None))),
            Owner::Nobody => Ok(None),
            Owner::Organization(id) => self.known_organization(id).map(Some),
        }
    }

    fn known_organization(&self, id: &str) -> Result<String, ChangeError> {
        let known = self.organizations.get_key_value(id);
        known
            .map(|(id, _)| id.clone())
            .ok_or_else(|| ChangeError::not_there(Thing::Organization, id))
    }

    /// Sets the state. Emits `dsync.activated` or `dsync.deactivated`; for any other state, nothing.
    pub(crate) fn set_directory_state(&mut self, id: &str, state: &str) -> Result<(), ChangeError> {
        let mut directory = self.directory(id)?;
        state.clone_into(&mut directory.state);
        self.change_directory(directory);
        Ok(())
    }

    /// Links a directory to an organization. Emits what its state calls for, as [`World::set_directory_state`] does.
    pub(crate) fn link_directory(&mut self, id: &str, organization: &str) -> Result<(), ChangeError> {
        let mut directory = self.directory(id)?;
        directory.organization = Some(self.known_organization(organization)?);
        self.change_directory(directory);
        Ok(())
    }

    fn change_directory(&mut self, mut directory: Directory) {
        let at = self.stamp();
        directory.updated_at = at;
        self.put_directory(at, directory.clone());
        match directory.state.as_str() {
            "active" => self.announce_directory("dsync.activated", &directory),
            "inactive" => self.announce_directory("dsync.deactivated", &directory),
            _ => {}
        }
    }

    fn announce_directory(&mut self, kind: &str, directory: &Directory) {
        let data = render::directory_in_event(directory, false);
        self.emit(kind, &directory.id, directory.updated_at, &data, &json!({}));
    }

    /// Deletes a directory. Emits `dsync.deleted` only, and nothing about the directory's contents.
    pub(crate) fn delete_directory(&mut self, id: &str) -> Result<(), ChangeError> {
        let mut directory = self.directory(id)?;
        let at = self.later_stamp();
        self.directories.entry(id.to_owned()).or_default().put(at, None);
        "deleting".clone_into(&mut directory.state);
        directory.updated_at = at;
        let data = render::directory_in_event(&directory, true);
        self.emit("dsync.deleted", id, at, &data, &json!({}));
        Ok(())
    }

    /// Emits `dsync.token.created` or `dsync.token.revoked`, which changes no state here.
    pub(crate) fn token(&mut self, directory: &str, verb: &str) -> Result<(), ChangeError> {
        let directory = self.directory(directory)?;
        let at = self.stamp();
        let data = json!({
            "object": "directory_token",
            "id": self.new_id("directory_token", at),
            "directory_id": directory.id,
            "organization_id": directory.organization,
            "token_suffix": format!("{:04x}", self.rng.random::<u16>()),
            "created_at": at.rfc3339(),
        });
        self.emit(
            &format!("dsync.token.{verb}"),
            &directory.id,
            at,
            &data,
            &json!({}),
        );
        Ok(())
    }

    /// Emits an event of a kind that does not exist yet. Adds the directory's ids to `data`.
    pub(crate) fn unknown(
        &mut self,
        directory: &str,
        kind: &str,
        data: Map<String, Value>,
    ) -> Result<(), ChangeError> {
        let directory = self.directory(directory)?;
        let at = self.stamp();
        let mut data = data;
        data.entry("directory_id").or_insert_with(|| json!(directory.id));
        data.entry("organization_id")
            .or_insert_with(|| json!(directory.organization));
        self.emit(kind, &directory.id, at, &data.into(), &json!({}));
        Ok(())
    }
}
