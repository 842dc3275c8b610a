//! Memberships: one statement takes a batch's registers and, row by row, keeps the greater of each.
//!
//! A membership has no attributes. Its own organization is the greatest that was ever named, and counts only while the
//! directory's is unknown.

use schema::ids::{GroupId, UserId};
use schema::observation::Registers;
use sqlx::PgConnection;
use time::OffsetDateTime;

use super::columns::Marks;

/// The events by which a changed row was last seen and last gone.
pub(super) struct MembershipRow {
    pub(super) seen_event: String,
    pub(super) gone_event: String,
}

/// Writes what a batch says about memberships, ordered by group and user. Returns the rows that changed.
#[expect(clippy::too_many_lines, reason = "one statement, one line per column")]
pub(super) async fn write<'r>(
    connection: &mut PgConnection,
    rows: impl Iterator<Item = (&'r (GroupId<'r>, UserId<'r>), &'r Registers<'r, ()>)>,
) -> sqlx::Result<Vec<MembershipRow>> {
    let (mut group_id, mut user_id, mut directory_id) = (Vec::new(), Vec::new(), Vec::new());
    let (mut organization_id, mut marks) = (Vec::new(), Marks::default());
    for ((group, user), row) in rows {
        group_id.push(group.as_str());
        user_id.push(user.as_str());
        directory_id.push(row.directory.as_str());
        organization_id.push(row.organization.as_deref());
        marks.push(row.seen.as_ref(), row.gone.as_ref());
    }
    if group_id.is_empty() {
        return Ok(Vec::new());
    }
    sqlx::query_as!(
        MembershipRow,
        r#"
        insert into memberships as m (
            group_id, user_id, directory_id, organization_id, own_organization_id,
            seen_at, seen_event, seen_source, gone_at, gone_event, gone_source
        )
        select
            x.group_id, x.user_id, x.directory_id,
            coalesce(d.organization_id, x.own_organization_id), x.own_organization_id,
            coalesce(x.seen_at, '-infinity'), coalesce(x.seen_event, ''), coalesce(x.seen_source, ''),
            coalesce(x.gone_at, '-infinity'), coalesce(x.gone_event, ''), coalesce(x.gone_source, '')
        from (
            select
                unnest($1::text[]) as group_id, unnest($2::text[]) as user_id,
                unnest($3::text[]) as directory_id, unnest($4::text[]) as own_organization_id,
                unnest($5::timestamptz[]) as seen_at, unnest($6::text[]) as seen_event,
                unnest($7::text[]) as seen_source, unnest($8::timestamptz[]) as gone_at,
                unnest($9::text[]) as gone_event, unnest($10::text[]) as gone_source
        ) as x
        left join directories as d on d.id = x.directory_id
        order by x.group_id collate "C", x.user_id collate "C"
        on conflict (group_id, user_id) do update set
            directory_id = greatest(m.directory_id, excluded.directory_id),
            organization_id = coalesce(
                (
                    select d.organization_id from directories as d
                    where d.id = greatest(m.directory_id, excluded.directory_id)
                ),
                greatest(m.own_organization_id, excluded.own_organization_id)
            ),
            own_organization_id = greatest(m.own_organization_id, excluded.own_organization_id),
            (seen_at, seen_event, seen_source) = (
                select excluded.seen_at, excluded.seen_event, excluded.seen_source
                where (excluded.seen_at, excluded.seen_event, excluded.seen_source)
                    > (m.seen_at, m.seen_event, m.seen_source)
                union all
                select m.seen_at, m.seen_event, m.seen_source
                where (excluded.seen_at, excluded.seen_event, excluded.seen_source)
                    <= (m.seen_at, m.seen_event, m.seen_source)
            ),
            (gone_at, gone_event, gone_source) = (
                select excluded.gone_at, excluded.gone_event, excluded.gone_source
                where (excluded.gone_at, excluded.gone_event, excluded.gone_source)
                    > (m.gone_at, m.gone_event, m.gone_source)
                union all
                select m.gone_at, m.gone_event, m.gone_source
                where (excluded.gone_at, excluded.gone_event, excluded.gone_source)
                    <= (m.gone_at, m.gone_event, m.gone_source)
            )
        where (excluded.seen_at, excluded.seen_event, excluded.seen_source)
            > (m.seen_at, m.seen_event, m.seen_source)
            or (excluded.gone_at, excluded.gone_event, excluded.gone_source)
            > (m.gone_at, m.gone_event, m.gone_source)
            or excluded.directory_id > m.directory_id
            or greatest(m.own_organization_id, excluded.own_organization_id)
            is distinct from m.own_organization_id
        returning m.seen_event, m.gone_event
        "#,
        &group_id as &[&str],
        &user_id as &[&str],
        &directory_id as &[&str],
        &organization_id as &[Option<&str>],
        &marks.seen_at as &[Option<OffsetDateTime>],
        &marks.seen_event as &[Option<&str>],
        &marks.seen_source as &[Option<&str>],
        &marks.gone_at as &[Option<OffsetDateTime>],
        &marks.gone_event as &[Option<&str>],
        &marks.gone_source as &[Option<&str>],
    )
    .fetch_all(connection)
    .await
}
