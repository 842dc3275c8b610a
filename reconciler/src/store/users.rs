//! Compares users as readers see them with users as they were listed.

use std::collections::HashMap;

use futures_util::TryStreamExt as _;
use schema::directory::{self, Text};
use sqlx::PgPool;
use time::OffsetDateTime;

use super::compared::{Comparison, Part, Row};
use super::unchanged;

#[derive(Default)]
struct Columns {
    id: Vec<String>,
    organization_id: Vec<Option<String>>,
    idp_id: Vec<Option<String>>,
    email: Vec<Option<String>>,
    username: Vec<Option<String>>,
    first_name: Vec<Option<String>>,
    last_name: Vec<Option<String>>,
    name: Vec<Option<String>>,
    job_title: Vec<Option<String>>,
    state: Vec<Option<String>>,
    role: Vec<Option<String>>,
    /// Array literals, because `unnest` flattens arrays of arrays.
    roles: Vec<String>,
    custom_attributes: Vec<Option<String>>,
    raw_attributes: Vec<Option<String>>,
    created_at: Vec<Option<OffsetDateTime>>,
    updated_at: Vec<Option<OffsetDateTime>>,
}

impl Columns {
    fn push(&mut self, id: &str, user: &directory::User<'_>) {
        let owned = |text: &Option<Text<'_>>| text.as_deref().map(str::to_owned);
        self.id.push(id.to_owned());
        self.organization_id.push(owned(&user.organization_id));
        self.idp_id.push(owned(&user.idp_id));
        self.email.push(owned(&user.email));
        self.username.push(owned(&user.username));
        self.first_name.push(owned(&user.first_name));
        self.last_name.push(owned(&user.last_name));
        self.name.push(owned(&user.name));
        self.job_title.push(owned(&user.job_title));
        self.state.push(owned(&user.state));
        self.role.push(owned(&user.role));
        self.roles.push(array(&user.roles));
        self.custom_attributes
            .push(user.custom_attributes.map(str::to_owned));
        self.raw_attributes.push(user.raw_attributes.map(str::to_owned));
        self.created_at.push(user.times.created_at.map(Into::into));
        self.updated_at.push(user.times.updated_at.map(Into::into));
    }
}

/// A list of texts as a Postgres array literal.
pub(super) fn array(elements: &[Text<'_>]) -> String {
    let quoted = elements.iter().map(|element| {
        let escaped = element.replace('\\', r"\\").replace('"', "\\\"");
        format!("\"{escaped}\"")
    });
    format!("{{{}}}", quoted.collect::<Vec<_>>().join(","))
}

/// Compares users, each given with its place among all.
#[expect(clippy::too_many_lines, reason = "one statement, with a line per column")]
pub(super) async fn compare(
    pool: &PgPool,
    comparison: Comparison<'_>,
    objects: &[(usize, &str)],
) -> sqlx::Result<Part> {
    let (mut users, mut unreadable) = (Vec::new(), Vec::new());
    for (index, text) in objects {
        match directory::user(text) {
            Ok(user) => users.push((*index, user)),
            Err(_) => unreadable.push(*index),
        }
    }
    let listed: Vec<_> = users
        .iter()
        .map(|(_, user)| (user.id.as_str(), &user.attributes))
        .collect();
    let unchanged = unchanged::places(pool, comparison.directory, &listed).await?;
    let (mut c, mut times) = (Columns::default(), Vec::new());
    for (place, (index, user)) in users.iter().enumerate() {
        if !unchanged.contains(&place) {
            c.push(user.id.as_str(), &user.attributes);
            times.push((*index, user.attributes.times.speaks_for()));
        }
    }
    if c.id.is_empty() {
        return Ok(Part {
            rows: Vec::new(),
            times,
            unreadable,
        });
    }
    let rows = sqlx::query_as!(
        Row,
        r#"
        with suspects as materialized (
        select
            x.place,
            x.id,
            v.id is not null as shown,
            d.gone_at as directory_gone_at,
            differing.columns,
            case when $18 then to_jsonb(v) end as before,
            case when $18 then jsonb_build_object(
                'organization_id', coalesce(d.organization_id, x.organization_id), 'idp_id', x.idp_id,
                'email', x.email, 'username', x.username, 'first_name', x.first_name,
                'last_name', x.last_name, 'name', x.name, 'job_title', x.job_title, 'state', x.state,
                'role', x.role, 'roles', x.roles::text[], 'custom_attributes', x.custom_attributes::jsonb,
                'raw_attributes', x.raw_attributes::jsonb, 'created_at', x.created_at,
                'updated_at', x.updated_at
            ) end as after
        -- Side by side in a list, columns are not written into a table of their own first.
        from (
            select
                generate_subscripts($1::text[], 1)::bigint as place, unnest($1::text[]) as id,
                unnest($2::text[]) as organization_id, unnest($3::text[]) as idp_id,
                unnest($4::text[]) as email, unnest($5::text[]) as username,
                unnest($6::text[]) as first_name, unnest($7::text[]) as last_name,
                unnest($8::text[]) as name, unnest($9::text[]) as job_title,
                unnest($10::text[]) as state, unnest($11::text[]) as role, unnest($12::text[]) as roles,
                unnest($13::text[]) as custom_attributes, unnest($14::text[]) as raw_attributes,
                unnest($15::timestamptz[]) as created_at, unnest($16::timestamptz[]) as updated_at
        ) as x
        left join dsync.directories as d on d.id = $17
        left join lateral (select * from directory.users as v where v.id = x.id limit 1) as v on true
        cross join lateral (
            select x.custom_attributes::jsonb as custom_attributes, x.raw_attributes::jsonb as raw_attributes
        ) as json
        cross join lateral (
            -- Only asked for what is suspect already.
            select array_remove(array[
                case when v.organization_id is distinct from coalesce(d.organization_id, x.organization_id)
                    then 'organization_id' end,
                case when v.idp_id is distinct from x.idp_id then 'idp_id' end,
                case when v.email is distinct from x.email then 'email' end,
                case when v.username is distinct from x.username then 'username' end,
                case when v.first_name is distinct from x.first_name then 'first_name' end,
                case when v.last_name is distinct from x.last_name then 'last_name' end,
                case when v.name is distinct from x.name then 'name' end,
                case when v.job_title is distinct from x.job_title then 'job_title' end,
                case when v.state is distinct from x.state then 'state' end,
                case when v.role is distinct from x.role then 'role' end,
                case when v.roles is distinct from x.roles::text[] then 'roles' end,
                case when v.custom_attributes is distinct from json.custom_attributes
                    then 'custom_attributes' end,
                case when v.raw_attributes is distinct from json.raw_attributes then 'raw_attributes' end,
                case when v.created_at is distinct from x.created_at then 'created_at' end,
                case when v.updated_at is distinct from x.updated_at then 'updated_at' end
            ], null) as columns
        ) as differing
        where (
                v.id is null
                or (
                    v.updated_at, v.created_at, v.state, v.role, v.roles, v.email, v.username, v.first_name,
                    v.last_name, v.name, v.job_title, v.idp_id, v.organization_id, v.custom_attributes,
                    v.raw_attributes
                ) is distinct from (
                    x.updated_at, x.created_at, x.state, x.role, x.roles::text[], x.email, x.username, x.first_name,
                    x.last_name, x.name, x.job_title, x.idp_id,
                    coalesce(d.organization_id, x.organization_id), json.custom_attributes,
                    json.raw_attributes
                )
            )
            -- Who is erased stays so, whatever WorkOS has.
            and not exists (select from dsync.erased as e where e.user_id = x.id)
        )
        select
            s.place as "place!",
            s.shown as "shown!",
            nullif(greatest(u.gone_at, s.directory_gone_at), '-infinity') as void_at,
            nullif(u.version_updated_at, '-infinity') as version_updated_at,
            nullif(u.version_observed_at, '-infinity') as version_observed_at,
            s.columns as "columns!",
            s.before,
            s.after
        from suspects as s
        left join lateral (select * from dsync.users as u where u.id = s.id limit 1) as u on true
        order by s.place
        "#,
        &c.id,
        &c.organization_id as &[Option<String>],
        &c.idp_id as &[Option<String>],
        &c.email as &[Option<String>],
        &c.username as &[Option<String>],
        &c.first_name as &[Option<String>],
        &c.last_name as &[Option<String>],
        &c.name as &[Option<String>],
        &c.job_title as &[Option<String>],
        &c.state as &[Option<String>],
        &c.role as &[Option<String>],
        &c.roles,
        &c.custom_attributes as &[Option<String>],
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

/// The users of a directory that readers see, and when each was last seen.
pub async fn shown(pool: &PgPool, directory: &str) -> sqlx::Result<HashMap<String, OffsetDateTime>> {
    sqlx::query!(
        r#"
        select v.id as "id!", u.seen_at as "seen_at!"
        from directory.users as v join dsync.users as u on u.id = v.id
        where v.directory_id = $1
        "#,
        directory,
    )
    .fetch(pool)
    .map_ok(|row| (row.id, row.seen_at))
    .try_collect()
    .await
}

/// How many users of a directory readers see.
pub async fn count(pool: &PgPool, directory: &str) -> sqlx::Result<usize> {
    let count = sqlx::query_scalar!(
        r#"select count(*) as "count!" from directory.users where directory_id = $1"#,
        directory,
    )
    .fetch_one(pool)
    .await?;
    Ok(usize::try_from(count).unwrap_or_default())
}

/// When this user was last seen. `None` if readers do not see it.
pub async fn seen_at(pool: &PgPool, id: &str) -> sqlx::Result<Option<OffsetDateTime>> {
    sqlx::query_scalar!(
        r#"
        select u.seen_at as "seen_at!"
        from directory.users as v join dsync.users as u on u.id = v.id
        where v.id = $1
        "#,
        id,
    )
    .fetch_optional(pool)
    .await
}

#[cfg(test)]
mod tests {
    use super::array;

    #[test]
    fn an_array_literal_quotes_everything() {
        let roles = [
            "admin".into(),
            r#"a"b\c"#.into(),
            String::new().into(),
            "a,b {}".into(),
        ];
        assert_eq!(array(&roles), r#"{"admin","a\"b\\c","","a,b {}"}"#);
        assert_eq!(array(&[]), "{}");
    }
}
