//! An HTTP/1 server that strangers may connect to. Connections are limited in number, closed when slow, and drained at
//! shutdown.
//!
//! Where there is no room for another connection, the one is closed that has been silent for longest: anybody may connect and
//! send nothing, or half a head, but whoever has a request sends its head within milliseconds.
//!
//! `axum::serve` never closes connections that are silent, or whose headers are incomplete or arrive byte by byte; this
//! does. The size of a body, and the time it may take, are up to the handlers.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::error::Error;
use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use axum::Router;
use bytes::Bytes;
use hyper::body::{Body, Incoming};
use hyper::header::{self, HeaderValue};
use hyper::server::conn::http1;
use hyper::{Request, Response};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tower::ServiceExt as _;

use crate::tls::Tls;

/// How many bytes of a connection are buffered before reading stops, and so how long a request's head may be, except
/// that the last read may exceed it. No proxy adds that much. Hyper's own limit is 400 KiB, for every connection a
/// stranger makes.
const BUFFER: usize = 32 << 10;

/// The limits of one server.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Concurrent connections. If there are more, those without a request make room; if all have one, the others wait in the
    /// operating system's queue.
    pub connections: usize,
    /// How long a request's headers may take, and how long a kept-alive connection may stay silent.
    pub header_read: Duration,
    /// How long a connection may be used. After that it is drained, as at shutdown. This limits what nothing else does
    /// (a peer that never reads its answers), and lets long-lived clients spread to new servers.
    pub lifetime: Duration,
    /// How long connections may take to finish once their lifetime is over or the server stops.
    pub drain: Duration,
}

impl Limits {
    /// For an admin endpoint.
    pub const ADMIN: Self = Self {
        connections: 64,
        header_read: Duration::from_secs(5),
        lifetime: Duration::from_mins(5),
        drain: Duration::from_secs(1),
    };
}

/// Answers a server's requests, each of which comes with its peer's address.
pub trait Handler: Clone + Send + Sync + 'static {
    /// The body of an answer.
    type Body: Body<Data = Bytes, Error: Into<Box<dyn Error + Send + Sync>>> + Send + 'static;

    /// Answers one request. The future is dropped if the client goes away first.
    fn answer(
        &self,
        peer: SocketAddr,
        request: Request<Incoming>,
    ) -> impl Future<Output = Response<Self::Body>> + Send + use<Self>;
}

impl Handler for Router {
    type Body = axum::body::Body;

    fn answer(
        &self,
        _peer: SocketAddr,
        request: Request<Incoming>,
    ) -> impl Future<Output = Response<Self::Body>> + Send + use<> {
        let answering = self.clone().oneshot(request.map(axum::body::Body::new));
        async { answering.await.unwrap_or_else(|never| match never {}) }
    }
}

/// The connections on which no request has arrived yet, by their turn: first the one that has been silent for longest.
#[derive(Clone, Default)]
struct Silent(Arc<Mutex<BTreeMap<u64, CancellationToken>>>);

impl Silent {
    /// Adds a connection. Its token is cancelled when it is to make room for another one.
    fn add(&self, turn: u64, makes_room: CancellationToken) {
        self.locked().insert(turn, makes_room);
    }

    /// It has sent a request, or is closed.
    fn remove(&self, turn: u64) {
        self.locked().remove(&turn);
    }

    fn make_room(&self) {
        if let Some((_, longest)) = self.locked().pop_first() {
            longest.cancel();
        }
    }

    fn locked(&self) -> MutexGuard<'_, BTreeMap<u64, CancellationToken>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One connection's place among all.
#[derive(Clone)]
struct Place {
    peer: SocketAddr,
    turn: u64,
    silent: Silent,
    room: Arc<Semaphore>,
}

/// Serves on `listener` until `shutdown`, then lets requests in progress finish within [`Limits::drain`], and closes
/// the remaining connections.
pub async fn serve(
    listener: TcpListener,
    handler: impl Handler,
    limits: Limits,
    shutdown: CancellationToken,
) {
    serve_with(listener, None, handler, limits, shutdown).await;
}

/// Like [`serve`], but over TLS if `tls` is given. A handshake may take as long as a request's headers.
pub async fn serve_with(
    listener: TcpListener,
    tls: Option<Tls>,
    handler: impl Handler,
    limits: Limits,
    shutdown: CancellationToken,
) {
    let room = Arc::new(Semaphore::new(limits.connections));
    let silent = Silent::default();
    let mut turn = 0;
    let connections = TaskTracker::new();
    let give_up = CancellationToken::new();
    // Even if the caller drops this future, no connection outlives its server.
    let _give_up_at_the_end = give_up.clone().drop_guard();
    loop {
        let next = async {
            let accepted = accept(&listener).await;
            let permit = if let Ok(permit) = Arc::clone(&room).try_acquire_owned() {
                Ok(permit)
            } else {
                silent.make_room();
                Arc::clone(&room).acquire_owned().await
            };
            (permit, accepted)
        };
        let Some((permit, (stream, peer))) = shutdown.run_until_cancelled(next).await else {
            break;
        };
        turn += 1;
        // Tokens of its own: a connection looks at them whenever it is woken, each under a lock.
        let (closes, shutdown) = (give_up.child_token(), shutdown.child_token());
        silent.add(turn, closes.clone());
        let place = Place {
            peer,
            turn,
            silent: silent.clone(),
            room: Arc::clone(&room),
        };
        let (handler, tls) = (handler.clone(), tls.clone());
        let connection = async move {
            let Some(tls) = tls else {
                return converse(stream, place, handler, limits, shutdown).await;
            };
            match tokio::time::timeout(limits.header_read, tls.accept(stream)).await {
                Ok(Ok(stream)) => converse(stream, place, handler, limits, shutdown).await,
                Ok(Err(error)) => tracing::debug!(%error, "the TLS handshake failed"),
                Err(_) => tracing::debug!("the TLS handshake took too long"),
            }
        };
        let silent = silent.clone();
        connections.spawn(async move {
            tokio::select! {
                () = connection => {}
                () = closes.cancelled() => tracing::debug!("closed a connection that was silent, or did not finish in time"),
            }
            silent.remove(turn);
            drop(permit);
        });
    }
    drop(listener);
    connections.close();
    if tokio::time::timeout(limits.drain, connections.wait())
        .await
        .is_err()
    {
        tracing::warn!(
            left = connections.len(),
            "closing connections that did not finish in time"
        );
    }
}

/// One connection, from its first byte to its close.
async fn converse(
    stream: impl AsyncRead + AsyncWrite + Unpin,
    place: Place,
    handler: impl Handler,
    limits: Limits,
    shutdown: CancellationToken,
) {
    let is_first = AtomicBool::new(true);
    let service = hyper::service::service_fn(move |request| {
        if is_first.swap(false, Ordering::Relaxed) {
            place.silent.remove(place.turn);
        }
        let answering = handler.answer(place.peer, request);
        let room = Arc::clone(&place.room);
        async move {
            let mut answer = answering.await;
            // Where there is no room left, nobody keeps a place between requests.
            if room.available_permits() == 0 {
                let close = HeaderValue::from_static("close");
                answer.headers_mut().insert(header::CONNECTION, close);
            }
            Ok::<_, Infallible>(answer)
        }
    });
    let mut connection = pin!(
        http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(limits.header_read)
            .max_buf_size(BUFFER)
            .serve_connection(TokioIo::new(stream), service)
    );
    let time_is_up = shutdown.run_until_cancelled(tokio::time::sleep(limits.lifetime));
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        _ = time_is_up => {
            connection.as_mut().graceful_shutdown();
            tokio::time::timeout(limits.drain, connection).await.unwrap_or(Ok(()))
        }
    };
    // A peer that goes away or is too slow is not an error of ours.
    if let Err(error) = ended {
        tracing::debug!(%error, "connection closed");
    }
}

/// Accepts the next connection. If the process is out of file descriptors, waits until some are free.
async fn accept(listener: &TcpListener) -> (TcpStream, SocketAddr) {
    loop {
        match listener.accept().await {
            Ok((stream, peer)) => {
                // Sends small answers at once. A failure costs only speed.
                let _ = stream.set_nodelay(true);
                return (stream, peer);
            }
            Err(error) if is_the_peers(&error) => {}
            Err(error) => {
                tracing::error!(%error, "cannot accept connections");
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
        }
    }
}

fn is_the_peers(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset};
    matches!(
        error.kind(),
        ConnectionAborted | ConnectionRefused | ConnectionReset
    )
}
