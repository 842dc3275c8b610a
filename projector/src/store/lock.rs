//! Locks held to the end of a transaction: writes within one directory are serial, and none runs beside an erasure.

use std::collections::BTreeSet;

use schema::ids::DirectoryId;
use sqlx::PgConnection;

/// Takes the lock of each directory, and shares the one that erasures hold alone. Always in the same order, so that writers wait for each other in a line and not
/// in a ring; and out of 1,024 locks, so that a batch of many directories cannot exhaust the lock table.
pub(super) async fn directories(
    connection: &mut PgConnection,
    directories: &BTreeSet<&DirectoryId<'_>>,
) -> sqlx::Result<()> {
    let ids: Vec<&str> = directories.iter().map(|id| id.as_str()).collect();
    // Shared first: it is one lock, and whoever holds directories' locks already has it.
    sqlx::query!(r#"select pg_advisory_xact_lock_shared(hashtext('dsync erasures'), 0) as "locked: ()""#)
        .fetch_one(&mut *connection)
        .await?;
    if ids.is_empty() {
        return Ok(());
    }
    sqlx::query!(
        r#"
        select pg_advisory_xact_lock(hashtext('dsync directories'), bucket) as "locked: ()"
        from (
            select distinct hashtext(id) & 1023 as bucket
            from unnest($1::text[]) as x (id)
            order by bucket
        ) as buckets
        "#,
        &ids as &[&str],
    )
    .fetch_all(connection)
    .await?;
    Ok(())
}

/// Waits until no writer is at work and keeps all out: an erased person cannot be brought back by a batch that was read
/// before.
pub(super) async fn erasures(connection: &mut PgConnection) -> sqlx::Result<()> {
    sqlx::query!(r#"select pg_advisory_xact_lock(hashtext('dsync erasures'), 0) as "locked: ()""#)
        .fetch_one(connection)
        .await?;
    Ok(())
}
