//! A client that sends exactly the bytes it is given, and bounded waiting.

#![allow(dead_code, reason = "each test program uses only a part")]

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::Context as _;
use tests::Nats;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

/// Anything that takes longer is broken.
pub(crate) const BOUND: Duration = Duration::from_secs(20);

/// Polls until `probe` returns something.
pub(crate) async fn until<T>(what: &str, mut probe: impl AsyncFnMut() -> Option<T>) -> T {
    let found = tests::eventually(BOUND, async || {
        probe().await.with_context(|| format!("not yet: {what}"))
    });
    found.await.unwrap()
}

/// Sends a request to the broker's own API and returns the answer, which must be a success.
pub(crate) async fn jetstream(nats: &Nats, question: &str, payload: &str) -> String {
    let addr = nats.url().replace("nats://", "");
    let mut stream = TcpStream::connect(addr).await.unwrap();
    let asked = format!("PUB $JS.API.{question} answer {}\r\n{payload}\r\n", payload.len());
    stream
        .write_all(format!("CONNECT {{}}\r\nSUB answer 1\r\n{asked}").as_bytes())
        .await
        .unwrap();
    let mut heard = Vec::new();
    while !(String::from_utf8_lossy(&heard).contains("MSG answer") && heard.ends_with(b"}\r\n")) {
        assert!(stream.read_buf(&mut heard).await.unwrap() > 0);
    }
    let heard = String::from_utf8(heard).unwrap();
    assert!(!heard.contains("\"error\""), "{heard}");
    heard
}

/// A server's answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Reply {
    pub(crate) status: u16,
    /// Status line and headers, in lower case.
    pub(crate) head: String,
    pub(crate) body: String,
}

impl Reply {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.head
            .lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
    }

    /// Status and body of a JSON answer.
    pub(crate) fn json(&self) -> (u16, serde_json::Value) {
        assert!(
            self.body.ends_with('\n') && self.body.lines().count() == 1,
            "{:?}",
            self.body
        );
        (self.status, serde_json::from_str(&self.body).unwrap())
    }
}

/// One connection.
pub(crate) struct Client(pub(crate) TcpStream);

impl Client {
    pub(crate) async fn connect(addr: SocketAddr) -> Self {
        Self(TcpStream::connect(addr).await.unwrap())
    }

    pub(crate) async fn say(&mut self, bytes: impl AsRef<[u8]>) {
        self.0.write_all(bytes.as_ref()).await.unwrap();
    }

    /// The next answer, or `None` if the server closes the connection instead.
    pub(crate) async fn hear(&mut self) -> Option<Reply> {
        tokio::time::timeout(BOUND, self.read())
            .await
            .expect("an answer in time")
    }

    /// Waits until the server closes the connection, and discards whatever it sends before.
    pub(crate) async fn closed(&mut self) {
        let mut rest = Vec::new();
        let _ = tokio::time::timeout(BOUND, self.0.read_to_end(&mut rest))
            .await
            .expect("closed in time");
    }

    async fn read(&mut self) -> Option<Reply> {
        let mut all = Vec::new();
        let head_end = loop {
            if let Some(end) = all.windows(4).position(|w| w == b"\r\n\r\n") {
                break end;
            }
            if !matches!(self.0.read_buf(&mut all).await, Ok(1..)) {
                return None;
            }
        };
        let mut body = all.split_off(head_end + 4);
        let head = String::from_utf8(all).unwrap().to_ascii_lowercase();
        let reply = Reply {
            status: head[9..12].parse().unwrap(),
            head,
            body: String::new(),
        };
        let length = reply
            .header("content-length")
            .map_or(0, |length| length.parse().unwrap());
        while body.len() < length {
            assert!(
                self.0.read_buf(&mut body).await.unwrap() > 0,
                "closed in the middle of a body"
            );
        }
        Some(Reply {
            body: String::from_utf8(body).unwrap(),
            ..reply
        })
    }
}

/// The bytes of a POST with these headers.
pub(crate) fn post(path: &str, headers: &[(&str, &str)], body: &[u8]) -> Vec<u8> {
    let mut request = format!(
        "POST {path} HTTP/1.1\r\nHost: test\r\nContent-Length: {}\r\n",
        body.len()
    );
    for (name, value) in headers {
        request.extend([*name, ": ", *value, "\r\n"]);
    }
    [request.as_bytes(), b"\r\n", body].concat()
}

/// An event as WorkOS sends it.
pub(crate) fn user_created(event: &str) -> String {
    format!(
        r#"{{"id":"{event}","event":"dsync.user.created","created_at":"2026-11-01T10:00:00.000Z",
  "data":{{"id":"directory_user_1","directory_id":"directory_1","state":"active","email":"ada@example.com"}}}}"#
    )
}
