//! How a transaction that writes the projection begins: which tables it means, and locks that it holds to its end, so
//! that writes within one directory are serial and none runs beside an erasure or a rebuild.
//!
//! The statements that write the projection name its tables without a schema: live they are those of schema `dsync`, for
//! a rebuild temporary ones of the same shape. So there is one set of statements, and a rebuild cannot differ from what
//! it rebuilds.

use std::collections::BTreeSet;

use schema::ids::DirectoryId;
use sqlx::PgConnection;

/// Takes the lock of each directory, and shares the one that erasures hold alone. Always in the same order, so that
/// writers wait for each other in a line and not in a ring; and out of 1,024 locks, so that a batch of many directories
/// cannot exhaust the lock table.
pub(super) async fn directories(
    connection: &mut PgConnection,
    directories: &BTreeSet<&DirectoryId<'_>>,
) -> sqlx::Result<()> {
    let ids: Vec<&str> = directories.iter().map(|id| id.as_str()).collect();
    // Shared first: it is one lock, and whoever holds directories' locks already has it. A directory's lock is in the
    // list of a join, so that its row, and with it the first lock, must be there. The path goes along, to spare a round
    // trip; a setting of the connection would get lost in a pooler between.
    sqlx::query!(
        r#"
        with begun as materialized (
            select
                set_config('search_path', 'dsync, pg_temp', true) as path,
                pg_advisory_xact_lock_shared(hashtext('dsync erasures'), 0) as locked
        )
        select
            begun.path,
            case
                when buckets.bucket is not null
                    then pg_advisory_xact_lock(hashtext('dsync directories'), buckets.bucket)
            end as "locked: ()"
        from begun
        left join (
            select distinct hashtext(id) & 1023 as bucket
            from unnest($1::text[]) as x (id)
            order by bucket
        ) as buckets on true
        "#,
        &ids as &[&str],
    )
    .fetch_all(connection)
    .await?;
    Ok(())
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
