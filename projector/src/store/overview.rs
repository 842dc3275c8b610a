//! What a status screen shows about the database.

use sqlx::PgConnection;
use time::OffsetDateTime;

/// A lane, as its row has it.
pub struct LaneRow {
    /// Its name.
    pub lane: String,
    /// When the stream in which it stands was created.
    pub stream_created: OffsetDateTime,
    /// The last sequence it applied.
    pub seq: i64,
    /// Who works it.
    pub holder: Option<String>,
    /// Until when the lease lasts, unless renewed.
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

/// About how much there is, and what happened last.
pub struct Totals {
    /// User rows, including those that are gone, by the planner's estimate.
    pub users: i64,
    /// Membership rows, likewise.
    pub memberships: i64,
    /// History rows, likewise.
    pub changes: i64,
    /// Deleted directories and groups whose history is still to be written.
    pub history_backlog: i64,
    /// When the log was last found to have lost entries or to be another log.
    pub rewound_at: Option<OffsetDateTime>,
    /// When the projection was last rebuilt.
    pub rebuilt_at: Option<OffsetDateTime>,
    /// How many rows that replaced.
    pub rebuilt_rows: Option<i64>,
}

/// The totals. Estimates, because counting rows would read all of them.
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
            (select count(*) from dsync.history_backlog)
                + (select count(*) from dsync.group_history_backlog) as "history_backlog!",
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

/// How far dead letters and held deletions are counted: a failure may leave more than a screen has time to count.
pub const COUNTED: i64 = 10_000;

/// How many dead letters are waiting, at most one more than [`COUNTED`].
pub async fn dead_letters(connection: &mut PgConnection) -> sqlx::Result<i64> {
    sqlx::query_scalar!(
        r#"
        select count(*) as "count!" from (select from dsync.dead_letters where state = 'dead' limit $1) as d
        "#,
        COUNTED + 1,
    )
    .fetch_one(connection)
    .await
}

/// A directory's freshness.
pub struct DirectoryRow {
    /// Its id.
    pub directory_id: String,
    /// When the newest event that was applied happened.
    pub last_event_at: Option<OffsetDateTime>,
    /// When the last complete sweep began.
    pub last_swept_at: Option<OffsetDateTime>,
    /// How many differences that sweep found.
    pub last_drift: Option<i64>,
    /// Deletions waiting for approval, at most one more than [`COUNTED`].
    pub held_deletions: i64,
    /// How many directories there are.
    pub of: i64,
}

/// `limit` directories, the most worrying first. Like `directory.sync_status`, except that the view counts all held
/// deletions. The primary key's order keeps the planner from reading all of those for each directory.
pub async fn directories(connection: &mut PgConnection, limit: i64) -> sqlx::Result<Vec<DirectoryRow>> {
    sqlx::query_as!(
        DirectoryRow,
        r#"
        select d.id as "directory_id!", a.last_event_at as "last_event_at?", s.swept_at as "last_swept_at?",
            s.drift as "last_drift?", h.held as "held_deletions!", count(*) over () as "of!"
        from directory.directories as d
        left join dsync.directory_activity as a on a.directory_id = d.id
        left join dsync.sweeps as s on s.directory_id = d.id
        cross join lateral (
            select count(*) as held from (
                select from dsync.held_deletions as h where h.directory_id = d.id
                order by h.directory_id, h.entity, h.group_id, h.user_id limit $2
            ) as h
        ) as h
        order by h.held desc, s.drift desc nulls last, s.swept_at nulls first, d.id
        limit $1
        "#,
        limit,
        COUNTED + 1,
    )
    .fetch_all(connection)
    .await
}
