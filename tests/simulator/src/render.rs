//! How objects look on the wire: JSON exactly as WorkOS writes it, in the shape that the directory's options ask for.
//! Pure; knows nothing about events or HTTP.

use serde_json::{Map, Value, json};

use crate::{
    clock::Millis,
    ids::hash,
    model::{Directory, Group, User},
    options::{Absent, DirectoryOptions, RoleShape, Shape, Timestamps},
};

/// Known roles, strongest first. Others come after these, sorted by name.
const LADDER: [&str; 6] = ["owner", "admin", "manager", "editor", "viewer", "member"];

/// Sorts the strongest role first and removes duplicates.
pub(crate) fn sort_roles(roles: &mut Vec<String>) {
    let rank = |slug: &str| {
        LADDER
            .iter()
            .position(|known| *known == slug)
            .unwrap_or(LADDER.len())
    };
    roles.sort_by(|a, b| (rank(a), a).cmp(&(rank(b), b)));
    roles.dedup();
}

/// An object being written.
struct Writer<'a> {
    id: &'a str,
    options: &'a DirectoryOptions,
    fields: Map<String, Value>,
}

impl<'a> Writer<'a> {
    fn new(kind: &str, id: &'a str, options: &'a DirectoryOptions) -> Self {
        let mut fields = Map::new();
        fields.insert("object".to_owned(), json!(kind));
        fields.insert("id".to_owned(), json!(id));
        Self { id, options, fields }
    }

    fn put(&mut self, name: &str, value: impl Into<Value>) {
        self.fields.insert(name.to_owned(), value.into());
    }

    fn put_optional<V: Into<Value>>(&mut self, name: &str, value: Option<V>) {
        if let Some(value) = value.map(Into::into).or_else(|| self.absent(name)) {
            self.put(name, value);
        }
    }

    fn absent(&self, name: &str) -> Option<Value> {
        let written = match self.options.absent {
            Absent::Null => true,
            Absent::Missing => false,
            Absent::Mixed => hash(0, &format!("{}.{name}", self.id)).is_multiple_of(2),
        };
        written.then_some(Value::Null)
    }

    fn put_times(&mut self, created_at: Millis, updated_at: Millis) {
        let text = |at: Millis| match self.options.timestamps {
            Timestamps::Rfc3339 => at.rfc3339(),
            Timestamps::Spaced => at.spaced(),
        };
        let (created, updated) = (text(created_at), text(updated_at));
        self.put("created_at", created);
        self.put("updated_at", updated);
    }
}

/// A directory as shown in events.
pub(crate) fn directory_in_event(directory: &Directory, deleted: bool) -> Value {
    let mut object = directory_base(directory, &directory.state);
    if !deleted {
        object.put("external_key", directory.external_key.as_str());
        let domain_id = directory.id.replace("directory_", "org_domain_");
        object.put(
            "domains",
            json!([{ "object": "organization_domain", "id": domain_id, "domain": directory.domain }]),
        );
    }
    object.fields.into()
}

/// A directory as the API lists it; `users` is (active, not active).
pub(crate) fn directory_in_api(directory: &Directory, users: (usize, usize), groups: usize) -> Value {
    let mut object = directory_base(directory, directory.api_state());
    object.put("external_key", directory.external_key.as_str());
    object.put("domain", directory.domain.as_str());
    object.put(
        "metadata",
        json!({ "users": { "active": users.0, "inactive": users.1 }, "groups": groups }),
    );
    object.fields.into()
}

fn directory_base<'a>(directory: &'a Directory, state: &str) -> Writer<'a> {
    let mut object = Writer::new("directory", &directory.id, &directory.options);
    object.put_optional("organization_id", directory.organization.as_deref());
    object.put("type", directory.options.kind.as_str());
    object.put("state", state);
    object.put("name", directory.name.as_str());
    object.put_times(directory.created_at, directory.updated_at);
    object
}

/// A group, the same everywhere.
pub(crate) fn group(group: &Group, directory: &Directory) -> Value {
    let mut object = Writer::new("directory_group", &group.id, &directory.options);
    object.put("directory_id", group.directory.as_str());
    object.put_optional("organization_id", directory.organization.as_deref());
    object.put_optional("idp_id", group.idp_id.as_deref());
    object.put_optional("name", group.name.as_deref());
    object.put_optional("raw_attributes", group.raw_attributes.clone());
    object.put_times(group.created_at, group.updated_at);
    object.fields.into()
}

/// A user without `groups`. `roles` must be sorted strongest first.
pub(crate) fn user(user: &User, directory: &Directory, roles: &[String]) -> Map<String, Value> {
    let mut object = Writer::new("directory_user", &user.id, &directory.options);
    let profile = &user.profile;
    object.put("directory_id", user.directory.as_str());
    object.put_optional("organization_id", directory.organization.as_deref());
    object.put_optional("idp_id", profile.idp_id.as_deref());
    object.put_optional("first_name", profile.first_name.as_deref());
    object.put_optional("last_name", profile.last_name.as_deref());
    object.put_optional("name", profile.full_name());
    object.put_optional("state", profile.state.as_deref());
    object.put_optional("raw_attributes", profile.raw_attributes.clone());
    put_movable(&mut object, user, directory.options.shape);
    put_roles(&mut object, roles);
    object.put_times(user.created_at, user.updated_at);
    object.fields
}

/// The attributes that newer environments moved into `custom_attributes`.
fn put_movable(object: &mut Writer<'_>, user: &User, shape: Shape) {
    let profile = &user.profile;
    let emails = profile
        .emails
        .clone()
        .or_else(|| Some(json!([{ "primary": true, "type": "work", "value": profile.email.as_ref()? }])));
    let text = |value: &Option<String>| value.clone().map(Value::String);
    let mut custom = profile.custom.clone();
    for (name, value) in [
        ("email", text(&profile.email)),
        ("username", text(&profile.username)),
        ("job_title", text(&profile.job_title)),
        ("emails", emails),
    ] {
        let on_top = shape == Shape::Old || (shape == Shape::Spec && name == "email");
        if on_top {
            object.put_optional(name, value);
        } else if let Some(value) = value {
            custom.get_or_insert_default().insert(name.to_owned(), value);
        }
    }
    object.put_optional("custom_attributes", custom);
}

fn put_roles(object: &mut Writer<'_>, roles: &[String]) {
    let slim = |slug: &String| json!({ "slug": slug });
    match object.options.roles {
        RoleShape::Neither => {}
        RoleShape::RoleOnly => object.put_optional("role", roles.first().map(slim)),
        RoleShape::Both => {
            object.put_optional("role", roles.first().map(slim));
            object.put("roles", roles.iter().map(slim).collect::<Value>());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Profile;

    fn sample(options: DirectoryOptions) -> (User, Directory) {
        let directory = Directory {
            id: "directory_01".to_owned(),
            organization: None,
            name: "One".to_owned(),
            state: "active".to_owned(),
            external_key: "key".to_owned(),
            domain: "one.example.com".to_owned(),
            options,
            created_at: Millis(0),
            updated_at: Millis(0),
        };
        let user = User {
            id: "directory_user_01".to_owned(),
            directory: directory.id.clone(),
            profile: Profile {
                email: Some("a@one.example.com".to_owned()),
                job_title: Some("Cook".to_owned()),
                ..Profile::default()
            },
            announced_deleted: false,
            created_at: Millis(0),
            updated_at: Millis(0),
        };
        (user, directory)
    }

    #[test]
    fn both_shapes() {
        let (old_user, old) = sample(DirectoryOptions::default());
        let object = user(&old_user, &old, &["admin".to_owned()]);
        assert_eq!(object["email"], "a@one.example.com");
        assert_eq!(object["job_title"], "Cook");
        assert_eq!(object["emails"][0]["value"], "a@one.example.com");
        assert_eq!(object["custom_attributes"], Value::Null);
        assert_eq!(object["role"]["slug"], "admin");

        let (new_user, new) = sample(DirectoryOptions::newer());
        let object = user(&new_user, &new, &[]);
        assert!(!object.contains_key("email") && !object.contains_key("emails"));
        assert_eq!(object["custom_attributes"]["email"], "a@one.example.com");
        assert_eq!(object["custom_attributes"]["job_title"], "Cook");
        assert_eq!(object["roles"], json!([]));
    }

    #[test]
    fn absent_is_null_or_missing() {
        let (person, mut directory) = sample(DirectoryOptions::default());
        assert_eq!(user(&person, &directory, &[])["organization_id"], Value::Null);
        directory.options.absent = Absent::Missing;
        assert!(!user(&person, &directory, &[]).contains_key("organization_id"));
    }

    #[test]
    fn the_strongest_role_first() {
        let mut roles: Vec<String> = ["zeta", "member", "alpha", "admin", "member"]
            .map(String::from)
            .to_vec();
        sort_roles(&mut roles);
        assert_eq!(roles, ["admin", "member", "alpha", "zeta"]);
    }
}
