//! The subcommand `status`: the log, the catch-up, the sweeps, and what waits to be reread or for a person.

use journal::Journal;
use service::postgres::{self, described};
use service::status::{Part, Screen, Told};
use sqlx::{Connection as _, PgConnection, PgPool};
use time::OffsetDateTime;

use crate::store::overview::{self, COUNTED, DOUBTS_COUNTED, Waiting};

/// How many directories are listed without `--all`.
const DIRECTORIES: i64 = 15;

/// Gathers everything that the screen shows.
pub async fn gather(pool: &PgPool, journal: &Journal, now: OffsetDateTime, all: bool) -> Screen {
    let database = async { read(pool, now, all).await.map_err(described) };
    let database = Box::pin(Part::gathered("database", database));
    let (log, database) = tokio::join!(Box::pin(journal::status(journal, now)), database);
    Screen::new(
        "dsync-reconciler",
        env!("CARGO_PKG_VERSION"),
        now,
        vec![log, database],
    )
}

async fn read(pool: &PgPool, now: OffsetDateTime, all: bool) -> sqlx::Result<Part> {
    let mut connection = postgres::look(pool).await?;
    let limit = if all { i64::MAX } else { DIRECTORIES };
    let waiting = waiting(&mut connection, now).await.map_err(described);
    let duties = duties(&mut connection, now).await.map_err(described);
    let held = held(&mut connection, now, limit).await.map_err(described);
    let sweeps = sweeps(&mut connection, now, limit).await.map_err(described);
    connection.close().await?;
    Ok(Part::new("database")
        .with("what waits", waiting)
        .with("duties", duties)
        .with("held deletions", held)
        .with("sweeps", sweeps))
}

/// How much is waiting, by kind.
async fn waiting(connection: &mut PgConnection, now: OffsetDateTime) -> sqlx::Result<Part> {
    let Waiting {
        directories,
        never_swept,
        oldest,
        running,
        failing,
        to_list,
        rereads,
        checks,
        held,
    } = overview::waiting(connection).await?;
    Ok(Part::new("what waits")
        .fact("directories", count(directories))
        .fact("never_swept", count(never_swept))
        .fact("oldest_sweep", Told::moment(oldest, now))
        .fact("being_swept", count(running))
        .fact("failing", count(failing))
        .fact("to_be_listed_whole", count(to_list))
        .fact("to_be_read_again", counted(rereads, COUNTED))
        .fact("in_doubt", counted(checks, DOUBTS_COUNTED))
        .fact("deletions_held", counted(held, COUNTED)))
}

/// The duties that one reconciler performs for all.
async fn duties(connection: &mut PgConnection, now: OffsetDateTime) -> sqlx::Result<Part> {
    let working = |holder: Option<String>, until: Option<OffsetDateTime>| {
        Told::text(holder.filter(|_| until.is_some_and(|until| until > now)))
    };
    let duties = overview::duties(connection).await?.into_iter().map(|duty| {
        vec![
            Told::text(Some(duty.duty)),
            Told::moment(duty.position, now),
            Told::moment(duty.done_at, now),
            working(duty.holder, duty.held_until),
        ]
    });
    let columns = &["duty", "read_until", "done", "held_by"];
    Ok(Part::new("duties").table("duties", columns, duties.collect(), 0))
}

/// The directories with held deletions, and the command that approves them.
async fn held(connection: &mut PgConnection, now: OffsetDateTime, limit: i64) -> sqlx::Result<Part> {
    let held = overview::held(connection, limit).await?;
    let more = left_out(held.first().map(|one| one.of), held.len());
    let rows = held.into_iter().map(|one| {
        vec![
            Told::text(Some(format!("dsync-reconciler approve {}", one.directory_id))),
            counted(one.deletions, COUNTED),
            Told::moment(Some(one.since), now),
        ]
    });
    let columns = &["to let deletions through", "count", "held"];
    Ok(Part::new("held deletions").table("held", columns, rows.collect(), more))
}

/// Every directory's sweeps, the most worrying first.
async fn sweeps(connection: &mut PgConnection, now: OffsetDateTime, limit: i64) -> sqlx::Result<Part> {
    let sweeps = overview::sweeps(connection, limit).await?;
    let more = left_out(sweeps.first().map(|one| one.of), sweeps.len());
    let rows = sweeps.into_iter().map(|one| {
        vec![
            Told::text(Some(one.directory_id)),
            Told::moment(one.swept_at, now),
            one.drift.map_or(Told::text(None::<String>), count),
            count(i64::from(one.failures)),
            Told::moment(one.retry_at.filter(|at| *at > now), now),
        ]
    });
    let columns = &["directory", "swept", "drift", "failures", "retry"];
    Ok(Part::new("sweeps").table("sweeps", columns, rows.collect(), more))
}

fn count(count: i64) -> Told {
    Told::count(count.unsigned_abs())
}

fn counted(count: i64, most: i64) -> Told {
    Told::counted(count.unsigned_abs(), most.unsigned_abs())
}

/// How many of `of` rows are not shown.
fn left_out(of: Option<i64>, shown: usize) -> u64 {
    of.unwrap_or(0).unsigned_abs().saturating_sub(shown as u64)
}
