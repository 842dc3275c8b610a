//! Decides where in the log an event is filed, reading as little of its body as possible.

use std::borrow::Cow;

use serde_json::value::RawValue;

use crate::directory;
use crate::event::{Change, Kind, MembershipData};
use crate::ids::{DirectoryId, EventId, is_id};
use crate::json::{self, Malformed, members};
use crate::record::{Source, Subject};

/// Where a body belongs in the log, if anywhere.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Address {
    /// A Directory Sync event, or one of a sweep's.
    Ours {
        /// The event's id.
        id: String,
        /// Its type.
        event_type: String,
        /// The subject to file it under.
        subject: Subject,
    },
    /// An event of another product.
    NotOurs,
    /// A body for which no subject can be determined.
    Unaddressable {
        /// The event's id, if it has one.
        id: Option<String>,
        /// Its type, if it has one that fits a header.
        event_type: Option<String>,
        /// What is wrong with it.
        why: Unaddressable,
    },
}

/// Why a body cannot be addressed. Reveals none of its content.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Unaddressable {
    /// The body is not an event.
    #[error(transparent)]
    Malformed(#[from] Malformed),
    /// The event's type is missing, or not a valid name.
    #[error("the event's type is not readable")]
    Type,
    /// An id is missing, too long, or has characters that no id may have.
    #[error("`{0}` is missing or not an id")]
    Id(&'static str),
}

/// Determines where to file `body`, which arrived through `source`.
pub fn address(body: &[u8], source: Source) -> Address {
    let unaddressable = |why| Address::Unaddressable {
        id: None,
        event_type: None,
        why,
    };
    let text = match json::storable(body) {
        Ok(text) => text,
        Err(malformed) => return unaddressable(malformed.into()),
    };
    let [id, event_type, data] = match members(&text, &["id", "event", "data"]) {
        Ok(found) => found,
        Err(malformed) => return unaddressable(malformed.into()),
    };
    let Some(event_type) = event_type.and_then(json::string) else {
        return unaddressable(Unaddressable::Type);
    };
    let kind = Kind::of(&event_type);
    let ours = if source == Source::Sweep {
        "sweep."
    } else {
        "dsync."
    };
    if !event_type.starts_with(ours) {
        return Address::NotOurs;
    }
    let id = id
        .and_then(json::string)
        .and_then(EventId::new)
        .map(|id| id.to_string());
    let subject = match data {
        _ if !is_type(&event_type) => Err(Unaddressable::Type),
        Some(data) => subject(kind, &event_type, data),
        None => Err(Malformed::Missing("data").into()),
    };
    match (id, subject) {
        (Some(id), Ok(subject)) => Address::Ours {
            id,
            event_type: event_type.into_owned(),
            subject,
        },
        (id, subject) => Address::Unaddressable {
            why: subject.err().unwrap_or(Unaddressable::Id("id")),
            event_type: is_type(&event_type).then(|| event_type.into_owned()),
            id,
        },
    }
}

/// Whether an event's type can be used in a header, and its last word in a subject.
fn is_type(event_type: &str) -> bool {
    event_type.len() <= 128 && event_type.split('.').all(is_id)
}

fn subject(kind: Kind, event_type: &str, data: &RawValue) -> Result<Subject, Unaddressable> {
    let verb = event_type.rsplit('.').next().unwrap_or(event_type);
    let subject = match kind {
        Kind::Directory(_) => format!("dsync.{}.directory.{verb}", id_of(data)?),
        Kind::User(change) => {
            let verb = if change != Change::Gone && is_inactive(data.get()) {
                "deactivated"
            } else {
                verb
            };
            format!("dsync.{}.user.{}.{verb}", directory_of(data)?, id_of(data)?)
        }
        Kind::Group(_) => format!("dsync.{}.group.{}.{verb}", directory_of(data)?, id_of(data)?),
        Kind::Membership(_) => {
            let parts = MembershipData::parse(data)?;
            let directory = match parts
                .directory_id
                .and_then(json::string)
                .and_then(DirectoryId::new)
            {
                Some(directory) => directory,
                None => directory_of(parts.user).or_else(|_| directory_of(parts.group))?,
            };
            let verb = verb.strip_prefix("user_").unwrap_or(verb);
            let (group, user) = (id_of(parts.group)?, id_of(parts.user)?);
            format!("dsync.{directory}.membership.{group}.{user}.{verb}")
        }
        Kind::Token => format!("dsync.{}.token.{verb}", any_directory_of(data)?),
        Kind::Other => format!("dsync.{}.other.{verb}", any_directory_of(data)?),
        Kind::Foreign => return Err(Unaddressable::Type),
    };
    Ok(Subject::from_log(subject))
}

fn id_of(object: &RawValue) -> Result<Cow<'_, str>, Unaddressable> {
    let [id] = members(object.get(), &["id"])?;
    id.and_then(json::string)
        .filter(|id| is_id(id))
        .ok_or(Unaddressable::Id("data.id"))
}

fn directory_of(object: &RawValue) -> Result<DirectoryId<'_>, Unaddressable> {
    let [directory] = members(object.get(), &["directory_id"])?;
    directory
        .and_then(json::string)
        .and_then(DirectoryId::new)
        .ok_or(Unaddressable::Id("data.directory_id"))
}

/// The directory that a token's event, or an event of an unknown kind, is about: its `directory_id`, or the object
/// itself if that is a directory.
fn any_directory_of(data: &RawValue) -> Result<DirectoryId<'_>, Unaddressable> {
    directory_of(data).or_else(|missing| {
        let [object] = members(data.get(), &["object"])?;
        match object.and_then(json::string).as_deref() {
            Some("directory") => Ok(directory::directory(data.get())?.id),
            _ => Err(missing),
        }
    })
}

/// Whether the `state` of a user, given as JSON text, is present and other than `active`. A user without a state is not active either, but the
/// event does not report a deactivation.
pub fn is_inactive(user: &str) -> bool {
    members(user, &["state"])
        .is_ok_and(|[state]| state.and_then(json::text).is_some_and(|state| state != "active"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filed(body: &str, source: Source) -> String {
        match address(body.as_bytes(), source) {
            Address::Ours { subject, .. } => subject.to_string(),
            Address::NotOurs => "not ours".to_owned(),
            Address::Unaddressable { why, .. } => why.to_string(),
        }
    }

    #[test]
    fn every_kind_has_its_place() {
        let user = |event: &str, state: &str| {
            format!(r#"{{"id":"e","event":"{event}","data":{{"id":"u","directory_id":"d"{state}}}}}"#)
        };
        let active = r#","state":"active""#;
        let suspended = r#","state":"suspended""#;
        for (body, subject) in [
            (user("dsync.user.created", active), "dsync.d.user.u.created"),
            (user("dsync.user.updated", ""), "dsync.d.user.u.updated"),
            (user("dsync.user.updated", suspended), "dsync.d.user.u.deactivated"),
            (user("dsync.user.created", suspended), "dsync.d.user.u.deactivated"),
            (user("dsync.user.deleted", suspended), "dsync.d.user.u.deleted"),
            (user("dsync.group.deleted", ""), "dsync.d.group.u.deleted"),
            (user("dsync.token.created", ""), "dsync.d.token.created"),
            (user("dsync.user.merged", ""), "dsync.d.other.merged"),
            (user("user.created", ""), "not ours"),
            (user("sweep.user.missing", ""), "not ours"),
            (user("dsync.user.cre ated", ""), "the event's type is not readable"),
            (r#"{"id":"e","event":"dsync.activated","data":{"id":"d"}}"#.to_owned(), "dsync.d.directory.activated"),
            (
                r#"{"id":"e","event":"dsync.thawed","data":{"id":"d","object":"directory"}}"#.to_owned(),
                "dsync.d.other.thawed",
            ),
            (
                r#"{"id":"e","event":"dsync.group.user_added","data":{"directory_id":"d","user":{"id":"u"},"group":{"id":"g"}}}"#
                    .to_owned(),
                "dsync.d.membership.g.u.added",
            ),
            (
                r#"{"id":"e","event":"dsync.group.user_removed","data":{"user":{"id":"u"},"group":{"id":"g","directory_id":"d"}}}"#
                    .to_owned(),
                "dsync.d.membership.g.u.removed",
            ),
        ] {
            assert_eq!(filed(&body, Source::Webhook), subject, "{body}");
        }
        let listed = user("sweep.user.listed", r#","state":"inactive""#);
        assert_eq!(filed(&listed, Source::Sweep), "dsync.d.user.u.deactivated");
        assert_eq!(
            filed(&user("sweep.user.missing", ""), Source::Sweep),
            "dsync.d.user.u.missing"
        );
    }

    #[test]
    fn what_has_no_place_is_told_why() {
        for (body, why) in [
            ("", "not a JSON object"),
            ("[]", "not a JSON object"),
            (r#"{"id":"e"}"#, "the event's type is not readable"),
            (
                r#"{"id":"e","event":"dsync.user.created"}"#,
                "`data` is missing or not readable",
            ),
            (
                r#"{"id":"e","event":"dsync.user.created","data":{"id":"u"}}"#,
                "`data.directory_id` is missing or not an id",
            ),
            (
                r#"{"id":"e","event":"dsync.user.created","data":{"id":"u.*","directory_id":"d"}}"#,
                "`data.id` is missing or not an id",
            ),
            (
                r#"{"id":"e f","event":"dsync.activated","data":{"id":"d"}}"#,
                "`id` is missing or not an id",
            ),
        ] {
            assert_eq!(filed(body, Source::Webhook), why, "{body}");
        }
        assert!(matches!(
            address(br#"{"id":"event_9","event":"dsync.activated","data":{}}"#, Source::Webhook),
            Address::Unaddressable { id: Some(id), event_type: Some(_), .. } if id == "event_9"
        ));
    }
}
