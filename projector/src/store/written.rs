//! What a write changed: the events whose observations are now in a row.

use std::collections::HashSet;

/// A row that changed, with the events its registers now come from.
#[expect(clippy::struct_field_names, reason = "the columns' names")]
pub(super) struct Row {
    /// The event of the newest version of its attributes.
    pub(super) version_event: String,
    /// The event that saw it last.
    pub(super) seen_event: String,
    /// The event by which it was last gone.
    pub(super) gone_event: String,
}

/// The same for a directory, with the organization, on which its contents depend.
pub(super) struct DirectoryRow {
    pub(super) id: String,
    pub(super) version_event: String,
    pub(super) seen_event: String,
    pub(super) gone_event: String,
    pub(super) organization_id: Option<String>,
}

/// The ids of events that had an effect. An event whose observations all lost to newer ones is not among them.
#[derive(Debug, Default)]
pub struct Effects {
    events: HashSet<String>,
    /// Erased people who occurred in what was to be written. What it said about them was left out.
    pub erased: HashSet<String>,
}

impl Effects {
    pub(super) fn add(&mut self, events: impl IntoIterator<Item = String>) {
        self.events.extend(events);
    }

    pub(super) fn add_rows(&mut self, rows: Vec<Row>) {
        for row in rows {
            self.add([row.version_event, row.seen_event, row.gone_event]);
        }
    }

    /// Whether the event with this id changed a row.
    pub fn has(&self, event: &str) -> bool {
        self.events.contains(event)
    }
}
