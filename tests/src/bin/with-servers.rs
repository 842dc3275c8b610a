//! Runs a command with a private, migrated Postgres and a private NATS: `with-servers CMD [ARG]…`.
//!
//! The command finds them through `DATABASE_URL` and `NATS_URL`. They end when it ends, and its exit code is passed on.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context as _;
use tests::{Nats, Postgres, Watchdog, Watched};
use tokio::signal::unix::{SignalKind, signal};

/// How often to check whether the command has ended.
const POLL: Duration = Duration::from_millis(10);

#[tokio::main]
async fn main() -> anyhow::Result<ExitCode> {
    let mut words = std::env::args_os().skip(1);
    let program = words.next().context("usage: with-servers CMD [ARG]…")?;
    let postgres = Postgres::migrated().await?;
    // For statements that name the projection's tables without a schema. The projector sets this in each transaction.
    let pool = postgres.pool().await?;
    sqlx::raw_sql(
        "do $$ begin execute format('alter database %I set search_path = dsync', current_database()); end $$",
    )
    .execute(&pool)
    .await?;
    pool.close().await;
    let nats = Nats::start().await?;
    // The command gets this process's standard input.
    let mut watched = Watched::new(program, format!("/proc/{}/fd/0", std::process::id()));
    watched
        .command()
        .args(words)
        .env("DATABASE_URL", postgres.url())
        .env("NATS_URL", nats.url());
    let (mut child, mut watchdog) = Watchdog::start(watched, None)?;
    let mut terminated = signal(SignalKind::terminate())?;
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break status;
        }
        tokio::select! {
            () = tokio::time::sleep(POLL) => {}
            // Ctrl-C also reaches the command, which shares this terminal and decides when to end.
            interrupted = tokio::signal::ctrl_c() => interrupted?,
            _ = terminated.recv() => child.kill()?,
        }
    };
    watchdog.call_off();
    // A command ended by a signal has no exit code, so use the one that a shell would report.
    let code = status
        .code()
        .or_else(|| std::os::unix::process::ExitStatusExt::signal(&status).map(|s| 128 + s));
    Ok(ExitCode::from(
        code.and_then(|code| u8::try_from(code).ok()).unwrap_or(1),
    ))
}
