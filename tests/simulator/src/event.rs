//! One event as WorkOS emitted it: the exact bytes that every delivery and the Events API repeat.

use std::sync::Arc;

use serde::Serialize;
use serde_json::{Value, value::RawValue};

use crate::clock::Millis;

/// An emitted event.
#[derive(Clone, Debug)]
pub struct Event {
    /// `event_01…`; sorts in the order of emission.
    pub id: String,
    /// `dsync.user.created`, …
    pub kind: String,
    /// The envelope's `created_at`.
    pub created_at: Millis,
    /// The directory it is about.
    pub directory: String,
    /// The organization it is about, if the directory has one.
    pub organization: Option<String>,
    pub(crate) raw: Arc<RawValue>,
}

impl Event {
    /// The body, byte for byte.
    pub fn body(&self) -> &str {
        self.raw.get()
    }

    /// The body, parsed.
    pub fn json(&self) -> Value {
        serde_json::from_str(self.body()).unwrap_or_default()
    }
}

/// The envelope, in WorkOS's order of fields.
#[derive(Serialize)]
pub(crate) struct Envelope<'a> {
    pub(crate) object: &'static str,
    pub(crate) id: &'a str,
    pub(crate) event: &'a str,
    pub(crate) data: &'a Value,
    pub(crate) created_at: String,
    pub(crate) context: &'a Value,
}
