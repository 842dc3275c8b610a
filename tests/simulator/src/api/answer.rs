//! The API's answers: a status and a JSON body, with errors in WorkOS's words. Pure.

use serde::Serialize;
use serde_json::{Value, json};

use super::paging::Page;

/// A status and the body's bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) body: String,
}

/// A page of anything.
#[derive(Serialize)]
struct List<'a, T> {
    object: &'static str,
    data: &'a [T],
    #[serde(rename = "list_metadata")]
    cursors: Cursors<'a>,
}

#[derive(Serialize)]
struct Cursors<'a> {
    before: Option<&'a str>,
    after: Option<&'a str>,
}

impl Answer {
    pub(crate) fn json(status: u16, body: &Value) -> Self {
        Self {
            status,
            body: body.to_string(),
        }
    }

    /// A page of `data`, with the cursors in `page`.
    pub(crate) fn list<T: Serialize>(data: &[T], page: &Page<'_>) -> Self {
        let cursors = Cursors {
            before: page.before,
            after: page.after,
        };
        let list = List {
            object: "list",
            data,
            cursors,
        };
        let body = serde_json::to_string(&list).expect("lists have string keys only");
        Self { status: 200, body }
    }

    pub(crate) fn unauthorized() -> Self {
        Self::json(401, &json!({ "message": "Unauthorized" }))
    }

    pub(crate) fn bad_request(message: &str) -> Self {
        Self::json(400, &json!({ "message": message, "code": "bad_request" }))
    }

    pub(crate) fn not_found(thing: &str, id: &str) -> Self {
        let message = format!("{thing} not found: '{id}'.");
        Self::json(
            404,
            &json!({ "message": message, "code": "entity_not_found", "entity_id": id }),
        )
    }

    pub(crate) fn unprocessable(field: &str, message: &str) -> Self {
        let errors = json!([{ "code": "required", "field": field }]);
        Self::json(422, &json!({ "message": message, "errors": errors }))
    }

    /// The answer to requests over a limit: a bare JSON string, not an object.
    pub(crate) fn rate_limited() -> Self {
        Self::json(429, &json!("Ratelimited"))
    }

    pub(crate) fn failed(status: u16) -> Self {
        Self::json(status, &json!({ "message": "Something went wrong." }))
    }
}
