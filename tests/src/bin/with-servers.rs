//! Runs a command with a private Postgres, migrated, and a private NATS beside it: `with-servers CMD [ARG]…`.
//!
//! The command finds them through `DATABASE_URL` and `NATS_URL`. They end with it, and its exit code is passed on.

use std::process::ExitCode;

use anyhow::Context as _;
use tests::{Nats, Postgres, Watchdog};

#[tokio::main]
async fn main() -> anyhow::Result<ExitCode> {
    let mut words = std::env::args_os().skip(1);
    let program = words.next().context("usage: with-servers CMD [ARG]…")?;
    let postgres = Postgres::migrated().await?;
    let nats = Nats::start().await?;
    let mut command = tokio::process::Command::new(&program);
    command
        .args(words)
        .env("DATABASE_URL", postgres.url())
        .env("NATS_URL", nats.url())
        .kill_on_drop(true);
    let mut child = command
        .spawn()
        .with_context(|| format!("cannot run {}", program.display()))?;
    let _watchdog = Watchdog::over(child.id().context("the command ended at once")?, None)?;
    let mut terminated = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
    let status = loop {
        tokio::select! {
            status = child.wait() => break status?,
            // Ctrl-C reaches the command too, which shares this terminal: it decides when to end.
            interrupted = tokio::signal::ctrl_c() => interrupted?,
            _ = terminated.recv() => child.start_kill()?,
        }
    };
    // A command ended by a signal has no code of its own: what a shell would say.
    let code = status
        .code()
        .or_else(|| std::os::unix::process::ExitStatusExt::signal(&status).map(|s| 128 + s));
    Ok(ExitCode::from(
        code.and_then(|code| u8::try_from(code).ok()).unwrap_or(1),
    ))
}
