//! An erasure while a batch that was read before it waits, and erasures that are interrupted.

use anyhow::{Context as _, ensure};
use projector::erase::{drain, erase};
use projector::lane::Lane;
use projector::store;
use schema::record::{Received, Record, Source};
use schema::timestamp::Timestamp;
use serde_json::json;
use sqlx::{AssertSqlSafe, PgPool};
use tests::{Nats, Postgres, eventually};
use time::OffsetDateTime;
use tokio_util::sync::CancellationToken;

use crate::rebuilding::{BOUND, tools, until_rewound, work};
use crate::{log_on, pictured, record, records, somebody_waits, texts, worker};

/// A batch that had to wait for a person's erasure must leave out what it has about that person.
#[tokio::test]
async fn who_is_erased_while_a_batch_waits_is_left_out_of_it() -> anyhow::Result<()> {
    let postgres = Postgres::migrated().await?;
    let pool = postgres.pool().await?;
    let records = records(7);
    let texts = texts(&records);
    let picture = pictured(&texts, &records);
    let (of_users, of_memberships) = (picture.users.keys(), picture.memberships.keys());
    let mut known = of_users.chain(of_memberships.map(|(_, user)| user));
    let person = known.next().map(ToString::to_string).unwrap();

    let mut erasure = pool.begin().await?;
    sqlx::query("select pg_advisory_xact_lock(hashtext('dsync erasures'), 0)")
        .execute(&mut *erasure)
        .await?;
    let mut batch = pool.begin().await?;
    let writing = store::write(&mut batch, &picture);
    let erasing = async {
        somebody_waits(&pool, "locktype = 'advisory'").await?;
        sqlx::query("insert into dsync.erased (user_id, erased_at) values ($1, now())")
            .bind(&person)
            .execute(&mut *erasure)
            .await?;
        anyhow::Ok(erasure.commit().await?)
    };
    let (effects, erased) = tokio::join!(writing, erasing);
    erased?;
    ensure!(effects?.erased.contains(&person), "the batch missed the erasure");
    batch.commit().await?;

    let rows: i64 = sqlx::query_scalar(
        "select (select count(*) from dsync.users where id = $1) + (select count(*) from dsync.memberships where user_id = $1)",
    )
    .bind(&person)
    .fetch_one(&pool)
    .await?;
    ensure!(rows == 0, "{rows} rows of a person who was erased");
    let others: i64 = sqlx::query_scalar("select count(*) from dsync.users")
        .fetch_one(&pool)
        .await?;
    ensure!(others > 0, "nobody else was written, either");
    Ok(())
}

/// Makes the database refuse to record the erasure of entry `refused`, as if everything were interrupted there.
async fn breaking_off_at(pool: &PgPool, refused: u64) -> anyhow::Result<()> {
    let trigger = format!(
        "create function refuse() returns trigger language plpgsql as $$
         begin
             if new.seq = {refused} then
                 raise exception 'broken off';
             end if;
             return new;
         end
         $$;
         create trigger refuse before insert on dsync.overwritten for each row execute function refuse();"
    );
    sqlx::raw_sql(AssertSqlSafe(trigger)).execute(pool).await?;
    Ok(())
}

async fn going_on(pool: &PgPool) -> anyhow::Result<()> {
    sqlx::raw_sql("drop function refuse cascade")
        .execute(pool)
        .await?;
    Ok(())
}

fn told(id: &str, user: &str, email: &str) -> Record {
    let body = json!({
        "id": id, "event": "dsync.user.updated", "created_at": "2026-01-01T00:00:00.000Z",
        "data": {"id": user, "directory_id": "d1", "email": email},
    });
    record(body.to_string().as_bytes(), Source::Webhook)
}

/// A record that cannot be addressed, and that identifies somebody only by their email address.
fn quarantined(email: &str) -> Record {
    let body = format!("{{\"mail\": \"{email}\"");
    match Record::receive(body.into(), Source::Webhook, None, Timestamp::from_micros(0)) {
        Received::Quarantined(record, _) => record,
        Received::Event(_) | Received::NotOurs => panic!("the record must not be addressable"),
    }
}

/// Only a person's own messages contain an email address that the person once had. Once those are gone, nothing else
/// could reveal it.
#[tokio::test]
async fn by_what_their_own_messages_tell_a_person_is_recognised_by_who_goes_on() -> anyhow::Result<()> {
    let (postgres, nats) = (Postgres::migrated().await?, Nats::start().await?);
    let (pool, journal) = (postgres.pool().await?, log_on(&nats).await?);
    for record in [
        told("e1", "user_z", "once@example.com"),
        quarantined("once@example.com"),
    ] {
        journal.append(&record).await?;
    }
    breaking_off_at(&pool, 2).await?;
    let now = OffsetDateTime::UNIX_EPOCH;
    let broken_off = erase(&pool, &journal, "user_z", true, now).await;
    ensure!(broken_off.is_err(), "{broken_off:?}");
    ensure!(
        journal.entry(1).await?.is_none(),
        "the person's own message is still there, so this test proves nothing"
    );
    ensure!(journal.entry(2).await?.is_some());
    going_on(&pool).await?;
    let receipt = erase(&pool, &journal, "user_z", true, now).await?;
    ensure!(receipt.other_messages == 1, "{receipt:?}");
    ensure!(journal.entry(2).await?.is_none(), "it is still there");
    let marks: Vec<String> = sqlx::query_scalar("select unnest(marks) from dsync.erased")
        .fetch_all(&pool)
        .await?;
    ensure!(marks.is_empty(), "marks outlive the erasure");
    Ok(())
}

/// An entry erased from the log without a record of it would look like one that the broker lost.
#[tokio::test]
async fn nothing_is_erased_from_the_log_before_that_is_noted() -> anyhow::Result<()> {
    let (postgres, nats) = (Postgres::migrated().await?, Nats::start().await?);
    let (pool, journal) = (postgres.pool().await?, log_on(&nats).await?);
    for record in [
        told("e1", "user_z", "z@example.com"),
        told("e2", "user_z", "z@example.com"),
    ] {
        journal.append(&record).await?;
    }
    breaking_off_at(&pool, 1).await?;
    let broken_off = erase(&pool, &journal, "user_z", true, OffsetDateTime::UNIX_EPOCH).await;
    ensure!(broken_off.is_err(), "{broken_off:?}");
    // The same for records that were read after the person was erased.
    let created = journal.identity().await?.context("no log")?.created;
    let mut connection = pool.acquire().await?;
    store::erased::note_purges(&mut connection, created, &[1, 2]).await?;
    ensure!(drain(&pool, &journal).await.is_err());
    ensure!(journal.entry(1).await?.is_some() && journal.entry(2).await?.is_some());
    going_on(&pool).await?;
    ensure!(drain(&pool, &journal).await? == 2);
    let noted: Vec<i64> = sqlx::query_scalar("select seq from dsync.overwritten order by seq")
        .fetch_all(&pool)
        .await?;
    ensure!(noted == [1, 2] && journal.identity().await?.context("no log")?.messages == 0);
    Ok(())
}

/// Before the erasure was undone, a lane left out a record, which the broker does not purge yet. If that was the lane
/// `removals`, the other one applies the record after all, so it stays in the log.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_an_undo_the_log_keeps_what_is_applied_and_loses_what_was_left_out() -> anyhow::Result<()> {
    for lane in Lane::EVERY {
        let (postgres, nats) = (Postgres::migrated().await?, Nats::start().await?);
        let (pool, journal) = (postgres.pool().await?, log_on(&nats).await?);
        journal.append(&told("e1", "user_z", "z@example.com")).await?;
        work(&pool, &nats, Lane::Removals, 0).await?;
        work(&pool, &nats, Lane::All, 1).await?;
        erase(&pool, &journal, "user_z", true, OffsetDateTime::UNIX_EPOCH).await?;
        let body = json!({
            "id": "e2", "event": "dsync.user.deleted", "created_at": "2026-01-02T00:00:00.000Z",
            "data": {"id": "user_z", "directory_id": "d1", "updated_at": "2026-01-02T00:00:00.000Z"},
        });
        journal
            .append(&record(body.to_string().as_bytes(), Source::Webhook))
            .await?;
        breaking_off_at(&pool, 2).await?;
        work(&pool, &nats, lane, 2).await?;
        ensure!(store::erase::undo(&pool, "user_z").await?);
        going_on(&pool).await?;
        work(&pool, &nats, Lane::Removals, 2).await?;
        work(&pool, &nats, Lane::All, 2).await?;
        drain(&pool, &journal).await?;
        let stays = journal.entry(2).await?.is_some();
        ensure!(stays == (lane == Lane::Removals), "{lane:?}: {stays}");
        let found = tools(&pool, &journal).verify().await?.differences;
        ensure!(found.is_empty(), "{lane:?}: {found:?}");
    }
    Ok(())
}

/// A broker that may not delete anything answers as if there were no such message.
#[tokio::test]
async fn what_the_broker_does_not_delete_does_not_count_as_deleted() -> anyhow::Result<()> {
    let (postgres, nats) = (Postgres::migrated().await?, Nats::start().await?);
    async_nats::jetstream::new(async_nats::connect(nats.url()).await?)
        .create_stream(async_nats::jetstream::stream::Config {
            name: "DSYNC".to_owned(),
            subjects: vec!["dsync.>".to_owned()],
            discard: async_nats::jetstream::stream::DiscardPolicy::New,
            deny_delete: true,
            ..Default::default()
        })
        .await?;
    let (pool, journal) = (postgres.pool().await?, log_on(&nats).await?);
    journal.append(&told("e1", "user_z", "z@example.com")).await?;
    let refused = erase(&pool, &journal, "user_z", true, OffsetDateTime::UNIX_EPOCH).await;
    let refused = refused.err().context("it claims to have erased the message")?;
    ensure!(refused.to_string().contains("deny_delete"), "{refused}");
    let created = journal.identity().await?.context("no log")?.created;
    store::erased::note_purges(&mut *pool.acquire().await?, created, &[1]).await?;
    ensure!(drain(&pool, &journal).await.is_err());
    ensure!(store::erased::next_purge(&pool, created).await? == Some(1));
    Ok(())
}

/// A log that was set back gives the sequences of late records that are queued to be purged to other messages.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_queued_takes_no_other_message_from_a_log_that_was_set_back() -> anyhow::Result<()> {
    let (postgres, mut nats) = (Postgres::migrated().await?, Nats::start().await?);
    let (pool, journal) = (postgres.pool().await?, log_on(&nats).await?);
    journal.append(&told("e1", "user_y", "y@example.com")).await?;
    let earlier = nats.copy_of_store()?;
    store::erase::forget(&pool, "user_z", true, OffsetDateTime::UNIX_EPOCH).await?;
    breaking_off_at(&pool, 2).await?;
    journal.append(&told("e2", "user_z", "z@example.com")).await?;
    work(&pool, &nats, Lane::Removals, 0).await?;
    work(&pool, &nats, Lane::All, 2).await?;
    let created = journal.identity().await?.context("no log")?.created;
    ensure!(store::erased::next_purge(&pool, created).await? == Some(2));
    going_on(&pool).await?;

    nats.set_back(&earlier).await?;
    let other = told("e3", "user_x", "x@example.com");
    eventually(BOUND, async || Ok(journal.append(&other).await?)).await?;
    ensure!(drain(&pool, &journal).await? == 0);
    ensure!(
        journal.entry(2).await?.is_some(),
        "another message was purged before the lanes noticed"
    );
    until_rewound(&pool, &nats, 2).await?;
    drain(&pool, &journal).await?;
    ensure!(
        journal.entry(2).await?.is_some(),
        "another message was purged after the lanes noticed"
    );
    let users: Vec<String> = sqlx::query_scalar("select id from directory.users order by id")
        .fetch_all(&pool)
        .await?;
    ensure!(users == ["user_x", "user_y"], "{users:?}");
    Ok(())
}

/// Purging takes several round trips and syncs a message, and a log restored from a copy may have many to purge.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_lane_waits_until_late_records_are_purged() -> anyhow::Result<()> {
    let (postgres, nats) = (Postgres::migrated().await?, Nats::start().await?);
    let (pool, journal) = (postgres.pool().await?, log_on(&nats).await?);
    store::erase::forget(&pool, "user_z", true, OffsetDateTime::UNIX_EPOCH).await?;
    let mut purging = pool.begin().await?;
    sqlx::query("lock table dsync.overwritten")
        .execute(&mut *purging)
        .await?;
    let created = journal.identity().await?.context("no log")?.created;
    store::progress::begin(&pool, "DSYNC", created).await?;
    let shutdown = CancellationToken::new();
    let worker = worker(postgres.pool().await?, journal.clone(), &shutdown);
    let lanes = Lane::EVERY.map(|lane| tokio::spawn(worker.clone().work(lane)));
    for (seq, user) in [(1, "user_z"), (2, "user_y")] {
        let body = json!({
            "id": format!("e{seq}"), "event": "dsync.user.deleted", "created_at": "2026-01-02T00:00:00.000Z",
            "data": {"id": user, "directory_id": "d1"},
        });
        journal
            .append(&record(body.to_string().as_bytes(), Source::Webhook))
            .await?;
        eventually(std::time::Duration::from_secs(15), async || {
            for lane in Lane::EVERY {
                let at = store::progress::position(&pool, lane)
                    .await?
                    .context("not begun")?;
                ensure!(at.seq == seq, "{lane:?} stands at {}", at.seq);
            }
            Ok(())
        })
        .await?;
    }
    ensure!(store::erased::next_purge(&pool, created).await? == Some(1));
    purging.rollback().await?;
    shutdown.cancel();
    for lane in lanes {
        lane.await?;
    }
    Ok(())
}
