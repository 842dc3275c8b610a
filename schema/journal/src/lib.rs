//! The log: one JetStream stream, appended to and read in order. The only package that names the broker's client.
//!
//! What it promises:
//! - [`Journal::append`] answers `Stored` or `Duplicate` only after the broker acknowledged the write, and is safe to
//!   call again with the same record whenever it answered `Unavailable`: the message id makes the second one a duplicate.
//! - [`Reader`] returns entries in the order of the log, each once, from any position, and goes on by itself when the
//!   broker comes back, from the entry after the last one it returned.
//! - A stream that was made anew is never mistaken for the old one: see [`Identity`].
//!
//! What never happens here: acknowledging what was read. The position belongs to the reader's own database, so the
//! broker keeps no durable consumer that could be lost, or run ahead of what was committed.

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
mod stream;

pub use append::Appended;
pub use connection::{ConnectError, Connection, Journal};
pub use entry::Entry;
pub use error::{AppendError, Error, ReadError, Unavailable};
pub use overview::{Overview, status};
pub use reader::Reader;
pub use stream::{Ensured, Identity, Limits};
