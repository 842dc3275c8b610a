//! The database schema of dsync, version by version, and how it is brought up to date.
//!
//! The SQL files beside this package are embedded in the programs. A landed file never changes; `ops/check-migrations`
//! holds that, refinery's checksums hold it again at run time, and the golden dump in the tests shows what the files
//! add up to.
//!
//! Any number of programs may start at once: an advisory lock lets one migrate while the others wait and then find
//! nothing left to do.

mod sqlx_driver;

use refinery::Migration;
use sqlx::postgres::{PgAdvisoryLock, PgPool};
use sqlx::{Connection as _, PgConnection};

use sqlx_driver::SqlxClient;

mod embedded {
    refinery::embed_migrations!(".");
}

/// The table in which refinery keeps what was applied.
const HISTORY: &str = "dsync.schema_history";

/// Why the schema could not be brought up to date.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The database did not do as asked.
    #[error("database: {0}")]
    Database(#[from] sqlx::Error),
    /// A migration failed, or what was applied is not what these programs were built with.
    #[error("migration: {0}")]
    Migration(#[from] refinery::Error),
}

/// What [`run`] applied: version and name of each migration, in order. Empty if the schema was up to date.
pub type Applied = Vec<(i32, String)>;

/// Brings the schema up to date.
///
/// Needs the right to create schemas only while something is missing; a program with fewer rights may call this once an
/// administrator has migrated.
pub async fn run(pool: &PgPool) -> Result<Applied, Error> {
    let mut connection = pool.acquire().await?.detach();
    if pending(&mut connection).await? == Some(0) {
        connection.close().await?;
        return Ok(Vec::new());
    }
    let lock = PgAdvisoryLock::new("dsync migrations");
    let mut guard = lock.acquire(connection).await?;
    let applied = migrate(guard.as_mut()).await;
    // Closing the connection gives the lock back too, should saying so fail.
    guard.release_now().await?.close().await?;
    applied
}

/// How many migrations are still to be applied; nothing where none ever was.
pub async fn pending(connection: &mut PgConnection) -> Result<Option<usize>, Error> {
    let known: bool = sqlx::query_scalar("select to_regclass($1) is not null")
        .bind(HISTORY)
        .fetch_one(&mut *connection)
        .await?;
    if !known {
        return Ok(None);
    }
    let mut runner = embedded::migrations::runner();
    runner.set_migration_table_name(HISTORY);
    let applied = runner
        .get_applied_migrations_async(&mut SqlxClient(connection))
        .await?;
    let is_applied = |migration: &Migration| {
        applied
            .iter()
            .any(|other| other.version() == migration.version() && other.checksum() == migration.checksum())
    };
    Ok(Some(
        runner
            .get_migrations()
            .iter()
            .filter(|migration| !is_applied(migration))
            .count(),
    ))
}

async fn migrate(connection: &mut PgConnection) -> Result<Applied, Error> {
    let exists: bool = sqlx::query_scalar("select to_regnamespace('dsync') is not null")
        .fetch_one(&mut *connection)
        .await?;
    if !exists {
        sqlx::query("create schema dsync")
            .execute(&mut *connection)
            .await?;
    }
    let mut runner = embedded::migrations::runner();
    runner.set_migration_table_name(HISTORY);
    let report = runner.run_async(&mut SqlxClient(connection)).await?;
    Ok(report
        .applied_migrations()
        .iter()
        .map(|migration| (migration.version(), migration.name().to_owned()))
        .collect())
}
