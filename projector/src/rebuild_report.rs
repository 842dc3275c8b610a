//! The reports of `rebuild` and `verify`, as text or JSON. They name rows by id and columns by name, never a value.

use std::fmt::Write as _;

use schema::timestamp::Timestamp;
use serde::{Serialize, Serializer};
use time::OffsetDateTime;

use crate::store::differing::{Counts, Difference, Kind};

/// The result of comparing the projection with the log.
#[derive(Debug, Default, Serialize)]
pub struct Verified {
    /// How many rows are not what the log says.
    pub differing: Counts,
    /// The first of them.
    pub differences: Vec<Difference>,
    /// How many rows of each table the log yields.
    pub rows: Vec<(&'static str, u64)>,
    /// Rows that lost their attributes to `TOMBSTONE_RETENTION`.
    pub scrubbed: u64,
    /// Rows that the log no longer mentions; empty if the log reaches back to its beginning.
    pub older: Vec<Older>,
    /// When the part of the log that is complete begins; null if the log is complete from its beginning.
    #[serde(serialize_with = "moment")]
    pub complete_since: Option<Timestamp>,
    /// Records read.
    pub records: u64,
    /// Records among them that cannot be applied; see `dead-letters`.
    pub unreadable: u64,
    /// The sequence in the log at which the two were compared.
    pub position: u64,
    /// How long it took, in seconds.
    pub seconds: f64,
}

/// Rows older than the log.
#[derive(Debug, Serialize)]
pub struct Older {
    /// directory, user, group or membership.
    pub entity: &'static str,
    /// How many.
    pub count: u64,
    /// The first of them.
    pub some: Vec<String>,
}

/// What a rebuild did.
#[derive(Debug, Default, Serialize)]
pub struct Rebuilt {
    /// Its number, in `dsync.rebuilds`.
    pub rebuild: i64,
    /// How many rows were not what the log says, and now are.
    pub replaced: Counts,
    /// The first of them.
    pub rows: Vec<Difference>,
    /// How many were left as they were because deletions in their directories wait for approval.
    pub held: Counts,
    /// The first of them.
    pub held_rows: Vec<Difference>,
    /// Directories that the reconciler did not list because their own deletion waits for approval. Nothing in them was
    /// replaced.
    pub unlisted: Vec<String>,
    /// When the part of the log that is complete by itself begins; null if that is its beginning.
    #[serde(serialize_with = "moment")]
    pub complete_since: Option<Timestamp>,
    /// Records read.
    pub records: u64,
    /// Records among them that cannot be applied; see `dead-letters`.
    pub unreadable: u64,
    /// The sequence in the log at which rows were replaced.
    pub position: u64,
    /// How long writers waited, in seconds. Readers never do.
    pub writers_waited: f64,
    /// How long it took, in seconds.
    pub seconds: f64,
}

/// What undoing a rebuild did.
#[derive(Debug, Serialize)]
pub struct Undone {
    /// The rebuild's number.
    pub rebuild: i64,
    /// When the rebuild was done.
    #[serde(with = "time::serde::rfc3339")]
    pub done_at: OffsetDateTime,
    /// Rows restored.
    pub rows: i64,
}

#[expect(clippy::ref_option, reason = "the signature that serde requires")]
fn moment<S: Serializer>(at: &Option<Timestamp>, serializer: S) -> Result<S::Ok, S::Error> {
    at.map(|at| at.to_string()).serialize(serializer)
}

impl Verified {
    /// The report as text.
    pub fn text(&self) -> String {
        let mut text = String::new();
        let rows: Vec<String> = self
            .rows
            .iter()
            .map(|(table, count)| format!("{count} {table}"))
            .collect();
        let (records, position, seconds) = (self.records, self.position, self.seconds);
        let _ = writeln!(
            text,
            "compared {} with {records} records of the log,",
            rows.join(", ")
        );
        let _ = writeln!(text, "up to sequence {position}, in {seconds:.1} s");
        since(&mut text, self.complete_since);
        for older in &self.older {
            let names = some(&older.some, older.count);
            let _ = writeln!(
                text,
                "older than the log, so not compared: {} {}(s): {names}",
                older.count, older.entity
            );
        }
        if self.scrubbed > 0 {
            let _ = writeln!(
                text,
                "scrubbed after their deletion, as expected: {} row(s)",
                self.scrubbed
            );
        }
        unreadable(&mut text, self.unreadable);
        if self.differing.all == 0 {
            text.push_str("the projection is what the log says\n");
        } else {
            let _ = writeln!(text, "NOT what the log says: {} row(s)", self.differing.all);
            list(&mut text, &self.differences, self.differing);
            text.push_str("`dsync-projector rebuild` repairs them\n");
        }
        text
    }
}

impl Rebuilt {
    /// The report as text.
    pub fn text(&self) -> String {
        let mut text = String::new();
        let (records, position, seconds) = (self.records, self.position, self.seconds);
        let _ = writeln!(
            text,
            "rebuilt from {records} records of the log, up to sequence {position}, in {seconds:.1} s"
        );
        since(&mut text, self.complete_since);
        unreadable(&mut text, self.unreadable);
        if self.replaced.all == 0 {
            text.push_str("the projection already was what the log says: nothing to replace\n");
        } else {
            let _ = writeln!(
                text,
                "replaced {} row(s) (missing {}, extra {}, different {}); writers waited {:.2} s",
                self.replaced.all,
                self.replaced.missing,
                self.replaced.extra,
                self.replaced.differs,
                self.writers_waited
            );
            list(&mut text, &self.rows, self.replaced);
            text.push_str("`dsync-projector rebuild --undo` restores the old rows, within a week\n");
        }
        if !self.unlisted.is_empty() {
            let _ = writeln!(
                text,
                "directories not listed, because their own deletion waits for approval (`dsync-reconciler approve ID`): {}",
                self.unlisted.join(", ")
            );
        }
        if self.held.all > 0 {
            let _ = writeln!(
                text,
                "left as they are, because deletions in their directories are held back: {} row(s)",
                self.held.all
            );
            list(&mut text, &self.held_rows, self.held);
        }
        text
    }
}

impl Undone {
    /// The report as text.
    pub fn text(&self) -> String {
        format!(
            "restored {} row(s) as they were before the rebuild of {}; later records are being applied to them again\n",
            self.rows,
            Timestamp::from(self.done_at)
        )
    }
}

fn since(text: &mut String, complete_since: Option<Timestamp>) {
    if let Some(at) = complete_since {
        let _ = writeln!(text, "the log is complete only since {at}");
    }
}

fn unreadable(text: &mut String, count: u64) {
    if count > 0 {
        let _ = writeln!(
            text,
            "cannot be applied (see `dsync-projector dead-letters`): {count} record(s)"
        );
    }
}

fn some(ids: &[String], count: u64) -> String {
    let more = if count > ids.len() as u64 { ", …" } else { "" };
    format!("{}{more}", ids.join(", "))
}

fn list(text: &mut String, differences: &[Difference], counts: Counts) {
    for one in differences {
        let _ = match one.kind {
            Kind::Missing => writeln!(text, "  {} {}: missing", one.entity, one.id),
            Kind::Extra => writeln!(text, "  {} {}: not in the log", one.entity, one.id),
            Kind::Differs => writeln!(text, "  {} {}: {}", one.entity, one.id, one.columns.join(", ")),
        };
    }
    let more = counts.all.unsigned_abs().saturating_sub(differences.len() as u64);
    if more > 0 {
        let _ = writeln!(text, "  … and {more} more (raise --limit to see them)");
    }
}
