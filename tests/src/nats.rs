//! A private NATS server with `JetStream`, which syncs every write to disk before acknowledging it.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context as _;
use tempfile::TempDir;
use tokio::io::AsyncReadExt as _;
use tokio::net::TcpStream;

use crate::authority::Identity;
use crate::ports::Port;
use crate::process::{Process, Signal};
use crate::template::copy;
use crate::watchdog::Watched;

const STARTS_WITHIN: Duration = Duration::from_secs(20);
const STOPS_WITHIN: Duration = Duration::from_secs(20);
/// Where `ops/test`, `ops/run` and `ops/bench` put the broker that they fetch.
const FETCHED: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../target/tools/nats/bin");

/// How the server differs from the default.
#[derive(Debug, Clone, Default)]
pub struct NatsOptions {
    /// The largest message it accepts, in bytes; if `None`, the server's default of 1 MiB.
    pub max_payload: Option<usize>,
    /// The user and password it requires, if any.
    pub login: Option<(String, String)>,
    /// Acknowledges writes before they are synced, as the server does by default: for benchmarks of what surrounds it.
    pub lazy_sync: bool,
    /// The certificate and key it presents. If set, it requires TLS.
    pub tls: Option<Identity>,
    /// Further lines of its configuration.
    pub more: Vec<String>,
}

/// A private server. Ends when dropped.
#[derive(Debug)]
pub struct Nats {
    process: Option<Process>,
    port: Port,
    monitor: Port,
    options: NatsOptions,
    /// Lines of its configuration that make it a member of a cluster.
    cluster: Vec<String>,
    /// The port for its peers, reserved as long as this lives.
    _peers: Option<Port>,
    dir: TempDir,
}

/// A copy of a server's store, to which it can be set back.
#[derive(Debug)]
pub struct Store {
    dir: TempDir,
}

impl Nats {
    /// Starts a server with an empty store, and waits until it accepts connections.
    pub async fn start() -> anyhow::Result<Nats> {
        Nats::with(NatsOptions::default()).await
    }

    /// As [`Nats::start`], with options.
    pub async fn with(options: NatsOptions) -> anyhow::Result<Nats> {
        let mut nats = Nats::absent(options)?;
        nats.start_again().await?;
        Ok(nats)
    }

    /// A server that has an address, but is not started yet.
    pub fn absent(options: NatsOptions) -> anyhow::Result<Nats> {
        let dir = tempfile::Builder::new().prefix("dsync-nats-").tempdir()?;
        Ok(Nats {
            process: None,
            port: Port::reserve()?,
            monitor: Port::reserve()?,
            options,
            cluster: Vec::new(),
            _peers: None,
            dir,
        })
    }

    /// Starts servers that form one cluster, which may need a moment to elect its leader.
    pub async fn cluster(size: usize) -> anyhow::Result<Vec<Nats>> {
        let ports: Vec<Port> = std::iter::repeat_with(Port::reserve)
            .take(size)
            .collect::<Result<_, _>>()?;
        let routes: Vec<String> = ports
            .iter()
            .map(|port| format!("nats-route://{}", port.address()))
            .collect();
        let mut servers = Vec::new();
        for (n, port) in ports.into_iter().enumerate() {
            let (own, all) = (port.address(), routes.join(", "));
            let lines = vec![
                format!("server_name: n{n}"),
                format!("cluster {{ name: private, listen: \"{own}\", routes: [{all}] }}"),
            ];
            let mut nats = Nats::member(lines, port)?;
            nats.start_again().await?;
            servers.push(nats);
        }
        Ok(servers)
    }

    /// A member of a cluster, not started yet, with these lines of configuration and this port for its peers.
    pub(crate) fn member(lines: Vec<String>, port: Port) -> anyhow::Result<Nats> {
        Ok(Nats {
            cluster: lines,
            _peers: Some(port),
            ..Nats::absent(NatsOptions::default())?
        })
    }

    /// Its URL, with the login if it requires one.
    pub fn url(&self) -> String {
        match &self.options.login {
            Some((user, password)) => format!("nats://{user}:{password}@{}", self.port.address()),
            None => format!("nats://{}", self.port.address()),
        }
    }

    /// `http://127.0.0.1:<port>` for monitoring: `/healthz` and the like.
    pub fn monitor_url(&self) -> String {
        format!("http://{}", self.monitor.address())
    }

    /// `127.0.0.1:<port>` where clients connect.
    pub fn address(&self) -> String {
        self.port.address()
    }

    /// Its URL for a user from the test's own configuration.
    pub fn url_as(&self, user: &str, password: &str) -> String {
        format!("nats://{user}:{password}@{}", self.port.address())
    }

    /// Its URL by another name of this machine.
    pub fn url_at(&self, host: &str) -> String {
        format!("nats://{host}:{}", self.port.number())
    }

    /// Where it keeps its streams.
    pub fn store(&self) -> PathBuf {
        self.dir.path().join("store")
    }

    /// Flips one bit of the event `id` in the files of the log. The server must be stopped. Returns the number of files
    /// changed.
    pub fn turn_over_a_bit(&self, id: &str) -> anyhow::Result<usize> {
        turn_over_a_bit(&self.store(), id)
    }

    /// Starts it on the store it has, and waits until it accepts connections.
    pub async fn start_again(&mut self) -> anyhow::Result<()> {
        let config = self.dir.path().join("nats.conf");
        std::fs::write(&config, self.config())?;
        let log = self.dir.path().join("nats.log");
        let path = std::env::var_os("PATH").unwrap_or_default();
        let mut server = Watched::new(program(&path, Path::new(FETCHED))?, "/dev/null");
        server.command().arg("--config").arg(&config);
        let mut process = Process::start("nats-server", server, &log, self.dir.path())?;
        let address = self.port.address();
        let up = process
            .comes_up(STARTS_WITHIN, async || greeting(&address).await)
            .await;
        up.with_context(|| {
            format!(
                "nats-server did not start. The end of its output:\n{}",
                process.tail(20)
            )
        })?;
        self.process = Some(process);
        Ok(())
    }

    /// Kills it with SIGKILL.
    pub fn kill(&mut self) {
        self.process = None;
    }

    /// Stops it with SIGTERM, and waits for its end.
    pub async fn stop(&mut self) -> anyhow::Result<()> {
        if let Some(mut process) = self.process.take() {
            process.terminate(STOPS_WITHIN).await?;
        }
        Ok(())
    }

    /// Fails if it has ended by itself.
    pub fn must_run(&mut self) -> anyhow::Result<()> {
        self.process
            .as_mut()
            .context("nats-server is not running")?
            .must_run()
    }

    /// Kills it, deletes its store and starts it again.
    pub async fn wipe(&mut self) -> anyhow::Result<()> {
        self.kill();
        std::fs::remove_dir_all(self.store())?;
        self.start_again().await
    }

    /// Copies its store as it is now: what a power loss at this moment would leave on disk if everything is synced.
    pub fn copy_of_store(&mut self) -> anyhow::Result<Store> {
        let dir = tempfile::Builder::new().prefix("dsync-store-").tempdir()?;
        self.pause()?;
        let copied = copy(&self.store(), &dir.path().join("store"));
        self.resume()?;
        copied?;
        Ok(Store { dir })
    }

    /// Kills it, sets its store back to an earlier state and starts it again at the same address. This is what a power
    /// loss does to a broker that acknowledges before it syncs.
    pub async fn set_back(&mut self, store: &Store) -> anyhow::Result<()> {
        self.kill();
        std::fs::remove_dir_all(self.store())?;
        copy(&store.dir.path().join("store"), &self.store())?;
        self.start_again().await
    }

    /// Freezes it: connections stay open, but nothing is answered.
    pub fn pause(&mut self) -> anyhow::Result<()> {
        self.signal(Signal::STOP)
    }

    /// Undoes [`Nats::pause`].
    pub fn resume(&mut self) -> anyhow::Result<()> {
        self.signal(Signal::CONT)
    }

    fn signal(&mut self, signal: Signal) -> anyhow::Result<()> {
        self.process
            .as_mut()
            .context("nats-server is not running")?
            .signal(signal)
    }

    /// Its process id, while it runs.
    pub fn pid(&self) -> Option<u32> {
        self.process.as_ref().map(Process::pid)
    }

    fn config(&self) -> String {
        let store = self.store();
        let sync = if self.options.lazy_sync { "2m" } else { "always" };
        let mut lines = vec![
            format!("listen: \"{}\"", self.port.address()),
            format!("http: \"{}\"", self.monitor.address()),
            format!(
                "jetstream {{ store_dir: \"{}\", sync_interval: {sync} }}",
                store.display()
            ),
        ];
        lines.extend(
            self.options
                .max_payload
                .map(|bytes| format!("max_payload: {bytes}")),
        );
        lines.extend(self.options.login.as_ref().map(|(user, password)| {
            format!("authorization {{ user: \"{user}\", password: \"{password}\" }}")
        }));
        lines.extend(self.options.tls.as_ref().map(|identity| {
            let (cert, key) = (identity.cert.display(), identity.key.display());
            format!("tls {{ cert_file: \"{cert}\", key_file: \"{key}\" }}")
        }));
        lines.extend(self.options.more.clone());
        lines.extend(self.cluster.clone());
        lines.join("\n")
    }
}

/// The first server on the `path`, or else the one that was fetched.
fn program(path: &OsStr, fetched: &Path) -> anyhow::Result<PathBuf> {
    std::env::split_paths(path)
        .chain([fetched.to_owned()])
        .map(|bin| bin.join("nats-server"))
        .find(|program| program.is_file())
        .context("found no nats-server on the path; ops/test fetches one")
}

/// Succeeds once the server sends its greeting, which it does after loading its streams.
async fn greeting(address: &str) -> anyhow::Result<()> {
    let mut socket = TcpStream::connect(address).await?;
    let mut hello = [0; 5];
    socket.read_exact(&mut hello).await?;
    anyhow::ensure!(&hello == b"INFO ", "something else answers on the server's port");
    Ok(())
}

fn turn_over_a_bit(store: &Path, id: &str) -> anyhow::Result<usize> {
    let mut files = 0;
    for entry in std::fs::read_dir(store)? {
        let path = entry?.path();
        if path.is_dir() {
            files += turn_over_a_bit(&path, id)?;
        } else if path.to_string_lossy().contains("/DSYNC/")
            && path.extension().is_some_and(|kind| kind == "blk")
        {
            let mut bytes = std::fs::read(&path)?;
            let found = bytes
                .windows(id.len())
                .rposition(|window| window == id.as_bytes());
            if let Some(at) = found {
                bytes[at] ^= 1;
                std::fs::write(&path, bytes)?;
                files += 1;
            }
        }
    }
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_on_the_path_comes_before_the_one_that_was_fetched() {
        let there = tempfile::tempdir().unwrap();
        let [early, late, fetched] = ["early", "late", "fetched"].map(|name| there.path().join(name));
        let path = std::env::join_paths([&early, &late]).unwrap();
        assert!(program(&path, &fetched).is_err());
        for bin in [&fetched, &late, &early] {
            std::fs::create_dir(bin).unwrap();
            std::fs::write(bin.join("nats-server"), "").unwrap();
            assert_eq!(program(&path, &fetched).unwrap(), bin.join("nats-server"));
        }
    }
}
