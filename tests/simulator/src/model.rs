//! The objects in a simulated directory, as the world stores them. `render` knows how they look on the wire. A user's
//! roles are not stored, because they follow from groups.

use serde_json::{Map, Value};

use crate::{clock::Millis, options::DirectoryOptions};

#[derive(Clone, Debug)]
pub(crate) struct Directory {
    pub(crate) id: String,
    pub(crate) organization: Option<String>,
    pub(crate) name: String,
    /// In the words that events use: `active`, `inactive`, `validating`, …
    pub(crate) state: String,
    pub(crate) external_key: String,
    pub(crate) domain: String,
    pub(crate) options: DirectoryOptions,
    pub(crate) created_at: Millis,
    pub(crate) updated_at: Millis,
}

impl Directory {
    /// The state in the words that the API uses.
    pub(crate) fn api_state(&self) -> &str {
        match self.state.as_str() {
            "active" => "linked",
            "inactive" => "unlinked",
            other => other,
        }
    }
}

#[derive(Clone, Debug)]
pub(crate) struct User {
    pub(crate) id: String,
    pub(crate) directory: String,
    pub(crate) profile: Profile,
    /// Whether `user.deleted` was sent although the user was kept.
    pub(crate) announced_deleted: bool,
    pub(crate) created_at: Millis,
    pub(crate) updated_at: Millis,
}

#[derive(Clone, Debug)]
pub(crate) struct Group {
    pub(crate) id: String,
    pub(crate) directory: String,
    pub(crate) idp_id: Option<String>,
    pub(crate) name: Option<String>,
    pub(crate) raw_attributes: Option<Value>,
    /// The role that the group gives its members. It is set in WorkOS's dashboard and not part of the group's object.
    pub(crate) role: Option<String>,
    pub(crate) created_at: Millis,
    pub(crate) updated_at: Millis,
}

/// A user's attributes from the customer's identity provider.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Profile {
    pub(crate) idp_id: Option<String>,
    pub(crate) email: Option<String>,
    pub(crate) username: Option<String>,
    pub(crate) first_name: Option<String>,
    pub(crate) last_name: Option<String>,
    pub(crate) job_title: Option<String>,
    pub(crate) state: Option<String>,
    /// Explicit `emails`; if `None`, they follow from `email`.
    pub(crate) emails: Option<Value>,
    pub(crate) raw_attributes: Option<Value>,
    pub(crate) custom: Option<Map<String, Value>>,
}

impl Profile {
    /// Sets fields by name. `null` clears a field; an unknown name is a custom attribute. Returns the previous values
    /// of the fields that changed, or the name of a field whose value has the wrong type.
    pub(crate) fn set(&mut self, fields: &Map<String, Value>) -> Result<Map<String, Value>, String> {
        let mut previous = Map::new();
        for (name, value) in fields {
            let before = self.set_one(name, value).ok_or_else(|| name.clone())?;
            if before != *value {
                previous.insert(name.clone(), before);
            }
        }
        Ok(previous)
    }

    /// Returns the previous value, or `None` if the new value has the wrong type for this field.
    fn set_one(&mut self, name: &str, value: &Value) -> Option<Value> {
        let text = match name {
            "idp_id" => &mut self.idp_id,
            "email" => &mut self.email,
            "username" => &mut self.username,
            "first_name" => &mut self.first_name,
            "last_name" => &mut self.last_name,
            "job_title" => &mut self.job_title,
            "state" => &mut self.state,
            "emails" => return Some(replace(&mut self.emails, value)),
            "raw_attributes" => return Some(replace(&mut self.raw_attributes, value)),
            custom => return Some(self.set_custom(custom, value)),
        };
        let new = match value {
            Value::Null => None,
            Value::String(string) => Some(string.clone()),
            _ => return None,
        };
        Some(std::mem::replace(text, new).map_or(Value::Null, Value::String))
    }

    fn set_custom(&mut self, name: &str, value: &Value) -> Value {
        let custom = self.custom.get_or_insert_default();
        let before = if value.is_null() {
            custom.remove(name)
        } else {
            custom.insert(name.to_owned(), value.clone())
        };
        before.unwrap_or(Value::Null)
    }

    /// The full name, if there is any part of one.
    pub(crate) fn full_name(&self) -> Option<String> {
        let parts: Vec<&str> = [&self.first_name, &self.last_name]
            .into_iter()
            .flatten()
            .map(String::as_str)
            .collect();
        (!parts.is_empty()).then(|| parts.join(" "))
    }
}

fn replace(slot: &mut Option<Value>, value: &Value) -> Value {
    let new = (!value.is_null()).then(|| value.clone());
    std::mem::replace(slot, new).unwrap_or(Value::Null)
}
