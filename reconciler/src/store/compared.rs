//! Objects compared with the rows that readers see, by Postgres: only it knows what it would store, and when two values
//! of JSON are one. What is equal is not even sent back. (Of users, who are many, those that are as they were listed
//! are settled before: see `unchanged`.)
//!
//! Each object is looked up by itself (`lateral … limit 1`): given a few hundred of them, the planner would sometimes
//! rather read the whole table, once a statement.
//!
//! A few pages of the walk are one statement: no temporary table is written and cleaned up after, memory is bounded, and
//! the database works while the walk goes on.

use std::borrow::Cow;

use schema::json;
use schema::timestamp::Timestamp;
use serde_json::Value;
use service::postgres::Trouble;
use sqlx::PgPool;
use time::OffsetDateTime;

use super::{directories, groups, users};
use crate::difference::Entity;
use crate::plan::Known;

/// An object whose row is not shown, or not as the object looks.
#[derive(Debug, Clone, PartialEq)]
pub struct Suspect {
    /// Its place among the objects compared.
    pub index: usize,
    /// What is known of it.
    pub known: Known,
    /// The object's own `updated_at`, or what stands in for it.
    pub updated_at: Option<Timestamp>,
    /// The columns that differ, where it is shown.
    pub columns: Vec<String>,
    /// What those columns hold and should hold, if asked for.
    pub values: Option<Value>,
}

/// A row of the statements that compare.
pub(super) struct Row {
    pub(super) place: i64,
    pub(super) shown: bool,
    pub(super) seen_at: Option<OffsetDateTime>,
    pub(super) void_at: Option<OffsetDateTime>,
    pub(super) version_updated_at: Option<OffsetDateTime>,
    pub(super) version_observed_at: Option<OffsetDateTime>,
    pub(super) columns: Vec<String>,
    pub(super) before: Option<Value>,
    pub(super) after: Option<Value>,
}

/// What is compared with what.
#[derive(Clone, Copy, Debug)]
pub struct Comparison<'a> {
    /// What kind of objects.
    pub entity: Entity,
    /// The directory they are in.
    pub directory: &'a str,
    /// Whether values are wanted for what differs.
    pub values: bool,
    /// Whether what is listed is appended, be it different or not.
    pub whole: bool,
}

/// What came of comparing.
#[derive(Debug, Default)]
pub struct Compared {
    /// Those that are not as they should be, in their order.
    pub suspects: Vec<Suspect>,
    /// Places of objects that no row could hold: without a readable id, or refused by Postgres.
    pub unreadable: Vec<usize>,
}

/// Compares `objects`, JSON texts, with what is shown. A value that Postgres refuses is one object's trouble.
pub async fn compare(pool: &PgPool, comparison: Comparison<'_>, objects: &[&str]) -> sqlx::Result<Compared> {
    let texts: Vec<Option<Cow<'_, str>>> = objects
        .iter()
        .map(|object| json::storable(object.as_bytes()).ok())
        .collect();
    let mut compared = Compared::default();
    // The part to compare next is on top, so that the suspects come out in their order.
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

/// What one statement answered.
pub(super) struct Part {
    pub(super) rows: Vec<Row>,
    /// Per object sent: its place among all, and what it speaks for.
    pub(super) times: Vec<(usize, Option<Timestamp>)>,
    pub(super) unreadable: Vec<usize>,
}

fn suspect(row: Row, times: &[(usize, Option<Timestamp>)]) -> Option<Suspect> {
    let (index, updated_at) = *times.get(usize::try_from(row.place).ok()?.checked_sub(1)?)?;
    let version = row.version_updated_at.zip(row.version_observed_at);
    Some(Suspect {
        index,
        known: Known {
            shown: row.shown,
            seen_at: row.seen_at.map(Into::into),
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
