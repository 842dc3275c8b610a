//! `service::http` against clients that are slow, silent, too many, or in the middle of a request.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Router;
use axum::routing::get;
use service::http::{Limits, serve};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, Semaphore};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

const HEADER_READ: Duration = Duration::from_millis(400);
const LIMITS: Limits = Limits {
    connections: 2,
    header_read: HEADER_READ,
    lifetime: Duration::from_mins(1),
    drain: Duration::from_secs(5),
};
const REQUEST: &[u8] = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n";
const BOUND: Duration = Duration::from_secs(10);

struct Server {
    addr: SocketAddr,
    shutdown: CancellationToken,
    task: JoinHandle<()>,
    /// `/held` gives a permit when it is entered …
    entered: Arc<Semaphore>,
    /// … and answers once this is notified.
    release: Arc<Notify>,
}

impl Server {
    async fn start(limits: Limits) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (addr, shutdown) = (listener.local_addr().unwrap(), CancellationToken::new());
        let (entered, release) = (Arc::new(Semaphore::new(0)), Arc::new(Notify::new()));
        let (enter, held) = (Arc::clone(&entered), Arc::clone(&release));
        let router = Router::new().route("/", get(|| async { "hello" })).route(
            "/held",
            get(move || async move {
                enter.add_permits(1);
                held.notified().await;
                "released"
            }),
        );
        let task = tokio::spawn(serve(listener, router, limits, shutdown.clone()));
        Self {
            addr,
            shutdown,
            task,
            entered,
            release,
        }
    }

    /// Waits until a request for `/held` is in progress.
    async fn entered(&self) {
        bounded(self.entered.acquire()).await.unwrap().forget();
    }

    async fn connect(&self) -> TcpStream {
        TcpStream::connect(self.addr).await.unwrap()
    }
}

async fn bounded<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(BOUND, what).await.expect("in time")
}

/// Reads until the server closes.
async fn rest(stream: &mut TcpStream) -> String {
    let mut all = Vec::new();
    // A reset counts as a close.
    let _ = bounded(stream.read_to_end(&mut all)).await;
    String::from_utf8(all).unwrap()
}

async fn answer(stream: &mut TcpStream, end: &str) -> String {
    let mut all = Vec::new();
    while !all.ends_with(end.as_bytes()) {
        let mut some = [0; 1024];
        let n = bounded(stream.read(&mut some)).await.unwrap();
        assert!(n > 0, "closed after {all:?}");
        all.extend_from_slice(&some[..n]);
    }
    String::from_utf8(all).unwrap()
}

#[tokio::test]
async fn silent_and_half_open_connections_are_closed() {
    let server = Server::start(LIMITS).await;
    for begun in [&b""[..], b"GET / HT", b"GET / HTTP/1.1\r\nHost: x\r\nX-Slow: "] {
        let mut stream = server.connect().await;
        stream.write_all(begun).await.unwrap();
        let began = Instant::now();
        let answer = rest(&mut stream).await;
        assert!(!answer.contains("200 OK"), "{answer}");
        assert!(
            began.elapsed() >= HEADER_READ / 2,
            "closed at once after {begun:?}"
        );
    }
}

#[tokio::test]
async fn dripping_headers_does_not_buy_time() {
    let server = Server::start(LIMITS).await;
    let (mut read, mut write) = server.connect().await.into_split();
    let drip = tokio::spawn(async move {
        write
            .write_all(b"GET / HTTP/1.1\r\nHost: x\r\nX-Slow: ")
            .await
            .unwrap();
        while write.write_all(b"a").await.is_ok() {
            tokio::time::sleep(HEADER_READ / 10).await;
        }
    });
    let began = Instant::now();
    let _ = bounded(read.read_to_end(&mut Vec::new())).await;
    assert!(began.elapsed() < HEADER_READ * 5, "{:?}", began.elapsed());
    bounded(drip).await.unwrap();
}

/// Heads are buffered before anything is known about their sender.
#[tokio::test]
async fn a_head_is_taken_up_to_what_proxies_make_and_no_further() {
    let server = Server::start(LIMITS).await;
    for (length, status) in [(24 << 10, "200"), (100 << 10, "431"), (300 << 10, "431")] {
        let mut stream = server.connect().await;
        let head = format!(
            "GET / HTTP/1.1\r\nHost: x\r\nX-Long: {}\r\n\r\n",
            "a".repeat(length)
        );
        // A refused head is not read to its end.
        let _ = stream.write_all(head.as_bytes()).await;
        let mut line = [0; 12];
        bounded(stream.read_exact(&mut line)).await.unwrap();
        assert!(line.ends_with(status.as_bytes()), "{length}: {line:?}");
    }
}

#[tokio::test]
async fn a_kept_connection_serves_again_and_is_closed_when_it_falls_silent() {
    let server = Server::start(LIMITS).await;
    let mut stream = server.connect().await;
    for _ in 0..3 {
        stream.write_all(REQUEST).await.unwrap();
        assert!(answer(&mut stream, "hello").await.starts_with("HTTP/1.1 200 OK"));
    }
    assert_eq!(rest(&mut stream).await, "");
}

#[tokio::test]
async fn connections_above_the_limit_wait_for_room() {
    let server = Server::start(LIMITS).await;
    let (mut one, mut two) = (server.connect().await, server.connect().await);
    for stream in [&mut one, &mut two] {
        stream
            .write_all(b"GET /held HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            .await
            .unwrap();
    }
    let mut three = server.connect().await;
    three.write_all(REQUEST).await.unwrap();
    let early = tokio::time::timeout(HEADER_READ, three.read_u8()).await;
    assert!(early.is_err(), "the third was served beside two others");
    server.release.notify_one();
    assert!(answer(&mut three, "hello").await.starts_with("HTTP/1.1 200 OK"));
    server.release.notify_one();
    assert!(rest(&mut one).await.ends_with("released") && rest(&mut two).await.ends_with("released"));
}

/// Nobody waits until strangers' time for a head is up.
#[tokio::test]
async fn silent_connections_make_room_for_one_with_a_request() {
    let server = Server::start(Limits {
        header_read: Duration::from_mins(1),
        ..LIMITS
    })
    .await;
    let mut strangers = Vec::new();
    for begun in [
        &b""[..],
        b"GET / HT",
        b"",
        b"GET / HTTP/1.1\r\nHost: x\r\nX-Slow: ",
    ] {
        let mut stranger = server.connect().await;
        stranger.write_all(begun).await.unwrap();
        strangers.push(stranger);
    }
    let mut one = server.connect().await;
    one.write_all(b"GET /held HTTP/1.1\r\nHost: x\r\n\r\n")
        .await
        .unwrap();
    server.entered().await;
    // Who has sent a request stays, but keeps no place after it.
    for _ in 0..3 {
        strangers.push(server.connect().await);
        let mut two = server.connect().await;
        two.write_all(REQUEST).await.unwrap();
        let said = rest(&mut two).await;
        assert!(
            said.contains("200 OK") && said.contains("connection: close"),
            "{said}"
        );
    }
    server.release.notify_one();
    assert!(answer(&mut one, "released").await.starts_with("HTTP/1.1 200 OK"));
}

#[tokio::test]
async fn a_drain_finishes_what_is_under_way_and_takes_nothing_new() {
    let server = Server::start(Limits {
        connections: 3,
        ..LIMITS
    })
    .await;
    let (mut busy, mut idle) = (server.connect().await, server.connect().await);
    idle.write_all(REQUEST).await.unwrap();
    answer(&mut idle, "hello").await;
    busy.write_all(b"GET /held HTTP/1.1\r\nHost: x\r\n\r\n")
        .await
        .unwrap();
    server.entered().await;
    server.shutdown.cancel();
    assert_eq!(rest(&mut idle).await, "");
    assert!(!server.task.is_finished());
    server.release.notify_one();
    let last = rest(&mut busy).await;
    assert!(
        last.contains("connection: close") && last.ends_with("released"),
        "{last}"
    );
    bounded(server.task).await.unwrap();
    assert!(TcpStream::connect(server.addr).await.is_err());
}

#[tokio::test]
async fn a_drain_ends_even_when_a_request_does_not() {
    let server = Server::start(Limits {
        drain: Duration::from_millis(100),
        ..LIMITS
    })
    .await;
    let mut stuck = server.connect().await;
    stuck
        .write_all(b"GET /held HTTP/1.1\r\nHost: x\r\n\r\n")
        .await
        .unwrap();
    server.entered().await;
    server.shutdown.cancel();
    bounded(server.task).await.unwrap();
    assert_eq!(rest(&mut stuck).await, "");
}

#[tokio::test]
async fn a_connection_whose_time_is_up_finishes_its_request_and_no_other() {
    let server = Server::start(Limits {
        lifetime: HEADER_READ,
        ..LIMITS
    })
    .await;
    let mut busy = server.connect().await;
    busy.write_all(b"GET /held HTTP/1.1\r\nHost: x\r\n\r\n")
        .await
        .unwrap();
    server.entered().await;
    // The request outlasts the connection's lifetime; nothing outside shows when that is over.
    tokio::time::sleep(HEADER_READ * 2).await;
    server.release.notify_one();
    let last = rest(&mut busy).await;
    assert!(last.ends_with("released"), "{last}");
    let mut again = server.connect().await;
    again.write_all(REQUEST).await.unwrap();
    assert!(answer(&mut again, "hello").await.starts_with("HTTP/1.1 200 OK"));
}

#[tokio::test]
async fn a_peer_that_never_reads_is_cut_off() {
    let limits = Limits {
        lifetime: HEADER_READ,
        drain: HEADER_READ,
        ..LIMITS
    };
    let server = Server::start(limits).await;
    let (mut read, mut write) = server.connect().await.into_split();
    // Sends requests until the answers, which nobody reads, have filled every buffer on the way.
    let many = REQUEST.repeat(1000);
    bounded(async { while write.write_all(&many).await.is_ok() {} }).await;
    // There is room for only one more connection.
    let mut busy = server.connect().await;
    busy.write_all(b"GET /held HTTP/1.1\r\nHost: x\r\n\r\n")
        .await
        .unwrap();
    server.entered().await;
    let mut next = server.connect().await;
    next.write_all(REQUEST).await.unwrap();
    assert!(answer(&mut next, "hello").await.starts_with("HTTP/1.1 200 OK"));
    let _ = read.read(&mut [0]).await;
}
