//! The official SDK on this project's own HTTP client, as a third party that both sides must agree with.

use std::pin::Pin;
use std::sync::Arc;

use workos::transport::{HttpRequest, HttpResponse, HttpTransport, TransportError};
use workos_sim::Sim;

/// The SDK's client of this simulator.
pub(crate) fn official(sim: &Sim) -> workos::Client {
    workos::Client::builder()
        .base_url(sim.url())
        .api_key(sim.api_key())
        .max_retries(0)
        .transport(Arc::new(Transport(reqwest::Client::new())))
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
            let asked = self
                .0
                .request(request.method, request.url)
                .headers(request.headers);
            let answer = asked.send().await.map_err(TransportError::other)?;
            Ok(HttpResponse {
                status: answer.status(),
                headers: answer.headers().clone(),
                body: answer.bytes().await.map_err(TransportError::other)?,
            })
        })
    }
}
