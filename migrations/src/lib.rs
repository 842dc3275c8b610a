//! The database schema of dsync, version by version, and the code that brings it up to date.
//!
//! The SQL files beside this package are embedded in the programs. A landed file never changes: `ops/check-migrations`
//! enforces that, refinery's checksums enforce it again at run time, and the golden dump in the tests shows what the
//! files add up to.
//!
//! Any number of programs may start at once: an advisory lock lets one migrate while the others wait and then find
//! nothing left to do. A migration runs alongside programs that read and write. It waits only 3 s for a lock that one
//! of them holds, because others queue behind it. Then it releases all its own locks and tries again.

mod sqlx_driver;

use std::error::Error as _;
use std::time::Duration;

use refinery::{Migration, Report, Target};
use sqlx::error::DatabaseError;
use sqlx::postgres::{PgAdvisoryLock, PgPool};
use sqlx::{Connection as _, PgConnection};

use sqlx_driver::SqlxClient;

mod embedded {
    refinery::embed_migrations!(".");
}

/// The table in which refinery records the applied migrations.
const HISTORY: &str = "dsync.schema_history";

/// How often to check whether another program is still migrating.
const POLL: Duration = Duration::from_millis(200);

/// How many times a migration blocked by others' locks is tried, and the pause in between: over a minute in all.
const TRIES: u32 = 15;
const PAUSE: Duration = Duration::from_secs(2);

/// Why the schema could not be brought up to date.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The database failed or refused a request.
    #[error("database: {0}")]
    Database(#[from] sqlx::Error),
    /// A migration failed, or the applied migrations are not those these programs were built with.
    #[error("migration: {0}")]
    Migration(#[from] refinery::Error),
}

impl Error {
    /// The database's error, if that is the cause, from before a migration or within one. A migration that failed was
    /// rolled back as a whole.
    pub fn database(&self) -> Option<&sqlx::Error> {
        match self {
            Self::Database(error) => Some(error),
            Self::Migration(error) => error.source()?.downcast_ref(),
        }
    }

    /// Whether others' locks were the cause: held for too long, or taken in another order than here (a deadlock).
    fn is_contention(&self) -> bool {
        let answer = self.database().and_then(sqlx::Error::as_database_error);
        matches!(
            answer.and_then(DatabaseError::code).as_deref(),
            Some("55P03" | "40P01")
        )
    }
}

/// What [`run`] applied: version and name of each migration, in order. Empty if the schema was up to date.
pub type Applied = Vec<(i32, String)>;

/// Brings the schema up to date.
///
/// Needs the right to create schemas only if migrations are pending. A program with fewer rights may call this once an
/// administrator has migrated.
pub async fn run(pool: &PgPool) -> Result<Applied, Error> {
    run_to(pool, Target::Latest).await
}

/// Brings the schema up to version `newest` and no further, as the starting point for a test of an upgrade.
pub async fn run_up_to(pool: &PgPool, newest: i32) -> Result<Applied, Error> {
    run_to(pool, Target::Version(newest)).await
}

async fn run_to(pool: &PgPool, target: Target) -> Result<Applied, Error> {
    let mut connection = pool.acquire().await?.detach();
    if pending(&mut connection).await? == Some(0) {
        connection.close().await?;
        return Ok(Vec::new());
    }
    // The lock belongs to a transaction that does nothing else. A pooler may give a session, and its lock, to others.
    let mut holder = pool.acquire().await?.detach();
    let mut lock = holder.begin().await?;
    sqlx::raw_sql("set local idle_in_transaction_session_timeout = 0")
        .execute(&mut *lock)
        .await?;
    let mut is_told = false;
    // Polled, because the statement timeout would cut a single long wait short.
    while !is_alone(&mut lock).await? {
        if !std::mem::replace(&mut is_told, true) {
            tracing::warn!("another program is migrating the schema; waiting for it");
        }
        tokio::time::sleep(POLL).await;
    }
    let applied = migrate_beside_others(&mut connection, target).await;
    // Should the rollback fail, closing the connection releases the lock too.
    let unlocked = lock.rollback().await;
    let closed = [holder.close().await, connection.close().await];
    let applied = applied?;
    unlocked?;
    closed.into_iter().collect::<Result<(), _>>()?;
    Ok(applied)
}

/// Takes the lock that a migrating program holds, if nobody has it. Returns whether it did.
async fn is_alone(transaction: &mut PgConnection) -> sqlx::Result<bool> {
    let lock = PgAdvisoryLock::new("dsync migrations");
    sqlx::query_scalar("select pg_try_advisory_xact_lock($1)")
        .bind(lock.key().as_bigint())
        .fetch_one(transaction)
        .await
}

/// How many migrations are still to be applied; `None` if none ever was.
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

async fn migrate_beside_others(connection: &mut PgConnection, target: Target) -> Result<Applied, Error> {
    let mut applied = Vec::new();
    for _ in 1..TRIES {
        match migrate(connection, target, &mut applied).await {
            Err(error) if error.is_contention() => {
                tracing::warn!("others hold locks that a migration needs; waiting, then trying again");
                tokio::time::sleep(PAUSE).await;
            }
            other => return other.map(|()| applied),
        }
    }
    migrate(connection, target, &mut applied).await?;
    Ok(applied)
}

/// Adds the migrations it applied to `applied`, even if a later one fails.
async fn migrate(connection: &mut PgConnection, target: Target, applied: &mut Applied) -> Result<(), Error> {
    let exists: bool = sqlx::query_scalar("select to_regnamespace('dsync') is not null")
        .fetch_one(&mut *connection)
        .await?;
    if !exists {
        sqlx::query("create schema dsync")
            .execute(&mut *connection)
            .await?;
    }
    let mut runner = embedded::migrations::runner().set_target(target);
    runner.set_migration_table_name(HISTORY);
    let migrated = runner.run_async(&mut SqlxClient(connection)).await;
    let report = match &migrated {
        Ok(report) => Some(report),
        Err(error) => error.report(),
    };
    applied.extend(
        report
            .into_iter()
            .flat_map(Report::applied_migrations)
            .map(|migration| (migration.version(), migration.name().to_owned())),
    );
    migrated?;
    Ok(())
}
