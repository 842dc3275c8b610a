//! A program queries its own admin endpoint: for images without a shell, and for supervisors that go by exit codes.
//!
//! It uses only the setting `ADMIN_ADDR`, needs no secrets, and connects only to this machine.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

/// Longer than the programs' readiness checks may take, but shorter than supervisors usually allow.
const PATIENCE: Duration = Duration::from_secs(4);

/// Our answers are short. Something else that listens at the address may send any amount.
const LONGEST_ANSWER: u64 = 64 << 10;

/// What to check, and how to print the answer.
#[derive(Args, Clone, Copy, Debug)]
pub struct HealthcheckArgs {
    /// Check whether the program can do its job now (`/readyz`), not only whether it is alive (`/livez`)
    #[arg(long)]
    ready: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

impl HealthcheckArgs {
    fn path(self) -> &'static str {
        if self.ready { "/readyz" } else { "/livez" }
    }
}

/// The running program's answer.
#[derive(Debug, PartialEq, Eq)]
struct Answer {
    status: u16,
    body: Value,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
enum Silence {
    #[error("nothing answers at {0}")]
    Unreachable(SocketAddr, #[source] io::Error),
    #[error("no answer from {0} within {PATIENCE:?}")]
    TooLate(SocketAddr),
    #[error("the server at {0} is not an admin endpoint")]
    Strange(SocketAddr),
}

/// Checks the program that runs with the same `ADMIN_ADDR`. Exit code 0 if it is healthy, 1 if it is not; an error if
/// it does not answer.
pub async fn run(admin_addr: SocketAddr, args: HealthcheckArgs) -> anyhow::Result<ExitCode> {
    let addr = from_here(admin_addr);
    let answer = tokio::time::timeout(PATIENCE, ask(addr, args.path()))
        .await
        .unwrap_or(Err(Silence::TooLate(addr)))?;
    if args.json {
        println!("{}", answer.body);
    } else {
        println!("{}", for_people(&answer.body));
    }
    Ok(ExitCode::from(u8::from(answer.status != 200)))
}

/// The address at which to reach a program that listens on `addr`. For an unspecified address, that is loopback.
fn from_here(mut addr: SocketAddr) -> SocketAddr {
    if addr.ip().is_unspecified() {
        addr.set_ip(match addr.ip() {
            IpAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
            IpAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
        });
    }
    addr
}

async fn exchange(addr: SocketAddr, path: &str) -> io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect(addr).await?;
    let request = format!("GET {path} HTTP/1.1\r\nHost: {addr}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut answer = Vec::new();
    stream.take(LONGEST_ANSWER).read_to_end(&mut answer).await?;
    Ok(answer)
}

async fn ask(addr: SocketAddr, path: &str) -> Result<Answer, Silence> {
    let bytes = exchange(addr, path)
        .await
        .map_err(|e| Silence::Unreachable(addr, e))?;
    parse(&bytes).ok_or(Silence::Strange(addr))
}

/// The lines of `/metrics` of the program that runs with the same `ADMIN_ADDR`, and whether it is ready.
pub async fn metrics(admin_addr: SocketAddr) -> anyhow::Result<(bool, Vec<String>)> {
    let addr = from_here(admin_addr);
    let ready = ask(addr, "/readyz").await?.status == 200;
    let bytes = exchange(addr, "/metrics")
        .await
        .map_err(|e| Silence::Unreachable(addr, e))?;
    let text = String::from_utf8_lossy(&bytes);
    let (_, body) = text.split_once("\r\n\r\n").ok_or(Silence::Strange(addr))?;
    Ok((ready, body.lines().map(str::to_owned).collect()))
}

/// Parses the answers of our own admin endpoint, which are short and never chunked. Not a general HTTP parser.
fn parse(answer: &[u8]) -> Option<Answer> {
    let (head, body) = std::str::from_utf8(answer).ok()?.split_once("\r\n\r\n")?;
    Some(Answer {
        status: head.strip_prefix("HTTP/1.1 ")?.get(..3)?.parse().ok()?,
        body: serde_json::from_str(body).ok()?,
    })
}

/// One line: the `status` of `/livez`; or, of `/readyz`, either `ready` or everything that is missing.
fn for_people(body: &Value) -> String {
    if let Some(status) = body["status"].as_str() {
        return status.to_owned();
    }
    let missing: Vec<_> = (body["missing"].as_array().into_iter().flatten())
        .map(|m| {
            let text = |key: &str| m[key].as_str().unwrap_or("?").to_owned();
            format!("{}: {}", text("name"), text("reason"))
        })
        .collect();
    if missing.is_empty() {
        "ready".to_owned()
    } else {
        format!("not ready: {}", missing.join("; "))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use time::OffsetDateTime;

    use super::*;
    use crate::admin::{self, Admin};
    use crate::boot::Context;
    use crate::clock::Clock;

    async fn serving() -> (Admin, Context) {
        let context = Context::new("test", "1.2.3", Clock::fixed(OffsetDateTime::UNIX_EPOCH));
        let admin = admin::serve("127.0.0.1:0".parse().unwrap(), &context)
            .await
            .unwrap();
        (admin, context)
    }

    async fn heard(admin: &Admin, path: &str) -> (u16, String) {
        let everywhere = SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), admin.addr().port());
        let answer = ask(from_here(everywhere), path).await.unwrap();
        (answer.status, for_people(&answer.body))
    }

    #[tokio::test]
    async fn alive_and_ready_are_told_apart() {
        let (admin, context) = serving().await;
        assert_eq!(heard(&admin, "/livez").await, (200, "alive".to_owned()));
        assert_eq!(heard(&admin, "/readyz").await, (200, "ready".to_owned()));
        context
            .readiness
            .check("log", Duration::from_secs(1), || async { Err("is down") });
        context.shutdown.cancel();
        let said = "not ready: shutdown: this process is stopping; log: is down";
        assert_eq!(heard(&admin, "/readyz").await, (503, said.to_owned()));
        assert_eq!(heard(&admin, "/livez").await, (200, "alive".to_owned()));
    }

    #[tokio::test]
    async fn silence_is_an_error_that_says_where() {
        let (admin, _context) = serving().await;
        let strange = ask(admin.addr(), "/metrics").await.unwrap_err();
        assert!(matches!(strange, Silence::Strange(_)), "{strange}");
        let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let addr = closed.local_addr().unwrap();
        drop(closed);
        let error = ask(addr, "/livez").await.unwrap_err();
        assert_eq!(error.to_string(), format!("nothing answers at {addr}"));
    }

    #[test]
    fn only_the_admin_endpoint_s_kind_of_answer_is_believed() {
        let answer = |text: &str| parse(text.as_bytes());
        let body = json!({"status": "alive"});
        assert_eq!(
            answer("HTTP/1.1 200 OK\r\na: b\r\n\r\n{\"status\":\"alive\"}"),
            Some(Answer { status: 200, body })
        );
        for strange in [
            "",
            "HTTP/1.1 200 OK\r\n",
            "HTTP/1.1 20\r\n\r\n{}",
            "SSH-2.0\r\n\r\n{}",
            "HTTP/1.1 200 OK\r\n\r\n<html>",
        ] {
            assert_eq!(answer(strange), None, "{strange}");
        }
    }

    #[test]
    fn every_address_is_asked_by_loopback() {
        let from = |addr: &str| from_here(addr.parse().unwrap()).to_string();
        assert_eq!(from("0.0.0.0:9464"), "127.0.0.1:9464");
        assert_eq!(from("[::]:9464"), "[::1]:9464");
        assert_eq!(from("10.1.2.3:9464"), "10.1.2.3:9464");
    }
}
