//! The report of a pass: per directory, what differed and what it cost. As text or as JSON; values only if asked for.

use std::fmt::Write as _;

use serde::Serialize;

use crate::difference::{Difference, Entity, Kind};
use crate::memberships::Way;

/// The outcome of sweeping one directory.
#[derive(Debug, Default, Serialize)]
pub struct DirectoryReport {
    /// The directory.
    pub directory_id: String,
    /// Whether all of it was read.
    pub complete: bool,
    /// What went wrong, as text.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// How many users, groups and memberships `WorkOS` has.
    pub users: usize,
    /// See `users`.
    pub groups: usize,
    /// See `users`.
    pub memberships: usize,
    /// How memberships were read.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memberships_read: Option<Way>,
    /// How many of the requests that took.
    pub membership_requests: u64,
    /// Differences; repaired unless this was a dry run.
    pub drift: Vec<Difference>,
    /// Deletions held back until someone approves them.
    pub held: Vec<Difference>,
    /// Differences younger than the clock margin, which do not count as drift yet.
    pub too_young: Vec<Difference>,
    /// Objects of which `WorkOS` shows an older version than it reported before.
    pub older: Vec<Difference>,
    /// Objects that could not be read.
    pub unreadable: usize,
    /// Requests to `WorkOS`.
    pub requests: u64,
    /// How long it took.
    pub seconds: f64,
}

/// The outcome of a pass.
#[derive(Debug, Default, Serialize)]
pub struct Report {
    /// By directory.
    pub directories: Vec<DirectoryReport>,
    /// What went wrong outside of single directories, as text.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// Whether this was a dry run, which repairs nothing.
    pub dry_run: bool,
    /// Requests to `WorkOS` in total.
    pub requests: u64,
    /// How long it took.
    pub seconds: f64,
}

impl DirectoryReport {
    /// How many differences were found, including those held back.
    pub fn found(&self) -> usize {
        self.drift.len() + self.held.len()
    }
}

impl Report {
    /// Whether something could not be read.
    pub fn is_incomplete(&self) -> bool {
        self.error.is_some() || self.directories.iter().any(|directory| !directory.complete)
    }

    /// Whether there was drift.
    pub fn has_drift(&self) -> bool {
        self.directories.iter().any(|directory| directory.found() > 0)
    }

    /// The report as text.
    pub fn text(&self) -> String {
        let mut out = String::new();
        for directory in &self.directories {
            // Writing to a string cannot fail.
            let _ = directory.write(&mut out, self.dry_run);
        }
        if let Some(error) = &self.error {
            let _ = writeln!(out, "incomplete: {error}");
        }
        let found: usize = self.directories.iter().map(DirectoryReport::found).sum();
        let _ = writeln!(
            out,
            "{}, {}{}, {} requests, {:.1} s",
            plural(self.directories.len(), "directory", "directories"),
            plural(found, "difference", "differences"),
            if self.dry_run && found > 0 {
                " (nothing was repaired: dry run)"
            } else {
                ""
            },
            self.requests,
            self.seconds,
        );
        out
    }
}

impl DirectoryReport {
    fn write(&self, out: &mut String, dry_run: bool) -> std::fmt::Result {
        writeln!(
            out,
            "{}: {} users, {} groups, {} memberships; {} requests{}, {:.1} s",
            self.directory_id,
            self.users,
            self.groups,
            self.memberships,
            self.requests,
            self.memberships_read.map_or_else(String::new, |way| format!(
                " (memberships {}: {})",
                way.as_str(),
                self.membership_requests
            )),
            self.seconds,
        )?;
        if let Some(error) = &self.error {
            writeln!(out, "  incomplete: {error}")?;
        }
        if self.unreadable > 0 {
            writeln!(out, "  {} objects could not be read", self.unreadable)?;
        }
        let drift = if dry_run { "drift" } else { "drift, repaired" };
        section(out, drift, &self.drift)?;
        section(out, "held back until approved", &self.held)?;
        section(out, "too recent to judge, not counted as drift", &self.too_young)?;
        section(
            out,
            "older at WorkOS than reported before, left alone",
            &self.older,
        )
    }
}

fn section(out: &mut String, title: &str, differences: &[Difference]) -> std::fmt::Result {
    if differences.is_empty() {
        return Ok(());
    }
    writeln!(out, "  {title}: {}", counts(differences))?;
    for difference in differences {
        let entity = difference.entity.as_str();
        let kind = difference.kind.as_str();
        write!(out, "    {kind:<8}{entity:<11}{}", difference.id)?;
        if !difference.columns.is_empty() {
            write!(out, "  {}", difference.columns.join(", "))?;
        }
        writeln!(out)?;
        if let Some(values) = difference.values.as_ref().and_then(serde_json::Value::as_object) {
            for (column, both) in values {
                writeln!(
                    out,
                    "      {column}: {} in the tables, {} at WorkOS",
                    both["here"], both["workos"]
                )?;
            }
        }
    }
    Ok(())
}

fn plural(count: usize, one: &str, many: &str) -> String {
    format!("{count} {}", if count == 1 { one } else { many })
}

/// `2 users missing, 1 membership extra`.
fn counts(differences: &[Difference]) -> String {
    let mut parts = Vec::new();
    for entity in Entity::EVERY {
        for kind in Kind::EVERY {
            let count = differences
                .iter()
                .filter(|one| one.entity == entity && one.kind == kind)
                .count();
            let plural = match (entity, count) {
                (_, 1) => entity.as_str().to_owned(),
                (Entity::Directory, _) => "directories".to_owned(),
                _ => format!("{}s", entity.as_str()),
            };
            if count > 0 {
                parts.push(format!("{count} {plural} {}", kind.as_str()));
            }
        }
    }
    parts.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn difference(entity: Entity, kind: Kind, id: &str, columns: &[&str]) -> Difference {
        Difference {
            entity,
            kind,
            id: id.to_owned(),
            columns: columns.iter().map(ToString::to_string).collect(),
            values: None,
        }
    }

    #[test]
    fn a_report_names_objects_and_columns() {
        let report = Report {
            directories: vec![DirectoryReport {
                directory_id: "directory_1".to_owned(),
                complete: true,
                users: 3,
                drift: vec![
                    difference(Entity::User, Kind::Differs, "user_1", &["email", "state"]),
                    difference(Entity::Membership, Kind::Extra, "group_1/user_1", &[]),
                ],
                too_young: vec![difference(Entity::User, Kind::Missing, "user_2", &[])],
                ..DirectoryReport::default()
            }],
            ..Report::default()
        };
        let text = report.text();
        for line in [
            "directory_1: 3 users, 0 groups, 0 memberships; 0 requests, 0.0 s",
            "  drift, repaired: 1 user differs, 1 membership extra",
            "    differs user       user_1  email, state",
            "    extra   membership group_1/user_1",
            "  too recent to judge, not counted as drift: 1 user missing",
            "1 directory, 2 differences, 0 requests, 0.0 s",
        ] {
            assert!(
                text.lines().any(|other| other == line),
                "{line:?} is not in\n{text}"
            );
        }
        assert!(report.has_drift() && !report.is_incomplete());
    }
}
