//! One GET: waits its turn, is sent, and is retried while that may help. Everything that may pass (429, 5xx,
//! time-outs, a lost connection) is retried with jitter for up to [`ClientSettings::patience`]; everything else is
//! left to the caller. A 429 pauses all requests under the same limit, whether or not this one is retried. Waiting
//! that a 429 or a 503 asks for does not count against the patience.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use reqwest::StatusCode;
use reqwest::header::{DATE, HeaderMap, RETRY_AFTER};
use schema::json::{self, Malformed};
use schema::timestamp::Timestamp;
use service::clock::Clock;
use service::retry::Backoff;
use service::settings::Secret;
use tokio::sync::watch;
use tokio::time::Instant;

use super::answer::{Answer, http_date};
use super::limits::Limits;
use crate::metrics::Metrics;

/// How many times its patience a request is retried while the answers only say when to ask again. Nothing is wrong
/// then, and what was read so far is worth the wait. But a request that is put off forever must not keep its place
/// forever.
const TOLD_TO_WAIT: u32 = 10;

/// Where the API is, and how patient we are with it.
#[derive(Clone, Debug)]
pub struct ClientSettings {
    /// `https://api.workos.com`, or a stand-in.
    pub url: reqwest::Url,
    /// `sk_…`.
    pub key: Secret,
    /// How long one request may take.
    pub timeout: Duration,
    /// How long one request is retried, not counting the waits for its turn and those that the answers asked for.
    pub patience: Duration,
}

impl ClientSettings {
    /// The settings for production.
    pub fn new(url: reqwest::Url, key: Secret) -> Self {
        Self {
            url,
            key,
            timeout: Duration::from_secs(20),
            patience: Duration::from_mins(1),
        }
    }
}

/// What can be requested. Its name is the metric's label.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Endpoint {
    /// `/directories`
    Directories,
    /// `/directories/{id}`
    Directory,
    /// `/directory_users`
    Users,
    /// `/directory_users/{id}`
    User,
    /// `/directory_groups`
    Groups,
    /// `/directory_groups/{id}`
    Group,
    /// `/events`
    Events,
}

impl Endpoint {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Directories => "directories",
            Self::Directory => "directory",
            Self::Users => "users",
            Self::User => "user",
            Self::Groups => "groups",
            Self::Group => "group",
            Self::Events => "events",
        }
    }

    const fn path(self) -> &'static str {
        match self {
            Self::Directories | Self::Directory => "directories",
            Self::Users | Self::User => "directory_users",
            Self::Groups | Self::Group => "directory_groups",
            Self::Events => "events",
        }
    }

    /// Whether it counts against the limit per directory.
    const fn is_limited(self) -> bool {
        matches!(self, Self::Users | Self::User)
    }
}

/// One request.
#[derive(Clone, Debug)]
pub struct Ask<'a> {
    /// The endpoint.
    pub endpoint: Endpoint,
    /// The id of the object; `None` for lists.
    pub id: Option<&'a str>,
    /// The query parameters.
    pub query: Vec<(&'a str, String)>,
    /// The directory, if the answer is about one.
    pub directory: Option<&'a str>,
}

/// Why there is no answer. No message repeats a body, a query or the key.
#[derive(Debug, thiserror::Error)]
pub enum ApiError {
    /// There is no such object, at this time by the server's clock.
    #[error("WorkOS: not found")]
    NotFound(Timestamp),
    /// It refuses the request, for example because of a cursor that it no longer knows.
    #[error("WorkOS refuses the request with status {0}")]
    Refused(u16),
    /// The key is wrong, or lacks permission.
    #[error("WorkOS does not accept the API key (status {0})")]
    Unauthorized(u16),
    /// It kept failing until our patience ran out.
    #[error("WorkOS: {0}")]
    Unavailable(Trouble),
    /// The answer cannot be read.
    #[error("WorkOS's answer cannot be read: {0}")]
    Malformed(#[from] Malformed),
    /// The pages of a list lead in a circle.
    #[error("WorkOS's list does not end")]
    Circle,
}

/// What kept failing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Trouble {
    /// Too many requests.
    #[error("too many requests (status 429)")]
    TooMany,
    /// An error status.
    #[error("status {0}")]
    Status(u16),
    /// No answer in time.
    #[error("no answer in time")]
    TimedOut,
    /// No connection, or it was lost.
    #[error("no connection")]
    Disconnected,
}

/// The client. Cheap to clone; clones share connections and limits, and count requests together, except those made by
/// [`Api::counting`].
#[derive(Clone)]
pub struct Api {
    http: reqwest::Client,
    settings: Arc<ClientSettings>,
    limits: Limits,
    clock: Clock,
    metrics: Metrics,
    asked: Arc<AtomicU64>,
    health: Arc<watch::Sender<Option<Health>>>,
}

/// The outcome of the last request.
#[derive(Clone, Debug)]
pub struct Health {
    /// When.
    pub at: Instant,
    /// Whether it was answered properly; if not, what was wrong.
    pub answered: Result<(), String>,
}

impl Api {
    /// Creates a client with its own connections and limits.
    pub fn new(settings: ClientSettings, clock: Clock, metrics: Metrics) -> reqwest::Result<Self> {
        let http = reqwest::Client::builder()
            .user_agent(concat!("dsync-reconciler/", env!("CARGO_PKG_VERSION")))
            .timeout(settings.timeout)
            .connect_timeout(Duration::from_secs(10))
            .pool_idle_timeout(Duration::from_mins(1))
            .redirect(reqwest::redirect::Policy::none())
            .build()?;
        Ok(Self {
            http,
            settings: Arc::new(settings),
            limits: Limits::default(),
            clock,
            metrics,
            asked: Arc::default(),
            health: Arc::new(watch::Sender::new(None)),
        })
    }

    /// The same client with a new counter of requests.
    #[must_use]
    pub fn counting(&self) -> Self {
        Self {
            asked: Arc::default(),
            ..self.clone()
        }
    }

    /// Requests sent so far by this client and its plain clones, retries included.
    pub fn requests(&self) -> u64 {
        self.asked.load(Ordering::Relaxed)
    }

    /// Adds the requests that a client made by [`Api::counting`] sent for this one.
    pub fn add_requests(&self, requests: u64) {
        self.asked.fetch_add(requests, Ordering::Relaxed);
    }

    /// The outcome of the last request of any clone; `None` before the first.
    pub fn health(&self) -> Option<Health> {
        self.health.borrow().clone()
    }

    /// Sends the request until there is an answer, or no hope of one.
    pub async fn get(&self, ask: &Ask<'_>) -> Result<Answer, ApiError> {
        let limited = ask.directory.filter(|_| ask.endpoint.is_limited());
        let mut backoff = Backoff::new(Duration::from_millis(250), Duration::from_secs(20));
        let mut failing_since = None;
        let mut borne = Duration::ZERO;
        loop {
            let pass = self.limits.pass(limited).await;
            let sent = Instant::now();
            let attempt = self.attempt(ask).await;
            pass.answered();
            let (trouble, told) = match attempt? {
                Attempt::Answered(answer) => return Ok(answer),
                Attempt::Failed(trouble, told) => (trouble, told),
            };
            // The wait asked for is a lower bound; jitter on top spreads those who were told the same.
            let pause = match told {
                Some(told) => told + backoff.next_delay().min(told / 4),
                None => backoff.next_delay(),
            };
            if trouble == Trouble::TooMany {
                // Even if we then give up: the next request under this limit must wait, too.
                self.limits.pause(limited, pause);
            }
            let since = match failing_since {
                Some(since) => {
                    borne += sent.elapsed();
                    since
                }
                None => *failing_since.insert(Instant::now()),
            };
            // Other statuses that ask us to wait mean broken, not busy.
            if told.is_none() || !matches!(trouble, Trouble::TooMany | Trouble::Status(503)) {
                borne += pause;
            }
            let patience = self.settings.patience;
            if borne > patience || since.elapsed() + pause > patience * TOLD_TO_WAIT {
                return Err(ApiError::Unavailable(trouble));
            }
            tracing::debug!(endpoint = ask.endpoint.as_str(), %trouble, ?pause, "retrying the request");
            if trouble != Trouble::TooMany {
                tokio::time::sleep(pause).await;
            }
        }
    }

    async fn attempt(&self, ask: &Ask<'_>) -> Result<Attempt, ApiError> {
        self.asked.fetch_add(1, Ordering::Relaxed);
        let sent_at = Timestamp::from(self.clock.now());
        let request = self
            .http
            .get(self.url(ask))
            .bearer_auth(self.settings.key.expose())
            .query(&ask.query);
        let answered = async {
            let response = request.send().await?;
            let (status, headers) = (response.status(), response.headers().clone());
            Ok::<_, reqwest::Error>((status, headers, response.bytes().await?))
        };
        let outcome = answered.await;
        let status = match &outcome {
            Ok((status, ..)) => status.as_str().to_owned(),
            Err(error) if error.is_timeout() => "timeout".to_owned(),
            Err(_) => "error".to_owned(),
        };
        self.metrics
            .api_requests
            .with_label_values(&[ask.endpoint.as_str(), &status])
            .inc();
        let judged = match outcome {
            Err(error) if error.is_timeout() => Ok(Attempt::Failed(Trouble::TimedOut, None)),
            Err(_) => Ok(Attempt::Failed(Trouble::Disconnected, None)),
            Ok((status, headers, body)) => {
                let at = date(&headers).unwrap_or(sent_at);
                judge(status, &headers, Answer { at, body })
            }
        };
        self.health.send_replace(Some(Health {
            at: Instant::now(),
            answered: match &judged {
                Ok(Attempt::Failed(trouble, _)) => Err(trouble.to_string()),
                Err(error @ ApiError::Unauthorized(_)) => Err(error.to_string()),
                _ => Ok(()),
            },
        }));
        judged
    }

    fn url(&self, ask: &Ask<'_>) -> reqwest::Url {
        let mut url = self.settings.url.clone();
        if let Ok(mut path) = url.path_segments_mut() {
            path.pop_if_empty().push(ask.endpoint.path()).extend(ask.id);
        }
        url
    }
}

enum Attempt {
    Answered(Answer),
    Failed(Trouble, Option<Duration>),
}

/// What a status means: an answer, trouble that may pass, or an error.
fn judge(status: StatusCode, headers: &HeaderMap, answer: Answer) -> Result<Attempt, ApiError> {
    let trouble = match status.as_u16() {
        200 => return Ok(Attempt::Answered(answer)),
        429 => Trouble::TooMany,
        code @ (408 | 425 | 500..) => Trouble::Status(code),
        // WorkOS's own 404 is JSON; anybody else's says nothing about an object.
        404 if is_json_object(&answer.body) => return Err(ApiError::NotFound(answer.at)),
        code @ (401 | 403) => return Err(ApiError::Unauthorized(code)),
        code => return Err(ApiError::Refused(code)),
    };
    Ok(Attempt::Failed(trouble, retry_after(headers, answer.at)))
}

fn is_json_object(body: &[u8]) -> bool {
    std::str::from_utf8(body).is_ok_and(|text| json::members(text, &[]).is_ok())
}

/// How long the header asks us to wait, in seconds or until a time. At most a minute, because limits are counted by the
/// minute. `None`: it does not say.
fn retry_after(headers: &HeaderMap, now: Timestamp) -> Option<Duration> {
    let text = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    let until = || http_date(text).map(|until| until.since(now).as_secs());
    let seconds = text.parse().ok().or_else(until).filter(|seconds| *seconds > 0)?;
    Some(Duration::from_secs(seconds).min(Duration::from_mins(1)))
}

fn date(headers: &HeaderMap) -> Option<Timestamp> {
    headers.get(DATE)?.to_str().ok().and_then(http_date)
}
