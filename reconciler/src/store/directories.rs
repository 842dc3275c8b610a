//! Compares directories as readers see them with directories as they were listed.

use std::collections::HashMap;

use futures_util::TryStreamExt as _;
use schema::directory::{self, Text};
use sqlx::PgPool;
use time::OffsetDateTime;

use super::compared::{Comparison, Part, Row};

#[derive(Default)]
struct Columns {
    id: Vec<String>,
    organization_id: Vec<Option<String>>,
    name: Vec<Option<String>>,
    kind: Vec<Option<String>>,
    state: Vec<Option<String>>,
    external_key: Vec<Option<String>>,
    created_at: Vec<Option<OffsetDateTime>>,
    updated_at: Vec<Option<OffsetDateTime>>,
}

impl Columns {
    fn push(&mut self, id: &str, directory: &directory::Directory<'_>) {
        let owned = |text: &Option<Text<'_>>| text.as_deref().map(str::to_owned);
        self.id.push(id.to_owned());
        self.organization_id.push(owned(&directory.organization_id));
        self.name.push(owned(&directory.name));
        self.kind.push(owned(&directory.kind));
        self.state.push(owned(&directory.state));
        self.external_key.push(owned(&directory.external_key));
        self.created_at.push(directory.times.created_at.map(Into::into));
        self.updated_at.push(directory.times.updated_at.map(Into::into));
    }
}

/// Compares directories, each given with its place among all.
pub(super) async fn compare(
    pool: &PgPool,
    comparison: Comparison<'_>,
    objects: &[(usize, &str)],
) -> sqlx::Result<Part> {
    let (mut c, mut times, mut unreadable) = (Columns::default(), Vec::new(), Vec::new());
    for (index, text) in objects {
        match directory::directory(text) {
            Ok(directory) => {
                c.push(directory.id.as_str(), &directory.attributes);
                times.push((*index, directory.attributes.times.speaks_for()));
            }
            Err(_) => unreadable.push(*index),
        }
    }
    let rows = sqlx::query_as!(
        Row,
        r#"
        select
            x.place as "place!",
            v.id is not null as "shown!",
            nullif(d.gone_at, '-infinity') as void_at,
            nullif(d.version_updated_at, '-infinity') as version_updated_at,
            nullif(d.version_observed_at, '-infinity') as version_observed_at,
            differing.columns as "columns!",
            case when $9 then to_jsonb(v) end as before,
            case when $9 then to_jsonb(x) end as after
        from unnest(
            $1::text[], $2::text[], $3::text[], $4::text[], $5::text[], $6::text[], $7::timestamptz[],
            $8::timestamptz[]
        ) with ordinality as x (
            id, organization_id, name, type, state, external_key, created_at, updated_at, place
        )
        left join lateral (select * from dsync.directories as d where d.id = x.id limit 1) as d on true
        left join lateral (select * from directory.directories as v where v.id = x.id limit 1) as v on true
        cross join lateral (
            select array_remove(array[
                case when v.organization_id is distinct from x.organization_id then 'organization_id' end,
                case when v.name is distinct from x.name then 'name' end,
                case when v.type is distinct from x.type then 'type' end,
                case when v.state is distinct from x.state then 'state' end,
                case when v.external_key is distinct from x.external_key then 'external_key' end,
                case when v.created_at is distinct from x.created_at then 'created_at' end,
                case when v.updated_at is distinct from x.updated_at then 'updated_at' end
            ], null) as columns
        ) as differing
        where v.id is null or differing.columns <> '{}'
        order by x.place
        "#,
        &c.id,
        &c.organization_id as &[Option<String>],
        &c.name as &[Option<String>],
        &c.kind as &[Option<String>],
        &c.state as &[Option<String>],
        &c.external_key as &[Option<String>],
        &c.created_at as &[Option<OffsetDateTime>],
        &c.updated_at as &[Option<OffsetDateTime>],
        comparison.values,
    )
    .fetch_all(pool)
    .await?;
    Ok(Part {
        rows,
        times,
        unreadable,
    })
}

/// The directories that readers see, and when each was last seen. Also those of which readers see only users or groups, because
/// nothing ever told of the directory itself: if it does not exist, they must not stay either.
pub async fn shown(pool: &PgPool) -> sqlx::Result<HashMap<String, OffsetDateTime>> {
    sqlx::query!(
        r#"
        -- Skips from one directory to the next in the indexes; there may be millions of users.
        with recursive of_users as (
            (select directory_id from dsync.users order by directory_id limit 1)
            union all
            select (
                select u.directory_id from dsync.users as u where u.directory_id > o.directory_id
                order by u.directory_id limit 1
            )
            from of_users as o where o.directory_id is not null
        ), of_groups as (
            (select directory_id from dsync.groups order by directory_id limit 1)
            union all
            select (
                select g.directory_id from dsync.groups as g where g.directory_id > o.directory_id
                order by g.directory_id limit 1
            )
            from of_groups as o where o.directory_id is not null
        ), mentioned as (
            select directory_id as id from of_users union select directory_id from of_groups
        ), contents as (
            select
                m.id,
                greatest(
                    (select max(u.seen_at) from dsync.users as u where u.directory_id = m.id and u.seen_at > u.gone_at),
                    (select max(g.seen_at) from dsync.groups as g where g.directory_id = m.id and g.seen_at > g.gone_at)
                ) as seen_at
            from mentioned as m
            where not exists (select from dsync.directories as d where d.id = m.id)
        )
        select v.id as "id!", d.seen_at as "seen_at!"
        from directory.directories as v join dsync.directories as d on d.id = v.id
        union all
        select id, seen_at from contents where id is not null and seen_at is not null
        "#,
    )
    .fetch(pool)
    .map_ok(|row| (row.id, row.seen_at))
    .try_collect()
    .await
}

/// When this directory was last seen. `None` if readers do not see it.
pub async fn seen_at(pool: &PgPool, id: &str) -> sqlx::Result<Option<OffsetDateTime>> {
    sqlx::query_scalar!(
        r#"
        select d.seen_at as "seen_at!"
        from directory.directories as v join dsync.directories as d on d.id = v.id
        where v.id = $1
        "#,
        id,
    )
    .fetch_optional(pool)
    .await
}
