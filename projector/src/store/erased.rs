//! People who were erased. Records about them are left out of every write, and queued to be purged from the log.

use std::collections::HashSet;

use schema::timestamp::Timestamp;
use sqlx::{PgConnection, PgPool};
use time::OffsetDateTime;

use crate::holes::Hole;

/// Those of `ids` that belong to erased people.
pub async fn among(connection: &mut PgConnection, ids: &[&str]) -> sqlx::Result<HashSet<String>> {
    if ids.is_empty() {
        return Ok(HashSet::new());
    }
    let erased = sqlx::query_scalar!(
        "select user_id from dsync.erased where user_id = any($1::text[])",
        ids as &[&str],
    )
    .fetch_all(connection)
    .await?;
    Ok(erased.into_iter().collect())
}

/// Queues these messages of the log created at `stream_created` to be purged.
pub async fn note_purges(
    connection: &mut PgConnection,
    stream_created: Timestamp,
    seqs: &[u64],
) -> sqlx::Result<()> {
    sqlx::query!(
        r#"
        insert into dsync.purges (stream_created, seq)
        select $1, x.seq from unnest($2::bigint[]) as x (seq) order by x.seq
        on conflict do nothing
        "#,
        OffsetDateTime::from(stream_created),
        &entries(seqs),
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// Messages of the log created at `stream_created` that are queued to be purged, oldest first.
pub async fn due_purges(pool: &PgPool, stream_created: Timestamp) -> sqlx::Result<Vec<u64>> {
    let seqs = sqlx::query_scalar!(
        "select seq from dsync.purges where stream_created = $1 order by seq",
        OffsetDateTime::from(stream_created),
    )
    .fetch_all(pool)
    .await?;
    Ok(seqs.into_iter().map(i64::unsigned_abs).collect())
}

/// Removes a purge that is done from the queue.
pub async fn purged(pool: &PgPool, stream_created: Timestamp, seq: u64) -> sqlx::Result<()> {
    sqlx::query!(
        "delete from dsync.purges where stream_created = $1 and seq = $2",
        OffsetDateTime::from(stream_created),
        i64::try_from(seq).unwrap_or(i64::MAX),
    )
    .execute(pool)
    .await?;
    Ok(())
}

/// Sequences as Postgres stores them.
fn entries(seqs: &[u64]) -> Vec<i64> {
    seqs.iter()
        .map(|seq| i64::try_from(*seq).unwrap_or(i64::MAX))
        .collect()
}

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
        &entries(seqs),
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
    let seq = |seq: u64| i64::try_from(seq).unwrap_or(i64::MAX);
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

/// Whether erasures took every message before `first` from the log created at `stream_created`, so that none was lost.
pub async fn took_all_before(
    connection: &mut PgConnection,
    stream_created: Timestamp,
    first: u64,
) -> sqlx::Result<bool> {
    let first = i64::try_from(first).unwrap_or(i64::MAX);
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
pub async fn newest_lost(
    connection: &mut PgConnection,
    stream_created: Timestamp,
    missing: &[u64],
) -> sqlx::Result<Option<u64>> {
    let missing = entries(missing);
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
