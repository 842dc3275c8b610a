//! A receiver and the worker behind it in Node, as a team might write them, for comparison in the same run. Install
//! them once with `npm install --no-package-lock --prefix tests/bench/peers`. Otherwise they are left out.

use std::path::{Path, PathBuf};
use std::process::Stdio;

use anyhow::Context as _;
use tests::Nats;
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::{Child, Command};

use crate::webhooks::SECRET;

/// The stream that peers publish to.
pub(crate) const STREAM: &str = "PEER";

/// A running peer. Ends when dropped.
pub(crate) struct Peer {
    pub(crate) pid: u32,
    /// The first line that it printed; a receiver prints its address.
    pub(crate) said: String,
    _child: Child,
}

impl Peer {
    /// Starts the receiver, in front of a stream of its own.
    pub(crate) async fn receiver(nats: &Nats) -> anyhow::Result<Self> {
        let context = async_nats::jetstream::new(async_nats::connect(nats.url()).await?);
        let config = async_nats::jetstream::stream::Config {
            name: STREAM.to_owned(),
            subjects: vec!["peer.>".to_owned()],
            ..async_nats::jetstream::stream::Config::default()
        };
        context.get_or_create_stream(config).await?;
        Self::start("receiver.js", &[("NATS_URL", &nats.url()), ("SECRET", SECRET)]).await
    }

    /// Starts one of the scripts, and waits until it is ready.
    pub(crate) async fn start(script: &str, settings: &[(&str, &str)]) -> anyhow::Result<Self> {
        let mut child = Command::new("node")
            .arg(room().join(script))
            .envs(settings.iter().copied())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .context("node")?;
        let mut said = String::new();
        BufReader::new(child.stdout.take().context("no standard output")?)
            .read_line(&mut said)
            .await?;
        Ok(Self {
            pid: child.id().with_context(|| format!("{script} ended"))?,
            said: said.trim().to_owned(),
            _child: child,
        })
    }
}

fn room() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("bench/peers")
}

/// Whether the peers' packages are installed. If not, prints how to install them.
pub(crate) fn installed() -> bool {
    let installed = room().join("node_modules").is_dir();
    if !installed {
        println!("peers are left out: npm install --no-package-lock --prefix tests/bench/peers\n");
    }
    installed
}
