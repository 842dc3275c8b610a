//! Webhooks for benchmarks: signed, and cheap to send.

use anyhow::ensure;
use hmac::{Hmac, KeyInit as _, Mac as _};
use sha2::Sha256;
use tests::{Nats, Program, Running};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::TcpStream;

/// The secret with which they are signed.
pub(crate) const SECRET: &str = "whsec_of_the_benchmark_0123456789";

fn signature(body: &[u8]) -> String {
    let now = service::clock::Clock::system().now().unix_timestamp_nanos() / 1_000_000;
    let mut mac = Hmac::<Sha256>::new_from_slice(SECRET.as_bytes()).unwrap();
    mac.update(format!("{now}.").as_bytes());
    mac.update(body);
    format!("t={now}, v1={}", hex::encode(mac.finalize().into_bytes()))
}

/// A request to ingest with this body, signed with the current time.
pub(crate) fn request(body: &str) -> Vec<u8> {
    let head = format!(
        "POST /webhooks/workos HTTP/1.1\r\nHost: bench\r\nContent-Type: application/json\r\nWorkOS-Signature: {}\r\nContent-Length: {}\r\n\r\n",
        signature(body.as_bytes()),
        body.len()
    );
    [head.as_bytes(), body.as_bytes()].concat()
}

/// Starts ingest in front of a broker, and waits until it is ready.
pub(crate) async fn receiver(nats: &Nats) -> anyhow::Result<Running> {
    Program::new("dsync-ingest")
        .env("NATS_URL", nats.url())
        .env("WORKOS_WEBHOOK_SECRET", SECRET)
        .env("RUST_LOG", "warn")
        .start()
        .await
}

/// One persistent connection to ingest.
pub(crate) struct Client {
    socket: BufReader<TcpStream>,
    line: String,
    answer: Vec<u8>,
}

impl Client {
    pub(crate) async fn to(address: &str) -> anyhow::Result<Self> {
        let socket = BufReader::new(TcpStream::connect(address).await?);
        socket.get_ref().set_nodelay(true)?;
        Ok(Self {
            socket,
            line: String::new(),
            answer: Vec::new(),
        })
    }

    /// Sends a request and waits for its answer, which must be 200.
    pub(crate) async fn send(&mut self, request: &[u8]) -> anyhow::Result<()> {
        let Self { socket, line, answer } = self;
        socket.get_mut().write_all(request).await?;
        line.clear();
        socket.read_line(line).await?;
        ensure!(line.starts_with("HTTP/1.1 200"), "{line}");
        let mut length = 0;
        while line != "\r\n" {
            line.clear();
            socket.read_line(line).await?;
            if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
                length = value.trim().parse()?;
            }
        }
        answer.resize(length, 0);
        socket.read_exact(answer).await?;
        Ok(())
    }
}
