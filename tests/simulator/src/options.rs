//! What differs from one WorkOS environment, or customer's directory, to the next: the shapes a simulated directory
//! may take. Data only.

use serde::{Deserialize, Serialize};

/// Where `email`, `username`, `job_title` and `emails` of a user stand.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Shape {
    /// All four at the top level: older environments.
    #[default]
    Old,
    /// All four in `custom_attributes`: newer environments.
    New,
    /// `email` at the top level, the others in `custom_attributes`: what the published specification says.
    Spec,
}

/// How a value that is not there is written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Absent {
    /// As `null`.
    #[default]
    Null,
    /// Not at all.
    Missing,
    /// One or the other, by object and field; always the same for the same one.
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

/// Where `updated` events carry `previous_attributes`.
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

/// Whose directory it is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Owner {
    /// An organization made for it.
    #[default]
    New,
    /// Nobody yet: `organization_id` is absent from it and from all it holds.
    Nobody,
    /// That organization.
    Organization(String),
}

/// How one directory looks and behaves.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DirectoryOptions {
    /// Whose it is.
    pub owner: Owner,
    /// Its name; made up when absent.
    pub name: Option<String>,
    /// WorkOS's `type`.
    pub kind: String,
    /// Its state in the events' vocabulary. Anything but `active` at creation is created silently.
    pub state: String,
    /// Where some user attributes stand.
    pub shape: Shape,
    /// How absent values are written.
    pub absent: Absent,
    /// How roles are written.
    pub roles: RoleShape,
    /// The role of users whom no group gives one.
    pub default_role: Option<String>,
    /// Where previous attributes go.
    pub previous: Previous,
    /// How timestamps are written.
    pub timestamps: Timestamps,
    /// Whether the API fills `groups` of users: teams older than 2026-05-01. `[]` otherwise.
    pub groups_field: bool,
    /// Users made up at random lack about a third of what can be lacking.
    pub sparse: bool,
    /// Users made up at random carry attributes that are hard to store: NUL characters, depth, dots, size.
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

    /// Everything that can be odd is odd.
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
