//! Directories: one statement takes a batch's registers and, row by row, keeps the greater of each.
//!
//! That statement is the whole guarantee: a row never goes back, whatever is written in whatever order. It compares as
//! `schema::observation` does: times exactly, texts byte by byte.

use schema::directory::Directory;
use schema::ids::DirectoryId;
use schema::observation::Registers;
use sqlx::PgConnection;
use time::OffsetDateTime;

use super::columns::{Marks, Versions};
use super::written::DirectoryRow;

#[derive(Default)]
struct Columns<'r> {
    id: Vec<&'r str>,
    organization_id: Vec<Option<&'r str>>,
    name: Vec<Option<&'r str>>,
    kind: Vec<Option<&'r str>>,
    state: Vec<Option<&'r str>>,
    external_key: Vec<Option<&'r str>>,
    created_at: Vec<Option<OffsetDateTime>>,
    updated_at: Vec<Option<OffsetDateTime>>,
    version: Versions<'r>,
    marks: Marks<'r>,
}

impl<'r> Columns<'r> {
    fn push(&mut self, id: &'r DirectoryId<'_>, row: &'r Registers<'_, Directory<'_>>) {
        let a = row.attributes.as_ref().map(|versioned| &versioned.attributes);
        self.id.push(id.as_str());
        self.organization_id
            .push(a.and_then(|a| a.organization_id.as_deref()));
        self.name.push(a.and_then(|a| a.name.as_deref()));
        self.kind.push(a.and_then(|a| a.kind.as_deref()));
        self.state.push(a.and_then(|a| a.state.as_deref()));
        self.external_key.push(a.and_then(|a| a.external_key.as_deref()));
        self.created_at
            .push(a.and_then(|a| a.times.created_at).map(Into::into));
        self.updated_at
            .push(a.and_then(|a| a.times.updated_at).map(Into::into));
        self.version
            .push(row.attributes.as_ref().map(|versioned| &versioned.version));
        self.marks.push(row.seen.as_ref(), row.gone.as_ref());
    }
}

/// Writes what a batch says about directories, ordered by id. Returns the rows that changed.
#[expect(clippy::too_many_lines, reason = "one statement, one line per column")]
pub(super) async fn write<'r>(
    connection: &mut PgConnection,
    rows: impl Iterator<Item = (&'r DirectoryId<'r>, &'r Registers<'r, Directory<'r>>)>,
) -> sqlx::Result<Vec<DirectoryRow>> {
    let mut c = Columns::default();
    for (id, row) in rows {
        c.push(id, row);
    }
    if c.id.is_empty() {
        return Ok(Vec::new());
    }
    sqlx::query_as!(
        DirectoryRow,
        r#"
        insert into directories as d (
            id, organization_id, name, type, state, external_key, created_at, updated_at,
            version_updated_at, version_observed_at, version_event, version_source, version_digest,
            seen_at, seen_event, seen_source, gone_at, gone_event, gone_source
        )
        select
            x.id, x.organization_id, x.name, x.type, x.state, x.external_key, x.created_at,
            x.updated_at, coalesce(x.version_updated_at, '-infinity'),
            coalesce(x.version_observed_at, '-infinity'), coalesce(x.version_event, ''),
            coalesce(x.version_source, ''), coalesce(x.version_digest, 0),
            coalesce(x.seen_at, '-infinity'), coalesce(x.seen_event, ''), coalesce(x.seen_source, ''),
            coalesce(x.gone_at, '-infinity'), coalesce(x.gone_event, ''), coalesce(x.gone_source, '')
        from (
            select
                unnest($1::text[]) as id, unnest($2::text[]) as organization_id,
                unnest($3::text[]) as name, unnest($4::text[]) as type, unnest($5::text[]) as state,
                unnest($6::text[]) as external_key, unnest($7::timestamptz[]) as created_at,
                unnest($8::timestamptz[]) as updated_at,
                unnest($9::timestamptz[]) as version_updated_at,
                unnest($10::timestamptz[]) as version_observed_at, unnest($11::text[]) as version_event,
                unnest($12::text[]) as version_source, unnest($13::bigint[]) as version_digest,
                unnest($14::timestamptz[]) as seen_at, unnest($15::text[]) as seen_event,
                unnest($16::text[]) as seen_source, unnest($17::timestamptz[]) as gone_at,
                unnest($18::text[]) as gone_event, unnest($19::text[]) as gone_source
        ) as x
        order by x.id collate "C"
        on conflict (id) do update set
            (
                organization_id, name, type, state, external_key, created_at, updated_at,
                version_updated_at, version_observed_at, version_event, version_source, version_digest
            ) = (
                select
                    excluded.organization_id, excluded.name, excluded.type, excluded.state,
                    excluded.external_key, excluded.created_at, excluded.updated_at,
                    excluded.version_updated_at, excluded.version_observed_at, excluded.version_event,
                    excluded.version_source, excluded.version_digest
                where (
                        excluded.version_updated_at, excluded.version_observed_at,
                        excluded.version_event, excluded.version_source, excluded.version_digest
                    )
                    > (
                            d.version_updated_at, d.version_observed_at, d.version_event,
                            d.version_source, d.version_digest
                        )
                union all
                select
                    d.organization_id, d.name, d.type, d.state, d.external_key, d.created_at,
                    d.updated_at, d.version_updated_at, d.version_observed_at, d.version_event,
                    d.version_source, d.version_digest
                where (
                        excluded.version_updated_at, excluded.version_observed_at,
                        excluded.version_event, excluded.version_source, excluded.version_digest
                    )
                    <= (
                            d.version_updated_at, d.version_observed_at, d.version_event,
                            d.version_source, d.version_digest
                        )
            ),
            (
                seen_at, seen_event, seen_source
            ) = (
                select
                    excluded.seen_at, excluded.seen_event, excluded.seen_source
                where (excluded.seen_at, excluded.seen_event, excluded.seen_source)
                    > (d.seen_at, d.seen_event, d.seen_source)
                union all
                select
                    d.seen_at, d.seen_event, d.seen_source
                where (excluded.seen_at, excluded.seen_event, excluded.seen_source)
                    <= (d.seen_at, d.seen_event, d.seen_source)
            ),
            (
                gone_at, gone_event, gone_source
            ) = (
                select
                    excluded.gone_at, excluded.gone_event, excluded.gone_source
                where (excluded.gone_at, excluded.gone_event, excluded.gone_source)
                    > (d.gone_at, d.gone_event, d.gone_source)
                union all
                select
                    d.gone_at, d.gone_event, d.gone_source
                where (excluded.gone_at, excluded.gone_event, excluded.gone_source)
                    <= (d.gone_at, d.gone_event, d.gone_source)
            )
        where (
                excluded.version_updated_at, excluded.version_observed_at, excluded.version_event,
                excluded.version_source, excluded.version_digest
            )
            > (
                    d.version_updated_at, d.version_observed_at, d.version_event, d.version_source,
                    d.version_digest
                )
            or (excluded.seen_at, excluded.seen_event, excluded.seen_source)
                > (d.seen_at, d.seen_event, d.seen_source)
            or (excluded.gone_at, excluded.gone_event, excluded.gone_source)
                > (d.gone_at, d.gone_event, d.gone_source)
        returning d.id, d.version_event, d.seen_event, d.gone_event, d.organization_id
        "#,
        &c.id as &[&str],
        &c.organization_id as &[Option<&str>],
        &c.name as &[Option<&str>],
        &c.kind as &[Option<&str>],
        &c.state as &[Option<&str>],
        &c.external_key as &[Option<&str>],
        &c.created_at as &[Option<OffsetDateTime>],
        &c.updated_at as &[Option<OffsetDateTime>],
        &c.version.updated_at as &[Option<OffsetDateTime>],
        &c.version.observed_at as &[Option<OffsetDateTime>],
        &c.version.event as &[Option<&str>],
        &c.version.source as &[Option<&str>],
        &c.version.digest as &[Option<i64>],
        &c.marks.seen_at as &[Option<OffsetDateTime>],
        &c.marks.seen_event as &[Option<&str>],
        &c.marks.seen_source as &[Option<&str>],
        &c.marks.gone_at as &[Option<OffsetDateTime>],
        &c.marks.gone_event as &[Option<&str>],
        &c.marks.gone_source as &[Option<&str>],
    )
    .fetch_all(connection)
    .await
}
