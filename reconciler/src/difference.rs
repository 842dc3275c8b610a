//! A difference between `WorkOS` and the tables: which object, what kind of difference, in which columns.

use serde::Serialize;

/// What kind of object differs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Entity {
    /// A directory.
    Directory,
    /// A user.
    User,
    /// A group.
    Group,
    /// A membership.
    Membership,
}

impl Entity {
    /// All of them, in the order that reports use.
    pub const EVERY: [Self; 4] = [Self::Directory, Self::User, Self::Group, Self::Membership];

    /// The name used in metrics, tables and records.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Directory => "directory",
            Self::User => "user",
            Self::Group => "group",
            Self::Membership => "membership",
        }
    }
}

/// How the tables are wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// `WorkOS` has it, but the tables do not show it.
    Missing,
    /// The tables show it, but `WorkOS` does not have it.
    Extra,
    /// Both have it, with different values.
    Differs,
}

impl Kind {
    /// All of them, in the order that reports use.
    pub const EVERY: [Self; 3] = [Self::Missing, Self::Extra, Self::Differs];

    /// The name used in metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Missing => "missing",
            Self::Extra => "extra",
            Self::Differs => "differs",
        }
    }
}

/// One object that the tables do not show as `WorkOS` has it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Difference {
    /// What kind of object.
    pub entity: Entity,
    /// How the tables are wrong about it.
    pub kind: Kind,
    /// Its id; for a membership, `<group_id>/<user_id>`.
    pub id: String,
    /// The columns that differ.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub columns: Vec<String>,
    /// The values in the tables and at `WorkOS`, by column, if asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub values: Option<serde_json::Value>,
}

impl Difference {
    /// An object that the tables show and `WorkOS` does not have.
    pub fn extra(entity: Entity, id: String) -> Self {
        Self {
            entity,
            kind: Kind::Extra,
            id,
            columns: Vec::new(),
            values: None,
        }
    }
}
