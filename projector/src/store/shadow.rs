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

const VERSION: &[&str] = &[
    "version_updated_at",
    "version_observed_at",
    "version_event",
    "version_source",
    "version_digest",
];
const SEEN: &[&str] = &["seen_at", "seen_event", "seen_source"];
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

/// Fills the tables with what the log no longer says, as far as the live rows know it, and nothing else: what they knew up to
/// `cut`, if the log lacks its beginning; and what messages said about groups that erasures took.
pub async fn seed(
    connection: &mut PgConnection,
    cut: Option<OffsetDateTime>,
    part: Seed,
) -> sqlx::Result<()> {
    for table in TABLES {
        // Without a cut, `$1` is null, and no comparison with it is true.
        let before = |time: &str| format!("l.{time} <= $1");
        let everything = |time: &str| match part {
            Seed::Everything => before(time),
            Seed::Gone => "false".to_owned(),
        };
        let taken = |event: &str, source: &str| match table.entity {
            "group" => format!(
                "exists (select from dsync.overwritten as o
                     where o.group_id = l.id and o.event_id = l.{event} and o.source = l.{source})"
            ),
            _ => "false".to_owned(),
        };
        let version = format!(
            "({} or {})",
            everything("version_observed_at"),
            taken("version_event", "version_source")
        );
        let seen = format!(
            "({} or {})",
            everything("seen_at"),
            taken("seen_event", "seen_source")
        );
        let gone = before("gone_at");
        let columns = table.columns(connection).await?;
        let values: Vec<String> = columns
            .iter()
            .map(|column| {
                let name = column.as_str();
                let kept = if VERSION.contains(&name) || table.attributes.contains(&name) {
                    &version
                } else if SEEN.contains(&name) {
                    &seen
                } else if GONE.contains(&name) {
                    &gone
                } else {
                    return format!("l.{name}");
                };
                format!("case when {kept} then l.{name} else {} end", never(name))
            })
            .collect();
        let mut any = vec![format!("({gone} and l.gone_at > '-infinity')")];
        any.push(everything("seen_at"));
        if !table.attributes.is_empty() {
            any.push(everything("version_observed_at"));
        }
        if table.entity == "group" {
            // Such a message may also be the only one that named the row's directory.
            any.push("exists (select from dsync.overwritten as o where o.group_id = l.id)".to_owned());
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
fn never(column: &str) -> &'static str {
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
