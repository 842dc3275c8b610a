//! The admin endpoint: `/metrics` (Prometheus text), `/livez` and `/readyz`.
//!
//! It keeps answering while the program drains, and says then that it is not ready, so that balancers look elsewhere.
//! It changes nothing and shows no secrets.

use std::io;
use std::net::SocketAddr;

use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use prometheus::TextEncoder;
use serde_json::json;
use tokio::net::TcpListener;
use tokio::task::AbortHandle;
use tokio_util::sync::CancellationToken;

use crate::boot::Context;
use crate::http::{Limits, serve as serve_http};
use crate::readiness::Missing;

/// The running admin endpoint; it ends when this is dropped.
#[derive(Debug)]
pub struct Admin {
    addr: SocketAddr,
    task: AbortHandle,
}

impl Admin {
    /// Where it listens; the port is the real one when port 0 was asked for.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }
}

impl Drop for Admin {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// It cannot listen at the address given.
#[derive(Debug, thiserror::Error)]
#[error("ADMIN_ADDR (--admin-addr): cannot listen on {addr}")]
pub struct BindError {
    addr: SocketAddr,
    source: io::Error,
}

/// Starts answering on `addr`; keep what is returned for as long as it should.
pub async fn serve(addr: SocketAddr, context: &Context) -> Result<Admin, BindError> {
    let bound = async {
        let listener = TcpListener::bind(addr).await?;
        io::Result::Ok((listener.local_addr()?, listener))
    };
    let (addr, listener) = bound.await.map_err(|source| BindError { addr, source })?;
    // Its own token: it outlives the drain and ends with the handle.
    let serving = serve_http(
        listener,
        router(context.clone()),
        Limits::ADMIN,
        CancellationToken::new(),
    );
    let task = tokio::spawn(serving).abort_handle();
    tracing::info!(%addr, "admin endpoint is up");
    Ok(Admin { addr, task })
}

/// The routes alone, for tests and for whoever serves them otherwise.
pub fn router(context: Context) -> Router {
    Router::new()
        .route("/metrics", get(metrics))
        .route("/livez", get(|| async { Json(json!({"status": "alive"})) }))
        .route("/readyz", get(readyz))
        .with_state(context)
}

async fn metrics(State(context): State<Context>) -> Response {
    match TextEncoder::new().encode_to_string(&context.metrics.gather()) {
        Ok(text) => ([(header::CONTENT_TYPE, prometheus::TEXT_FORMAT)], text).into_response(),
        Err(error) => {
            tracing::error!(%error, "metrics cannot be written out");
            StatusCode::INTERNAL_SERVER_ERROR.into_response()
        }
    }
}

async fn readyz(State(context): State<Context>) -> Response {
    let mut missing = context.readiness.missing().await;
    if context.shutdown.is_cancelled() {
        missing.insert(
            0,
            Missing {
                name: "shutdown",
                reason: "this process is stopping".to_owned(),
            },
        );
    }
    let status = if missing.is_empty() {
        StatusCode::OK
    } else {
        StatusCode::SERVICE_UNAVAILABLE
    };
    let missing: Vec<_> = missing
        .iter()
        .map(|m| json!({"name": m.name, "reason": m.reason}))
        .collect();
    (
        status,
        Json(json!({"ready": missing.is_empty(), "missing": missing})),
    )
        .into_response()
}
