//! Users: one statement takes a batch's registers and, row by row, keeps the greater of each.
//!
//! That statement is the whole guarantee: a row never goes back, whatever is written in whatever order. It compares as
//! `schema::observation` does: times exactly, texts byte by byte.

use schema::directory::User;
use schema::ids::UserId;
use schema::observation::Registers;
use sqlx::PgConnection;
use time::OffsetDateTime;

use super::columns::{Marks, Versions, array};
use super::written::Row;

#[derive(Default)]
struct Columns<'r> {
    id: Vec<&'r str>,
    directory_id: Vec<&'r str>,
    own_organization_id: Vec<Option<&'r str>>,
    idp_id: Vec<Option<&'r str>>,
    email: Vec<Option<&'r str>>,
    username: Vec<Option<&'r str>>,
    first_name: Vec<Option<&'r str>>,
    last_name: Vec<Option<&'r str>>,
    name: Vec<Option<&'r str>>,
    job_title: Vec<Option<&'r str>>,
    state: Vec<Option<&'r str>>,
    role: Vec<Option<&'r str>>,
    roles: Vec<Option<String>>,
    custom_attributes: Vec<Option<&'r str>>,
    raw_attributes: Vec<Option<&'r str>>,
    created_at: Vec<Option<OffsetDateTime>>,
    updated_at: Vec<Option<OffsetDateTime>>,
    version: Versions<'r>,
    marks: Marks<'r>,
}

impl<'r> Columns<'r> {
    fn push(&mut self, id: &'r UserId<'_>, row: &'r Registers<'_, User<'_>>) {
        let a = row.attributes.as_ref().map(|versioned| &versioned.attributes);
        self.id.push(id.as_str());
        self.directory_id.push(row.directory.as_str());
        self.own_organization_id
            .push(a.and_then(|a| a.organization_id.as_deref()));
        self.idp_id.push(a.and_then(|a| a.idp_id.as_deref()));
        self.email.push(a.and_then(|a| a.email.as_deref()));
        self.username.push(a.and_then(|a| a.username.as_deref()));
        self.first_name.push(a.and_then(|a| a.first_name.as_deref()));
        self.last_name.push(a.and_then(|a| a.last_name.as_deref()));
        self.name.push(a.and_then(|a| a.name.as_deref()));
        self.job_title.push(a.and_then(|a| a.job_title.as_deref()));
        self.state.push(a.and_then(|a| a.state.as_deref()));
        self.role.push(a.and_then(|a| a.role.as_deref()));
        self.roles.push(a.map(|a| array(&a.roles)));
        self.custom_attributes.push(a.and_then(|a| a.custom_attributes));
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

/// Writes what a batch says about users, ordered by id. Returns the rows that changed.
#[expect(clippy::too_many_lines, reason = "one statement, one line per column")]
pub(super) async fn write<'r>(
    connection: &mut PgConnection,
    rows: impl Iterator<Item = (&'r UserId<'r>, &'r Registers<'r, User<'r>>)>,
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
        insert into users as u (
            id, directory_id, organization_id, own_organization_id, idp_id, email, username, first_name,
            last_name, name, job_title, state, role, roles, custom_attributes, raw_attributes,
            created_at, updated_at, version_updated_at, version_observed_at, version_event,
            version_source, version_digest, seen_at, seen_event, seen_source, gone_at, gone_event,
            gone_source
        )
        select
            x.id, x.directory_id, coalesce(d.organization_id, x.own_organization_id),
            x.own_organization_id, x.idp_id, x.email, x.username, x.first_name, x.last_name, x.name,
            x.job_title, x.state, x.role, coalesce(x.roles::text[], '{}'), x.custom_attributes::jsonb,
            x.raw_attributes::jsonb, x.created_at, x.updated_at,
            coalesce(x.version_updated_at, '-infinity'), coalesce(x.version_observed_at, '-infinity'),
            coalesce(x.version_event, ''), coalesce(x.version_source, ''),
            coalesce(x.version_digest, 0), coalesce(x.seen_at, '-infinity'), coalesce(x.seen_event, ''),
            coalesce(x.seen_source, ''), coalesce(x.gone_at, '-infinity'), coalesce(x.gone_event, ''),
            coalesce(x.gone_source, '')
        from (
            select
                unnest($1::text[]) as id, unnest($2::text[]) as directory_id,
                unnest($3::text[]) as own_organization_id, unnest($4::text[]) as idp_id,
                unnest($5::text[]) as email, unnest($6::text[]) as username,
                unnest($7::text[]) as first_name, unnest($8::text[]) as last_name,
                unnest($9::text[]) as name, unnest($10::text[]) as job_title,
                unnest($11::text[]) as state, unnest($12::text[]) as role, unnest($13::text[]) as roles,
                unnest($14::text[]) as custom_attributes, unnest($15::text[]) as raw_attributes,
                unnest($16::timestamptz[]) as created_at, unnest($17::timestamptz[]) as updated_at,
                unnest($18::timestamptz[]) as version_updated_at,
                unnest($19::timestamptz[]) as version_observed_at, unnest($20::text[]) as version_event,
                unnest($21::text[]) as version_source, unnest($22::bigint[]) as version_digest,
                unnest($23::timestamptz[]) as seen_at, unnest($24::text[]) as seen_event,
                unnest($25::text[]) as seen_source, unnest($26::timestamptz[]) as gone_at,
                unnest($27::text[]) as gone_event, unnest($28::text[]) as gone_source
        ) as x
        left join directories as d on d.id = x.directory_id
        order by x.id collate "C"
        on conflict (id) do update set
            directory_id = greatest(u.directory_id, excluded.directory_id),
            (
                organization_id, own_organization_id, idp_id, email, username, first_name, last_name,
                name, job_title, state, role, roles, custom_attributes, raw_attributes, created_at,
                updated_at, version_updated_at, version_observed_at, version_event, version_source,
                version_digest
            ) = (
                select
                    coalesce(
                        (
                            select d.organization_id from directories as d
                            where d.id = greatest(u.directory_id, excluded.directory_id)
                        ),
                        excluded.own_organization_id
                    ),
                    excluded.own_organization_id, excluded.idp_id, excluded.email, excluded.username,
                    excluded.first_name, excluded.last_name, excluded.name, excluded.job_title,
                    excluded.state, excluded.role, excluded.roles, excluded.custom_attributes,
                    excluded.raw_attributes, excluded.created_at, excluded.updated_at,
                    excluded.version_updated_at, excluded.version_observed_at, excluded.version_event,
                    excluded.version_source, excluded.version_digest
                where (
                        excluded.version_updated_at, excluded.version_observed_at,
                        excluded.version_event, excluded.version_source, excluded.version_digest
                    )
                    > (
                            u.version_updated_at, u.version_observed_at, u.version_event,
                            u.version_source, u.version_digest
                        )
                union all
                select
                    coalesce(
                        (
                            select d.organization_id from directories as d
                            where d.id = greatest(u.directory_id, excluded.directory_id)
                        ),
                        u.own_organization_id
                    ),
                    u.own_organization_id, u.idp_id, u.email, u.username, u.first_name, u.last_name,
                    u.name, u.job_title, u.state, u.role, u.roles, u.custom_attributes,
                    u.raw_attributes, u.created_at, u.updated_at, u.version_updated_at,
                    u.version_observed_at, u.version_event, u.version_source, u.version_digest
                where (
                        excluded.version_updated_at, excluded.version_observed_at,
                        excluded.version_event, excluded.version_source, excluded.version_digest
                    )
                    <= (
                            u.version_updated_at, u.version_observed_at, u.version_event,
                            u.version_source, u.version_digest
                        )
            ),
            (
                seen_at, seen_event, seen_source
            ) = (
                select
                    excluded.seen_at, excluded.seen_event, excluded.seen_source
                where (excluded.seen_at, excluded.seen_event, excluded.seen_source)
                    > (u.seen_at, u.seen_event, u.seen_source)
                union all
                select
                    u.seen_at, u.seen_event, u.seen_source
                where (excluded.seen_at, excluded.seen_event, excluded.seen_source)
                    <= (u.seen_at, u.seen_event, u.seen_source)
            ),
            (
                gone_at, gone_event, gone_source
            ) = (
                select
                    excluded.gone_at, excluded.gone_event, excluded.gone_source
                where (excluded.gone_at, excluded.gone_event, excluded.gone_source)
                    > (u.gone_at, u.gone_event, u.gone_source)
                union all
                select
                    u.gone_at, u.gone_event, u.gone_source
                where (excluded.gone_at, excluded.gone_event, excluded.gone_source)
                    <= (u.gone_at, u.gone_event, u.gone_source)
            )
        where (
                excluded.version_updated_at, excluded.version_observed_at, excluded.version_event,
                excluded.version_source, excluded.version_digest
            )
            > (
                    u.version_updated_at, u.version_observed_at, u.version_event, u.version_source,
                    u.version_digest
                )
            or (excluded.seen_at, excluded.seen_event, excluded.seen_source)
                > (u.seen_at, u.seen_event, u.seen_source)
            or (excluded.gone_at, excluded.gone_event, excluded.gone_source)
                > (u.gone_at, u.gone_event, u.gone_source)
            or excluded.directory_id > u.directory_id
        returning u.version_event, u.seen_event, u.gone_event
        "#,
        &c.id as &[&str],
        &c.directory_id as &[&str],
        &c.own_organization_id as &[Option<&str>],
        &c.idp_id as &[Option<&str>],
        &c.email as &[Option<&str>],
        &c.username as &[Option<&str>],
        &c.first_name as &[Option<&str>],
        &c.last_name as &[Option<&str>],
        &c.name as &[Option<&str>],
        &c.job_title as &[Option<&str>],
        &c.state as &[Option<&str>],
        &c.role as &[Option<&str>],
        &c.roles as &[Option<String>],
        &c.custom_attributes as &[Option<&str>],
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
