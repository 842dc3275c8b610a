//! A PgBouncer in front of a private Postgres, in transaction mode: after each transaction, another client may get the
//! session.

use std::os::unix::process::CommandExt as _;
use std::time::Duration;

use anyhow::Context as _;
use tempfile::TempDir;
use tokio::net::TcpStream;

use crate::ports::Port;
use crate::postgres::Postgres;
use crate::process::Process;
use crate::template::{DATABASE, Owner, PASSWORD, USER};
use crate::watchdog::Watched;

const STARTS_WITHIN: Duration = Duration::from_secs(20);

/// A private pooler. Ends when dropped.
#[derive(Debug)]
pub struct Pooler {
    _process: Process,
    port: Port,
    _dir: TempDir,
}

impl Pooler {
    /// Starts one in front of `postgres`, configured as in the runbook. PgBouncer 1.21 or newer must be on the path.
    pub async fn start(postgres: &Postgres) -> anyhow::Result<Pooler> {
        let dir = tempfile::Builder::new().prefix("dsync-pooler-").tempdir()?;
        let port = Port::reserve()?;
        let (users, settings) = (dir.path().join("users"), dir.path().join("pgbouncer.ini"));
        std::fs::write(&users, format!("\"{USER}\" \"{PASSWORD}\"\n"))?;
        let server = postgres.address();
        let (host, server_port) = server.rsplit_once(':').context("no address")?;
        let lines = [
            "[databases]".to_owned(),
            format!("{DATABASE} = host={host} port={server_port}"),
            "[pgbouncer]".to_owned(),
            "listen_addr = 127.0.0.1".to_owned(),
            format!("listen_port = {}", port.number()),
            "unix_socket_dir =".to_owned(),
            "auth_type = plain".to_owned(),
            format!("auth_file = {}", users.display()),
            "pool_mode = transaction".to_owned(),
            "max_prepared_statements = 200".to_owned(),
            "ignore_startup_parameters = extra_float_digits,options".to_owned(),
        ];
        std::fs::write(&settings, lines.join("\n"))?;
        let mut pooler = Watched::new("pgbouncer", "/dev/null");
        pooler.command().arg(&settings);
        // Like Postgres, it refuses to run as root.
        if let Some(owner) = Owner::if_root()? {
            for path in [dir.path(), &users, &settings] {
                std::os::unix::fs::chown(path, Some(owner.uid), Some(owner.gid))?;
            }
            pooler.command().uid(owner.uid).gid(owner.gid).current_dir("/");
        }
        let log = dir.path().join("pgbouncer.log");
        let mut process = Process::start("pgbouncer", pooler, &log, dir.path())?;
        let address = port.address();
        process
            .comes_up(STARTS_WITHIN, async || {
                TcpStream::connect(&address).await?;
                Ok(())
            })
            .await
            .context("PgBouncer did not start")?;
        Ok(Pooler {
            _process: process,
            port,
            _dir: dir,
        })
    }

    /// The URL of the database behind it, with the password.
    pub fn url(&self) -> String {
        format!("postgres://{USER}:{PASSWORD}@{}/{DATABASE}", self.port.address())
    }
}
