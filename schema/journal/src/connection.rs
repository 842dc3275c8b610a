//! The connection to the broker: settings in, a cheap handle out. It never gives up on a broker that is away, and never
//! writes a URL or a credential to the logs.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_nats::jetstream::{self, context::ContextBuilder};
use async_nats::{Client, ConnectOptions, Event};
use tokio::sync::watch;

use crate::address::Servers;
use crate::credentials;
use crate::elsewhere::{Silence, Turns};
use crate::error::{Error, Unavailable};
use crate::stream::Fitness;

/// How long one request, or one write, may take before it counts as unanswered.
pub(crate) const REQUEST_TIMEOUT: Duration = Duration::from_secs(3);
/// A peer that has sent nothing for three of these is given up: two unanswered pings are not enough. Less than half of
/// `LEAVES_AFTER`, so that a broker that is to be left has answered one by then.
const PING_INTERVAL: Duration = Duration::from_secs(3);
/// The longest pause between two attempts to connect.
const LONGEST_RECONNECT_PAUSE: Duration = Duration::from_secs(1);

/// Where the log is, and how to connect to it.
#[derive(Clone)]
pub struct Connection {
    /// One URL, or several of one cluster separated by commas: `nats://host:port`, `tls://…`, with `user:password@` or
    /// `token@` before the host if the broker requires it.
    pub url: String,
    /// Path of a NATS credentials file.
    pub creds: Option<PathBuf>,
    /// Path of the certificates (PEM) of the only authorities to trust; without it, those that the system trusts. With
    /// it, TLS is mandatory.
    pub ca: Option<PathBuf>,
    /// The stream's name.
    pub stream: String,
    /// What this client calls itself at the broker. If that can be a word of a subject, its answers arrive under
    /// `_INBOX.<name>.>`.
    pub name: String,
}

/// A setting that can never work. No message repeats the setting's value.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The URL is not that of a NATS server.
    #[error("the NATS URL cannot be read: expected nats://host:port, or several separated by commas")]
    Url,
    /// The credentials file cannot be read, or holds no credentials.
    #[error("the NATS credentials file cannot be used: {}", .0.kind())]
    Credentials(#[source] io::Error),
    /// The file of certificate authorities cannot be read, or holds no certificate.
    #[error("the file of certificate authorities cannot be used: {}", .0.kind())]
    Authorities(#[source] io::Error),
    /// The stream's name is empty, too long, or contains a character that the log's stream may not have in its name.
    #[error("the stream's name must be 1 to 255 letters, digits, - and _")]
    StreamName,
    /// The client could not be set up (TLS).
    #[error("the NATS client could not be set up: {0}")]
    Client(async_nats::ConnectErrorKind),
}

impl ConnectError {
    /// The environment variable of the setting that cannot work; `None` if no setting is to blame.
    pub fn setting(&self) -> Option<&'static str> {
        match self {
            Self::Url => Some("NATS_URL"),
            Self::Credentials(_) => Some("NATS_CREDS"),
            Self::Authorities(_) => Some("NATS_CA"),
            Self::StreamName => Some("DSYNC_STREAM"),
            Self::Client(_) => None,
        }
    }
}

/// The log. Cheap to clone; all clones share one connection.
#[derive(Clone)]
pub struct Journal {
    pub(crate) stream: Arc<str>,
    pub(crate) context: jetstream::Context,
    pub(crate) client: Client,
    /// Since when no request has been answered.
    pub(crate) silence: Arc<Silence>,
    /// Since when nothing has been stored.
    pub(crate) unstored: Arc<Silence>,
    /// Since when the broker has been cut off from most of its cluster.
    pub(crate) parted: Arc<Silence>,
    pub(crate) turns: Arc<Turns>,
    link: Link,
    /// The number of brokers named in the settings.
    named: usize,
}

/// The connection's state, according to its last events.
#[derive(Clone)]
struct Link {
    connects: watch::Receiver<u64>,
    /// The number of the current connection, counted from 1; `None` while there is none.
    up: watch::Receiver<Option<u64>>,
}

impl Journal {
    /// A handle on the log. Returns at once, even if no broker can be reached: connecting and reconnecting happen in the
    /// background. Fails only for settings that can never work. Needs a tokio runtime.
    pub async fn connect(settings: &Connection) -> Result<Journal, ConnectError> {
        if !is_stream_name(&settings.stream) {
            return Err(ConnectError::StreamName);
        }
        let servers = Servers::parse(&settings.url).ok_or(ConnectError::Url)?;
        let named = servers.addresses.len();
        let options = match &settings.creds {
            Some(path) => credentials::login(path.clone())
                .await
                .map_err(ConnectError::Credentials)?,
            None => ConnectOptions::new(),
        };
        let mut options = servers.login(options);
        if let Some(path) = &settings.ca {
            authorities(path).await.map_err(ConnectError::Authorities)?;
            options = options.add_root_certificates(path.clone());
        }
        // Also for servers of the cluster that the settings do not name, which the broker announces later.
        options = options.require_tls(settings.ca.is_some() || servers.over_tls);
        if is_word(&settings.name) {
            // Answers and readers' messages arrive under this program's own subjects, so a login can be limited to them.
            options = options.custom_inbox_prefix(format!("_INBOX.{}", settings.name));
        }
        let (connects_tx, connects) = watch::channel(0);
        let (up_tx, up) = watch::channel(None);
        let turns = Arc::new(Turns::default());
        let choosing = turns.clone();
        let watcher = Arc::new(Watcher {
            connects: connects_tx,
            up: up_tx,
            complaint: Mutex::default(),
        });
        let client = options
            .name(&settings.name)
            .ping_interval(PING_INTERVAL)
            .connection_timeout(REQUEST_TIMEOUT)
            .request_timeout(Some(REQUEST_TIMEOUT))
            .retry_on_initial_connect()
            .reconnect_delay_callback(reconnect_pause)
            .reconnect_to_server_callback(move |servers, _| std::future::ready(choosing.choose(servers)))
            .event_callback(move |event| {
                watcher.see(event);
                std::future::ready(())
            })
            .connect(servers.addresses)
            .await
            .map_err(|error| ConnectError::Client(error.kind()))?;
        let context = ContextBuilder::new()
            .timeout(REQUEST_TIMEOUT)
            .ack_timeout(REQUEST_TIMEOUT)
            .build(client.clone());
        Ok(Journal {
            stream: settings.stream.as_str().into(),
            context,
            client,
            silence: Arc::default(),
            unstored: Arc::default(),
            parted: Arc::default(),
            turns,
            link: Link { connects, up },
            named,
        })
    }

    /// The name of the stream.
    pub fn stream_name(&self) -> &str {
        &self.stream
    }

    /// Counts the connections made. Changes on every reconnect: then, check again what was known about the log.
    pub fn connections(&self) -> watch::Receiver<u64> {
        self.link.connects.clone()
    }

    /// The largest message that the broker accepts, in bytes, headers included; `None` before the first connection.
    pub fn max_payload(&self) -> Option<usize> {
        (*self.link.connects.borrow() > 0).then(|| self.client.max_payload())
    }

    /// Whether the log can be used now: the broker is connected and answers for the stream.
    pub async fn ready(&self) -> Result<(), Error> {
        self.fitness().await.map(|_| ())
    }

    /// As [`Self::ready`]. Returns what would show that the stream can no longer be relied on.
    pub async fn fitness(&self) -> Result<Fitness, Error> {
        if self.link.up.borrow().is_none() {
            return Err(Unavailable::Disconnected.into());
        }
        self.info().await.map(|info| Fitness::of(&info))
    }

    /// Whether there is more than one broker to connect to, according to the settings or to what the broker announced
    /// about its cluster.
    pub(crate) fn has_a_choice(&self) -> bool {
        let told = self
            .client
            .try_server_info()
            .map_or(0, |info| info.connect_urls.len());
        self.named.max(told) > 1
    }

    /// Waits until there is a connection, at most as long as a request may take.
    pub(crate) async fn connected(&self) -> Result<(), Unavailable> {
        if self.link.up.borrow().is_some() {
            return Ok(());
        }
        let mut up = self.link.up.clone();
        match tokio::time::timeout(REQUEST_TIMEOUT, up.wait_for(Option::is_some)).await {
            Ok(Ok(_)) => Ok(()),
            _ => Err(Unavailable::Disconnected),
        }
    }

    /// Runs `work`, which waits for an answer, but stops if the connection is lost: then no answer can come any more.
    pub(crate) async fn while_connected<T>(&self, work: impl Future<Output = T>) -> Result<T, Unavailable> {
        let mut up = self.link.up.clone();
        let this_one = *up.borrow();
        tokio::select! {
            done = work => Ok(done),
            _ = up.wait_for(|now| now.is_none() || *now != this_one) => Err(Unavailable::Disconnected),
        }
    }
}

/// Checks that the file is usable. The client library reads it at each connection, and would retry a bad one forever.
async fn authorities(path: &Path) -> io::Result<()> {
    let text = tokio::fs::read_to_string(path).await?;
    if text.contains("-----BEGIN CERTIFICATE-----") {
        Ok(())
    } else {
        Err(io::ErrorKind::InvalidData.into())
    }
}

/// Turns the client's events into the two watches and a few log messages.
struct Watcher {
    connects: watch::Sender<u64>,
    up: watch::Sender<Option<u64>>,
    /// The last complaint logged since the last connection. Many attempts may fail for one reason; it is logged once.
    complaint: Mutex<Option<String>>,
}

impl Watcher {
    fn see(&self, event: Event) {
        match event {
            Event::Connected => {
                self.complain_again();
                tracing::info!("connected to the log's broker");
                self.connects.send_modify(|connects| *connects += 1);
                self.up.send_replace(Some(*self.connects.borrow()));
            }
            // By us: the last handle was dropped.
            Event::Closed => {
                self.up.send_replace(None);
            }
            Event::Disconnected => {
                if self.up.send_replace(None).is_some() {
                    tracing::warn!("lost the connection to the log's broker; reconnecting");
                }
            }
            Event::ClientError(error) => self.complain(error.to_string()),
            Event::ServerError(error) => self.complain(error.to_string()),
            Event::SlowConsumer(_) => tracing::warn!("the log's broker sent faster than this program read"),
            Event::LameDuckMode | Event::Draining => tracing::info!("the log's broker is about to stop"),
        }
    }

    fn complain(&self, what: String) {
        let mut last = self.complaint.lock().unwrap_or_else(PoisonError::into_inner);
        if last.as_ref() != Some(&what) {
            // The client does not distinguish a certificate it does not trust from a port where nothing listens.
            let look_at = "NATS_URL (--nats-url) for host and port, NATS_CA (--nats-ca) for the trusted authorities, \
                 NATS_CREDS (--nats-creds) for the login";
            if what.contains("IO error") {
                tracing::warn!(error = %what, look_at, "the log's broker does not answer, or does not prove who it is");
            } else if is_about_login(&what) {
                let look_at =
                    "NATS_URL (--nats-url), which may hold the login, and NATS_CREDS (--nats-creds)";
                tracing::warn!(error = %what, look_at, "the log's broker rejects this login");
            } else {
                tracing::warn!(error = %what, "trouble with the log's broker");
            }
            *last = Some(what);
        }
    }

    fn complain_again(&self) {
        *self.complaint.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}

/// Whether the broker's message is about a login that is wrong, expired, or missing.
fn is_about_login(what: &str) -> bool {
    let what = what.to_ascii_lowercase();
    what.contains("authorization violation") || what.contains("authentication")
}

/// Doubles from nothing to a second, which is about as long as a broker takes to restart.
fn reconnect_pause(attempts: usize) -> Duration {
    match u32::try_from(attempts) {
        Ok(0 | 1) => Duration::ZERO,
        Ok(n @ 2..=10) => Duration::from_millis(1 << n).min(LONGEST_RECONNECT_PAUSE),
        _ => LONGEST_RECONNECT_PAUSE,
    }
}

/// Whether it can be one word of a subject.
fn is_word(name: &str) -> bool {
    !name.is_empty()
        && name
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
}

/// Whether the log's stream can have this name: one word of the subjects of the broker's API, and a file's name on its
/// disk.
pub(crate) fn is_stream_name(name: &str) -> bool {
    is_word(name) && name.len() <= 255
}
