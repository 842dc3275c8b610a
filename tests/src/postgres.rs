//! A private Postgres: started in a fraction of a second, killed, frozen, and set back to an older copy.

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

/// What a crash may cost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Durability {
    /// Writes are not synced to disk. What survives a killed process, as the system's cache does, survives.
    Quick,
    /// As in production: synced at commit, and otherwise as Postgres comes.
    Full,
}

/// A server of its own with an empty database; ends when dropped.
#[derive(Debug)]
pub struct Postgres {
    process: Option<Process>,
    port: Port,
    durability: Durability,
    /// The certificate and key it shows; without them it speaks no TLS.
    identity: Option<Identity>,
    installation: Installation,
    dir: TempDir,
}

/// A copy of a whole server, to set one back to.
#[derive(Debug)]
pub struct Backup {
    dir: TempDir,
}

impl Postgres {
    /// A server with an empty database, accepting connections.
    pub async fn start() -> anyhow::Result<Postgres> {
        Postgres::with(Durability::Quick).await
    }

    /// The same with every commit synced to disk, or not.
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

    /// The same, offering TLS as `identity`.
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

    /// A server whose database has our schema.
    pub async fn migrated() -> anyhow::Result<Postgres> {
        let postgres = Postgres::start().await?;
        postgres.migrate().await?;
        Ok(postgres)
    }

    /// Brings the database up to our schema.
    pub async fn migrate(&self) -> anyhow::Result<()> {
        let pool = self.pool().await?;
        migrations::run(&pool).await.context("the migrations fail")?;
        pool.close().await;
        Ok(())
    }

    /// A server whose database has our schema, and whose history is written afterwards of whatever a directory takes
    /// along, however little that is.
    pub async fn deferring() -> anyhow::Result<Postgres> {
        let postgres = Postgres::migrated().await?;
        let pool = postgres.pool().await?;
        let setting = format!("alter database {DATABASE} set dsync.deferred_above = 0");
        sqlx::raw_sql(AssertSqlSafe(setting)).execute(&pool).await?;
        pool.close().await;
        Ok(postgres)
    }

    /// Where programs find its database, password included.
    pub fn url(&self) -> String {
        format!("postgres://{USER}:{PASSWORD}@{}/{DATABASE}", self.port.address())
    }

    /// The same for a user of the test's own making.
    pub fn url_as(&self, user: &str, password: &str) -> String {
        format!("postgres://{user}:{password}@{}/{DATABASE}", self.port.address())
    }

    /// A standby that streams from this server, which it finds at `address`: its own, or a proxy's. It answers reads.
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

    /// Makes a standby the primary, with what it has.
    pub async fn promote(&self) -> anyhow::Result<()> {
        let mut connection = sqlx::PgConnection::connect(&self.url()).await?;
        let promoted: bool = sqlx::query_scalar("select pg_promote()")
            .fetch_one(&mut connection)
            .await?;
        anyhow::ensure!(promoted, "the standby was not promoted in time");
        connection.close().await?;
        Ok(())
    }

    /// Where programs find its database by another name of this machine, with parameters after the `?`.
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

    /// Starts it on the data it has, and waits until it takes connections.
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
            // It listens before it is ready, and says so.
            Ok(sqlx::PgConnection::connect(&url).await?.close().await?)
        });
        up.await.context("Postgres does not start")?;
        self.process = Some(process);
        Ok(())
    }

    /// `127.0.0.1:<port>`.
    pub fn address(&self) -> String {
        self.port.address()
    }

    /// Fails when it has ended by itself.
    pub fn must_run(&mut self) -> anyhow::Result<()> {
        self.process
            .as_mut()
            .context("Postgres is not running")?
            .must_run()
    }

    /// Kills it outright, every process of it; back when they are gone, and the memory they shared with them.
    pub fn kill(&mut self) -> anyhow::Result<()> {
        let gone = self.process.take().map_or(Ok(()), end);
        // Also of one that ended by itself, and of one whose processes the disk holds on to for long: the machine has room
        // for some thousands, until it is started anew.
        if let Some(id) = segment(&self.data()) {
            let mut remove = Command::new("ipcrm");
            remove.args(["-m", &id]).stderr(Stdio::null());
            // It may be gone already.
            remove.status().context("there is no ipcrm on this machine")?;
        }
        gone
    }

    /// Asks it to stop, disconnecting everyone, and waits.
    pub async fn stop(&mut self) -> anyhow::Result<()> {
        if let Some(mut process) = self.process.take() {
            process.signal(Signal::INT)?;
            process.wait(STOPS_WITHIN).await?;
        }
        Ok(())
    }

    /// Freezes it: connections stay open and nothing is answered.
    pub fn pause(&mut self) -> anyhow::Result<()> {
        self.signal_all(Signal::STOP)
    }

    /// Undoes [`Postgres::pause`].
    pub fn resume(&mut self) -> anyhow::Result<()> {
        self.signal_all(Signal::CONT)
    }

    /// A copy of the server as it is now, open transactions undone: what a snapshot of its disk would hold.
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

    /// Where its data are.
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
            // In its directory, with which it goes also when it is killed.
            ("dynamic_shared_memory_type", "mmap".to_owned()),
        ];
        if self.durability == Durability::Quick {
            // Many run beside each other.
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

    /// The parent first when freezing, so that no worker is born meanwhile.
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
        // It may have noticed already that its parent is gone.
        signal_pid(*pid, Signal::KILL).ok();
    }
    let began = Instant::now();
    while workers.iter().any(|pid| holds_memory(*pid)) {
        anyhow::ensure!(began.elapsed() < DIES_WITHIN, "a killed Postgres still runs");
        std::thread::sleep(Duration::from_millis(1));
    }
    Ok(())
}

/// The id of the shared memory segment a server that is up, or did not end in order, holds its data with: the second
/// number in the seventh line of its `postmaster.pid`.
fn segment(data: &Path) -> Option<String> {
    let text = std::fs::read_to_string(data.join("postmaster.pid")).ok()?;
    let id = text.lines().nth(6)?.split_whitespace().nth(1)?;
    Some(id.to_owned())
}

/// Whether a process that was killed is still being taken down: it is no zombie yet.
fn holds_memory(pid: u32) -> bool {
    after_the_name(pid).is_ok_and(|fields| !fields.starts_with(['Z', 'X']))
}

/// The processes a server forked.
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
