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
        super::seq(seq),
    )
    .execute(pool)
    .await?;
    Ok(())
}
