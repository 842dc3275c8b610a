//! A private broker, and a client that says exactly the bytes it is told to.

#![allow(dead_code, reason = "each test program uses a part")]

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

/// Nothing here takes longer unless it is broken.
pub(crate) const BOUND: Duration = Duration::from_secs(20);

/// Polls until `probe` gives something.
pub(crate) async fn until<T, F: Future<Output = Option<T>>>(what: &str, mut probe: impl FnMut() -> F) -> T {
    let began = Instant::now();
    loop {
        if let Some(found) = probe().await {
            return found;
        }
        assert!(began.elapsed() < BOUND, "not in time: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// A `nats-server` with a port and a store of its own; it ends with the test.
pub(crate) struct Broker {
    dir: tempfile::TempDir,
    settings: String,
    port: u16,
    child: Option<Child>,
}

impl Broker {
    /// Starts one; `settings` are lines of its configuration file.
    pub(crate) async fn start(settings: &str) -> Self {
        let mut broker = Self::reserve(settings);
        broker.up().await;
        broker
    }

    /// A broker that is not up yet, at a port that is free now.
    pub(crate) fn reserve(settings: &str) -> Self {
        let port = std::net::TcpListener::bind("127.0.0.1:0")
            .unwrap()
            .local_addr()
            .unwrap()
            .port();
        let dir = tempfile::tempdir().unwrap();
        Self {
            dir,
            settings: settings.to_owned(),
            port,
            child: None,
        }
    }

    /// Brings it up, with whatever its store holds.
    pub(crate) async fn up(&mut self) {
        let config = self.dir.path().join("nats.conf");
        let store = self.store();
        let text = format!(
            "listen: \"127.0.0.1:{}\"\njetstream {{ store_dir: \"{}\", max_file: 256MB }}\n{}\n",
            self.port,
            store.display(),
            self.settings
        );
        std::fs::write(&config, text).unwrap();
        let mut command = Command::new("nats-server");
        command
            .arg("-c")
            .arg(&config)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        self.child = Some(command.spawn().expect("nats-server is on the path"));
        until("the broker is up", || async {
            TcpStream::connect(("127.0.0.1", self.port)).await.ok()
        })
        .await;
    }

    /// Stops it in order; what was acknowledged stays.
    pub(crate) fn down(&mut self) {
        self.signal("TERM");
        self.child.take().unwrap().wait().unwrap();
    }

    /// Stops it, and with it goes the log.
    pub(crate) fn lose_everything(&mut self) {
        self.down();
        std::fs::remove_dir_all(self.store()).unwrap();
    }

    /// Sends a signal, `STOP` to freeze and `CONT` to thaw.
    pub(crate) fn signal(&self, name: &str) {
        let pid = self.child.as_ref().unwrap().id().to_string();
        assert!(
            Command::new("kill")
                .args(["-s", name, &pid])
                .status()
                .unwrap()
                .success()
        );
    }

    /// Says one line of its protocol, and waits until it was heard.
    pub(crate) async fn say(&self, line: &str) {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).await.unwrap();
        stream
            .write_all(format!("CONNECT {{\"verbose\":false}}\r\n{line}\r\nPING\r\n").as_bytes())
            .await
            .unwrap();
        let mut heard = Vec::new();
        while !heard.ends_with(b"PONG\r\n") {
            assert!(stream.read_buf(&mut heard).await.unwrap() > 0);
        }
    }

    pub(crate) fn url(&self) -> String {
        format!("nats://127.0.0.1:{}", self.port)
    }

    fn store(&self) -> PathBuf {
        Path::new(self.dir.path()).join("store")
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// What a server said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Reply {
    pub(crate) status: u16,
    /// Lower case, as they came.
    pub(crate) head: String,
    pub(crate) body: String,
}

impl Reply {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.head
            .lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
    }

    /// Status and body of an answer in JSON.
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

    /// The next answer; None when the server closes instead.
    pub(crate) async fn hear(&mut self) -> Option<Reply> {
        tokio::time::timeout(BOUND, self.read())
            .await
            .expect("an answer in time")
    }

    /// Waits until the server closes; whatever it says before is thrown away.
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
