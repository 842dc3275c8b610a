//! The changes that can be made in the simulated WorkOS, as data: for a test's script, or the body of
//! `POST /_sim/changes`.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::{options::DirectoryOptions, world::World};

/// One change. It emits the events that WorkOS would send for it, except inside [`Change::Silently`].
///
/// As JSON: `{"change": "update_user", "user": "directory_user_…", "set": {"job_title": "Cook"}}`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "change", rename_all = "snake_case", deny_unknown_fields)]
#[expect(
    missing_docs,
    reason = "the fields are ids and names of what the variant's own line describes"
)]
pub enum Change {
    /// A new organization. No event.
    CreateOrganization { name: Option<String> },
    /// A new directory: `dsync.activated` if its state is `active`, otherwise no event.
    CreateDirectory {
        #[serde(default)]
        options: DirectoryOptions,
    },
    /// `dsync.activated`.
    ActivateDirectory { directory: String },
    /// `dsync.deactivated`.
    DeactivateDirectory { directory: String },
    /// Any state; only `active` and `inactive` send an event.
    SetDirectoryState { directory: String, state: String },
    /// The directory belongs to that organization from now on. Emits what setting its current state would emit, such as
    /// `dsync.activated`.
    LinkDirectory { directory: String, organization: String },
    /// `dsync.deleted`, alone.
    DeleteDirectory { directory: String },
    /// A new user with made-up attributes, except those in `set`: `dsync.user.created`.
    CreateUser {
        directory: String,
        #[serde(default)]
        set: Map<String, Value>,
    },
    /// Sets fields by name: `dsync.user.updated`. `null` clears a field; names that are not fields of a user are custom
    /// attributes.
    UpdateUser { user: String, set: Map<String, Value> },
    /// `dsync.user.updated` with `state: inactive`, which is how most providers delete.
    DeactivateUser { user: String },
    /// `dsync.user.updated` with `state: suspended`.
    SuspendUser { user: String },
    /// `dsync.user.updated` with `state: active`.
    ReactivateUser { user: String },
    /// `dsync.user.deleted`; with `removals`, `dsync.group.user_removed` for each of the user's groups after it.
    DeleteUser {
        user: String,
        #[serde(default)]
        removals: bool,
    },
    /// The person behind a deleted or inactive user comes back under a new id, with the same `idp_id` and email.
    ReturnUser { user: String },
    /// `dsync.user.deleted` is sent, but the user, now inactive, and the user's memberships are kept.
    AnnounceDeleted { user: String },
    /// After [`Change::AnnounceDeleted`]: `dsync.user.created` under the same id, and no event for memberships.
    ReannounceUser { user: String },
    /// `dsync.group.created`.
    CreateGroup {
        directory: String,
        name: Option<String>,
        role: Option<String>,
    },
    /// `dsync.group.updated`.
    RenameGroup { group: String, name: String },
    /// `dsync.group.deleted` without `user_removed`, and `dsync.user.updated` for members whose roles change.
    DeleteGroup { group: String },
    /// The role that a group gives: `dsync.user.updated`, with an unchanged `updated_at`, for members whose roles
    /// change.
    AssignRole { group: String, role: Option<String> },
    /// `dsync.group.user_added`.
    AddMember { group: String, user: String },
    /// `dsync.group.user_removed`.
    RemoveMember { group: String, user: String },
    /// `dsync.token.created`.
    CreateToken { directory: String },
    /// `dsync.token.revoked`.
    RevokeToken { directory: String },
    /// An event of an unknown kind, `dsync.…`. The directory's ids are added to `data`.
    Unknown {
        directory: String,
        event: String,
        #[serde(default)]
        data: Map<String, Value>,
    },
    /// The inner change, without any event: drift.
    Silently { inner: Box<Change> },
}

/// What a change did.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Outcome {
    /// The id of the object created, if any.
    pub created: Option<String>,
    /// The ids of the events emitted, in order.
    pub events: Vec<String>,
}

/// A kind of thing with an id.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names are clear")]
pub enum Thing {
    Organization,
    Directory,
    User,
    Group,
}

/// Why a change cannot be made.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ChangeError {
    /// No object of that kind has that id, or it was deleted.
    #[error("there is no {thing:?} {id}")]
    NotThere {
        /// The kind of object.
        thing: Thing,
        /// The id given.
        id: String,
    },
    /// The field's value has a type that WorkOS never sends in it.
    #[error("the value for {0:?} is neither a string nor null")]
    BadField(String),
    /// The user and the group belong to two directories.
    #[error("the user and the group are in different directories")]
    TwoDirectories,
    /// Only a user that was kept although its deletion was announced can be announced again.
    #[error("the deletion of {0} was not announced")]
    NotAnnouncedDeleted(String),
    /// The name of an event must begin with `dsync.`.
    #[error("{0:?} is not the name of a directory event")]
    BadEventName(String),
}

impl ChangeError {
    pub(crate) fn not_there(thing: Thing, id: &str) -> Self {
        let id = id.to_owned();
        Self::NotThere { thing, id }
    }
}

impl Change {
    /// Makes `set` for [`Change::UpdateUser`] and [`Change::CreateUser`] from `json!({…})`; empty if that is no object.
    pub fn fields(object: Value) -> Map<String, Value> {
        match object {
            Value::Object(fields) => fields,
            _ => Map::new(),
        }
    }
}

impl World {
    /// Makes one change.
    pub fn apply(&mut self, change: Change) -> Result<Outcome, ChangeError> {
        let before = self.events().len();
        let created = match change {
            Change::Silently { inner } => self.silently(|world| world.apply(*inner))?.created,
            other => self.perform(other)?,
        };
        let events = self.events()[before..]
            .iter()
            .map(|event| event.id.clone())
            .collect();
        Ok(Outcome { created, events })
    }

    fn perform(&mut self, change: Change) -> Result<Option<String>, ChangeError> {
        use Change as C;
        let state = |state: &str| Change::fields(serde_json::json!({ "state": state }));
        let nothing = match change {
            C::CreateOrganization { name } => return Ok(Some(self.create_organization(name))),
            C::CreateDirectory { options } => return self.create_directory(options).map(Some),
            C::CreateUser { directory, set } => return self.create_user(&directory, &set).map(Some),
            C::ReturnUser { user } => return self.return_user(&user).map(Some),
            C::CreateGroup {
                directory,
                name,
                role,
            } => {
                return self.create_group(&directory, name, role).map(Some);
            }
            C::Silently { inner } => return self.silently(|world| world.perform(*inner)),
            C::ActivateDirectory { directory } => self.set_directory_state(&directory, "active"),
            C::DeactivateDirectory { directory } => self.set_directory_state(&directory, "inactive"),
            C::SetDirectoryState { directory, state } => self.set_directory_state(&directory, &state),
            C::LinkDirectory {
                directory,
                organization,
            } => self.link_directory(&directory, &organization),
            C::DeleteDirectory { directory } => self.delete_directory(&directory),
            C::UpdateUser { user, set } => self.update_user(&user, &set),
            C::DeactivateUser { user } => self.update_user(&user, &state("inactive")),
            C::SuspendUser { user } => self.update_user(&user, &state("suspended")),
            C::ReactivateUser { user } => self.update_user(&user, &state("active")),
            C::DeleteUser { user, removals } => self.delete_user(&user, removals),
            C::AnnounceDeleted { user } => self.announce_deleted(&user),
            C::ReannounceUser { user } => self.reannounce_user(&user),
            C::RenameGroup { group, name } => self.rename_group(&group, &name),
            C::DeleteGroup { group } => self.delete_group(&group),
            C::AssignRole { group, role } => self.assign_role(&group, role),
            C::AddMember { group, user } => self.add_member(&group, &user),
            C::RemoveMember { group, user } => self.remove_member(&group, &user),
            C::CreateToken { directory } => self.token(&directory, "created"),
            C::RevokeToken { directory } => self.token(&directory, "revoked"),
            C::Unknown {
                directory,
                event,
                data,
            } if event.starts_with("dsync.") => self.unknown(&directory, &event, data),
            C::Unknown { event, .. } => Err(ChangeError::BadEventName(event)),
        };
        nothing.map(|()| None)
    }
}
