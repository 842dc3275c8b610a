//! Reads in order, each entry once, from any position, across restarts of the broker.
//!
//! The broker serves a private consumer that lives in the broker's memory and receives no acknowledgements. Whatever
//! happens to it (broker killed, connection cut, consumer gone, a message dropped on the way), the reader notices from
//! the consumer's own count, the heartbeats or the reconnect. It then throws the consumer away and opens another one
//! after the last entry it returned. So there is one way to recover from everything, and it is the way every reader
//! starts.
//!
//! Entries are never skipped silently. A log that is no longer the one the reader was opened on is
//! [`ReadError::Replaced`], not an endless wait.

use std::time::{Duration, Instant};

use async_nats::jetstream::consumer::pull::{self, MessagesErrorKind};
use async_nats::jetstream::consumer::{AckPolicy, DeliverPolicy};
use async_nats::jetstream::{self, consumer::PullConsumer};
use futures_util::{FutureExt, StreamExt};
use schema::timestamp::Timestamp;
use tokio::sync::watch;

use crate::connection::Journal;
use crate::entry::Entry;
use crate::error::{Error, ReadError, Unavailable};

/// Entries requested at once. Up to one and a half times as many wait in memory.
const PULL_ENTRIES: usize = 1_000;
/// Bytes requested at once, or the largest possible message if that is more. Up to three times as many wait in memory.
const PULL_BYTES: usize = 4 << 20;
/// A consumer that is silent for two of these is presumed dead.
const HEARTBEAT: Duration = Duration::from_secs(3);
/// How long one pull request stays open at the broker before it is renewed.
const PULL_EXPIRES: Duration = Duration::from_secs(30);
/// If a second feed breaks sooner than this after it was opened, the reader tries something else.
const SHORT_LIFE: Duration = Duration::from_secs(10);
/// How long the broker keeps a consumer that nobody pulls from.
const FORGET_AFTER: Duration = Duration::from_mins(1);

/// Reads the log in order; made by [`Journal::read`].
pub struct Reader {
    journal: Journal,
    filters: Vec<String>,
    /// Creation time of the stream it was opened on.
    born: Timestamp,
    /// Sequence of the last entry returned, or the position to start after.
    last: u64,
    /// How many matching entries followed the last one returned, when it was sent.
    pending: u64,
    connections: watch::Receiver<u64>,
    feed: Option<Feed>,
    /// The entry that did not fit into the last batch.
    held: Option<Delivered>,
}

/// A consumer at the broker, and the messages it sends.
struct Feed {
    messages: pull::Stream,
    opened: Instant,
    /// How many messages it has sent. If the next one is not numbered one higher, something was lost.
    count: u64,
}

/// An entry, and the broker's count of those that follow it.
struct Delivered {
    entry: Entry,
    pending: u64,
}

/// Why a feed has to be thrown away.
enum Broken {
    /// Continue with another one.
    Renew(&'static str),
    /// The log went backwards under the reader.
    Replaced,
}

impl Journal {
    /// A reader of the entries after `after_seq` (0: from the beginning) whose subject matches one of the filters, or of
    /// all of them if there are no filters. Filters must not overlap. Fails with [`Error::BeyondEnd`] if the log ends
    /// before `after_seq`.
    pub async fn read(&self, after_seq: u64, filters: &[&str]) -> Result<Reader, Error> {
        let mut reader = Reader {
            journal: self.clone(),
            filters: filters.iter().map(ToString::to_string).collect(),
            born: Timestamp::from_micros(0),
            last: after_seq,
            pending: 0,
            connections: self.connections(),
            feed: None,
            held: None,
        };
        let identity = self.identity().await?.ok_or(Error::NoStream)?;
        if identity.last_seq < after_seq {
            return Err(Error::BeyondEnd {
                after_seq,
                last_seq: identity.last_seq,
            });
        }
        reader.born = identity.created;
        reader.feed = Some(reader.open().await?);
        Ok(reader)
    }
}

impl Reader {
    /// The next entries, in order. Waits until there is one, then adds those that have already arrived, up to
    /// `max_entries` entries and `max_bytes` of bodies (the first entry is returned however large it is). Never waits
    /// for more.
    ///
    /// Cancel-safe: dropping the future loses nothing. After an error, calling again continues after the last entry
    /// returned.
    pub async fn next_batch(
        &mut self,
        max_entries: usize,
        max_bytes: usize,
    ) -> Result<Vec<Entry>, ReadError> {
        let first = match self.held.take() {
            Some(held) => held,
            None => self.next().await?,
        };
        // From here on nothing is awaited, so whatever was taken is returned.
        let mut bytes = first.entry.record.body.len();
        let mut batch = vec![self.returned(first)];
        while batch.len() < max_entries {
            let Some(more) = self.arrived() else { break };
            bytes = bytes.saturating_add(more.entry.record.body.len());
            if bytes > max_bytes {
                self.held = Some(more);
                break;
            }
            batch.push(self.returned(more));
        }
        Ok(batch)
    }

    /// How many matching entries followed the last one returned, when the broker sent it; before the first, how many
    /// there are.
    pub fn pending(&self) -> u64 {
        self.pending
    }

    /// Sequence of the last entry returned, or the position the reader was opened at.
    pub fn position(&self) -> u64 {
        self.last
    }

    fn returned(&mut self, delivered: Delivered) -> Entry {
        self.last = delivered.entry.seq;
        self.pending = delivered.pending;
        delivered.entry
    }

    /// Waits for an entry. A feed that breaks is replaced. If the new one soon breaks too, before it sent anything, the
    /// entry is requested directly. If that yields nothing either, the caller gets an error and decides when to retry.
    async fn next(&mut self) -> Result<Delivered, ReadError> {
        let mut renewed = false;
        loop {
            if self.feed.is_none() {
                self.feed = Some(self.reopen().await?);
            }
            let Some(feed) = self.feed.as_mut() else { continue };
            let broken = tokio::select! {
                message = feed.messages.next() => match feed.accept(message, self.last) {
                    Ok(delivered) => return Ok(delivered),
                    Err(broken) => broken,
                },
                _ = self.connections.changed() => Broken::Renew("reconnected"),
            };
            let short_lived = feed.opened.elapsed() < SHORT_LIFE;
            self.feed = None;
            match broken {
                Broken::Replaced => return Err(ReadError::Replaced),
                Broken::Renew(why) => {
                    tracing::debug!(why, after = self.last, "reading the log through a new consumer");
                    if std::mem::replace(&mut renewed, true) && short_lived {
                        return self.ask_for_next().await;
                    }
                }
            }
        }
    }

    /// An entry that has already arrived, if any. A broken feed is replaced by the next call that may wait.
    fn arrived(&mut self) -> Option<Delivered> {
        let feed = self.feed.as_mut()?;
        // Unconstrained, because the scheduler's budget would make a full channel look empty after a hundred messages.
        let message = tokio::task::unconstrained(feed.messages.next()).now_or_never()?;
        let accepted = feed.accept(message, self.last);
        if accepted.is_err() {
            self.feed = None;
        }
        accepted.ok()
    }

    /// Opens a new feed after the last entry returned, if the log is still the same one.
    async fn reopen(&mut self) -> Result<Feed, ReadError> {
        let identity = self.journal.identity().await?.ok_or(ReadError::Replaced)?;
        if identity.created != self.born || identity.last_seq < self.last {
            return Err(ReadError::Replaced);
        }
        Ok(self.open().await?)
    }

    async fn open(&mut self) -> Result<Feed, Error> {
        self.connections.borrow_and_update();
        let stream = self
            .journal
            .context
            .get_stream_no_info(&*self.journal.stream)
            .await
            .map_err(|_| Error::NoStream)?;
        let consumer: PullConsumer = stream.create_consumer(self.consumer()).await?;
        self.pending = consumer.cached_info().num_pending;
        let largest = self
            .journal
            .max_payload()
            .unwrap_or_default()
            .saturating_add(64 << 10);
        let messages = consumer
            .stream()
            .max_messages_per_batch(PULL_ENTRIES)
            .max_bytes_per_batch(PULL_BYTES.max(largest))
            .heartbeat(HEARTBEAT)
            .expires(PULL_EXPIRES)
            .messages()
            .await?;
        Ok(Feed {
            messages,
            opened: Instant::now(),
            count: 0,
        })
    }

    /// Requests the next entry directly, without a consumer. This gets past a message that breaks every feed: one whose
    /// headers the client library cannot read, which makes it drop the connection again and again.
    async fn ask_for_next(&mut self) -> Result<Delivered, ReadError> {
        let everything = [">".to_owned()];
        let filters = if self.filters.is_empty() {
            &everything[..]
        } else {
            &self.filters
        };
        let mut next: Option<Entry> = None;
        for filter in filters {
            let found = self.journal.first_at(self.last + 1, filter).await?;
            next = [next, found].into_iter().flatten().min_by_key(|entry| entry.seq);
        }
        let entry = next.ok_or(Unavailable::NoResponders)?;
        tracing::warn!(
            seq = entry.seq,
            "read an entry directly that no consumer could deliver"
        );
        Ok(Delivered {
            entry,
            pending: self.pending.saturating_sub(1),
        })
    }

    fn consumer(&self) -> pull::Config {
        pull::Config {
            deliver_policy: DeliverPolicy::ByStartSequence {
                start_sequence: self.last + 1,
            },
            ack_policy: AckPolicy::None,
            filter_subjects: self.filters.clone(),
            inactive_threshold: FORGET_AFTER,
            num_replicas: 1,
            memory_storage: true,
            ..pull::Config::default()
        }
    }
}

impl Feed {
    /// Checks that a message is the next one.
    fn accept(
        &mut self,
        message: Option<Result<jetstream::Message, pull::MessagesError>>,
        last: u64,
    ) -> Result<Delivered, Broken> {
        let message = match message {
            Some(Ok(message)) => message,
            Some(Err(error)) => return Err(Broken::Renew(reason(error.kind()))),
            None => return Err(Broken::Renew("the subscription ended")),
        };
        let Ok(info) = message.info() else {
            return Err(Broken::Renew("a message without a sequence"));
        };
        let (seq, pending, appended_at) = (info.stream_sequence, info.pending, info.published.into());
        if info.consumer_sequence != self.count + 1 {
            return Err(Broken::Renew("a message was lost on the way"));
        }
        if seq <= last {
            return Err(Broken::Replaced);
        }
        self.count += 1;
        let (message, _) = message.split();
        let headers = message.headers.unwrap_or_default();
        let entry = Entry::new(seq, appended_at, &message.subject, &headers, message.payload);
        Ok(Delivered { entry, pending })
    }
}

fn reason(kind: MessagesErrorKind) -> &'static str {
    match kind {
        MessagesErrorKind::MissingHeartbeat => "no heartbeat",
        MessagesErrorKind::ConsumerDeleted => "the consumer was deleted",
        MessagesErrorKind::NoResponders => "the consumer is gone",
        MessagesErrorKind::Pull => "a pull could not be sent",
        MessagesErrorKind::PushBasedConsumer
        | MessagesErrorKind::RequestLimitExceeded
        | MessagesErrorKind::Other => "the broker ended the pull",
    }
}
