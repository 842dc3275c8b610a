//! What the log no longer holds, and why. Either nothing was lost: an erasure took it, or it was gone before anything was
//! projected (`dsync.overwritten`). Or it was lost: by the broker, with the log itself, or by its max age before a lane had
//! read that far (`dsync.rewinds`).
//!
//! The log's sequences go up by one, so whatever is missing leaves a gap. Whoever finds one asks here what explains it, and
//! records here what nothing explains. A recorded loss makes every directory due for catch-up and sweep (the reconciler
//! reads `dsync.rewinds`, too), and explains the same gap from then on, however often the log is read again.

use journal::Identity;
use schema::timestamp::Timestamp;
use sqlx::{PgConnection, PgPool};
use time::OffsetDateTime;

use super::progress::Position;
use super::seq;
use crate::holes::Hole;
use crate::lane::Lane;

/// Records that the messages `seqs` are missing from the log created at `stream_created` without being lost: an erasure
/// takes them, or they were gone before anything was projected.
pub async fn overwritten(pool: &PgPool, stream_created: Timestamp, seqs: &[u64]) -> sqlx::Result<()> {
    sqlx::query!(
        r#"
        insert into dsync.overwritten (stream_created, seq)
        select $1, x.seq from unnest($2::bigint[]) as x (seq) order by x.seq
        on conflict do nothing
        "#,
        OffsetDateTime::from(stream_created),
        &super::seqs(seqs),
    )
    .execute(pool)
    .await?;
    Ok(())
}

/// The parts of `holes`, in the log created at `stream_created`, that neither erasures nor recorded losses explain. Exact to
/// the message, because an erasure beside a recorded loss, or between two, shows up as one wider hole in which nothing else
/// was lost.
pub async fn unexplained(
    connection: &mut PgConnection,
    stream_created: Timestamp,
    holes: &[Hole],
) -> sqlx::Result<Vec<Hole>> {
    let after: Vec<i64> = holes.iter().map(|hole| seq(hole.after)).collect();
    let before: Vec<i64> = holes.iter().map(|hole| seq(hole.before)).collect();
    let rows = sqlx::query!(
        r#"
        select lower(lost.seqs) - 1 as "after!", upper(lost.seqs) as "before!"
        from unnest($2::bigint[], $3::bigint[]) as h (after, before)
        cross join lateral (
            select range_agg(e.seqs) as seqs from (
                select int8range(o.seq, o.seq, '[]') as seqs from dsync.overwritten as o
                where o.stream_created = $1 and o.seq > h.after and o.seq < h.before
                union all
                -- A log that was lost or cut is due for sweeps from then on, however often it is read again.
                select case
                    when r.old_created = $1 and r.old_seq < r.new_seq then int8range(r.old_seq + 1, r.new_seq)
                    else int8range(0, r.new_seq)
                end
                from dsync.rewinds as r
                where r.new_created = $1
            ) as e
        ) as explained
        cross join lateral unnest(
            int8multirange(int8range(h.after + 1, h.before)) - coalesce(explained.seqs, '{}')
        ) as lost (seqs)
        order by lower(lost.seqs)
        "#,
        OffsetDateTime::from(stream_created),
        &after,
        &before,
    )
    .fetch_all(connection)
    .await?;
    let hole = |after: i64, before: i64| Hole {
        after: after.unsigned_abs(),
        before: before.unsigned_abs(),
    };
    Ok(rows.into_iter().map(|row| hole(row.after, row.before)).collect())
}

/// Records those of `holes` in the log created at `created` that nothing explains by now: the messages in them were lost
/// before `lane` reached them. Returns those holes.
pub async fn note(
    connection: &mut PgConnection,
    lane: Lane,
    created: Timestamp,
    holes: &[Hole],
) -> sqlx::Result<Vec<Hole>> {
    let lost = unexplained(connection, created, holes).await?;
    let after: Vec<i64> = lost.iter().map(|hole| seq(hole.after)).collect();
    let before: Vec<i64> = lost.iter().map(|hole| seq(hole.before)).collect();
    sqlx::query!(
        r#"
        insert into dsync.rewinds (stream, old_created, old_seq, new_created, new_seq)
        select p.stream, $2, h.after, $2, h.before
        from dsync.progress as p
        cross join unnest($3::bigint[], $4::bigint[]) as h (after, before)
        where p.lane = $1
        order by h.after
        "#,
        lane.as_str(),
        OffsetDateTime::from(created),
        &after,
        &before,
    )
    .execute(connection)
    .await?;
    Ok(lost)
}

/// Records that the log is not what it was, if `lane` still stands at `from`. Locks the lane's row.
pub(super) async fn note_at(
    connection: &mut PgConnection,
    lane: Lane,
    from: Position,
    log: Identity,
    found_seq: u64,
) -> sqlx::Result<bool> {
    let noted = sqlx::query!(
        r#"
        with stands as (
            select stream, stream_created, seq from dsync.progress
            where lane = $1 and stream_created = $2 and seq = $3
            for update
        )
        insert into dsync.rewinds (stream, old_created, old_seq, new_created, new_seq)
        select stream, stream_created, seq, $4, $5 from stands
        "#,
        lane.as_str(),
        OffsetDateTime::from(from.stream_created),
        seq(from.seq),
        OffsetDateTime::from(log.created),
        seq(found_seq),
    )
    .execute(connection)
    .await?;
    Ok(noted.rows_affected() == 1)
}

/// Deletes what is recorded about sequences beyond the end of a log that was set back: it gives them to other messages.
pub(super) async fn forget_beyond(connection: &mut PgConnection, log: Identity) -> sqlx::Result<()> {
    sqlx::query!(
        "delete from dsync.overwritten where stream_created = $1 and seq > $2",
        OffsetDateTime::from(log.created),
        seq(log.last_seq),
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// Records that the log lost entries that nobody had applied: it once ended at `seen` and no longer does, although every
/// lane stands at an entry that is still there. `false` if someone else has just noticed it.
pub async fn note_unread(pool: &PgPool, seen: Position, log: Identity) -> sqlx::Result<bool> {
    let mut transaction = pool.begin().await?;
    let noted = sqlx::query!(
        r#"
        insert into dsync.rewinds (stream, old_created, old_seq, new_created, new_seq)
        select stream, $1, $2, $3, $4 from dsync.progress
        where lane = 'all'
            and not exists (select from dsync.rewinds where noticed_at > now() - interval '15 s')
        "#,
        OffsetDateTime::from(seen.stream_created),
        seq(seen.seq),
        OffsetDateTime::from(log.created),
        seq(log.last_seq),
    )
    .execute(&mut *transaction)
    .await?;
    forget_beyond(&mut transaction, log).await?;
    transaction.commit().await?;
    Ok(noted.rows_affected() == 1)
}

/// Whether erasures took every message before `first` from the log created at `stream_created`, so that none was lost.
pub async fn erasures_took_all_before(
    connection: &mut PgConnection,
    stream_created: Timestamp,
    first: u64,
) -> sqlx::Result<bool> {
    let first = seq(first);
    let taken = sqlx::query_scalar!(
        r#"select count(*) as "count!" from dsync.overwritten where stream_created = $1 and seq < $2"#,
        OffsetDateTime::from(stream_created),
        first,
    )
    .fetch_one(connection)
    .await?;
    Ok(taken == first - 1)
}

/// The newest of these `missing` messages of the log created at `stream_created` that no erasure took.
pub async fn newest(
    connection: &mut PgConnection,
    stream_created: Timestamp,
    missing: &[u64],
) -> sqlx::Result<Option<u64>> {
    let missing = super::seqs(missing);
    let newest = sqlx::query_scalar!(
        r#"
        select max(m.seq) from unnest($2::bigint[]) as m (seq)
        where not exists (select from dsync.overwritten as o where o.stream_created = $1 and o.seq = m.seq)
        "#,
        OffsetDateTime::from(stream_created),
        &missing,
    )
    .fetch_one(connection)
    .await?;
    Ok(newest.map(i64::unsigned_abs))
}

/// When the log was last found to have lost entries or to be another log. What was applied before may be in no log.
pub async fn last_noticed(connection: &mut PgConnection) -> sqlx::Result<Option<Timestamp>> {
    let at = sqlx::query_scalar!("select max(noticed_at) from dsync.rewinds")
        .fetch_one(connection)
        .await?;
    Ok(at.map(Into::into))
}
