//! The subcommand `status`: the log, the catch-up, the sweeps, and what waits: to be read again, or for a person.

use journal::Journal;
use service::postgres::described;
use service::status::{Part, Screen, Told};
use sqlx::PgPool;
use time::OffsetDateTime;

use crate::store::overview::{self, Waiting};

/// Directories that are listed unless all are wanted.
const DIRECTORIES: i64 = 15;

/// Looks at everything.
pub async fn gather(pool: &PgPool, journal: &Journal, now: OffsetDateTime, all: bool) -> Screen {
    let database = async {
        let read = read(pool, now, all).await;
        read.map_err(|error| described(&error).to_string())
    };
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
    let mut connection = pool.acquire().await?;
    let moment = |at| Told::moment(at, now);
    let working = |holder: Option<String>, until: Option<OffsetDateTime>| {
        Told::text(holder.filter(|_| until.is_some_and(|until| until > now)))
    };
    let duties = overview::duties(&mut connection).await?.into_iter().map(|duty| {
        vec![
            Told::text(Some(duty.duty)),
            moment(duty.position),
            moment(duty.done_at),
            working(duty.holder, duty.held_until),
        ]
    });
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
    } = overview::waiting(&mut connection).await?;
    let count = |count: i64| Told::count(count.unsigned_abs());
    let part = Part::new("database")
        .fact("directories", count(directories))
        .fact("never_swept", count(never_swept))
        .fact("oldest_sweep", moment(oldest))
        .fact("being_swept", count(running))
        .fact("failing", count(failing))
        .fact("to_be_listed_whole", count(to_list))
        .fact("to_be_read_again", count(rereads))
        .fact("in_doubt", count(checks))
        .fact("deletions_held", count(held))
        .table(
            "duties",
            &["duty", "read_until", "done", "held_by"],
            duties.collect(),
            0,
        );
    let limit = if all { i64::MAX } else { DIRECTORIES };
    let held = overview::held(&mut connection, limit)
        .await?
        .into_iter()
        .map(|one| {
            vec![
                Told::text(Some(format!("dsync-reconciler approve {}", one.directory_id))),
                count(one.deletions),
                moment(Some(one.since)),
            ]
        });
    let part = part.table(
        "held",
        &["to let deletions through", "count", "held"],
        held.collect(),
        0,
    );
    let sweeps = overview::sweeps(&mut connection, limit).await?;
    let more = directories.unsigned_abs().saturating_sub(sweeps.len() as u64);
    let rows = sweeps.into_iter().map(|one| {
        vec![
            Told::text(Some(one.directory_id)),
            moment(one.swept_at),
            one.drift.map_or(Told::text(None::<String>), count),
            count(i64::from(one.failures)),
            moment(one.retry_at.filter(|at| *at > now)),
        ]
    });
    let columns = &["directory", "swept", "drift", "failures", "retry"];
    Ok(part.table("sweeps", columns, rows.collect(), more))
}
