//! `dsync-ingest`: appends verified webhooks to the log.

use std::process::ExitCode;

use mimalloc::MiMalloc;

// A body is allocated by one thread and freed by another, for which glibc's threads wait for each other.
#[global_allocator]
static ALLOCATOR: MiMalloc = MiMalloc;

fn main() -> ExitCode {
    service::boot::run("dsync-ingest", env!("CARGO_PKG_VERSION"), ingest::run::run)
}
