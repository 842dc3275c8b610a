//! The projection built again beside the live one: temporary tables of the same shape, and how both differ.
//!
//! Temporary, so that whatever ends a rebuild takes them away, and because nothing of them need survive a crash; so all
//! of it happens on one connection. What reads them here names them `pg_temp.…` and the live ones `dsync.…`.
//!
//! What never happens here: writing the live tables, which is [`super::swap`]'s.

use schema::timestamp::Timestamp;
use serde::Serialize;
use sqlx::{AssertSqlSafe, PgConnection, Row as _};
use time::OffsetDateTime;

/// A table of the projection, and what of it is what.
#[derive(Debug, Clone, Copy)]
pub struct Table {
    /// Its name, in `dsync` and beside it.
    pub name: &'static str,
    /// What a row of it is called in history.
    pub entity: &'static str,
    /// The columns of its key: the object's id, and of a membership the user's.
    pub key: &'static [&'static str],
    /// What the attributes' version covers, but for the register itself; scrubbing empties these, but for times.
    attributes: &'static [&'static str],
}

/// All of them; what others depend on first.
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
    /// The columns that a row is written with: not those that follow from others.
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

    /// The key's second column of the row `alias`, or an empty text.
    fn second(&self, alias: &str) -> String {
        self.key
            .get(1)
            .map_or_else(|| "''".to_owned(), |column| format!("{alias}.{column}"))
    }

    /// The condition that the row `alias` is that of the key in `c.id` and `c.user_id`.
    pub(super) fn is_of(&self, alias: &str) -> String {
        match self.key {
            [first, second] => format!("{alias}.{first} = c.id and {alias}.{second} = c.user_id"),
            _ => format!("{alias}.id = c.id"),
        }
    }

    /// The person that the row of a key belongs to, as SQL; null for none.
    fn person(&self, id: &str, user_id: &str) -> String {
        match self.entity {
            "user" => id.to_owned(),
            "membership" => user_id.to_owned(),
            _ => "null::text".to_owned(),
        }
    }
}

/// Makes the tables, empty. The connection is this build's from here on: its time-outs are lifted.
pub async fn create(connection: &mut PgConnection) -> sqlx::Result<()> {
    // Before the first temporary table: later it is refused.
    let begin = "set temp_buffers = '64MB'; set statement_timeout = 0; set idle_in_transaction_session_timeout = '5min';
         create temp table candidates (
             entity text not null, id text collate \"C\" not null, user_id text collate \"C\" not null,
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

/// What of the live rows a log that lacks its beginning is completed with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Seed {
    /// Every register that is not newer than the log: to compare what the log can speak of.
    Everything,
    /// Only that objects were gone: what was there, a sweep must say again.
    Gone,
}

/// Puts what the live rows knew until `cut` into the tables, before anything else.
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

/// What a column holds while its register was never written.
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

/// How a row is not what the log says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// The log speaks of it, and it is not there.
    Missing,
    /// It is there, and the log does not speak of it.
    Extra,
    /// Some of its columns differ.
    Differs,
}

/// A row that is not what the log says. No values: they are personal data.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Difference {
    /// directory, user, group or membership.
    pub entity: &'static str,
    /// The object's id; of a membership `<group_id>/<user_id>`.
    pub id: String,
    /// In which way.
    pub kind: Kind,
    /// The columns that differ; none unless the row is on both sides.
    pub columns: Vec<String>,
}

/// What comparing a table showed.
#[derive(Debug, Default)]
pub struct Compared {
    /// Rows that are not what the log says, ordered by key.
    pub differences: Vec<Difference>,
    /// Rows that lost their attributes to `TOMBSTONE_RETENTION`, while the log still has them.
    pub scrubbed: u64,
    /// How many rows the log speaks of.
    pub rows: u64,
}

/// Compares all rows of `table`, live and beside. What was erased is left out; what was scrubbed is counted apart.
///
/// With `note`, keys that differ are kept in the temporary table `candidates`.
pub async fn compare(connection: &mut PgConnection, table: Table, note: bool) -> sqlx::Result<Compared> {
    let (name, keys) = (table.name, table.key.join(", "));
    let first = table.key[0];
    let second = format!("coalesce({}, {})", table.second("l"), table.second("s"));
    let source = format!(
        "select coalesce(l.{first}, s.{first}) as id, {second} as user_id, l as live, s as told
         from dsync.{name} as l full join pg_temp.{name} as s using ({keys})
         where l is distinct from s"
    );
    let mut compared = judged(connection, table, &source).await?;
    if note {
        let keys: (Vec<&str>, Vec<&str>) = compared
            .differences
            .iter()
            .map(|one| one.id.split_once('/').unwrap_or((one.id.as_str(), "")))
            .unzip();
        note_candidates(connection, table.entity, &keys.0, &keys.1).await?;
    }
    let count = format!("select count(*) from pg_temp.{name}");
    let rows: i64 = sqlx::query_scalar(AssertSqlSafe(count))
        .fetch_one(connection)
        .await?;
    compared.rows = rows.unsigned_abs();
    Ok(compared)
}

/// The same of the rows in `candidates` alone.
pub async fn compare_candidates(connection: &mut PgConnection, table: Table) -> sqlx::Result<Compared> {
    let (name, entity) = (table.name, table.entity);
    let source = format!(
        "select c.id, c.user_id, l as live, s as told from pg_temp.candidates as c
         left join dsync.{name} as l on {}
         left join pg_temp.{name} as s on {}
         where c.entity = '{entity}' and l is distinct from s",
        table.is_of("l"),
        table.is_of("s"),
    );
    judged(connection, table, &source).await
}

/// Adds keys to `candidates`.
pub async fn note_candidates(
    connection: &mut PgConnection,
    entity: &str,
    ids: &[&str],
    user_ids: &[&str],
) -> sqlx::Result<()> {
    if ids.is_empty() {
        return Ok(());
    }
    sqlx::query(
        "insert into pg_temp.candidates select $1, x.id, x.user_id from unnest($2::text[], $3::text[]) as x (id, user_id)
         on conflict do nothing",
    )
    .bind(entity)
    .bind(ids)
    .bind(user_ids)
    .execute(connection)
    .await?;
    Ok(())
}

/// Names how the rows of `source` (id, `user_id`, live, told) differ.
async fn judged(connection: &mut PgConnection, table: Table, source: &str) -> sqlx::Result<Compared> {
    let person = table.person("d.id", "d.user_id");
    let emptied: Vec<String> = table
        .attributes
        .iter()
        .filter(|name| {
            !matches!(
                **name,
                "organization_id" | "own_organization_id" | "created_at" | "updated_at"
            )
        })
        .map(|name| format!("'{name}'"))
        .collect();
    let emptied = emptied.join(", ");
    let shown = match table.key {
        [_, _] => "false".to_owned(),
        _ => format!(
            "exists (select from directory.{} as v where v.id = d.id)",
            table.name
        ),
    };
    let statement = format!(
        "with d as materialized ({source})
         select d.id, d.user_id, d.live is null as missing, d.told is null as extra,
             coalesce(x.columns, '{{}}') as columns,
             d.live is distinct from null and d.told is distinct from null and x.columns <@ array[{emptied}]::text[]
                 and x.emptied and not {shown} as scrubbed
         from d
         left join lateral (
             select array_agg(key order by key) as columns,
                 bool_and(a.value = 'null' or a.value = '[]') as emptied
             from jsonb_each(to_jsonb(d.live)) as a full join jsonb_each(to_jsonb(d.told)) as b using (key)
             where a.value is distinct from b.value and key <> 'email_key'
         ) as x on d.live is distinct from null and d.told is distinct from null
         where {person} is null or {person} not in (select user_id from dsync.erased)
         order by d.id, d.user_id"
    );
    // Of rows, `is not null` asks whether every column is there; `is distinct from null` whether the row is.
    let mut compared = Compared::default();
    for row in sqlx::query(AssertSqlSafe(statement))
        .fetch_all(connection)
        .await?
    {
        if row.try_get::<Option<bool>, _>("scrubbed")?.unwrap_or_default() {
            compared.scrubbed += 1;
            continue;
        }
        let (id, user_id): (String, String) = (row.try_get("id")?, row.try_get("user_id")?);
        let kind = match (row.try_get("missing")?, row.try_get("extra")?) {
            (true, _) => Kind::Missing,
            (_, true) => Kind::Extra,
            _ => Kind::Differs,
        };
        compared.differences.push(Difference {
            entity: table.entity,
            id: if user_id.is_empty() {
                id
            } else {
                format!("{id}/{user_id}")
            },
            kind,
            columns: row.try_get("columns")?,
        });
    }
    Ok(compared)
}

/// Live rows of which nothing newer than `cut` is known, where the log lacks its beginning: how many, and some of them.
pub async fn older(
    connection: &mut PgConnection,
    table: Table,
    cut: OffsetDateTime,
    some: i64,
) -> sqlx::Result<(u64, Vec<String>)> {
    let (name, first, second) = (table.name, table.key[0], table.second("s"));
    let version = if table.attributes.is_empty() {
        ""
    } else {
        "and s.version_observed_at <= $1"
    };
    let statement = format!(
        "select count(*) over () as count, s.{first} as id, {second} as user_id from pg_temp.{name} as s
         where s.seen_at <= $1 and s.gone_at <= $1 {version} order by 2, 3 limit $2"
    );
    let rows = sqlx::query(AssertSqlSafe(statement))
        .bind(cut)
        .bind(some)
        .fetch_all(connection)
        .await?;
    let mut count = 0_i64;
    let mut ids = Vec::new();
    for row in rows {
        count = row.try_get("count")?;
        let (id, user_id): (String, String) = (row.try_get("id")?, row.try_get("user_id")?);
        ids.push(if user_id.is_empty() {
            id
        } else {
            format!("{id}/{user_id}")
        });
    }
    Ok((count.unsigned_abs(), ids))
}

/// When the log was last found to have lost its end, or to be another one: what was applied before may be in no log.
pub async fn last_rewind(connection: &mut PgConnection) -> sqlx::Result<Option<Timestamp>> {
    let at = sqlx::query_scalar!("select max(noticed_at) from dsync.rewinds")
        .fetch_one(connection)
        .await?;
    Ok(at.map(Into::into))
}
