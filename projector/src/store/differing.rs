//! Where the live projection differs from the one built beside it. Differences are found row by row and kept in a temporary
//! table, so their number affects neither memory nor the network.

use serde::Serialize;
use sqlx::{AssertSqlSafe, PgConnection, Row as _};
use time::OffsetDateTime;

use super::shadow::Table;

/// How a row differs from what the log says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// The log has it, but the live table does not.
    Missing,
    /// The live table has it, but the log does not.
    Extra,
    /// Some of its columns differ.
    Differs,
}

/// A row that is not what the log says. Without values, which are personal data.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Difference {
    /// directory, user, group or membership.
    pub entity: String,
    /// The object's id; for a membership, `<group_id>/<user_id>`.
    pub id: String,
    /// How it differs.
    pub kind: Kind,
    /// The columns that differ; empty unless both sides have the row.
    pub columns: Vec<String>,
}

/// How many rows are not what the log says.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Counts {
    /// In all.
    pub all: i64,
    /// Rows that the log has but the live table does not.
    pub missing: i64,
    /// Rows that the live table has but the log does not.
    pub extra: i64,
    /// Rows in which some columns differ.
    pub differs: i64,
}

/// Finds the rows of `table` that differ from those built beside. Rows of erased people are left out. Rows that were only
/// scrubbed do not count as differences either. Returns how many of those there were.
pub async fn find(connection: &mut PgConnection, table: Table) -> sqlx::Result<u64> {
    let (name, keys) = (table.name, table.key.join(", "));
    let first = table.key[0];
    let second = format!("coalesce({}, {})", table.second("l"), table.second("s"));
    let source = format!(
        "select coalesce(l.{first}, s.{first}) as id, {second} as user_id, l as live, s as told
         from dsync.{name} as l full join pg_temp.{name} as s using ({keys})
         where l is distinct from s"
    );
    judge(connection, table, &source).await
}

/// The same among the candidates only.
pub async fn find_among_candidates(connection: &mut PgConnection, table: Table) -> sqlx::Result<u64> {
    let (name, entity) = (table.name, table.entity);
    let source = format!(
        "select c.id, c.user_id, l as live, s as told from pg_temp.candidates as c
         left join dsync.{name} as l on {}
         left join pg_temp.{name} as s on {}
         where c.entity = '{entity}' and l is distinct from s",
        table.is_of("l"),
        table.is_of("s"),
    );
    judge(connection, table, &source).await
}

/// Records how the rows of `source` (id, `user_id`, live, told) differ. Returns how many were only scrubbed.
async fn judge(connection: &mut PgConnection, table: Table, source: &str) -> sqlx::Result<u64> {
    let (entity, person) = (table.entity, table.person("d.id", "d.user_id"));
    // Generated columns are not compared: they differ where the columns they derive from do.
    let written = table.columns(&mut *connection).await?;
    let written: Vec<String> = written.iter().map(|name| format!("'{name}'")).collect();
    let written = written.join(", ");
    let emptied: Vec<String> = table
        .attributes
        .iter()
        .filter(|name| !name.ends_with("organization_id") && !name.ends_with("_at"))
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
    // For a row, `is not null` tests whether every column has a value, and `is distinct from null` whether there is a row.
    let statement = format!(
        "with d as materialized ({source}), judged as (
             select d.id, d.user_id,
                 case when d.live is null then 'missing' when d.told is null then 'extra' else 'differs' end as kind,
                 coalesce(x.columns, '{{}}') as columns,
                 coalesce(x.columns <@ array[{emptied}]::text[] and x.emptied and not {shown}, false) as scrubbed
             from d
             left join lateral (
                 select array_agg(key order by key) as columns,
                     bool_and(a.value = 'null' or a.value = '[]') as emptied
                 from jsonb_each(to_jsonb(d.live)) as a full join jsonb_each(to_jsonb(d.told)) as b using (key)
                 where a.value is distinct from b.value and key = any(array[{written}])
             ) as x on d.live is distinct from null and d.told is distinct from null
             where {person} is null or {person} not in (select user_id from dsync.erased)
         ), noted as (
             insert into pg_temp.differing (entity, id, user_id, kind, columns)
             select '{entity}', id, user_id, kind, columns from judged where not scrubbed
         )
         select count(*) from judged where scrubbed"
    );
    let scrubbed: i64 = sqlx::query_scalar(AssertSqlSafe(statement))
        .fetch_one(connection)
        .await?;
    Ok(scrubbed.unsigned_abs())
}

/// Turns the differences found into candidates, and deletes them.
pub async fn into_candidates(connection: &mut PgConnection) -> sqlx::Result<()> {
    sqlx::raw_sql(
        "insert into pg_temp.candidates select entity, id, user_id from pg_temp.differing on conflict do nothing;
         truncate pg_temp.differing;
         analyze pg_temp.candidates",
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// Adds keys to the candidates.
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

/// Marks rows to be held, that is, not replaced. First, rows that the log does not have, in directories where deletions are
/// held back: a person decides whether those are gone. Second, every live row in the directories that are `unlisted`: the
/// log may have only half of those.
pub async fn hold(connection: &mut PgConnection, table: Table, unlisted: &[String]) -> sqlx::Result<()> {
    let directory = if table.entity == "directory" {
        "l.id"
    } else {
        "l.directory_id"
    };
    let statement = format!(
        "update pg_temp.differing as c set held = true from dsync.{} as l
         where c.entity = '{}' and {} and (
             {directory} = any($1)
             or c.kind = 'extra' and {directory} in (select directory_id from dsync.held_deletions)
         )",
        table.name,
        table.entity,
        table.is_of("l"),
    );
    sqlx::query(AssertSqlSafe(statement))
        .bind(unlisted)
        .execute(connection)
        .await?;
    Ok(())
}

/// How many differences were found: those held, or those not held.
pub async fn count(connection: &mut PgConnection, held: bool) -> sqlx::Result<Counts> {
    let row = sqlx::query(
        "select count(*) as a, count(*) filter (where kind = 'missing') as m,
             count(*) filter (where kind = 'extra') as e, count(*) filter (where kind = 'differs') as d
         from pg_temp.differing where held = $1",
    )
    .bind(held)
    .fetch_one(connection)
    .await?;
    Ok(Counts {
        all: row.try_get("a")?,
        missing: row.try_get("m")?,
        extra: row.try_get("e")?,
        differs: row.try_get("d")?,
    })
}

/// The first `limit` differences, those held or those not held, in the order of tables and keys.
pub async fn list(connection: &mut PgConnection, held: bool, limit: usize) -> sqlx::Result<Vec<Difference>> {
    let rows = sqlx::query(
        "select entity, case user_id when '' then id else id || '/' || user_id end as id, kind, columns
         from pg_temp.differing as c where held = $1
         order by array_position(array['directory', 'user', 'group', 'membership'], entity), c.id, c.user_id
         limit $2",
    )
    .bind(held)
    .bind(i64::try_from(limit).unwrap_or(i64::MAX))
    .fetch_all(connection)
    .await?;
    rows.iter()
        .map(|row| {
            Ok(Difference {
                entity: row.try_get("entity")?,
                id: row.try_get("id")?,
                kind: match row.try_get("kind")? {
                    "missing" => Kind::Missing,
                    "extra" => Kind::Extra,
                    _ => Kind::Differs,
                },
                columns: row.try_get("columns")?,
            })
        })
        .collect()
}

/// How many rows of `table` the log yields.
pub async fn rows(connection: &mut PgConnection, table: Table) -> sqlx::Result<u64> {
    let count = format!("select count(*) from pg_temp.{}", table.name);
    let rows: i64 = sqlx::query_scalar(AssertSqlSafe(count))
        .fetch_one(connection)
        .await?;
    Ok(rows.unsigned_abs())
}

/// If the log lacks its beginning: the live rows about which nothing newer than `cut` is known. Returns how many there are,
/// and up to `some` of them.
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
