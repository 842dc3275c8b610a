//! What `status` shows of the reconciler's work.

use sqlx::{Connection as _, PgConnection};
use time::OffsetDateTime;

/// A duty that one reconciler performs for all.
pub struct DutyRow {
    /// Its name.
    pub duty: String,
    /// Up to when the Events API was read.
    pub position: Option<OffsetDateTime>,
    /// When it was last done.
    pub done_at: Option<OffsetDateTime>,
    /// Who holds its lease.
    pub holder: Option<String>,
    /// When that lease expires unless it is renewed.
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

/// How far rereads and held deletions are counted: a failure may leave more than there is time to count.
pub const COUNTED: i64 = 10_000;
/// How far doubts are counted: each costs lookups in other tables.
pub const DOUBTS_COUNTED: i64 = 1_000;

/// How much is waiting, by kind.
pub struct Waiting {
    /// Directories that are swept.
    pub directories: i64,
    /// Of those, the directories that never were.
    pub never_swept: i64,
    /// The oldest last sweep of the others, except of those that are gone, which are no longer swept.
    pub oldest: Option<OffsetDateTime>,
    /// Directories that a reconciler is working on now.
    pub running: i64,
    /// Directories whose last sweep could not read everything.
    pub failing: i64,
    /// Directories that a rebuild wants listed in full.
    pub to_list: i64,
    /// What is to be read again once the margin has passed; counted to at most one more than [`COUNTED`].
    pub rereads: i64,
    /// Objects in doubt, which fail closed; counted to at most one more than [`DOUBTS_COUNTED`].
    pub checks: i64,
    /// Deletions held back; counted to at most one more than [`COUNTED`].
    pub held: i64,
}

/// How much is waiting. This reads a row per directory, and what is queried every second anyway.
pub async fn waiting(connection: &mut PgConnection) -> sqlx::Result<Waiting> {
    let mut transaction = connection.begin().await?;
    // As in `checks::in_doubt`: the planner would read whole tables for what a few indexes hold.
    sqlx::raw_sql("set local enable_seqscan = off")
        .execute(&mut *transaction)
        .await?;
    let waiting = sqlx::query_as!(
        Waiting,
        r#"
        select
            count(*) as "directories!",
            count(*) filter (where s.swept_at is null) as "never_swept!",
            min(s.swept_at) filter (where d.id is not null) as oldest,
            count(*) filter (where s.held_until > now() and s.holder is not null) as "running!",
            count(*) filter (where s.failures > 0) as "failing!",
            count(*) filter (where s.relist_at > coalesce(s.relisted_at, '-infinity')) as "to_list!",
            (select count(*) from (select from dsync.rereads limit $1) as r) as "rereads!",
            (select count(*) from (select from dsync.checks limit $2) as c) as "checks!",
            (select count(*) from (select from dsync.held_deletions limit $1) as h) as "held!"
        from dsync.sweeps as s
        left join directory.directories as d on d.id = s.directory_id
        "#,
        COUNTED + 1,
        DOUBTS_COUNTED + 1,
    )
    .fetch_one(&mut *transaction)
    .await?;
    transaction.rollback().await?;
    Ok(waiting)
}

/// Deletions of a directory that wait for approval.
pub struct HeldRow {
    /// The directory.
    pub directory_id: String,
    /// How many; counted to at most one more than [`COUNTED`].
    pub deletions: i64,
    /// When the oldest of those that were counted was held.
    pub since: OffsetDateTime,
    /// How many directories have any.
    pub of: i64,
}

/// Directories with held deletions, at most `limit`. They are looked up one after another in the primary key, and the
/// deletions are counted in its order, because each directory may have any number.
pub async fn held(connection: &mut PgConnection, limit: i64) -> sqlx::Result<Vec<HeldRow>> {
    sqlx::query_as!(
        HeldRow,
        r#"
        with recursive holding as (
            (select directory_id from dsync.held_deletions order by directory_id limit 1)
            union all
            select (
                select h.directory_id from dsync.held_deletions as h
                where h.directory_id > holding.directory_id
                order by h.directory_id limit 1
            )
            from holding where holding.directory_id is not null
        )
        select d.directory_id as "directory_id!", c.deletions as "deletions!", c.since as "since!",
            count(*) over () as "of!"
        from holding as d
        cross join lateral (
            select count(*) as deletions, min(h.held_since) as since from (
                select held_since from dsync.held_deletions where directory_id = d.directory_id
                order by directory_id, entity, group_id, user_id limit $2
            ) as h
        ) as c
        where d.directory_id is not null
        order by c.deletions desc, d.directory_id
        limit $1
        "#,
        limit,
        COUNTED + 1,
    )
    .fetch_all(connection)
    .await
}

/// A directory's sweeps.
pub struct SweepRow {
    /// The directory.
    pub directory_id: String,
    /// When the last complete one began.
    pub swept_at: Option<OffsetDateTime>,
    /// How many differences it found.
    pub drift: Option<i64>,
    /// How many sweeps in a row could not read all of it.
    pub failures: i32,
    /// It is not tried again before this.
    pub retry_at: Option<OffsetDateTime>,
    /// How many directories there are.
    pub of: i64,
}

/// At most `limit` directories, the most worrying first.
pub async fn sweeps(connection: &mut PgConnection, limit: i64) -> sqlx::Result<Vec<SweepRow>> {
    sqlx::query_as!(
        SweepRow,
        r#"
        select directory_id, swept_at, drift, failures, retry_at, count(*) over () as "of!" from dsync.sweeps
        order by failures desc, drift desc nulls last, swept_at nulls first, directory_id limit $1
        "#,
        limit,
    )
    .fetch_all(connection)
    .await
}
