//! Three brokers with one log, and a connection between any two of them that can be cut.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::Context as _;

use crate::eventually::eventually;
use crate::nats::Nats;
use crate::ports::Port;
use crate::proxy::{Cut, Line, Proxy};

/// The address that servers advertise to each other, where nothing listens, so that they use only the proxies.
const NOWHERE: &str = "127.0.0.1:1";

/// How long a cluster may take to form before it is started again from scratch.
const FORMS_WITHIN: Duration = Duration::from_secs(20);
const TRIES: usize = 3;

/// A cluster of servers.
#[derive(Debug)]
pub struct Cluster {
    /// The servers, named `n0`, `n1`, …
    pub servers: Vec<Nats>,
    /// The proxies, by connecting server and target.
    lines: BTreeMap<(usize, usize), Proxy>,
}

impl Cluster {
    /// Starts servers that form one cluster. With NATS 2.10, brokers that start at the same time sometimes never manage
    /// to place a copy on each of them. Such a cluster is started again from scratch.
    pub async fn start(size: usize) -> anyhow::Result<Cluster> {
        let mut tries = 0;
        loop {
            let cluster = Cluster::forming(size).await?;
            tries += 1;
            match eventually(FORMS_WITHIN, || cluster.places_copies()).await {
                Ok(()) => return Ok(cluster),
                Err(error) if tries == TRIES => {
                    return Err(error).context("the brokers did not form a cluster");
                }
                Err(error) => println!("a cluster did not form, trying again: {error:#}"),
            }
        }
    }

    async fn forming(size: usize) -> anyhow::Result<Cluster> {
        let mut ports = Vec::new();
        for _ in 0..size {
            ports.push(Port::reserve()?);
        }
        let mut lines = BTreeMap::new();
        for from in 0..size {
            for (to, port) in ports.iter().enumerate().filter(|(to, _)| *to != from) {
                lines.insert((from, to), Proxy::to(port.address())?);
            }
        }
        let mut servers = Vec::new();
        for (n, port) in ports.into_iter().enumerate() {
            let routes = lines.iter().filter(|((from, _), _)| *from == n);
            let routes: Vec<String> = routes
                .map(|(_, line)| format!("nats-route://{}", line.address()))
                .collect();
            let lines = vec![
                format!("server_name: n{n}"),
                format!(
                    "cluster {{ name: private, listen: \"{}\", advertise: \"{NOWHERE}\", routes: [{}] }}",
                    port.address(),
                    routes.join(", ")
                ),
            ];
            let mut server = Nats::member(lines, port)?;
            server.start_again().await?;
            servers.push(server);
        }
        Ok(Cluster { servers, lines })
    }

    /// Fails unless a stream can be created with a copy on each server.
    async fn places_copies(&self) -> anyhow::Result<()> {
        let client = async_nats::connect(self.servers[0].url()).await?;
        let context = async_nats::jetstream::new(client);
        let probe = async_nats::jetstream::stream::Config {
            name: "PROBE".to_owned(),
            subjects: vec!["probe".to_owned()],
            num_replicas: self.servers.len(),
            ..Default::default()
        };
        context.create_stream(probe).await?;
        context.delete_stream("PROBE").await?;
        Ok(())
    }

    /// Every server's address, in the form of the setting `NATS_URL`.
    pub fn url(&self) -> String {
        let urls: Vec<String> = self.servers.iter().map(Nats::url).collect();
        urls.join(",")
    }

    /// Splits one server off. It stays up and keeps its clients, but is cut off from the others.
    pub fn isolate(&self, server: usize) {
        for ((from, to), line) in &self.lines {
            if *from == server || *to == server {
                line.set(Line::Silent);
            }
        }
    }

    /// Ends a short split: what was sent during the split arrives late.
    pub fn rejoin(&self) {
        for line in self.lines.values() {
            line.set(Line::Open);
        }
    }

    /// Ends a long split: what was sent during the split is lost.
    pub fn join(&self) {
        for line in self.lines.values() {
            line.cut(Cut::Reset);
            line.set(Line::Open);
        }
    }

    /// The server that leads the stream `name`. Fails unless all others have all of it.
    pub async fn leader(&self, name: &str) -> anyhow::Result<usize> {
        let client = async_nats::connect(self.servers[0].url()).await?;
        let stream = async_nats::jetstream::new(client).get_stream(name).await?;
        let cluster = stream.cached_info().cluster.clone().context("no cluster")?;
        let current = cluster
            .replicas
            .iter()
            .filter(|peer| peer.current && !peer.offline)
            .count();
        anyhow::ensure!(
            current + 1 == self.servers.len(),
            "only {current} followers are current"
        );
        let leader = cluster.leader.context("the stream has no leader")?;
        leader
            .strip_prefix('n')
            .and_then(|n| n.parse().ok())
            .context("the stream's leader is not a server of this cluster")
    }
}
