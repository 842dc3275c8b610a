//! A TCP proxy between any two programs, to simulate network faults: connections cut, slowed, black-holed or refused.
//!
//! It knows nothing about the traffic. A black-holed connection loses nothing: like a network that comes back, the
//! proxy then passes on in order what was sent in the meantime, unless the connection was cut.

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

/// The most bytes read at a time, if the line is not slowed.
const CHUNK: usize = 64 << 10;
/// The number of chunks per second that pass a slowed line.
const BEATS: u32 = 20;
/// The pause between attempts to listen on the proxy's port again after refusing connections.
const BINDS_AGAIN: Duration = Duration::from_millis(20);

/// What happens to connections and their traffic.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Line {
    /// Everything passes at once.
    Open,
    /// The rate is limited, in each direction of each connection.
    Slow {
        /// Bytes per second. At least one byte passes at a time, twenty times a second.
        bytes: u32,
    },
    /// Connections stay open and new ones are accepted, but nothing passes: neither bytes nor the closing of a side.
    Silent,
    /// New connections are refused; existing ones go on.
    Refused,
}

/// How connections are cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cut {
    /// Both sides see an orderly close.
    Finish,
    /// Both sides see a reset.
    Reset,
}

/// A proxy in front of one address. When dropped, it ends together with its connections.
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
    /// Starts a proxy that passes everything on to `target`, an address such as `127.0.0.1:4222`. Needs a tokio
    /// runtime.
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

    /// The proxy's own address, `127.0.0.1:<port>`.
    pub fn address(&self) -> String {
        self.port.address()
    }

    /// `url` with its address replaced by that of this proxy. User, password, path and the rest stay.
    pub fn instead_of(&self, url: &str) -> String {
        let start = url.find("://").map_or(0, |at| at + 3);
        let end = url[start..].find(['/', '?']).map_or(url.len(), |at| start + at);
        let login = url[start..end].rfind('@').map_or(start, |at| start + at + 1);
        format!("{}{}{}", &url[..login], self.address(), &url[end..])
    }

    /// Sets the state of the line, for existing connections, too.
    pub fn set(&self, line: Line) {
        self.shared.line.send_replace(line);
    }

    /// Cuts all existing connections.
    pub fn cut(&self, how: Cut) {
        self.shared.cut.send_modify(|(count, last)| {
            *count += 1;
            *last = how;
        });
    }

    /// Sends new connections to `target` from now on. Existing ones go on.
    pub fn turn_to(&self, target: impl Into<String>) {
        *self.shared.target.lock().unwrap_or_else(PoisonError::into_inner) = target.into();
    }

    /// The number of open connections.
    pub fn open(&self) -> usize {
        self.shared.open.load(Ordering::Relaxed)
    }

    /// The number of bytes passed on so far, in both directions.
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

    /// The most bytes that pass at a time.
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

/// Accepts connections. Without a listener they are refused. Connections end with this task.
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
                // Out of file descriptors: let clients wait.
                let Ok(client) = client else {
                    tokio::time::sleep(Duration::from_millis(10)).await;
                    continue;
                };
                // Subscribe before the next cut can come.
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

/// Handles one connection, from its acceptance to its end.
async fn carry(mut client: TcpStream, shared: Arc<Shared>, mut cut: watch::Receiver<(u64, Cut)>) {
    let mut line = shared.line.subscribe();
    let target = tokio::select! {
        _ = cut.changed() => return,
        target = reach(&shared, &mut line) => target,
    };
    let Ok(mut server) = target else {
        // To the client, it looks as if the server had gone away at once.
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

/// Passes on bytes in one direction, and then the end of the stream.
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
        // If the line fell silent during the read, bytes and the end of the stream are passed on once it is open again.
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

/// Waits until the line lets anything pass.
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
