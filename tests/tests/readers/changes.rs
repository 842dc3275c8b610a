//! The feed: it adds up to the views, nobody who polls it misses a change, and each change names its cause.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context as _, ensure};
use rand::prelude::*;
use schema::record::Record;
use serde_json::json;
use sqlx::postgres::PgListener;
use tests::{History, Nats, Postgres, Program, agrees, eventually};
use workos_sim::{DirectoryOptions, Options, Seed, Sim};

use super::adding_up::{adds_up, poll, written_and_polled};
use super::bodies::{event, membership, moment, user};
use super::{
    BOUND, append, clear, events, histories, log_on, random_records, rows, shuffled, tell, text, write,
};

/// Random histories with few objects, contradictions and every oddity, written by four writers while somebody polls.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn changes_add_up_to_the_views_and_a_poller_sees_each() -> anyhow::Result<()> {
    let postgres = Postgres::migrated().await?;
    let (pool, pollers) = (postgres.pool().await?, postgres.pool().await?);
    let (histories, mut changes, mut polls) = (histories(25)?, 0, 0);
    for seed in 0..histories {
        let mut rng = StdRng::seed_from_u64(seed);
        clear(&pool).await?;
        let batches = shuffled(&random_records(seed, 200), 12, &mut rng);
        let polled = written_and_polled(&pool, &pollers, batches, async || Ok(())).await;
        let polled = polled.with_context(|| format!("seed {seed}"))?;
        (changes, polls) = (changes + polled.ids.len(), polls + polled.meanwhile);
    }
    let several = usize::try_from(histories)?;
    ensure!(
        changes > 30 * several && polls > 5 * several,
        "only {changes} changes, found by {polls} polls while others wrote, in {histories} histories"
    );
    Ok(())
}

/// The whole way: a log, four projector processes, and a consumer that is woken by NOTIFY.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn four_projectors_write_one_history() -> anyhow::Result<()> {
    let (postgres, nats) = tokio::try_join!(Postgres::migrated(), Nats::start())?;
    let (pool, journal) = (postgres.pool().await?, log_on(&nats).await?);
    let sim = Sim::start(Options::default()).await?;
    for options in [
        DirectoryOptions::default(),
        DirectoryOptions::newer(),
        DirectoryOptions::awkward(),
    ] {
        let directory = sim.create_directory(options)?;
        sim.seed(
            &directory,
            &Seed {
                users: 40,
                groups: 6,
                ..Seed::default()
            },
        )?;
    }
    let mut listener = PgListener::connect_with(&pool).await?;
    listener.listen("directory_changes").await?;
    let done = Arc::new(AtomicBool::new(false));
    let poller = tokio::spawn(poll(postgres.pool().await?, done.clone()));
    let mut projectors = Vec::new();
    for _ in 0..4 {
        let program = Program::new("dsync-projector")
            .env("NATS_URL", nats.url())
            .env("DATABASE_URL", postgres.url());
        projectors.push(program.start().await?);
    }
    let mut from = 0;
    for _ in 0..8 {
        let mut new = events(&sim, from);
        from += new.len();
        new.shuffle(&mut rand::rng());
        append(&journal, &new).await?;
        // Projectors hold the lanes in turn.
        projectors[0].terminate().await?;
        projectors[0].start_again()?;
        projectors.rotate_left(1);
        sim.burst(60)?;
    }
    append(&journal, &events(&sim, from)).await?;
    eventually(BOUND, async || agrees(&pool, &sim.truth()).await).await?;
    done.store(true, Ordering::SeqCst);
    let polled = poller.await??.ids;
    ensure!(polled == adds_up(&pool).await?);
    let mut told = BTreeSet::new();
    while let Ok(notification) =
        tokio::time::timeout(std::time::Duration::from_millis(300), listener.recv()).await
    {
        told.insert(notification?.payload().parse::<i64>()?);
    }
    ensure!(told.last() == polled.last(), "the last change was not announced");
    Ok(())
}

#[tokio::test]
async fn each_change_names_its_cause_and_what_is_not_one_leaves_no_row() -> anyhow::Result<()> {
    let postgres = Postgres::migrated().await?;
    let pool = postgres.pool().await?;
    let directory =
        json!({"id": "d1", "organization_id": "org_1", "state": "linked", "updated_at": moment(1)});
    for (told, expected) in [
        (
            event("e1", "dsync.activated", 1, directory.clone()),
            vec!["created directory d1 e1 1"],
        ),
        (
            membership("e2", "dsync.group.user_added", 2, user("u1", 1, json!({}))),
            vec![
                "created group g1 e2 2",
                "created membership g1/u1 e2 2",
                "created user u1 e2 2",
            ],
        ),
        (
            membership("e3", "dsync.group.user_added", 3, user("u1", 1, json!({}))),
            vec![],
        ),
        (
            event(
                "e0",
                "dsync.user.created",
                1,
                user("u1", 0, json!({"email": "old"})),
            ),
            vec![],
        ),
        (
            event(
                "e4",
                "dsync.user.updated",
                4,
                user("u1", 4, json!({"email": "new@example.com"})),
            ),
            vec!["updated user u1 e4 4 {email,updated_at}"],
        ),
        (
            event(
                "e4",
                "dsync.user.updated",
                4,
                user("u1", 4, json!({"email": "new@example.com"})),
            ),
            vec![],
        ),
        (
            event("e5", "dsync.user.deleted", 5, user("u1", 4, json!({}))),
            vec!["deleted membership g1/u1 e5 5", "deleted user u1 e5 5"],
        ),
        (
            membership("e6", "dsync.group.user_removed", 6, user("u1", 1, json!({}))),
            vec![],
        ),
        (
            event("e7", "dsync.user.created", 7, user("u1", 7, json!({}))),
            vec!["created user u1 e7 7"],
        ),
        (
            membership("e8", "dsync.group.user_added", 8, user("u1", 1, json!({}))),
            vec!["created membership g1/u1 e8 8"],
        ),
        (
            event(
                "e9",
                "dsync.group.deleted",
                9,
                json!({"id": "g1", "directory_id": "d1"}),
            ),
            vec!["deleted group g1 e9 9", "deleted membership g1/u1 e9 9"],
        ),
        (
            event("e10", "dsync.deleted", 10, directory),
            vec!["deleted directory d1 e10 10", "deleted user u1 e10 10"],
        ),
    ] {
        let last = text(&pool, "select coalesce(max(change_id), 0) from directory.changes")
            .await?
            .unwrap();
        tell(&pool, told.clone()).await?;
        let found = rows(
            &pool,
            format!(
                "select operation || ' ' || entity || ' ' || entity_id || ' ' || event_id || ' '
                    || extract(second from occurred_at)::int
                    || case operation when 'updated' then ' ' || changed::text else '' end as change
                 from directory.changes where change_id > {last} and source = 'webhook'"
            ),
        )
        .await?;
        let mut found: Vec<&str> = found.iter().map(|row| row["change"].as_str().unwrap()).collect();
        found.sort_unstable();
        ensure!(found == expected, "{told}: {found:?}");
    }
    adds_up(&pool).await?;
    Ok(())
}

#[tokio::test]
async fn a_number_written_in_another_way_is_no_change() -> anyhow::Result<()> {
    let postgres = Postgres::migrated().await?;
    let pool = postgres.pool().await?;
    for (second, level) in [(1, json!(1)), (2, json!(1.0)), (3, json!(2)), (4, json!(2.0))] {
        let more = json!({"custom_attributes": {"level": level, "team": "a"}});
        let id = format!("e{second}");
        tell(
            &pool,
            event(&id, "dsync.user.updated", second, user("u1", 1, more)),
        )
        .await?;
    }
    let told = text(
        &pool,
        "select string_agg(event_id || ' ' || operation || ' ' || changed::text, ', ' order by change_id)
         from directory.changes",
    )
    .await?;
    let expected = "e1 created {}, e3 updated {custom_attributes}";
    ensure!(told.as_deref() == Some(expected), "{told:?}");
    Ok(())
}

#[tokio::test]
async fn a_directory_that_changes_hands_leaves_one_tenant_and_enters_the_other() -> anyhow::Result<()> {
    let postgres = Postgres::migrated().await?;
    let pool = postgres.pool().await?;
    let directory = |organization: &str, second| {
        let data = json!({"id": "d1", "organization_id": organization, "state": "linked", "updated_at": moment(second)});
        event(&format!("e{second}"), "dsync.activated", second, data)
    };
    tell(&pool, directory("org_1", 1)).await?;
    tell(
        &pool,
        event("e2", "dsync.user.created", 2, user("u1", 2, json!({}))),
    )
    .await?;
    tell(&pool, directory("org_2", 3)).await?;
    let found = rows(
        &pool,
        "select change_id, operation, organization_id, event_id from directory.changes where entity = 'user'",
    )
    .await?;
    let found: Vec<String> = found
        .iter()
        .map(|row| {
            format!(
                "{} {} {}",
                row["operation"], row["organization_id"], row["event_id"]
            )
            .replace('"', "")
        })
        .collect();
    assert_eq!(
        found,
        ["created org_1 e2", "deleted org_1 e3", "created org_2 e3"]
    );
    adds_up(&pool).await?;
    Ok(())
}

#[tokio::test]
async fn who_moves_to_a_directory_of_another_tenant_is_deleted_in_the_old_directory() -> anyhow::Result<()> {
    let postgres = Postgres::migrated().await?;
    let pool = postgres.pool().await?;
    for n in 1..=2 {
        let data = json!({
            "id": format!("d{n}"), "organization_id": format!("org_{n}"), "state": "linked", "updated_at": moment(1)
        });
        tell(&pool, event(&format!("e{n}"), "dsync.activated", 1, data)).await?;
    }
    let group = |second, directory: &str| json!({"id": "g1", "directory_id": directory, "name": "Staff", "updated_at": moment(second)});
    for (second, directory) in [(2, "d1"), (3, "d2")] {
        let user = user("u1", second, json!({"directory_id": directory}));
        let id = |kind: &str| format!("{kind}{second}");
        tell(&pool, event(&id("u"), "dsync.user.updated", second, user.clone())).await?;
        tell(
            &pool,
            event(&id("g"), "dsync.group.updated", second, group(second, directory)),
        )
        .await?;
        let both = json!({"directory_id": directory, "user": user, "group": group(second, directory)});
        tell(&pool, event(&id("m"), "dsync.group.user_added", second, both)).await?;
    }
    for entity in ["user", "group", "membership"] {
        let found = rows(
            &pool,
            format!(
                "select to_char(change_id, '0000') as change_id, operation, organization_id, directory_id
                 from directory.changes where entity = '{entity}'"
            ),
        )
        .await?;
        let found: Vec<String> = found
            .iter()
            .map(|row| {
                let text = |name: &str| row[name].as_str().unwrap_or("none").to_owned();
                format!(
                    "{} {} {}",
                    text("operation"),
                    text("organization_id"),
                    text("directory_id")
                )
            })
            .collect();
        assert_eq!(
            found,
            ["created org_1 d1", "deleted org_1 d1", "created org_2 d2"],
            "{entity}"
        );
    }
    adds_up(&pool).await?;
    Ok(())
}

#[tokio::test]
async fn a_batch_is_announced_once_and_one_without_changes_not_at_all() -> anyhow::Result<()> {
    let postgres = Postgres::migrated().await?;
    let pool = postgres.pool().await?;
    let mut listener = PgListener::connect_with(&pool).await?;
    listener.listen("directory_changes").await?;
    let batch: Vec<Record> = (0..30)
        .map(|n| {
            event(
                &format!("e{n}"),
                "dsync.user.created",
                2,
                user(&format!("u{n}"), 2, json!({})),
            )
        })
        .chain([membership(
            "m1",
            "dsync.group.user_added",
            3,
            user("u1", 1, json!({})),
        )])
        .map(|body| super::record(body.to_string().as_bytes(), schema::record::Source::Webhook))
        .collect();
    write(&pool, &batch).await?;
    write(&pool, &batch).await?;
    tell(
        &pool,
        event("last", "dsync.user.created", 2, user("last", 2, json!({}))),
    )
    .await?;
    let mut told = Vec::new();
    for _ in 0..2 {
        told.push(
            tokio::time::timeout(BOUND, listener.recv())
                .await??
                .payload()
                .to_owned(),
        );
    }
    let highest = rows(
        &pool,
        "select max(change_id)::text as highest from directory.changes group by entity_id = 'last'",
    )
    .await?;
    let highest: Vec<&str> = highest
        .iter()
        .map(|row| row["highest"].as_str().unwrap())
        .collect();
    assert_eq!(told, highest);
    Ok(())
}

#[tokio::test]
async fn a_rebuild_may_write_without_history() -> anyhow::Result<()> {
    let postgres = Postgres::migrated().await?;
    let pool = postgres.pool().await?;
    let mut transaction = pool.begin().await?;
    sqlx::raw_sql("set local dsync.history = off")
        .execute(&mut *transaction)
        .await?;
    sqlx::raw_sql("insert into dsync.users (id, directory_id, seen_at) values ('u', 'd', now())")
        .execute(&mut *transaction)
        .await?;
    transaction.commit().await?;
    assert_eq!(rows(&pool, "select id from directory.users").await?.len(), 1);
    let history = History::read(&pool).await?;
    assert_eq!(history.ids().len(), 0);
    // What other tests rely on: that a row without history does not pass.
    assert_eq!(history.strays(&pool).await?.len(), 1);
    Ok(())
}
