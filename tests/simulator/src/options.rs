//! The differences between WorkOS environments and between customers' directories: the shapes that a simulated
//! directory may take. Data only.

use serde::{Deserialize, Serialize};

/// Where a user's `email`, `username`, `job_title` and `emails` are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Shape {
    /// All four at the top level: older environments.
    #[default]
    Old,
    /// All four in `custom_attributes`: newer environments.
    New,
    /// `email` at the top level, the others in `custom_attributes`, as in the published specification.
    Spec,
}

/// How an absent value is written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Absent {
    /// As `null`.
    #[default]
    Null,
    /// The field is left out.
    Missing,
    /// Either way, depending on object and field, and always the same way for the same ones.
    Mixed,
}

/// How a user's roles, derived from groups, are written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RoleShape {
    /// `role` and `roles`.
    #[default]
    Both,
    /// `role` alone: older environments.
    RoleOnly,
    /// Neither: no roles are configured.
    Neither,
}

/// Where `updated` events have `previous_attributes`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Previous {
    /// In `data`.
    #[default]
    Data,
    /// In `context`.
    Context,
    /// Nowhere.
    Nowhere,
}

/// How an object's timestamps are written. An event's own are always RFC 3339.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Timestamps {
    /// `2023-04-28T20:05:31.093Z`.
    #[default]
    Rfc3339,
    /// `2023-04-28 20:05:31.093`, meaning UTC.
    Spaced,
}

/// Which organization a directory belongs to.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Owner {
    /// A new organization, created for it.
    #[default]
    New,
    /// None yet: `organization_id` is absent from the directory and from everything in it.
    Nobody,
    /// The organization with this id.
    Organization(String),
}

/// How one directory looks and behaves.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DirectoryOptions {
    /// The organization it belongs to.
    pub owner: Owner,
    /// Its name; made up if `None`.
    pub name: Option<String>,
    /// WorkOS's `type`.
    pub kind: String,
    /// Its state, in the words that events use. A directory created in any state but `active` emits no event.
    pub state: String,
    /// Where some user attributes are.
    pub shape: Shape,
    /// How absent values are written.
    pub absent: Absent,
    /// How roles are written.
    pub roles: RoleShape,
    /// The role of users who have none from a group.
    pub default_role: Option<String>,
    /// Where previous attributes are.
    pub previous: Previous,
    /// How timestamps are written.
    pub timestamps: Timestamps,
    /// Whether the API fills users' `groups`, as for teams older than 2026-05-01. If not, it is `[]`.
    pub groups_field: bool,
    /// Whether randomly generated users lack about a third of their optional attributes.
    pub sparse: bool,
    /// Whether randomly generated users have attributes that are hard to store: NUL characters, depth, dots, size.
    pub odd: bool,
}

impl Default for DirectoryOptions {
    fn default() -> Self {
        Self {
            owner: Owner::New,
            name: None,
            kind: "okta scim v2.0".to_owned(),
            state: "active".to_owned(),
            shape: Shape::Old,
            absent: Absent::Null,
            roles: RoleShape::Both,
            default_role: Some("member".to_owned()),
            previous: Previous::Data,
            timestamps: Timestamps::Rfc3339,
            groups_field: true,
            sparse: false,
            odd: false,
        }
    }
}

impl DirectoryOptions {
    /// A newer environment: attributes in `custom_attributes`, `groups: []`.
    pub fn newer() -> Self {
        Self {
            shape: Shape::New,
            groups_field: false,
            previous: Previous::Context,
            ..Self::default()
        }
    }

    /// A newer environment in which everything that can be odd is odd.
    pub fn awkward() -> Self {
        Self {
            absent: Absent::Mixed,
            default_role: None,
            timestamps: Timestamps::Spaced,
            sparse: true,
            odd: true,
            ..Self::newer()
        }
    }
}
