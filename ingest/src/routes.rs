//! One path, one method, and a fixed order of checks: path, method, sender, size, signature, event.
//!
//! The order is part of the interface: cheap checks come first, and the body of a sender that is not allowed is never
//! read. No body is parsed before its signature has been verified.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::{Method, Request, Response};
use service::clock::Clock;
use service::http::Handler;

use crate::accept::Acceptor;
use crate::answer::{Answer, ComeAgain};
use crate::body::{self, BodyError};
use crate::in_flight::{InFlight, Slot};
use crate::metrics::Metrics;
use crate::refusals::Refusals;
use crate::sender::Senders;
use crate::signature::{LONGEST_HEADER, Verifier};

/// How many bytes of the broker's `max_payload` are reserved for a record's headers: the signature, two names of at
/// most 128 characters, times, and the names of the headers themselves.
pub const HEADERS_ROOM: usize = LONGEST_HEADER + 1024;

/// Everything that handles a request.
pub struct Ingest {
    /// Where webhooks are posted.
    pub path: String,
    /// Who may post.
    pub senders: Senders,
    /// The largest body accepted, in bytes. Less if the broker accepts less.
    pub max_body: usize,
    /// How long a body may take to arrive.
    pub body_time: Duration,
    /// Bounds what is in flight.
    pub in_flight: InFlight,
    /// Decides which refusals are logged.
    pub refusals: Refusals,
    /// Verifies signatures.
    pub verifier: Verifier,
    /// Appends verified webhooks to the log.
    pub acceptor: Acceptor,
    /// The clock that signatures are checked against.
    pub clock: Clock,
    /// Counts the outcomes.
    pub metrics: Metrics,
}

/// The handler for [`service::http::serve_with`].
#[derive(Clone)]
pub struct Webhooks(Arc<Ingest>);

impl Webhooks {
    /// One handler for all connections.
    pub fn new(ingest: Ingest) -> Self {
        Self(Arc::new(ingest))
    }
}

impl Handler for Webhooks {
    type Body = Full<Bytes>;

    fn answer(
        &self,
        peer: SocketAddr,
        request: Request<Incoming>,
    ) -> impl Future<Output = Response<Self::Body>> + Send + use<> {
        let ingest = Arc::clone(&self.0);
        async move {
            let outcome = ingest.meet(peer, request).await;
            let answer = outcome.unwrap_or_else(|refusal| refusal);
            ingest.metrics.answered(answer);
            answer.into()
        }
    }
}

impl Ingest {
    /// Applies the checks in order. The first that fails decides the answer.
    async fn meet(&self, peer: SocketAddr, request: Request<Incoming>) -> Result<Answer, Answer> {
        if request.uri().path() != self.path {
            return Err(Answer::NotFound);
        }
        if request.method() != Method::POST {
            return Err(Answer::MethodNotAllowed);
        }
        let sender = self.senders.sender(peer.ip(), request.headers());
        if !self.senders.admit(sender) {
            if let Some(untold) = self.refusals.tell(Instant::now()) {
                tracing::warn!(%peer, ?sender, untold, "refused: the sender is not on the allow-list");
            }
            return Err(Answer::Forbidden);
        }
        let limit = self.body_limit();
        if body::is_announced_above(limit, request.body()) {
            return Err(self.refused_body(BodyError::TooLarge, limit));
        }
        let (head, body) = request.into_parts();
        let mut slot = self.in_flight.enter();
        let body: Bytes = body::read(body, limit, self.body_time, &mut slot)
            .await
            .map_err(|error| self.refused_body(error, limit))?;
        let webhook = self
            .verifier
            .verify(&head.headers, body, self.clock.now())
            .map_err(|why| {
                if let Some(untold) = self.refusals.tell(Instant::now()) {
                    tracing::warn!(%peer, ?sender, %why, untold, "refused: no valid signature");
                }
                Answer::Unauthorized
            })?;
        self.store(&mut slot)?;
        Ok(self.acceptor.accept(webhook).await)
    }

    /// Only what is verified takes up one of the places of requests being stored: strangers could fill them.
    fn store(&self, slot: &mut Slot) -> Result<(), Answer> {
        slot.store().map_err(|error| {
            if let Some(untold) = self.refusals.tell(Instant::now()) {
                tracing::warn!(%error, untold, "refused");
            }
            Answer::Unavailable(ComeAgain::Soon)
        })
    }

    /// A body must also fit into one of the broker's messages: better refused now than lost later.
    fn body_limit(&self) -> usize {
        let broker = self
            .acceptor
            .journal
            .max_payload()
            .map(|max| max.saturating_sub(HEADERS_ROOM));
        broker.map_or(self.max_body, |broker| broker.min(self.max_body))
    }

    fn refused_body(&self, error: BodyError, limit: usize) -> Answer {
        if let Some(untold) = self.refusals.tell(Instant::now()) {
            tracing::warn!(%error, limit, untold, "refused");
        }
        match error {
            BodyError::TooLarge => Answer::TooLarge,
            BodyError::TooSlow | BodyError::CutOff | BodyError::Broken => Answer::Incomplete,
            BodyError::NoRoom(_) => Answer::Unavailable(ComeAgain::Soon),
        }
    }
}
