//! What happens over time: long-deleted objects are scrubbed, and months of history come and go. Neither changes what
//! is shown.

use std::time::Duration;

use anyhow::{Context as _, ensure};
use rand::prelude::*;
use schema::record::Source;
use serde_json::{Value, json};
use service::clock::Clock;
use sqlx::PgPool;
use tests::{Nats, Postgres, agrees, eventually};
use time::OffsetDateTime;
use time::macros::datetime;
use tokio_util::sync::CancellationToken;
use workos_sim::{DirectoryOptions, Options, Seed, Sim};

use projector::store::erase::{Outcome, forget};
use projector::store::erased::note_purges;
use projector::store::upkeep::{Scrubbed, drop_partitions, make_partitions, scrub};
use projector::upkeep::Upkeep;

use super::{BOUND, append, events, log_on, record, rows, tell, text, write};

const DAY: Duration = Duration::from_hours(24);

fn user(id: &str, event: &str, kind: &str, at: &str, updated_at: &str) -> Value {
    json!({"id": event, "event": kind, "created_at": at, "data": {
        "id": id, "directory_id": "d1", "organization_id": "org_1", "state": "active", "email": format!("{id}@example.com"),
        "first_name": "Ada", "raw_attributes": {"name": "Ada"}, "roles": ["admin"], "updated_at": updated_at
    }})
}

/// Everything that could change: registers and columns of every user, and all history.
async fn everything(pool: &PgPool) -> anyhow::Result<Vec<Value>> {
    let mut all = rows(pool, "select * from dsync.users").await?;
    all.extend(rows(pool, "select * from dsync.changes").await?);
    Ok(all)
}

#[tokio::test]
async fn what_was_deleted_long_ago_is_scrubbed_and_old_events_do_not_bring_it_back() -> anyhow::Result<()> {
    let (postgres, nats) = tokio::try_join!(Postgres::migrated(), Nats::start())?;
    let pool = postgres.pool().await?;
    let clock = Clock::fixed(datetime!(2026-02-10 00:00 UTC));
    let upkeep = Upkeep {
        pool: pool.clone(),
        journal: log_on(&nats).await?,
        clock: clock.clone(),
        tombstone_retention: 30 * DAY,
        history_retention: Duration::ZERO,
    };
    let told = [
        user(
            "u1",
            "e1",
            "dsync.user.created",
            "2026-01-01T00:00:00Z",
            "2026-01-01T00:00:00Z",
        ),
        user(
            "u1",
            "e2",
            "dsync.user.updated",
            "2026-01-02T00:00:00Z",
            "2026-01-02T00:00:00Z",
        ),
        user(
            "u1",
            "e3",
            "dsync.user.deleted",
            "2026-01-15T00:00:00Z",
            "2026-01-02T00:00:00Z",
        ),
        user(
            "u2",
            "e4",
            "dsync.user.created",
            "2026-01-01T00:00:00Z",
            "2026-01-01T00:00:00Z",
        ),
        user(
            "u3",
            "e5",
            "dsync.user.created",
            "2026-01-01T00:00:00Z",
            "2026-01-01T00:00:00Z",
        ),
        user(
            "u3",
            "e6",
            "dsync.user.deleted",
            "2026-02-01T00:00:00Z",
            "2026-01-01T00:00:00Z",
        ),
    ];
    for body in &told {
        tell(&pool, body.clone()).await?;
    }
    ensure!(upkeep.scrub().await? == Scrubbed::NOTHING, "scrubbed too early");
    clock.set(datetime!(2026-02-15 00:00 UTC));
    let scrubbed = upkeep.scrub().await?;
    ensure!(scrubbed.users == 1, "{scrubbed:?}");
    let row = rows(&pool, "select * from dsync.users where id = 'u1'")
        .await?
        .remove(0);
    for gone in ["email", "email_key", "first_name", "raw_attributes", "state"] {
        ensure!(row[gone].is_null(), "{gone} is still there: {row}");
    }
    ensure!(
        row["roles"] == json!([]) && row["version_event"] == "e2" && row["gone_event"] == "e3",
        "{row}"
    );
    let history = rows(
        &pool,
        "select operation, event_id, before, after from dsync.changes where entity_id = 'u1'",
    )
    .await?;
    ensure!(
        history.len() == 3 && !json!(history).to_string().contains("Ada"),
        "{history:?}"
    );
    ensure!(
        json!(history).to_string().contains("\"active\":true"),
        "history must still show who had access"
    );
    // Users who are live, or were deleted recently, keep their attributes.
    let kept = text(&pool, "select count(*) from dsync.users where email is not null").await?;
    ensure!(kept.as_deref() == Some("2"));

    let before = everything(&pool).await?;
    for body in told.iter().rev().chain(&told) {
        tell(&pool, body.clone()).await?;
    }
    ensure!(
        everything(&pool).await? == before,
        "an old event changed something"
    );
    ensure!(upkeep.scrub().await? == Scrubbed::NOTHING);

    // A user who comes back has all attributes again.
    tell(
        &pool,
        user(
            "u1",
            "e9",
            "dsync.user.created",
            "2026-02-16T00:00:00Z",
            "2026-02-16T00:00:00Z",
        ),
    )
    .await?;
    let back = rows(&pool, "select email from directory.users where id = 'u1'").await?;
    ensure!(back == [json!({"email": "u1@example.com"})], "{back:?}");
    Ok(())
}

/// People and groups with a long history, deleted long ago, and the user whose history takes the server too long.
async fn long_gone(pool: &PgPool) -> anyhow::Result<()> {
    sqlx::raw_sql(
        "set session_replication_role = replica;
        insert into dsync.users (id, directory_id, seen_at, gone_at, email)
            select 'u' || n, 'd1', '2024-01-01', '2024-01-02', 'x' from generate_series(1, 60) as n;
        insert into dsync.groups (id, directory_id, seen_at, gone_at, name)
            select 'g' || n, 'd1', '2024-01-01', '2024-01-02', 'x' from generate_series(1, 60) as n;
        insert into dsync.directories (id, seen_at, gone_at, name) values ('d9', '2024-01-01', '2024-01-02', 'x');
        insert into dsync.changes (change_id, recorded_at, directory_id, entity, entity_id, operation, after)
            select n * 1000 + m, now(), 'd1', 'user', 'u' || n, 'updated', '{\"email\": \"x\"}'
            from generate_series(1, 60) as n, generate_series(1, 300) as m;
        insert into dsync.changes (change_id, recorded_at, directory_id, entity, entity_id, operation, after)
            select 1000000 + n, now(), 'd1', 'group', 'g' || n, 'updated', '{\"name\": \"x\"}'
            from generate_series(1, 60) as n;
        set session_replication_role = origin;
        create table blanked (changes bigint);
        create function counting() returns trigger language plpgsql as $$
        begin
            insert into public.blanked select count(*) from blanked_now;
            return null;
        end
        $$;
        create trigger counting after update on dsync.changes referencing new table as blanked_now
            for each statement execute function counting();
        create function too_slow() returns trigger language plpgsql as $$
        begin
            raise exception 'canceling statement due to statement timeout' using errcode = '57014';
        end
        $$;",
    )
    .execute(pool)
    .await?;
    Ok(())
}

/// One statement that blanks too much would be ended by the server, and tried again for ever.
#[tokio::test]
async fn no_statement_blanks_much_history_and_what_takes_too_long_keeps_nobody_waiting() -> anyhow::Result<()>
{
    let postgres = Postgres::migrated().await?;
    let pool = postgres.pool().await?;
    long_gone(&pool).await?;
    sqlx::raw_sql(
        "create trigger too_slow before update on dsync.users for each row when (old.id = 'u7') execute function too_slow()",
    )
    .execute(&pool)
    .await?;
    let before = datetime!(2026-01-01 00:00 UTC);
    let failed = scrub(&pool, before).await;
    ensure!(failed.is_err(), "{failed:?}");
    let left = async || {
        rows(
            &pool,
            "select id from dsync.users where email is not null union all select id from dsync.groups where name is not null
             union all select id from dsync.directories where name is not null
             union all select distinct entity_id from dsync.changes where after <> '{}'",
        )
        .await
    };
    let slow = [json!({"id": "u7"}), json!({"id": "u7"})];
    ensure!(left().await? == slow, "{:?}", left().await?);
    sqlx::raw_sql("drop trigger too_slow on dsync.users")
        .execute(&pool)
        .await?;
    let scrubbed = scrub(&pool, before).await?;
    ensure!(scrubbed.users == 1 && left().await?.is_empty(), "{scrubbed:?}");
    let most = text(&pool, "select max(changes) from blanked").await?;
    ensure!(
        most.as_deref()
            .is_some_and(|most| most.parse().is_ok_and(|most: u64| (300..=5_000).contains(&most))),
        "one statement blanked {most:?}"
    );
    Ok(())
}

/// Nor does one person's history, however long it is.
#[tokio::test]
async fn a_very_long_history_is_blanked_in_parts() -> anyhow::Result<()> {
    let postgres = Postgres::migrated().await?;
    let pool = postgres.pool().await?;
    long_gone(&pool).await?;
    sqlx::raw_sql(
        "insert into dsync.changes (change_id, recorded_at, directory_id, entity, entity_id, operation, after)
            select 2000000 + n, now(), 'd1', 'user', 'u' || (7 + n % 2), 'updated', '{\"email\": \"x\"}'
            from generate_series(1, 24000) as n",
    )
    .execute(&pool)
    .await?;
    let forgotten = forget(&pool, "u8", false, datetime!(2026-01-01 00:00 UTC)).await?;
    ensure!(
        matches!(&forgotten, Outcome::Forgotten(done) if done.history == 12_300),
        "{forgotten:?}"
    );
    let left = "select count(*) from dsync.changes where entity_id = 'u8' and after <> '{}'";
    ensure!(
        text(&pool, left).await?.as_deref() == Some("0"),
        "of u8, values are left"
    );
    let scrubbed = scrub(&pool, datetime!(2026-01-01 00:00 UTC)).await?;
    ensure!(scrubbed.users == 59, "{scrubbed:?}");
    let left = "select count(*) from dsync.changes where after <> '{}'";
    ensure!(
        text(&pool, left).await?.as_deref() == Some("0"),
        "values are left"
    );
    let most = text(&pool, "select max(changes) from blanked").await?;
    ensure!(most.as_deref() == Some("5000"), "one statement blanked {most:?}");
    Ok(())
}

/// Scrubbing may take hours, the first time.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn late_records_of_erased_people_are_purged_while_others_are_scrubbed() -> anyhow::Result<()> {
    let (postgres, nats) = tokio::try_join!(Postgres::migrated(), Nats::start())?;
    let (pool, journal) = (postgres.pool().await?, log_on(&nats).await?);
    let mut slow = pool.begin().await?;
    sqlx::query("lock table dsync.users").execute(&mut *slow).await?;
    let upkeep = Upkeep {
        pool: postgres.pool().await?,
        journal: journal.clone(),
        clock: Clock::system(),
        tombstone_retention: 30 * DAY,
        history_retention: Duration::ZERO,
    };
    let shutdown = CancellationToken::new();
    let working = tokio::spawn(upkeep.work(shutdown.clone()));
    eventually(BOUND, async || {
        let waits = "select count(*) from pg_locks where relation = 'dsync.users'::regclass and not granted";
        ensure!(
            text(&pool, waits).await?.as_deref() == Some("1"),
            "nothing is scrubbed"
        );
        Ok(())
    })
    .await?;
    let late = user(
        "u1",
        "e1",
        "dsync.user.created",
        "2026-01-01T00:00:00Z",
        "2026-01-01T00:00:00Z",
    );
    let late = append(&journal, &[record(late.to_string().as_bytes(), Source::Webhook)]).await?;
    let created = journal.identity().await?.context("no log")?.created;
    note_purges(&mut *pool.acquire().await?, created, &[late]).await?;
    eventually(Duration::from_secs(20), async || {
        ensure!(journal.entry(late).await?.is_none(), "it is still in the log");
        Ok(())
    })
    .await?;
    shutdown.cancel();
    slow.rollback().await?;
    Ok(working.await?)
}

/// Everything that is gone is scrubbed again and again between changes, while old events are repeated. The views still
/// show what the source says, as if nothing had been scrubbed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn scrubbing_never_changes_what_is_shown() -> anyhow::Result<()> {
    let postgres = Postgres::migrated().await?;
    let pool = postgres.pool().await?;
    let sim = Sim::start(Options::default()).await?;
    for options in [DirectoryOptions::default(), DirectoryOptions::awkward()] {
        let directory = sim.create_directory(options)?;
        let seed = Seed {
            users: 15,
            groups: 4,
            ..Seed::default()
        };
        sim.seed(&directory, &seed)?;
    }
    let mut rng = StdRng::seed_from_u64(5);
    let (mut told, mut scrubbed) = (0, 0);
    for round in 0..15 {
        if round == 10 {
            let gone = sim.truth().directories.keys().next().unwrap().clone();
            sim.change(workos_sim::Change::DeleteDirectory { directory: gone })?;
        }
        sim.burst(30)?;
        let new = events(&sim, told);
        told += new.len();
        let mut batch = new.clone();
        let old = events(&sim, 0);
        batch.extend(old.sample(&mut rng, 40).cloned());
        batch.shuffle(&mut rng);
        write(&pool, &batch).await?;
        agrees(&pool, &sim.truth()).await?;
        let done = scrub(&pool, datetime!(2100-01-01 00:00 UTC)).await?;
        scrubbed += done.users + done.groups + done.directories;
        agrees(&pool, &sim.truth()).await?;
    }
    ensure!(scrubbed > 30, "only {scrubbed} objects were scrubbed");
    let left = "select count(*) from dsync.users as u where (email, first_name, raw_attributes) is distinct from (null, null, null)
        and not exists (select from directory.users as v where v.id = u.id)";
    ensure!(
        text(&pool, left).await?.as_deref() == Some("0"),
        "a deleted user has attributes"
    );
    Ok(())
}

async fn partitions(pool: &PgPool) -> anyhow::Result<Vec<String>> {
    let found = rows(
        pool,
        "select inhrelid::regclass::text as name from pg_inherits where inhparent = 'dsync.changes'::regclass",
    )
    .await?;
    Ok(found
        .iter()
        .map(|row| row["name"].as_str().unwrap().replace("dsync.", ""))
        .collect())
}

#[tokio::test]
async fn months_of_history_come_and_go() -> anyhow::Result<()> {
    let postgres = Postgres::migrated().await?;
    let pool = postgres.pool().await?;
    let now: OffsetDateTime = sqlx::query_scalar("select now()").fetch_one(&pool).await?;
    // Changes in months without a partition.
    sqlx::raw_sql(
        "insert into dsync.changes (change_id, recorded_at, directory_id, entity, entity_id, operation)
         select 0, date_trunc('month', now()) + interval '4 months', 'd', 'user', 'later', 'created'
         union all select -1, now() - interval '3 months', 'd', 'user', 'earlier', 'created'",
    )
    .execute(&pool)
    .await?;
    let where_is =
        |id: &'static str| format!("select tableoid::regclass from dsync.changes where entity_id = '{id}'");
    ensure!(text(&pool, where_is("later")).await?.as_deref() == Some("dsync.changes_unprepared"));
    let before = partitions(&pool).await?.len();
    let made = make_partitions(&pool, now + 140 * DAY).await?;
    ensure!(!made.is_empty() && partitions(&pool).await?.len() == before + made.len());
    ensure!(
        make_partitions(&pool, now + 140 * DAY).await?.is_empty(),
        "partitions were made twice"
    );
    ensure!(
        text(&pool, where_is("later")).await? != Some("dsync.changes_unprepared".to_owned()),
        "the change was not moved to its month's partition"
    );
    ensure!(
        text(&pool, "select bool_and(relrowsecurity) from pg_class where oid in (select inhrelid from pg_inherits where inhparent = 'dsync.changes'::regclass) and relname <> 'changes_unprepared'").await?
            == Some("true".to_owned())
    );
    let has_lz4 = text(
        &pool,
        "select 'lz4' = any(enumvals) from pg_settings where name = 'default_toast_compression'",
    )
    .await?;
    let in_lz4 = text(&pool, "select bool_and(attcompression = 'l') from pg_attribute where attname in ('before', 'after') and (attrelid = 'dsync.changes'::regclass or attrelid in (select inhrelid from pg_inherits where inhparent = 'dsync.changes'::regclass))").await?;
    ensure!(
        in_lz4 == has_lz4,
        "the server supports lz4: {has_lz4:?}; partitions use it: {in_lz4:?}"
    );

    tell(
        &pool,
        user(
            "u1",
            "e1",
            "dsync.user.created",
            "2026-01-01T00:00:00Z",
            "2026-01-01T00:00:00Z",
        ),
    )
    .await?;
    ensure!(
        drop_partitions(&pool, now).await?.is_empty(),
        "the current month was dropped"
    );
    ensure!(
        rows(&pool, "select * from directory.users_at(now())")
            .await?
            .len()
            == 1
    );
    // At that time, whatever today's date, this month is over and the next is not.
    let in_the_next: OffsetDateTime =
        sqlx::query_scalar("select date_trunc('month', now()) + interval '1 month 1 day'")
            .fetch_one(&pool)
            .await?;
    let dropped = drop_partitions(&pool, in_the_next).await?;
    ensure!(dropped.len() == 1, "{dropped:?}");
    ensure!(text(&pool, where_is("u1")).await?.is_none());
    // Moments whose history was dropped have no answer. Those whose history is kept have the right one.
    ensure!(
        rows(&pool, "select * from directory.users_at(now())")
            .await
            .is_err()
    );
    ensure!(
        rows(
            &pool,
            "select * from directory.users_at(now() + interval '50 days')"
        )
        .await?
        .len()
            == 1
    );
    Ok(())
}
