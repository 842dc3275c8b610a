//! Verifying and rebuilding while people are erased, and after it. What the records of erased people said of groups is then in
//! the groups' rows only.

use std::collections::BTreeSet;

use anyhow::{Context as _, ensure};
use indicatif::ProgressBar;
use journal::Journal;
use projector::beside::Build;
use projector::erase::{drain, erase};
use projector::lane::Lane;
use projector::store::{differing, shadow, taken};
use rand::prelude::*;
use schema::record::{Record, Source};
use serde_json::{Value, json};
use service::clock::Clock;
use sqlx::PgPool;
use tests::{Nats, Postgres};
use time::OffsetDateTime;

use crate::rebuilding::{tools, work};
use crate::{append, clear, log_on, record, records, somebody_waits, tables};

fn moment(second: u32) -> String {
    format!("2026-01-01T00:00:{second:02}.000Z")
}

fn event(id: &str, event: &str, at: u32, data: &Value) -> Record {
    let body = json!({"id": id, "event": event, "created_at": moment(at), "data": data});
    record(body.to_string().as_bytes(), Source::Webhook)
}

fn directory(id: &str, organization: &str) -> Record {
    let data = json!({"id": id, "organization_id": organization, "updated_at": moment(1), "state": "active"});
    event(id, "dsync.activated", 1, &data)
}

fn user(id: &str) -> Value {
    json!({"id": id, "directory_id": "d1", "updated_at": moment(2), "state": "active"})
}

fn group(second: u32) -> Value {
    json!({"id": "g", "directory_id": "d1", "name": format!("as of {second}"), "updated_at": moment(second)})
}

fn joins(id: &str, at: u32, who: &str, group: &Value) -> Record {
    let data = json!({"directory_id": "d1", "user": user(who), "group": group});
    event(id, "dsync.group.user_added", at, &data)
}

/// The groups and memberships that readers see.
async fn shown(pool: &PgPool) -> anyhow::Result<Vec<String>> {
    let shown = "select concat_ws(' ', id, directory_id, organization_id, name) from directory.groups
                 union all select group_id || '/' || user_id from directory.memberships order by 1";
    Ok(sqlx::query_scalar(shown).fetch_all(pool).await?)
}

struct World {
    _postgres: Postgres,
    nats: Nats,
    pool: PgPool,
    journal: Journal,
}

impl World {
    /// A log of these records, applied to the tables.
    async fn of(records: &[Record]) -> anyhow::Result<Self> {
        let (postgres, nats) = (Postgres::migrated().await?, Nats::start().await?);
        let (pool, journal) = (postgres.pool().await?, log_on(&nats).await?);
        let world = Self {
            _postgres: postgres,
            nats,
            pool,
            journal,
        };
        world.more(records).await?;
        Ok(world)
    }

    /// Appends records and applies what the lanes have not applied.
    async fn more(&self, records: &[Record]) -> anyhow::Result<()> {
        for record in records {
            self.journal.append(record).await?;
        }
        let mut last = self.journal.identity().await?.context("no log")?.last_seq;
        // No lane reads what was erased from the end.
        while self.journal.entry(last).await?.is_none() {
            last -= 1;
        }
        work(&self.pool, &self.nats, Lane::Removals, 0).await?;
        work(&self.pool, &self.nats, Lane::All, last).await?;
        Ok(())
    }

    async fn erase(&self, who: &str) -> anyhow::Result<()> {
        erase(&self.pool, &self.journal, who, true, OffsetDateTime::UNIX_EPOCH).await?;
        Ok(())
    }

    /// The differences that `verify` names and `rebuild` repairs, as texts.
    async fn repaired(&self) -> anyhow::Result<Vec<String>> {
        let tools = tools(&self.pool, &self.journal);
        let (verified, rebuilt) = (tools.verify().await?, tools.rebuild(false).await?);
        ensure!(verified.differences == rebuilt.rows, "{verified:?} {rebuilt:?}");
        let named = rebuilt.rows.iter();
        Ok(named
            .map(|one| format!("{} {:?} {}", one.id, one.kind, one.columns.join(" ")))
            .collect())
    }
}

/// Only the events of memberships describe the group, `u`'s best.
fn two_members() -> [Record; 5] {
    [
        directory("d1", "o1"),
        event("e1", "dsync.user.created", 2, &user("v")),
        event("e2", "dsync.user.created", 2, &user("u")),
        joins("e3", 5, "u", &group(4)),
        joins("e4", 6, "v", &json!({"id": "g", "directory_id": "d1"})),
    ]
}

/// The erasure is not in the comparison's snapshot, but what it takes is not in the log any more: from its middle, or from
/// its end.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_erasure_while_rows_are_compared_is_neither_a_loss_nor_a_difference() -> anyhow::Result<()> {
    let newest = joins("e5", 7, "w", &json!({"id": "g", "directory_id": "d1"}));
    for people in [&["w"][..], &["u"], &["u", "v", "w"]] {
        let world = World::of(&two_members()).await?;
        world.more(std::slice::from_ref(&newest)).await?;
        let (pool, bar) = (&world.pool, ProgressBar::hidden());
        let mut connection = pool.acquire().await?.detach();
        let mut build = Build::begin(&mut connection, &world.journal, Clock::system().now()).await?;
        let mut lane = pool.begin().await?;
        sqlx::query("lock table dsync.progress")
            .execute(&mut *lane)
            .await?;
        let comparing = async {
            build.compare(&mut connection, false, &bar).await?;
            anyhow::Ok(differing::list(&mut connection, false, 10).await?)
        };
        let erasing = async {
            somebody_waits(pool, "relation = 'dsync.progress'::regclass").await?;
            for person in people {
                world.erase(person).await?;
            }
            anyhow::Ok(lane.commit().await?)
        };
        let (found, erased) = tokio::join!(comparing, erasing);
        erased?;
        let found = found.with_context(|| format!("{people:?}"))?;
        ensure!(found.is_empty(), "{people:?}: {found:?}");
    }
    Ok(())
}

/// A log that was set back gives sequences to other messages that an erasure had recorded before. Whatever was recorded then,
/// also by a version that did not record groups, what the messages say now is recorded.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_message_says_is_recorded_though_its_sequence_was_before() -> anyhow::Result<()> {
    let world = World::of(&two_members()).await?;
    sqlx::raw_sql(
        "insert into dsync.overwritten (stream_created, seq)
         select stream_created, generate_series(1, 5) from dsync.progress where lane = 'all'",
    )
    .execute(&world.pool)
    .await?;
    let before = shown(&world.pool).await?;
    ensure!(before == ["g d1 o1 as of 4", "g/u", "g/v"], "{before:?}");
    world.erase("u").await?;
    ensure!(world.repaired().await? == [""; 0], "the group was set back");
    let after = shown(&world.pool).await?;
    ensure!(after == ["g d1 o1 as of 4", "g/v"], "{after:?}");
    Ok(())
}

/// It is done while writers wait.
#[tokio::test]
async fn what_erasures_took_is_added_in_seconds_however_much_it_is() -> anyhow::Result<()> {
    let postgres = Postgres::migrated().await?;
    let mut connection = postgres.pool().await?.acquire().await?.detach();
    sqlx::raw_sql(
        "set dsync.history = 'off';
         insert into dsync.groups (id, directory_id, version_event, version_source, version_updated_at)
         select 'directory_group_01EHZNVPK3SFK441A1RGBF' || n, 'd1', 'event_01EHZNVPK3SFK441A1RGBF' || n, 'a', '2026-01-01' from generate_series(1, 5000) as n;
         insert into dsync.said_of_groups (group_id, event_id, source, directory_id)
         select 'directory_group_01EHZNVPK3SFK441A1RGBF' || n % 10000, 'event_01EHZNVPK3SFK441A1RGBF' || n, 'a', 'd1' from generate_series(1, 300000) as n;
         analyze dsync.groups, dsync.said_of_groups",
    )
    .execute(&mut connection)
    .await?;
    shadow::create(&mut connection).await?;
    sqlx::raw_sql("set statement_timeout = '10s'")
        .execute(&mut connection)
        .await?;
    taken::add_beside(&mut connection).await?;
    let [_, _, groups, _] = shadow::TABLES;
    differing::find(&mut connection, groups).await?;
    let found = differing::list(&mut connection, false, 10).await?;
    ensure!(found.is_empty(), "{found:?}");
    Ok(())
}

/// An erased person's record named the group's directory, but that is no reason to believe whatever directory the row names.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_group_moved_by_hand_is_noticed_though_a_member_was_erased() -> anyhow::Result<()> {
    let world = World::of(&two_members()).await?;
    world.more(&[directory("d9", "o9")]).await?;
    let moved = "update dsync.groups set directory_id = 'd9', organization_id = 'o9'";
    for erased in [None, Some("v"), Some("u")] {
        if let Some(erased) = erased {
            world.erase(erased).await?;
        }
        let before = shown(&world.pool).await?;
        ensure!(before[0] == "g d1 o1 as of 4", "{before:?}");
        sqlx::raw_sql(moved).execute(&world.pool).await?;
        let repaired = world.repaired().await?;
        ensure!(
            repaired == ["g Differs directory_id organization_id"],
            "{erased:?}: {repaired:?}"
        );
        ensure!(shown(&world.pool).await? == before, "{erased:?}");
    }
    Ok(())
}

/// What an erased person's record said of a group after a rebuild is not in the log, from which an undo has the rest applied
/// again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn undoing_a_rebuild_keeps_what_an_erased_persons_records_said_since() -> anyhow::Result<()> {
    let [directory, person, _, _, member] = two_members();
    let world = World::of(&[directory, person, member]).await?;
    let by_hand =
        "insert into dsync.groups (id, directory_id, name, gone_event) values ('g', 'd1', 'by hand', 'x')";
    sqlx::raw_sql(by_hand).execute(&world.pool).await?;
    ensure!(world.repaired().await? == ["g Extra "]);
    world.more(&[joins("e3", 9, "u", &group(8))]).await?;
    world.erase("u").await?;
    let before = shown(&world.pool).await?;
    ensure!(before == ["g d1 o1 as of 8", "g/v"], "{before:?}");
    tools(&world.pool, &world.journal).undo().await?;
    world.more(&[]).await?;
    let undone = shown(&world.pool).await?;
    ensure!(undone == before, "{undone:?}");
    let repaired = world.repaired().await?;
    ensure!(
        repaired == ["g Differs gone_event"],
        "the undo did not restore the row: {repaired:?}"
    );
    ensure!(shown(&world.pool).await? == before);
    Ok(())
}

/// No register says which record named the directory that a group's row has.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_directory_that_an_erased_persons_record_named_for_a_group_stays() -> anyhow::Result<()> {
    let told = json!({"id": "g", "directory_id": "d1", "updated_at": moment(9)});
    let named = json!({"id": "g", "directory_id": "d2", "updated_at": moment(5)});
    let world = World::of(&[
        event("e1", "dsync.group.updated", 10, &told),
        joins("e2", 10, "u", &named),
    ])
    .await?;
    world.erase("u").await?;
    let row = "select directory_id, version_event from dsync.groups";
    let row: (String, String) = sqlx::query_as(row).fetch_one(&world.pool).await?;
    ensure!(row == ("d2".to_owned(), "e1".to_owned()), "{row:?}");
    ensure!(world.repaired().await?.is_empty());
    Ok(())
}

/// The records of an erased person's memberships also described groups. What the tables know from them, the log says no
/// more, but it is neither a difference nor put back.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_an_erased_persons_records_said_of_groups_stays() -> anyhow::Result<()> {
    let (postgres, mut nats) = (Postgres::migrated().await?, Nats::start().await?);
    let pool = postgres.pool().await?;
    let mut only_they_said_it = 0;
    for seed in 220..228 {
        let mut rng = StdRng::seed_from_u64(seed);
        clear(&pool).await?;
        nats.wipe().await?;
        let journal = log_on(&nats).await?;
        let mut records = records(seed);
        records.shuffle(&mut rng);
        // These come after the erasure.
        let late = records.split_off(records.len() * 3 / 4);
        let last = append(&journal, &records, &mut rng).await?;
        work(&pool, &nats, Lane::Removals, rng.random_range(0..=last / 2)).await?;
        work(&pool, &nats, Lane::All, rng.random_range(1..=last)).await?;

        let members = "select distinct user_id from dsync.memberships order by 1";
        let members: Vec<String> = sqlx::query_scalar(members).fetch_all(&pool).await?;
        let erased: Vec<&String> = members.sample(&mut rng, 3).collect();
        for person in &erased {
            erase(&pool, &journal, person, true, OffsetDateTime::UNIX_EPOCH).await?;
        }
        let tools = tools(&pool, &journal);
        for late in [&late[..], &[]] {
            let before = tables(&pool).await?;
            let told = tools.verify().await?;
            ensure!(told.differences.is_empty(), "seed {seed}: {told:?}");
            ensure!(tools.rebuild(false).await?.replaced.all == 0, "seed {seed}");
            ensure!(tables(&pool).await? == before, "seed {seed}");
            only_they_said_it += not_in_the_log(&pool, &journal).await?;
            if !late.is_empty() {
                let last = append(&journal, late, &mut rng).await?;
                work(&pool, &nats, Lane::Removals, 0).await?;
                work(&pool, &nats, Lane::All, last).await?;
                drain(&pool, &journal).await?;
            }
        }
    }
    ensure!(only_they_said_it > 5, "no group was described by them alone");
    Ok(())
}

/// How many groups have their attributes from a record that is not in the log.
async fn not_in_the_log(pool: &PgPool, journal: &Journal) -> anyhow::Result<usize> {
    let (mut seq, mut there) = (1, BTreeSet::new());
    while let Some(entry) = journal.first_at(seq, "dsync.>").await? {
        seq = entry.seq + 1;
        there.insert(entry.record.id);
    }
    let from = "select version_event from dsync.groups where version_event <> ''";
    let from: Vec<String> = sqlx::query_scalar(from).fetch_all(pool).await?;
    Ok(from.iter().filter(|event| !there.contains(*event)).count())
}
