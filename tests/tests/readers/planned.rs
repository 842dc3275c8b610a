//! What writing history reads, however long ago the session planned its statements.

use anyhow::ensure;
use projector::store::erase::{forget, namesakes};
use schema::record::Source;
use serde_json::json;
use sqlx::{Connection as _, PgConnection};
use tests::Postgres;

use super::bodies::{event, membership, user};
use super::{record, write_within};

/// A session plans the functions that write history only once. If it planned them while there were no memberships, they
/// must not read all memberships for each batch of users later on.
#[tokio::test]
async fn what_users_take_along_is_looked_up_by_key_whenever_that_was_planned() -> anyhow::Result<()> {
    const BEFORE: u32 = 10;
    let postgres = Postgres::migrated().await?;
    let mut session = PgConnection::connect(&postgres.url()).await?;
    for second in 1..=BEFORE {
        read_by(&mut session, second).await?;
    }
    let mut other = PgConnection::connect(&postgres.url()).await?;
    sqlx::raw_sql(
        "set session_replication_role = replica;
        insert into dsync.groups (id, directory_id, seen_at)
            select 'g' || n, 'd1', '2026-01-01' from generate_series(1, 100) as n;
        insert into dsync.memberships (group_id, user_id, directory_id, seen_at)
            select 'g' || g, 'u' || u, 'd1', '2026-01-01'
            from generate_series(1, 100) as g, generate_series(1, 100) as u;",
    )
    .execute(&mut other)
    .await?;
    let (memberships, groups) = read_by(&mut session, BEFORE + 1).await?;
    // The hundred memberships of the one user who was deleted.
    ensure!(
        (100..=200).contains(&memberships) && (100..=200).contains(&groups),
        "{memberships} memberships and {groups} groups were read"
    );
    Ok(())
}

/// Updates many users and deletes one. Returns how many rows of memberships and of groups that read.
async fn read_by(session: &mut PgConnection, second: u32) -> anyhow::Result<(i64, i64)> {
    let records: Vec<_> = (0..1_000)
        .map(|n| {
            let data = user(&format!("u{n}"), second, json!({"job_title": second.to_string()}));
            let kind = if n == second {
                "dsync.user.deleted"
            } else {
                "dsync.user.updated"
            };
            let told = event(&format!("e{second}_{n}"), kind, second, data);
            record(told.to_string().as_bytes(), Source::Webhook)
        })
        .collect();
    let mut transaction = session.begin().await?;
    write_within(&mut transaction, &records).await?;
    let written = sqlx::query_scalar("select count(*) from dsync.users where job_title = $1");
    let written: i64 = written
        .bind(second.to_string())
        .fetch_one(&mut *transaction)
        .await?;
    // All except the deleted one, because a deletion carries no attributes.
    ensure!(written == 999, "{written} users were written");
    let read = sqlx::query_as(
        "select
            (sum(seq_tup_read + coalesce(idx_tup_fetch, 0)) filter (where relname = 'memberships'))::bigint,
            (sum(seq_tup_read + coalesce(idx_tup_fetch, 0)) filter (where relname = 'groups'))::bigint
        from pg_stat_xact_user_tables where schemaname = 'dsync'",
    );
    let read = read.fetch_one(&mut *transaction).await?;
    transaction.commit().await?;
    Ok(read)
}

/// Planning these long statements takes as long as executing them for one removal. The statement that begins a transaction
/// is short, and left to Postgres to decide about.
#[tokio::test]
async fn a_session_plans_the_statements_that_write_once() -> anyhow::Result<()> {
    const BATCHES: i64 = 10;
    let postgres = Postgres::migrated().await?;
    let mut session = PgConnection::connect(&postgres.url()).await?;
    for second in 1..=u32::try_from(BATCHES)? {
        let person = user("u1", second, json!({}));
        let joined = membership(&format!("e{second}"), "dsync.group.user_added", second, person);
        let mut transaction = session.begin().await?;
        write_within(
            &mut transaction,
            &[record(joined.to_string().as_bytes(), Source::Webhook)],
        )
        .await?;
        transaction.commit().await?;
    }
    let planned: Vec<(String, i64, i64)> = sqlx::query_as(
        "select x.written, p.generic_plans, p.custom_plans
        from pg_prepared_statements as p, substring(p.statement from 'insert into (\\w+) as') as x (written)
        where x.written is not null order by x.written",
    )
    .fetch_all(&mut session)
    .await?;
    let expected = ["groups", "memberships", "users"].map(|table| (table.to_owned(), BATCHES, 0));
    ensure!(planned == expected, "{planned:?}");
    Ok(())
}

/// How many rows were read by going through all of `table`, so far.
async fn gone_through(session: &mut PgConnection, table: &str) -> anyhow::Result<i64> {
    sqlx::raw_sql("select pg_stat_force_next_flush(); select pg_stat_clear_snapshot()")
        .execute(&mut *session)
        .await?;
    let read = sqlx::query_scalar(
        "select seq_tup_read from pg_stat_user_tables where schemaname = 'dsync' and relname = $1",
    );
    Ok(read.bind(table).fetch_one(session).await?)
}

/// An erasure keeps all writers waiting, and looks for namesakes among all users.
#[tokio::test]
async fn an_erasure_looks_up_what_it_needs_by_key() -> anyhow::Result<()> {
    let postgres = Postgres::migrated().await?;
    // One session, so that what it read is known when it is asked.
    let options: sqlx::postgres::PgConnectOptions = postgres.url().parse()?;
    let pool = sqlx::postgres::PgPoolOptions::new()
        .max_connections(1)
        .connect_with(options)
        .await?;
    sqlx::raw_sql(
        "set session_replication_role = replica;
        insert into dsync.users (id, directory_id, seen_at, email, idp_id)
            select 'u' || n, 'd1', '2026-01-01', 'U' || n || '@example.com', 'idp' || n
            from generate_series(1, 20000) as n;
        insert into dsync.rebuilds (stream_created, seq, removals_seq, rows_replaced) values (now(), 1, 1, 20000);
        insert into dsync.replaced (rebuild_id, entity, id, user_id)
            select 1, 'user', 'u' || n, 'u' || n from generate_series(1, 20000) as n;
        set session_replication_role = origin;
        analyze dsync.users; analyze dsync.replaced;",
    )
    .execute(&pool)
    .await?;
    let read = async || {
        let mut session = pool.acquire().await?;
        let users = gone_through(&mut session, "users").await?;
        anyhow::Ok((users, gone_through(&mut session, "replaced").await?))
    };
    let before = read().await?;
    let marks = ["u8@EXAMPLE.com".to_owned(), "idp9".to_owned()];
    let found = namesakes(&pool, &marks).await?;
    ensure!(found == ["u8", "u9"], "{found:?}");
    forget(&pool, "u7", true, time::OffsetDateTime::UNIX_EPOCH).await?;
    let after = read().await?;
    ensure!(
        after == before,
        "read by going through all users, and all replaced rows: {before:?}, then {after:?}"
    );
    Ok(())
}
