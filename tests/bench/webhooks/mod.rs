//! Webhooks for benchmarks: signed, and sent over as few or as many connections as wanted, at little cost of their own.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::ensure;
use hmac::{Hmac, KeyInit as _, Mac as _};
use sha2::Sha256;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::TcpStream;

/// What they are signed with.
pub(crate) const SECRET: &str = "whsec_of_the_benchmark_0123456789";

fn signature(body: &[u8]) -> String {
    let now = service::clock::Clock::system().now().unix_timestamp_nanos() / 1_000_000;
    let mut mac = Hmac::<Sha256>::new_from_slice(SECRET.as_bytes()).unwrap();
    mac.update(format!("{now}.").as_bytes());
    mac.update(body);
    format!("t={now}, v1={}", hex::encode(mac.finalize().into_bytes()))
}

/// A request to ingest with this body, signed now.
pub(crate) fn request(body: &str) -> Vec<u8> {
    let head = format!(
        "POST /webhooks/workos HTTP/1.1\r\nHost: bench\r\nContent-Type: application/json\r\nWorkOS-Signature: {}\r\nContent-Length: {}\r\n\r\n",
        signature(body.as_bytes()),
        body.len()
    );
    [head.as_bytes(), body.as_bytes()].concat()
}

/// Sends every request over so many connections, each waiting for its answer. Answers how long each took.
pub(crate) async fn load(
    address: &str,
    requests: Arc<Vec<Vec<u8>>>,
    connections: usize,
) -> anyhow::Result<Vec<Duration>> {
    let next = Arc::new(AtomicUsize::new(0));
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..connections {
        let (requests, next, address) = (requests.clone(), next.clone(), address.to_owned());
        tasks.spawn(async move {
            let mut socket = BufReader::new(TcpStream::connect(address).await?);
            socket.get_ref().set_nodelay(true)?;
            let mut times = Vec::new();
            let mut line = String::new();
            loop {
                let Some(request) = requests.get(next.fetch_add(1, Ordering::Relaxed)) else {
                    return anyhow::Ok(times);
                };
                let began = Instant::now();
                socket.get_mut().write_all(request).await?;
                line.clear();
                socket.read_line(&mut line).await?;
                ensure!(line.starts_with("HTTP/1.1 200"), "{line}");
                let mut length = 0;
                while line != "\r\n" {
                    line.clear();
                    socket.read_line(&mut line).await?;
                    if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
                        length = value.trim().parse()?;
                    }
                }
                let mut answer = vec![0; length];
                socket.read_exact(&mut answer).await?;
                times.push(began.elapsed());
            }
        });
    }
    let mut all = Vec::new();
    while let Some(times) = tasks.join_next().await {
        all.extend(times??);
    }
    all.sort();
    Ok(all)
}
