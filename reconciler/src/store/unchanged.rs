//! Finds the users that readers see just as they were listed, which is nearly all that a sweep reads. They are settled
//! here; only for the others is Postgres asked what it would store and how that differs.
//!
//! Ids, times and roles are sent, and what is shown comes back. That costs the database two thirds of what it costs to
//! receive, unnest and parse everything that was listed. A user counts as just as listed only if that is certain: any
//! doubt costs a second query, but no difference is overlooked.

use std::collections::HashSet;

use schema::directory::{Text, User};
use serde_json::Value;
use sqlx::PgPool;
use time::OffsetDateTime;

use super::users::array;

/// What readers see of a user whose times and roles are as listed; JSON as text.
struct Shown {
    place: i64,
    directory_organization_id: Option<String>,
    organization_id: Option<String>,
    idp_id: Option<String>,
    email: Option<String>,
    username: Option<String>,
    first_name: Option<String>,
    last_name: Option<String>,
    name: Option<String>,
    job_title: Option<String>,
    state: Option<String>,
    role: Option<String>,
    custom_attributes: Option<String>,
    raw_attributes: Option<String>,
}

impl Shown {
    /// Whether this is certainly how `user` would be shown.
    fn is(&self, user: &User<'_>) -> bool {
        let organization = self.directory_organization_id.as_deref();
        let texts: [(&Option<String>, &Option<Text<'_>>); 9] = [
            (&self.idp_id, &user.idp_id),
            (&self.email, &user.email),
            (&self.username, &user.username),
            (&self.first_name, &user.first_name),
            (&self.last_name, &user.last_name),
            (&self.name, &user.name),
            (&self.job_title, &user.job_title),
            (&self.state, &user.state),
            (&self.role, &user.role),
        ];
        self.organization_id.as_deref() == organization.or(user.organization_id.as_deref())
            && texts
                .iter()
                .all(|(shown, listed)| shown.as_deref() == listed.as_deref())
            && is_json(self.custom_attributes.as_deref(), user.custom_attributes)
            && is_json(self.raw_attributes.as_deref(), user.raw_attributes)
    }
}

/// Whether two JSON texts are certainly the same value to Postgres.
fn is_json(shown: Option<&str>, listed: Option<&str>) -> bool {
    let (Some(shown), Some(listed)) = (shown, listed) else {
        return shown == listed;
    };
    // JSON that is nested too deeply to be read here is left to Postgres.
    match (
        serde_json::from_str::<Value>(shown),
        serde_json::from_str::<Value>(listed),
    ) {
        (Ok(shown), Ok(listed)) => shown == listed && is_exact(&listed),
        _ => false,
    }
}

/// Whether no number lost digits when it was read. Integers of 64 bits do not.
fn is_exact(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(_) | Value::String(_) => true,
        Value::Number(number) => !number.is_f64(),
        Value::Array(values) => values.iter().all(is_exact),
        Value::Object(members) => members.values().all(is_exact),
    }
}

/// What is sent: ids, and what Postgres itself compares, because those columns may hold values that fit no type of
/// ours.
#[derive(Default)]
struct Columns<'u> {
    id: Vec<&'u str>,
    created_at: Vec<Option<OffsetDateTime>>,
    updated_at: Vec<Option<OffsetDateTime>>,
    /// Array literals, because `unnest` flattens arrays of arrays.
    roles: Vec<String>,
}

/// The places, among `users`, of those that readers see just as they were listed in `directory`.
pub(super) async fn places(
    pool: &PgPool,
    directory: &str,
    users: &[(&str, &User<'_>)],
) -> sqlx::Result<HashSet<usize>> {
    let mut c = Columns::default();
    for (id, user) in users {
        c.id.push(id);
        c.created_at.push(user.times.created_at.map(Into::into));
        c.updated_at.push(user.times.updated_at.map(Into::into));
        c.roles.push(array(&user.roles));
    }
    let shown = sqlx::query_as!(
        Shown,
        r#"
        select
            x.place as "place!", d.organization_id as "directory_organization_id?",
            v.organization_id, v.idp_id, v.email, v.username, v.first_name, v.last_name, v.name,
            v.job_title, v.state, v.role, v.custom_attributes::text, v.raw_attributes::text
        from (
            select
                generate_subscripts($1::text[], 1)::bigint - 1 as place, unnest($1::text[]) as id,
                unnest($2::timestamptz[]) as created_at, unnest($3::timestamptz[]) as updated_at,
                unnest($4::text[]) as roles
        ) as x
        left join dsync.directories as d on d.id = $5
        cross join lateral (select * from directory.users as v where v.id = x.id limit 1) as v
        where v.created_at is not distinct from x.created_at
            and v.updated_at is not distinct from x.updated_at
            and v.roles is not distinct from x.roles::text[]
        "#,
        &c.id as &[&str],
        &c.created_at as &[Option<OffsetDateTime>],
        &c.updated_at as &[Option<OffsetDateTime>],
        &c.roles,
        directory,
    )
    .fetch_all(pool)
    .await?;
    let place = |shown: Shown| {
        let place = usize::try_from(shown.place).ok()?;
        let (_, user) = users.get(place)?;
        shown.is(user).then_some(place)
    };
    Ok(shown.into_iter().filter_map(place).collect())
}

#[cfg(test)]
mod tests {
    use super::is_json;

    #[test]
    fn json_is_one_only_for_certain() {
        let shown = r#"{"a": [1, {"b": null}], "cc": "é"}"#;
        assert!(is_json(
            Some(shown),
            Some(r#"{"cc":"\u00e9","a":[1,{"b":null}]}"#)
        ));
        assert!(is_json(None, None));
        let deep = "[".repeat(200) + &"]".repeat(200);
        for (shown, listed) in [
            (Some(shown), Some(r#"{"cc":"e","a":[1,{"b":null}]}"#)),
            (Some(shown), None),
            (None, Some(shown)),
            // Equal to Postgres, or perhaps equal: Postgres is asked.
            (Some("1.0"), Some("1.0")),
            (Some("1"), Some("1e0")),
            (Some("18446744073709551616"), Some("18446744073709551616")),
            (Some(&*deep), Some(&*deep)),
        ] {
            assert!(!is_json(shown, listed), "{shown:?} {listed:?}");
        }
    }
}
