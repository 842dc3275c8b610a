//! The end of a large group takes effect at once. The history of its memberships is written afterwards, and is the same
//! as if it had been written at once.

use anyhow::{Context as _, ensure};
use projector::store::erase;
use projector::{backlog, store};
use schema::record::Record;
use serde_json::{Value, json};
use sqlx::{AssertSqlSafe, PgPool};
use tests::{Nats, Postgres, Program, eventually};
use time::macros::datetime;

use super::adding_up::adds_up;
use super::ends::{AT, ENDED, crowd, directory, group, told, user};
use super::{BOUND, append, clear, log_on, rows, text, write};

/// Between `AT` and `ENDED`.
const MEANWHILE: &str = "2026-01-01T12:00:00Z";
const LATER: &str = "2026-01-03T00:00:00Z";

fn end_of_group(directory: &str) -> Record {
    told(
        &format!("{directory}_group_end"),
        "dsync.group.deleted",
        ENDED,
        group(directory),
    )
}

fn member(event: &str, kind: &str, at: &str, user: &Value) -> Record {
    let data = json!({"directory_id": "d1", "user": user, "group": group("d1")});
    told(event, kind, at, data)
}

fn with(mut object: Value, changes: &[(&str, &str)]) -> Value {
    for (name, value) in changes {
        object[*name] = json!(value);
    }
    object
}

/// Describes the history of the end of the group in `directory`: the number of rows, of how many moments and tenants
/// they are, and whose memberships.
async fn told_of_end(pool: &PgPool, directory: &str) -> anyhow::Result<String> {
    let asked = format!(
        "select count(*) || ' of ' || count(distinct (recorded_at, organization_id)) || ':'
            || coalesce(string_agg(' ' || split_part(entity_id, '/', 2), '' order by entity_id) filter (where entity = 'membership'), '')
         from directory.changes where event_id = '{directory}_group_end' and operation = 'deleted'"
    );
    text(pool, asked).await?.context("the query returned no row")
}

/// The group and its memberships, all at one moment.
const ALL: &str = "3 of 1: d1_u1 d1_u2";

async fn with_backlog(pool: &PgPool) -> anyhow::Result<()> {
    write(pool, &directory("d1")).await?;
    write(pool, &[end_of_group("d1")]).await?;
    let told = told_of_end(pool, "d1").await?;
    ensure!(told == "1 of 1:", "{told}");
    ensure!(store::backlog::count(pool).await? == 1);
    Ok(())
}

/// Everything that may happen to a group that has ended, to its members and to its directory.
fn whatever_else() -> Vec<Record> {
    let (one, two) = (user("d1_u1", "d1"), user("d1_u2", "d1"));
    let other = |object: Value| with(object, &[("email", "other@example.com"), ("updated_at", LATER)]);
    let elsewhere = [("directory_id", "d2"), ("updated_at", LATER)];
    let back = [("updated_at", LATER)];
    let own = json!({"id": "d1", "organization_id": "org_other", "state": "linked", "updated_at": LATER});
    vec![
        told("updated", "dsync.user.updated", LATER, other(one.clone())),
        told("deleted", "dsync.user.deleted", LATER, two.clone()),
        told("long_gone", "dsync.user.deleted", MEANWHILE, one.clone()),
        told(
            "user_moved",
            "dsync.user.updated",
            LATER,
            with(two.clone(), &elsewhere),
        ),
        member("removed", "dsync.group.user_removed", LATER, &two),
        member("long_removed", "dsync.group.user_removed", MEANWHILE, &one),
        member("late", "dsync.group.user_added", MEANWHILE, &user("d1_u3", "d1")),
        member("latest", "dsync.group.user_added", LATER, &user("d1_u1", "d1")),
        member(
            "unknown",
            "dsync.group.user_added",
            MEANWHILE,
            &user("d1_u0", "d1"),
        ),
        told("back", "dsync.group.updated", LATER, with(group("d1"), &back)),
        told("gone_again", "dsync.group.deleted", LATER, group("d1")),
        told(
            "group_moved",
            "dsync.group.updated",
            LATER,
            with(group("d1"), &elsewhere),
        ),
        told("directory_end", "dsync.deleted", LATER, json!({"id": "d1"})),
        told("sold", "dsync.activated", LATER, own),
    ]
}

/// However much of the backlog is written, history has the end of each membership once, as it was last shown, and past
/// moments look as they did.
#[tokio::test]
async fn what_changes_meanwhile_is_told_as_it_was_shown() -> anyhow::Result<()> {
    let postgres = Postgres::deferring().await?;
    let pool = postgres.pool().await?;
    for (steps, record) in (0..=3).flat_map(|steps| whatever_else().into_iter().map(move |it| (steps, it))) {
        let case = format!("{steps} steps, then {}", record.id);
        clear(&pool).await?;
        write(&pool, &directory("d1")).await?;
        let before = text(&pool, "select clock_timestamp()").await?.unwrap();
        write(&pool, &[end_of_group("d1")]).await?;
        let members_then = async || {
            let then = format!("select user_id from directory.memberships_at('{before}')");
            anyhow::Ok(rows(&pool, then).await?.len())
        };
        // Two memberships take a step each, and another step shows that there are no more.
        for step in 0..steps {
            ensure!(members_then().await? == 2, "{case}: at step {step}");
            ensure!(backlog::write_listed(&pool, 1, 1).await?, "{case}: step {step}");
        }
        ensure!(
            (store::backlog::count(&pool).await? == 0) == (steps == 3),
            "{case}"
        );
        write(&pool, std::slice::from_ref(&record)).await?;
        ensure!(members_then().await? == 2, "{case}: before it is written");
        backlog::drain(&pool).await?;
        let told = told_of_end(&pool, "d1").await?;
        ensure!(told == ALL, "{case}: {told}");
        ensure!(members_then().await? == 2, "{case}: after it is written");
        adds_up(&pool).await.context(case)?;
    }
    Ok(())
}

/// As when a group's members are removed one by one, and then the group, all in one batch.
#[tokio::test]
async fn what_changes_in_the_same_transaction_is_told_too() -> anyhow::Result<()> {
    let postgres = Postgres::deferring().await?;
    let pool = postgres.pool().await?;
    for record in whatever_else() {
        let case = record.id.clone();
        clear(&pool).await?;
        write(&pool, &directory("d1")).await?;
        write(&pool, &[record, end_of_group("d1")]).await?;
        backlog::drain(&pool).await?;
        adds_up(&pool).await.context(case)?;
    }
    Ok(())
}

/// The second time, only what was shown again is written.
#[tokio::test]
async fn a_group_that_ends_twice_is_told_twice() -> anyhow::Result<()> {
    let postgres = Postgres::deferring().await?;
    let pool = postgres.pool().await?;
    with_backlog(&pool).await?;
    let back = with(group("d1"), &[("updated_at", LATER)]);
    let third = member("third", "dsync.group.user_added", LATER, &user("d1_u3", "d1"));
    write(&pool, &[told("back", "dsync.group.updated", LATER, back), third]).await?;
    ensure!(told_of_end(&pool, "d1").await? == ALL);
    let again = told(
        "again",
        "dsync.group.deleted",
        "2026-01-04T00:00:00Z",
        group("d1"),
    );
    write(&pool, &[again]).await?;
    backlog::drain(&pool).await?;
    let second = "select string_agg(entity_id, ' ' order by entity_id) from directory.changes where event_id = 'again'";
    let second = text(&pool, second).await?;
    ensure!(second.as_deref() == Some("g_d1 g_d1/d1_u3"), "{second:?}");
    ensure!(told_of_end(&pool, "d1").await? == ALL);
    adds_up(&pool).await.map(drop)
}

#[tokio::test]
async fn of_who_is_erased_meanwhile_history_tells_the_end() -> anyhow::Result<()> {
    let postgres = Postgres::deferring().await?;
    let pool = postgres.pool().await?;
    with_backlog(&pool).await?;
    let erased = erase::forget(&pool, "d1_u2", true, datetime!(2026-06-01 00:00 UTC)).await?;
    ensure!(matches!(erased, erase::Outcome::Forgotten(_)), "{erased:?}");
    ensure!(told_of_end(&pool, "d1").await? == "2 of 1: d1_u2");
    backlog::drain(&pool).await?;
    ensure!(told_of_end(&pool, "d1").await? == ALL);
    adds_up(&pool).await.map(drop)
}

/// During an upgrade, some programs do not know of this backlog. Before such a program changes anything, its deferred
/// history is written. A group that the program ends has its history at once.
#[tokio::test]
async fn a_program_from_before_neither_makes_a_backlog_nor_spoils_one() -> anyhow::Result<()> {
    let postgres = Postgres::deferring().await?;
    let pool = postgres.pool().await?;
    let as_before = async |enter: &str, statement: &str| {
        let mut transaction = pool.begin().await?;
        for statement in [
            format!("select dsync.{enter}(array['d1'], '{{}}')"),
            statement.to_owned(),
        ] {
            sqlx::query(AssertSqlSafe(statement))
                .execute(&mut *transaction)
                .await?;
        }
        anyhow::Ok(transaction.commit().await?)
    };
    for enter in ["enter", "entering"] {
        clear(&pool).await?;
        with_backlog(&pool).await?;
        as_before(
            enter,
            "update users set gone_at = '2026-01-04' where id = 'd1_u1'",
        )
        .await?;
        let told = told_of_end(&pool, "d1").await?;
        ensure!(told == ALL, "{enter}: {told}");

        clear(&pool).await?;
        write(&pool, &directory("d1")).await?;
        let end = "update groups set gone_at = '2026-01-02', gone_event = 'd1_group_end', gone_source = 'a'";
        as_before(enter, end).await?;
        let told = told_of_end(&pool, "d1").await?;
        ensure!(told == ALL, "{enter}: {told}");
        adds_up(&pool).await?;
    }
    Ok(())
}

/// Erasures and rebuilds by programs of an earlier version do not spoil the backlog, either.
#[tokio::test]
async fn what_programs_from_before_do_besides_spoils_no_backlog_either() -> anyhow::Result<()> {
    let postgres = Postgres::deferring().await?;
    let pool = postgres.pool().await?;
    with_backlog(&pool).await?;
    let early = "select dsync.write_history_early(array['d1_u2'], array[''], '{}', '{}')";
    sqlx::query(early).execute(&pool).await?;
    ensure!(told_of_end(&pool, "d1").await? == "2 of 1: d1_u2");
    // A rebuild without history brings the group back, as if it had never ended.
    let mut rebuilding = pool.begin().await?;
    for statement in [
        "set local dsync.history = off",
        "update dsync.groups set gone_at = '-infinity' where id = 'g_d1'",
    ] {
        sqlx::query(statement).execute(&mut *rebuilding).await?;
    }
    rebuilding.commit().await?;
    let again = told("again", "dsync.group.deleted", LATER, group("d1"));
    write(&pool, &[again]).await?;
    ensure!(told_of_end(&pool, "d1").await? == ALL);
    backlog::drain(&pool).await?;
    let second = "select count(*) from directory.changes where event_id = 'again' and entity = 'membership'";
    ensure!(text(&pool, second).await?.as_deref() == Some("2"));
    Ok(())
}

/// While history is still to be written, an event that names a directory other than its user's concerns both
/// directories. So it waits while a group in the user's directory ends.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_moves_while_a_group_ends_waits_for_that() -> anyhow::Result<()> {
    let postgres = Postgres::deferring().await?;
    let pool = postgres.pool().await?;
    write(&pool, &directory("d1")).await?;
    write(&pool, &directory("d2")).await?;
    write(&pool, &[end_of_group("d2")]).await?;
    let mut ending = pool.begin().await?;
    for statement in [
        "select dsync.entering_deferring_groups(array['d1'], '{}', '{}')",
        "update groups set gone_at = '2026-01-02', gone_event = 'd1_group_end', gone_source = 'a' where id = 'g_d1'",
    ] {
        sqlx::query(statement).execute(&mut *ending).await?;
    }
    let elsewhere = with(
        user("d1_u1", "d1"),
        &[("directory_id", "d2"), ("updated_at", LATER)],
    );
    let moving = tokio::spawn({
        let pool = pool.clone();
        async move { write(&pool, &[told("moved", "dsync.user.updated", LATER, elsewhere)]).await }
    });
    eventually(BOUND, async || {
        let waits = "select count(*) from pg_locks where locktype = 'advisory' and not granted";
        ensure!(text(&pool, waits).await?.as_deref() == Some("1"), "nobody waits");
        Ok(())
    })
    .await?;
    ending.commit().await?;
    moving.await??;
    backlog::drain(&pool).await?;
    let told = told_of_end(&pool, "d1").await?;
    ensure!(told == ALL, "{told}");
    adds_up(&pool).await.map(drop)
}

/// If a directory's organization is unknown, no tenant could see its backlog, and the past would look different to
/// tenants. So its history is written at once.
#[tokio::test]
async fn in_a_directory_of_nobody_a_group_leaves_nothing_for_later() -> anyhow::Result<()> {
    let postgres = Postgres::deferring().await?;
    let pool = postgres.pool().await?;
    for known in [0, 1] {
        clear(&pool).await?;
        let mut all = directory("d1");
        all[0] = told(
            "d1_1",
            "dsync.activated",
            AT,
            json!({"id": "d1", "state": "linked", "updated_at": AT}),
        );
        write(&pool, &all[1 - known..]).await?;
        write(&pool, &[end_of_group("d1")]).await?;
        ensure!(store::backlog::count(&pool).await? == 0, "known {known}");
        ensure!(told_of_end(&pool, "d1").await? == ALL, "known {known}");
        adds_up(&pool).await?;
    }
    Ok(())
}

/// The history of a small group's end is written with it in one transaction, as for everything else.
#[tokio::test]
async fn only_a_large_group_leaves_history_for_later() -> anyhow::Result<()> {
    let postgres = Postgres::migrated().await?;
    let pool = postgres.pool().await?;
    write(&pool, &directory("d1")).await?;
    write(&pool, &directory("d2")).await?;
    crowd(&pool, "g_d2", 999).await?;
    write(&pool, &[end_of_group("d1"), end_of_group("d2")]).await?;
    ensure!(told_of_end(&pool, "d1").await? == ALL);
    ensure!(told_of_end(&pool, "d2").await? == "1 of 1:");
    backlog::drain(&pool).await?;
    ensure!(told_of_end(&pool, "d2").await? == "3 of 1: d2_u1 d2_u2");
    adds_up(&pool).await.map(drop)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn access_ends_before_history_is_written() -> anyhow::Result<()> {
    let (postgres, nats) = tokio::try_join!(Postgres::deferring(), Nats::start())?;
    let (pool, journal) = (postgres.pool().await?, log_on(&nats).await?);
    let mut writing = pool.begin().await?;
    sqlx::query("select pg_advisory_xact_lock(hashtext('dsync history backlog'), 0)")
        .execute(&mut *writing)
        .await?;
    let _projector = Program::new("dsync-projector")
        .env("NATS_URL", nats.url())
        .env("DATABASE_URL", postgres.url())
        .start()
        .await?;
    let shown = async |memberships: usize| {
        eventually(BOUND, async || {
            let found = rows(&pool, "select user_id from directory.memberships")
                .await?
                .len();
            ensure!(found == memberships, "{found} memberships, not {memberships}");
            Ok(())
        })
        .await
    };
    append(&journal, &directory("d1")).await?;
    shown(2).await?;
    append(&journal, &[end_of_group("d1")]).await?;
    shown(0).await?;
    ensure!(told_of_end(&pool, "d1").await? == "1 of 1:");
    writing.rollback().await?;
    eventually(BOUND, async || {
        let told = told_of_end(&pool, "d1").await?;
        ensure!(told == ALL && store::backlog::count(&pool).await? == 0, "{told}");
        Ok(())
    })
    .await?;
    adds_up(&pool).await.map(drop)
}
