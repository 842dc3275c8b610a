//! Postgres for programs that stay up for months: how connections are set up, and what their errors mean.

mod trouble;

use std::time::{Duration, Instant};

use log::LevelFilter;
use sqlx::pool::PoolConnection;
use sqlx::postgres::{PgConnectOptions, PgPool, PgPoolOptions};
use sqlx::{ConnectOptions as _, Connection as _, PgConnection, Postgres};
use time::OffsetDateTime;

pub use trouble::{Described, Trouble, described};
pub(crate) use trouble::{UNPROVEN, is_unproven};

use crate::settings::{Secret, SettingError};

/// How a program wants its connections.
#[derive(Clone, Copy, Debug)]
pub struct PoolSettings {
    /// Shown in `pg_stat_activity`.
    pub application_name: &'static str,
    /// Connections at most.
    pub max_connections: u32,
    /// How long one statement may run; zero = no limit.
    pub statement_timeout: Duration,
}

/// After this long without a statement, the server ends an open transaction: a frozen program's locks go with it.
pub const IDLE_IN_TRANSACTION: &str = "20s";

/// How long to wait for a connection, and for a sign that one is alive.
const ACQUIRED_WITHIN: Duration = Duration::from_secs(5);

/// Longer than a statement waits for another program's locks, which the server ends before.
const GIVEN_UP_AFTER: Duration = Duration::from_secs(40);

/// A statement that takes longer is told of at debug level.
const SLOW: Duration = Duration::from_secs(1);

/// Connections to the database at `url`. Returns at once: they are opened when needed, and opened again when lost.
/// An error only when the URL cannot be understood.
///
/// The time-outs travel in the connection's `options`. A PgBouncer in between refuses those unless told to ignore them
/// (`ignore_startup_parameters = extra_float_digits,options`); then set them on the role: `alter role … set …`. Transactions
/// that others wait for bring [`IDLE_IN_TRANSACTION`] along.
pub fn pool(url: &Secret, settings: &PoolSettings) -> Result<PgPool, SettingError> {
    // The parser's own error may repeat parts of the URL, and the URL holds the password. It takes any scheme.
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
        // sqlx sets no keepalive on its side; on the server's side a vanished client is noticed within half a minute.
        ("tcp_keepalives_idle", "10".to_owned()),
        ("tcp_keepalives_interval", "5".to_owned()),
        ("tcp_keepalives_count", "4".to_owned()),
    ]);
    // The driver's warning shows all of a statement, pages of it; how slow the database is, metrics tell.
    let options = options.log_slow_statements(LevelFilter::Debug, SLOW);
    Ok(PgPoolOptions::new()
        .max_connections(settings.max_connections)
        .acquire_timeout(ACQUIRED_WITHIN)
        // The check below stands in for the ping, at the same price.
        .test_before_acquire(false)
        .before_acquire(|connection, _| Box::pin(is_writable(connection)))
        .after_connect(|connection, _| Box::pin(must_be_writable(connection)))
        // The pool's own ping would wait for ever, and keep the connection's place: see `answered`.
        .after_release(|connection, _| Box::pin(answers(connection)))
        .connect_lazy_with(options))
}

/// After so long without a statement a connection is looked at before it is used. Whoever uses one more often than that,
/// if only to renew a lease, never waits for the look.
const IDLE: Duration = Duration::from_secs(2);

/// A connection that one task keeps, for transaction after transaction: the pool would look at it before each and after
/// each, which is three round trips on top of a small transaction's five.
pub struct Kept {
    connection: PoolConnection<Postgres>,
    backend: Backend,
    used_at: Instant,
}

impl Kept {
    /// Takes one out of `pool`, which gets it back when this is dropped.
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

    /// The server's end of the connection.
    pub fn backend(&self) -> Backend {
        self.backend.clone()
    }

    /// The connection. An error when it was idle and does not answer any more, or only for reading: then this is to be
    /// dropped, and another to be taken.
    pub async fn ready(&mut self) -> Result<&mut PgConnection, sqlx::Error> {
        if self.used_at.elapsed() > IDLE {
            answered_within(ACQUIRED_WITHIN, must_be_writable(&mut self.connection)).await?;
        }
        self.used_at = Instant::now();
        Ok(&mut self.connection)
    }
}

/// How long a statement may take whose answer somebody waits for at a terminal, and how long it may wait for a lock.
const LOOKED_WITHIN: [(&str, &str); 2] = [("statement_timeout", "2s"), ("lock_timeout", "1s")];

/// A connection to look at the database with, for a person: outside of the pool, or at once why there is none. The pool
/// goes on asking a server that refuses, and then knows only that its time is up. A table that is locked keeps nobody for
/// long. A standby will do.
pub async fn look(pool: &PgPool) -> sqlx::Result<PgConnection> {
    let options = PgConnectOptions::clone(&pool.connect_options());
    // The last of several counts.
    options.options(LOOKED_WITHIN).connect().await
}

/// Waits for what the database was asked, but not for ever: a server whose host is gone answers nothing, nor does it close
/// the connection. What is given up is dropped, and its connection with it.
///
/// For single statements, and for few of them; every await of the database in a program that must go on belongs in here.
pub fn answered<T, E: From<sqlx::Error>>(
    asking: impl Future<Output = Result<T, E>>,
) -> impl Future<Output = Result<T, E>> {
    answered_within(GIVEN_UP_AFTER, asking)
}

/// The same for what may take as long as `limit`.
pub fn answered_within<T, E: From<sqlx::Error>>(
    limit: Duration,
    asking: impl Future<Output = Result<T, E>>,
) -> impl Future<Output = Result<T, E>> {
    // On the heap, as every caller's own future would hold it otherwise.
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

/// The server's process at the other end of a connection.
#[derive(Clone, Debug)]
pub struct Backend {
    pool: PgPool,
    /// Its id, and when it began: another server may have a process of the same id.
    identity: (i32, OffsetDateTime),
}

impl Backend {
    /// Waits for what this process was asked for as long as it is at work on it, however long that is: the server bounds
    /// its statements itself. Every `limit` it is looked at, on another connection; what it is not at work on is given up,
    /// as by [`answered_within`].
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

    /// Whether the server says so. Behind a pooler the process may be another's by now, which is no reason to wait: nor is that
    /// it answers this very look.
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

/// How often it is looked whether a pooler is in between: somebody else may come there first.
const LOOKS: usize = 3;

/// Whether a transaction pooler is in between: what is made in a session (temporary tables, settings) may then be met by
/// others, and not be met again. `connection` is not one of `pool`'s.
///
/// Such a pooler gives the server's process that one of its clients has just used to whoever begins a transaction next.
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

/// A name that leads to a standby, before it is promoted: nothing can be done there.
async fn must_be_writable(connection: &mut PgConnection) -> Result<(), sqlx::Error> {
    if is_writable(connection).await? {
        Ok(())
    } else {
        Err(sqlx::Error::Io(std::io::Error::new(
            std::io::ErrorKind::ReadOnlyFilesystem,
            "the server is read-only: a standby",
        )))
    }
}

/// An error when the URL names a file of authorities that cannot be read: each connection would only fail anew.
fn authorities(url: &str) -> Result<(), SettingError> {
    let parameters = url.split_once('?').map_or("", |(_, parameters)| parameters);
    let named = parameters
        .split('&')
        .find_map(|parameter| parameter.strip_prefix("sslrootcert="))
        // Escaped in some other way: the connection will tell.
        .filter(|path| !path.contains('%'));
    match named.map(std::fs::File::open) {
        Some(Err(error)) => Err(SettingError::malformed(
            "DATABASE_URL",
            format!("names an sslrootcert that cannot be read: {}", error.kind()),
        )),
        _ => Ok(()),
    }
}

/// False for a server that has become read-only (after a fail-over, say): the pool then drops the connection, and the
/// next one is made to whichever server the name leads to by then.
async fn is_writable(connection: &mut PgConnection) -> Result<bool, sqlx::Error> {
    sqlx::query_scalar("select current_setting('transaction_read_only') = 'off'")
        .fetch_one(connection)
        .await
}
