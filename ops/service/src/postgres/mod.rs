//! Postgres for programs that run for months: how connections are set up, and what their errors mean.

mod trouble;

use std::time::{Duration, Instant};

use log::LevelFilter;
use sqlx::pool::PoolConnection;
use sqlx::postgres::{PgConnectOptions, PgPool, PgPoolOptions};
use sqlx::{ConnectOptions as _, Connection as _, PgConnection, Postgres};
use time::OffsetDateTime;

pub use trouble::{Described, Trouble, described, is_missing_schema};
pub(crate) use trouble::{UNMIGRATED, UNPROVEN, is_unproven};

use crate::settings::{Secret, SettingError};

/// How a program configures its connections.
#[derive(Clone, Copy, Debug)]
pub struct PoolSettings {
    /// Shown in `pg_stat_activity`.
    pub application_name: &'static str,
    /// The most connections in the pool.
    pub max_connections: u32,
    /// How long one statement may run; zero = no limit.
    pub statement_timeout: Duration,
}

/// After this long without a statement, the server ends an open transaction, which releases a frozen program's locks.
pub const IDLE_IN_TRANSACTION: &str = "20s";

/// How long to wait for a connection, or for proof that one is alive.
const ACQUIRED_WITHIN: Duration = Duration::from_secs(5);

/// How long to wait for an answer. Longer than a statement waits for another program's locks: the server ends that
/// first.
const GIVEN_UP_AFTER: Duration = Duration::from_secs(40);

/// A statement that takes longer is logged, at debug level.
const SLOW: Duration = Duration::from_secs(1);

/// A pool of connections to the database at `url`. Returns at once: connections are opened when needed, and reopened
/// when lost. An error only when the URL, or the `sslrootcert` that it names, cannot be used.
///
/// The timeouts are sent in the connection's `options`. A PgBouncer in between refuses these unless told to ignore them
/// (`ignore_startup_parameters = extra_float_digits,options`). In that case set the timeouts on the role:
/// `alter role … set …`. Transactions that others wait for set [`IDLE_IN_TRANSACTION`] themselves.
pub fn pool(url: &Secret, settings: &PoolSettings) -> Result<PgPool, SettingError> {
    // The parser's own error may repeat parts of the URL, which contains the password. The parser accepts any scheme.
    let options: PgConnectOptions = Some(url.expose())
        .filter(|url| url.starts_with("postgres://") || url.starts_with("postgresql://"))
        .and_then(|url| url.parse().ok())
        .ok_or_else(|| SettingError::malformed("DATABASE_URL", "is not a Postgres URL"))?;
    authorities(url.expose())?;
    let options = options.application_name(settings.application_name).options([
        (
            "idle_in_transaction_session_timeout",
            IDLE_IN_TRANSACTION.to_owned(),
        ),
        (
            "statement_timeout",
            format!("{}ms", settings.statement_timeout.as_millis()),
        ),
        ("TimeZone", "UTC".to_owned()),
        // sqlx sets no keepalive on the client's side. With these, the server notices a vanished client within half a
        // minute.
        ("tcp_keepalives_idle", "10".to_owned()),
        ("tcp_keepalives_interval", "5".to_owned()),
        ("tcp_keepalives_count", "4".to_owned()),
    ]);
    // The driver's warning prints the whole statement, which can be pages long. Metrics show how slow the database is.
    let options = options.log_slow_statements(LevelFilter::Debug, SLOW);
    Ok(PgPoolOptions::new()
        .max_connections(settings.max_connections)
        .acquire_timeout(ACQUIRED_WITHIN)
        // The check below replaces the ping, at the same cost.
        .test_before_acquire(false)
        .before_acquire(|connection, _| Box::pin(is_writable(connection)))
        .after_connect(|connection, _| Box::pin(must_be_writable(connection)))
        // The pool's own ping would wait forever and keep the connection's place in the pool: see `answered`.
        .after_release(|connection, _| Box::pin(answers(connection)))
        .connect_lazy_with(options))
}

/// After this long without a statement, a connection is checked before it is used. A task that uses its connection more
/// often, if only to renew a lease, never waits for the check.
const IDLE: Duration = Duration::from_secs(2);

/// A connection that one task keeps for many transactions. The pool would check it before and after each one, which
/// adds three round trips to the five of a small transaction.
pub struct Kept {
    connection: PoolConnection<Postgres>,
    backend: Backend,
    used_at: Instant,
}

impl Kept {
    /// Takes a connection from `pool`. It is returned when this is dropped.
    pub async fn from(pool: &PgPool) -> Result<Self, sqlx::Error> {
        let mut connection = answered(pool.acquire()).await?;
        let identity =
            sqlx::query_as("select pid, backend_start from pg_stat_activity where pid = pg_backend_pid()");
        let identity = answered(identity.fetch_one(&mut *connection)).await?;
        Ok(Self {
            connection,
            backend: Backend {
                pool: pool.clone(),
                identity,
            },
            used_at: Instant::now(),
        })
    }

    /// The server process at the other end of the connection.
    pub fn backend(&self) -> Backend {
        self.backend.clone()
    }

    /// The connection. If it was idle, it is checked first; an error when it does not answer or has become read-only.
    /// Then drop this and take another.
    pub async fn ready(&mut self) -> Result<&mut PgConnection, sqlx::Error> {
        if self.used_at.elapsed() > IDLE {
            answered_within(ACQUIRED_WITHIN, must_be_writable(&mut self.connection)).await?;
        }
        self.used_at = Instant::now();
        Ok(&mut self.connection)
    }
}

/// How long a statement may run, and wait for a lock, when somebody waits for the answer at a terminal.
const LOOKED_WITHIN: [(&str, &str); 2] = [("statement_timeout", "2s"), ("lock_timeout", "1s")];

/// A connection for showing a person the state of the database. It is opened outside the pool, so that an error is
/// returned at once and says why: the pool keeps trying a server that refuses, and then knows only that its time is up.
/// A locked table does not delay it for long. A standby will do.
pub async fn look(pool: &PgPool) -> sqlx::Result<PgConnection> {
    let options = PgConnectOptions::clone(&pool.connect_options());
    // If an option is given several times, the last one counts.
    options.options(LOOKED_WITHIN).connect().await
}

/// Waits for the database's answer, but not forever: a server whose host is gone neither answers nor closes the
/// connection. When the time is up, the request is dropped, and its connection with it.
///
/// For single statements, or a few of them. In a program that must keep running, every await of the database belongs in
/// here.
pub fn answered<T, E: From<sqlx::Error>>(
    asking: impl Future<Output = Result<T, E>>,
) -> impl Future<Output = Result<T, E>> {
    answered_within(GIVEN_UP_AFTER, asking)
}

/// Like [`answered`], for requests that may take up to `limit`.
pub fn answered_within<T, E: From<sqlx::Error>>(
    limit: Duration,
    asking: impl Future<Output = Result<T, E>>,
) -> impl Future<Output = Result<T, E>> {
    // On the heap, because it would otherwise be part of every caller's future.
    let asking = Box::pin(asking);
    async move {
        match tokio::time::timeout(limit, asking).await {
            Ok(answer) => answer,
            Err(_) => Err(given_up().into()),
        }
    }
}

fn given_up() -> sqlx::Error {
    sqlx::Error::Io(std::io::ErrorKind::TimedOut.into())
}

/// The server process at the other end of a connection.
#[derive(Clone, Debug)]
pub struct Backend {
    pool: PgPool,
    /// Its process id and start time: a process of another server may have the same id.
    identity: (i32, OffsetDateTime),
}

impl Backend {
    /// Waits for the answer of this process for as long as the process is at work, however long that takes: the server
    /// limits its statements itself. After every `limit`, another connection checks whether the process is still at
    /// work. If not, the request is given up, as by [`answered_within`].
    pub fn answered<T, E: From<sqlx::Error>>(
        &self,
        limit: Duration,
        asking: impl Future<Output = Result<T, E>>,
    ) -> impl Future<Output = Result<T, E>> {
        let mut asking = Box::pin(asking);
        async move {
            loop {
                match tokio::time::timeout(limit, &mut asking).await {
                    Ok(answer) => return answer,
                    Err(_) if self.is_at_work().await => {}
                    Err(_) => return Err(given_up().into()),
                }
            }
        }
    }

    /// Whether the server says that this process is at work. Behind a pooler, the process may by now serve other
    /// clients. If it serves this very query, that does not count.
    async fn is_at_work(&self) -> bool {
        let (pid, began) = self.identity;
        let look = sqlx::query_scalar(
            "select exists (
                select from pg_stat_activity
                where pid = $1 and backend_start = $2 and state = 'active' and pid <> pg_backend_pid()
            )",
        );
        let looking = look.bind(pid).bind(began).fetch_one(&self.pool);
        answered_within(ACQUIRED_WITHIN, looking).await.unwrap_or(false)
    }
}

/// How many times to test for a pooler: another client may get the server process first.
const LOOKS: usize = 3;

/// Whether a transaction pooler is in between. If so, what is created in a session (temporary tables, settings) may be
/// seen by other clients, and may be gone for this one. `connection` must not be one of `pool`'s.
///
/// Such a pooler gives the server process that a client has just used to the next client that begins a transaction.
pub async fn is_shared(connection: &mut PgConnection, pool: &PgPool) -> Result<bool, sqlx::Error> {
    for _ in 0..LOOKS {
        let before = process(connection).await?;
        let mut other = pool.begin().await?;
        let others = process(&mut other).await?;
        let after = process(connection).await?;
        other.rollback().await?;
        if others == before || after != before {
            return Ok(true);
        }
    }
    Ok(false)
}

async fn process(connection: &mut PgConnection) -> Result<i32, sqlx::Error> {
    sqlx::query_scalar("select pg_backend_pid()")
        .fetch_one(connection)
        .await
}

async fn answers(connection: &mut PgConnection) -> Result<bool, sqlx::Error> {
    answered_within(ACQUIRED_WITHIN, connection.ping()).await?;
    Ok(true)
}

/// An error when the URL's host is a standby that has not been promoted yet: nothing can be written there.
async fn must_be_writable(connection: &mut PgConnection) -> Result<(), sqlx::Error> {
    if is_writable(connection).await? {
        Ok(())
    } else {
        Err(sqlx::Error::Io(std::io::Error::new(
            std::io::ErrorKind::ReadOnlyFilesystem,
            "the server is read-only (a standby)",
        )))
    }
}

/// An error when the URL names a file of certificate authorities that cannot be read: every connection would fail.
fn authorities(url: &str) -> Result<(), SettingError> {
    let parameters = url.split_once('?').map_or("", |(_, parameters)| parameters);
    let named = parameters
        .split('&')
        .find_map(|parameter| parameter.strip_prefix("sslrootcert="))
        // A percent-encoded path is not decoded here; connecting will show whether it can be read.
        .filter(|path| !path.contains('%'));
    match named.map(std::fs::File::open) {
        Some(Err(error)) => Err(SettingError::malformed(
            "DATABASE_URL",
            format!("names an sslrootcert that cannot be read: {}", error.kind()),
        )),
        _ => Ok(()),
    }
}

/// False for a server that has become read-only (after a failover, say). The pool then drops the connection, and the
/// next one goes to whichever server the host name resolves to by then.
async fn is_writable(connection: &mut PgConnection) -> Result<bool, sqlx::Error> {
    sqlx::query_scalar("select current_setting('transaction_read_only') = 'off'")
        .fetch_one(connection)
        .await
}
