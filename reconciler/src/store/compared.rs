//! Compares objects with the rows that readers see, in Postgres: only Postgres knows what it would store, and when
//! two JSON values are equal. Objects that are equal are not even sent back. (Users are many, so those that are shown
//! as they were listed are settled before that: see `unchanged`.)
//!
//! Each object is looked up by itself (`lateral … limit 1`): for a few hundred of them, the planner would sometimes
//! rather read the whole table, in every statement.
//!
//! Each statement covers a few pages of the walk: there is no temporary table to write and clean up, memory is bounded,
//! and the database works while the walk goes on.

use std::borrow::Cow;

use schema::json;
use schema::timestamp::Timestamp;
use serde_json::Value;
use service::postgres::Trouble;
use sqlx::PgPool;
use time::OffsetDateTime;

use super::{directories, groups, users};
use crate::difference::Entity;
use crate::plan::RowState;

/// An object whose row is not shown, or differs from it.
#[derive(Debug, Clone, PartialEq)]
pub struct Suspect {
    /// Its place among the objects compared.
    pub index: usize,
    /// Its row.
    pub row: RowState,
    /// The object's own `updated_at`, or what stands in for it.
    pub updated_at: Option<Timestamp>,
    /// The columns that differ, if it is shown.
    pub columns: Vec<String>,
    /// The values of those columns, in the tables and at `WorkOS`, if asked for.
    pub values: Option<Value>,
}

/// A row that the comparing statements return.
pub(super) struct Row {
    pub(super) place: i64,
    pub(super) shown: bool,
    pub(super) void_at: Option<OffsetDateTime>,
    pub(super) version_updated_at: Option<OffsetDateTime>,
    pub(super) version_observed_at: Option<OffsetDateTime>,
    pub(super) columns: Vec<String>,
    pub(super) before: Option<Value>,
    pub(super) after: Option<Value>,
}

/// What to compare.
#[derive(Clone, Copy, Debug)]
pub struct Comparison<'a> {
    /// The kind of the objects.
    pub entity: Entity,
    /// The directory they are in.
    pub directory: &'a str,
    /// Whether to return the values that differ.
    pub values: bool,
}

/// The outcome of comparing.
#[derive(Debug, Default)]
pub struct Compared {
    /// Those that are not shown, or differ, in their order.
    pub suspects: Vec<Suspect>,
    /// Places of objects that no row could hold: without a readable id, or refused by Postgres.
    pub unreadable: Vec<usize>,
}

/// Compares `objects` (JSON texts) with what is shown. A value that Postgres refuses affects its own object only.
pub async fn compare(pool: &PgPool, comparison: Comparison<'_>, objects: &[&str]) -> sqlx::Result<Compared> {
    let texts: Vec<Option<Cow<'_, str>>> = objects
        .iter()
        .map(|object| json::storable(object.as_bytes()).ok())
        .collect();
    let mut compared = Compared::default();
    // The part to compare next is last, so that the suspects come out in order.
    let mut parts = Vec::new();
    parts.push(0..objects.len());
    while let Some(part) = parts.pop() {
        let chosen: Vec<(usize, &str)> = part
            .clone()
            .filter_map(|index| Some((index, texts[index].as_deref()?)))
            .collect();
        let outcome = match comparison.entity {
            Entity::User => users::compare(pool, comparison, &chosen).await,
            Entity::Group => groups::compare(pool, comparison, &chosen).await,
            Entity::Directory | Entity::Membership => directories::compare(pool, comparison, &chosen).await,
        };
        match outcome {
            Ok(Part {
                rows,
                times,
                unreadable,
            }) => {
                compared
                    .suspects
                    .extend(rows.into_iter().filter_map(|row| suspect(row, &times)));
                compared.unreadable.extend(unreadable);
                compared
                    .unreadable
                    .extend(part.filter(|index| texts[*index].is_none()));
            }
            Err(error) if Trouble::of(&error) != Trouble::Data => return Err(error),
            Err(_) if part.len() == 1 => compared.unreadable.extend(part),
            Err(_) => {
                let middle = part.start + part.len() / 2;
                parts.extend([middle..part.end, part.start..middle]);
            }
        }
    }
    Ok(compared)
}

/// What one statement returned.
pub(super) struct Part {
    pub(super) rows: Vec<Row>,
    /// For each object sent: its place among all, and the time it speaks for.
    pub(super) times: Vec<(usize, Option<Timestamp>)>,
    pub(super) unreadable: Vec<usize>,
}

fn suspect(row: Row, times: &[(usize, Option<Timestamp>)]) -> Option<Suspect> {
    let (index, updated_at) = *times.get(usize::try_from(row.place).ok()?.checked_sub(1)?)?;
    let version = row.version_updated_at.zip(row.version_observed_at);
    Some(Suspect {
        index,
        row: RowState {
            shown: row.shown,
            void_at: row.void_at.map(Into::into),
            version: version.map(|(updated, observed)| (updated.into(), observed.into())),
        },
        updated_at,
        values: values(&row.columns, row.before.as_ref(), row.after.as_ref()),
        columns: if row.shown { row.columns } else { Vec::new() },
    })
}

fn values(columns: &[String], before: Option<&Value>, after: Option<&Value>) -> Option<Value> {
    let (before, after) = (before?, after?);
    let pairs = columns.iter().map(|column| {
        let both = serde_json::json!({ "here": before[column], "workos": after[column] });
        (column.clone(), both)
    });
    Some(Value::Object(pairs.collect()))
}
