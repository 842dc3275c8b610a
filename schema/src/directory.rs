//! WorkOS's directories, users and groups as received: anything but the id may be missing, null, in its old or its new
//! place, or of a type other than documented.
//!
//! Each object is read from its JSON text (already [`storable`](crate::json::storable)) and borrows from it. A value
//! that makes no sense counts as absent. The only errors are JSON that is not an object, and an object without an id.

use std::borrow::Cow;

use serde_json::value::RawValue;
use sha2::{Digest as _, Sha256};

use crate::ids::{DirectoryId, GroupId, UserId, is_id};
use crate::json::{self, Malformed};
use crate::timestamp::Timestamp;

/// Text, borrowed from the event where possible.
pub type Text<'a> = Cow<'a, str>;

/// When an object was created and last updated, by its own account.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Times {
    /// `created_at`.
    pub created_at: Option<Timestamp>,
    /// `updated_at`.
    pub updated_at: Option<Timestamp>,
}

impl Times {
    /// The time for which the object speaks: its `updated_at` or, if that is missing, its `created_at`.
    pub fn speaks_for(&self) -> Option<Timestamp> {
        self.updated_at.or(self.created_at)
    }
}

/// What a directory says about itself.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Directory<'a> {
    /// The organization it belongs to, once it is linked to one.
    pub organization_id: Option<Text<'a>>,
    /// Its name.
    pub name: Option<Text<'a>>,
    /// The kind of provider, such as `okta scim v2.0`.
    pub kind: Option<Text<'a>>,
    /// Its state, in the words that events use: `linked` becomes `active`, `unlinked` becomes `inactive`, and any other
    /// stays as received.
    pub state: Option<Text<'a>>,
    /// Its external key.
    pub external_key: Option<Text<'a>>,
    /// When it was created and last updated.
    pub times: Times,
}

/// What a user says about itself.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct User<'a> {
    /// The user's own `organization_id`.
    pub organization_id: Option<Text<'a>>,
    /// The identity provider's id; not unique.
    pub idp_id: Option<Text<'a>>,
    /// The email address, wherever the object holds it; not unique.
    pub email: Option<Text<'a>>,
    /// The user name, from the top level or `custom_attributes`.
    pub username: Option<Text<'a>>,
    /// The first name.
    pub first_name: Option<Text<'a>>,
    /// The last name.
    pub last_name: Option<Text<'a>>,
    /// The full name.
    pub name: Option<Text<'a>>,
    /// The job title, from the top level or `custom_attributes`.
    pub job_title: Option<Text<'a>>,
    /// `active`, `suspended`, `inactive`, or whatever WorkOS thinks of next.
    pub state: Option<Text<'a>>,
    /// The slug of WorkOS's own role.
    pub role: Option<Text<'a>>,
    /// The slugs of WorkOS's own roles; `[role]` if only `role` was given.
    pub roles: Vec<Text<'a>>,
    /// `custom_attributes`, as JSON text.
    pub custom_attributes: Option<&'a str>,
    /// `raw_attributes`, as JSON text.
    pub raw_attributes: Option<&'a str>,
    /// When it was created and last updated.
    pub times: Times,
}

/// What a group says about itself.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Group<'a> {
    /// The group's own `organization_id`.
    pub organization_id: Option<Text<'a>>,
    /// The identity provider's id; not unique.
    pub idp_id: Option<Text<'a>>,
    /// Its name.
    pub name: Option<Text<'a>>,
    /// `raw_attributes`, as JSON text.
    pub raw_attributes: Option<&'a str>,
    /// When it was created and last updated.
    pub times: Times,
}

/// An object, with the ids it names and a digest of its text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Object<'a, Id, Attributes> {
    /// Its own id.
    pub id: Id,
    /// The directory it says it is in.
    pub directory: Option<DirectoryId<'a>>,
    /// What it says about itself.
    pub attributes: Attributes,
    /// The first eight bytes of the SHA-256 of its text. Breaks the tie between two versions of one object that have
    /// all their times and the event that reported them in common.
    pub digest: i64,
}

/// A value as text, if it is one.
fn text(value: Option<&RawValue>) -> Option<Text<'_>> {
    value.and_then(json::text)
}

/// An organization's id. Text that could not be an id names no organization, so the object belongs to no tenant.
fn organization(value: Option<&RawValue>) -> Option<Text<'_>> {
    string(value).filter(|id| is_id(id))
}

fn string(value: Option<&RawValue>) -> Option<Text<'_>> {
    value.and_then(json::string)
}

fn moment(value: Option<&RawValue>) -> Option<Timestamp> {
    text(value).and_then(|text| Timestamp::parse(&text))
}

fn digest(object: &str) -> i64 {
    let hash = Sha256::digest(object.as_bytes());
    let mut first = [0; 8];
    first.copy_from_slice(&hash[..8]);
    i64::from_be_bytes(first)
}

/// Reads a directory from its JSON text.
pub fn directory(object: &str) -> Result<Object<'_, DirectoryId<'_>, Directory<'_>>, Malformed> {
    let [
        id,
        organization_id,
        name,
        kind,
        state,
        external_key,
        created_at,
        updated_at,
    ] = json::members(
        object,
        &[
            "id",
            "organization_id",
            "name",
            "type",
            "state",
            "external_key",
            "created_at",
            "updated_at",
        ],
    )?;
    let id = string(id)
        .and_then(DirectoryId::new)
        .ok_or(Malformed::Missing("id"))?;
    Ok(Object {
        directory: Some(id.clone()),
        id,
        attributes: Directory {
            organization_id: organization(organization_id),
            name: text(name),
            kind: text(kind),
            state: text(state).map(|state| match &*state {
                "linked" => "active".into(),
                "unlinked" => "inactive".into(),
                _ => state,
            }),
            external_key: text(external_key),
            times: Times {
                created_at: moment(created_at),
                updated_at: moment(updated_at),
            },
        },
        digest: digest(object),
    })
}

/// Reads a group from its JSON text.
pub fn group(object: &str) -> Result<Object<'_, GroupId<'_>, Group<'_>>, Malformed> {
    let [
        id,
        directory_id,
        organization_id,
        idp_id,
        name,
        raw_attributes,
        created_at,
        updated_at,
    ] = json::members(
        object,
        &[
            "id",
            "directory_id",
            "organization_id",
            "idp_id",
            "name",
            "raw_attributes",
            "created_at",
            "updated_at",
        ],
    )?;
    Ok(Object {
        id: string(id)
            .and_then(GroupId::new)
            .ok_or(Malformed::Missing("id"))?,
        directory: string(directory_id).and_then(DirectoryId::new),
        attributes: Group {
            organization_id: organization(organization_id),
            idp_id: text(idp_id),
            name: text(name),
            raw_attributes: raw_attributes.map(RawValue::get),
            times: Times {
                created_at: moment(created_at),
                updated_at: moment(updated_at),
            },
        },
        digest: digest(object),
    })
}

/// Reads a user from its JSON text.
pub fn user(object: &str) -> Result<Object<'_, UserId<'_>, User<'_>>, Malformed> {
    let [
        id,
        directory_id,
        organization_id,
        idp_id,
        first_name,
        last_name,
        name,
        state,
    ] = json::members(
        object,
        &[
            "id",
            "directory_id",
            "organization_id",
            "idp_id",
            "first_name",
            "last_name",
            "name",
            "state",
        ],
    )?;
    let [
        role,
        roles,
        raw_attributes,
        custom_attributes,
        created_at,
        updated_at,
    ] = json::members(
        object,
        &[
            "role",
            "roles",
            "raw_attributes",
            "custom_attributes",
            "created_at",
            "updated_at",
        ],
    )?;
    let moved = Moved::read(object, custom_attributes)?;
    let role = role.and_then(slug);
    Ok(Object {
        id: string(id).and_then(UserId::new).ok_or(Malformed::Missing("id"))?,
        directory: string(directory_id).and_then(DirectoryId::new),
        attributes: User {
            organization_id: organization(organization_id),
            idp_id: text(idp_id),
            email: moved.email,
            username: moved.username,
            first_name: text(first_name),
            last_name: text(last_name),
            name: text(name),
            job_title: moved.job_title,
            state: text(state),
            roles: match roles {
                Some(roles) => json::elements(roles).into_iter().filter_map(slug).collect(),
                None => role.iter().cloned().collect(),
            },
            role,
            custom_attributes: custom_attributes.map(RawValue::get),
            raw_attributes: raw_attributes.map(RawValue::get),
            times: Times {
                created_at: moment(created_at),
                updated_at: moment(updated_at),
            },
        },
        digest: digest(object),
    })
}

/// The attributes that WorkOS moved from a user's top level into its `custom_attributes`. The top level wins.
struct Moved<'a> {
    email: Option<Text<'a>>,
    username: Option<Text<'a>>,
    job_title: Option<Text<'a>>,
}

impl<'a> Moved<'a> {
    fn read(object: &'a str, custom_attributes: Option<&'a RawValue>) -> Result<Self, Malformed> {
        const NAMES: [&str; 4] = ["email", "username", "job_title", "emails"];
        let [email, username, job_title, emails] = json::members(object, &NAMES)?;
        // Custom attributes that are not an object are kept as they are, but there is nothing to find in them.
        let custom = custom_attributes.and_then(|custom| json::members(custom.get(), &NAMES).ok());
        let [custom_email, custom_username, custom_job_title, custom_emails] = custom.unwrap_or_default();
        Ok(Self {
            email: text(email)
                .or_else(|| text(custom_email))
                .or_else(|| primary(emails))
                .or_else(|| primary(custom_emails)),
            username: text(username).or_else(|| text(custom_username)),
            job_title: text(job_title).or_else(|| text(custom_job_title)),
        })
    }
}

/// The email address marked as primary or, if there is none, the first one. Entries without a value do not count.
fn primary(emails: Option<&RawValue>) -> Option<Text<'_>> {
    let mut first = None;
    for email in json::elements(emails?) {
        let Ok([value, primary]) = json::members(email.get(), &["value", "primary"]) else {
            continue;
        };
        let Some(value) = text(value) else { continue };
        if primary.is_some_and(|primary| primary.get() == "true") {
            return Some(value);
        }
        first.get_or_insert(value);
    }
    first
}

/// A role's slug, from `{"slug": …}` or from a bare string.
fn slug(role: &RawValue) -> Option<Text<'_>> {
    match json::members(role.get(), &["slug"]) {
        Ok([slug]) => text(slug),
        Err(_) => json::text(role),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_shapes_of_a_user_read_the_same() {
        let old = user(
            r#"{"id":"u1","directory_id":"d1","email":"a@x.io","username":"a","job_title":"T","state":"active",
                "role":{"slug":"admin"},"created_at":"2024-01-01T00:00:00Z"}"#,
        )
        .unwrap();
        let new = user(
            r#"{"id":"u1","directory_id":"d1","email":null,"state":"active","roles":[{"slug":"admin"}],
                "role":{"slug":"admin"},"created_at":"2024-01-01 00:00:00.000",
                "custom_attributes":{"email":"a@x.io","username":"a","job_title":"T"}}"#,
        )
        .unwrap();
        assert_eq!(new.attributes.custom_attributes.map(str::len), Some(49));
        assert_eq!(
            old.attributes,
            User {
                custom_attributes: None,
                ..new.attributes
            }
        );
        assert_ne!(old.digest, new.digest);
    }

    #[test]
    fn an_email_is_found_wherever_it_came() {
        for (object, expected) in [
            (
                r#"{"id":"u","email":"top","custom_attributes":{"email":"custom"}}"#,
                Some("top"),
            ),
            (
                r#"{"id":"u","emails":[{"value":"first"},{"primary":true,"value":"main"}]}"#,
                Some("main"),
            ),
            (
                r#"{"id":"u","emails":[{"value":null,"primary":true},{"value":"second"}]}"#,
                Some("second"),
            ),
            (
                r#"{"id":"u","custom_attributes":{"emails":[{"value":"c"}]},"emails":[]}"#,
                Some("c"),
            ),
            (
                r#"{"id":"u","custom_attributes":"no object","emails":{"value":"x"}}"#,
                None,
            ),
        ] {
            assert_eq!(
                user(object).unwrap().attributes.email.as_deref(),
                expected,
                "{object}"
            );
        }
    }

    #[test]
    fn nothing_but_the_id_is_needed() {
        assert_eq!(user(r#"{"id":"u1"}"#).unwrap().attributes, User::default());
        assert_eq!(
            group(r#"{"id":"g1","name":7}"#)
                .unwrap()
                .attributes
                .name
                .as_deref(),
            Some("7")
        );
        assert_eq!(
            directory(r#"{"id":"d1","state":"linked"}"#)
                .unwrap()
                .attributes
                .state
                .as_deref(),
            Some("active")
        );
        assert_eq!(group(r#"{"name":"x"}"#), Err(Malformed::Missing("id")));
        assert_eq!(user(r#"{"id":"a.b"}"#), Err(Malformed::Missing("id")));
    }
}
