//! `dsync-ingest`: verified webhooks into the log.

use std::process::ExitCode;

fn main() -> ExitCode {
    service::boot::run("dsync-ingest", env!("CARGO_PKG_VERSION"), ingest::run::run)
}
