//! What a status screen shows of the database.

use sqlx::PgConnection;
use time::OffsetDateTime;

/// A lane as its row says.
pub struct LaneRow {
    /// Its name.
    pub lane: String,
    /// When the stream it stands in was made.
    pub stream_created: OffsetDateTime,
    /// The last sequence it applied.
    pub seq: i64,
    /// Who works it.
    pub holder: Option<String>,
    /// Until when, unless renewed.
    pub held_until: Option<OffsetDateTime>,
    /// When it last moved.
    pub advanced_at: OffsetDateTime,
}

/// Both lanes.
pub async fn lanes(connection: &mut PgConnection) -> sqlx::Result<Vec<LaneRow>> {
    sqlx::query_as!(
        LaneRow,
        "select lane, stream_created, seq, holder, held_until, advanced_at from dsync.progress order by lane",
    )
    .fetch_all(connection)
    .await
}

/// What there is about, and what happened last.
pub struct Totals {
    /// Rows of users, gone ones too, by the planner's estimate.
    pub users: i64,
    /// Rows of memberships, the same.
    pub memberships: i64,
    /// Rows of history, the same.
    pub changes: i64,
    /// When the log was last found to have lost its end.
    pub rewound_at: Option<OffsetDateTime>,
    /// When the projection was last rebuilt.
    pub rebuilt_at: Option<OffsetDateTime>,
    /// How many rows that replaced.
    pub rebuilt_rows: Option<i64>,
}

/// The totals. Estimates: to count rows would read all of them.
pub async fn totals(connection: &mut PgConnection) -> sqlx::Result<Totals> {
    sqlx::query_as!(
        Totals,
        r#"
        select
            (select greatest(reltuples, 0)::bigint from pg_class where oid = 'dsync.users'::regclass) as "users!",
            (
                select greatest(reltuples, 0)::bigint from pg_class where oid = 'dsync.memberships'::regclass
            ) as "memberships!",
            (
                select coalesce(sum(greatest(c.reltuples, 0)), 0)::bigint from pg_inherits as i
                join pg_class as c on c.oid = i.inhrelid where i.inhparent = 'dsync.changes'::regclass
            ) as "changes!",
            (select max(noticed_at) from dsync.rewinds) as rewound_at,
            b.done_at as "rebuilt_at?",
            b.rows_replaced as "rebuilt_rows?"
        from (select max(id) as id from dsync.rebuilds) as newest
        left join dsync.rebuilds as b on b.id = newest.id
        "#,
    )
    .fetch_one(connection)
    .await
}

/// A directory's freshness.
pub struct DirectoryRow {
    /// Its id.
    pub directory_id: String,
    /// When the newest thing applied happened.
    pub last_event_at: Option<OffsetDateTime>,
    /// When the last whole sweep began.
    pub last_swept_at: Option<OffsetDateTime>,
    /// How many differences that found.
    pub last_drift: Option<i64>,
    /// Deletions that wait for approval.
    pub held_deletions: i64,
}

/// `limit` directories, the most worrying first, and how many there are.
pub async fn directories(
    connection: &mut PgConnection,
    limit: i64,
) -> sqlx::Result<(Vec<DirectoryRow>, i64)> {
    let rows = sqlx::query_as!(
        DirectoryRow,
        r#"
        select s.directory_id as "directory_id!", s.last_event_at, s.last_swept_at, s.last_drift,
            s.held_deletions as "held_deletions!"
        from directory.sync_status as s
        order by s.held_deletions desc, s.last_drift desc nulls last, s.last_swept_at nulls first, s.directory_id
        limit $1
        "#,
        limit,
    )
    .fetch_all(&mut *connection)
    .await?;
    let count = sqlx::query_scalar!(r#"select count(*) as "count!" from directory.directories"#)
        .fetch_one(connection)
        .await?;
    Ok((rows, count))
}
