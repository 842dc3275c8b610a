//! The key of a directory, user, group or membership, where what kind it is of is known from elsewhere.

use crate::difference::Entity;

/// An object's id or, for a membership, the ids of its group and its user.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ObjectKey {
    /// The group's id, for groups and memberships; otherwise empty.
    pub group_id: String,
    /// The user's id, for users and memberships, or the directory's; for groups empty.
    pub user_id: String,
}

impl ObjectKey {
    /// The key of the directory, user or group with this id.
    pub fn of(entity: Entity, id: String) -> Self {
        let (group_id, user_id) = match entity {
            Entity::Group => (id, String::new()),
            _ => (String::new(), id),
        };
        Self { group_id, user_id }
    }

    /// The key of the membership of `user` in `group`.
    pub fn membership(group: &str, user: &str) -> Self {
        Self {
            group_id: group.to_owned(),
            user_id: user.to_owned(),
        }
    }

    /// The id in the form that differences use.
    pub fn id(&self, entity: Entity) -> String {
        match entity {
            Entity::Membership => format!("{}/{}", self.group_id, self.user_id),
            Entity::Group => self.group_id.clone(),
            Entity::User | Entity::Directory => self.user_id.clone(),
        }
    }
}
