//! A client that falls silent in a transaction that others wait for.

use anyhow::ensure;
use projector::lane::Lane;
use projector::store::erase::forget;
use projector::store::progress::{Found, Position, begin, rewind, skip_gap};
use projector::store::upkeep::make_partitions;
use projector::store::write;
use schema::timestamp::Timestamp;
use tests::Postgres;
use time::{Duration, OffsetDateTime};

use crate::{pictured, records, texts};

/// Behind a transaction pooler, a connection's settings are not its own. So each such transaction itself sets the
/// timeout after which the server ends it.
#[tokio::test]
async fn who_keeps_others_waiting_is_ended_by_the_server_whatever_the_connection_says() -> anyhow::Result<()>
{
    let postgres = Postgres::migrated().await?;
    // A pool without the programs' settings.
    let pool = postgres.pool().await?;
    sqlx::raw_sql(
        "create table noted (what text, value text);
        create function note() returns trigger language plpgsql as $$
        begin
            insert into public.noted values (
                tg_op || ' ' || tg_table_name, current_setting('idle_in_transaction_session_timeout')
            );
            return null;
        end
        $$;
        create trigger note after insert or delete on dsync.users for each statement execute function note();
        create trigger note after update on dsync.progress for each statement execute function note();
        create trigger note after delete on dsync.changes_unprepared for each statement execute function note();",
    )
    .execute(&pool)
    .await?;

    let records = records(7);
    let texts = texts(&records);
    let picture = pictured(&texts, &records);
    let mut batch = pool.begin().await?;
    write(&mut batch, &picture).await?;
    batch.commit().await?;
    let person = picture.users.keys().next().map(ToString::to_string).unwrap();
    forget(&pool, &person, true, OffsetDateTime::UNIX_EPOCH).await?;

    let created = Timestamp::from_micros(1_714_557_600_000_000);
    begin(&pool, "DSYNC", created).await?;
    let from = Position {
        stream_created: created,
        seq: 0,
        seq_appended_at: None,
    };
    let found = Found {
        created,
        first_seq: 1,
        last_seq: 1,
    };
    ensure!(skip_gap(&pool, Lane::All, from, found).await?);
    ensure!(rewind(&pool, Lane::All, from, found).await?);

    let now: OffsetDateTime = sqlx::query_scalar("select now()").fetch_one(&pool).await?;
    ensure!(
        !make_partitions(&pool, now + Duration::days(140))
            .await?
            .is_empty()
    );

    let noted: Vec<(String, Vec<String>)> = sqlx::query_as(
        "select what, array_agg(distinct value) from noted group by what order by what collate \"C\"",
    )
    .fetch_all(&pool)
    .await?;
    let expected = [
        "DELETE changes_unprepared",
        "DELETE users",
        "INSERT users",
        "UPDATE progress",
    ];
    ensure!(
        noted.iter().map(|(what, _)| what).eq(expected) && noted.iter().all(|(_, values)| *values == ["20s"]),
        "statements, and their transactions' timeouts: {noted:?}"
    );
    Ok(())
}
