//! People who were erased. Records about them are left out of every write, and queued to be purged from the log.

use std::collections::HashSet;

use schema::timestamp::Timestamp;
use sqlx::{PgConnection, PgPool};
use time::OffsetDateTime;

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
        &super::seqs(seqs),
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// The oldest message of the log created at `stream_created` that is queued to be purged.
pub async fn next_purge(pool: &PgPool, stream_created: Timestamp) -> sqlx::Result<Option<u64>> {
    let seq = sqlx::query_scalar!(
        "select min(seq) from dsync.purges where stream_created = $1",
        OffsetDateTime::from(stream_created),
    )
    .fetch_one(pool)
    .await?;
    Ok(seq.map(i64::unsigned_abs))
}

/// Makes sure that no lane will apply what is queued to be purged, after somebody's erasure was undone. What the lane `all`
/// has still to read stays in the log: it queues again what is about others who are erased. What it has read was left out
/// of the tables, so the lane `removals` must not apply it, either; nothing else up to there is left for that lane to apply.
pub(super) async fn keep_unread(connection: &mut PgConnection) -> sqlx::Result<()> {
    sqlx::query!(
        r#"
        with skipped as (
            update dsync.progress as r set seq = a.seq, seq_appended_at = a.seq_appended_at
            from dsync.progress as a
            where r.lane = 'removals' and a.lane = 'all' and a.stream_created = r.stream_created and a.seq > r.seq
        )
        delete from dsync.purges as q using dsync.progress as a
        where a.lane = 'all' and q.stream_created = a.stream_created and q.seq > a.seq
        "#,
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// Removes a purge that is done from the queue.
pub async fn purged(pool: &PgPool, stream_created: Timestamp, seq: u64) -> sqlx::Result<()> {
    sqlx::query!(
        "delete from dsync.purges where stream_created = $1 and seq = $2",
        OffsetDateTime::from(stream_created),
        super::seq(seq),
    )
    .execute(pool)
    .await?;
    Ok(())
}

/// Empties the queue, because every lane starts over and queues again what is about erased people: a log that was set back
/// gives the same sequences to other messages.
pub(super) async fn forget_purges(connection: &mut PgConnection) -> sqlx::Result<()> {
    sqlx::query!("delete from dsync.purges")
        .execute(connection)
        .await?;
    Ok(())
}
