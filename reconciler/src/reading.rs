//! Turns readings into records of the log: what a sweep saw, in the same envelope as events.
//!
//! The id is derived from the object, the time and the content, so that a reading appended twice is one record.

use bytes::Bytes;
use schema::address::is_inactive;
use schema::json;
use schema::record::{Received, Record, Source};
use schema::timestamp::Timestamp;
use serde_json::json;
use sha2::{Digest as _, Sha256};

use crate::difference::Entity;

/// One thing that was seen, or seen to be gone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reading {
    entity: Entity,
    verb: &'static str,
    key: String,
    at: Timestamp,
    data: String,
}

/// The directory, group and user of a membership, as far as a reading knows them.
#[derive(Debug, Clone, Copy)]
pub struct Pair<'a> {
    /// The directory both are in.
    pub directory: &'a str,
    /// Its organization, if known.
    pub organization: Option<&'a str>,
    /// The group.
    pub group: &'a str,
    /// The user.
    pub user: &'a str,
}

impl Reading {
    /// A directory, user or group was there at `at` and looked like `object`, its JSON text. `directory` is ignored for a
    /// directory, which is in none.
    pub fn listed(entity: Entity, directory: &str, id: &str, object: &str, at: Timestamp) -> Self {
        Self {
            entity,
            verb: "listed",
            key: id.to_owned(),
            at,
            data: with_directory(entity, directory, object),
        }
    }

    /// A directory, user or group was not there at `at`. `directory` as in [`Reading::listed`].
    pub fn missing(entity: Entity, directory: &str, id: &str, at: Timestamp) -> Self {
        let data = match entity {
            Entity::Directory => json!({ "id": id }),
            _ => json!({ "id": id, "directory_id": directory }),
        };
        Self {
            entity,
            verb: "missing",
            key: id.to_owned(),
            at,
            data: data.to_string(),
        }
    }

    /// A membership was there at `at`, or was not. This says nothing about the user and the group, which carry no
    /// times.
    pub fn membership(pair: Pair<'_>, there: bool, at: Timestamp) -> Self {
        let mut user = json!({ "id": pair.user, "directory_id": pair.directory });
        if let Some(organization) = pair.organization {
            user["organization_id"] = organization.into();
        }
        let data = json!({
            "directory_id": pair.directory,
            "user": user,
            "group": { "id": pair.group, "directory_id": pair.directory },
        });
        Self {
            entity: Entity::Membership,
            verb: if there { "listed" } else { "missing" },
            key: format!("{}/{}", pair.group, pair.user),
            at,
            data: data.to_string(),
        }
    }

    /// The record to append. `None` if the object cannot be addressed, for example because an id is invalid.
    pub fn record(&self, now: Timestamp) -> Option<Record> {
        let entity = self.entity.as_str();
        let at = self.at.to_string();
        let mut hash = Sha256::new();
        for part in [entity, self.verb, &self.key, &at, &self.data] {
            hash.update(part);
            hash.update([0]);
        }
        let id = format!("sweep_{}", hex::encode(&hash.finalize()[..16]));
        let body = format!(
            r#"{{"object":"event","id":"{id}","event":"sweep.{entity}.{verb}","created_at":"{at}","data":{data}}}"#,
            verb = self.verb,
            data = self.data,
        );
        match Record::receive(Bytes::from(body), Source::Sweep, None, now) {
            Received::Event(record) => Some(record),
            Received::Quarantined(..) | Received::NotOurs => None,
        }
    }

    /// Whether this takes something away.
    pub fn is_removal(&self) -> bool {
        self.verb == "missing" || (self.entity == Entity::User && is_inactive(&self.data))
    }
}

/// The object's text, with the directory it was listed in added if it does not name one itself.
fn with_directory(entity: Entity, directory: &str, object: &str) -> String {
    let named = json::members(object, &["directory_id"]).is_ok_and(|[named]| named.is_some());
    let open = object.trim_end().strip_suffix('}');
    match open {
        Some(open) if entity != Entity::Directory && !named => {
            // If a JSON member occurs twice, the last one counts.
            format!(r#"{open},"directory_id":"{directory}"}}"#)
        }
        _ => object.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use schema::event::Event;
    use schema::observation::Observation;
    use schema::observe::observe;

    use super::*;

    const AT: Timestamp = Timestamp::from_micros(1_700_000_000_000_000);

    fn observed(reading: &Reading) -> (String, Vec<String>) {
        let record = reading.record(AT).unwrap();
        let text = String::from_utf8(record.body.to_vec()).unwrap();
        let event = Event::parse(&text).unwrap();
        let seen = observe(&event, record.source, AT).unwrap();
        let told = seen.iter().map(|observation| match observation {
            Observation::Directory(row) => {
                format!(
                    "directory {} {:?} {:?}",
                    row.directory,
                    row.seen_at(),
                    row.gone_at()
                )
            }
            Observation::User(id, row) => {
                format!(
                    "user {id} in {} {:?} {:?}",
                    row.directory,
                    row.seen_at(),
                    row.gone_at()
                )
            }
            Observation::Group(id, row) => {
                format!(
                    "group {id} in {} {:?} {:?}",
                    row.directory,
                    row.seen_at(),
                    row.gone_at()
                )
            }
            Observation::Membership(group, user, row) => {
                format!(
                    "membership {group} {user} in {} of {:?} {:?} {:?}",
                    row.directory,
                    row.organization,
                    row.seen_at(),
                    row.gone_at()
                )
            }
        });
        (record.subject.to_string(), told.collect())
    }

    #[test]
    fn a_listed_object_is_seen_at_the_readings_time_though_it_changed_before() {
        let user = r#"{"id":"u1","updated_at":"2020-01-01T00:00:00Z","state":"active"}"#;
        let (subject, told) = observed(&Reading::listed(Entity::User, "d1", "u1", user, AT));
        assert_eq!(subject, "dsync.d1.user.u1.listed");
        assert_eq!(told, [format!("user u1 in d1 {:?} None", Some(AT))]);
        let named = r#"{"id":"u1","directory_id":"d1","state":"inactive"}"#;
        let (subject, _) = observed(&Reading::listed(Entity::User, "d2", "u1", named, AT));
        assert_eq!(subject, "dsync.d1.user.u1.deactivated");
    }

    #[test]
    fn a_missing_object_is_gone_at_the_readings_time() {
        for (entity, subject, told) in [
            (Entity::Directory, "dsync.x.directory.missing", "directory x None"),
            (Entity::User, "dsync.d1.user.x.missing", "user x in d1 None"),
            (Entity::Group, "dsync.d1.group.x.missing", "group x in d1 None"),
        ] {
            let seen = observed(&Reading::missing(entity, "d1", "x", AT));
            assert_eq!(seen, (subject.to_owned(), vec![format!("{told} {:?}", Some(AT))]));
        }
    }

    #[test]
    fn a_membership_speaks_for_nobody_else() {
        let pair = Pair {
            directory: "d1",
            organization: Some("org_1"),
            group: "g1",
            user: "u1",
        };
        let (subject, told) = observed(&Reading::membership(pair, true, AT));
        assert_eq!(subject, "dsync.d1.membership.g1.u1.listed");
        assert_eq!(
            told,
            [format!(
                "membership g1 u1 in d1 of Some(\"org_1\") {:?} None",
                Some(AT)
            )]
        );
        let (subject, told) = observed(&Reading::membership(pair, false, AT));
        assert_eq!(subject, "dsync.d1.membership.g1.u1.missing");
        assert_eq!(told.len(), 1);
    }

    /// Readings are sorted before they become records.
    #[test]
    fn a_reading_takes_something_away_if_its_record_does() {
        let user = |state| {
            let user = format!(r#"{{"id":"u1","state":"{state}"}}"#);
            Reading::listed(Entity::User, "d1", "u1", &user, AT)
        };
        for (reading, removal) in [
            (user("active"), false),
            (user("inactive"), true),
            (user("suspended"), true),
            (
                Reading::listed(Entity::Group, "d1", "g1", r#"{"id":"g1","state":"inactive"}"#, AT),
                false,
            ),
            (Reading::missing(Entity::Group, "d1", "g1", AT), true),
        ] {
            assert_eq!(reading.is_removal(), removal, "{reading:?}");
            assert_eq!(
                reading.record(AT).unwrap().subject.is_removal(),
                removal,
                "{reading:?}"
            );
        }
    }

    #[test]
    fn the_id_follows_from_object_time_and_content() {
        let id = |object: &str, at| {
            let reading = Reading::listed(Entity::Group, "d", "g", object, at);
            reading.record(AT).unwrap().id
        };
        let one = id(r#"{"id":"g"}"#, AT);
        assert_eq!(one, id(r#"{"id":"g"}"#, AT));
        assert!(one.starts_with("sweep_") && one.len() == 38);
        assert_ne!(one, id(r#"{"id":"g","name":"x"}"#, AT));
        assert_ne!(one, id(r#"{"id":"g"}"#, Timestamp::from_micros(1)));
    }
}
