//! What a faithful consumer should show: the live rows of each directory, in the form of the consumer's views (a NUL
//! character is shown as U+FFFD, a directory's state in the words that events use, roles as slugs).

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::{
    model::{Directory, User},
    options::RoleShape,
    render,
    versioned::When,
    world::World,
};

/// All directories that are live, by id.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Truth {
    /// By directory id.
    pub directories: BTreeMap<String, DirectoryTruth>,
}

/// One live directory and its contents.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DirectoryTruth {
    /// The directory itself.
    pub directory: DirectoryRow,
    /// Live users by id, inactive ones included.
    pub users: BTreeMap<String, UserRow>,
    /// Live groups by id.
    pub groups: BTreeMap<String, GroupRow>,
    /// (group id, user id) of live groups and users.
    pub memberships: BTreeSet<(String, String)>,
}

/// A row of `directory.directories`. Times are RFC 3339, in milliseconds, UTC.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "the view's columns")]
pub struct DirectoryRow {
    pub id: String,
    pub organization_id: Option<String>,
    pub name: String,
    #[serde(rename = "type")]
    pub kind: String,
    pub state: String,
    pub external_key: String,
    pub created_at: String,
    pub updated_at: String,
}

/// A row of `directory.users`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "the view's columns")]
pub struct UserRow {
    pub id: String,
    pub directory_id: String,
    pub organization_id: Option<String>,
    pub idp_id: Option<String>,
    pub email: Option<String>,
    pub username: Option<String>,
    pub first_name: Option<String>,
    pub last_name: Option<String>,
    pub name: Option<String>,
    pub job_title: Option<String>,
    pub state: Option<String>,
    pub active: bool,
    pub role: Option<String>,
    pub roles: Option<Vec<String>>,
    pub custom_attributes: Option<Value>,
    pub raw_attributes: Option<Value>,
    pub created_at: String,
    pub updated_at: String,
}

/// A row of `directory.groups`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "the view's columns")]
pub struct GroupRow {
    pub id: String,
    pub directory_id: String,
    pub organization_id: Option<String>,
    pub idp_id: Option<String>,
    pub name: Option<String>,
    pub raw_attributes: Option<Value>,
    pub created_at: String,
    pub updated_at: String,
}

impl Truth {
    /// The numbers of live directories, users, groups and memberships.
    pub fn counts(&self) -> [usize; 4] {
        self.directories.values().fold([0; 4], |sum, one| {
            let of_one = [1, one.users.len(), one.groups.len(), one.memberships.len()];
            std::array::from_fn(|index| sum[index] + of_one[index])
        })
    }
}

impl World {
    /// Everything that is live now.
    pub fn truth(&self) -> Truth {
        let live = self
            .directory_ids
            .iter()
            .filter_map(|id| self.directory_at(id, When::Now));
        let directories = live.map(|one| (one.id.clone(), self.truth_of(one))).collect();
        Truth { directories }
    }

    fn truth_of(&self, directory: &Directory) -> DirectoryTruth {
        let id = directory.id.as_str();
        let mut memberships = BTreeSet::new();
        let mut groups = BTreeMap::new();
        for group in self.live_groups(id, When::Now) {
            let members = self.members(&group.id, When::Now).into_iter();
            memberships.extend(members.map(|user| (group.id.clone(), user)));
            groups.insert(
                group.id.clone(),
                GroupRow {
                    id: group.id.clone(),
                    directory_id: group.directory.clone(),
                    organization_id: directory.organization.clone(),
                    idp_id: shown(group.idp_id.as_ref()),
                    name: shown(group.name.as_ref()),
                    raw_attributes: group.raw_attributes.clone().map(shown_json),
                    created_at: group.created_at.rfc3339(),
                    updated_at: group.updated_at.rfc3339(),
                },
            );
        }
        let users = self.live_users(id, When::Now);
        let users = users
            .map(|user| (user.id.clone(), self.user_row(user, directory)))
            .collect();
        DirectoryTruth {
            directory: directory_row(directory),
            users,
            groups,
            memberships,
        }
    }

    fn user_row(&self, user: &User, directory: &Directory) -> UserRow {
        let all_roles = self.roles(&user.id, directory, When::Now);
        let rendered = render::user(user, directory, &all_roles);
        let (role, roles) = shown_roles(directory.options.roles, all_roles);
        let profile = &user.profile;
        UserRow {
            id: user.id.clone(),
            directory_id: user.directory.clone(),
            organization_id: directory.organization.clone(),
            idp_id: shown(profile.idp_id.as_ref()),
            email: shown(
                profile
                    .email
                    .as_ref()
                    .or(listed_email(profile.emails.as_ref()).as_ref()),
            ),
            username: shown(profile.username.as_ref()),
            first_name: shown(profile.first_name.as_ref()),
            last_name: shown(profile.last_name.as_ref()),
            name: shown(profile.full_name().as_ref()),
            job_title: shown(profile.job_title.as_ref()),
            active: profile.state.as_deref() == Some("active"),
            state: shown(profile.state.as_ref()),
            role,
            roles,
            custom_attributes: present(rendered.get("custom_attributes")),
            raw_attributes: present(rendered.get("raw_attributes")),
            created_at: user.created_at.rfc3339(),
            updated_at: user.updated_at.rfc3339(),
        }
    }
}

fn directory_row(directory: &Directory) -> DirectoryRow {
    DirectoryRow {
        id: directory.id.clone(),
        organization_id: directory.organization.clone(),
        name: directory.name.clone(),
        kind: directory.options.kind.clone(),
        state: directory.state.clone(),
        external_key: directory.external_key.clone(),
        created_at: directory.created_at.rfc3339(),
        updated_at: directory.updated_at.rfc3339(),
    }
}

fn shown_roles(shape: RoleShape, roles: Vec<String>) -> (Option<String>, Option<Vec<String>>) {
    let first = roles.first().cloned();
    match shape {
        RoleShape::Both => (first, Some(roles)),
        RoleShape::RoleOnly => (first.clone(), first.map(|role| vec![role])),
        RoleShape::Neither => (None, None),
    }
}

/// The primary address of a list, or else the first one.
fn listed_email(emails: Option<&Value>) -> Option<String> {
    let list = emails?.as_array()?;
    let address = |entry: &Value| entry["value"].as_str().map(str::to_owned);
    let primary = list
        .iter()
        .filter(|entry| entry["primary"] == true)
        .find_map(address);
    primary.or_else(|| list.iter().find_map(address))
}

fn shown(text: Option<&String>) -> Option<String> {
    text.map(|text| text.replace('\0', "\u{fffd}"))
}

fn present(value: Option<&Value>) -> Option<Value> {
    value.filter(|value| !value.is_null()).cloned().map(shown_json)
}

fn shown_json(value: Value) -> Value {
    match value {
        Value::String(text) => Value::String(text.replace('\0', "\u{fffd}")),
        Value::Array(items) => items.into_iter().map(shown_json).collect(),
        Value::Object(fields) => {
            let fields = fields.into_iter();
            let shown = fields.map(|(key, value)| (key.replace('\0', "\u{fffd}"), shown_json(value)));
            Value::Object(shown.collect::<Map<_, _>>())
        }
        other => other,
    }
}
