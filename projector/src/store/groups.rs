//! Groups: one statement takes a batch's registers and, row by row, keeps the greater of each.
//!
//! That statement is the whole guarantee: a row never goes back, whatever is written in whatever order. It compares as
//! `schema::observation` does: times exactly, texts byte by byte.

use schema::directory::Group;
use schema::ids::GroupId;
use schema::observation::Registers;
use sqlx::PgConnection;
use time::OffsetDateTime;

use super::columns::{Marks, Versions};
use super::written::Row;

#[derive(Default)]
struct Columns<'r> {
    id: Vec<&'r str>,
    directory_id: Vec<&'r str>,
    own_organization_id: Vec<Option<&'r str>>,
    idp_id: Vec<Option<&'r str>>,
    name: Vec<Option<&'r str>>,
    raw_attributes: Vec<Option<&'r str>>,
    created_at: Vec<Option<OffsetDateTime>>,
    updated_at: Vec<Option<OffsetDateTime>>,
    version: Versions<'r>,
    marks: Marks<'r>,
}

impl<'r> Columns<'r> {
    fn push(&mut self, id: &'r GroupId<'_>, row: &'r Registers<'_, Group<'_>>) {
        let a = row.attributes.as_ref().map(|versioned| &versioned.attributes);
        self.id.push(id.as_str());
        self.directory_id.push(row.directory.as_str());
        self.own_organization_id
            .push(a.and_then(|a| a.organization_id.as_deref()));
        self.idp_id.push(a.and_then(|a| a.idp_id.as_deref()));
        self.name.push(a.and_then(|a| a.name.as_deref()));
        self.raw_attributes.push(a.and_then(|a| a.raw_attributes));
        self.created_at
            .push(a.and_then(|a| a.times.created_at).map(Into::into));
        self.updated_at
            .push(a.and_then(|a| a.times.updated_at).map(Into::into));
        self.version
            .push(row.attributes.as_ref().map(|versioned| &versioned.version));
        self.marks.push(row.seen.as_ref(), row.gone.as_ref());
    }
}

/// Writes what a batch says about groups, ordered by id. Returns the rows that changed.
#[expect(clippy::too_many_lines, reason = "one statement, one line per column")]
pub(super) async fn write<'r>(
    connection: &mut PgConnection,
    rows: impl Iterator<Item = (&'r GroupId<'r>, &'r Registers<'r, Group<'r>>)>,
) -> sqlx::Result<Vec<Row>> {
    let mut c = Columns::default();
    for (id, row) in rows {
        c.push(id, row);
    }
    if c.id.is_empty() {
        return Ok(Vec::new());
    }
    sqlx::query_as!(
        Row,
        r#"
        insert into groups as g (
            id, directory_id, organization_id, own_organization_id, idp_id, name, raw_attributes,
            created_at, updated_at, version_updated_at, version_observed_at, version_event,
            version_source, version_digest, seen_at, seen_event, seen_source, gone_at, gone_event,
            gone_source
        )
        select
            x.id, x.directory_id, coalesce(d.organization_id, x.own_organization_id),
            x.own_organization_id, x.idp_id, x.name, x.raw_attributes::jsonb, x.created_at,
            x.updated_at, coalesce(x.version_updated_at, '-infinity'),
            coalesce(x.version_observed_at, '-infinity'), coalesce(x.version_event, ''),
            coalesce(x.version_source, ''), coalesce(x.version_digest, 0),
            coalesce(x.seen_at, '-infinity'), coalesce(x.seen_event, ''), coalesce(x.seen_source, ''),
            coalesce(x.gone_at, '-infinity'), coalesce(x.gone_event, ''), coalesce(x.gone_source, '')
        from (
            select
                unnest($1::text[]) as id, unnest($2::text[]) as directory_id,
                unnest($3::text[]) as own_organization_id, unnest($4::text[]) as idp_id,
                unnest($5::text[]) as name, unnest($6::text[]) as raw_attributes,
                unnest($7::timestamptz[]) as created_at, unnest($8::timestamptz[]) as updated_at,
                unnest($9::timestamptz[]) as version_updated_at,
                unnest($10::timestamptz[]) as version_observed_at, unnest($11::text[]) as version_event,
                unnest($12::text[]) as version_source, unnest($13::bigint[]) as version_digest,
                unnest($14::timestamptz[]) as seen_at, unnest($15::text[]) as seen_event,
                unnest($16::text[]) as seen_source, unnest($17::timestamptz[]) as gone_at,
                unnest($18::text[]) as gone_event, unnest($19::text[]) as gone_source
        ) as x
        left join directories as d on d.id = x.directory_id
        order by x.id collate "C"
        on conflict (id) do update set
            directory_id = greatest(g.directory_id, excluded.directory_id),
            (
                organization_id, own_organization_id, idp_id, name, raw_attributes, created_at,
                updated_at, version_updated_at, version_observed_at, version_event, version_source,
                version_digest
            ) = (
                select
                    coalesce(
                        (
                            select d.organization_id from directories as d
                            where d.id = greatest(g.directory_id, excluded.directory_id)
                        ),
                        excluded.own_organization_id
                    ),
                    excluded.own_organization_id, excluded.idp_id, excluded.name,
                    excluded.raw_attributes, excluded.created_at, excluded.updated_at,
                    excluded.version_updated_at, excluded.version_observed_at, excluded.version_event,
                    excluded.version_source, excluded.version_digest
                where (
                        excluded.version_updated_at, excluded.version_observed_at,
                        excluded.version_event, excluded.version_source, excluded.version_digest
                    )
                    > (
                            g.version_updated_at, g.version_observed_at, g.version_event,
                            g.version_source, g.version_digest
                        )
                union all
                select
                    coalesce(
                        (
                            select d.organization_id from directories as d
                            where d.id = greatest(g.directory_id, excluded.directory_id)
                        ),
                        g.own_organization_id
                    ),
                    g.own_organization_id, g.idp_id, g.name, g.raw_attributes, g.created_at,
                    g.updated_at, g.version_updated_at, g.version_observed_at, g.version_event,
                    g.version_source, g.version_digest
                where (
                        excluded.version_updated_at, excluded.version_observed_at,
                        excluded.version_event, excluded.version_source, excluded.version_digest
                    )
                    <= (
                            g.version_updated_at, g.version_observed_at, g.version_event,
                            g.version_source, g.version_digest
                        )
            ),
            (
                seen_at, seen_event, seen_source
            ) = (
                select
                    excluded.seen_at, excluded.seen_event, excluded.seen_source
                where (excluded.seen_at, excluded.seen_event, excluded.seen_source)
                    > (g.seen_at, g.seen_event, g.seen_source)
                union all
                select
                    g.seen_at, g.seen_event, g.seen_source
                where (excluded.seen_at, excluded.seen_event, excluded.seen_source)
                    <= (g.seen_at, g.seen_event, g.seen_source)
            ),
            (
                gone_at, gone_event, gone_source
            ) = (
                select
                    excluded.gone_at, excluded.gone_event, excluded.gone_source
                where (excluded.gone_at, excluded.gone_event, excluded.gone_source)
                    > (g.gone_at, g.gone_event, g.gone_source)
                union all
                select
                    g.gone_at, g.gone_event, g.gone_source
                where (excluded.gone_at, excluded.gone_event, excluded.gone_source)
                    <= (g.gone_at, g.gone_event, g.gone_source)
            )
        where (
                excluded.version_updated_at, excluded.version_observed_at, excluded.version_event,
                excluded.version_source, excluded.version_digest
            )
            > (
                    g.version_updated_at, g.version_observed_at, g.version_event, g.version_source,
                    g.version_digest
                )
            or (excluded.seen_at, excluded.seen_event, excluded.seen_source)
                > (g.seen_at, g.seen_event, g.seen_source)
            or (excluded.gone_at, excluded.gone_event, excluded.gone_source)
                > (g.gone_at, g.gone_event, g.gone_source)
            or excluded.directory_id > g.directory_id
        returning g.version_event, g.seen_event, g.gone_event
        "#,
        &c.id as &[&str],
        &c.directory_id as &[&str],
        &c.own_organization_id as &[Option<&str>],
        &c.idp_id as &[Option<&str>],
        &c.name as &[Option<&str>],
        &c.raw_attributes as &[Option<&str>],
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
