//! Holds the history (`directory.changes`) against the views: each change must be consistent and follow from the changes
//! before it, and added up, the changes must make what the views show.
//!
//! Whatever is wrong comes back as text, because the soak reports it together with its other findings.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::Context as _;
use serde_json::Value;
use sqlx::postgres::PgRow;
use sqlx::{PgPool, Row as _};

/// What a row belongs to: an object of this kind with this id.
type Key = (String, String);

/// A change as a consumer sees it.
#[derive(Debug, Clone)]
pub struct Change {
    /// Its number. Consumers read changes in the order of these.
    pub id: i64,
    entity: String,
    entity_id: String,
    operation: String,
    organization_id: Option<String>,
    directory_id: Option<String>,
    changed: Vec<String>,
    before: Option<Value>,
    after: Option<Value>,
}

/// All changes, in order.
#[derive(Debug)]
pub struct History(Vec<Change>);

impl Change {
    /// The first `limit` changes after the one with number `after`, as a consumer polls for them.
    pub async fn read(pool: &PgPool, after: i64, limit: i64) -> anyhow::Result<Vec<Change>> {
        let found = sqlx::query(
            "select
                change_id, entity, entity_id, operation, organization_id, directory_id, changed, before, after
             from directory.changes where change_id > $1 order by change_id limit $2",
        );
        let found = found.bind(after).bind(limit).fetch_all(pool).await;
        let found = found.context("cannot read the history")?;
        Ok(found.iter().map(Change::of).collect::<Result<_, _>>()?)
    }

    fn of(row: &PgRow) -> sqlx::Result<Change> {
        Ok(Change {
            id: row.try_get("change_id")?,
            entity: row.try_get("entity")?,
            entity_id: row.try_get("entity_id")?,
            operation: row.try_get("operation")?,
            organization_id: row.try_get("organization_id")?,
            directory_id: row.try_get("directory_id")?,
            changed: row.try_get("changed")?,
            before: row.try_get("before")?,
            after: row.try_get("after")?,
        })
    }

    fn key(&self) -> Key {
        (self.entity.clone(), self.entity_id.clone())
    }

    /// Whether its columns agree with each other.
    fn is_consistent(&self) -> bool {
        let tenants = |row: &Value| row["organization_id"].as_str() == self.organization_id.as_deref();
        // The directory in which the tenant saw the object.
        let home = |row: &Value| row["directory_id"].as_str() == self.directory_id.as_deref();
        match (self.operation.as_str(), &self.before, &self.after) {
            ("created", None, Some(row)) | ("deleted", Some(row), None) => {
                self.changed.is_empty() && tenants(row) && home(row)
            }
            ("updated", Some(before), Some(after)) => {
                !self.changed.is_empty()
                    && self.changed == differing(before, after)
                    && tenants(before)
                    && tenants(after)
                    && home(after)
            }
            _ => false,
        }
    }
}

impl History {
    /// Reads all of it.
    pub async fn read(pool: &PgPool) -> anyhow::Result<History> {
        Ok(History(Change::read(pool, 0, i64::MAX).await?))
    }

    /// Without the changes of these users, whose values an erasure blanked.
    #[must_use]
    pub fn without_users(mut self, ids: &BTreeSet<String>) -> History {
        self.0
            .retain(|change| change.entity != "user" || !ids.contains(&change.entity_id));
        self
    }

    /// The numbers of its changes, in order.
    pub fn ids(&self) -> Vec<i64> {
        self.0.iter().map(|change| change.id).collect()
    }

    /// Every change that contradicts itself, changes nothing, or does not follow from those before it.
    pub fn faults(&self) -> Vec<String> {
        let (mut rows, mut faults) = (BTreeMap::new(), Vec::new());
        for change in &self.0 {
            let shown = rows.get(&change.key()).copied();
            if shown.map(essence) != change.before.as_ref().map(essence) {
                faults.push(format!("{change:?} does not follow from {shown:?}"));
            } else if !change.is_consistent() {
                faults.push(format!("{change:?} is inconsistent"));
            }
            apply(change, &mut rows);
        }
        faults
    }

    /// Every row in which what the changes add up to differs from what the views show. Nobody may write meanwhile.
    pub async fn strays(&self, pool: &PgPool) -> anyhow::Result<Vec<String>> {
        let (mut rows, mut strays) = (BTreeMap::new(), Vec::new());
        for change in &self.0 {
            apply(change, &mut rows);
        }
        for (key, shown) in shown(pool).await? {
            let told = rows.remove(&key);
            if told.map(essence) != Some(essence(&shown)) {
                strays.push(format!("{key:?}: shown {shown}, the changes add up to {told:?}"));
            }
        }
        for key in rows.keys() {
            strays.push(format!("{key:?} is not shown, but the changes add up to it"));
        }
        Ok(strays)
    }
}

fn apply<'h>(change: &'h Change, rows: &mut BTreeMap<Key, &'h Value>) {
    match &change.after {
        Some(after) => rows.insert(change.key(), after),
        None => rows.remove(&change.key()),
    };
}

/// The part of a row whose changes count. A membership that was only seen again has not changed.
fn essence(row: &Value) -> Value {
    let mut row = row.clone();
    if let Some(columns) = row.as_object_mut()
        && columns.contains_key("group_id")
    {
        columns.remove("seen_at");
    }
    row
}

/// The columns in which two rows differ, by name.
fn differing(before: &Value, after: &Value) -> Vec<String> {
    let (before, after) = (essence(before), essence(after));
    let names = after.as_object().into_iter().flat_map(|columns| columns.keys());
    let mut names: Vec<String> = names
        .filter(|name| before[*name] != after[*name])
        .cloned()
        .collect();
    names.sort_unstable();
    names
}

/// The rows of the views, keyed in the same way as changes.
async fn shown(pool: &PgPool) -> anyhow::Result<BTreeMap<Key, Value>> {
    let rows = sqlx::query(
        "select 'directory' as entity, id as entity_id, to_jsonb(v) as shown from directory.directories as v
         union all select 'user', id, to_jsonb(v) from directory.users as v
         union all select 'group', id, to_jsonb(v) from directory.groups as v
         union all select 'membership', group_id || '/' || user_id, to_jsonb(v) from directory.memberships as v",
    );
    let rows = rows.fetch_all(pool).await.context("cannot read the views")?;
    let row = |row: &PgRow| {
        let key = (row.try_get("entity")?, row.try_get("entity_id")?);
        Ok((key, row.try_get("shown")?))
    };
    Ok(rows.iter().map(row).collect::<sqlx::Result<_>>()?)
}

#[cfg(test)]
mod checks {
    use serde_json::json;

    use super::*;

    fn person(name: &str) -> Value {
        json!({"id": "1", "organization_id": "o", "directory_id": "d", "name": name})
    }

    fn change(operation: &str, before: Option<&str>, after: Option<&str>) -> Change {
        let updated = operation == "updated";
        Change {
            id: 1,
            entity: "user".to_owned(),
            entity_id: "1".to_owned(),
            operation: operation.to_owned(),
            organization_id: Some("o".to_owned()),
            directory_id: Some("d".to_owned()),
            changed: updated.then(|| "name".to_owned()).into_iter().collect(),
            before: before.map(person),
            after: after.map(person),
        }
    }

    fn good() -> Vec<Change> {
        vec![
            change("created", None, Some("Ada")),
            change("updated", Some("Ada"), Some("Bo")),
            change("deleted", Some("Bo"), None),
        ]
    }

    #[test]
    fn a_change_told_twice_or_out_of_nowhere_is_named() {
        assert!(History(good()).faults().is_empty());
        for twice in 0..3 {
            let mut changes = good();
            changes.insert(twice, changes[twice].clone());
            assert_eq!(History(changes).faults().len(), 1, "{twice} is told twice");
        }
        let mut lacking = good();
        lacking.remove(1);
        assert_eq!(History(lacking).faults().len(), 1);
    }

    #[test]
    fn a_change_that_contradicts_itself_or_changes_nothing_is_named() {
        let faulty: [fn(&mut Change); 6] = [
            |it| it.operation = "created".to_owned(),
            |it| it.changed.clear(),
            |it| it.changed.push("state".to_owned()),
            |it| it.organization_id = None,
            |it| it.directory_id = Some("elsewhere".to_owned()),
            |it| {
                it.after = it.before.clone();
                it.changed.clear();
            },
        ];
        for (nth, spoil) in faulty.into_iter().enumerate() {
            let mut changes = good();
            changes.truncate(2);
            spoil(&mut changes[1]);
            assert_eq!(History(changes).faults().len(), 1, "fault {nth}");
        }
    }

    #[test]
    fn a_membership_that_was_only_seen_again_has_not_changed() {
        let seen = |at: u32| json!({"group_id": "g", "seen_at": at});
        assert_eq!(essence(&seen(1)), essence(&seen(2)));
        assert_ne!(essence(&json!({"seen_at": 1})), essence(&json!({"seen_at": 2})));
    }
}
