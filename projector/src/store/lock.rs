//! How a transaction that writes the projection begins: which tables it means, locks that it holds to its end, so that
//! writes within one directory are serial and none runs beside an erasure or a rebuild, and whom it must leave out.
//!
//! The statements that write the projection name its tables without a schema: live they are those of schema `dsync`, for
//! a rebuild temporary ones of the same shape. So there is one set of statements, and a rebuild cannot differ from what
//! it rebuilds.

use std::collections::HashSet;

use service::postgres::IDLE_IN_TRANSACTION;
use sqlx::PgConnection;

/// What a writer knows once it has its locks.
pub(super) struct Entered {
    /// Those of the people it means who are erased.
    pub erased: HashSet<String>,
    /// Whether history of the end of some directory or group is still to be written: see [`super::backlog`].
    pub has_backlog: bool,
}

/// Has the server end the transaction should its program fall silent: others wait for it. The connection's own setting may
/// have got lost in a pooler.
pub(super) async fn limit(connection: &mut PgConnection) -> sqlx::Result<()> {
    sqlx::query!(
        r#"select set_config('idle_in_transaction_session_timeout', $1, true) as "limit!""#,
        IDLE_IN_TRANSACTION
    )
    .fetch_one(connection)
    .await?;
    Ok(())
}

/// Takes the lock of each directory, and shares the one that erasures hold alone; then answers which of `people` are
/// erased, and locks what of the backlog is of them or of `groups`. Limited as by [`limit`]. For the order of the locks see
/// `dsync.lock_directories` (V15) and `dsync.entering_deferring_groups` (V19).
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
            set_config('idle_in_transaction_session_timeout', $3, true) as "limit!"
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

/// For a transaction that writes temporary tables instead, which nobody else sees: no locks.
pub(super) async fn beside(connection: &mut PgConnection) -> sqlx::Result<()> {
    sqlx::query!("select set_config('search_path', 'pg_temp, dsync', true) as path")
        .fetch_one(connection)
        .await?;
    Ok(())
}

/// Waits until no writer is at work and keeps all out: an erased person cannot be brought back by a batch that was read
/// before, and a rebuild replaces what nobody is changing.
pub(super) async fn erasures(connection: &mut PgConnection) -> sqlx::Result<()> {
    sqlx::query!(r#"select pg_advisory_xact_lock(hashtext('dsync erasures'), 0) as "locked: ()""#)
        .fetch_one(connection)
        .await?;
    Ok(())
}
