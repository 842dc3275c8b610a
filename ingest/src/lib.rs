//! Webhooks into the log: WorkOS posts, the signature is checked over the raw bytes, the event is addressed and appended,
//! and only the broker's acknowledgement makes the answer 200.
//!
//! Any number of these programs may run side by side. They hold no state and no database, never interpret an event
//! beyond its address, and never decide what is new: the log recognises what it has.
//!
//! The way of a request: [`routes`] checks path, method, sender and size, [`signature`] turns bytes into a
//! `VerifiedWebhook` (nothing else can), [`accept`] addresses and appends it, [`answer`] says what came of it.

pub mod accept;
pub mod answer;
pub mod body;
pub mod config;
pub mod in_flight;
pub mod metrics;
pub mod refusals;
pub mod routes;
pub mod run;
pub mod sender;
pub mod sign;
pub mod signature;
pub mod status;
pub mod stream;
