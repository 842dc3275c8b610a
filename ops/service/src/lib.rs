//! What every dsync program shares: start-up, settings, logging, clock, retries, the admin endpoint and shutdown.
//!
//! It knows nothing about directories, webhooks or the log. A program's `main` passes its command line type and one
//! async function to [`boot::run`]. The result is a process that refuses bad settings with one line, logs, answers
//! `/metrics`, `/livez` and `/readyz`, and drains when it is told to stop.

pub mod admin;
pub mod boot;
pub mod clock;
pub mod healthcheck;
pub mod http;
pub mod logging;
#[cfg(feature = "postgres")]
pub mod postgres;
pub mod progress;
pub mod readiness;
pub mod retry;
pub mod settings;
mod shutdown;
pub mod status;
pub mod tls;
