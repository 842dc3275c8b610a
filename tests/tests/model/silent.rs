//! A client that falls silent in a transaction that others wait for.

use anyhow::{Context as _, ensure};
use journal::Identity;
use projector::lane::Lane;
use projector::store::erase::forget;
use projector::store::progress::{self, Position, begin, rewind, skip_gap};
use projector::store::upkeep::make_partitions;
use projector::store::write;
use rand::SeedableRng as _;
use rand::prelude::StdRng;
use schema::timestamp::Timestamp;
use tests::{Nats, Postgres, eventually};
use time::{Duration, OffsetDateTime};
use tokio_util::sync::CancellationToken;

use crate::rebuilding::tools;
use crate::{append, log_on, pictured, records, texts, worker};

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
    let log = Identity {
        created,
        first_seq: 1,
        last_seq: 1,
        messages: 1,
        bytes: 1,
    };
    ensure!(skip_gap(&pool, Lane::All, from, log).await?);
    ensure!(rewind(&pool, Lane::All, from, log).await?);

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

/// The same of a rebuild and of undoing it. A build may be silent for longer, but not once every writer waits for it.
#[tokio::test]
async fn who_replaces_rows_is_ended_by_the_server_too() -> anyhow::Result<()> {
    let (postgres, nats) = tokio::try_join!(Postgres::migrated(), Nats::start())?;
    let (pool, journal) = (postgres.pool().await?, log_on(&nats).await?);
    let last = append(&journal, &records(7), &mut StdRng::seed_from_u64(7)).await?;
    let shutdown = CancellationToken::new();
    let worker = worker(postgres.pool().await?, journal.clone(), &shutdown);
    let lanes = Lane::EVERY.map(|lane| tokio::spawn(worker.clone().work(lane)));
    eventually(std::time::Duration::from_mins(1), async || {
        let position = progress::position(&pool, Lane::All).await?.context("not begun")?;
        ensure!(position.seq == last, "at {} of {last}", position.seq);
        Ok(())
    })
    .await?;
    shutdown.cancel();
    for lane in lanes {
        lane.await?;
    }
    sqlx::raw_sql(
        "create table noted (what text, value text);
        create function note() returns trigger language plpgsql as $$
        begin
            insert into public.noted values (tg_op, current_setting('idle_in_transaction_session_timeout'));
            return null;
        end
        $$;
        create trigger note after insert or update on dsync.rebuilds for each statement execute function note();",
    )
    .execute(&pool)
    .await?;
    let tools = tools(&pool, &journal);
    tools.rebuild(false).await?;
    tools.undo().await?;
    let noted: Vec<(String, String)> = sqlx::query_as("select what, value from noted order by what")
        .fetch_all(&pool)
        .await?;
    let expected =
        [("INSERT", "20s"), ("UPDATE", "20s")].map(|(what, value)| (what.to_owned(), value.to_owned()));
    ensure!(noted == expected, "{noted:?}");
    Ok(())
}
