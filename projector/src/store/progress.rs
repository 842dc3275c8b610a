//! How far each lane has read the log: one row per lane, moved only by compare-and-set.
//!
//! The position is exactly what has been applied, because it moves in the transaction that applies. The lease in the same
//! row is not a lock: a holder that lost it can do no harm, because its compare-and-set fails. The statement that moves the
//! position, with which every batch ends, also records when something was last applied in each directory.

use std::collections::BTreeMap;
use std::time::Duration;

use journal::Identity;
use schema::timestamp::Timestamp;
use sqlx::postgres::PgExecutor;
use sqlx::postgres::types::PgInterval;
use sqlx::{PgConnection, PgPool};
use time::OffsetDateTime;

use super::{erased, losses, seq};
use crate::lane::Lane;

/// Where a lane stands, and in which log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Position {
    /// When the broker created the stream.
    pub stream_created: Timestamp,
    /// The last sequence that was applied; 0 before the first.
    pub seq: u64,
    /// When the broker stored that message.
    pub seq_appended_at: Option<Timestamp>,
}

/// Creates the row of each lane that has none yet, at the beginning of the log.
pub async fn begin(pool: &PgPool, stream: &str, created: Timestamp) -> sqlx::Result<()> {
    sqlx::query!(
        r#"
        insert into dsync.progress (lane, stream, stream_created)
        values ('all', $1, $2), ('removals', $1, $2)
        on conflict (lane) do nothing
        "#,
        stream,
        OffsetDateTime::from(created),
    )
    .execute(pool)
    .await?;
    Ok(())
}

/// Where `lane` stands, if it has begun.
pub async fn position(executor: impl PgExecutor<'_>, lane: Lane) -> sqlx::Result<Option<Position>> {
    let row = sqlx::query!(
        "select stream_created, seq, seq_appended_at from dsync.progress where lane = $1",
        lane.as_str(),
    )
    .fetch_optional(executor)
    .await?;
    Ok(row.map(|row| at(row.stream_created, row.seq, row.seq_appended_at)))
}

/// Takes or renews the lease of `lane` for `holder`, and returns where the lane stands; `None` while another holds it.
pub async fn hold(
    executor: impl PgExecutor<'_>,
    lane: Lane,
    holder: &str,
    lease: Duration,
) -> sqlx::Result<Option<Position>> {
    let row = sqlx::query!(
        r#"
        update dsync.progress set holder = $2, held_until = now() + $3
        where lane = $1 and (holder is null or holder = $2 or held_until < now())
        returning stream_created, seq, seq_appended_at
        "#,
        lane.as_str(),
        holder,
        interval(lease),
    )
    .fetch_optional(executor)
    .await?;
    Ok(row.map(|row| at(row.stream_created, row.seq, row.seq_appended_at)))
}

/// Releases the lease of `lane`, so that another projector need not wait until it expires.
pub async fn release(pool: &PgPool, lane: Lane, holder: &str) -> sqlx::Result<()> {
    sqlx::query!(
        "update dsync.progress set holder = null, held_until = null where lane = $1 and holder = $2",
        lane.as_str(),
        holder,
    )
    .execute(pool)
    .await?;
    Ok(())
}

/// When something was last applied in each directory. Not part of the projection: it says when, not what.
#[derive(Debug)]
pub struct News {
    /// By directory id, the time of the newest event applied (`created_at`, by WorkOS's clock).
    pub newest: BTreeMap<String, Timestamp>,
    /// When they were applied, by this machine's clock.
    pub applied_at: OffsetDateTime,
}

impl News {
    /// Adds an event of `directory` that happened `at`.
    pub fn add(&mut self, directory: &str, at: Timestamp) {
        match self.newest.get_mut(directory) {
            Some(newest) => *newest = at.max(*newest),
            None => {
                self.newest.insert(directory.to_owned(), at);
            }
        }
    }
}

/// Moves `lane` from `from` to `to` if it still stands at `from`, records the `news`, and renews the lease if `holder` still
/// has it. Returns the sequence up to which the other lane has applied its records of this log; `None` if another projector
/// was faster: roll the batch back.
pub async fn advance(
    connection: &mut PgConnection,
    lane: Lane,
    (from, to): (Position, Position),
    (holder, lease): (&str, Duration),
    news: &News,
) -> sqlx::Result<Option<u64>> {
    let directories: Vec<&str> = news.newest.keys().map(String::as_str).collect();
    let newest: Vec<OffsetDateTime> = news.newest.values().map(|at| (*at).into()).collect();
    // One statement, and so one round trip: a removal waits for five of them at least.
    let moved = sqlx::query!(
        r#"
        with noted as (
            insert into dsync.directory_activity as a (directory_id, last_event_at, last_applied_at)
            select x.id, x.at, $10 from unnest($8::text[], $9::timestamptz[]) as x (id, at)
            order by x.id collate "C"
            on conflict (directory_id) do update set
                last_event_at = greatest(a.last_event_at, excluded.last_event_at),
                last_applied_at = greatest(a.last_applied_at, excluded.last_applied_at)
        )
        update dsync.progress
        set seq = $4, seq_appended_at = $5, advanced_at = now(),
            held_until = case when holder = $6 then now() + $7 else held_until end
        where lane = $1 and stream_created = $2 and seq = $3
        returning (
            select o.seq from dsync.progress as o where o.lane <> $1 and o.stream_created = $2
        ) as other
        "#,
        lane.as_str(),
        OffsetDateTime::from(from.stream_created),
        seq(from.seq),
        seq(to.seq),
        to.seq_appended_at.map(OffsetDateTime::from),
        holder,
        interval(lease),
        &directories as &[&str],
        &newest,
        news.applied_at,
    )
    .fetch_optional(connection)
    .await?;
    Ok(moved.map(|row| row.other.map_or(0, i64::unsigned_abs)))
}

/// Moves every lane back to the beginning of the log that is there now, and records that. `false` if the lane no longer
/// stands at `from`, because someone else noticed first.
pub async fn rewind(pool: &PgPool, lane: Lane, from: Position, log: Identity) -> sqlx::Result<bool> {
    let mut transaction = pool.begin().await?;
    super::lock::limit(&mut transaction).await?;
    if !losses::note_at(&mut transaction, lane, from, log, log.last_seq).await? {
        return Ok(false);
    }
    sqlx::query!(
        "update dsync.progress set stream_created = $1, seq = 0, seq_appended_at = null",
        OffsetDateTime::from(log.created),
    )
    .execute(&mut *transaction)
    .await?;
    losses::forget_beyond(&mut transaction, log).await?;
    erased::forget_purges(&mut transaction).await?;
    transaction.commit().await?;
    Ok(true)
}

/// Moves `lane` past records that the log dropped before they were applied, and records that. `false` as in [`rewind`].
pub async fn skip_gap(pool: &PgPool, lane: Lane, from: Position, log: Identity) -> sqlx::Result<bool> {
    let mut transaction = pool.begin().await?;
    super::lock::limit(&mut transaction).await?;
    if !losses::note_at(&mut transaction, lane, from, log, log.first_seq).await? {
        return Ok(false);
    }
    sqlx::query!(
        "update dsync.progress set seq = $2, seq_appended_at = null where lane = $1",
        lane.as_str(),
        seq(log.first_seq.saturating_sub(1)),
    )
    .execute(&mut *transaction)
    .await?;
    transaction.commit().await?;
    Ok(true)
}

fn at(created: OffsetDateTime, seq: i64, appended_at: Option<OffsetDateTime>) -> Position {
    Position {
        stream_created: created.into(),
        // The table rejects negative sequences.
        seq: seq.unsigned_abs(),
        seq_appended_at: appended_at.map(Into::into),
    }
}

fn interval(duration: Duration) -> PgInterval {
    PgInterval {
        months: 0,
        days: 0,
        microseconds: i64::try_from(duration.as_micros()).unwrap_or(i64::MAX),
    }
}
