//! The answer to a webhook's sender: a status, one line of JSON, and nothing that helps an attacker.

use bytes::Bytes;
use http_body_util::Full;
use hyper::header::{self, HeaderValue};
use hyper::{Response, StatusCode};

/// The answer to one request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// It is in the log now.
    Accepted,
    /// It was in the log before.
    Duplicate,
    /// A valid event, but of another WorkOS product.
    Ignored,
    /// Signed, but not an event that can be addressed; stored in the log's quarantine.
    Quarantined,
    /// There is nothing at this path.
    NotFound,
    /// Only POST is allowed.
    MethodNotAllowed,
    /// The sender is not on the allow-list.
    Forbidden,
    /// The body is larger than ingest or the log accepts.
    TooLarge,
    /// The body did not arrive completely, or not in time.
    Incomplete,
    /// No signature, or no valid one. The answer never says which.
    Unauthorized,
    /// Not stored, or not confirmed as stored: retry.
    Unavailable(ComeAgain),
}

/// When the sender should retry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ComeAgain {
    /// Too many requests are in flight; each takes milliseconds.
    Soon,
    /// The log does not answer; the broker may be restarting.
    Later,
    /// The log is full; an operator must make room.
    MuchLater,
}

impl Answer {
    /// The label `outcome` of `dsync_ingest_webhooks_total`; `None` if the request was not a webhook.
    pub fn outcome(self) -> Option<&'static str> {
        Some(match self {
            Self::Accepted => "accepted",
            Self::Duplicate => "duplicate",
            Self::Ignored => "ignored",
            Self::Quarantined => "quarantined",
            Self::NotFound | Self::MethodNotAllowed => return None,
            Self::Forbidden => "forbidden",
            Self::TooLarge => "too_large",
            Self::Incomplete => "incomplete",
            Self::Unauthorized => "unauthorized",
            Self::Unavailable(_) => "unavailable",
        })
    }

    /// One line of JSON.
    fn body(self) -> &'static str {
        match self {
            Self::Accepted => "{\"status\":\"accepted\"}\n",
            Self::Duplicate => "{\"status\":\"duplicate\"}\n",
            Self::Ignored => "{\"status\":\"ignored\"}\n",
            Self::Quarantined => "{\"status\":\"quarantined\"}\n",
            Self::NotFound => "{\"error\":\"not found\"}\n",
            Self::MethodNotAllowed => "{\"error\":\"method not allowed\"}\n",
            Self::Forbidden => "{\"error\":\"forbidden\"}\n",
            Self::TooLarge => "{\"error\":\"payload too large\"}\n",
            Self::Incomplete => "{\"error\":\"request timeout\"}\n",
            Self::Unauthorized => "{\"error\":\"unauthorized\"}\n",
            Self::Unavailable(_) => "{\"error\":\"service unavailable\"}\n",
        }
    }

    fn status(self) -> StatusCode {
        match self {
            Self::Accepted | Self::Duplicate | Self::Ignored | Self::Quarantined => StatusCode::OK,
            Self::NotFound => StatusCode::NOT_FOUND,
            Self::MethodNotAllowed => StatusCode::METHOD_NOT_ALLOWED,
            Self::Forbidden => StatusCode::FORBIDDEN,
            Self::TooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            Self::Incomplete => StatusCode::REQUEST_TIMEOUT,
            Self::Unauthorized => StatusCode::UNAUTHORIZED,
            Self::Unavailable(_) => StatusCode::SERVICE_UNAVAILABLE,
        }
    }

    fn header(self) -> Option<(header::HeaderName, &'static str)> {
        match self {
            Self::MethodNotAllowed => Some((header::ALLOW, "POST")),
            // The rest of the body is not worth reading.
            Self::Incomplete | Self::TooLarge => Some((header::CONNECTION, "close")),
            Self::Unavailable(ComeAgain::Soon) => Some((header::RETRY_AFTER, "1")),
            Self::Unavailable(ComeAgain::Later) => Some((header::RETRY_AFTER, "5")),
            Self::Unavailable(ComeAgain::MuchLater) => Some((header::RETRY_AFTER, "60")),
            _ => None,
        }
    }
}

impl From<Answer> for Response<Full<Bytes>> {
    fn from(answer: Answer) -> Self {
        let mut response = Response::new(Full::new(Bytes::from_static(answer.body().as_bytes())));
        *response.status_mut() = answer.status();
        let json = HeaderValue::from_static("application/json");
        response.headers_mut().insert(header::CONTENT_TYPE, json);
        if let Some((name, value)) = answer.header() {
            response
                .headers_mut()
                .insert(name, HeaderValue::from_static(value));
        }
        response
    }
}
