//! Logging: what is logged (`RUST_LOG`) and in which format (`LOG_FORMAT`). Logs go to standard error, which keeps the
//! output of subcommands clean.

use std::io::{self, IsTerminal as _};

use clap::{Args, ValueEnum};
use tracing::{Level, Metadata};
use tracing_subscriber::filter::{EnvFilter, FilterExt as _, filter_fn};
use tracing_subscriber::layer::{Layer as _, SubscriberExt as _};
use tracing_subscriber::util::SubscriberInitExt as _;

use crate::settings::SettingError;

/// Logging settings, for `#[command(flatten)]`.
#[derive(Args, Clone, Debug)]
pub struct LogArgs {
    /// What to log: a level, or levels by module (`info,projector=debug`)
    #[arg(
        long,
        env = "RUST_LOG",
        default_value = "info",
        global = true,
        value_name = "FILTER"
    )]
    pub rust_log: String,
    /// Format of the log lines
    #[arg(
        long,
        env = "LOG_FORMAT",
        default_value = "text",
        global = true,
        value_name = "FORMAT"
    )]
    pub log_format: LogFormat,
}

/// Format of the log lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object per line, for machines.
    Json,
}

/// Starts logging for the whole process. A subcommand treats `info`, the default, as `warn`, so that it logs only
/// problems. An error when the filter cannot be parsed.
pub(crate) fn start(args: &LogArgs, is_service: bool) -> Result<(), SettingError> {
    if args.rust_log.trim().is_empty() {
        return Err(SettingError::malformed("RUST_LOG", "is empty"));
    }
    let wanted = match args.rust_log.trim() {
        "info" if !is_service => "warn",
        wanted => wanted,
    };
    // The broker's client logs every attempt to connect, twice, and makes one every second while the broker is away.
    // The journal logs the outcome once.
    let wanted = if wanted.contains("async_nats") {
        wanted.to_owned()
    } else {
        format!("{wanted},async_nats=off")
    };
    let filter = EnvFilter::try_new(wanted)
        .map_err(|e| SettingError::malformed("RUST_LOG", format!("is not a log filter: {e}")))?;
    // Colours are for terminals: in a file they get in the way of searching.
    let lines = tracing_subscriber::fmt::layer()
        .with_ansi(io::stderr().is_terminal())
        .with_writer(io::stderr);
    let lines = match args.log_format {
        LogFormat::Text => lines.boxed(),
        LogFormat::Json => lines.json().flatten_event(true).boxed(),
    };
    let quiet = filter_fn(is_discreet).and(filter);
    // A second start in the same process (tests) keeps the first configuration.
    let _ = tracing_subscriber::registry()
        .with(lines.with_filter(quiet))
        .try_init();
    Ok(())
}

/// Whether an event may be logged at all, whatever the filter says. Libraries write payloads and headers at trace
/// level, and the broker's client already at debug level.
fn is_discreet(event: &Metadata<'_>) -> bool {
    const OURS: [&str; 8] = [
        "dsync_ingest",
        "dsync_projector",
        "dsync_reconciler",
        "ingest",
        "projector",
        "reconciler",
        "journal",
        "service",
    ];
    let target = event.target().split("::").next().unwrap_or_default();
    let loudest = match target {
        "async_nats" => Level::INFO,
        _ if OURS.contains(&target) => Level::TRACE,
        _ => Level::DEBUG,
    };
    *event.level() <= loudest
}
