//! What a status screen shows of the reconciler's work.

use sqlx::{Connection as _, PgConnection};
use time::OffsetDateTime;

/// What one reconciler does for all.
pub struct DutyRow {
    /// Its name.
    pub duty: String,
    /// Until when the Events API was read.
    pub position: Option<OffsetDateTime>,
    /// When it was last done.
    pub done_at: Option<OffsetDateTime>,
    /// Who does it.
    pub holder: Option<String>,
    /// Until when, unless renewed.
    pub held_until: Option<OffsetDateTime>,
}

/// Both duties.
pub async fn duties(connection: &mut PgConnection) -> sqlx::Result<Vec<DutyRow>> {
    sqlx::query_as!(
        DutyRow,
        "select duty, position, done_at, holder, held_until from dsync.duties order by duty",
    )
    .fetch_all(connection)
    .await
}

/// How much waits for what.
pub struct Waiting {
    /// Directories that are swept.
    pub directories: i64,
    /// Of them, those that never were.
    pub never_swept: i64,
    /// The oldest last sweep of the others.
    pub oldest: Option<OffsetDateTime>,
    /// Directories that a reconciler works on now.
    pub running: i64,
    /// Directories whose last sweep could not read all of them.
    pub failing: i64,
    /// Directories a rebuild wants to be listed whole.
    pub to_list: i64,
    /// What is read again once the margin has passed.
    pub rereads: i64,
    /// What fails closed in doubt, up to 1,000.
    pub checks: i64,
    /// Deletions held back.
    pub held: i64,
}

/// How much waits. A row a directory, and what is looked for every second anyway.
pub async fn waiting(connection: &mut PgConnection) -> sqlx::Result<Waiting> {
    let mut transaction = connection.begin().await?;
    // As where they are read: the planner would go through whole tables for what a few indexes hold.
    sqlx::raw_sql("set local enable_seqscan = off")
        .execute(&mut *transaction)
        .await?;
    let waiting = sqlx::query_as!(
        Waiting,
        r#"
        select
            count(*) as "directories!",
            count(*) filter (where swept_at is null) as "never_swept!",
            min(swept_at) as oldest,
            count(*) filter (where held_until > now() and holder is not null) as "running!",
            count(*) filter (where failures > 0) as "failing!",
            count(*) filter (where relist_at > coalesce(relisted_at, '-infinity')) as "to_list!",
            (select count(*) from dsync.rereads) as "rereads!",
            (select count(*) from (select from dsync.checks limit 1000) as c) as "checks!",
            (select count(*) from dsync.held_deletions) as "held!"
        from dsync.sweeps
        "#,
    )
    .fetch_one(&mut *transaction)
    .await?;
    transaction.rollback().await?;
    Ok(waiting)
}

/// Deletions of a directory that wait for a person.
pub struct HeldRow {
    /// The directory.
    pub directory_id: String,
    /// How many.
    pub deletions: i64,
    /// Since when.
    pub since: OffsetDateTime,
}

/// Directories with held deletions, `limit` at most.
pub async fn held(connection: &mut PgConnection, limit: i64) -> sqlx::Result<Vec<HeldRow>> {
    sqlx::query_as!(
        HeldRow,
        r#"
        select directory_id, count(*) as "deletions!", min(held_since) as "since!" from dsync.held_deletions
        group by directory_id order by 2 desc, 1 limit $1
        "#,
        limit,
    )
    .fetch_all(connection)
    .await
}

/// A directory's sweeps.
pub struct SweepRow {
    /// The directory.
    pub directory_id: String,
    /// When the last whole one began.
    pub swept_at: Option<OffsetDateTime>,
    /// What it found.
    pub drift: Option<i64>,
    /// Sweeps in a row that could not read all of it.
    pub failures: i32,
    /// Not before this is it tried again.
    pub retry_at: Option<OffsetDateTime>,
}

/// `limit` directories, the most worrying first.
pub async fn sweeps(connection: &mut PgConnection, limit: i64) -> sqlx::Result<Vec<SweepRow>> {
    sqlx::query_as!(
        SweepRow,
        r#"
        select directory_id, swept_at, drift, failures, retry_at from dsync.sweeps
        order by failures desc, drift desc nulls last, swept_at nulls first, directory_id limit $1
        "#,
        limit,
    )
    .fetch_all(connection)
    .await
}
