//! Role rules in versions: reads the newest, adds a newer one, and compares who has which role under each.

use serde::Serialize;
use serde_json::Value;
use sqlx::PgConnection;

use crate::roles_file::{AttributeRule, DefaultRule, GroupRule, Rules, Scalar};

/// Keeps others from changing rules until the end of the transaction.
pub async fn lock(connection: &mut PgConnection) -> sqlx::Result<()> {
    sqlx::query!(r#"select pg_advisory_xact_lock(hashtext('dsync roles'), 0) as "locked: ()""#)
        .fetch_one(&mut *connection)
        .await?;
    // Comparing everybody's roles may take a long time.
    sqlx::query!("set local statement_timeout = 0")
        .execute(connection)
        .await?;
    Ok(())
}

/// The rules in force, and their version.
pub async fn current(connection: &mut PgConnection) -> sqlx::Result<(i64, Rules)> {
    let version =
        sqlx::query_scalar!(r#"select coalesce(max(version), 0) as "version!" from dsync.role_versions"#)
            .fetch_one(&mut *connection)
            .await?;
    let mut rules = Rules::default();
    let priorities = sqlx::query!(
        "select role, priority from dsync.role_priorities where version = $1",
        version
    )
    .fetch_all(&mut *connection)
    .await?;
    rules.priorities = priorities
        .into_iter()
        .map(|row| (row.role, row.priority))
        .collect();
    let rows = sqlx::query!(
        r#"
        select kind, role, priority, organization_id, directory_id, group_by, group_value, path, value
        from dsync.role_rules where version = $1 order by rule
        "#,
        version,
    )
    .fetch_all(connection)
    .await?;
    for row in rows {
        let (role, priority) = (row.role, row.priority);
        let (organization, directory) = (row.organization_id, row.directory_id);
        match row.kind.as_str() {
            "group" => {
                let named = |by: &str| {
                    row.group_value
                        .clone()
                        .filter(|_| row.group_by.as_deref() == Some(by))
                };
                rules.groups.push(GroupRule {
                    role,
                    id: named("id"),
                    name: named("name"),
                    idp_id: named("idp_id"),
                    priority,
                    organization,
                    directory,
                });
            }
            "attribute" => rules.attributes.push(AttributeRule {
                role,
                path: row.path.unwrap_or_default(),
                value: scalar(row.value.as_ref()),
                priority,
                organization,
                directory,
            }),
            _ => rules.defaults.push(DefaultRule {
                role,
                priority,
                organization,
                directory,
            }),
        }
    }
    Ok((version, rules))
}

fn scalar(value: Option<&Value>) -> Scalar {
    match value {
        Some(Value::Bool(value)) => Scalar::Bool(*value),
        Some(Value::Number(value)) => Scalar::Integer(value.as_i64().unwrap_or_default()),
        Some(Value::String(value)) => Scalar::Text(value.clone()),
        // The table contains only what `insert` wrote.
        _ => Scalar::Text(String::new()),
    }
}

/// Rules as columns.
#[derive(Default)]
struct Columns<'r> {
    kind: Vec<&'r str>,
    role: Vec<&'r str>,
    priority: Vec<Option<i32>>,
    organization: Vec<Option<&'r str>>,
    directory: Vec<Option<&'r str>>,
    group_by: Vec<Option<&'r str>>,
    group_value: Vec<Option<&'r str>>,
    path: Vec<Option<Value>>,
    value: Vec<Option<Value>>,
}

impl<'r> Columns<'r> {
    fn of(rules: &'r Rules) -> Self {
        let mut c = Self::default();
        for rule in &rules.groups {
            c.push(
                "group",
                &rule.role,
                rule.priority,
                rule.organization.as_ref(),
                rule.directory.as_ref(),
            );
            let named = [("id", &rule.id), ("name", &rule.name), ("idp_id", &rule.idp_id)];
            let named = named
                .into_iter()
                .find_map(|(by, value)| Some((by, value.as_deref()?)));
            c.group_by.push(named.map(|(by, _)| by));
            c.group_value.push(named.map(|(_, value)| value));
            c.path.push(None);
            c.value.push(None);
        }
        for rule in &rules.attributes {
            c.push(
                "attribute",
                &rule.role,
                rule.priority,
                rule.organization.as_ref(),
                rule.directory.as_ref(),
            );
            c.group_by.push(None);
            c.group_value.push(None);
            c.path.push(Some(rule.path.clone().into()));
            c.value.push(Some(match &rule.value {
                Scalar::Bool(value) => (*value).into(),
                Scalar::Integer(value) => (*value).into(),
                Scalar::Text(value) => value.as_str().into(),
            }));
        }
        for rule in &rules.defaults {
            c.push(
                "default",
                &rule.role,
                rule.priority,
                rule.organization.as_ref(),
                rule.directory.as_ref(),
            );
            c.group_by.push(None);
            c.group_value.push(None);
            c.path.push(None);
            c.value.push(None);
        }
        c
    }

    fn push(
        &mut self,
        kind: &'r str,
        role: &'r str,
        priority: Option<i32>,
        organization: Option<&'r String>,
        directory: Option<&'r String>,
    ) {
        self.kind.push(kind);
        self.role.push(role);
        self.priority.push(priority);
        self.organization.push(organization.map(String::as_str));
        self.directory.push(directory.map(String::as_str));
    }
}

/// Writes `rules` as the version after `before`. A rule that was already in `before` keeps its `since`.
pub async fn insert(connection: &mut PgConnection, before: i64, rules: &Rules) -> sqlx::Result<i64> {
    let version = before + 1;
    sqlx::query!("insert into dsync.role_versions (version) values ($1)", version)
        .execute(&mut *connection)
        .await?;
    let (named, priorities): (Vec<&str>, Vec<i32>) = rules
        .priorities
        .iter()
        .map(|(role, priority)| (role.as_str(), *priority))
        .unzip();
    sqlx::query!(
        r#"
        insert into dsync.role_priorities (version, role, priority)
        select $1, x.role, x.priority from unnest($2::text[], $3::integer[]) as x (role, priority)
        "#,
        version,
        &named as &[&str],
        &priorities,
    )
    .execute(&mut *connection)
    .await?;
    let c = Columns::of(rules);
    sqlx::query!(
        r#"
        insert into dsync.role_rules (
            version, rule, kind, role, priority, organization_id, directory_id, group_by, group_value, path,
            value, since
        )
        select
            $1, x.rule, x.kind, x.role, x.priority, x.organization_id, x.directory_id, x.group_by,
            x.group_value, p.path, x.value, coalesce(o.since, now())
        from unnest(
            $3::text[], $4::text[], $5::integer[], $6::text[], $7::text[], $8::text[], $9::text[],
            $10::jsonb[], $11::jsonb[]
        ) with ordinality as x (
            kind, role, priority, organization_id, directory_id, group_by, group_value, path, value, rule
        )
        cross join lateral (
            select array_agg(k.key order by k.place) as path
            from jsonb_array_elements_text(x.path) with ordinality as k (key, place)
        ) as p
        cross join lateral (
            select min(o.since) as since from dsync.role_rules as o
            where o.version = $2 and o.kind = x.kind and o.role = x.role
                and (o.organization_id, o.directory_id, o.group_by, o.group_value, o.path, o.value)
                is not distinct from
                (x.organization_id, x.directory_id, x.group_by, x.group_value, p.path, x.value)
        ) as o
        "#,
        version,
        before,
        &c.kind as &[&str],
        &c.role as &[&str],
        &c.priority as &[Option<i32>],
        &c.organization as &[Option<&str>],
        &c.directory as &[Option<&str>],
        &c.group_by as &[Option<&str>],
        &c.group_value as &[Option<&str>],
        &c.path as &[Option<Value>],
        &c.value as &[Option<Value>],
    )
    .execute(connection)
    .await?;
    Ok(version)
}

/// A user who has a role under one version of the rules but not under another.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Difference {
    /// The user.
    pub user_id: String,
    /// The user's organization.
    pub organization_id: Option<String>,
    /// The role.
    pub role: String,
    /// Whether the user gains the role; otherwise the user loses it.
    pub gained: bool,
}

/// Who gains and who loses which role when version `after` replaces `before`.
pub async fn differences(
    connection: &mut PgConnection,
    before: i64,
    after: i64,
) -> sqlx::Result<Vec<Difference>> {
    sqlx::query_as!(
        Difference,
        r#"
        select
            coalesce(a.user_id, b.user_id) as "user_id!",
            coalesce(a.organization_id, b.organization_id) as organization_id,
            coalesce(a.role, b.role) as "role!",
            b.user_id is null as "gained!"
        from (select * from dsync.granted_roles where version = $1) as b
        full join (select * from dsync.granted_roles where version = $2) as a
            on a.user_id = b.user_id and a.role = b.role
        where a.user_id is null or b.user_id is null
        order by 3, 4, 2, 1
        "#,
        before,
        after,
    )
    .fetch_all(connection)
    .await
}

/// The groups in rules of `version` that do not exist (yet): by what each is named (`id`, `name`, `idp_id`), and its value.
pub async fn unknown_groups(
    connection: &mut PgConnection,
    version: i64,
) -> sqlx::Result<Vec<(String, String)>> {
    let rows = sqlx::query!(
        r#"
        select r.group_by as "group_by!", r.group_value as "group_value!"
        from dsync.role_rules as r
        where r.version = $1 and r.kind = 'group' and not exists (
            select from directory.groups as g
            where r.group_value = case r.group_by when 'id' then g.id when 'name' then g.name else g.idp_id end
                and (r.directory_id is null or r.directory_id = g.directory_id)
                and (r.organization_id is null or r.organization_id = g.organization_id)
        )
        order by r.rule
        "#,
        version,
    )
    .fetch_all(connection)
    .await?;
    Ok(rows
        .into_iter()
        .map(|row| (row.group_by, row.group_value))
        .collect())
}
