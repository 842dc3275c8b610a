//! How a transaction that writes the projection begins: which tables it means, locks that it holds to its end, so that
//! writes within one directory are serial and none runs beside an erasure or a rebuild, and whom it must leave out.
//!
//! The statements that write the projection name its tables without a schema: live they are those of schema `dsync`, for
//! a rebuild temporary ones of the same shape. So there is one set of statements, and a rebuild cannot differ from what
//! it rebuilds.

use std::collections::{BTreeSet, HashSet};

use schema::ids::DirectoryId;
use sqlx::PgConnection;

/// Takes the lock of each directory, and shares the one that erasures hold alone; then answers which of `people` are
/// erased. For the order of the locks see `dsync.enter` (V14).
pub(super) async fn enter(
    connection: &mut PgConnection,
    directories: &BTreeSet<&DirectoryId<'_>>,
    people: &[&str],
) -> sqlx::Result<HashSet<String>> {
    let directories: Vec<&str> = directories.iter().map(|id| id.as_str()).collect();
    let erased = sqlx::query_scalar!(
        r#"select dsync.enter($1::text[], $2::text[]) as "user_id!""#,
        &directories as &[&str],
        people as &[&str],
    )
    .fetch_all(connection)
    .await?;
    Ok(erased.into_iter().collect())
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
