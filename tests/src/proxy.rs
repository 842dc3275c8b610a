//! A TCP proxy between any two programs, for what goes wrong on the way: connections cut, slowed, swallowed, refused.
//!
//! It knows nothing of what it carries. What it swallows it does not lose: like a network that comes back, it passes on
//! what was sent meanwhile, in order, unless the connection was cut.

use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::Context as _;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{ReadHalf, WriteHalf};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::watch;
use tokio::task::{AbortHandle, JoinSet};

use crate::ports::Port;

/// Read at a time when nothing is slowed.
const CHUNK: usize = 64 << 10;
/// A slowed line passes so many chunks a second.
const BEATS: u32 = 20;
/// How soon to try for our own port again when connections are to be taken again.
const BINDS_AGAIN: Duration = Duration::from_millis(20);

/// What becomes of connections and of what they carry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Line {
    /// All of it passes, at once.
    Open,
    /// So many bytes a second pass, in each direction of each connection.
    Slow {
        /// Bytes a second; at least one passes at a time, twenty times a second.
        bytes: u32,
    },
    /// Connections are open, and new ones are taken, but nothing passes: neither bytes nor that a side has closed.
    Silent,
    /// New connections are refused; those there are go on.
    Refused,
}

/// How connections are cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cut {
    /// As if both sides had closed in good order.
    Finish,
    /// As if both sides had lost their state.
    Reset,
}

/// A proxy in front of one address; ends, connections and all, when dropped.
#[derive(Debug)]
pub struct Proxy {
    port: Port,
    shared: Arc<Shared>,
    task: AbortHandle,
}

#[derive(Debug)]
struct Shared {
    target: Mutex<String>,
    line: watch::Sender<Line>,
    cut: watch::Sender<(u64, Cut)>,
    open: AtomicUsize,
    passed: AtomicUsize,
}

impl Proxy {
    /// A proxy that passes everything on to `target`, an address like `127.0.0.1:4222`. Needs a tokio runtime.
    pub fn to(target: impl Into<String>) -> anyhow::Result<Proxy> {
        let port = Port::reserve()?;
        let listener = listen(&port.address()).context("cannot listen as a proxy")?;
        let shared = Arc::new(Shared {
            target: Mutex::new(target.into()),
            line: watch::Sender::new(Line::Open),
            cut: watch::Sender::new((0, Cut::Finish)),
            open: AtomicUsize::new(0),
            passed: AtomicUsize::new(0),
        });
        let task = tokio::spawn(accept(port.address(), listener, Arc::clone(&shared))).abort_handle();
        Ok(Proxy { port, shared, task })
    }

    /// Where to connect to: `127.0.0.1:<port>`.
    pub fn address(&self) -> String {
        self.port.address()
    }

    /// `url` with the address of this proxy in place of the one it holds; user, password, path and the rest stay.
    pub fn instead_of(&self, url: &str) -> String {
        let start = url.find("://").map_or(0, |at| at + 3);
        let end = url[start..].find(['/', '?']).map_or(url.len(), |at| start + at);
        let login = url[start..end].rfind('@').map_or(start, |at| start + at + 1);
        format!("{}{}{}", &url[..login], self.address(), &url[end..])
    }

    /// From now on the line is like that, also for connections there are.
    pub fn set(&self, line: Line) {
        self.shared.line.send_replace(line);
    }

    /// Cuts every connection there is.
    pub fn cut(&self, how: Cut) {
        self.shared.cut.send_modify(|(count, last)| {
            *count += 1;
            *last = how;
        });
    }

    /// From now on new connections go to `target`; those there are go on.
    pub fn turn_to(&self, target: impl Into<String>) {
        *self.shared.target.lock().unwrap_or_else(PoisonError::into_inner) = target.into();
    }

    /// Connections that are open now.
    pub fn open(&self) -> usize {
        self.shared.open.load(Ordering::Relaxed)
    }

    /// Bytes passed on so far, in both directions.
    pub fn passed(&self) -> usize {
        self.shared.passed.load(Ordering::Relaxed)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Line {
    fn passes(self) -> bool {
        self != Line::Silent
    }

    /// How much passes at a time.
    fn chunk(self) -> usize {
        match self {
            Line::Slow { bytes } => usize::try_from(bytes / BEATS).unwrap_or(CHUNK).clamp(1, CHUNK),
            _ => CHUNK,
        }
    }
}

fn listen(address: &str) -> anyhow::Result<TcpListener> {
    let address: SocketAddr = address.parse()?;
    let socket = TcpSocket::new_v4()?;
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    Ok(socket.listen(1_024)?)
}

/// Takes connections; without a listener they are refused. Connections end with this task.
async fn accept(address: String, listener: TcpListener, shared: Arc<Shared>) {
    let mut line = shared.line.subscribe();
    let mut connections = JoinSet::new();
    let mut listener = Some(listener);
    loop {
        let refuses = *line.borrow_and_update() == Line::Refused;
        if refuses {
            listener = None;
        } else if listener.is_none() {
            listener = listen(&address).ok();
            if listener.is_none() {
                tokio::time::sleep(BINDS_AGAIN).await;
                continue;
            }
        }
        tokio::select! {
            changed = line.changed() => if changed.is_err() { return },
            Some(_) = connections.join_next() => {}
            client = next(listener.as_ref()) => {
                // Out of files: whoever connects waits.
                let Ok(client) = client else {
                    tokio::time::sleep(Duration::from_millis(10)).await;
                    continue;
                };
                // Subscribed before the next cut can come.
                let cut = shared.cut.subscribe();
                connections.spawn(carry(client, Arc::clone(&shared), cut));
            }
        }
    }
}

async fn next(listener: Option<&TcpListener>) -> io::Result<TcpStream> {
    match listener {
        Some(listener) => listener.accept().await.map(|(stream, _)| stream),
        None => std::future::pending().await,
    }
}

/// One connection, from its being taken to its end.
async fn carry(mut client: TcpStream, shared: Arc<Shared>, mut cut: watch::Receiver<(u64, Cut)>) {
    let mut line = shared.line.subscribe();
    let target = tokio::select! {
        _ = cut.changed() => return,
        target = reach(&shared, &mut line) => target,
    };
    let Ok(mut server) = target else {
        // To whoever connected it looks as if the server had gone away at once.
        client.set_zero_linger().ok();
        return;
    };
    client.set_nodelay(true).ok();
    server.set_nodelay(true).ok();
    shared.open.fetch_add(1, Ordering::Relaxed);
    let how = {
        let ((from_client, to_client), (from_server, to_server)) = (client.split(), server.split());
        let there = pump(from_client, to_server, line.clone(), &shared.passed);
        let back = pump(from_server, to_client, line, &shared.passed);
        tokio::select! {
            changed = cut.changed() => changed.map_or(Cut::Reset, |()| cut.borrow().1),
            ended = async { tokio::try_join!(there, back) } => ended.map_or(Cut::Reset, |_| Cut::Finish),
        }
    };
    shared.open.fetch_sub(1, Ordering::Relaxed);
    if how == Cut::Reset {
        client.set_zero_linger().ok();
        server.set_zero_linger().ok();
    }
}

async fn reach(shared: &Shared, line: &mut watch::Receiver<Line>) -> io::Result<TcpStream> {
    passes(line).await?;
    let target = shared
        .target
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .clone();
    TcpStream::connect(target).await
}

/// Passes bytes on in one direction, then that there are no more.
async fn pump(
    mut from: ReadHalf<'_>,
    mut to: WriteHalf<'_>,
    mut line: watch::Receiver<Line>,
    passed: &AtomicUsize,
) -> io::Result<()> {
    let mut buffer = vec![0; CHUNK];
    loop {
        passes(&mut line).await?;
        let chunk = line.borrow_and_update().chunk();
        let read = tokio::select! {
            _ = line.changed() => continue,
            read = from.read(&mut buffer[..chunk]) => read,
        };
        // What was read as the line fell silent is passed on when it speaks again, as is that there is no more.
        passes(&mut line).await?;
        let read = read?;
        if read == 0 {
            return to.shutdown().await;
        }
        if matches!(*line.borrow(), Line::Slow { .. }) {
            tokio::time::sleep(Duration::from_secs(1) / BEATS).await;
        }
        to.write_all(&buffer[..read]).await?;
        passed.fetch_add(read, Ordering::Relaxed);
    }
}

/// Waits until something passes.
async fn passes(line: &mut watch::Receiver<Line>) -> io::Result<()> {
    let passes = line.wait_for(|line| line.passes()).await;
    passes
        .map(|_| ())
        .map_err(|_| io::ErrorKind::ConnectionAborted.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_url_keeps_all_but_its_address() {
        let proxy = Proxy::to("127.0.0.1:1").unwrap();
        let address = proxy.address();
        for (url, rest) in [
            ("nats://127.0.0.1:4222", ("nats://", "")),
            ("http://127.0.0.1:1/a/b", ("http://", "/a/b")),
            (
                "postgres://me:p@127.0.0.1:5/x?y=z",
                ("postgres://me:p@", "/x?y=z"),
            ),
        ] {
            assert_eq!(proxy.instead_of(url), format!("{}{address}{}", rest.0, rest.1));
        }
    }
}
