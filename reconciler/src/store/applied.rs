//! How far the projector has come: what it has not applied yet is not drift.

use schema::timestamp::Timestamp;
use sqlx::PgPool;

/// What the lane `all` has applied: of which log, up to which sequence. `None` before it began.
pub async fn position(pool: &PgPool) -> sqlx::Result<Option<(Timestamp, u64)>> {
    let row = sqlx::query!("select stream_created, seq from dsync.progress where lane = 'all'")
        .fetch_optional(pool)
        .await?;
    Ok(row.map(|row| (row.stream_created.into(), row.seq.unsigned_abs())))
}

/// Whether the schema is as new as this program needs; the projector brings it up to date. Looks for something that the
/// newest migration it needs creates: change that when this program needs a newer one.
pub async fn has_schema(pool: &PgPool) -> sqlx::Result<bool> {
    sqlx::query_scalar!(r#"select to_regproc('dsync.entering') is not null as "there!""#)
        .fetch_one(pool)
        .await
}
