//! The recipes for applications in Rust, run as `ops/queries.md` shows them.

use anyhow::ensure;
use sqlx::PgPool;

use super::recipes::populated;
use super::{reader, rows};

// [login
/// Who signed in, if they may: `organization` and `email` are what the single sign-on answered.
async fn who(db: &PgPool, organization: &str, email: &str) -> sqlx::Result<Option<(String, Vec<String>)>> {
    let mut tx = db.begin().await?;
    sqlx::query("select set_config('dsync.organization_id', $1, true)")
        .bind(organization)
        .execute(&mut *tx)
        .await?;
    let found = sqlx::query_as("select user_id, roles from directory.login($1, $2) where active")
        .bind(organization)
        .bind(email)
        .fetch_optional(&mut *tx)
        .await?;
    tx.commit().await?;
    Ok(found)
}
// login]

#[tokio::test]
async fn a_login_in_rust_lets_in_who_is_active_and_nobody_else() -> anyhow::Result<()> {
    let page = include_str!("../../../ops/queries.md");
    let (_, source) = include_str!("in_rust.rs").split_once("// [login\n").unwrap();
    ensure!(
        page.contains(source.split_once("// login]").unwrap().0),
        "ops/queries.md shows a different function"
    );
    let (postgres, pool, _) = populated().await?;
    sqlx::raw_sql("update dsync.users set state = 'suspended' where id in (select id from dsync.users order by id limit 9)")
        .execute(&pool)
        .await?;
    let tenant = reader(&postgres, "dsync_tenant", None).await?;
    let query = "select id, email, organization_id, active from directory.users where email is not null";
    let (mut let_in, mut kept_out) = (0, 0);
    for person in rows(&pool, query).await? {
        let word = |name: &str| person[name].as_str().unwrap().to_owned();
        let found = who(&tenant, &word("organization_id"), &word("email")).await?;
        let active = person["active"] == true;
        ensure!(found.is_some() == active, "{found:?}");
        if let Some((id, _)) = found {
            ensure!(id == word("id"), "{id}");
            let_in += 1;
        } else {
            kept_out += 1;
        }
        ensure!(
            who(&tenant, "org_of_others", &word("email")).await?.is_none(),
            "somebody was let in to another organization"
        );
    }
    ensure!(let_in > 0 && kept_out > 0, "{let_in} {kept_out}");
    Ok(())
}
