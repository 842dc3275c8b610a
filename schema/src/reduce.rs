//! Makes a record smaller that the log will not take because of its size, so that what it takes away is not lost.

use std::borrow::Cow;
use std::collections::BTreeMap;

use bytes::Bytes;
use serde_json::value::RawValue;

use crate::json;
use crate::record::Record;

/// Members of users and groups that may be of any size. None of them says who somebody is or whether they are there.
const OF_ANY_SIZE: &[&str] = &["raw_attributes", "custom_attributes", "groups"];
/// Members that contain such objects: an event's, and a membership event's.
const CONTAINERS: &[&str] = &["data", "user", "group"];

/// The same record without its objects' members that may be of any size; its body is written anew. `None` if it has none, or
/// takes nothing away: what only describes an object is not replaced by something that describes less of it.
pub fn reduced(record: &Record) -> Option<Record> {
    let text = json::storable(&record.body).ok()?;
    let body = without(&text)?;
    (record.subject.is_removal() && body.len() < text.len()).then(|| Record {
        body: Bytes::from(body),
        // It was made for the body as received.
        signature: None,
        ..record.clone()
    })
}

/// The JSON object in `text` without these members, to the depth of containers.
fn without(text: &str) -> Option<String> {
    let mut members: BTreeMap<Cow<'_, str>, &RawValue> = serde_json::from_str(text).ok()?;
    members.retain(|name, _| !OF_ANY_SIZE.contains(&name.as_ref()));
    let parts: Vec<String> = members
        .iter()
        .map(|(name, value)| {
            let inner = CONTAINERS.contains(&name.as_ref()).then(|| without(value.get()));
            let value = inner.flatten().map_or(Cow::Borrowed(value.get()), Cow::Owned);
            Some(format!("{}:{value}", serde_json::to_string(name).ok()?))
        })
        .collect::<Option<_>>()?;
    Some(format!("{{{}}}", parts.join(",")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::{Received, Source};
    use crate::timestamp::Timestamp;

    fn record(event: &str, data: &str) -> Record {
        let body = format!(r#"{{"data":{data},"event":"{event}","id":"e"}}"#);
        let signed = Some("t=1, v1=00".to_owned());
        match Record::receive(
            Bytes::from(body),
            Source::Webhook,
            signed,
            Timestamp::from_micros(7),
        ) {
            Received::Event(record) => record,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_removal_keeps_everything_but_attributes() {
        let user = r#""id":"u","directory_id":"d","email":"a@example.com""#;
        let large = r#""raw_attributes":{"x":[1]},"custom_attributes":{"data":{}},"groups":[{"id":"g"}]"#;
        let group = r#""id":"g","directory_id":"d""#;
        for (event, whole, kept) in [
            (
                "dsync.user.deleted",
                format!("{{{user},{large}}}"),
                record("dsync.user.deleted", &format!("{{{user}}}")),
            ),
            (
                "dsync.group.user_removed",
                format!(r#"{{"user":{{{user},{large}}},"group":{{{group},{large}}},"directory_id":"d"}}"#),
                record(
                    "dsync.group.user_removed",
                    &format!(r#"{{"user":{{{user}}},"group":{{{group}}},"directory_id":"d"}}"#),
                ),
            ),
        ] {
            let whole = record(event, &whole);
            let reduced = reduced(&whole).unwrap();
            let members = |record: &Record| -> serde_json::Map<String, serde_json::Value> {
                serde_json::from_slice(&json::storable(&record.body).unwrap().into_owned().into_bytes())
                    .unwrap()
            };
            assert_eq!(members(&reduced), members(&kept), "{event}");
            assert_eq!((&reduced.subject, &reduced.id), (&whole.subject, &whole.id));
            assert_eq!(reduced.signature, None);
        }
    }

    #[test]
    fn what_takes_nothing_away_or_has_nothing_to_leave_out_stays_as_it_is() {
        let large = r#"{"id":"u","directory_id":"d","state":"active","raw_attributes":{"x":1}}"#;
        assert_eq!(reduced(&record("dsync.user.updated", large)), None);
        assert_eq!(
            reduced(&record("dsync.user.deleted", r#"{"id":"u","directory_id":"d"}"#)),
            None
        );
        let inactive = large.replace(r#""active""#, r#""inactive""#);
        assert!(reduced(&record("dsync.user.updated", &inactive)).is_some());
    }
}
