//! A tenant sees only its own data, in every view, function and table, whatever is added later, and in errors, too.

use std::collections::BTreeSet;

use anyhow::{Context as _, ensure};
use projector::roles::apply;
use projector::roles_file::Rules;
use serde_json::{Value, json};
use sqlx::PgPool;
use tests::Postgres;
use workos_sim::{Change, DirectoryOptions, Options, Seed, Sim};

use super::{events, reader, rows, tell, text, write};

struct Stage {
    postgres: Postgres,
    pool: PgPool,
    /// The organizations, each with a directory, people, history and roles.
    organizations: Vec<String>,
    moment: String,
}

impl Stage {
    async fn set() -> anyhow::Result<Self> {
        let postgres = Postgres::migrated().await?;
        let pool = postgres.pool().await?;
        let sim = Sim::start(Options::default()).await?;
        for _ in 0..3 {
            let directory = sim.create_directory(DirectoryOptions::default())?;
            let seed = Seed {
                users: 12,
                groups: 4,
                ..Seed::default()
            };
            sim.seed(&directory, &seed)?;
        }
        let one_by_one = |records: Vec<schema::record::Record>| async {
            for record in records {
                write(&pool, &[record]).await?;
            }
            anyhow::Ok(())
        };
        one_by_one(events(&sim, 0)).await?;
        let moment = text(&pool, "select clock_timestamp()").await?.unwrap();
        let told = sim.events().len();
        sim.burst(120)?;
        let someone = rows(&pool, "select id from directory.users").await?.remove(0);
        let user = someone["id"].as_str().unwrap().to_owned();
        // Fails if the burst deleted that user.
        sim.change(Change::DeleteUser {
            user,
            removals: false,
        })
        .ok();
        one_by_one(events(&sim, told)).await?;
        // A user without an organization.
        tell(&pool, json!({"id": "x1", "event": "dsync.user.created", "created_at": "2026-01-01T00:00:00Z",
            "data": {"id": "user_of_nobody", "directory_id": "directory_of_nobody", "email": "nobody@example.com"}}))
            .await?;
        // Fill the backlogs as if everything were large and had ended, so that history is still being written, with
        // nothing later than `moment`.
        sqlx::raw_sql(
            "insert into dsync.history_backlog (directory_id, seen_after, recorded_at, occurred_at, event_id, source)
             select id, '-infinity', '-infinity', '-infinity', seen_event, 'a' from dsync.directories;
             insert into dsync.history_told_early (directory_id, entity, id)
             select directory_id, 'user', id from dsync.users union select directory_id, 'group', id from dsync.groups;
             insert into dsync.group_history_backlog (
                group_id, directory_id, seen_after, recorded_at, occurred_at, event_id, source, directory_seen_after
             )
             select id, directory_id, '-infinity', '-infinity', '-infinity', seen_event, 'a', '-infinity' from dsync.groups;
             insert into dsync.group_history_told_early (group_id, user_id, directory_id)
             select group_id, user_id, directory_id from dsync.memberships",
        )
        .execute(&pool)
        .await?;
        let organizations = rows(
            &pool,
            "select distinct organization_id as id from directory.users where organization_id is not null",
        )
        .await?;
        let organizations = organizations
            .iter()
            .map(|row| row["id"].as_str().unwrap().to_owned())
            .collect();
        let mut stage = Self {
            postgres,
            pool,
            organizations,
            moment,
        };
        stage.rule().await?;
        Ok(stage)
    }

    /// Applies rules that name objects that only one tenant may see.
    async fn rule(&mut self) -> anyhow::Result<()> {
        let mut file = "[[default]]\nrole = 'guest'\n".to_owned();
        for (number, organization) in self.organizations.iter().enumerate() {
            let own = format!("where organization_id = '{organization}'");
            let group = text(
                &self.pool,
                format!("select id from directory.groups {own} limit 1"),
            )
            .await?
            .context("a group")?;
            let directory = text(&self.pool, format!("select id from directory.directories {own}"))
                .await?
                .context("a directory")?;
            file += &format!("[[group]]\nrole = 'r{number}'\nid = '{group}'\n");
            file += &format!("[[default]]\nrole = 's{number}'\ndirectory = '{directory}'\n");
            file += &format!(
                "[[attribute]]\nrole = 't{number}'\npath = ['department']\nvalue = 'Sales'\norganization = '{organization}'\n"
            );
        }
        apply(&self.pool, &Rules::parse(&file)?, true).await?;
        Ok(())
    }

    /// Words that belong to other tenants: ids, addresses, names. None of them may reach this tenant.
    async fn words_of_others(&self, organization: &str) -> anyhow::Result<BTreeSet<String>> {
        let own = rows(
            &self.pool,
            format!("select * from dsync.users where organization_id = '{organization}'"),
        )
        .await?;
        // There are few names and addresses, and one that this tenant used may be another's now. Such words are left
        // out; ids show whose something is.
        let names = rows(
            &self.pool,
            format!(
                "select i.image ->> 'name' as name, i.image ->> 'email' as email, i.image ->> 'username' as username
                 from dsync.changes, unnest(array[before, after]) as i (image)
                 where organization_id = '{organization}'"
            ),
        )
        .await?;
        let own = json!([own, names]).to_string();
        let others = rows(
            &self.pool,
            format!(
                "select x.word from (
                    select unnest(array[id, email, idp_id, username, directory_id, organization_id]) as word from dsync.users
                        where organization_id is distinct from '{organization}'
                    union select unnest(array[id, name, directory_id, organization_id]) from dsync.groups
                        where organization_id is distinct from '{organization}'
                    union select unnest(array[id, name, external_key, organization_id]) from dsync.directories
                        where organization_id is distinct from '{organization}'
                    union select event_id from dsync.changes where organization_id is distinct from '{organization}'
                ) as x where length(x.word) > 6"
            ),
        )
        .await?;
        let words = others.iter().map(|row| row["word"].as_str().unwrap().to_owned());
        Ok(words.filter(|word| !own.contains(word)).collect())
    }
}

fn is_clean(words: &BTreeSet<String>, text: &str, what: &str) -> anyhow::Result<()> {
    match words.iter().find(|word| text.contains(word.as_str())) {
        Some(word) => anyhow::bail!("{what} shows {word:?}, which is another tenant's"),
        None => Ok(()),
    }
}

async fn names(pool: &PgPool, query: &str) -> anyhow::Result<Vec<String>> {
    let found = rows(pool, query.to_owned()).await?;
    let found = found.iter().filter_map(|row| row["name"].as_str());
    Ok(found.map(str::to_owned).collect())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_view_is_confined() -> anyhow::Result<()> {
    let stage = Stage::set().await?;
    let views = names(
        &stage.pool,
        "select c.oid::regclass::text as name from pg_class as c where relnamespace = 'directory'::regnamespace and relkind in ('v', 'm', 'r', 'p', 'f')",
    )
    .await?;
    ensure!(views.len() >= 8, "{views:?}");
    let everyone = reader(&stage.postgres, "dsync_reader", None).await?;
    let nobody = reader(&stage.postgres, "dsync_tenant", None).await?;
    for view in &views {
        let all = rows(&stage.pool, format!("select * from {view}")).await?;
        ensure!(
            rows(&everyone, format!("select * from {view}")).await? == all,
            "{view}: a reader must see everything"
        );
        ensure!(
            rows(&nobody, format!("select * from {view}")).await?.is_empty(),
            "{view}: a tenant without an organization sees rows"
        );
        // After `set local`, the setting is an empty text, which is no organization, either.
        let mut connection = nobody.acquire().await?;
        sqlx::raw_sql("begin; set local dsync.organization_id = 'x'; commit")
            .execute(&mut *connection)
            .await?;
        let count: i64 = sqlx::query_scalar(sqlx::AssertSqlSafe(format!("select count(*) from {view}")))
            .fetch_one(&mut *connection)
            .await?;
        ensure!(count == 0, "{view}: shown to nobody");
    }
    for organization in &stage.organizations {
        let words = stage.words_of_others(organization).await?;
        ensure!(words.len() > 50, "too few words to prove anything");
        let tenant = reader(&stage.postgres, "dsync_tenant", Some(organization)).await?;
        for view in &views {
            let seen = rows(&tenant, format!("select * from {view}")).await?;
            let own = rows(
                &stage.pool,
                format!("select * from {view} where organization_id = '{organization}'"),
            )
            .await?;
            ensure!(
                seen == own,
                "{view}: the tenant sees {} rows, and has {}",
                seen.len(),
                own.len()
            );
            ensure!(!seen.is_empty(), "{view}: an empty view proves nothing");
            is_clean(&words, &json!(seen).to_string(), view)?;
        }
    }
    Ok(())
}

/// Arguments to try, by type: all tenants' ids and addresses, and moments.
async fn arguments(stage: &Stage, kind: &str) -> anyhow::Result<Vec<String>> {
    match kind {
        "text" => {
            let words = names(
                &stage.pool,
                "select distinct unnest(array[id, email, idp_id, organization_id]) as name from dsync.users",
            );
            let mut words = words.await?;
            words.retain(|word| !word.contains('\''));
            Ok(words.into_iter().map(|word| format!("'{word}'")).collect())
        }
        "timestamp with time zone" => Ok(vec![
            format!("'{}'", stage.moment),
            "now()".to_owned(),
            "'2020-01-01'".to_owned(),
            "'infinity'".to_owned(),
        ]),
        other => anyhow::bail!("a function takes {other}; add arguments to try for that type here"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_function_is_confined() -> anyhow::Result<()> {
    let stage = Stage::set().await?;
    let functions = rows(
        &stage.pool,
        "select p.oid::regproc::text as name, array(select format_type(t, null) from unnest(p.proargtypes) as t) as takes
         from pg_proc as p where pronamespace = 'directory'::regnamespace",
    )
    .await?;
    ensure!(functions.len() >= 5, "{functions:?}");
    let organization = &stage.organizations[1];
    let words = stage.words_of_others(organization).await?;
    let tenant = reader(&stage.postgres, "dsync_tenant", Some(organization)).await?;
    let mut answered = BTreeSet::new();
    for function in &functions {
        let name = function["name"].as_str().unwrap();
        let mut calls = vec![Vec::new()];
        for kind in function["takes"].as_array().unwrap() {
            let arguments = arguments(&stage, kind.as_str().unwrap()).await?;
            // If a function takes two arguments, the first is an organization.
            let organizations = stage.organizations.iter().map(|id| format!("'{id}'")).collect();
            let two = function["takes"].as_array().unwrap().len() == 2;
            let arguments = if two && calls[0].is_empty() {
                organizations
            } else {
                arguments
            };
            calls = calls
                .iter()
                .flat_map(|call| {
                    arguments
                        .iter()
                        .map(move |argument| [&call[..], std::slice::from_ref(argument)].concat())
                })
                .collect();
        }
        for call in calls {
            let query = format!("select * from {name}({})", call.join(", "));
            match rows(&tenant, query.clone()).await {
                Ok(seen) => {
                    let seen = json!(seen).to_string();
                    if seen.contains(organization.as_str()) || seen.contains("\"user_id\":\"") {
                        answered.insert(name.to_owned());
                    }
                    is_clean(&words, &seen, &query)?;
                }
                Err(error) => is_clean(&words, &format!("{error:#}"), &query)?,
            }
        }
    }
    ensure!(
        answered.len() >= 4,
        "only {answered:?} returned the tenant's own data"
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_table_is_confined() -> anyhow::Result<()> {
    let stage = Stage::set().await?;
    let tables = names(
        &stage.pool,
        "select c.oid::regclass::text as name from pg_class as c
         where relnamespace = 'dsync'::regnamespace and relkind in ('r', 'p', 'v', 'm')",
    )
    .await?;
    let open = names(
        &stage.pool,
        "select c.oid::regclass::text as name from pg_class as c
         where relnamespace in ('dsync'::regnamespace, 'directory'::regnamespace)
            and ((relkind in ('r', 'p') and not relrowsecurity)
                or (relkind = 'v' and not coalesce('security_invoker=true' = any(reloptions), false)))",
    )
    .await?;
    ensure!(
        open.is_empty(),
        "tables without row-level security, or views without `security_invoker`: {open:?}"
    );
    let organization = &stage.organizations[0];
    let words = stage.words_of_others(organization).await?;
    let tenant = reader(&stage.postgres, "dsync_tenant", Some(organization)).await?;
    for table in &tables {
        match rows(&tenant, format!("select * from {table}")).await {
            Ok(seen) => is_clean(&words, &json!(seen).to_string(), table)?,
            Err(error) => ensure!(
                format!("{error:#}").contains("permission denied"),
                "{table}: {error:#}"
            ),
        }
        for statement in ["delete from", "truncate"] {
            let changed = sqlx::raw_sql(sqlx::AssertSqlSafe(format!("{statement} {table}")))
                .execute(&tenant)
                .await;
            ensure!(changed.is_err(), "a tenant may {statement} {table}");
        }
    }
    Ok(())
}

/// A directory that is gone, and whose organization is unknown, although its people name theirs. For the tenant, too,
/// the directory must be gone.
#[tokio::test]
async fn what_a_tenant_may_not_see_still_takes_access_away() -> anyhow::Result<()> {
    let postgres = Postgres::migrated().await?;
    let pool = postgres.pool().await?;
    let told = |id: &str, kind: &str, second: u32, data: Value| {
        let at = format!("2026-01-01T00:00:{second:02}Z");
        json!({"id": id, "event": kind, "created_at": at, "data": data})
    };
    let user = json!({"id": "u1", "directory_id": "d1", "organization_id": "org_1", "state": "active",
        "email": "ann@example.com", "updated_at": "2026-01-01T00:00:01Z"});
    tell(&pool, told("e1", "dsync.user.created", 1, user)).await?;
    let tenant = reader(&postgres, "dsync_tenant", Some("org_1")).await?;
    ensure!(rows(&tenant, "select * from directory.users").await?.len() == 1);
    tell(&pool, told("e2", "dsync.deleted", 2, json!({"id": "d1"}))).await?;
    for who in [&pool, &tenant] {
        ensure!(
            rows(who, "select * from directory.users").await?.is_empty(),
            "a gone directory's user is shown"
        );
        let answer = rows(who, "select * from directory.login('org_1', 'ann@example.com')")
            .await?
            .remove(0);
        ensure!(answer["provisioned"] == false, "{answer}");
    }
    // A directory that exists, but without an organization, is not one of the tenant's.
    tell(
        &pool,
        told(
            "e3",
            "dsync.activated",
            3,
            json!({"id": "d1", "updated_at": "2026-01-01T00:00:03Z"}),
        ),
    )
    .await?;
    ensure!(rows(&pool, "select * from directory.directories").await?.len() == 1);
    ensure!(
        rows(&tenant, "select * from directory.directories")
            .await?
            .is_empty()
    );
    Ok(())
}

/// The nodes of a plan that read a table row by row.
fn scans(plan: &Value, found: &mut Vec<String>) {
    if plan["Node Type"] == "Seq Scan" {
        found.push(plan["Relation Name"].as_str().unwrap_or_default().to_owned());
    }
    for child in plan["Plans"].as_array().into_iter().flatten() {
        scans(child, found);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tenants_login_is_an_index_scan() -> anyhow::Result<()> {
    let postgres = Postgres::migrated().await?;
    let pool = postgres.pool().await?;
    sqlx::raw_sql(
        "begin;
        set local dsync.history = off;
        insert into dsync.directories (id, organization_id, state, seen_at)
            select 'd' || d, 'org_' || d, 'active', now() from generate_series(1, 400) as d;
        insert into dsync.users (id, directory_id, organization_id, idp_id, email, state, roles, seen_at)
            select 'u' || u, 'd' || u % 400 + 1, 'org_' || u % 400 + 1, 'idp' || u, 'User' || u || '@Example.com', 'active', '{member}', now()
            from generate_series(1, 20000) as u;
        insert into dsync.groups (id, directory_id, organization_id, name, seen_at)
            select 'g' || g, 'd' || g % 400 + 1, 'org_' || g % 400 + 1, 'G' || g / 400, now() from generate_series(0, 3999) as g;
        insert into dsync.memberships (group_id, user_id, directory_id, organization_id, seen_at)
            select 'g' || u % 400 + 400 * m, 'u' || u, 'd' || u % 400 + 1, 'org_' || u % 400 + 1, now()
            from generate_series(1, 20000) as u, generate_series(0, 3) as m;
        commit;
        analyze",
    )
    .execute(&pool)
    .await?;
    let rules = Rules::parse("[[group]]\nrole = 'admin'\nname = 'G1'\n[[default]]\nrole = 'guest'")?;
    apply(&pool, &rules, true).await?;
    let tenant = reader(&postgres, "dsync_tenant", Some("org_8")).await?;
    for mode in ["force_custom_plan", "force_generic_plan"] {
        let mut connection = tenant.acquire().await?;
        let prepare = format!(
            "set plan_cache_mode = {mode}; prepare ask (text, text) as select * from directory.login($1, $2)"
        );
        sqlx::raw_sql(sqlx::AssertSqlSafe(prepare))
            .execute(&mut *connection)
            .await?;
        let plan: Value =
            sqlx::query_scalar("explain (format json) execute ask ('org_8', 'user7@example.com')")
                .persistent(false)
                .fetch_one(&mut *connection)
                .await?;
        let mut found = Vec::new();
        scans(&plan[0]["Plan"], &mut found);
        found.retain(|table| ["users", "groups", "memberships", "directories"].contains(&table.as_str()));
        ensure!(found.is_empty(), "{mode}: sequential scans of {found:?}");
        let plan = plan.to_string();
        ensure!(
            plan.contains("users_email_key") && plan.contains("users_idp_id"),
            "{mode}: {plan}"
        );
        sqlx::raw_sql("deallocate ask").execute(&mut *connection).await?;
    }
    let answer = rows(
        &tenant,
        "select * from directory.login('org_8', 'USER7@example.com')",
    )
    .await?
    .remove(0);
    ensure!(
        answer["user_id"] == "u7" && answer["role"] == "member",
        "{answer}"
    );
    ensure!(answer["roles"] == json!(["member", "admin"]), "{answer}");
    Ok(())
}

#[tokio::test]
async fn a_megabyte_of_address_is_found_like_any_other() -> anyhow::Result<()> {
    let postgres = Postgres::migrated().await?;
    let pool = postgres.pool().await?;
    // Random enough not to be compressed into an index entry.
    let email: String = (0..200_000_u32)
        .map(|n| format!("{:x}", n.wrapping_mul(2_654_435_761)))
        .collect();
    let data = json!({"id": "u1", "directory_id": "d1", "organization_id": "org_1", "state": "active", "email": email,
        "idp_id": email, "updated_at": "2026-01-01T00:00:01Z"});
    tell(&pool, json!({"id": "e1", "event": "dsync.user.created", "created_at": "2026-01-01T00:00:01Z", "data": data})).await?;
    let tenant = reader(&postgres, "dsync_tenant", Some("org_1")).await?;
    let found: Option<String> = sqlx::query_scalar("select user_id from directory.login('org_1', $1)")
        .bind(email.to_uppercase())
        .fetch_one(&tenant)
        .await?;
    ensure!(found.as_deref() == Some("u1"));
    Ok(())
}
