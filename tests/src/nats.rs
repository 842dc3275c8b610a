//! A private NATS server with `JetStream`, every write synced to its disk before it is acknowledged.

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

/// How the server differs from the usual.
#[derive(Debug, Clone, Default)]
pub struct NatsOptions {
    /// The largest message it takes, in bytes; else the server's default of 1 MiB.
    pub max_payload: Option<usize>,
    /// User and password it asks for; else it asks for none.
    pub login: Option<(String, String)>,
    /// Acknowledges before its writes are synced, as the server does by default: for benchmarks of what is around it.
    pub lazy_sync: bool,
    /// The certificate and key it shows, and demands TLS with.
    pub tls: Option<Identity>,
    /// Further lines of its configuration.
    pub more: Vec<String>,
}

/// A server of its own; ends when dropped.
#[derive(Debug)]
pub struct Nats {
    process: Option<Process>,
    port: Port,
    monitor: Port,
    options: NatsOptions,
    /// Lines of its configuration that make it one of a cluster.
    cluster: Vec<String>,
    /// The port its peers find it at, held as long as it lives.
    _peers: Option<Port>,
    dir: TempDir,
}

/// A copy of a server's store, to set it back to.
#[derive(Debug)]
pub struct Store {
    dir: TempDir,
}

impl Nats {
    /// A server with an empty store, accepting connections.
    pub async fn start() -> anyhow::Result<Nats> {
        Nats::with(NatsOptions::default()).await
    }

    /// The same with options.
    pub async fn with(options: NatsOptions) -> anyhow::Result<Nats> {
        let mut nats = Nats::absent(options)?;
        nats.start_again().await?;
        Ok(nats)
    }

    /// A server that is not started yet, but has its address.
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

    /// Servers that form one cluster, which may need a moment to elect who leads it.
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

    /// One of a cluster, not started yet: lines of its configuration, and the port its peers find it at.
    pub(crate) fn member(lines: Vec<String>, port: Port) -> anyhow::Result<Nats> {
        Ok(Nats {
            cluster: lines,
            _peers: Some(port),
            ..Nats::absent(NatsOptions::default())?
        })
    }

    /// Where programs find it, with the login if it asks for one.
    pub fn url(&self) -> String {
        match &self.options.login {
            Some((user, password)) => format!("nats://{user}:{password}@{}", self.port.address()),
            None => format!("nats://{}", self.port.address()),
        }
    }

    /// `http://127.0.0.1:<port>` where it says how it is: `/healthz` and the like.
    pub fn monitor_url(&self) -> String {
        format!("http://{}", self.monitor.address())
    }

    /// `127.0.0.1:<port>` where clients connect.
    pub fn address(&self) -> String {
        self.port.address()
    }

    /// The same for a user of the test's own configuration.
    pub fn url_as(&self, user: &str, password: &str) -> String {
        format!("nats://{user}:{password}@{}", self.port.address())
    }

    /// The same by another name of this machine.
    pub fn url_at(&self, host: &str) -> String {
        format!("nats://{host}:{}", self.port.number())
    }

    /// Where it keeps its streams.
    pub fn store(&self) -> PathBuf {
        self.dir.path().join("store")
    }

    /// Turns over one bit of what it keeps of the event `id` in the log, in the file: stop it before. In how many files.
    pub fn turn_over_a_bit(&self, id: &str) -> anyhow::Result<usize> {
        turn_over_a_bit(&self.store(), id)
    }

    /// Starts it on the store it has, and waits until it accepts connections.
    pub async fn start_again(&mut self) -> anyhow::Result<()> {
        let config = self.dir.path().join("nats.conf");
        std::fs::write(&config, self.config())?;
        let log = self.dir.path().join("nats.log");
        let mut server = Watched::new("nats-server", "/dev/null");
        server.command().arg("--config").arg(&config);
        let mut process = Process::start("nats-server", server, &log, self.dir.path())?;
        let address = self.port.address();
        let up = process
            .comes_up(STARTS_WITHIN, async || greeting(&address).await)
            .await;
        up.with_context(|| {
            format!(
                "nats-server does not start; its last words:\n{}",
                process.tail(20)
            )
        })?;
        self.process = Some(process);
        Ok(())
    }

    /// Kills it outright.
    pub fn kill(&mut self) {
        self.process = None;
    }

    /// Asks it to stop, and waits.
    pub async fn stop(&mut self) -> anyhow::Result<()> {
        if let Some(mut process) = self.process.take() {
            process.terminate(STOPS_WITHIN).await?;
        }
        Ok(())
    }

    /// Fails when it has ended by itself.
    pub fn must_run(&mut self) -> anyhow::Result<()> {
        self.process
            .as_mut()
            .context("nats-server is not running")?
            .must_run()
    }

    /// Kills it, forgets everything it stored and starts it again.
    pub async fn wipe(&mut self) -> anyhow::Result<()> {
        self.kill();
        std::fs::remove_dir_all(self.store())?;
        self.start_again().await
    }

    /// A copy of its store as it is now: what would be left on its disk had it lost its power now, if everything is synced.
    pub fn copy_of_store(&mut self) -> anyhow::Result<Store> {
        let dir = tempfile::Builder::new().prefix("dsync-store-").tempdir()?;
        self.pause()?;
        let copied = copy(&self.store(), &dir.path().join("store"));
        self.resume()?;
        copied?;
        Ok(Store { dir })
    }

    /// Kills it, sets its store back to an earlier state and starts it again at the same address: what a broker does that
    /// acknowledges before it syncs, when it loses its power.
    pub async fn set_back(&mut self, store: &Store) -> anyhow::Result<()> {
        self.kill();
        std::fs::remove_dir_all(self.store())?;
        copy(&store.dir.path().join("store"), &self.store())?;
        self.start_again().await
    }

    /// Freezes it: connections stay open and nothing is answered.
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

/// A server that greets has read its streams already.
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
