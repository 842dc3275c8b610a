//! The stream as a whole: creating it as the settings say, and distinguishing it from another of the same name. What the
//! settings do not name (placement, compression, a description) belongs to the operator and is never touched.

use std::time::{Duration, Instant};

use async_nats::jetstream::stream::{Config, DiscardPolicy, Info, PeerInfo, RetentionPolicy, StorageType};
use schema::timestamp::Timestamp;
use serde::Deserialize;
use serde_json::{Map, Value};

use crate::connection::Journal;
use crate::error::{Error, Unavailable};

/// The subjects of everything that the log holds.
const SUBJECTS: &str = "dsync.>";
/// The broker's error code for "a stream of this name exists, with another configuration".
const NAME_IN_USE: u64 = 10058;
/// What no broker takes back of a stream's settings. A change that asks for it is refused as a whole.
const FOREVER: [&str; 2] = ["deny_delete", "deny_purge"];

/// How much the log holds, for how long, and in how many copies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Copies in a cluster, 1 to 5.
    pub replicas: usize,
    /// Entries older than this are removed; zero keeps all.
    pub max_age: Duration,
    /// A log of this many bytes refuses new entries; zero means no limit.
    pub max_bytes: u64,
    /// For how long a message id is remembered; if it is longer than `max_age`, only for that long.
    pub dedup_window: Duration,
}

/// What [`Journal::ensure`] did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ensured {
    /// There was no stream; it has been created.
    Created,
    /// The stream existed, and the settings with these names were changed.
    Updated(Vec<&'static str>),
    /// The stream existed and was left as it is.
    Unchanged,
    /// The stream existed and can serve as it is, but some settings are not as they should be. The broker refused to
    /// change them, or did not answer, which is how it treats a login without the right to do so.
    Kept {
        /// The names of the settings that differ.
        differing: Vec<&'static str>,
        /// Why they could not be changed.
        why: String,
    },
}

/// What distinguishes one log from another, and how far it reaches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Identity {
    /// When the stream was created, by the broker's clock. A recreated stream has a different time.
    pub created: Timestamp,
    /// Sequence of the oldest entry still there; `last_seq + 1` if there is none.
    pub first_seq: u64,
    /// Sequence of the newest entry ever stored; 0 if there was none. In a sound log it never decreases, purges included.
    pub last_seq: u64,
    /// Entries in the log now.
    pub messages: u64,
    /// Bytes they take.
    pub bytes: u64,
}

/// Whether a stream can still be relied on as the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fitness {
    /// When the stream was created. Another time means another stream.
    pub created: Timestamp,
    /// Whether its settings, which somebody may have edited, let it keep what it acknowledges.
    pub is_fit: bool,
}

/// Whether a stream with these settings takes all of our entries under their subjects, drops none but by age, and says so.
fn is_fit(config: &Config) -> bool {
    config.subjects.iter().any(|subject| subject == SUBJECTS)
        && config.storage == StorageType::File
        && config.retention == RetentionPolicy::Limits
        && config.discard == DiscardPolicy::New
        && config.max_messages_per_subject <= 0
        && config.subject_transform.is_none()
        && !config.no_ack
        && !config.sealed
}

/// A copy that the leader has not heard from for this long is out of touch. They hear from each other every second.
const IN_TOUCH: Duration = Duration::from_secs(5);

/// Whether the broker that sent `info` is in touch with most of the stream's copies, its own included.
fn speaks_for_all(info: &Info) -> bool {
    let Some(cluster) = info.cluster.as_ref().filter(|_| info.config.num_replicas > 1) else {
        return true;
    };
    let heard = |peer: &&PeerInfo| !peer.offline && peer.active < IN_TOUCH;
    let in_touch = 1 + cluster.replicas.iter().filter(heard).count();
    cluster.leader.is_some() && in_touch * 2 > info.config.num_replicas
}

impl Journal {
    /// Creates the stream, or brings its settings in line with `limits`. Entries are lost only to a shorter `max_age`.
    /// [`Error::Refused`] says in the broker's words which setting it does not accept, and [`Error::Unfit`] why the stream
    /// that exists must not be used. Several programs may call this at once if they agree on `limits`. A program that only
    /// needs the stream to exist calls [`Self::create_missing`].
    pub async fn ensure(&self, limits: &Limits) -> Result<Ensured, Error> {
        match self.update(limits).await {
            Err(Error::NoStream) => match self.create(limits).await {
                // Another program was quicker, with other settings.
                Err(Error::Refused {
                    code: NAME_IN_USE, ..
                }) => self.update(limits).await,
                outcome => outcome,
            },
            outcome => outcome,
        }
    }

    /// Creates the stream if there is none. An existing one stays as it is, whatever `limits` say.
    pub async fn create_missing(&self, limits: &Limits) -> Result<Ensured, Error> {
        match self.info().await {
            Ok(_) => Ok(Ensured::Unchanged),
            Err(Error::NoStream) => match self.create(limits).await {
                // Another program was quicker, with other settings.
                Err(Error::Refused {
                    code: NAME_IN_USE, ..
                }) => Ok(Ensured::Unchanged),
                outcome => outcome,
            },
            Err(error) => Err(error),
        }
    }

    /// The stream's identity; `None` if there is no such stream. Fails with [`Unavailable::Parted`] if a split has cut
    /// the broker off from most of its cluster: it still answers, but what it says about the log's end may be outdated.
    pub async fn identity(&self) -> Result<Option<Identity>, Error> {
        let asked = Instant::now();
        match self.info().await {
            Ok(info) => {
                let outcome = if speaks_for_all(&info) {
                    Ok(())
                } else {
                    Err(Unavailable::Parted)
                };
                self.heed(&self.parted, asked, outcome);
                outcome?;
                Ok(Some(Identity::of(&info)))
            }
            Err(Error::NoStream) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Sequences, between the oldest entry and the newest, of entries that are not there: removed, or lost by the broker.
    pub async fn missing(&self) -> Result<Vec<u64>, Error> {
        let question = serde_json::json!({"deleted_details": true});
        let info: Info = self
            .ask(format!("STREAM.INFO.{}", self.stream), &question)
            .await?;
        // For a log that never had an entry, the broker lists entry 0.
        let missing = info.state.deleted.unwrap_or_default();
        Ok(missing.into_iter().filter(|seq| *seq > 0).collect())
    }

    pub(crate) async fn info(&self) -> Result<Info, Error> {
        self.ask(format!("STREAM.INFO.{}", self.stream), &()).await
    }

    async fn create(&self, limits: &Limits) -> Result<Ensured, Error> {
        let mut config = Config {
            name: self.stream.to_string(),
            ..Config::default()
        };
        limits.apply(&mut config);
        let _: Info = self
            .ask(format!("STREAM.CREATE.{}", self.stream), &config)
            .await?;
        tracing::info!(stream = %self.stream, ?limits, "created the log's stream");
        Ok(Ensured::Created)
    }

    async fn update(&self, limits: &Limits) -> Result<Ensured, Error> {
        let Told { config: told } = self.ask(format!("STREAM.INFO.{}", self.stream), &()).await?;
        let (mut config, changed) = limits.over(told.clone())?;
        if changed.is_empty() {
            return Ok(Ensured::Unchanged);
        }
        let error = match self.change(&config).await {
            Ok(_) => {
                tracing::info!(stream = %self.stream, ?changed, ?limits, "updated the log's stream");
                return Ok(Ensured::Updated(changed));
            }
            // Silence does not mean that the broker is stuck: it treats a login without the right to do this in the same
            // way.
            Err(error @ (Error::Refused { .. } | Error::Unavailable(Unavailable::TimedOut))) => error,
            Err(error) => return Err(error),
        };
        let why = error.to_string();
        let (forever, others): (Vec<_>, Vec<_>) =
            changed.iter().copied().partition(|name| FOREVER.contains(name));
        if matches!(error, Error::Refused { .. }) && !forever.is_empty() && !others.is_empty() {
            for name in &forever {
                config.insert((*name).to_owned(), true.into());
            }
            if self.change(&config).await.is_ok_and(|info| is_fit(&info.config)) {
                tracing::info!(stream = %self.stream, changed = ?others, ?limits, "updated the log's stream");
                return Ok(Ensured::Kept {
                    differing: forever,
                    why,
                });
            }
        }
        let differing = changed;
        if is_fit(&readable(&told)?) {
            Ok(Ensured::Kept { differing, why })
        } else {
            Err(Error::Unfit { differing, why })
        }
    }

    async fn change(&self, config: &Map<String, Value>) -> Result<Info, Error> {
        self.ask_now(format!("STREAM.UPDATE.{}", self.stream), config)
            .await
    }
}

/// What is read of a stream before it is changed: its settings as the broker wrote them, so that those this client
/// does not know are sent back unchanged.
#[derive(Deserialize)]
struct Told {
    config: Map<String, Value>,
}

/// The settings that this client knows.
fn readable(told: &Map<String, Value>) -> Result<Config, Error> {
    serde_json::from_value(Value::Object(told.clone())).map_err(|_| Error::Unreadable)
}

impl Limits {
    /// A stream's settings with ours applied, and the names of those that differed.
    fn over(&self, told: Map<String, Value>) -> Result<(Map<String, Value>, Vec<&'static str>), Error> {
        let mut known = readable(&told)?;
        let changed = self.apply(&mut known);
        let Ok(Value::Object(mut known)) = serde_json::to_value(known) else {
            return Err(Error::Unreadable);
        };
        let mut config = told;
        for name in &changed {
            let name = if *name == "replicas" { "num_replicas" } else { name };
            // A setting that the client leaves out has the broker's default.
            match known.remove(name) {
                Some(value) => config.insert(name.to_owned(), value),
                None => config.remove(name),
            };
        }
        Ok((config, changed))
    }

    /// Applies our settings to `config` and returns the names of those that differed.
    fn apply(&self, config: &mut Config) -> Vec<&'static str> {
        // The broker refuses a longer one.
        let window = if self.max_age.is_zero() {
            self.dedup_window
        } else {
            self.dedup_window.min(self.max_age)
        };
        // The broker writes "no limit" as -1.
        let max_bytes = if self.max_bytes == 0 {
            -1
        } else {
            i64::try_from(self.max_bytes).unwrap_or(i64::MAX)
        };
        let mut changed = Vec::new();
        let mut set = |name, differs: bool| {
            if differs {
                changed.push(name);
            }
        };
        set("subjects", put(&mut config.subjects, vec![SUBJECTS.to_owned()]));
        set("storage", put(&mut config.storage, StorageType::File));
        set("retention", put(&mut config.retention, RetentionPolicy::Limits));
        set("replicas", put(&mut config.num_replicas, self.replicas));
        set("max_age", put(&mut config.max_age, self.max_age));
        set("max_bytes", put(&mut config.max_bytes, max_bytes));
        set("discard", put(&mut config.discard, DiscardPolicy::New));
        // Otherwise the newest entries of a person push out the older ones.
        set(
            "max_msgs_per_subject",
            put(&mut config.max_messages_per_subject, -1),
        );
        // Brokers refuse to have this without a limit for each subject.
        set(
            "discard_new_per_subject",
            put(&mut config.discard_new_per_subject, false),
        );
        // How much the log takes is for `max_bytes` alone to say, and how large a record may be for the broker.
        set("max_msgs", put(&mut config.max_messages, -1));
        set("max_msg_size", put(&mut config.max_message_size, -1));
        // Otherwise entries are filed where no reader looks for them.
        set("subject_transform", put(&mut config.subject_transform, None));
        set("no_ack", put(&mut config.no_ack, false));
        set("sealed", put(&mut config.sealed, false));
        set("duplicate_window", put(&mut config.duplicate_window, window));
        set("allow_direct", put(&mut config.allow_direct, true));
        // Erasing a person deletes their messages one by one. Purging is left to operators.
        set("deny_delete", put(&mut config.deny_delete, false));
        set("deny_purge", put(&mut config.deny_purge, false));
        changed
    }
}

/// Replaces what is in `place` with `value`. Returns whether they differed.
fn put<T: PartialEq>(place: &mut T, value: T) -> bool {
    let differs = *place != value;
    *place = value;
    differs
}

impl Fitness {
    pub(crate) fn of(info: &Info) -> Fitness {
        Fitness {
            created: info.created.into(),
            is_fit: is_fit(&info.config),
        }
    }
}

impl Identity {
    pub(crate) fn of(info: &Info) -> Identity {
        Identity {
            created: info.created.into(),
            first_seq: info.state.first_sequence.max(1),
            last_seq: info.state.last_sequence,
            messages: info.state.messages,
            bytes: info.state.bytes,
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn told(replicas: usize, cluster: serde_json::Value) -> Info {
        let mut info = json!({
            "config": Config { name: "DSYNC".to_owned(), num_replicas: replicas, ..Config::default() },
            "created": "2026-01-01T00:00:00Z",
            "ts": "2026-01-01T00:00:00Z",
            "state": {"messages": 0, "bytes": 0, "first_seq": 0, "last_seq": 0, "consumer_count": 0,
                "first_ts": "2026-01-01T00:00:00Z", "last_ts": "2026-01-01T00:00:00Z"},
        });
        info["cluster"] = cluster;
        serde_json::from_value(info).unwrap()
    }

    #[test]
    fn ids_are_not_remembered_longer_than_the_log_is_kept() {
        for (max_age, dedup_window, window) in [(0, 4, 4), (1, 4, 1), (4, 1, 1)] {
            let limits = Limits {
                replicas: 1,
                max_age: Duration::from_hours(max_age),
                max_bytes: 0,
                dedup_window: Duration::from_hours(dedup_window),
            };
            let mut config = Config::default();
            limits.apply(&mut config);
            assert_eq!(
                config.duplicate_window,
                Duration::from_hours(window),
                "{limits:?}"
            );
        }
    }

    fn peer(seconds: u64, offline: bool) -> serde_json::Value {
        json!({"name": "n", "current": true, "active": seconds * 1_000_000_000, "offline": offline})
    }

    #[test]
    fn only_who_is_in_touch_with_most_copies_speaks_for_the_log() {
        let led = |peers: &[serde_json::Value]| json!({"leader": "n0", "replicas": peers});
        for (replicas, cluster, speaks) in [
            (1, serde_json::Value::Null, true),
            (1, led(&[]), true),
            (3, led(&[peer(0, false), peer(1, false)]), true),
            (3, led(&[peer(0, false), peer(60, false)]), true),
            (3, led(&[peer(0, false), peer(0, true)]), true),
            (3, led(&[peer(7, false), peer(60, false)]), false),
            (3, led(&[peer(7, false), peer(0, true)]), false),
            (3, json!({"replicas": [peer(0, false), peer(0, false)]}), false),
            (
                5,
                led(&[peer(0, false), peer(0, false), peer(9, false), peer(9, false)]),
                true,
            ),
            (
                5,
                led(&[peer(0, false), peer(9, false), peer(9, false), peer(9, false)]),
                false,
            ),
        ] {
            assert_eq!(
                speaks_for_all(&told(replicas, cluster.clone())),
                speaks,
                "{replicas} {cluster}"
            );
        }
    }
}
