//! The subcommand `status`: the log, the lanes, what waits for a person, and every directory's freshness.
//!
//! All of it is cheap enough to query every two seconds with millions of rows in the tables: row counts are the planner's
//! estimates, whatever waits is counted up to a limit, and everything else is one row per lane, directory or rebuild.

use std::time::Duration;

use journal::Journal;
use schema::timestamp::Timestamp;
use service::postgres::{self, described};
use service::status::{Part, Screen, Told};
use sqlx::{Connection as _, PgConnection, PgPool};
use time::OffsetDateTime;

use crate::lane::Lane;
use crate::store::overview::{self, COUNTED, Totals};

/// How long the part about the lanes waits for the log's end.
const SHORTLY: Duration = Duration::from_secs(1);
/// How many directories are listed, unless all are requested.
const DIRECTORIES: i64 = 15;

/// Gathers the whole screen.
pub async fn gather(pool: &PgPool, journal: &Journal, now: OffsetDateTime, all: bool) -> Screen {
    let database = async { read(pool, journal, now, all).await.map_err(described) };
    let database = Box::pin(Part::gathered("database", database));
    let (log, database) = tokio::join!(Box::pin(journal::status(journal, now)), database);
    Screen::new(
        "dsync-projector",
        env!("CARGO_PKG_VERSION"),
        now,
        vec![log, database],
    )
}

async fn read(pool: &PgPool, journal: &Journal, now: OffsetDateTime, all: bool) -> sqlx::Result<Part> {
    let mut connection = postgres::look(pool).await?;
    let pending = match migrations::pending(&mut connection).await {
        Ok(pending) => pending,
        Err(migrations::Error::Database(error)) => return Err(error),
        Err(_) => None,
    };
    let schema = match pending {
        Some(0) => "up to date",
        Some(_) => "behind this program: run `dsync-projector migrate`",
        None => "not created yet: run `dsync-projector migrate`",
    };
    let mut part = Part::new("database").fact("schema", Told::text(Some(schema)));
    if pending == Some(0) {
        let totals = totals(&mut connection, now).await.map_err(described);
        let dead = dead_letters(&mut connection).await.map_err(described);
        let lanes = lanes(&mut connection, journal, now).await.map_err(described);
        let directories = directories(&mut connection, now, all).await.map_err(described);
        part = part
            .with("totals", totals)
            .with("dead letters", dead)
            .with("lanes", lanes)
            .with("directories", directories);
    }
    connection.close().await?;
    Ok(part)
}

/// About how many rows there are, and when the log was last rewound and the projection last rebuilt.
async fn totals(connection: &mut PgConnection, now: OffsetDateTime) -> sqlx::Result<Part> {
    let Totals {
        users,
        memberships,
        changes,
        history_backlog,
        rewound_at,
        rebuilt_at,
        rebuilt_rows,
    } = overview::totals(connection).await?;
    let moment = |at| Told::moment(at, now);
    Ok(Part::new("totals")
        .fact("users_about", Told::count(users.unsigned_abs()))
        .fact("memberships_about", Told::count(memberships.unsigned_abs()))
        .fact("changes_about", Told::count(changes.unsigned_abs()))
        .fact("history_backlog", Told::count(history_backlog.unsigned_abs()))
        .fact("log_rewound", moment(rewound_at))
        .fact("rebuilt", moment(rebuilt_at))
        .fact(
            "rows_rebuilt",
            rebuilt_rows.map_or(Told::text(None::<String>), |rows| {
                Told::count(rows.unsigned_abs())
            }),
        ))
}

async fn dead_letters(connection: &mut PgConnection) -> sqlx::Result<Part> {
    let dead = overview::dead_letters(connection).await?;
    Ok(Part::new("dead letters").fact("dead_letters", counted(dead)))
}

fn counted(count: i64) -> Told {
    Told::counted(count.unsigned_abs(), COUNTED.unsigned_abs())
}

/// Both lanes, and how far they are behind the log's end.
async fn lanes(connection: &mut PgConnection, journal: &Journal, now: OffsetDateTime) -> sqlx::Result<Part> {
    // An unreachable log is reported in a part of its own; this part does not wait for it.
    let end = tokio::time::timeout(SHORTLY, journal.identity()).await;
    let end = end.ok().and_then(Result::ok).flatten();
    let lanes = overview::lanes(connection).await?.into_iter().map(|lane| {
        // For the other lane this is unknown: it stands at its last removal, however long ago that was.
        let same = end.filter(|log| {
            lane.lane == Lane::All.as_str() && log.created == Timestamp::from(lane.stream_created)
        });
        let behind = same.map(|log| log.last_seq.saturating_sub(lane.seq.unsigned_abs()));
        vec![
            Told::text(Some(lane.lane)),
            Told::count(lane.seq.unsigned_abs()),
            behind.map_or(Told::text(None::<String>), Told::count),
            Told::text(
                lane.holder
                    .filter(|_| lane.held_until.is_some_and(|until| until > now)),
            ),
            Told::moment(Some(lane.advanced_at), now),
        ]
    });
    Ok(Part::new("lanes").table(
        "lanes",
        &["lane", "position", "behind", "held_by", "advanced"],
        lanes.collect(),
        0,
    ))
}

/// Every directory's freshness, the most worrying first.
async fn directories(connection: &mut PgConnection, now: OffsetDateTime, all: bool) -> sqlx::Result<Part> {
    let moment = |at| Told::moment(at, now);
    let limit = if all { i64::MAX } else { DIRECTORIES };
    let directories = overview::directories(connection, limit).await?;
    let count = directories.first().map_or(0, |one| one.of);
    let more = count.unsigned_abs().saturating_sub(directories.len() as u64);
    let rows = directories.into_iter().map(|one| {
        vec![
            Told::text(Some(one.directory_id)),
            moment(one.last_event_at),
            moment(one.last_swept_at),
            one.last_drift.map_or(Told::text(None::<String>), |drift| {
                Told::count(drift.unsigned_abs())
            }),
            counted(one.held_deletions),
        ]
    });
    let columns = &["directory", "event", "swept", "drift", "held"];
    Ok(Part::new("directories").table("directories", columns, rows.collect(), more))
}
