//! `dsync-local`, what `ops/run` starts: all of dsync on this machine with nothing set up.
//!
//! Servers, programs and the simulated WorkOS are its own, listen on 127.0.0.1 and end with it, however it ends. Nothing
//! it makes outlives it, but the programs' logs when something went wrong.

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

/// What a shell says of a program that Ctrl-C ended.
const INTERRUPTED: u8 = 130;
const BAD_SETTING: u8 = 2;

const MORE: &str = "\
With WORKOS_API_KEY and WORKOS_WEBHOOK_SECRET in the environment it uses the real WorkOS instead of a simulated one:
the receiver then listens on LISTEN_ADDR (127.0.0.1:8080), where a tunnel of yours brings the webhooks, and the
programs' other settings are passed on to them. `--once` then ends after the first pass that found no drift.";

/// All of dsync on this machine, with nothing set up: servers, programs, and a simulated WorkOS full of changes.
///
/// Shows the first sync and a burst of changes with their progress, checks that source and database agree, shows what is
/// in the tables, and stays up until Ctrl-C.
#[derive(Parser)]
#[command(name = "ops/run", after_long_help = MORE)]
struct Cli {
    /// End after the check: exit 0 if source and database agree, 1 if they do not
    #[arg(long)]
    once: bool,
    /// Directory below which the programs' logs are kept while it runs, and after it failed
    #[arg(long, value_name = "DIR", default_value = ".run")]
    logs: PathBuf,
}

/// How it ended.
enum End {
    Of(Verdict),
    Interrupted,
}

/// What runs when everything is up.
enum Up {
    Simulated(Box<simulated::Up>),
    Real(Box<real::Up>),
}

/// Ctrl-C, a polite kill, or a terminal that was closed.
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
    // Whatever an interrupt drops is killed with all it started: there is nothing to keep.
    let up = tokio::select! {
        up = Up::start(cli.once, screen, logs, keys) => up,
        () = interrupts.next() => return Ok(End::Interrupted),
    };
    // What failed may be a child that the same Ctrl-C ended.
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

/// The last words, and what becomes of the logs.
fn conclude(screen: &Screen, logs: &Path, end: anyhow::Result<End>) -> ExitCode {
    let (keep, code) = match end {
        Ok(End::Of(Verdict::Agree)) => (false, 0),
        Ok(End::Of(Verdict::Differ)) => (true, 1),
        Ok(End::Interrupted) => {
            screen.line("\nInterrupted: everything it started has ended.");
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
        // Another run may have its own below it.
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
