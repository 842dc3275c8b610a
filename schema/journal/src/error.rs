//! What can go wrong with the log, and what the broker's answers mean. The only place that maps the client library's
//! errors. No error here carries a payload, a header, a URL or a credential.

use async_nats::client::{RequestError, RequestErrorKind};
use async_nats::jetstream::consumer::StreamError;
use async_nats::jetstream::context::{PublishError, PublishErrorKind};
use async_nats::jetstream::stream::{ConsumerError, ConsumerErrorKind};
use async_nats::jetstream::{Error as Refusal, ErrorCode};

/// Why the log cannot be used now. Trying again later is always right.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Unavailable {
    /// There is no connection to a broker.
    #[error("no connection to the log's broker")]
    Disconnected,
    /// No answer in time. A write may have been stored all the same.
    #[error("the log's broker did not answer in time")]
    TimedOut,
    /// Connected, but nothing answers for the stream: it does not exist, has no leader now, or `JetStream` is off.
    #[error("nothing at the log's broker answers for the stream")]
    NoResponders,
    /// The broker stored the record in another stream that takes the log's subjects, where nobody reads it.
    #[error("the log's broker stores the log's records in another stream")]
    Elsewhere,
    /// The broker has lost touch with most of the stream's copies, which may be ahead of it by now.
    #[error("the log's broker has lost touch with most of its cluster")]
    Parted,
    /// The broker answered that it cannot do this now, with this error code.
    #[error("the log's broker cannot do this now (error code {0})")]
    Refused(u64),
}

/// Why a request to the broker failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Temporary: try again.
    #[error(transparent)]
    Unavailable(#[from] Unavailable),
    /// There is no such stream.
    #[error("there is no stream of this name")]
    NoStream,
    /// The broker refuses, and will again: it does not accept a setting, or this login lacks a right.
    #[error("the log's broker refuses: {description} (error code {code})")]
    Refused {
        /// The broker's error code, `err_code` of its API.
        code: u64,
        /// The broker's own words.
        description: String,
    },
    /// The stream cannot serve as the log, and the broker did not change it: with these settings, entries would
    /// be lost or refused.
    #[error("the stream would lose or refuse entries, because these settings differ and cannot be changed: {}: {why}", .differing.join(", "))]
    Unfit {
        /// The names of all settings that differ.
        differing: Vec<&'static str>,
        /// Why they were not changed: the broker's own words, or that it did not answer.
        why: String,
    },
    /// The position asked for lies beyond the log's end: this is not the log the position was taken from.
    #[error("position {after_seq} is beyond the log's last entry {last_seq}")]
    BeyondEnd {
        /// The position asked for.
        after_seq: u64,
        /// The log's last sequence.
        last_seq: u64,
    },
    /// An answer that makes no sense to this client.
    #[error("the log's broker gave an answer that this client cannot read")]
    Unreadable,
}

/// Why a record was not appended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum AppendError {
    /// The stream has reached its limits and refuses new entries until some are removed.
    #[error("the log is full")]
    Full,
    /// The record is larger than the broker or the stream accepts. Trying again cannot help.
    #[error("the record is larger than the log accepts")]
    TooLarge,
    /// Not acknowledged; it may have been stored all the same. Appending the same record again is safe.
    #[error(transparent)]
    Unavailable(#[from] Unavailable),
}

/// Why a [`Reader`](crate::Reader) has nothing to return now.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// Temporary. Call again: the reader continues after the last entry it returned.
    #[error(transparent)]
    Unavailable(#[from] Unavailable),
    /// The log is no longer the one this reader was opened on (recreated, gone, or shorter than what was read).
    /// Calling again gives the same error. Compare identities, and open a new reader.
    #[error("the log is not the one this reader was opened on")]
    Replaced,
    /// The broker refuses to serve the reader.
    #[error(transparent)]
    Failed(Error),
}

impl From<Error> for ReadError {
    fn from(error: Error) -> Self {
        match error {
            Error::Unavailable(why) => ReadError::Unavailable(why),
            Error::NoStream | Error::BeyondEnd { .. } => ReadError::Replaced,
            other => ReadError::Failed(other),
        }
    }
}

impl From<Refusal> for Error {
    fn from(refusal: Refusal) -> Self {
        match refusal.error_code() {
            ErrorCode::STREAM_NOT_FOUND => Error::NoStream,
            code if is_passing(code) => Error::Unavailable(Unavailable::Refused(code.0)),
            code => Error::Refused {
                code: code.0,
                description: words(&refusal),
            },
        }
    }
}

impl From<RequestError> for Error {
    fn from(error: RequestError) -> Self {
        match error.kind() {
            RequestErrorKind::NoResponders => Unavailable::NoResponders.into(),
            RequestErrorKind::TimedOut => Unavailable::TimedOut.into(),
            _ => Error::Unreadable,
        }
    }
}

impl From<ConsumerError> for Error {
    fn from(error: ConsumerError) -> Self {
        match error.kind() {
            ConsumerErrorKind::TimedOut => Unavailable::TimedOut.into(),
            ConsumerErrorKind::JetStream(refusal) => refusal.into(),
            ConsumerErrorKind::Request => Unavailable::NoResponders.into(),
            _ => Error::Unreadable,
        }
    }
}

impl From<StreamError> for Error {
    fn from(_: StreamError) -> Self {
        // Opening the subscription failed: the connection's task has ended or is about to.
        Unavailable::Disconnected.into()
    }
}

impl From<PublishError> for AppendError {
    fn from(error: PublishError) -> Self {
        let why = match error.kind() {
            PublishErrorKind::MaxPayloadExceeded => return AppendError::TooLarge,
            PublishErrorKind::TimedOut => Unavailable::TimedOut,
            PublishErrorKind::StreamNotFound => Unavailable::NoResponders,
            _ => match refusal_of(&error) {
                Some(refusal) => return refused(refusal),
                None => Unavailable::Disconnected,
            },
        };
        AppendError::Unavailable(why)
    }
}

/// Whether the broker neither stored the message nor knows it to be stored, because another with its id is in process.
pub(crate) fn is_undecided(error: &PublishError) -> bool {
    refusal_of(error)
        .is_some_and(|refusal| refusal.error_code() == ErrorCode::STREAM_DUPLICATE_MESSAGE_CONFLICT)
}

/// The broker's own answer, if there was one.
fn refusal_of(error: &PublishError) -> Option<&Refusal> {
    std::error::Error::source(error)?.downcast_ref()
}

/// What a refused publish means. 10077 is any failure of the store: only its text distinguishes a limit that was reached
/// from a broken disk.
fn refused(refusal: &Refusal) -> AppendError {
    match refusal.error_code() {
        ErrorCode::STREAM_MESSAGE_EXCEEDS_MAXIMUM => AppendError::TooLarge,
        ErrorCode::ACCOUNT_RESOURCES_EXCEEDED
        | ErrorCode::INSUFFICIENT_RESOURCES
        | ErrorCode::STORAGE_RESOURCES_EXCEEDED
        | ErrorCode::MEMORY_RESOURCES_EXCEEDED => AppendError::Full,
        ErrorCode::STREAM_STORE_FAILED if words(refusal).contains("exceeded") => AppendError::Full,
        code => AppendError::Unavailable(Unavailable::Refused(code.0)),
    }
}

/// Codes that mean "not now": an election, an incomplete cluster, a server that is still starting.
fn is_passing(code: ErrorCode) -> bool {
    matches!(
        code,
        ErrorCode::CLUSTER_NOT_AVAILABLE
            | ErrorCode::CLUSTER_NOT_LEADER
            | ErrorCode::CLUSTER_NOT_ASSIGNED
            | ErrorCode::CLUSTER_INCOMPLETE
            | ErrorCode::STREAM_STORE_FAILED
    )
}

/// The broker's own words, without the codes that the error's `Display` adds.
fn words(refusal: &Refusal) -> String {
    let text = refusal.to_string();
    match text.rfind(" (code ") {
        Some(end) => text[..end].to_owned(),
        None => text,
    }
}
