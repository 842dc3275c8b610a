//! Records that could not be applied. They wait here, complete, for a person; the rest of their batch was applied.

use schema::record::{Record, Source};
use schema::timestamp::Timestamp;
use serde::Serialize;
use sqlx::PgConnection;
use sqlx::postgres::PgExecutor;
use time::OffsetDateTime;

/// A dead letter as listed, without its content.
#[derive(Debug, Clone, Serialize)]
pub struct Letter {
    /// Its id.
    pub id: i64,
    /// Its sequence in the log.
    pub seq: i64,
    /// Its subject.
    pub subject: String,
    /// Its event's id.
    pub event_id: Option<String>,
    /// Its event's type.
    pub event_type: String,
    /// What is wrong with it.
    pub reason: String,
    /// How many times it was tried.
    pub attempts: i32,
    /// When it last failed.
    #[serde(with = "time::serde::rfc3339")]
    pub failed_at: OffsetDateTime,
}

/// A dead letter with what it takes to apply it.
#[derive(Debug, Clone)]
pub struct Waiting {
    /// Its id.
    pub id: i64,
    /// How it came into the log.
    pub source: Source,
    /// When it was received.
    pub received_at: Timestamp,
    /// Its body.
    pub body: Vec<u8>,
}

/// A dead letter, waiting or not, with what it takes to tell whom it is about.
#[derive(Debug, Clone)]
pub struct Content {
    /// Its id.
    pub id: i64,
    /// Its subject.
    pub subject: String,
    /// Its body; empty if it was dropped.
    pub body: Vec<u8>,
}

/// Sets a record aside. Reading the log again neither duplicates a dead letter nor brings back one that was dropped.
pub async fn put(
    connection: &mut PgConnection,
    stream_created: Timestamp,
    seq: u64,
    record: &Record,
    reason: &str,
) -> sqlx::Result<()> {
    sqlx::query!(
        r#"
        insert into dsync.dead_letters
            (stream_created, seq, subject, event_id, event_type, source, received_at, reason, body)
        values ($1, $2, $3, nullif($4, ''), $5, $6, $7, $8, $9)
        on conflict (stream_created, seq) do nothing
        "#,
        OffsetDateTime::from(stream_created),
        super::seq(seq),
        record.subject.as_str(),
        record.id,
        record.event_type,
        record.source.as_str(),
        OffsetDateTime::from(record.received_at),
        reason,
        &*record.body,
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// How many are waiting.
pub async fn count(executor: impl PgExecutor<'_>) -> sqlx::Result<i64> {
    sqlx::query_scalar!(r#"select count(*) as "count!" from dsync.dead_letters where state = 'dead'"#)
        .fetch_one(executor)
        .await
}

/// Those that are waiting, oldest first.
pub async fn list(executor: impl PgExecutor<'_>) -> sqlx::Result<Vec<Letter>> {
    sqlx::query_as!(
        Letter,
        r#"
        select id, seq, subject, event_id, event_type, reason, attempts, failed_at
        from dsync.dead_letters where state = 'dead' order by id
        "#,
    )
    .fetch_all(executor)
    .await
}

/// A waiting one, and its body.
pub async fn show(executor: impl PgExecutor<'_>, id: i64) -> sqlx::Result<Option<(Letter, Vec<u8>)>> {
    let row = sqlx::query!(
        r#"
        select id, seq, subject, event_id, event_type, reason, attempts, failed_at, body as "body!"
        from dsync.dead_letters where state = 'dead' and id = $1
        "#,
        id,
    )
    .fetch_optional(executor)
    .await?;
    Ok(row.map(|row| {
        let letter = Letter {
            id: row.id,
            seq: row.seq,
            subject: row.subject,
            event_id: row.event_id,
            event_type: row.event_type,
            reason: row.reason,
            attempts: row.attempts,
            failed_at: row.failed_at,
        };
        (letter, row.body)
    }))
}

/// The next few whose id is above `after`, waiting or not.
pub async fn next(executor: impl PgExecutor<'_>, after: i64) -> sqlx::Result<Vec<Content>> {
    sqlx::query_as!(
        Content,
        r#"
        select id, subject, coalesce(body, '') as "body!" from dsync.dead_letters
        where id > $1 order by id limit 50
        "#,
        after,
    )
    .fetch_all(executor)
    .await
}

/// A waiting one, locked so that nobody else retries it meanwhile.
pub async fn take(connection: &mut PgConnection, id: i64) -> sqlx::Result<Option<Waiting>> {
    let row = sqlx::query!(
        r#"
        select source, received_at, body as "body!" from dsync.dead_letters
        where state = 'dead' and id = $1 for update
        "#,
        id,
    )
    .fetch_optional(connection)
    .await?;
    Ok(row.map(|row| Waiting {
        id,
        source: Source::parse(&row.source).unwrap_or(Source::Webhook),
        received_at: row.received_at.into(),
        body: row.body,
    }))
}

/// Deletes one that was applied after all, or that is about an erased person.
pub async fn delete(executor: impl PgExecutor<'_>, id: i64) -> sqlx::Result<()> {
    sqlx::query!("delete from dsync.dead_letters where id = $1", id)
        .execute(executor)
        .await?;
    Ok(())
}

/// Records that one failed again.
pub async fn failed_again(connection: &mut PgConnection, id: i64, reason: &str) -> sqlx::Result<()> {
    sqlx::query!(
        r#"
        update dsync.dead_letters set attempts = attempts + 1, reason = $2, failed_at = now()
        where id = $1
        "#,
        id,
        reason,
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// Drops one: its body is deleted, but its sequence is remembered. `false` if no such dead letter is waiting.
pub async fn discard(executor: impl PgExecutor<'_>, id: i64) -> sqlx::Result<bool> {
    let dropped = sqlx::query!(
        "update dsync.dead_letters set state = 'dropped', body = null where id = $1 and state = 'dead'",
        id,
    )
    .execute(executor)
    .await?;
    Ok(dropped.rows_affected() == 1)
}
