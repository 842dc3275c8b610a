//! The admin endpoint: `/metrics` (Prometheus text), `/livez` and `/readyz`.
//!
//! It keeps answering while the program drains, but then reports that it is not ready, so that load balancers stop
//! sending requests. It changes nothing and shows no secrets.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

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

/// How often `dsync_ready` is brought up to date.
const READINESS: Duration = Duration::from_secs(5);

/// The running admin endpoint. It stops when this is dropped.
#[derive(Debug)]
pub struct Admin {
    addr: SocketAddr,
    tasks: [AbortHandle; 2],
}

impl Admin {
    /// The address it listens on. If port 0 was asked for, this has the actual port.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }
}

impl Drop for Admin {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
    }
}

/// The admin endpoint cannot listen on the given address.
#[derive(Debug, thiserror::Error)]
#[error("ADMIN_ADDR (--admin-addr): cannot listen on {addr}")]
pub struct BindError {
    addr: SocketAddr,
    source: io::Error,
}

/// Starts serving on `addr`. Keep the returned value for as long as it should serve.
pub async fn serve(addr: SocketAddr, context: &Context) -> Result<Admin, BindError> {
    let bound = async {
        let listener = TcpListener::bind(addr).await?;
        io::Result::Ok((listener.local_addr()?, listener))
    };
    let (addr, listener) = bound.await.map_err(|source| BindError { addr, source })?;
    // A token of its own: the endpoint keeps serving during the drain and stops with the handle.
    let serving = serve_http(
        listener,
        router(context.clone()),
        Limits::ADMIN,
        CancellationToken::new(),
    );
    let noting = note_readiness_again(context.clone());
    let tasks = [
        tokio::spawn(serving).abort_handle(),
        tokio::spawn(noting).abort_handle(),
    ];
    tracing::info!(%addr, "admin endpoint is up");
    Ok(Admin { addr, tasks })
}

/// Keeps `dsync_ready` up to date. Not when `/metrics` is asked: it must answer at once, whatever is down.
async fn note_readiness_again(context: Context) {
    loop {
        note_readiness(&context).await;
        tokio::time::sleep(READINESS).await;
    }
}

async fn note_readiness(context: &Context) {
    context.ready.set(missing(context).await.is_empty().into());
}

/// The routes alone, for tests and for other servers.
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
            tracing::error!(%error, "metrics cannot be encoded");
            StatusCode::INTERNAL_SERVER_ERROR.into_response()
        }
    }
}

/// What keeps the program from doing its job now.
async fn missing(context: &Context) -> Vec<Missing> {
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
    missing
}

async fn readyz(State(context): State<Context>) -> Response {
    let missing = missing(&context).await;
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

#[cfg(test)]
mod tests {
    use axum::body::{Body, to_bytes};
    use axum::http::Request;
    use time::OffsetDateTime;
    use tower::ServiceExt as _;

    use super::*;
    use crate::clock::Clock;

    async fn get(context: &Context, path: &str) -> (StatusCode, serde_json::Value) {
        let request = Request::get(path).body(Body::empty()).unwrap();
        let answer = router(context.clone()).oneshot(request).await.unwrap();
        let status = answer.status();
        let body = to_bytes(answer.into_body(), 10_000).await.unwrap();
        (status, serde_json::from_slice(&body).unwrap())
    }

    #[tokio::test]
    async fn readiness_names_what_is_missing() {
        let context = Context::new("test", "1.2.3", Clock::fixed(OffsetDateTime::UNIX_EPOCH));
        assert_eq!(
            get(&context, "/readyz").await,
            (StatusCode::OK, json!({"ready": true, "missing": []}))
        );
        context
            .readiness
            .check("database", Duration::from_secs(1), || async {
                Err("refuses connections")
            });
        let missing = json!([{"name": "database", "reason": "refuses connections"}]);
        let expected = (
            StatusCode::SERVICE_UNAVAILABLE,
            json!({"ready": false, "missing": missing}),
        );
        assert_eq!(get(&context, "/readyz").await, expected);
        assert_eq!(get(&context, "/livez").await.0, StatusCode::OK);
    }

    #[tokio::test]
    async fn a_process_that_stops_is_not_ready() {
        let context = Context::new("test", "1.2.3", Clock::fixed(OffsetDateTime::UNIX_EPOCH));
        context.shutdown.cancel();
        let (status, body) = get(&context, "/readyz").await;
        assert_eq!(
            (status, &body["missing"][0]["name"]),
            (StatusCode::SERVICE_UNAVAILABLE, &json!("shutdown"))
        );
        assert_eq!(get(&context, "/livez").await.0, StatusCode::OK);
    }

    #[tokio::test]
    async fn metrics_say_whether_it_is_ready() {
        let context = Context::new("test", "1.2.3", Clock::fixed(OffsetDateTime::UNIX_EPOCH));
        let told = async || {
            note_readiness(&context).await;
            let request = Request::get("/metrics").body(Body::empty()).unwrap();
            let answer = router(context.clone()).oneshot(request).await.unwrap();
            let body = to_bytes(answer.into_body(), 10_000).await.unwrap();
            let text = String::from_utf8(body.to_vec()).unwrap();
            let line = text.lines().find(|line| line.starts_with("dsync_ready "));
            line.map(str::to_owned)
        };
        assert_eq!(told().await.as_deref(), Some("dsync_ready 1"));
        context.shutdown.cancel();
        assert_eq!(told().await.as_deref(), Some("dsync_ready 0"));
    }
}
