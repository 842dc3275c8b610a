//! What erasures took from the log and only the tables still know (`dsync.said_of_groups`). A membership's record also
//! describes the group, and goes with the person. Its registers in the group's row are then neither a difference nor put
//! back: whoever compares rows with the log, or replaces them, merges them in from the rows that have them.

use schema::record::Source;
use sqlx::{AssertSqlSafe, PgConnection, PgPool};

use super::shadow::{SEEN, TABLES, VERSION, never};

/// What a message that an erasure takes also said: it described a group. The group's row may be all that still knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SaidOfGroup {
    /// The group's id.
    pub group: String,
    /// The event's id, as in the group's registers.
    pub event: String,
    /// How the event reached the log, likewise.
    pub source: Source,
    /// The group's directory.
    pub directory: String,
}

/// Records what a message said that an erasure takes.
pub async fn note(pool: &PgPool, said: &SaidOfGroup) -> sqlx::Result<()> {
    sqlx::query!(
        r#"
        insert into dsync.said_of_groups as s (group_id, event_id, source, directory_id)
        values ($1, $2, $3, $4)
        on conflict (group_id, event_id, source) do update set directory_id = excluded.directory_id
        where excluded.directory_id > s.directory_id
        "#,
        said.group,
        said.event,
        said.source.code(),
        said.directory,
    )
    .execute(pool)
    .await?;
    Ok(())
}

/// Adds to the groups built beside what only the live rows know. Repeated before each comparison, because somebody may be
/// erased meanwhile.
pub async fn add_beside(connection: &mut PgConnection) -> sqlx::Result<()> {
    merge(connection, ("dsync.groups", None), "pg_temp").await
}

/// Keeps in the live rows of groups what the rows `known`, which an undo replaces, knew. As JSON.
pub(super) async fn keep(connection: &mut PgConnection, known: &str) -> sqlx::Result<()> {
    let rows = "jsonb_populate_recordset(null::dsync.groups, $1::text::jsonb)";
    merge(connection, (rows, Some(known)), "dsync").await
}

/// Merges into the groups of schema `into` what the rows `from` (SQL, with the value of its `$1`, if any) know of them from
/// records that erasures took. The directory was recorded with those, because no register says which record named it.
async fn merge(
    connection: &mut PgConnection,
    (from, value): (&str, Option<&str>),
    into: &str,
) -> sqlx::Result<()> {
    let [_, _, groups, _] = TABLES;
    let versioned: Vec<&str> = VERSION.iter().chain(groups.attributes).copied().collect();
    let columns = groups.columns(connection).await?;
    let values = columns.iter().map(|column| match column.as_str() {
        "id" => "l.id",
        "directory_id" => "o.directory_id",
        _ => never(column),
    });
    let (values, columns) = (values.collect::<Vec<_>>().join(", "), columns.join(", "));
    let list = |alias: &str, names: &[&str]| {
        let names: Vec<String> = names.iter().map(|name| format!("{alias}{name}")).collect();
        names.join(", ")
    };
    let taken = |event: &str, source: &str| {
        format!(
            "exists (select from dsync.said_of_groups as t
                 where t.group_id = l.id and t.event_id = l.{event} and t.source = l.{source})"
        )
    };
    let register = |names: &[&str], key: &[&str], event: &str, source: &str| {
        format!(
            "update {into}.groups as s set ({}) = row ({}) from {from} as l
             where l.id = s.id and ({}) > ({}) and {}",
            list("", names),
            list("l.", names),
            list("l.", key),
            list("s.", key),
            taken(event, source),
        )
    };
    let said =
        "(select group_id, max(directory_id) as directory_id from dsync.said_of_groups group by group_id)";
    for statement in [
        format!(
            "insert into {into}.groups as s ({columns})
             select {values} from {from} as l join {said} as o on o.group_id = l.id
             where exists (select from {into}.groups as t where t.id = l.id) or {} or {}
             on conflict (id) do update set directory_id = excluded.directory_id
             where excluded.directory_id > s.directory_id",
            taken("version_event", "version_source"),
            taken("seen_event", "seen_source"),
        ),
        register(&versioned, VERSION, "version_event", "version_source"),
        register(SEEN, SEEN, "seen_event", "seen_source"),
        format!(
            "update {into}.groups as s set organization_id = r.organization_id
             from (
                 select t.id, coalesce(d.organization_id, t.own_organization_id) as organization_id
                 from {into}.groups as t
                 join {from} as l on l.id = t.id
                 left join {into}.directories as d on d.id = t.directory_id
                 where t.id in (select group_id from dsync.said_of_groups)
             ) as r
             where r.id = s.id and r.organization_id is distinct from s.organization_id"
        ),
    ] {
        let query = sqlx::query(AssertSqlSafe(statement));
        match value {
            Some(value) => query.bind(value),
            None => query,
        }
        .execute(&mut *connection)
        .await?;
    }
    Ok(())
}
