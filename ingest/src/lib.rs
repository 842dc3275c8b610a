//! Receives webhooks and appends them to the log. The signature is checked over the raw bytes, the event is addressed
//! and appended, and the answer is 200 only after the broker has acknowledged it.
//!
//! Any number of instances may run side by side. They keep no state, use no database, interpret nothing of an event but
//! its address, and never decide whether it is new: the log recognises duplicates.
//!
//! A request passes through [`routes`], which checks path, method, sender and size; [`signature`], the only place that
//! makes a `VerifiedWebhook`; [`accept`], which addresses and appends it; and [`answer`], which reports the outcome.

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
