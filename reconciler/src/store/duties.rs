//! The duties that one reconciler performs for all: the catch-up and the list of directories. Each has a row in
//! `dsync.duties`.
//!
//! A lease that ends later than any can, and work that was done in the future, were written while the database's clock
//! was ahead, and delay nothing.

use std::time::Duration;

use schema::timestamp::Timestamp;
use sqlx::PgPool;
use time::OffsetDateTime;

use super::interval;

/// A duty.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Duty {
    /// Reading the Events API.
    CatchUp,
    /// Reading the list of directories.
    Directories,
}

impl Duty {
    const fn as_str(self) -> &'static str {
        match self {
            Self::CatchUp => "catch_up",
            Self::Directories => "directories",
        }
    }
}

/// Takes or renews a duty's lease. `false`: another reconciler holds it.
pub async fn hold(pool: &PgPool, duty: Duty, holder: &str, lease: Duration) -> sqlx::Result<bool> {
    let held = sqlx::query!(
        r#"
        update dsync.duties set holder = $2, held_until = now() + $3
        where duty = $1
            and (holder is null or holder = $2 or held_until < now() or held_until > now() + 2 * $3::interval)
        "#,
        duty.as_str(),
        holder,
        interval(lease),
    )
    .execute(pool)
    .await?;
    Ok(held.rows_affected() == 1)
}

/// Releases a duty's lease.
pub async fn release(pool: &PgPool, duty: Duty, holder: &str) -> sqlx::Result<()> {
    sqlx::query!(
        "update dsync.duties set holder = null, held_until = null where duty = $1 and holder = $2",
        duty.as_str(),
        holder,
    )
    .execute(pool)
    .await?;
    Ok(())
}

/// Takes the lease of the list of directories, if the list was not read for `every`, or not since the log lost entries.
/// Returns when that was, by the database's clock.
pub async fn claim_directories(
    pool: &PgPool,
    holder: &str,
    lease: Duration,
    every: Duration,
) -> sqlx::Result<Option<OffsetDateTime>> {
    sqlx::query_scalar!(
        r#"
        update dsync.duties set holder = $1, held_until = now() + $2
        where duty = 'directories'
            and (holder is null or holder = $1 or held_until < now() or held_until > now() + 2 * $2::interval)
            and (
                done_at is null
                or done_at + $3 <= now() or done_at > now()
                or done_at <= (select max(noticed_at) from dsync.rewinds)
            )
        returning now() as "now!"
        "#,
        holder,
        interval(lease),
        interval(every),
    )
    .fetch_optional(pool)
    .await
}

/// Records that a duty that began at `began` was completed.
pub async fn done(pool: &PgPool, duty: Duty, began: OffsetDateTime) -> sqlx::Result<()> {
    sqlx::query!(
        "update dsync.duties set done_at = $2 where duty = $1",
        duty.as_str(),
        began,
    )
    .execute(pool)
    .await?;
    Ok(())
}

/// The position of the catch-up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Position {
    /// Everything that happened before it has been read, except what was still held back then. `None`: it never began.
    pub at: Option<Timestamp>,
    /// The id of the newest row of `dsync.rewinds` (entries that the log lost) after which the catch-up started over.
    pub rewind: i64,
}

/// The position of the catch-up and, if the log lost entries since it last started over, the id of the rewind to
/// acknowledge.
pub async fn position(pool: &PgPool) -> sqlx::Result<(Position, Option<i64>)> {
    let row = sqlx::query!(
        r#"
        select position, rewind_id, (select max(r.id) from dsync.rewinds as r where r.id > rewind_id) as rewound
        from dsync.duties where duty = 'catch_up'
        "#,
    )
    .fetch_one(pool)
    .await?;
    let position = Position {
        at: row.position.map(Into::into),
        rewind: row.rewind_id,
    };
    Ok((position, row.rewound))
}

/// Moves the catch-up from the position that `holder` saw, if `holder` still has the lease. `false`: another reconciler
/// has the lease now, or had it meanwhile and moved the position.
pub async fn advance(pool: &PgPool, holder: &str, from: Position, to: Position) -> sqlx::Result<bool> {
    let moved = sqlx::query!(
        r#"
        update dsync.duties
        set position = $4, rewind_id = $5, done_at = now()
        where duty = 'catch_up' and holder = $1 and position is not distinct from $2 and rewind_id = $3
        "#,
        holder,
        from.at.map(OffsetDateTime::from),
        from.rewind,
        to.at.map(OffsetDateTime::from),
        to.rewind,
    )
    .execute(pool)
    .await?;
    Ok(moved.rows_affected() == 1)
}
