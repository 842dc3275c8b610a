//! The projection is a pure function of the log, so it can be compared with the log, and rebuilt from it. Tested with
//! random histories, lanes stopped anywhere, and rows tampered with in every way.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use indicatif::ProgressBar;
use journal::{Entry, Journal};
use projector::erase::erase;
use projector::lane::Lane;
use projector::metrics::Metrics;
use projector::rebuild::Tools;
use projector::run::{Tuning, Worker};
use projector::store;
use rand::prelude::*;
use schema::record::{Record, Source};
use serde_json::json;
use service::clock::Clock;
use sqlx::{AssertSqlSafe, PgConnection, PgPool};
use tests::{Nats, Postgres, eventually};
use time::OffsetDateTime;
use tokio_util::sync::CancellationToken;

use crate::{append, clear, log_on, record, records, somebody_waits, tables, worker};

pub(crate) const BOUND: Duration = Duration::from_mins(1);

pub(crate) fn tools(pool: &PgPool, journal: &Journal) -> Tools {
    Tools {
        pool: pool.clone(),
        journal: journal.clone(),
        clock: Clock::system(),
        limit: 10_000,
        bar: ProgressBar::hidden(),
    }
}

/// Works `lane` until its position is `seq` or later. Returns its metrics.
pub(crate) async fn work(pool: &PgPool, nats: &Nats, lane: Lane, seq: u64) -> anyhow::Result<Metrics> {
    let shutdown = CancellationToken::new();
    let worker = Worker {
        holder: lane.as_str().to_owned(),
        tuning: Tuning {
            batch_records: 7,
            ..Tuning::default()
        },
        ..worker(pool.clone(), log_on(nats).await?, &shutdown)
    };
    let metrics = worker.metrics.clone();
    let task = tokio::spawn(worker.work(lane));
    eventually(BOUND, async || {
        let position = store::progress::position(pool, lane)
            .await?
            .context("the lane has not begun")?;
        ensure!(position.seq >= seq, "at {} of {seq}", position.seq);
        Ok(())
    })
    .await?;
    shutdown.cancel();
    task.await?;
    Ok(metrics)
}

/// Works the lane `all` until it has noticed that the log is not what it was, and stands at `seq`.
pub(crate) async fn until_rewound(pool: &PgPool, nats: &Nats, seq: u64) -> anyhow::Result<()> {
    let shutdown = CancellationToken::new();
    let task = tokio::spawn(worker(pool.clone(), log_on(nats).await?, &shutdown).work(Lane::All));
    eventually(BOUND, async || {
        let noticed: i64 = sqlx::query_scalar("select count(*) from dsync.rewinds")
            .fetch_one(pool)
            .await?;
        let at = position(pool, Lane::All).await?;
        ensure!(
            noticed > 0 && at == seq,
            "noticed {noticed} times, at {at} of {seq}"
        );
        Ok(())
    })
    .await?;
    shutdown.cancel();
    Ok(task.await?)
}

/// Tampers with rows. Returns which, as entity and id.
async fn tamper(pool: &PgPool, rng: &mut StdRng) -> anyhow::Result<BTreeSet<(String, String)>> {
    let mut touched = BTreeSet::new();
    for (table, entity, key, column) in [
        ("directories", "directory", "id", "name"),
        ("users", "user", "id", "email"),
        ("groups", "group", "id", "name"),
        (
            "memberships",
            "membership",
            "group_id || '/' || user_id",
            "organization_id",
        ),
    ] {
        let ids = sqlx::query_scalar(AssertSqlSafe(format!(
            "select {key} from dsync.{table} order by 1"
        )));
        let ids: Vec<String> = ids.fetch_all(pool).await?;
        for id in ids.sample(rng, 3) {
            let change = match rng.random_range(0..5) {
                0 => format!("delete from dsync.{table} where {key} = $1"),
                1 => format!("update dsync.{table} set {column} = 'tampered' where {key} = $1"),
                2 => format!("update dsync.{table} set seen_at = 'infinity' where {key} = $1"),
                3 => format!("update dsync.{table} set gone_event = 'tampered' where {key} = $1"),
                _ => format!("update dsync.{table} set gone_at = '2001-01-01' where {key} = $1"),
            };
            sqlx::query(AssertSqlSafe(change)).bind(id).execute(pool).await?;
            touched.insert((entity.to_owned(), id.clone()));
        }
    }
    sqlx::raw_sql(
        "insert into dsync.users (id, directory_id, email, seen_at) values ('intruder', 'd1', 'x@example.com', now());
         insert into dsync.memberships (group_id, user_id, directory_id) values ('g', 'intruder', 'd1')",
    )
    .execute(pool)
    .await?;
    touched.insert(("user".to_owned(), "intruder".to_owned()));
    touched.insert(("membership".to_owned(), "g/intruder".to_owned()));
    Ok(touched)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn wherever_the_lanes_stand_the_log_tells_what_was_tampered_with_and_puts_it_right()
-> anyhow::Result<()> {
    let (postgres, mut nats) = (Postgres::migrated().await?, Nats::start().await?);
    let pool = postgres.pool().await?;
    for seed in 200..208 {
        let records = records(seed);
        let mut rng = StdRng::seed_from_u64(seed);
        clear(&pool).await?;
        nats.wipe().await?;
        let journal = log_on(&nats).await?;
        let last = append(&journal, &records, &mut rng).await?;
        // The lane `removals` is ahead of the other, as in a backlog, or behind it.
        let removals = journal
            .read(0, Lane::Removals.subjects())
            .await?
            .next_batch(1_000, 1 << 24)
            .await?;
        let removals = removals
            .choose(&mut rng)
            .context("the history has no removal")?
            .seq;
        work(&pool, &nats, Lane::Removals, removals).await?;
        work(&pool, &nats, Lane::All, rng.random_range(1..=last)).await?;
        let right = tables(&pool).await?;
        let tools = tools(&pool, &journal);
        let told = tools.verify().await?;
        ensure!(told.differences.is_empty(), "seed {seed}: {told:?}");

        let touched = tamper(&pool, &mut rng).await?;
        let wrong = tables(&pool).await?;
        let told = tools.verify().await?;
        let named: BTreeSet<_> = told
            .differences
            .iter()
            .map(|one| (one.entity.clone(), one.id.clone()))
            .collect();
        // Setting a register to its old value is not tampering.
        ensure!(named.is_subset(&touched), "seed {seed}: {named:?} of {touched:?}");
        ensure!((named.is_empty()) == (wrong == right), "seed {seed}: {named:?}");

        let done = tools.rebuild(false).await?;
        ensure!(
            done.rows == told.differences && done.replaced == told.differing,
            "seed {seed}: {done:?}"
        );
        ensure!(
            tables(&pool).await? == right,
            "seed {seed}: the tables are not what the log says"
        );
        ensure!(tools.verify().await?.differences.is_empty(), "seed {seed}");

        tools.undo().await?;
        ensure!(tables(&pool).await? == wrong, "seed {seed}: not undone");
        ensure!(tools.undo().await.is_err(), "seed {seed}: undone twice");
        tools.rebuild(false).await?;
        // From here on, the lane continues as if nothing had happened.
        work(&pool, &nats, Lane::All, last).await?;
        ensure!(tools.verify().await?.differences.is_empty(), "seed {seed}");
    }
    Ok(())
}

/// After an undo, the tables know more than the lanes' positions say, until the lanes have applied it again: compared with
/// the log up to those positions, they would seem wrong, and a rebuild would bring back people who were removed since.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_came_after_a_rebuild_that_was_undone_is_no_difference() -> anyhow::Result<()> {
    let (postgres, mut nats) = (Postgres::migrated().await?, Nats::start().await?);
    let pool = postgres.pool().await?;
    let mut erased = 0;
    for seed in 240..244 {
        let mut rng = StdRng::seed_from_u64(seed);
        clear(&pool).await?;
        nats.wipe().await?;
        let journal = log_on(&nats).await?;
        let last = append(&journal, &records(seed), &mut rng).await?;
        work(&pool, &nats, Lane::Removals, 0).await?;
        work(&pool, &nats, Lane::All, last / 3).await?;
        let tools = tools(&pool, &journal);
        ensure!(tools.rebuild(false).await?.replaced.all == 0);
        work(&pool, &nats, Lane::All, last).await?;
        let removals = newest(&journal, last, |entry| entry.record.subject.is_removal()).await?;
        work(&pool, &nats, Lane::Removals, removals).await?;
        let right = tables(&pool).await?;
        tools.undo().await?;
        ensure!(position(&pool, Lane::All).await? < last, "not sent back");
        let removal = journal.entry(removals).await?.context("no removal")?;
        let person = removal.record.subject.user().filter(|_| seed % 2 == 0);

        let (verified, rebuilt) = (tools.verify(), tools.rebuild(false));
        let comes_back = async {
            // The lanes come back to where they were, or to the entry before, if the last is erased.
            if let Some(person) = person {
                erase(&pool, &journal, person, true, OffsetDateTime::UNIX_EPOCH).await?;
            }
            let there = newest(&journal, removals, |entry| entry.record.subject.is_removal()).await?;
            work(&pool, &nats, Lane::Removals, there).await?;
            work(&pool, &nats, Lane::All, newest(&journal, last, |_| true).await?).await?;
            anyhow::Ok(())
        };
        let (verified, rebuilt, came_back) = tokio::join!(verified, rebuilt, comes_back);
        came_back?;
        let (verified, rebuilt) = (verified?, rebuilt?);
        ensure!(verified.differences.is_empty(), "seed {seed}: {verified:?}");
        ensure!(rebuilt.replaced.all == 0, "seed {seed}: {rebuilt:?}");
        ensure!(person.is_some() || tables(&pool).await? == right, "seed {seed}");
        erased += usize::from(person.is_some());
    }
    ensure!((1..4).contains(&erased), "{erased}");
    Ok(())
}

/// The sequence of the newest entry up to `seq` that is `meant`.
async fn newest(journal: &Journal, mut seq: u64, meant: impl Fn(&Entry) -> bool) -> anyhow::Result<u64> {
    while seq > 0 && !journal.entry(seq).await?.is_some_and(|entry| meant(&entry)) {
        seq -= 1;
    }
    Ok(seq)
}

async fn position(pool: &PgPool, lane: Lane) -> anyhow::Result<u64> {
    let position = store::progress::position(pool, lane).await?;
    Ok(position.context("the lane has not begun")?.seq)
}

/// A history in the log, applied to the tables.
pub(crate) struct Applied {
    _postgres: Postgres,
    _nats: Nats,
    pub(crate) pool: PgPool,
    pub(crate) journal: Journal,
    /// The log's last sequence.
    pub(crate) last: u64,
}

pub(crate) async fn applied() -> anyhow::Result<Applied> {
    let (postgres, nats) = (Postgres::migrated().await?, Nats::start().await?);
    let pool = postgres.pool().await?;
    let journal = log_on(&nats).await?;
    let last = append(&journal, &records(7), &mut StdRng::seed_from_u64(7)).await?;
    work(&pool, &nats, Lane::All, last).await?;
    work(&pool, &nats, Lane::Removals, 0).await?;
    Ok(Applied {
        _postgres: postgres,
        _nats: nats,
        pool,
        journal,
        last,
    })
}

/// Deferred history of the rows as they are is written before the rows are replaced.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn history_of_ends_is_written_before_rows_are_replaced() -> anyhow::Result<()> {
    let Applied { pool, journal, .. } = &applied().await?;
    let ended = async || {
        let ended = "insert into dsync.history_backlog (directory_id, seen_after, recorded_at, occurred_at, event_id, source)
                     select directory_id, '-infinity', now(), now(), 'end', 'a' from dsync.users
                     where seen_at > gone_at limit 1;
                     insert into dsync.group_history_backlog (
                        group_id, directory_id, seen_after, recorded_at, occurred_at, event_id, source, directory_seen_after
                     )
                     select m.group_id, m.directory_id, '-infinity', now(), now(), 'end of a group', 'a', '-infinity'
                     from directory.memberships as m limit 1";
        sqlx::raw_sql(ended).execute(pool).await?;
        anyhow::ensure!(store::backlog::count(pool).await? == 2);
        Ok(())
    };
    // Whether the history of both is written.
    let told = async || {
        let told = "with told as (delete from dsync.changes where event_id like 'end%' returning event_id)
                    select count(distinct event_id) = 2 from told";
        sqlx::query_scalar::<_, bool>(told).fetch_one(pool).await
    };
    let tools = tools(pool, journal);
    tamper(pool, &mut StdRng::seed_from_u64(7)).await?;
    ended().await?;
    tools.rebuild(false).await?;
    ensure!(store::backlog::count(pool).await? == 0 && told().await?);
    ended().await?;
    tools.undo().await?;
    ensure!(store::backlog::count(pool).await? == 0 && told().await?);
    Ok(())
}

/// In a burst, a lane moves on between two queries of a build: here, while the build waits for the first one's answer.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lane_that_moves_on_while_a_build_begins_stands_in_no_other_log() -> anyhow::Result<()> {
    let (postgres, nats) = (Postgres::migrated().await?, Nats::start().await?);
    let pool = postgres.pool().await?;
    let records = records(7);
    let journal = log_on(&nats).await?;
    let last = append(&journal, &records, &mut StdRng::seed_from_u64(7)).await?;
    work(&pool, &nats, Lane::All, last).await?;
    work(&pool, &nats, Lane::Removals, 0).await?;

    let mut lane = pool.begin().await?;
    sqlx::query("lock table dsync.progress")
        .execute(&mut *lane)
        .await?;
    let tools = tools(&pool, &journal);
    let verifying = tokio::spawn(async move { tools.verify().await });
    somebody_waits(&pool, "relation = 'dsync.progress'::regclass").await?;
    let again = Record {
        id: "event_more".to_owned(),
        ..records[0].clone()
    };
    let next = append(&journal, &[again], &mut StdRng::seed_from_u64(8)).await?;
    sqlx::query("update dsync.progress set seq = $1, seq_appended_at = null where lane = 'all'")
        .bind(i64::try_from(next)?)
        .execute(&mut *lane)
        .await?;
    lane.commit().await?;
    verifying.await??;
    Ok(())
}

/// A log that was set back to an older copy and has grown since may be as long as the one that was applied, but is not
/// the same. What it lost would be missing from a build.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_built_from_a_log_with_another_entry_where_the_lane_stands() -> anyhow::Result<()> {
    let Applied { pool, journal, .. } = &applied().await?;
    let tools = tools(pool, journal);
    tools.verify().await?;
    sqlx::query("update dsync.progress set seq_appended_at = seq_appended_at - interval '1 hour'")
        .execute(pool)
        .await?;
    let before = tables(pool).await?;
    for refused in [tools.verify().await.err(), tools.rebuild(false).await.err()] {
        let refused = refused.context("it was not refused")?.to_string();
        ensure!(refused.contains("the log is not the one"), "{refused}");
    }
    ensure!(tables(pool).await? == before);
    Ok(())
}

/// A log with a hole may lack somebody's removal, so nothing is built from it alone. An erased entry is no hole.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_built_from_a_log_that_lost_entries_from_its_middle() -> anyhow::Result<()> {
    let Applied {
        pool, journal, last, ..
    } = &applied().await?;
    let tools = tools(pool, journal);
    ensure!(tools.verify().await?.complete_since.is_none());
    let (hole, taken) = (*last / 3, *last / 2);
    for seq in [hole, taken] {
        ensure!(journal.erase(seq).await?);
    }
    let created = journal.identity().await?.context("no log")?.created;
    store::losses::overwritten(pool, created, &[taken]).await?;
    let before = tables(pool).await?;
    let since = tools.verify().await?.complete_since;
    let after_it = journal
        .entry(hole + 1)
        .await?
        .context("an entry is missing")?
        .appended_at;
    ensure!(since == Some(after_it), "{since:?}");
    let refused = tools
        .rebuild(false)
        .await
        .err()
        .context("it was not refused")?
        .to_string();
    ensure!(refused.contains("--sweep"), "{refused}");
    ensure!(tables(pool).await? == before);
    store::losses::overwritten(pool, created, &[hole]).await?;
    tools.rebuild(false).await?;
    Ok(())
}

/// A directory that is connected while others are listed needs no list, and is not waited for.
#[tokio::test]
async fn a_directory_connected_meanwhile_is_not_waited_for() -> anyhow::Result<()> {
    let postgres = Postgres::migrated().await?;
    let mut connection = postgres.pool().await?.acquire().await?;
    let connect = async |connection: &mut PgConnection, id: &str| {
        sqlx::query("insert into dsync.sweeps (directory_id) values ($1)")
            .bind(id)
            .execute(connection)
            .await
    };
    connect(&mut connection, "d1").await?;
    let asked = store::swap::ask_for_lists(&mut connection).await?;
    connect(&mut connection, "d2").await?;
    ensure!(store::swap::listed(&mut connection, asked).await? == (0, 1));
    sqlx::query("update dsync.sweeps set relisted_at = now() where directory_id = 'd1'")
        .execute(&mut *connection)
        .await?;
    ensure!(store::swap::listed(&mut connection, asked).await? == (1, 1));
    Ok(())
}

/// A log that was set back gives other records the sequences of those that were applied before the rebuild. What they say of the
/// restored rows must be applied to them, too.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_a_log_was_set_back_an_undo_has_all_of_it_applied_again() -> anyhow::Result<()> {
    let (postgres, mut nats) = (Postgres::migrated().await?, Nats::start().await?);
    let (pool, journal) = (postgres.pool().await?, log_on(&nats).await?);
    let told = |id: &str, kind: &str, user: &str, second: u32| {
        let at = format!("2026-01-01T00:00:{second:02}.000Z");
        let data = json!({"id": user, "directory_id": "d1", "email": "x@example.com", "updated_at": at});
        let body = json!({"id": id, "event": kind, "created_at": at, "data": data});
        record(body.to_string().as_bytes(), Source::Webhook)
    };
    journal.append(&told("e1", "dsync.user.created", "u", 1)).await?;
    let earlier = nats.copy_of_store()?;
    for n in 2..=5 {
        let other = told(&format!("e{n}"), "dsync.user.created", &format!("v{n}"), n);
        journal.append(&other).await?;
    }
    work(&pool, &nats, Lane::Removals, 0).await?;
    work(&pool, &nats, Lane::All, 5).await?;
    sqlx::raw_sql("update dsync.users set email = 'tampered@example.com' where id = 'u'")
        .execute(&pool)
        .await?;
    let tools = tools(&pool, &journal);
    ensure!(tools.rebuild(false).await?.replaced.all == 1);

    nats.set_back(&earlier).await?;
    let gone = told("e6", "dsync.user.deleted", "u", 6);
    eventually(BOUND, async || Ok(journal.append(&gone).await?)).await?;
    until_rewound(&pool, &nats, 2).await?;
    let is_shown = "select exists (select from directory.users where id = 'u')";
    ensure!(!sqlx::query_scalar::<_, bool>(is_shown).fetch_one(&pool).await?);
    tools.undo().await?;
    work(&pool, &nats, Lane::All, 2).await?;
    ensure!(
        !sqlx::query_scalar::<_, bool>(is_shown).fetch_one(&pool).await?,
        "somebody who was removed is back"
    );
    Ok(())
}
