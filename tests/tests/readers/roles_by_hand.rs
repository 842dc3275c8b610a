//! Roles, one case at a time: which default counts, why somebody has a role, who signs in, and what the command does.

use std::collections::BTreeMap;

use anyhow::{Context as _, ensure};
use projector::roles::apply;
use projector::roles_file::{GroupRule, Rules};
use serde_json::{Value, json};
use sqlx::PgPool;
use tests::{Postgres, Program};

use super::bodies::{event, membership, user};
use super::roles::shown;
use super::{rows, tell, text};

fn person(second: u32, more: &Value) -> Value {
    let mut person = user(
        "u1",
        second,
        json!({
            "email": "Ann@Example.com", "idp_id": "idp-1", "custom_attributes": {"department": "Eng"},
            "role": {"slug": "member"}
        }),
    );
    person
        .as_object_mut()
        .unwrap()
        .extend(more.as_object().unwrap().clone());
    person
}

fn joined(id: &str, second: u32) -> Value {
    membership(id, "dsync.group.user_added", second, person(1, &json!({})))
}

/// Also if two defaults give the same role. When the less specific one had the greater priority, nobody used to get the
/// role.
#[tokio::test]
async fn the_nearest_default_counts_whatever_its_priority() -> anyhow::Result<()> {
    let postgres = Postgres::migrated().await?;
    let pool = postgres.pool().await?;
    let data = person(1, &json!({"role": null}));
    tell(&pool, event("e1", "dsync.user.created", 1, data)).await?;
    let rules = Rules::parse(
        "[[default]]\nrole = 'guest'\npriority = 9\n[[default]]\nrole = 'guest'\norganization = 'org_1'
         [[default]]\nrole = 'visitor'\npriority = 10\norganization = 'org_2'",
    )?;
    apply(&pool, &rules, true).await?;
    let found = rows(&pool, "select role, source, priority from directory.user_roles").await?;
    ensure!(
        found == [json!({"role": "guest", "source": "default", "priority": 0})],
        "{found:?}"
    );
    Ok(())
}

const FILE: &str = "
    [priorities]
    admin = 10
    [[group]]
    role = 'admin'
    name = 'Staff'
    [[group]]
    role = 'auditor'
    name = 'Nobody knows'
    [[attribute]]
    role = 'engineer'
    path = ['department']
    value = 'Eng'
    [[default]]
    role = 'guest'
";

async fn why(pool: &PgPool) -> anyhow::Result<BTreeMap<String, String>> {
    let found = rows(
        pool,
        "select role, concat_ws(' ', source, group_name, because, event_id) as why from directory.explain('u1')",
    )
    .await?;
    Ok(found
        .iter()
        .map(|row| {
            (
                row["role"].as_str().unwrap().to_owned(),
                row["why"].as_str().unwrap().to_owned(),
            )
        })
        .collect())
}

#[tokio::test]
async fn a_role_is_explained_and_a_login_answered() -> anyhow::Result<()> {
    let postgres = Postgres::migrated().await?;
    let pool = postgres.pool().await?;
    let rules = Rules::parse(FILE)?;
    apply(&pool, &rules, true).await?;
    tell(&pool, event("e1", "dsync.user.created", 1, person(1, &json!({})))).await?;
    tell(&pool, joined("e2", 2)).await?;
    let all = why(&pool).await?;
    ensure!(
        all["admin"] == "group Staff the user joined the group e2",
        "{all:?}"
    );
    ensure!(
        all["engineer"] == "attribute the user became active e1"
            || all["engineer"] == "attribute the attribute took the value e1",
        "{all:?}"
    );
    ensure!(all["member"].ends_with(" e1") && all.len() == 3, "{all:?}");
    tell(
        &pool,
        event(
            "e3",
            "dsync.user.updated",
            3,
            person(3, &json!({"state": "suspended"})),
        ),
    )
    .await?;
    ensure!(why(&pool).await?.is_empty());
    tell(&pool, event("e4", "dsync.user.updated", 4, person(4, &json!({})))).await?;
    ensure!(why(&pool).await?["admin"] == "group Staff the user became active e4");
    let mut more = rules.clone();
    more.groups.push(GroupRule {
        role: "late".to_owned(),
        ..rules.groups[0].clone()
    });
    apply(&pool, &more, true).await?;
    let all = why(&pool).await?;
    ensure!(
        all["late"] == "group Staff the rule was added" && all["admin"].ends_with("e4"),
        "{all:?}"
    );

    let asked =
        |organization: &str, who: &str| format!("select * from directory.login('{organization}', '{who}')");
    for who in ["ann@example.com", "ANN@EXAMPLE.COM", "idp-1"] {
        let answer = rows(&pool, asked("org_1", who)).await?.remove(0);
        let expected = json!({
            "provisioned": true, "active": true, "user_id": "u1", "directory_id": "d1", "directory_state": null,
            "role": "admin", "roles": ["admin", "member", "late", "engineer"], "group_ids": ["g1"],
            "group_names": ["Staff"], "matches": 1
        });
        ensure!(answer == expected, "{answer}");
    }
    let nobody = rows(&pool, asked("org_2", "ann@example.com")).await?.remove(0);
    ensure!(
        nobody["provisioned"] == false && nobody["active"] == false && nobody["roles"] == json!([]),
        "{nobody}"
    );
    tell(
        &pool,
        event(
            "e5",
            "dsync.user.updated",
            5,
            person(5, &json!({"state": "inactive"})),
        ),
    )
    .await?;
    let out = rows(&pool, asked("org_1", "idp-1")).await?.remove(0);
    ensure!(
        out["provisioned"] == true && out["active"] == false && out["roles"] == json!([]),
        "{out}"
    );
    // A returning person, with another id and the same address.
    tell(
        &pool,
        event("e6", "dsync.user.created", 6, person(6, &json!({"id": "u0"}))),
    )
    .await?;
    let back = rows(&pool, asked("org_1", "ann@example.com")).await?.remove(0);
    ensure!(
        back["user_id"] == "u0" && back["active"] == true && back["matches"] == 2,
        "{back}"
    );
    ensure!(back["roles"] == json!(["member", "engineer"]), "{back}");
    Ok(())
}

/// One person's id at the identity provider is another person's email address. Whoever signs in with the address is
/// never taken for the person with the id.
#[tokio::test]
async fn whose_address_it_is_signs_in_whatever_ids_others_have() -> anyhow::Result<()> {
    let postgres = Postgres::migrated().await?;
    let pool = postgres.pool().await?;
    let jane = json!({"id": "jane", "email": "JSmith@example.com", "idp_id": "100", "created_at": "2020-01-01T00:00:00Z"});
    let john = json!({"id": "john", "email": "john@example.com", "idp_id": "jsmith@example.com"});
    let nobody = json!({"id": "nobody", "email": "", "idp_id": ""});
    for (event_id, who) in [("e1", &jane), ("e2", &john), ("e3", &nobody)] {
        tell(&pool, event(event_id, "dsync.user.created", 1, person(1, who))).await?;
    }
    let found = async |who: &str| {
        let sql = format!("select user_id, active, matches from directory.login('org_1', '{who}')");
        anyhow::Ok(rows(&pool, sql).await?.remove(0))
    };
    let jane_signs_in = found("jsmith@example.com").await?;
    ensure!(
        jane_signs_in == json!({"user_id": "jane", "active": true, "matches": 1}),
        "{jane_signs_in}"
    );
    ensure!(found("100").await?["user_id"] == "jane");
    ensure!(found("john@example.com").await?["user_id"] == "john");
    // An empty address matches nobody, even though somebody's address is empty.
    ensure!(found("").await? == json!({"user_id": null, "active": false, "matches": 0}));
    // Once Jane is deactivated, she is not let in as John.
    let mut left = jane.clone();
    left["state"] = json!("inactive");
    tell(&pool, event("e4", "dsync.user.updated", 4, person(4, &left))).await?;
    let jane_left = found("jsmith@example.com").await?;
    ensure!(
        jane_left == json!({"user_id": "jane", "active": false, "matches": 1}),
        "{jane_left}"
    );
    // It is nobody's address any more, so it is an id like any other.
    tell(&pool, event("e5", "dsync.user.deleted", 5, person(5, &jane))).await?;
    ensure!(found("jsmith@example.com").await?["user_id"] == "john");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_command_shows_before_it_applies() -> anyhow::Result<()> {
    let postgres = Postgres::migrated().await?;
    let pool = postgres.pool().await?;
    tell(
        &pool,
        event("e1", "dsync.user.created", 1, person(1, &json!({"role": null}))),
    )
    .await?;
    let dir = tempfile::tempdir()?;
    let file = |name: &str, content: &str| -> anyhow::Result<String> {
        let path = dir.path().join(name);
        std::fs::write(&path, content)?;
        Ok(path.display().to_string())
    };
    let piped = async |args: &[&str], input: &str| {
        let program = args.iter().fold(
            Program::new("dsync-projector")
                .env("DATABASE_URL", postgres.url())
                .arg("roles"),
            |program, arg| program.arg(*arg),
        );
        program.run_with_input(input.as_bytes().to_vec()).await
    };
    let run = async |args: &[&str]| piped(args, "").await;
    let path = file("roles.toml", FILE)?;
    let shown = run(&["apply", &path]).await?;
    ensure!(shown.status.code() == Some(1), "{shown:?}");
    for line in [
        "+ engineer",
        "u1",
        "1 roles gained, 0 lost",
        "not applied",
        "\"Nobody knows\"",
    ] {
        ensure!(shown.stdout.contains(line), "{line} is not in {}", shown.stdout);
    }
    ensure!(shown_roles(&pool).await?.is_empty(), "applied without --yes");
    let same = piped(&["apply", "-"], FILE).await?;
    ensure!(
        same.status.code() == Some(1) && same.stdout == shown.stdout,
        "{same:?}"
    );
    let applied = run(&["apply", &path, "--yes"]).await?;
    ensure!(
        applied.status.success() && applied.stdout.contains("applied as version 1"),
        "{applied:?}"
    );
    ensure!(shown_roles(&pool).await? == ["engineer"]);
    let again = run(&["apply", &path, "--yes"]).await?;
    ensure!(
        again.status.success() && again.stdout.contains("already"),
        "{again:?}"
    );
    let printed = run(&["show"]).await?;
    let copy = file("copy.toml", &printed.stdout)?;
    let same = run(&["apply", &copy, "--yes", "--json"]).await?;
    let same: Value = serde_json::from_str(&same.stdout).context("JSON")?;
    ensure!(same["changed"] == false && same["version"] == 1, "{same}");
    let empty = piped(&["apply", "-", "--yes"], "").await?;
    ensure!(
        empty.status.code() == Some(1) && empty.stderr.contains("nothing came on standard input"),
        "{empty:?}"
    );
    let wrong = piped(&["apply", "-"], "x = ").await?;
    ensure!(
        wrong.status.code() == Some(1) && wrong.stderr.matches("TOML parse error").count() == 1,
        "{wrong:?}"
    );
    let wrong = run(&["apply", &file("wrong.toml", "[[group]]\nrole = 'a'")?]).await?;
    ensure!(
        wrong.status.code() == Some(1) && wrong.stderr.contains("group rule 1"),
        "{wrong:?}"
    );
    ensure!(
        text(&pool, "select count(*) from dsync.role_versions")
            .await?
            .as_deref()
            == Some("2")
    );
    Ok(())
}

async fn shown_roles(pool: &PgPool) -> anyhow::Result<Vec<String>> {
    Ok(shown(pool).await?.into_keys().map(|(_, role)| role).collect())
}
