//! A private Postgres, which starts in a fraction of a second, and can be killed, frozen, and set back to an older
//! copy.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use sqlx::postgres::PgPoolOptions;
use sqlx::{AssertSqlSafe, Connection as _, PgPool};
use tempfile::TempDir;
use tokio::net::TcpStream;

use crate::authority::Identity;
use crate::ports::Port;
use crate::process::{Process, Signal, signal_pid};
use crate::template::{DATABASE, Installation, PASSWORD, USER, copy, words_of};
use crate::usage::after_the_name;

const STARTS_WITHIN: Duration = Duration::from_mins(1);
const STOPS_WITHIN: Duration = Duration::from_mins(1);
const DIES_WITHIN: Duration = Duration::from_secs(20);

/// What a crash may lose.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Durability {
    /// Writes are not synced to disk. They survive a killed process, because they are in the system's cache.
    Quick,
    /// As in production: synced at commit, and otherwise with Postgres's default settings.
    Full,
}

/// A private server. Ends when dropped.
#[derive(Debug)]
pub struct Postgres {
    process: Option<Process>,
    port: Port,
    durability: Durability,
    /// The certificate and key it presents; without them it offers no TLS.
    identity: Option<Identity>,
    installation: Installation,
    dir: TempDir,
}

/// A copy of a whole server, to which it can be set back.
#[derive(Debug)]
pub struct Backup {
    dir: TempDir,
}

impl Postgres {
    /// Starts a server with an empty database, and waits until it accepts connections.
    pub async fn start() -> anyhow::Result<Postgres> {
        Postgres::with(Durability::Quick).await
    }

    /// As [`Postgres::start`], with every commit synced to disk, or not.
    pub async fn with(durability: Durability) -> anyhow::Result<Postgres> {
        let installation = Installation::find()?;
        let dir = tempfile::Builder::new().prefix("dsync-postgres-").tempdir()?;
        installation.own(dir.path())?;
        let template = installation.template()?;
        let mut postgres = Postgres {
            process: None,
            port: Port::reserve()?,
            durability,
            identity: None,
            installation,
            dir,
        };
        copy(&template, &postgres.data())?;
        postgres.start_again().await?;
        Ok(postgres)
    }

    /// As [`Postgres::start`], offering TLS as `identity`.
    pub async fn over_tls(identity: &Identity) -> anyhow::Result<Postgres> {
        let mut postgres = Postgres::start().await?;
        postgres.stop().await?;
        let (cert, key) = (
            postgres.dir.path().join("cert.pem"),
            postgres.dir.path().join("key.pem"),
        );
        std::fs::copy(&identity.cert, &cert)?;
        // It refuses a key that others can read.
        std::fs::copy(&identity.key, &key)?;
        std::fs::set_permissions(&key, std::os::unix::fs::PermissionsExt::from_mode(0o600))?;
        postgres.installation.own(&cert)?;
        postgres.installation.own(&key)?;
        postgres.identity = Some(Identity { cert, key });
        postgres.start_again().await?;
        Ok(postgres)
    }

    /// Starts a server whose database has dsync's schema.
    pub async fn migrated() -> anyhow::Result<Postgres> {
        let postgres = Postgres::start().await?;
        postgres.migrate().await?;
        Ok(postgres)
    }

    /// Migrates the database to dsync's current schema.
    pub async fn migrate(&self) -> anyhow::Result<()> {
        let pool = self.pool().await?;
        migrations::run(&pool).await.context("the migrations failed")?;
        pool.close().await;
        Ok(())
    }

    /// As [`Postgres::migrated`], but set to defer the history of the contents of every directory that ends, however
    /// few they are.
    pub async fn deferring() -> anyhow::Result<Postgres> {
        let postgres = Postgres::migrated().await?;
        let pool = postgres.pool().await?;
        let setting = format!("alter database {DATABASE} set dsync.deferred_above = 0");
        sqlx::raw_sql(AssertSqlSafe(setting)).execute(&pool).await?;
        pool.close().await;
        Ok(postgres)
    }

    /// The URL of its database, with the password.
    pub fn url(&self) -> String {
        format!("postgres://{USER}:{PASSWORD}@{}/{DATABASE}", self.port.address())
    }

    /// The URL for a user that the test has created.
    pub fn url_as(&self, user: &str, password: &str) -> String {
        format!("postgres://{user}:{password}@{}/{DATABASE}", self.port.address())
    }

    /// Starts a standby that streams from this server through `address`, the server's own or a proxy's. It answers
    /// reads.
    pub async fn standby(&self, address: &str) -> anyhow::Result<Postgres> {
        let dir = tempfile::Builder::new().prefix("dsync-postgres-").tempdir()?;
        self.installation.own(dir.path())?;
        let (host, port) = address.rsplit_once(':').context("no address")?;
        let mut copying = self.installation.command("pg_basebackup");
        copying
            .args([
                "--write-recovery-conf",
                "--wal-method",
                "stream",
                "--checkpoint",
                "fast",
            ])
            .args(["--username", USER, "--host", host, "--port", port, "--pgdata"])
            .arg(dir.path().join("data"))
            .env("PGPASSWORD", PASSWORD);
        tokio::task::spawn_blocking(move || words_of(&mut copying)).await??;
        let mut standby = Postgres {
            process: None,
            port: Port::reserve()?,
            durability: self.durability,
            installation: self.installation.clone(),
            identity: self.identity.clone(),
            dir,
        };
        standby.start_again().await?;
        Ok(standby)
    }

    /// Promotes a standby to primary, with the data that it has.
    pub async fn promote(&self) -> anyhow::Result<()> {
        let mut connection = sqlx::PgConnection::connect(&self.url()).await?;
        let promoted: bool = sqlx::query_scalar("select pg_promote()")
            .fetch_one(&mut connection)
            .await?;
        anyhow::ensure!(promoted, "the standby was not promoted in time");
        connection.close().await?;
        Ok(())
    }

    /// The URL of its database by another name of this machine, with `parameters` after the `?`.
    pub fn url_at(&self, host: &str, parameters: &str) -> String {
        format!(
            "postgres://{USER}:{PASSWORD}@{host}:{}/{DATABASE}?{parameters}",
            self.port.number()
        )
    }

    /// A few connections to it.
    pub async fn pool(&self) -> anyhow::Result<PgPool> {
        let options = PgPoolOptions::new()
            .max_connections(4)
            .acquire_timeout(Duration::from_secs(20));
        options
            .connect(&self.url())
            .await
            .context("cannot connect to the private Postgres")
    }

    /// Starts it with its existing data, and waits until it accepts connections.
    pub async fn start_again(&mut self) -> anyhow::Result<()> {
        let log = self.dir.path().join("postgres.log");
        let mut server = self.installation.server();
        server.command().arg("-D").arg(self.data());
        for (name, value) in self.settings() {
            server.command().arg("-c").arg(format!("{name}={value}"));
        }
        let mut process = Process::start("postgres", server, &log, self.dir.path())?;
        let address = self.port.address();
        let url = self.url();
        let up = process.comes_up(STARTS_WITHIN, async || {
            TcpStream::connect(&address).await?;
            // It listens before it is ready, and refuses sessions until then.
            Ok(sqlx::PgConnection::connect(&url).await?.close().await?)
        });
        up.await.context("Postgres did not start")?;
        self.process = Some(process);
        Ok(())
    }

    /// `127.0.0.1:<port>`.
    pub fn address(&self) -> String {
        self.port.address()
    }

    /// Fails if it has ended by itself.
    pub fn must_run(&mut self) -> anyhow::Result<()> {
        self.process
            .as_mut()
            .context("Postgres is not running")?
            .must_run()
    }

    /// Kills all its processes with SIGKILL. Returns when they and their shared memory are gone.
    pub fn kill(&mut self) -> anyhow::Result<()> {
        let gone = self.process.take().map_or(Ok(()), end);
        // Remove the segment even if the server ended by itself, or if its processes are stuck in disk I/O: until a
        // reboot, the machine has room for only some thousands.
        if let Some(id) = segment(&self.data()) {
            let mut remove = Command::new("ipcrm");
            remove.args(["-m", &id]).stderr(Stdio::null());
            // It may be gone already.
            remove.status().context("there is no ipcrm on this machine")?;
        }
        gone
    }

    /// Stops it, disconnecting all clients, and waits for its end.
    pub async fn stop(&mut self) -> anyhow::Result<()> {
        if let Some(mut process) = self.process.take() {
            process.signal(Signal::INT)?;
            process.wait(STOPS_WITHIN).await?;
        }
        Ok(())
    }

    /// Freezes it: connections stay open, but nothing is answered.
    pub fn pause(&mut self) -> anyhow::Result<()> {
        self.signal_all(Signal::STOP)
    }

    /// Undoes [`Postgres::pause`].
    pub fn resume(&mut self) -> anyhow::Result<()> {
        self.signal_all(Signal::CONT)
    }

    /// Copies the server as it is now, as a snapshot of its disk would. Open transactions are lost.
    pub fn backup(&mut self) -> anyhow::Result<Backup> {
        let dir = tempfile::Builder::new().prefix("dsync-backup-").tempdir()?;
        self.pause()?;
        let copied = copy(&self.data(), &dir.path().join("data"));
        self.resume()?;
        copied?;
        std::fs::remove_file(dir.path().join("data/postmaster.pid"))?;
        Ok(Backup { dir })
    }

    /// Kills the server, sets it back to an earlier state and starts it again at the same address.
    pub async fn restore(&mut self, backup: &Backup) -> anyhow::Result<()> {
        self.kill()?;
        std::fs::remove_dir_all(self.data())?;
        copy(&backup.dir.path().join("data"), &self.data())?;
        self.start_again().await
    }

    /// Its data directory.
    pub fn data(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    fn settings(&self) -> Vec<(&'static str, String)> {
        let safe = if self.durability == Durability::Full {
            "on"
        } else {
            "off"
        };
        let mut settings = vec![
            ("listen_addresses", "127.0.0.1".to_owned()),
            ("port", self.port.number().to_string()),
            ("unix_socket_directories", self.dir.path().display().to_string()),
            ("fsync", safe.to_owned()),
            ("full_page_writes", safe.to_owned()),
            ("max_connections", "60".to_owned()),
            ("log_min_messages", "warning".to_owned()),
            // In its directory, with which it is removed even if the server is killed.
            ("dynamic_shared_memory_type", "mmap".to_owned()),
        ];
        if self.durability == Durability::Quick {
            // Many run at the same time.
            settings.push(("shared_buffers", "64MB".to_owned()));
            settings.push(("max_wal_size", "256MB".to_owned()));
        }
        if let Some(Identity { cert, key }) = &self.identity {
            settings.push(("ssl", "on".to_owned()));
            settings.push(("ssl_cert_file", cert.display().to_string()));
            settings.push(("ssl_key_file", key.display().to_string()));
        }
        settings
    }

    /// Signals the parent first, so that freezing it leaves no time for new workers.
    fn signal_all(&mut self, signal: Signal) -> anyhow::Result<()> {
        let process = self.process.as_mut().context("Postgres is not running")?;
        process.signal(signal)?;
        for pid in workers(process.pid()) {
            // A worker may end at any time.
            signal_pid(pid, signal).ok();
        }
        Ok(())
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        self.kill().ok();
    }
}

/// Kills a server and waits until its processes are gone.
fn end(mut process: Process) -> anyhow::Result<()> {
    let workers = workers(process.pid());
    process.kill();
    for pid in &workers {
        // It may have noticed that its parent is gone, and have ended.
        signal_pid(*pid, Signal::KILL).ok();
    }
    let began = Instant::now();
    while workers.iter().any(|pid| holds_memory(*pid)) {
        anyhow::ensure!(began.elapsed() < DIES_WITHIN, "a killed Postgres still runs");
        std::thread::sleep(Duration::from_millis(1));
    }
    Ok(())
}

/// The id of the shared memory segment by which a server that is up, or did not shut down properly, marks its data
/// directory as in use: the second number in the seventh line of its `postmaster.pid`.
fn segment(data: &Path) -> Option<String> {
    let text = std::fs::read_to_string(data.join("postmaster.pid")).ok()?;
    let id = text.lines().nth(6)?.split_whitespace().nth(1)?;
    Some(id.to_owned())
}

/// Whether a killed process is still ending, and not yet a zombie.
fn holds_memory(pid: u32) -> bool {
    after_the_name(pid).is_ok_and(|fields| !fields.starts_with(['Z', 'X']))
}

/// The processes that a server has forked.
fn workers(pid: u32) -> Vec<u32> {
    let list = Path::new("/proc")
        .join(pid.to_string())
        .join("task")
        .join(pid.to_string())
        .join("children");
    let children = std::fs::read_to_string(list).unwrap_or_default();
    children
        .split_whitespace()
        .filter_map(|pid| pid.parse().ok())
        .collect()
}
