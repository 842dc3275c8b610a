//! Webhooks over real connections into a real broker: every kind of answer, and what goes wrong on the way.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod answers;
mod app;
mod bounds;
mod broker;
mod slow;
#[path = "../support/mod.rs"]
mod support;
