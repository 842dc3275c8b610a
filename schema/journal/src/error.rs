//! What can go wrong with the log, and what the broker's answers mean. The one place that maps the client's errors; no
//! error here carries a payload, a header, a URL or a credential.

use async_nats::client::{RequestError, RequestErrorKind};
use async_nats::jetstream::consumer::StreamError;
use async_nats::jetstream::context::{PublishError, PublishErrorKind};
use async_nats::jetstream::stream::{ConsumerError, ConsumerErrorKind};
use async_nats::jetstream::{Error as Refusal, ErrorCode};

/// Why the log did not answer. Trying again later is always right.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Unavailable {
    /// There is no connection to a broker.
    #[error("no connection to the log's broker")]
    Disconnected,
    /// No answer in time. A write may have been stored all the same.
    #[error("the log's broker did not answer in time")]
    TimedOut,
    /// Connected, but nothing answers for the stream: it is not there, has no leader now, or `JetStream` is off.
    #[error("the log's broker has nothing that answers for the stream")]
    NoResponders,
    /// The broker stored it in another stream that takes the log's subjects: where nobody reads it.
    #[error("the log's broker stores what is meant for the log in another stream")]
    Elsewhere,
    /// The broker leads the stream and has lost touch with most of its copies: the others may be ahead of it by now.
    #[error("the log's broker has lost touch with most of its cluster")]
    Parted,
    /// The broker answered that it cannot now; its error code.
    #[error("the log's broker cannot now (error code {0})")]
    Refused(u64),
}

/// Failure of a question to the broker, or of a change.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Not now: try again.
    #[error(transparent)]
    Unavailable(#[from] Unavailable),
    /// There is no such stream.
    #[error("there is no stream of this name")]
    NoStream,
    /// The broker refuses, and will again: a setting it does not take, a right this user lacks.
    #[error("the log's broker refuses: {description} (error code {code})")]
    Refused {
        /// The broker's error code, `err_code` of its API.
        code: u64,
        /// The broker's own words.
        description: String,
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
    #[error("the log's broker gave an answer this client cannot read")]
    Unreadable,
}

/// Why a record was not appended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum AppendError {
    /// The stream reached its limits and refuses new entries until some went.
    #[error("the log is full")]
    Full,
    /// The record is larger than the broker or the stream takes; it never will be taken.
    #[error("the record is larger than the log takes")]
    TooLarge,
    /// Not acknowledged; it may have been stored all the same. Appending the same record again is safe.
    #[error(transparent)]
    Unavailable(#[from] Unavailable),
}

/// Why a [`Reader`](crate::Reader) has nothing to give now.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// Cannot now. Call again: the reader goes on after the last entry it returned.
    #[error(transparent)]
    Unavailable(#[from] Unavailable),
    /// The log is no longer the one this reader was opened on (made anew, gone, or shorter than what was read).
    /// Calling again gives the same answer: compare identities and open a new reader.
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
        // Opening the subscription failed: the connection's task is gone or going.
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

/// Whether the broker neither stored the message nor knows it to be stored: another with its id is in process.
pub(crate) fn is_undecided(error: &PublishError) -> bool {
    refusal_of(error)
        .is_some_and(|refusal| refusal.error_code() == ErrorCode::STREAM_DUPLICATE_MESSAGE_CONFLICT)
}

/// The broker's own answer, where there was one.
fn refusal_of(error: &PublishError) -> Option<&Refusal> {
    std::error::Error::source(error)?.downcast_ref()
}

/// What a refused publish means. 10077 is any failure of the store: only its words tell a limit reached from a disk that
/// is broken.
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

/// Codes that say "not now": elections, a cluster that is incomplete, a server still starting.
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

/// The broker's words without the codes its display adds.
fn words(refusal: &Refusal) -> String {
    let text = refusal.to_string();
    match text.rfind(" (code ") {
        Some(end) => text[..end].to_owned(),
        None => text,
    }
}
