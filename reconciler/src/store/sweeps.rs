//! Which directory is due for a sweep, and who works on it: one row per directory in `dsync.sweeps`.
//!
//! The lease says who may send requests for a directory. It expires on its own, so a reconciler that died or froze
//! keeps others waiting for no longer than that. It is not a lock: a reconciler that lost it can write nothing that
//! does harm.

use std::time::Duration;

use sqlx::PgPool;
use time::OffsetDateTime;

use super::interval;

/// Adds rows for these directories, and for those that readers see, if they have none yet.
pub async fn add(pool: &PgPool, directories: &[String]) -> sqlx::Result<()> {
    sqlx::query!(
        r#"
        insert into dsync.sweeps (directory_id)
        select id from unnest($1::text[]) as x (id)
        union
        select id from directory.directories
        order by 1
        on conflict (directory_id) do nothing
        "#,
        directories,
    )
    .execute(pool)
    .await?;
    Ok(())
}

/// Forgets a directory that is gone.
pub async fn remove(pool: &PgPool, directory: &str) -> sqlx::Result<()> {
    sqlx::query!("delete from dsync.sweeps where directory_id = $1", directory)
        .execute(pool)
        .await?;
    Ok(())
}

/// When directories are due.
#[derive(Clone, Copy, Debug)]
pub struct Cadence {
    /// How often each is swept.
    pub every: Duration,
    /// How long after the time a directory was gone a sweep must wait to see what came back.
    pub margin: Duration,
}

/// Takes the lease of the directory that is most overdue and not in `busy`. `None` while none is due.
///
/// A directory is due if it was never swept, or not for a whole interval; if another sweep was asked for; if it was not
/// swept since the log lost entries; or if it came back after it was gone.
///
/// What is later than it can be was written while the database's clock was ahead, and delays nothing: a sweep in the
/// future, a retry after more than a quarter of an hour, a lease of more than twice its length.
pub async fn claim(
    pool: &PgPool,
    holder: &str,
    lease: Duration,
    cadence: Cadence,
    busy: &[String],
) -> sqlx::Result<Option<String>> {
    sqlx::query_scalar!(
        r#"
        with due as (
            select s.directory_id
            from dsync.sweeps as s
            left join dsync.directories as d on d.id = s.directory_id
            where (
                    s.held_until is null or s.holder = $1
                    or s.held_until < now() or s.held_until > now() + 2 * $2::interval
                )
                and s.directory_id <> all($5)
                and (s.retry_at is null or s.retry_at <= now() or s.retry_at > now() + interval '15 minutes')
                and (
                    s.swept_at is null
                    or s.swept_at + $3 <= now() or s.swept_at > now()
                    or s.again_at <= now()
                    or s.relist_at > coalesce(s.relisted_at, '-infinity')
                    or s.swept_at <= (select max(r.noticed_at) from dsync.rewinds as r)
                    or (
                        d.seen_at > d.gone_at
                        and s.swept_at <= d.gone_at + $4
                        and d.gone_at + $4 < now()
                    )
                )
            order by coalesce(s.again_at, s.swept_at + $3, '-infinity'), s.directory_id
            limit 1
            for update of s skip locked
        )
        update dsync.sweeps as s
        set holder = $1, held_until = now() + $2
        from due
        where s.directory_id = due.directory_id
        returning s.directory_id
        "#,
        holder,
        interval(lease),
        interval(cadence.every),
        interval(cadence.margin),
        busy,
    )
    .fetch_optional(pool)
    .await
}

/// Takes the lease of one directory, adding its row if need be. `false`: another reconciler holds it.
pub async fn take(pool: &PgPool, directory: &str, holder: &str, lease: Duration) -> sqlx::Result<bool> {
    let taken = sqlx::query!(
        r#"
        insert into dsync.sweeps as s (directory_id, holder, held_until)
        values ($1, $2, now() + $3)
        on conflict (directory_id) do update set holder = $2, held_until = now() + $3
        where s.held_until is null or s.holder = $2
            or s.held_until < now() or s.held_until > now() + 2 * $3::interval
        "#,
        directory,
        holder,
        interval(lease),
    )
    .execute(pool)
    .await?;
    Ok(taken.rows_affected() == 1)
}

/// Renews leases, and returns which of them are still held.
pub async fn renew(
    pool: &PgPool,
    directories: &[String],
    holder: &str,
    lease: Duration,
) -> sqlx::Result<Vec<String>> {
    sqlx::query_scalar!(
        r#"
        update dsync.sweeps set held_until = now() + $3
        where directory_id = any($1) and holder = $2
        returning directory_id
        "#,
        directories,
        holder,
        interval(lease),
    )
    .fetch_all(pool)
    .await
}

/// Releases a lease. Others may take it 1.1 s later, when what was sent under it no longer counts against the rate
/// limit.
pub async fn release(pool: &PgPool, directory: &str, holder: &str) -> sqlx::Result<()> {
    sqlx::query!(
        r#"
        update dsync.sweeps set held_until = now() + interval '1100 milliseconds'
        where directory_id = $1 and holder = $2
        "#,
        directory,
        holder,
    )
    .execute(pool)
    .await?;
    Ok(())
}

/// A sweep that begins.
#[derive(Clone, Copy, Debug)]
pub struct Started {
    /// When it began, by the database's clock.
    pub at: OffsetDateTime,
    /// Whether it was asked to append everything it reads.
    pub whole: bool,
}

/// Records that a sweep begins. `None`: another reconciler holds the lease.
pub async fn start(pool: &PgPool, directory: &str, holder: &str) -> sqlx::Result<Option<Started>> {
    sqlx::query_as!(
        Started,
        r#"
        update dsync.sweeps set started_at = now()
        where directory_id = $1 and holder = $2
        returning started_at as "at!", coalesce(relist_at > coalesce(relisted_at, '-infinity'), false) as "whole!"
        "#,
        directory,
        holder,
    )
    .fetch_optional(pool)
    .await
}

/// Records that the sweep `started` read all of the directory and found `drift` differences. With `again_in`, the
/// directory is due again after that time.
pub async fn finish(
    pool: &PgPool,
    directory: &str,
    started: Started,
    drift: u64,
    again_in: Option<Duration>,
) -> sqlx::Result<()> {
    sqlx::query!(
        r#"
        update dsync.sweeps
        set swept_at = $2, drift = $3, failures = 0, retry_at = null,
            relisted_at = case when $5 then $2 else relisted_at end,
            again_at = coalesce(now() + $4, case when again_at > $2 then again_at end)
        where directory_id = $1
        "#,
        directory,
        started.at,
        i64::try_from(drift).unwrap_or(i64::MAX),
        again_in.map(interval),
        started.whole,
    )
    .execute(pool)
    .await?;
    Ok(())
}

/// Records that a sweep could not read all of the directory. It is tried again after a delay that doubles each time, up
/// to a quarter of an hour.
pub async fn fail(pool: &PgPool, directory: &str) -> sqlx::Result<()> {
    sqlx::query!(
        r#"
        update dsync.sweeps
        set failures = failures + 1,
            retry_at = now() + least(interval '15 minutes', interval '5 seconds' * 2 ^ least(failures, 10))
        where directory_id = $1
        "#,
        directory,
    )
    .execute(pool)
    .await?;
    Ok(())
}

/// Makes a directory due now.
pub async fn again(pool: &PgPool, directory: &str) -> sqlx::Result<()> {
    sqlx::query!(
        "update dsync.sweeps set again_at = now() where directory_id = $1",
        directory
    )
    .execute(pool)
    .await?;
    Ok(())
}

/// Makes every directory due now.
pub async fn all_again(pool: &PgPool) -> sqlx::Result<()> {
    sqlx::query!("update dsync.sweeps set again_at = now(), retry_at = null")
        .execute(pool)
        .await?;
    Ok(())
}

/// What the gauges show.
#[derive(Debug, Clone, Copy)]
pub struct Summary {
    /// When the least recently swept directory was swept, or first known if it never was.
    pub oldest: Option<OffsetDateTime>,
    /// Until when the catch-up has read events.
    pub caught_up: Option<OffsetDateTime>,
    /// How many deletions are held.
    pub held: i64,
}

/// What the gauges show now.
pub async fn summary(pool: &PgPool) -> sqlx::Result<Summary> {
    sqlx::query_as!(
        Summary,
        r#"
        select
            (
                select min(coalesce(s.swept_at, s.added_at)) from dsync.sweeps as s
                join directory.directories as d on d.id = s.directory_id
            ) as oldest,
            (select position from dsync.duties where duty = 'catch_up') as caught_up,
            (select count(*) from dsync.held_deletions) as "held!"
        "#,
    )
    .fetch_one(pool)
    .await
}
