//! What a difference between `WorkOS` and the tables is: of which object, of which kind, in which columns.

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
    /// All of them, in the order reports have.
    pub const EVERY: [Self; 4] = [Self::Directory, Self::User, Self::Group, Self::Membership];

    /// As in metrics, tables and records.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Directory => "directory",
            Self::User => "user",
            Self::Group => "group",
            Self::Membership => "membership",
        }
    }
}

/// In which direction the tables are wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// `WorkOS` has it, the tables do not show it.
    Missing,
    /// The tables show it, `WorkOS` does not have it.
    Extra,
    /// Both have it, and it looks different.
    Differs,
}

impl Kind {
    /// All of them, in the order reports have.
    pub const EVERY: [Self; 3] = [Self::Missing, Self::Extra, Self::Differs];

    /// As in metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Missing => "missing",
            Self::Extra => "extra",
            Self::Differs => "differs",
        }
    }
}

/// One object that is not in the tables as it is at `WorkOS`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Difference {
    /// What kind of object.
    pub entity: Entity,
    /// In which direction.
    pub kind: Kind,
    /// Its id; of a membership `<group_id>/<user_id>`.
    pub id: String,
    /// The columns that differ.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub columns: Vec<String>,
    /// What the tables have and what `WorkOS` has, by column, if asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub values: Option<serde_json::Value>,
}
