//! Answers, and lists read from them. Reading is lenient in everything but completeness: a body that is not clearly a
//! list is an error, never an empty list.

use bytes::Bytes;
use schema::json::{self, Malformed};
use schema::timestamp::Timestamp;
use time::PrimitiveDateTime;
use time::format_description::StaticFormatDescription;
use time::macros::format_description;

/// An answer with status 200.
#[derive(Debug, Clone)]
pub struct Answer {
    /// When the server made it, by its own clock (`Date`, whole seconds).
    pub at: Timestamp,
    /// The body.
    pub body: Bytes,
}

/// One page of a list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Page {
    /// When the server made it, by its own clock.
    pub at: Timestamp,
    /// The objects, as JSON text.
    pub objects: Vec<String>,
    /// The cursor of the next page; `None` on the last one.
    pub after: Option<String>,
}

impl Page {
    /// Reads a list.
    pub fn of(answer: &Answer) -> Result<Self, Malformed> {
        let text = std::str::from_utf8(&answer.body).map_err(|_| Malformed::NotUtf8)?;
        let [data, cursors] = json::members(text, &["data", "list_metadata"])?;
        let data = data
            .filter(|data| data.get().starts_with('['))
            .ok_or(Malformed::Missing("data"))?;
        let cursors = cursors.ok_or(Malformed::Missing("list_metadata"))?;
        let [after] = json::members(cursors.get(), &["after"])?;
        Ok(Self {
            at: answer.at,
            objects: json::elements(data)
                .into_iter()
                .map(|object| object.get().to_owned())
                .collect(),
            after: after
                .and_then(json::string)
                .filter(|after| !after.is_empty())
                .map(Into::into),
        })
    }
}

const HTTP_DATE: StaticFormatDescription =
    format_description!("[weekday repr:short], [day] [month repr:short] [year] [hour]:[minute]:[second] GMT");

/// Reads a time in the format of the HTTP header `Date`.
pub fn http_date(text: &str) -> Option<Timestamp> {
    let moment = PrimitiveDateTime::parse(text.trim(), HTTP_DATE).ok()?;
    Some(moment.assume_utc().into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page(body: &'static str) -> Result<Page, Malformed> {
        Page::of(&Answer {
            at: Timestamp::from_micros(7),
            body: Bytes::from_static(body.as_bytes()),
        })
    }

    #[test]
    fn a_list_is_read_with_its_objects_as_they_came() {
        let page = page(
            r#"{"object":"list","data":[{"id":"a", "x":1.50},{"id":"b"}],"list_metadata":{"before":null,"after":"b"}}"#,
        )
        .unwrap();
        assert_eq!(page.objects, [r#"{"id":"a", "x":1.50}"#, r#"{"id":"b"}"#]);
        assert_eq!((page.after.as_deref(), page.at.as_micros()), (Some("b"), 7));
    }

    #[test]
    fn what_is_not_clearly_a_list_is_never_an_empty_one() {
        for odd in [
            "{}",
            "[]",
            "",
            r#"{"data":null,"list_metadata":{}}"#,
            r#"{"data":{},"list_metadata":{"after":null}}"#,
            r#"{"data":[]}"#,
            r#"{"data":[],"list_metadata":"none"}"#,
            r#"{"data":[{"id":"a"}"#,
        ] {
            assert!(page(odd).is_err(), "{odd}");
        }
        let empty = page(r#"{"data":[],"list_metadata":{"before":null,"after":null}}"#).unwrap();
        assert_eq!((empty.objects.len(), empty.after), (0, None));
    }

    #[test]
    fn the_header_date_is_read() {
        assert_eq!(
            http_date("Fri, 28 Apr 2023 20:05:31 GMT"),
            Timestamp::parse("2023-04-28T20:05:31Z")
        );
        assert_eq!(http_date("yesterday"), None);
    }
}
