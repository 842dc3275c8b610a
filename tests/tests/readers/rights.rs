//! The rights that each program needs: only those on its own schemas, and no superuser.

use anyhow::{Context as _, ensure};
use serde_json::json;
use sqlx::{AssertSqlSafe, PgPool};
use tests::{Nats, Postgres, Program, eventually};

use super::{BOUND, append, log_on, reader, record, rows, text};

/// A server without dsync's schema, with a login that has only these rights.
async fn with_login(rights: &str) -> anyhow::Result<(Postgres, PgPool, String)> {
    let postgres = Postgres::start().await?;
    let pool = postgres.pool().await?;
    let create = format!(
        "create role dsync_app login nosuperuser password 'of-the-programs' {rights};
         do $$ begin execute format('grant create on database %I to dsync_app', current_database()); end $$"
    );
    sqlx::raw_sql(AssertSqlSafe(create)).execute(&pool).await?;
    let url = postgres.url_as("dsync_app", "of-the-programs");
    Ok((postgres, pool, url))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_login_that_may_create_schemas_is_enough() -> anyhow::Result<()> {
    let ((postgres, admin, url), nats) = tokio::try_join!(with_login("nocreaterole"), Nats::start())?;
    let migrate = Program::new("dsync-projector")
        .env("DATABASE_URL", &url)
        .arg("migrate");
    let done = migrate.run().await?;
    ensure!(done.status.success(), "{done:?}");
    for statement in [
        "create role dsync_reader nologin;",
        "create role dsync_tenant nologin;",
    ] {
        ensure!(
            done.stdout.contains(statement),
            "{statement} is not in {}",
            done.stdout
        );
    }

    // It works without these roles: events are applied, upkeep is done.
    let journal = log_on(&nats).await?;
    let projector = Program::new("dsync-projector")
        .env("DATABASE_URL", &url)
        .env("NATS_URL", nats.url())
        .start()
        .await?;
    let body = json!({"id": "e1", "event": "dsync.user.created", "created_at": "2026-01-01T00:00:00Z", "data": {
        "id": "u1", "directory_id": "d1", "organization_id": "org_1", "state": "active", "email": "a@example.com",
        "updated_at": "2026-01-01T00:00:00Z"
    }});
    let source = schema::record::Source::Webhook;
    append(&journal, &[record(body.to_string().as_bytes(), source)]).await?;
    eventually(BOUND, async || {
        ensure!(
            text(&admin, "select count(*) from directory.changes")
                .await?
                .as_deref()
                == Some("1")
        );
        let partitions = "select count(*) from pg_inherits where inhparent = 'dsync.changes'::regclass";
        ensure!(
            text(&admin, partitions).await?.context("none")?.parse::<u32>()? >= 5,
            "upkeep must create partitions for months ahead"
        );
        Ok(())
    })
    .await?;
    let output = projector.output();
    ensure!(!output.contains("permission denied"), "{output}");
    ensure!(
        output.contains("create role dsync_reader"),
        "the program's log does not show what is missing"
    );
    for command in [
        &["roles", "show"][..],
        &["dead-letters"],
        &["erase", "--user", "u9"],
    ] {
        let program = Program::new("dsync-projector")
            .env("DATABASE_URL", &url)
            .env("NATS_URL", nats.url());
        let done = command
            .iter()
            .fold(program, |program, arg| program.arg(*arg))
            .run()
            .await?;
        ensure!(done.status.success(), "{command:?}: {done:?}");
    }

    // An administrator creates the roles as asked, and nothing else is needed.
    sqlx::raw_sql("create role dsync_reader nologin; create role dsync_tenant nologin")
        .execute(&admin)
        .await?;
    let done = migrate.run().await?;
    ensure!(
        done.status.success() && !done.stdout.contains("create role"),
        "{done:?}"
    );
    let tenant = reader(&postgres, "dsync_tenant", Some("org_1")).await?;
    ensure!(rows(&tenant, "select id from directory.users").await?.len() == 1);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_login_that_may_create_roles_needs_no_administrator() -> anyhow::Result<()> {
    let (postgres, _, url) = with_login("createrole").await?;
    let done = Program::new("dsync-projector")
        .env("DATABASE_URL", &url)
        .arg("migrate")
        .arg("--json")
        .run()
        .await?;
    let printed: serde_json::Value = serde_json::from_str(&done.stdout).context("JSON")?;
    ensure!(printed["administrator"] == json!([]), "{printed}");
    let reader = reader(&postgres, "dsync_reader", None).await?;
    ensure!(rows(&reader, "select * from directory.users").await?.is_empty());
    Ok(())
}
