//! The log: one JetStream stream, appended to and read in order. The only package that uses the broker's client library.
//!
//! What it promises:
//! - [`Journal::append`] returns `Stored` or `Duplicate` only after the broker has acknowledged the write. After
//!   `Unavailable` it is safe to call it again with the same record: the message id makes a second copy a duplicate.
//! - [`Reader`] returns entries in the order of the log, each once, from any position. When the broker comes back after
//!   an outage, it continues by itself after the last entry it returned.
//! - A stream that was recreated is never mistaken for the old one: see [`Identity`].
//!
//! Readers never acknowledge entries to the broker. The position belongs to the reader's own database, so the broker
//! keeps no durable consumer that could be lost, or run ahead of what was committed.

mod address;
mod api;
mod append;
mod connection;
mod credentials;
mod elsewhere;
mod entry;
mod error;
mod forget;
mod naming;
mod overview;
mod reader;
mod settings;
mod stream;

pub use append::Appended;
pub use connection::{ConnectError, Connection, Journal};
pub use entry::Entry;
pub use error::{AppendError, Error, ReadError, Unavailable};
pub use overview::{Overview, status};
pub use reader::Reader;
pub use settings::{JournalArgs, JournalLimitArgs};
pub use stream::{Ensured, Fitness, Identity, Limits};
