//! How a transaction that writes the projection begins. It chooses the tables to write, takes locks that it holds to its
//! end, so that writes within one directory are serialized and none runs during an erasure or while a rebuild replaces
//! rows, and learns whom it must leave out.
//!
//! The statements that write the projection name its tables without a schema. For the lanes these are the tables of schema
//! `dsync`, for a rebuild temporary ones of the same shape. So there is only one set of statements, and a rebuild cannot
//! write anything else than the lanes would.

use std::collections::HashSet;

use service::postgres::IDLE_IN_TRANSACTION;
use sqlx::PgConnection;

/// What a writer knows once it has its locks.
pub(super) struct Entered {
    /// Which of the people it is about to write are erased.
    pub erased: HashSet<String>,
    /// Whether history of the end of some directory or group is still to be written: see [`super::backlog`].
    pub has_backlog: bool,
}

/// Has the server end the transaction if its program falls silent, because others wait for it. The connection's own setting
/// may have been lost in a pooler.
pub(super) async fn limit(connection: &mut PgConnection) -> sqlx::Result<()> {
    sqlx::query!(
        r#"select set_config('idle_in_transaction_session_timeout', $1, true) as "limit!""#,
        IDLE_IN_TRANSACTION
    )
    .fetch_one(connection)
    .await?;
    Ok(())
}

/// Locks each directory, and shares the lock that erasures hold exclusively. Then returns which of `people` are erased, and
/// locks the history backlog of these directories and of `groups`. Also sets what [`limit`] sets, and has the statements that
/// follow planned once for the session: planning them for one removal takes as long as executing them. For the order of the
/// locks, see `dsync.lock_directories` (V15) and `dsync.entering_deferring_groups` (V19).
pub(super) async fn enter(
    connection: &mut PgConnection,
    directories: &[&str],
    people: &[&str],
    groups: &[&str],
) -> sqlx::Result<Entered> {
    let entered = sqlx::query!(
        r#"
        select
            erased as "erased!", has_backlog as "has_backlog!",
            set_config('idle_in_transaction_session_timeout', $3, true) as "limit!",
            set_config('plan_cache_mode', 'force_generic_plan', true) as "planned!"
        from dsync.entering_deferring_groups($1::text[], $2::text[], $4::text[])
        "#,
        directories as &[&str],
        people as &[&str],
        IDLE_IN_TRANSACTION,
        groups as &[&str],
    )
    .fetch_one(connection)
    .await?;
    Ok(Entered {
        erased: entered.erased.into_iter().collect(),
        has_backlog: entered.has_backlog,
    })
}

/// Like [`enter`], for a transaction that writes temporary tables instead. Nobody else sees those, so it takes no locks.
pub(super) async fn beside(connection: &mut PgConnection) -> sqlx::Result<()> {
    sqlx::query!("select set_config('search_path', 'pg_temp, dsync', true) as path")
        .fetch_one(connection)
        .await?;
    Ok(())
}

/// Waits until no writer is at work, and keeps all writers out to the end of the transaction. So a batch that was read
/// earlier cannot bring back an erased person, and a rebuild replaces rows that nobody is changing.
pub(super) async fn erasures(connection: &mut PgConnection) -> sqlx::Result<()> {
    sqlx::query!(r#"select pg_advisory_xact_lock(hashtext('dsync erasures'), 0) as "locked: ()""#)
        .fetch_one(connection)
        .await?;
    Ok(())
}
