//! `service::postgres` against a real server: how connections are set up, and what its errors mean.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

use std::time::Duration;

use service::postgres::{Kept, PoolSettings, Trouble, answered_within, described, pool};
use service::settings::Secret;
use sqlx::postgres::PgPool;
use tests::{Postgres, Proxy, eventually};

const SETTINGS: PoolSettings = PoolSettings {
    application_name: "service-test",
    max_connections: 1,
    statement_timeout: Duration::from_millis(300),
};

fn pool_to(server: &Postgres) -> PgPool {
    pool(&Secret::from(server.url()), &SETTINGS).unwrap()
}

async fn fails(pool: &PgPool, sql: &'static str) -> sqlx::Error {
    sqlx::query(sql).execute(pool).await.expect_err(sql)
}

#[tokio::test]
async fn connections_are_set_up_and_errors_understood() {
    let server = Postgres::start().await.unwrap();
    let pool = pool_to(&server);
    settings_reach_the_server(&pool).await;
    errors_mean_what_they_say(&pool).await;
    messages_do_not_repeat_values(&pool).await;
    a_connection_that_became_read_only_is_dropped(&pool).await;
    a_lost_connection_is_transient_and_replaced(&server, &pool).await;
    pool.close().await;
}

async fn settings_reach_the_server(pool: &PgPool) {
    for (name, value) in [
        ("application_name", "service-test"),
        ("idle_in_transaction_session_timeout", "20s"),
        ("statement_timeout", "300ms"),
        ("TimeZone", "UTC"),
    ] {
        let shown: String = sqlx::query_scalar("select current_setting($1)")
            .bind(name)
            .fetch_one(pool)
            .await
            .unwrap();
        assert_eq!(shown, value, "{name}");
    }
}

async fn errors_mean_what_they_say(pool: &PgPool) {
    sqlx::query("create table kept (id text primary key)")
        .execute(pool)
        .await
        .unwrap();
    sqlx::query("insert into kept values ('a')")
        .execute(pool)
        .await
        .unwrap();
    for (sql, code, trouble) in [
        ("insert into kept values ('a')", "23505", Trouble::Data),
        ("insert into kept values (null)", "23502", Trouble::Data),
        ("select 'x'::jsonb", "22P02", Trouble::Data),
        (r#"select '"\u0000"'::jsonb ->> 0"#, "22P05", Trouble::Data),
        (
            "insert into kept select string_agg(md5(n::text), '') from generate_series(1, 1000) n",
            "54000",
            Trouble::Data,
        ),
        (
            "select (select id from (values (1), (2)) v (id))",
            "21000",
            Trouble::Data,
        ),
        ("select * from missing", "42P01", Trouble::Defect),
        ("select pg_sleep(5)", "57014", Trouble::Transient),
    ] {
        let error = fails(pool, sql).await;
        assert_eq!(
            error
                .as_database_error()
                .and_then(sqlx::error::DatabaseError::code)
                .as_deref(),
            Some(code),
            "{sql}"
        );
        assert_eq!(Trouble::of(&error), trouble, "{sql}");
    }
    let nul = sqlx::query("select $1")
        .bind("a\0b")
        .execute(pool)
        .await
        .unwrap_err();
    assert_eq!(Trouble::of(&nul), Trouble::Data);
}

async fn messages_do_not_repeat_values(pool: &PgPool) {
    let error = fails(pool, "select 'ada@example.com'::bigint").await;
    assert!(
        error.to_string().contains("ada@example.com"),
        "then there is nothing to hide"
    );
    assert_eq!(described(&error).to_string(), "SQLSTATE 22P02");
    let error = fails(pool, "insert into kept values ('a')").await;
    assert_eq!(
        described(&error).to_string(),
        "SQLSTATE 23505, table kept, constraint kept_pkey"
    );
    let error = fails(pool, "select * from missing").await;
    assert_eq!(
        described(&error).to_string(),
        "SQLSTATE 42P01: relation \"missing\" does not exist (the schema is missing or too old: run `dsync-projector migrate`)"
    );
    let error = fails(pool, "deallocate anothers").await;
    let told = described(&error).to_string();
    assert!(
        told.starts_with("SQLSTATE 26000: ") && told.contains("pooler"),
        "{told}"
    );
}

async fn a_connection_that_became_read_only_is_dropped(pool: &PgPool) {
    let mut connection = pool.acquire().await.unwrap();
    sqlx::query("set default_transaction_read_only = on")
        .execute(&mut *connection)
        .await
        .unwrap();
    let error = sqlx::query("create table t (id int)")
        .execute(&mut *connection)
        .await
        .unwrap_err();
    assert_eq!(Trouble::of(&error), Trouble::Transient);
    drop(connection);
    sqlx::query("create table t (id int)")
        .execute(pool)
        .await
        .expect("a new connection, which may write");
}

async fn a_lost_connection_is_transient_and_replaced(server: &Postgres, pool: &PgPool) {
    let mut connection = pool.acquire().await.unwrap();
    let pid: i32 = sqlx::query_scalar("select pg_backend_pid()")
        .fetch_one(&mut *connection)
        .await
        .unwrap();
    let other = pool_to(server);
    sqlx::query("select pg_terminate_backend($1)")
        .bind(pid)
        .execute(&other)
        .await
        .unwrap();
    other.close().await;
    let error = sqlx::query("select 1")
        .execute(&mut *connection)
        .await
        .unwrap_err();
    assert_eq!(Trouble::of(&error), Trouble::Transient, "{error}");
    drop(connection);
    sqlx::query("select 1").execute(pool).await.unwrap();
}

#[tokio::test]
async fn a_server_that_is_not_there_is_transient_and_a_url_that_is_none_is_a_setting() {
    let gone = pool(&Secret::from("postgres://nobody@127.0.0.1:1/nothing"), &SETTINGS).unwrap();
    let error = sqlx::query("select 1").execute(&gone).await.unwrap_err();
    assert_eq!(Trouble::of(&error), Trouble::Transient, "{error}");
    let error = pool(&Secret::from("postgres://me:hunter2@host:not-a-port/"), &SETTINGS)
        .unwrap_err()
        .to_string();
    assert_eq!(error, "DATABASE_URL (--database-url) is not a Postgres URL");
}

#[tokio::test]
async fn a_kept_connection_is_looked_at_when_it_was_idle() {
    let server = Postgres::start().await.unwrap();
    let pool = pool_to(&server);
    let mut kept = Kept::from(&pool).await.unwrap();
    sqlx::query("set default_transaction_read_only = on")
        .execute(kept.ready().await.unwrap())
        .await
        .unwrap();
    // A connection that was used a moment ago is not checked, which saves the round trip.
    kept.ready().await.unwrap();
    // The check happens only after this much idle time, which nothing outside shows.
    tokio::time::sleep(Duration::from_millis(2_100)).await;
    let Err(error) = kept.ready().await else {
        panic!("it is good for reading only")
    };
    assert_eq!(Trouble::of(&error), Trouble::Transient);
    drop(kept);
    // The pool does not hand it out again either.
    let mut another = Kept::from(&pool).await.unwrap();
    sqlx::query("create table written ()")
        .execute(another.ready().await.unwrap())
        .await
        .unwrap();
}

#[tokio::test]
async fn what_the_server_is_at_work_on_is_waited_for_and_nothing_else() {
    const LIMIT: Duration = Duration::from_millis(500);
    let mut server = Postgres::start().await.unwrap();
    let settings = PoolSettings {
        max_connections: 2,
        statement_timeout: Duration::ZERO,
        ..SETTINGS
    };
    let pool = pool(&Secret::from(server.url()), &settings).unwrap();
    let mut kept = Kept::from(&pool).await.unwrap();
    let backend = kept.backend();
    let long = sqlx::query("select pg_sleep(2)").execute(kept.ready().await.unwrap());
    backend.answered(LIMIT, long).await.unwrap();
    // The answer was lost on the way: the server has nothing to do.
    let lost = std::future::pending::<Result<(), sqlx::Error>>();
    let given_up = backend.answered(LIMIT, lost).await.unwrap_err();
    assert_eq!(Trouble::of(&given_up), Trouble::Transient);
    // A server that is gone does not answer that question either.
    let connection = kept.ready().await.unwrap();
    server.pause().unwrap();
    let silent = backend.answered(LIMIT, sqlx::query("select 1").execute(connection));
    let given_up = silent.await.unwrap_err();
    assert_eq!(Trouble::of(&given_up), Trouble::Transient);
    server.resume().unwrap();
}

/// The pool has one place, and the connection that is never answered holds it.
#[tokio::test]
async fn a_connection_that_is_never_answered_is_given_up_and_gives_up_its_place() {
    let (mut silent, other) = tokio::try_join!(Postgres::start(), Postgres::start()).unwrap();
    let name = Proxy::to(silent.address()).unwrap();
    let pool = pool(&Secret::from(name.instead_of(&silent.url())), &SETTINGS).unwrap();
    let mut connection = pool.acquire().await.unwrap();
    silent.pause().unwrap();
    let asking = sqlx::query("select 1").execute(&mut *connection);
    let given_up = answered_within(Duration::from_millis(200), asking)
        .await
        .unwrap_err();
    assert_eq!(Trouble::of(&given_up), Trouble::Transient);
    drop(connection);
    name.turn_to(other.address());
    eventually(Duration::from_secs(30), async || {
        Ok(sqlx::query("select 1").execute(&pool).await?)
    })
    .await
    .unwrap();
    silent.resume().unwrap();
}

#[tokio::test]
async fn a_standby_is_not_connected_to_until_it_is_promoted() {
    let primary = Postgres::start().await.unwrap();
    let standby = primary.standby(&primary.address()).await.unwrap();
    let pool = pool_to(&standby);
    let refused = sqlx::query("select 1").execute(&pool).await.unwrap_err();
    assert_eq!(Trouble::of(&refused), Trouble::Transient, "{refused}");
    standby.promote().await.unwrap();
    sqlx::query("create table t ()").execute(&pool).await.unwrap();
}
