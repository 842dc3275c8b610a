//! `dsync-local`, which `ops/run` starts: all of dsync on this machine, without any setup.
//!
//! It starts its own servers, programs and simulated WorkOS. They listen on 127.0.0.1 and stop when it ends, however it
//! ends. It leaves nothing behind except, after a failure, the programs' logs.

mod examples;
mod flow;
mod programs;
mod real;
mod screen;
mod servers;
mod service;
mod simulated;
mod stay;
mod summary;
mod verdict;
mod world;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context as _;
use clap::Parser;
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::real::Keys;
use crate::screen::Screen;
use crate::verdict::Verdict;

/// The exit code that shells report for a program stopped by Ctrl-C.
const INTERRUPTED: u8 = 130;
const BAD_SETTING: u8 = 2;

const MORE: &str = "\
To use the real WorkOS instead of a simulated one, set WORKOS_API_KEY and WORKOS_WEBHOOK_SECRET.
dsync-ingest then listens on LISTEN_ADDR (default 127.0.0.1:8080): point a tunnel of your own at it.
Settings such as SWEEP_INTERVAL and RUST_LOG are passed on to the programs.
With --once, it then exits after the first sweep that finds no drift, or with 1 after five that do.";

/// Runs all of dsync on this machine without any setup: servers, programs, and a simulated WorkOS full of changes.
///
/// Shows the progress of a first sync and a burst of changes, checks that source and database agree, shows what is in
/// the tables, and stays up until Ctrl-C.
#[derive(Parser)]
#[command(name = "ops/run", after_long_help = MORE)]
struct Cli {
    /// Exit after the check, with code 0 if source and database agree, 1 if they do not
    #[arg(long)]
    once: bool,
    /// Directory below which each run writes the programs' logs; kept only after a failure
    #[arg(long, value_name = "DIR", default_value = ".run")]
    logs: PathBuf,
}

/// How it ended.
enum End {
    Of(Verdict),
    Interrupted,
}

/// Everything that runs once startup is complete.
enum Up {
    Simulated(Box<simulated::Up>),
    Real(Box<real::Up>),
}

/// Ctrl-C, SIGTERM, or a terminal that was closed.
struct Interrupts {
    interrupt: Signal,
    terminate: Signal,
    hang_up: Signal,
}

#[tokio::main]
async fn main() -> ExitCode {
    let cli = Cli::parse();
    let screen = Screen::new();
    let keys = match Keys::given() {
        Ok(keys) => keys,
        Err(error) => {
            eprintln!("{error}");
            return ExitCode::from(BAD_SETTING);
        }
    };
    let logs = cli.logs.join(std::process::id().to_string());
    let logs = std::path::absolute(&logs).unwrap_or(logs);
    let end = run(&cli, &screen, &logs, keys).await;
    conclude(&screen, &logs, end)
}

async fn run(cli: &Cli, screen: &Screen, logs: &Path, keys: Option<Keys>) -> anyhow::Result<End> {
    let mut interrupts = Interrupts::listen()?;
    std::fs::create_dir_all(logs).context("cannot make the directory for the programs' logs")?;
    // What an interrupt drops is killed together with everything it started. There is nothing to save.
    let up = tokio::select! {
        up = Up::start(cli.once, screen, logs, keys) => up,
        () = interrupts.next() => return Ok(End::Interrupted),
    };
    // The failure may come from a child process that the same Ctrl-C stopped.
    if up.is_err() && interrupts.just_now().await {
        return Ok(End::Interrupted);
    }
    let mut up = up?;
    if !cli.once {
        tokio::select! {
            ended = up.stay(screen) => ended?,
            () = interrupts.next() => {}
        }
    }
    Ok(End::Of(up.verdict()))
}

impl Up {
    async fn start(once: bool, screen: &Screen, logs: &Path, keys: Option<Keys>) -> anyhow::Result<Up> {
        Ok(match keys {
            None => Up::Simulated(simulated::Up::start(screen, logs, once).await?.into()),
            Some(keys) => Up::Real(real::Up::start(screen, logs, once, keys).await?.into()),
        })
    }

    async fn stay(&mut self, screen: &Screen) -> anyhow::Result<()> {
        match self {
            Up::Simulated(up) => up.stay(screen).await,
            Up::Real(up) => up.stay(screen).await,
        }
    }

    fn verdict(&self) -> Verdict {
        match self {
            Up::Simulated(up) => up.verdict,
            Up::Real(up) => up.verdict,
        }
    }
}

/// Prints how the run ended, and keeps or deletes the logs.
fn conclude(screen: &Screen, logs: &Path, end: anyhow::Result<End>) -> ExitCode {
    let (keep, code) = match end {
        Ok(End::Of(Verdict::Agree)) => (false, 0),
        Ok(End::Of(Verdict::Differ)) => (true, 1),
        Ok(End::Interrupted) => {
            screen.line("\nInterrupted. Everything that was started has been stopped.");
            (false, INTERRUPTED)
        }
        Err(error) => {
            eprintln!("\n{error:#}");
            (true, 1)
        }
    };
    if keep {
        screen.line(&format!("\nThe programs' logs are in {}", logs.display()));
    } else {
        std::fs::remove_dir_all(logs).ok();
        // Fails if another run has its logs there, too.
        logs.parent().map(std::fs::remove_dir);
    }
    ExitCode::from(code)
}

impl Interrupts {
    fn listen() -> anyhow::Result<Interrupts> {
        Ok(Interrupts {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            hang_up: signal(SignalKind::hangup())?,
        })
    }

    async fn just_now(&mut self) -> bool {
        tokio::time::timeout(Duration::from_millis(100), self.next())
            .await
            .is_ok()
    }

    async fn next(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
            _ = self.hang_up.recv() => {}
        }
    }
}
