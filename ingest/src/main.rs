//! `dsync-ingest`: appends verified webhooks to the log.

use std::process::ExitCode;

fn main() -> ExitCode {
    service::boot::run("dsync-ingest", env!("CARGO_PKG_VERSION"), ingest::run::run)
}
