//! Helpers for the simulator's tests: a seeded simulator at a fixed time, plain requests, and the official SDK on top
//! of this project's own HTTP client.

#![allow(
    dead_code,
    unreachable_pub,
    reason = "a module of each test binary, of which each uses its part"
)]

use std::{future::Future, pin::Pin, sync::Arc};

use serde_json::Value;
use workos::transport::{HttpRequest, HttpResponse, HttpTransport, TransportError};
use workos_sim::{DirectoryOptions, Millis, Options, Seed, Seeded, Sim};

/// 2026-01-15T12:00:00Z.
pub const NOON: Millis = Millis(1_768_478_400_000);

/// A simulator at noon with one seeded directory.
pub async fn sim_with(options: DirectoryOptions, seed: &Seed) -> (Sim, String, Seeded) {
    let sim = Sim::start(Options::at(NOON)).await.unwrap();
    let directory = sim.create_directory(options).unwrap();
    let seeded = sim.seed(&directory, seed).unwrap();
    (sim, directory, seeded)
}

pub fn http() -> reqwest::Client {
    reqwest::Client::builder().no_proxy().build().unwrap()
}

/// Makes an authorized request and returns status and JSON body.
pub async fn get(sim: &Sim, path: &str) -> (u16, Value) {
    let request = http()
        .get(format!("{}{path}", sim.url()))
        .bearer_auth(sim.api_key());
    let answer = request.send().await.unwrap();
    (answer.status().as_u16(), answer.json().await.unwrap())
}

/// The ids of a whole list, page by page.
pub async fn walk(sim: &Sim, path: &str) -> Vec<String> {
    let (mut ids, mut cursor) = (Vec::new(), String::new());
    loop {
        let (status, page) = get(sim, &format!("{path}{cursor}")).await;
        assert_eq!(status, 200, "{page}");
        let data = page["data"].as_array().unwrap();
        ids.extend(
            data.iter()
                .map(|object| object["id"].as_str().unwrap().to_owned()),
        );
        match page["list_metadata"]["after"].as_str() {
            Some(after) => cursor = format!("&after={after}"),
            None => return ids,
        }
    }
}

/// WorkOS's own client, pointed at the simulator.
pub fn official(sim: &Sim) -> workos::Client {
    let transport = Arc::new(Transport(http()));
    workos::Client::builder()
        .base_url(sim.url())
        .api_key(sim.api_key())
        .max_retries(0)
        .transport(transport)
        .build()
}

struct Transport(reqwest::Client);

type Answer<'a> = Pin<Box<dyn Future<Output = Result<HttpResponse, TransportError>> + Send + 'a>>;

impl HttpTransport for Transport {
    fn execute<'life, 'future>(&'life self, request: HttpRequest) -> Answer<'future>
    where
        'life: 'future,
        Self: 'future,
    {
        Box::pin(async move {
            let request = self
                .0
                .request(request.method, request.url)
                .headers(request.headers);
            let answer = request.send().await.map_err(TransportError::other)?;
            let (status, headers) = (answer.status(), answer.headers().clone());
            let body = answer.bytes().await.map_err(TransportError::other)?;
            Ok(HttpResponse {
                status,
                headers,
                body,
            })
        })
    }
}
