//! The projection built again beside the live one, in temporary tables of the same shape.
//!
//! The tables are temporary so that they disappear however a rebuild ends; nothing in them need survive a crash. So
//! everything happens on one connection. Statements here name them `pg_temp.…`, and the live ones `dsync.…`.
//!
//! Nothing here writes the live tables: that is the task of [`super::swap`].

use sqlx::{AssertSqlSafe, PgConnection};
use time::OffsetDateTime;

/// A table of the projection, and what its columns are for.
#[derive(Debug, Clone, Copy)]
pub struct Table {
    /// Its name, in `dsync` and in `pg_temp`.
    pub name: &'static str,
    /// What history calls a row of it.
    pub entity: &'static str,
    /// The columns of its key: the object's id; for a membership, the group's and the user's.
    pub key: &'static [&'static str],
    /// What the attributes' version covers, except the register itself. Scrubbing empties these columns, except times and
    /// the organization.
    pub(super) attributes: &'static [&'static str],
}

/// All of them; those on which others depend come first.
pub const TABLES: [Table; 4] = [
    Table {
        name: "directories",
        entity: "directory",
        key: &["id"],
        attributes: &[
            "organization_id",
            "name",
            "type",
            "state",
            "external_key",
            "created_at",
            "updated_at",
        ],
    },
    Table {
        name: "users",
        entity: "user",
        key: &["id"],
        attributes: &[
            "own_organization_id",
            "idp_id",
            "email",
            "username",
            "first_name",
            "last_name",
            "name",
            "job_title",
            "state",
            "role",
            "roles",
            "custom_attributes",
            "raw_attributes",
            "created_at",
            "updated_at",
        ],
    },
    Table {
        name: "groups",
        entity: "group",
        key: &["id"],
        attributes: &[
            "own_organization_id",
            "idp_id",
            "name",
            "raw_attributes",
            "created_at",
            "updated_at",
        ],
    },
    Table {
        name: "memberships",
        entity: "membership",
        key: &["group_id", "user_id"],
        attributes: &[],
    },
];

pub(super) const VERSION: &[&str] = &[
    "version_updated_at",
    "version_observed_at",
    "version_event",
    "version_source",
    "version_digest",
];
pub(super) const SEEN: &[&str] = &["seen_at", "seen_event", "seen_source"];
const GONE: &[&str] = &["gone_at", "gone_event", "gone_source"];

impl Table {
    /// The columns with which a row is written: all but the generated ones.
    pub(super) async fn columns(&self, connection: &mut PgConnection) -> sqlx::Result<Vec<String>> {
        sqlx::query_scalar(
            "select attname::text from pg_attribute
             where attrelid = to_regclass($1) and attnum > 0 and not attisdropped and attgenerated = ''
             order by attnum",
        )
        .bind(format!("dsync.{}", self.name))
        .fetch_all(connection)
        .await
    }

    /// The second key column of the row `alias`, or an empty text, as SQL.
    pub(super) fn second(&self, alias: &str) -> String {
        self.key
            .get(1)
            .map_or_else(|| "''".to_owned(), |column| format!("{alias}.{column}"))
    }

    /// The condition that the row `alias` has the key in `c.id` and `c.user_id`, as SQL.
    pub(super) fn is_of(&self, alias: &str) -> String {
        match self.key {
            [first, second] => format!("{alias}.{first} = c.id and {alias}.{second} = c.user_id"),
            _ => format!("{alias}.id = c.id"),
        }
    }

    /// The person to whom the row with this key belongs, as SQL; null for none.
    pub(super) fn person(&self, id: &str, user_id: &str) -> String {
        match self.entity {
            "user" => id.to_owned(),
            "membership" => user_id.to_owned(),
            _ => "null::text".to_owned(),
        }
    }
}

/// Creates the tables, empty. The connection belongs to the build from here on: its timeouts are relaxed.
pub async fn create(connection: &mut PgConnection) -> sqlx::Result<()> {
    // `temp_buffers` can be set only before the first use of a temporary table.
    let begin = "set temp_buffers = '64MB'; set statement_timeout = 0; set idle_in_transaction_session_timeout = '5min';
         create temp table candidates (
             entity text not null, id text collate \"C\" not null, user_id text collate \"C\" not null,
             primary key (entity, id, user_id)
         );
         create temp table differing (
             entity text not null, id text collate \"C\" not null, user_id text collate \"C\" not null,
             kind text not null, columns text[] not null, held boolean not null default false,
             primary key (entity, id, user_id)
         )";
    sqlx::raw_sql(begin).execute(&mut *connection).await?;
    for table in TABLES {
        let (name, key) = (table.name, table.key.join(", "));
        let make = format!(
            "create temp table {name} (like dsync.{name} including defaults including generated, primary key ({key}))"
        );
        sqlx::raw_sql(AssertSqlSafe(make))
            .execute(&mut *connection)
            .await?;
        if table.entity != "directory" {
            let index = format!("create index on pg_temp.{name} (directory_id)");
            sqlx::raw_sql(AssertSqlSafe(index))
                .execute(&mut *connection)
                .await?;
        }
    }
    Ok(())
}

/// Which part of the live rows makes up for a log's missing beginning.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Seed {
    /// Every register that is older than the log, so that only what the log can know is compared.
    Everything,
    /// Only that objects were gone. What exists must be listed again by a sweep.
    Gone,
}

/// Fills the tables with what the live rows knew up to `cut`, and nothing else.
pub async fn seed(connection: &mut PgConnection, cut: OffsetDateTime, seed: Seed) -> sqlx::Result<()> {
    for table in TABLES {
        let columns = table.columns(connection).await?;
        let register = |names: &'static [&'static str], time: &'static str, wanted: bool| {
            names.iter().map(move |name| {
                (
                    *name,
                    if wanted {
                        format!("l.{time} <= $1")
                    } else {
                        "false".to_owned()
                    },
                )
            })
        };
        let everything = seed == Seed::Everything;
        let versioned = !table.attributes.is_empty();
        let mut parts: Vec<(&str, String)> = Vec::new();
        if versioned {
            parts.extend(register(VERSION, "version_observed_at", everything));
            parts.extend(register(table.attributes, "version_observed_at", everything));
        }
        parts.extend(register(SEEN, "seen_at", everything));
        parts.extend(register(GONE, "gone_at", true));
        let values: Vec<String> = columns
            .iter()
            .map(|column| match parts.iter().find(|(name, _)| name == column) {
                None => format!("l.{column}"),
                Some((_, kept)) => format!("case when {kept} then l.{column} else {} end", never(column)),
            })
            .collect();
        let mut any = vec!["(l.gone_at <= $1 and l.gone_at > '-infinity')"];
        if everything {
            any.push("l.seen_at <= $1");
            any.extend(versioned.then_some("l.version_observed_at <= $1"));
        }
        let (name, columns, values) = (table.name, columns.join(", "), values.join(", "));
        let any = any.join(" or ");
        let clear = format!("truncate pg_temp.{name}");
        sqlx::raw_sql(AssertSqlSafe(clear))
            .execute(&mut *connection)
            .await?;
        let fill = format!(
            "insert into pg_temp.{name} ({columns}) select {values} from dsync.{name} as l where {any}"
        );
        sqlx::query(AssertSqlSafe(fill))
            .bind(cut)
            .execute(&mut *connection)
            .await?;
    }
    Ok(())
}

/// The value of a column whose register was never written, as SQL.
pub(super) fn never(column: &str) -> &'static str {
    match column {
        "version_updated_at" | "version_observed_at" | "seen_at" | "gone_at" => "'-infinity'",
        "version_digest" => "0",
        "roles" => "'{}'",
        _ if column.starts_with("version_") || column.starts_with("seen_") || column.starts_with("gone_") => {
            "''"
        }
        _ => "null",
    }
}
