//! Compares groups as readers see them with groups as they were listed.

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
    idp_id: Vec<Option<String>>,
    name: Vec<Option<String>>,
    raw_attributes: Vec<Option<String>>,
    created_at: Vec<Option<OffsetDateTime>>,
    updated_at: Vec<Option<OffsetDateTime>>,
}

impl Columns {
    fn push(&mut self, id: &str, group: &directory::Group<'_>) {
        let owned = |text: &Option<Text<'_>>| text.as_deref().map(str::to_owned);
        self.id.push(id.to_owned());
        self.organization_id.push(owned(&group.organization_id));
        self.idp_id.push(owned(&group.idp_id));
        self.name.push(owned(&group.name));
        self.raw_attributes.push(group.raw_attributes.map(str::to_owned));
        self.created_at.push(group.times.created_at.map(Into::into));
        self.updated_at.push(group.times.updated_at.map(Into::into));
    }
}

/// Compares groups, each given with its place among all.
pub(super) async fn compare(
    pool: &PgPool,
    comparison: Comparison<'_>,
    objects: &[(usize, &str)],
) -> sqlx::Result<Part> {
    let (mut c, mut times, mut unreadable) = (Columns::default(), Vec::new(), Vec::new());
    for (index, text) in objects {
        match directory::group(text) {
            Ok(group) => {
                c.push(group.id.as_str(), &group.attributes);
                times.push((*index, group.attributes.times.speaks_for()));
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
            nullif(greatest(g.gone_at, d.gone_at), '-infinity') as void_at,
            nullif(g.version_updated_at, '-infinity') as version_updated_at,
            nullif(g.version_observed_at, '-infinity') as version_observed_at,
            differing.columns as "columns!",
            case when $9 then to_jsonb(v) end as before,
            case when $9 then jsonb_build_object(
                'organization_id', coalesce(d.organization_id, x.organization_id), 'idp_id', x.idp_id,
                'name', x.name, 'raw_attributes', x.raw_attributes::jsonb, 'created_at', x.created_at,
                'updated_at', x.updated_at
            ) end as after
        from (
            select
                generate_subscripts($1::text[], 1)::bigint as place, unnest($1::text[]) as id,
                unnest($2::text[]) as organization_id, unnest($3::text[]) as idp_id,
                unnest($4::text[]) as name, unnest($5::text[]) as raw_attributes,
                unnest($6::timestamptz[]) as created_at, unnest($7::timestamptz[]) as updated_at
        ) as x
        left join dsync.directories as d on d.id = $8
        left join lateral (select * from dsync.groups as g where g.id = x.id limit 1) as g on true
        left join lateral (select * from directory.groups as v where v.id = x.id limit 1) as v on true
        cross join lateral (
            select array_remove(array[
                case when v.organization_id is distinct from coalesce(d.organization_id, x.organization_id)
                    then 'organization_id' end,
                case when v.idp_id is distinct from x.idp_id then 'idp_id' end,
                case when v.name is distinct from x.name then 'name' end,
                case when v.raw_attributes is distinct from x.raw_attributes::jsonb
                    then 'raw_attributes' end,
                case when v.created_at is distinct from x.created_at then 'created_at' end,
                case when v.updated_at is distinct from x.updated_at then 'updated_at' end
            ], null) as columns
        ) as differing
        where v.id is null or differing.columns <> '{}'
        order by x.place
        "#,
        &c.id,
        &c.organization_id as &[Option<String>],
        &c.idp_id as &[Option<String>],
        &c.name as &[Option<String>],
        &c.raw_attributes as &[Option<String>],
        &c.created_at as &[Option<OffsetDateTime>],
        &c.updated_at as &[Option<OffsetDateTime>],
        comparison.directory,
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

/// The groups of a directory that readers see, and when each was last seen.
pub async fn shown(pool: &PgPool, directory: &str) -> sqlx::Result<HashMap<String, OffsetDateTime>> {
    sqlx::query!(
        r#"
        select v.id as "id!", g.seen_at as "seen_at!"
        from directory.groups as v join dsync.groups as g on g.id = v.id
        where v.directory_id = $1
        "#,
        directory,
    )
    .fetch(pool)
    .map_ok(|row| (row.id, row.seen_at))
    .try_collect()
    .await
}

/// When this group was last seen. `None` if readers do not see it.
pub async fn seen_at(pool: &PgPool, id: &str) -> sqlx::Result<Option<OffsetDateTime>> {
    sqlx::query_scalar!(
        r#"
        select g.seen_at as "seen_at!"
        from directory.groups as v join dsync.groups as g on g.id = v.id
        where v.id = $1
        "#,
        id,
    )
    .fetch_optional(pool)
    .await
}
