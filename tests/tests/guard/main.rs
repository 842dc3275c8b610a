//! What stops an attacker, tried: TLS with a private authority, logins at the broker, the threat model's promises. One
//! module a promise.

#![allow(clippy::unwrap_used, reason = "a test")]

mod accounts;
mod pipeline;
mod secrets;
mod threat_model;
mod tls;
