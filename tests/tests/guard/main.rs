//! Tests of what stops an attacker: TLS with a private authority, logins at the broker, the threat model's promises.
//! One module for each promise.

#![allow(clippy::unwrap_used, reason = "a test")]

mod accounts;
mod pipeline;
mod secrets;
mod threat_model;
mod tls;
