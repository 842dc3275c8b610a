//! The minimum that could answer a webhook: an axum endpoint that reads and verifies it, in a process of its own.

use std::process::Stdio;

use anyhow::Context as _;
use axum::Router;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::routing::post;
use bytes::Bytes;
use hmac::{Hmac, KeyInit as _, Mac as _};
use sha2::Sha256;
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::{Child, Command};

use crate::webhooks::SECRET;

const ARGUMENT: &str = "serve-bare";

/// A running endpoint. Ends when dropped.
pub(crate) struct Bare {
    pub(crate) pid: u32,
    pub(crate) address: String,
    _child: Child,
}

impl Bare {
    /// Starts this benchmark's own program a second time. Its `main` must check [`wanted`] first.
    pub(crate) async fn start() -> anyhow::Result<Self> {
        let mut child = Command::new(std::env::current_exe()?)
            .arg(ARGUMENT)
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()?;
        let mut address = String::new();
        BufReader::new(child.stdout.take().context("no standard output")?)
            .read_line(&mut address)
            .await?;
        Ok(Self {
            pid: child.id().context("no process id")?,
            address: address.trim().to_owned(),
            _child: child,
        })
    }
}

/// Whether this process is to be the endpoint.
pub(crate) fn wanted() -> bool {
    std::env::args().any(|argument| argument == ARGUMENT)
}

/// Prints its address and serves until it is killed.
pub(crate) async fn serve() -> anyhow::Result<()> {
    async fn handle(
        State(mac): State<Hmac<Sha256>>,
        headers: HeaderMap,
        body: Bytes,
    ) -> (StatusCode, &'static str) {
        let header = headers["workos-signature"].to_str().unwrap();
        let (time, sum) = header.split_once(", v1=").unwrap();
        let mut mac = mac;
        mac.update(time.trim_start_matches("t=").as_bytes());
        mac.update(b".");
        mac.update(&body);
        match mac.verify_slice(&hex::decode(sum).unwrap()) {
            Ok(()) => (StatusCode::OK, r#"{"status":"accepted"}"#),
            Err(_) => (StatusCode::UNAUTHORIZED, "{}"),
        }
    }
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    println!("{}", listener.local_addr()?);
    let mac = Hmac::<Sha256>::new_from_slice(SECRET.as_bytes())?;
    let app = Router::new()
        .route("/webhooks/workos", post(handle))
        .with_state(mac);
    Ok(axum::serve(listener, app).await?)
}
