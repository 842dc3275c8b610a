//! What a webhook's sender is told: the status, one JSON line, and nothing that helps an attacker.

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
    /// A valid event of another product.
    Ignored,
    /// Signed, but not an event that can be addressed; kept apart in the log.
    Quarantined,
    /// There is nothing at this path.
    NotFound,
    /// Only POST is taken.
    MethodNotAllowed,
    /// The sender is not on the allow-list.
    Forbidden,
    /// The body is larger than we, or the log, take.
    TooLarge,
    /// The body did not arrive whole, or not in time.
    Incomplete,
    /// No signature, or none that holds. Never says which.
    Unauthorized,
    /// Not stored, or not known to be: come again.
    Unavailable(ComeAgain),
}

/// When to come again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ComeAgain {
    /// Too many requests in flight; they last milliseconds.
    Soon,
    /// The log does not answer; it may be restarting.
    Later,
    /// The log is full; somebody must make room.
    MuchLater,
}

impl Answer {
    /// The label `outcome` of `dsync_ingest_webhooks_total`; none for what was no webhook.
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
            // What is left of the body is not worth reading.
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
