//! One entry of the log, and how a record is written as a message and read back: the body byte for byte, the rest as
//! headers. Reading never fails: what a foreign message lacks gets a sensible value, and what is too long is cut.

use async_nats::header::{HeaderMap, HeaderName, HeaderValue};
use async_nats::jetstream::message::StreamMessage;
use async_nats::jetstream::stream::RawMessage;
use bytes::Bytes;
use schema::record::{Record, Source, Subject};
use schema::timestamp::Timestamp;
use serde::{Deserialize, Serialize};

use crate::connection::Journal;
use crate::error::Error;
use crate::naming::record_of;

const MESSAGE_ID: HeaderName = HeaderName::from_static("Nats-Msg-Id");
const EVENT: HeaderName = HeaderName::from_static("Dsync-Event");
const SOURCE: HeaderName = HeaderName::from_static("Dsync-Source");
const RECEIVED_AT: HeaderName = HeaderName::from_static("Dsync-Received-At");
const SIGNATURE: HeaderName = HeaderName::from_static("WorkOS-Signature");
/// In bytes. Longer headers are cut, because headers count towards the broker's size limit and a foreign message's may
/// be of any length.
const LONGEST_HEADER: usize = 1024;
/// The broker's error code for "no message found".
pub(crate) const NO_MESSAGE: u64 = 10037;

/// A record as stored in the log.
#[derive(Debug, Clone)]
pub struct Entry {
    /// Its sequence in the log, from 1.
    pub seq: u64,
    /// When it was stored, by the broker's clock.
    pub appended_at: Timestamp,
    /// What was stored.
    pub record: Record,
}

/// Which message to return.
#[derive(Serialize)]
struct Question<'a> {
    seq: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    next_by_subj: Option<&'a str>,
}

/// The broker's answer when asked for one message.
#[derive(Deserialize)]
struct Found {
    message: RawMessage,
}

impl Journal {
    /// The entry with this sequence, as the stream's leader has it; `None` if it was removed or never existed.
    pub async fn entry(&self, seq: u64) -> Result<Option<Entry>, Error> {
        self.find(&Question {
            seq,
            next_by_subj: None,
        })
        .await
    }

    /// The first entry from this sequence on whose subject matches `filter` (`*` is one word, `>` the rest); `None` if
    /// there is none.
    pub async fn first_at(&self, seq: u64, filter: &str) -> Result<Option<Entry>, Error> {
        self.find(&Question {
            seq,
            next_by_subj: Some(filter),
        })
        .await
    }

    async fn find(&self, question: &Question<'_>) -> Result<Option<Entry>, Error> {
        let found: Found = match self
            .ask(format!("STREAM.MSG.GET.{}", self.stream), question)
            .await
        {
            Ok(found) => found,
            Err(Error::Refused { code: NO_MESSAGE, .. }) => return Ok(None),
            Err(error) => return Err(error),
        };
        // Headers that cannot be read are left out: the body is what counts.
        let bare = RawMessage {
            headers: None,
            ..found.message.clone()
        };
        let message = StreamMessage::try_from(found.message)
            .or_else(|_| StreamMessage::try_from(bare))
            .map_err(|_| Error::Unreadable)?;
        let StreamMessage {
            subject,
            sequence,
            headers,
            payload,
            time,
        } = message;
        Ok(Some(Entry::new(
            sequence,
            time.into(),
            &subject,
            &headers,
            payload,
        )))
    }
}

/// The headers that a record is stored with, under one of its message ids.
pub(crate) fn headers_of(record: &Record, message_id: &str) -> HeaderMap {
    let mut headers = HeaderMap::new();
    let received_at = record.received_at.to_string();
    let pairs = [
        (MESSAGE_ID, message_id),
        (EVENT, record.event_type.as_str()),
        (SOURCE, record.source.as_str()),
        (RECEIVED_AT, received_at.as_str()),
        (SIGNATURE, record.signature.as_deref().unwrap_or_default()),
    ];
    for (name, value) in pairs {
        if !value.is_empty() {
            headers.insert(name, HeaderValue::from(line(value)));
        }
    }
    headers
}

/// `text` as one line of limited length. Also applied to what is read back: another program may have written it, and it
/// goes into tables, which cannot hold NUL, and into programs' logs, which are read line by line.
fn line(text: &str) -> String {
    if text.len() <= LONGEST_HEADER && text.bytes().all(|b| matches!(b, b' '..=b'~')) {
        return text.to_owned();
    }
    let mut line: String = text
        .chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect();
    line.truncate(line.floor_char_boundary(LONGEST_HEADER));
    line
}

impl Entry {
    pub(crate) fn new(
        seq: u64,
        appended_at: Timestamp,
        subject: &str,
        headers: &HeaderMap,
        body: Bytes,
    ) -> Entry {
        let header = |name: HeaderName| headers.get(name).map(HeaderValue::as_str);
        let source = header(SOURCE)
            .and_then(Source::parse)
            .unwrap_or_else(|| source_by_subject(subject));
        let record = Record {
            subject: Subject::from_log(line(subject)),
            id: line(record_of(header(MESSAGE_ID).unwrap_or_default())),
            event_type: line(header(EVENT).unwrap_or_default()),
            source,
            received_at: header(RECEIVED_AT)
                .and_then(Timestamp::parse)
                .unwrap_or(appended_at),
            signature: header(SIGNATURE).map(str::to_owned),
            body,
        };
        Entry {
            seq,
            appended_at,
            record,
        }
    }
}

/// Only sweeps write these two verbs.
fn source_by_subject(subject: &str) -> Source {
    match subject.rsplit('.').next() {
        Some("listed" | "missing") => Source::Sweep,
        _ => Source::Webhook,
    }
}
