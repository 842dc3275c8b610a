//! `service::postgres` against a real server: what connections are set to, and what its errors mean.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use service::postgres::{PoolSettings, Trouble, described, pool};
use service::settings::Secret;
use sqlx::postgres::PgPool;

const SETTINGS: PoolSettings = PoolSettings {
    application_name: "service-test",
    max_connections: 1,
    statement_timeout: Duration::from_millis(300),
};

/// A private server on a socket in a directory of its own; it ends with the test.
struct Server {
    bin: PathBuf,
    dir: tempfile::TempDir,
}

impl Server {
    fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let server = Self {
            bin: newest_installed(),
            dir,
        };
        if is_root() {
            let data = server.dir.path();
            assert!(
                Command::new("chown")
                    .arg("postgres")
                    .arg(data)
                    .status()
                    .unwrap()
                    .success()
            );
        }
        server.run(
            "initdb",
            &[
                "--no-sync",
                "--auth=trust",
                "--username=postgres",
                "--encoding=UTF8",
                "-D",
            ],
            &[],
        );
        let socket = format!(
            "-c listen_addresses='' -c fsync=off -c unix_socket_directories={}",
            server.path().display()
        );
        server.run(
            "pg_ctl",
            &["-w", "-D"],
            &[
                "-o",
                &socket,
                "-l",
                &format!("{}/log", server.path().display()),
                "start",
            ],
        );
        server
    }

    fn path(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    fn run(&self, program: &str, before: &[&str], after: &[&str]) {
        let program = self.bin.join(program);
        let mut command = if is_root() {
            let mut runuser = Command::new("runuser");
            runuser.args(["-u", "postgres", "--"]).arg(program);
            runuser
        } else {
            Command::new(program)
        };
        command
            .args(before)
            .arg(self.path())
            .args(after)
            .current_dir(self.dir.path());
        assert!(
            command
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .status()
                .unwrap()
                .success(),
            "{command:?}"
        );
    }

    fn pool(&self, settings: &PoolSettings) -> PgPool {
        let url = format!(
            "postgres://postgres@localhost/postgres?host={}",
            self.path().display()
        );
        pool(&Secret::from(url), settings).unwrap()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.run("pg_ctl", &["-m", "immediate", "-D"], &["stop"]);
    }
}

fn is_root() -> bool {
    let id = Command::new("id").arg("-u").output().unwrap();
    id.stdout == b"0\n"
}

fn newest_installed() -> PathBuf {
    let mut versions: Vec<(u32, PathBuf)> = std::fs::read_dir(Path::new("/usr/lib/postgresql"))
        .expect("Debian's postgresql package")
        .filter_map(|entry| {
            let path = entry.ok()?.path();
            Some((path.file_name()?.to_str()?.parse().ok()?, path.join("bin")))
        })
        .filter(|(_, bin)| bin.join("initdb").exists())
        .collect();
    versions.sort();
    versions.pop().expect("a Postgres server").1
}

async fn fails(pool: &PgPool, sql: &'static str) -> sqlx::Error {
    sqlx::query(sql).execute(pool).await.expect_err(sql)
}

#[tokio::test]
async fn connections_are_set_up_and_errors_understood() {
    let server = Server::start();
    let pool = server.pool(&SETTINGS);
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
        r#"SQLSTATE 42P01: relation "missing" does not exist"#
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

async fn a_lost_connection_is_transient_and_replaced(server: &Server, pool: &PgPool) {
    let mut connection = pool.acquire().await.unwrap();
    let pid: i32 = sqlx::query_scalar("select pg_backend_pid()")
        .fetch_one(&mut *connection)
        .await
        .unwrap();
    let other = server.pool(&SETTINGS);
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
