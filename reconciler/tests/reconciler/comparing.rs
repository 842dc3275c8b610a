//! Comparing finds whatever differs: rows changed by hand, column by column, and JSON that looks alike.

use anyhow::ensure;
use reconciler::difference::Entity;
use reconciler::store::compared::{Comparison, Suspect, compare};
use sqlx::PgPool;
use tests::Postgres;

const DIRECTORY: &str = "
    insert into dsync.directories (id, organization_id, seen_at) values ('directory_1', 'org_1', now())
";

/// People, from `directory_user_0` on, as [`listed`] lists them.
const PEOPLE: &str = r#"
    insert into dsync.users (
        id, directory_id, organization_id, idp_id, email, username, first_name, last_name, name, job_title, state, role,
        roles, custom_attributes, raw_attributes, created_at, updated_at, seen_at
    )
    select
        'directory_user_' || n, 'directory_1', 'org_1', 'idp_1', 'p@example.com', 'p', 'First', 'Last', 'First Last',
        'Title', 'active', 'member', '{member,"a b"}', '{"department": "d"}', '{"a": [1, {"b": null}]}', '2026-01-01Z',
        '2026-02-01Z', '2026-02-01Z'
    from generate_series(0, $1::int - 1) as n
"#;

fn listed(number: usize, raw_attributes: &str) -> String {
    format!(
        r#"{{"id":"directory_user_{number}","directory_id":"directory_1","organization_id":"org_1","idp_id":"idp_1",
            "email":"p@example.com","username":"p","first_name":"First","last_name":"Last","name":"First Last",
            "job_title":"Title","state":"active","role":{{"slug":"member"}},"roles":[{{"slug":"member"}},{{"slug":"a b"}}],
            "created_at":"2026-01-01T00:00:00.000Z","updated_at":"2026-02-01T00:00:00.000Z",
            "custom_attributes":{{"department":"d"}},"raw_attributes":{raw_attributes}}}"#
    )
}

/// JSON values that look alike but differ, or look different but are equal.
const ALIKE: &[&str] = &[
    "null",
    "true",
    "0",
    "-0",
    "0.0",
    "1",
    "1.0",
    "1.00",
    "1e0",
    "10",
    "1e1",
    "0.1",
    "0.10000000000000001",
    "9007199254740993",
    "9007199254740993.0",
    "9007199254740992.0",
    "18446744073709551615",
    "18446744073709551616",
    "18446744073709551617",
    "1e400",
    "\"1\"",
    "\"\"",
    r#""é""#,
    r#""\u00e9""#,
    r#""e\u0301""#,
    r#""/""#,
    r#""\/""#,
    r#""\ud83d\ude00""#,
    r#""😀""#,
    r#""\t\b\f\n\r\"\\\u0001\u007f""#,
    "[]",
    "[null]",
    "[1,2]",
    "[2,1]",
    "[ 1 , 2 ]",
    "{}",
    r#"{"a":null}"#,
    r#"{"a":1,"b":2}"#,
    r#"{"b":2,"a":1}"#,
    r#"{"b":1,"a":1,"b":2}"#,
    r#"{"a":1,"b":2.0}"#,
    r#"{"A":1,"b":2}"#,
    r#"{"aa":1,"b":[{"c":{}}]}"#,
    r#"{"":0}"#,
    r#"{"a":1,"b":2,"c":3}"#,
];

async fn suspects(pool: &PgPool, objects: &[String]) -> anyhow::Result<Vec<Suspect>> {
    let comparison = Comparison {
        entity: Entity::User,
        directory: "directory_1",
        values: false,
    };
    let texts: Vec<&str> = objects.iter().map(String::as_str).collect();
    let compared = compare(pool, comparison, &texts).await?;
    ensure!(compared.unreadable.is_empty());
    Ok(compared.suspects)
}

async fn database(people: usize) -> anyhow::Result<(Postgres, PgPool)> {
    let postgres = Postgres::migrated().await?;
    let pool = postgres.pool().await?;
    sqlx::query(DIRECTORY).execute(&pool).await?;
    sqlx::query(PEOPLE)
        .bind(i32::try_from(people)?)
        .execute(&pool)
        .await?;
    Ok((postgres, pool))
}

#[tokio::test]
async fn a_row_changed_by_hand_is_found_whatever_the_column() -> anyhow::Result<()> {
    let (_postgres, pool) = database(3).await?;
    let raw = r#"{"a":[1,{"b":null}]}"#;
    let objects: Vec<String> = (0..3).map(|number| listed(number, raw)).collect();
    ensure!(suspects(&pool, &objects).await?.is_empty());
    sqlx::query("create table as_it_was as select * from dsync.users where id = 'directory_user_1'")
        .execute(&pool)
        .await?;
    for (column, value) in [
        ("organization_id", "'org_2'"),
        ("organization_id", "null"),
        ("idp_id", "'idp_2'"),
        ("email", "'q@example.com'"),
        ("email", "null"),
        ("username", "'P'"),
        ("first_name", "''"),
        ("last_name", "'Last '"),
        ("name", "null"),
        ("job_title", "'title'"),
        ("state", "'inactive'"),
        ("role", "'admin'"),
        ("roles", "'{}'"),
        ("roles", "'{a b,member}'"),
        ("roles", "'{member,null}'"),
        ("roles", "'{{member},{a b}}'"),
        ("custom_attributes", r#"'{"department": "e"}'"#),
        ("custom_attributes", "null"),
        ("custom_attributes", "'null'"),
        ("raw_attributes", r#"'{"a": [1, {"b": 0}]}'"#),
        ("raw_attributes", r#"'{"a": [1.5, {"b": null}]}'"#),
        ("created_at", "'2026-01-01 00:00:00.000001Z'"),
        ("created_at", "null"),
        ("created_at", "'-infinity'"),
        ("updated_at", "'2026-01-31Z'"),
        ("updated_at", "'infinity'"),
    ] {
        let change = format!("update dsync.users set {column} = {value} where id = 'directory_user_1'");
        sqlx::query(sqlx::AssertSqlSafe(change)).execute(&pool).await?;
        let found = suspects(&pool, &objects).await?;
        let [one] = found.as_slice() else {
            anyhow::bail!("{column} = {value}: {found:?}");
        };
        ensure!(
            one.index == 1 && one.row.shown && one.columns == [column],
            "{value}: {one:?}"
        );
        let restore = format!(
            "update dsync.users as u set {column} = was.{column} from as_it_was as was where u.id = was.id"
        );
        sqlx::query(sqlx::AssertSqlSafe(restore)).execute(&pool).await?;
    }
    ensure!(suspects(&pool, &objects).await?.is_empty());
    // Not shown at all.
    for gone in [
        "delete from dsync.users where id = 'directory_user_2'",
        "update dsync.directories set gone_at = now()",
    ] {
        sqlx::query(gone).execute(&pool).await?;
        let found = suspects(&pool, &objects).await?;
        ensure!(
            found.iter().all(|one| !one.row.shown) && found.last().is_some_and(|last| last.index == 2),
            "{found:?}"
        );
    }
    Ok(())
}

#[tokio::test]
async fn json_differs_exactly_when_postgres_says_so() -> anyhow::Result<()> {
    let deep = |depth: usize| format!("{}{}", "[".repeat(depth), "]".repeat(depth));
    let mut texts: Vec<String> = ALIKE.iter().copied().map(str::to_owned).collect();
    texts.extend([100, 200, 201].map(deep));
    let (_postgres, pool) = database(texts.len()).await?;
    let objects: Vec<String> = texts
        .iter()
        .enumerate()
        .map(|(n, text)| listed(n, text))
        .collect();
    for shown in &texts {
        sqlx::query("update dsync.users set raw_attributes = $1::text::jsonb")
            .bind(shown)
            .execute(&pool)
            .await?;
        let found: Vec<usize> = suspects(&pool, &objects)
            .await?
            .iter()
            .map(|one| one.index)
            .collect();
        // A value listed as null says nothing.
        let differ: Vec<i64> = sqlx::query_scalar(
            "select n - 1 from unnest($2::text[]) with ordinality as t (text, n)
             where nullif(t.text, 'null')::jsonb is distinct from $1::text::jsonb order by n",
        )
        .bind(shown)
        .bind(&texts)
        .fetch_all(&pool)
        .await?;
        let differ: Vec<usize> = differ
            .into_iter()
            .map(usize::try_from)
            .collect::<Result<_, _>>()?;
        ensure!(found == differ, "{shown}: {found:?} instead of {differ:?}");
    }
    Ok(())
}
