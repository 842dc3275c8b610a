//! Compares the tables with the source. Reads the views as any reader would, and reports every difference.

use std::collections::BTreeMap;
use std::fmt;

use anyhow::{Context as _, bail};
use serde_json::Value;
use sqlx::{PgPool, Row as _};
use workos_sim::Truth;

/// The number of differences shown in an error; there may be thousands.
const SHOWN: usize = 20;

/// One row, its columns by name.
type Columns = BTreeMap<String, Value>;
/// Rows by view and id: `users/directory_user_…`.
type Rows = BTreeMap<String, Columns>;

/// One difference between the source and the tables.
#[derive(Debug, Clone, PartialEq)]
pub enum Difference {
    /// The source has this row and the tables do not.
    Missing(String),
    /// The tables have this row and the source does not.
    Extra(String),
    /// Both have it, with different values.
    Differs {
        /// View and id.
        row: String,
        /// The column.
        column: String,
        /// The value in the source.
        source: Value,
        /// The value in the table.
        table: Value,
    },
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Difference::Missing(row) => write!(f, "{row}: in the source, not in the tables"),
            Difference::Extra(row) => write!(f, "{row}: in the tables, not in the source"),
            Difference::Differs {
                row,
                column,
                source,
                table,
            } => {
                write!(f, "{row}.{column}: the source says {source}, the table {table}")
            }
        }
    }
}

/// Fails unless the views show exactly what the source contains. The error lists the first differences.
pub async fn agrees(pool: &PgPool, truth: &Truth) -> anyhow::Result<()> {
    let differences = differences(pool, truth).await?;
    if differences.is_empty() {
        return Ok(());
    }
    let shown: Vec<String> = differences.iter().take(SHOWN).map(ToString::to_string).collect();
    bail!(
        "source and tables differ in {} places:\n  {}",
        differences.len(),
        shown.join("\n  ")
    )
}

/// All differences between the views and the source, in the order of views and ids.
pub async fn differences(pool: &PgPool, truth: &Truth) -> anyhow::Result<Vec<Difference>> {
    Ok(compare(&rows_of_source(truth)?, &rows_of_tables(pool).await?))
}

fn compare(source: &Rows, tables: &Rows) -> Vec<Difference> {
    let mut differences = Vec::new();
    for (row, wanted) in source {
        let Some(found) = tables.get(row) else {
            differences.push(Difference::Missing(row.clone()));
            continue;
        };
        for (column, value) in wanted {
            let table = found.get(column).unwrap_or(&Value::Null);
            if value != table {
                let (row, column) = (row.clone(), column.clone());
                differences.push(Difference::Differs {
                    row,
                    column,
                    source: value.clone(),
                    table: table.clone(),
                });
            }
        }
    }
    let extra = tables.keys().filter(|row| !source.contains_key(*row));
    differences.extend(extra.cloned().map(Difference::Extra));
    differences
}

fn rows_of_source(truth: &Truth) -> anyhow::Result<Rows> {
    let mut rows = Rows::new();
    let mut add = |view: &str, id: &str, row: Value| -> anyhow::Result<()> {
        let Value::Object(columns) = row else {
            bail!("a row of the source is not a JSON object")
        };
        rows.insert(
            format!("{view}/{id}"),
            columns.into_iter().map(as_the_views_say).collect(),
        );
        Ok(())
    };
    for (id, directory) in &truth.directories {
        add("directories", id, serde_json::to_value(&directory.directory)?)?;
        for (user, row) in &directory.users {
            add("users", user, serde_json::to_value(row)?)?;
        }
        for (group, row) in &directory.groups {
            add("groups", group, serde_json::to_value(row)?)?;
        }
        for (group, user) in &directory.memberships {
            let row = serde_json::json!({"group_id": group, "user_id": user, "directory_id": id});
            add("memberships", &format!("{group}/{user}"), row)?;
        }
    }
    Ok(rows)
}

/// Converts the source's values to the form of the views: times with microseconds, and an empty list for no roles.
fn as_the_views_say((column, value): (String, Value)) -> (String, Value) {
    let value = match (column.as_str(), value) {
        ("created_at" | "updated_at", Value::String(time)) => Value::String(with_micros(&time)),
        ("roles", Value::Null) => Value::Array(Vec::new()),
        (_, value) => value,
    };
    (column, value)
}

fn with_micros(time: &str) -> String {
    let bare = time.trim_end_matches('Z');
    match bare.split_once('.') {
        Some((seconds, fraction)) => format!("{seconds}.{fraction:0<6}Z"),
        None => format!("{bare}.000000Z"),
    }
}

async fn rows_of_tables(pool: &PgPool) -> anyhow::Result<Rows> {
    let found = sqlx::query(
        r#"
        with shown (row, columns, created_at, updated_at) as (
            select 'directories/' || id, to_jsonb(v), created_at, updated_at from directory.directories v
            union all
            select 'users/' || id, to_jsonb(v), created_at, updated_at from directory.users v
            union all
            select 'groups/' || id, to_jsonb(v), created_at, updated_at from directory.groups v
            union all
            select 'memberships/' || group_id || '/' || user_id, to_jsonb(v), null, null from directory.memberships v
        )
        select
            row,
            columns || jsonb_build_object(
                'created_at', to_char(created_at at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"'),
                'updated_at', to_char(updated_at at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"')
            ) as columns
        from shown
        "#,
    );
    let mut rows = Rows::new();
    for row in found.fetch_all(pool).await.context("cannot read the views")? {
        let Value::Object(columns) = row.try_get("columns")? else {
            bail!("a row is not a JSON object")
        };
        rows.insert(row.try_get("row")?, columns.into_iter().collect());
    }
    Ok(rows)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn rows(rows: &[(&str, Value)]) -> Rows {
        let columns = |value: &Value| value.as_object().unwrap().clone().into_iter().collect();
        rows.iter()
            .map(|(row, value)| ((*row).to_owned(), columns(value)))
            .collect()
    }

    #[test]
    fn every_kind_of_difference_is_named() {
        let source = rows(&[
            ("users/1", json!({"email": "a"})),
            ("users/2", json!({})),
            ("users/3", json!({"n": null})),
        ]);
        let tables = rows(&[
            ("users/1", json!({"email": "b", "more": 1})),
            ("users/3", json!({})),
            ("users/4", json!({})),
        ]);
        let shown: Vec<String> = compare(&source, &tables)
            .iter()
            .map(ToString::to_string)
            .collect();
        assert_eq!(
            shown,
            [
                "users/1.email: the source says \"a\", the table \"b\"",
                "users/2: in the source, not in the tables",
                "users/4: in the tables, not in the source",
            ]
        );
    }

    #[test]
    fn times_are_compared_in_microseconds() {
        assert_eq!(
            with_micros("2026-01-02T03:04:05.678Z"),
            "2026-01-02T03:04:05.678000Z"
        );
        assert_eq!(with_micros("2026-01-02T03:04:05Z"), "2026-01-02T03:04:05.000000Z");
    }
}
