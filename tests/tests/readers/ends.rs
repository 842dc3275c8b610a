//! The end of a directory takes effect at once. The history of its contents is written afterwards, and is the same as
//! if it had been written at once.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context as _, ensure};
use projector::store::backlog::{Entity, Key, Place};
use projector::store::erase;
use projector::store::upkeep::{Scrubbed, scrub};
use projector::{backlog, store};
use rand::prelude::*;
use schema::record::{Record, Source};
use serde_json::{Value, json};
use sqlx::{AssertSqlSafe, PgPool};
use tests::{Nats, Postgres, Program, eventually};
use time::macros::datetime;

use super::adding_up::{adds_up, written_and_polled};
use super::{
    BOUND, append, clear, histories, log_on, reader, record, records_of_day, rows, shuffled, text, write,
};

pub(super) const AT: &str = "2026-01-01T00:00:00Z";
pub(super) const ENDED: &str = "2026-01-02T00:00:00Z";

pub(super) fn told(event: &str, kind: &str, at: &str, data: Value) -> Record {
    let body = json!({"id": event, "event": kind, "created_at": at, "data": data}).to_string();
    record(body.as_bytes(), Source::Webhook)
}

pub(super) fn user(id: &str, directory: &str) -> Value {
    json!({
        "id": id, "directory_id": directory, "organization_id": format!("org_{directory}"), "state": "active",
        "email": format!("{id}@example.com"), "updated_at": AT
    })
}

pub(super) fn group(directory: &str) -> Value {
    json!({
        "id": format!("g_{directory}"), "directory_id": directory, "organization_id": format!("org_{directory}"),
        "name": "Staff", "updated_at": AT
    })
}

/// A directory of three people, two of whom are in a group.
pub(super) fn directory(id: &str) -> Vec<Record> {
    let own = json!({"id": id, "organization_id": format!("org_{id}"), "state": "linked", "updated_at": AT});
    let mut all = vec![told(&format!("{id}_1"), "dsync.activated", AT, own)];
    for number in 1..=3 {
        let event = format!("{id}_user_{number}");
        all.push(told(
            &event,
            "dsync.user.created",
            AT,
            user(&format!("{id}_u{number}"), id),
        ));
    }
    for number in 1..=2 {
        let data =
            json!({"directory_id": id, "user": user(&format!("{id}_u{number}"), id), "group": group(id)});
        all.push(told(
            &format!("{id}_member_{number}"),
            "dsync.group.user_added",
            AT,
            data,
        ));
    }
    all
}

fn end_of(id: &str) -> Record {
    told(&format!("{id}_end"), "dsync.deleted", ENDED, json!({"id": id}))
}

/// Adds `count` memberships of unknown people in `group` of `d2`. They are not shown, but count towards its size.
pub(super) async fn crowd(pool: &PgPool, group: &str, count: i32) -> anyhow::Result<()> {
    let joined = "insert into dsync.memberships (group_id, user_id, directory_id)
                  select $1, 'unknown_' || n, 'd2' from generate_series(1, $2) as n";
    sqlx::query(joined).bind(group).bind(count).execute(pool).await?;
    Ok(())
}

/// Describes the history of the end of `id`: the number of rows, their moments, and how many rows are the directory's
/// own.
async fn told_of_end(pool: &PgPool, id: &str) -> anyhow::Result<String> {
    let asked = format!(
        "select count(*) || ' of ' || count(distinct recorded_at) || ' moments, ' || count(*) filter (where entity = 'directory')
         from directory.changes where event_id = '{id}_end'"
    );
    text(pool, asked).await?.context("the query returned no row")
}

/// A database with a directory that has ended, and whose history is still to be written.
async fn with_backlog() -> anyhow::Result<(Postgres, PgPool)> {
    let postgres = Postgres::deferring().await?;
    let pool = postgres.pool().await?;
    write(&pool, &directory("d1")).await?;
    write(&pool, &[end_of("d1")]).await?;
    ensure!(told_of_end(&pool, "d1").await? == "1 of 1 moments, 1");
    Ok((postgres, pool))
}

/// Writes deferred history until `done` is set, a few rows at a time, with pauses.
async fn tell_now_and_then(pool: PgPool, seed: u64, done: Arc<AtomicBool>) -> anyhow::Result<()> {
    let mut rng = StdRng::seed_from_u64(seed);
    while !done.load(Ordering::SeqCst) {
        let (listed, part) = (rng.random_range(1..6), rng.random_range(1..4));
        let pause = rng.random_range(0..8);
        sqlx::query("select pg_sleep($1 / 1000.0)")
            .bind(pause)
            .execute(&pool)
            .await?;
        backlog::write_listed(&pool, listed, part).await?;
    }
    Ok(())
}

/// The numbers of changes that were written in a later transaction than the end to which they belong, for directories
/// and for groups.
async fn told_later(pool: &PgPool) -> anyhow::Result<(i64, i64)> {
    let count = sqlx::query_as(
        "select
            count(*) filter (where d.directory_id = c.directory_id and d.entity = 'directory'),
            count(*) filter (where c.entity = 'membership' and d.entity = 'group')
         from dsync.changes as c
         join dsync.changes as d
            on d.recorded_at = c.recorded_at and d.event_id = c.event_id and d.xmin <> c.xmin
            and d.entity in ('directory', 'group')",
    );
    Ok(count.fetch_one(pool).await?)
}

/// Random histories with every oddity, in which the history of all contents of directories and groups is deferred,
/// while four writers go on and somebody polls.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_told_later_adds_up_to_the_views_too() -> anyhow::Result<()> {
    let postgres = Postgres::deferring().await?;
    let (pool, pollers) = (postgres.pool().await?, postgres.pool().await?);
    let histories = histories(10)?;
    let (mut of_directories, mut of_groups) = (0, 0);
    for seed in 0..histories {
        let mut rng = StdRng::seed_from_u64(seed);
        clear(&pool).await?;
        // One day after another (the last batch is taken first), so that directories end and come back.
        let days = (1..=8)
            .rev()
            .flat_map(|day| shuffled(&records_of_day(seed + day as u64 * 1_000, 50, day), 12, &mut rng))
            .collect();
        let done = Arc::new(AtomicBool::new(false));
        let teller = tokio::spawn(tell_now_and_then(pool.clone(), seed, done.clone()));
        let written = written_and_polled(&pool, &pollers, days, async || {
            done.store(true, Ordering::SeqCst);
            teller.await??;
            Ok(backlog::drain(&pool).await?)
        });
        written.await.with_context(|| format!("seed {seed}"))?;
        let (directories, groups) = told_later(&pool).await?;
        (of_directories, of_groups) = (of_directories + directories, of_groups + groups);
    }
    let enough = 5 * i64::try_from(histories)?;
    ensure!(
        of_directories > enough && of_groups > enough,
        "only {of_directories} and {of_groups} changes were written later, in {histories} histories"
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn access_ends_and_others_go_on_before_history_is_written() -> anyhow::Result<()> {
    let (postgres, nats) = tokio::try_join!(Postgres::deferring(), Nats::start())?;
    let (pool, journal) = (postgres.pool().await?, log_on(&nats).await?);
    let mut writing = pool.begin().await?;
    sqlx::query("select pg_advisory_xact_lock(hashtext('dsync history backlog'), 0)")
        .execute(&mut *writing)
        .await?;
    let projector = Program::new("dsync-projector")
        .env("NATS_URL", nats.url())
        .env("DATABASE_URL", postgres.url())
        .start()
        .await?;
    append(&journal, &directory("d1")).await?;
    append(&journal, &directory("d2")).await?;
    let shown = async |users_and_memberships: (usize, usize)| {
        eventually(BOUND, async || {
            let users = rows(&pool, "select id from directory.users").await?;
            let memberships = rows(&pool, "select user_id from directory.memberships").await?;
            let found = (users.len(), memberships.len());
            ensure!(
                found == users_and_memberships,
                "{found:?}, not {users_and_memberships:?}"
            );
            Ok(())
        })
        .await
    };
    shown((6, 4)).await?;
    let before = text(&pool, "select clock_timestamp()").await?.unwrap();
    let gone = told("d2_gone", "dsync.user.deleted", ENDED, user("d2_u1", "d2"));
    append(&journal, &[end_of("d1"), gone]).await?;
    shown((2, 1)).await?;
    ensure!(told_of_end(&pool, "d1").await? == "1 of 1 moments, 1");
    let other = "select count(*) from directory.changes where event_id = 'd2_gone'";
    ensure!(
        text(&pool, other).await?.as_deref() == Some("2"),
        "a removal in another directory must not wait"
    );
    eventually(BOUND, async || {
        let waiting = projector
            .metrics()
            .await?
            .get("dsync_projector_history_backlog", &[])?;
        ensure!((waiting - 1.0).abs() < 0.5, "{waiting} directories wait");
        Ok(())
    })
    .await?;
    // Each tenant still sees its own past.
    for (organization, users) in [("org_d1", 3), ("org_d2", 3), ("org_3", 0)] {
        let tenant = reader(&postgres, "dsync_tenant", Some(organization)).await?;
        let then = rows(&tenant, format!("select * from directory.users_at('{before}')")).await?;
        ensure!(then.len() == users, "{organization}: {then:?}");
    }

    writing.rollback().await?;
    eventually(BOUND, async || {
        let told = told_of_end(&pool, "d1").await?;
        // The directory, three users, a group, two memberships.
        ensure!(told == "7 of 1 moments, 1", "{told}");
        ensure!(store::backlog::count(&pool).await? == 0);
        Ok(())
    })
    .await?;
    adds_up(&pool).await.map(drop)
}

/// However much of the backlog is written when rows change, history has the end of each row once, as it was last shown.
#[tokio::test]
async fn what_changes_meanwhile_is_told_as_it_was_shown() -> anyhow::Result<()> {
    let (_postgres, pool) = with_backlog().await?;
    let changed = |mut object: Value| {
        (object["email"], object["updated_at"]) = (json!("other@example.com"), json!(ENDED));
        object
    };
    let late = |id: &str| {
        told(
            &format!("late_{id}"),
            "dsync.user.updated",
            ENDED,
            changed(user(id, "d1")),
        )
    };
    let new = [
        late("d1_u2"),
        late("d1_unknown"),
        told(
            "left",
            "dsync.group.user_removed",
            ENDED,
            json!({"user": user("d1_u1", "d1"), "group": group("d1")}),
        ),
        told("gone", "dsync.group.deleted", ENDED, group("d1")),
        // A move to another directory, whatever WorkOS may mean by it.
        told(
            "moved_user",
            "dsync.user.updated",
            ENDED,
            changed(user("d1_u1", "d2")),
        ),
        told(
            "moved_group",
            "dsync.group.updated",
            ENDED,
            changed(json!({"id": "g_d1", "directory_id": "d2"})),
        ),
    ];
    for (steps, record) in (0..=9).flat_map(|steps| new.iter().map(move |record| (steps, record))) {
        clear(&pool).await?;
        write(&pool, &directory("d1")).await?;
        write(&pool, &[end_of("d1")]).await?;
        // Three users, a group and two memberships take a step each, and each kind takes another step to see that it is
        // done.
        for step in 0..steps {
            let more = backlog::write_listed(&pool, 1, 1).await?;
            ensure!(more == (step < 9), "step {step}");
        }
        ensure!(
            (store::backlog::count(&pool).await? == 0) == (steps == 9),
            "{steps} steps"
        );
        write(&pool, std::slice::from_ref(record)).await?;
        backlog::drain(&pool).await?;
        let told = told_of_end(&pool, "d1").await?;
        ensure!(
            told == "7 of 1 moments, 1",
            "{steps} steps, then {}: {told}",
            record.id
        );
        adds_up(&pool)
            .await
            .with_context(|| format!("{steps} steps, then {}", record.id))?;
    }
    Ok(())
}

/// A list of deferred rows, made before a directory came back and ended again, lacks what the directory contained the
/// second time.
#[tokio::test]
async fn what_was_listed_for_one_end_is_not_told_for_the_next() -> anyhow::Result<()> {
    let (_postgres, pool) = with_backlog().await?;
    let first = store::backlog::oldest(&pool).await?.context("no backlog")?;
    let listed = store::backlog::next_rows(&pool, &first, 10).await?;
    let (back, again) = ("2026-01-03T00:00:00Z", "2026-01-04T00:00:00Z");
    let own = json!({"id": "d1", "organization_id": "org_d1", "state": "linked", "updated_at": back});
    let mut late = user("d1_u0", "d1");
    late["updated_at"] = json!(back);
    write(&pool, &[told("d1_back", "dsync.activated", back, own)]).await?;
    write(&pool, &[told("d1_late", "dsync.user.created", back, late)]).await?;
    write(
        &pool,
        &[told("d1_again", "dsync.deleted", again, json!({"id": "d1"}))],
    )
    .await?;
    let next = Place {
        entity: Entity::Group,
        after: Key::default(),
    };
    ensure!(!store::backlog::write_part(&pool, &first, &listed, Some(&next)).await?);
    backlog::drain(&pool).await?;
    ensure!(told_of_end(&pool, "d1").await? == "7 of 1 moments, 1");
    let second = "select string_agg(entity_id, ' ' order by entity_id) from directory.changes where event_id = 'd1_again'";
    let second = text(&pool, second).await?;
    ensure!(second.as_deref() == Some("d1 d1_u0"), "{second:?}");
    adds_up(&pool).await.map(drop)
}

#[tokio::test]
async fn of_who_is_erased_meanwhile_history_tells_the_end_and_no_values() -> anyhow::Result<()> {
    let (_postgres, pool) = with_backlog().await?;
    let erased = erase::forget(&pool, "d1_u1", false, datetime!(2026-06-01 00:00 UTC)).await?;
    ensure!(matches!(erased, erase::Outcome::Forgotten(_)), "{erased:?}");
    // The person's and the membership's history is written; the rest waits.
    ensure!(told_of_end(&pool, "d1").await? == "3 of 1 moments, 1");
    backlog::drain(&pool).await?;
    ensure!(told_of_end(&pool, "d1").await? == "7 of 1 moments, 1");
    adds_up(&pool).await?;
    let values = "select count(*) from dsync.changes where entity_id = 'd1_u1' and (before ? 'email' or after ? 'email')";
    ensure!(
        text(&pool, values).await?.as_deref() == Some("0"),
        "history has values of an erased person"
    );
    Ok(())
}

#[tokio::test]
async fn what_history_is_still_to_tell_is_not_scrubbed_before() -> anyhow::Result<()> {
    let (_postgres, pool) = with_backlog().await?;
    let long_after = datetime!(2026-06-01 00:00 UTC);
    let only = |scrubbed: Scrubbed, count| scrubbed.users == count && scrubbed.groups == count / 3;
    let scrubbed = scrub(&pool, long_after).await?;
    ensure!(only(scrubbed, 0), "{scrubbed:?}");
    backlog::drain(&pool).await?;
    ensure!(told_of_end(&pool, "d1").await? == "7 of 1 moments, 1");
    let scrubbed = scrub(&pool, long_after).await?;
    ensure!(only(scrubbed, 3), "{scrubbed:?}");
    let values =
        "select count(*) from dsync.changes where entity = 'user' and (before ? 'email' or after ? 'email')";
    ensure!(
        text(&pool, values).await?.as_deref() == Some("0"),
        "history has values of a scrubbed person"
    );
    Ok(())
}

/// During an upgrade, some programs do not know of the backlog. Before such a program changes anything, its deferred
/// history is written. What the program ends has its history at once.
#[tokio::test]
async fn a_program_from_before_neither_makes_a_backlog_nor_spoils_one() -> anyhow::Result<()> {
    let (_postgres, pool) = with_backlog().await?;
    write(&pool, &directory("d2")).await?;
    let as_before = async |directory: &str, statement: &str| {
        let mut transaction = pool.begin().await?;
        sqlx::query("select dsync.enter(array[$1], '{}')")
            .bind(directory)
            .execute(&mut *transaction)
            .await?;
        sqlx::query(AssertSqlSafe(statement))
            .execute(&mut *transaction)
            .await?;
        anyhow::Ok(transaction.commit().await?)
    };
    as_before(
        "d2",
        "update directories set gone_at = '2026-01-02', gone_event = 'd2_end', gone_source = 'a' where id = 'd2'",
    )
    .await?;
    ensure!(told_of_end(&pool, "d2").await? == "7 of 1 moments, 1");
    ensure!(
        told_of_end(&pool, "d1").await? == "1 of 1 moments, 1",
        "another directory's history must still be deferred"
    );
    as_before(
        "d1",
        "update users set email = 'other@example.com' where id = 'd1_u1'",
    )
    .await?;
    ensure!(told_of_end(&pool, "d1").await? == "7 of 1 moments, 1");
    adds_up(&pool).await.map(drop)
}

/// The history of a small directory's end is written with it in one transaction, as for everything else.
#[tokio::test]
async fn only_a_large_directory_leaves_history_for_later() -> anyhow::Result<()> {
    let postgres = Postgres::migrated().await?;
    let pool = postgres.pool().await?;
    write(&pool, &directory("d1")).await?;
    write(&pool, &directory("d2")).await?;
    crowd(&pool, "g", 1_000).await?;
    write(&pool, &[end_of("d1"), end_of("d2")]).await?;
    ensure!(told_of_end(&pool, "d1").await? == "7 of 1 moments, 1");
    ensure!(told_of_end(&pool, "d2").await? == "1 of 1 moments, 1");
    backlog::drain(&pool).await?;
    ensure!(told_of_end(&pool, "d2").await? == "7 of 1 moments, 1");
    adds_up(&pool).await.map(drop)
}

/// A typo in an operator's setting must not prolong anybody's access.
#[tokio::test]
async fn a_setting_that_is_no_number_keeps_no_directory_from_ending() -> anyhow::Result<()> {
    let postgres = Postgres::migrated().await?;
    for odd in ["off", "10k", "-1", "99999999999999999999"] {
        let pool = postgres.pool().await?;
        sqlx::query(sqlx::AssertSqlSafe(format!(
            "do $$ begin execute format('alter database %I set dsync.deferred_above = {odd:?}', current_database()); end $$"
        )))
        .execute(&pool)
        .await?;
        pool.close().await;
        let pool = postgres.pool().await?;
        let id = format!("d_{}", odd.replace('-', "_"));
        write(&pool, &directory(&id)).await?;
        write(&pool, &[end_of(&id)])
            .await
            .with_context(|| format!("dsync.deferred_above = {odd}"))?;
        ensure!(told_of_end(&pool, &id).await? == "7 of 1 moments, 1", "{odd}");
    }
    Ok(())
}
