//! Log lines: what is logged (`RUST_LOG`) and how it looks (`LOG_FORMAT`). They go to standard error, so that what a
//! subcommand prints stays clean.

use std::io;

use clap::{Args, ValueEnum};
use tracing_subscriber::EnvFilter;

use crate::settings::SettingError;

/// Logging settings, for `#[command(flatten)]`.
#[derive(Args, Clone, Debug)]
pub struct LogArgs {
    /// What is logged: a level, or levels by module (`info,projector=debug`)
    #[arg(
        long,
        env = "RUST_LOG",
        default_value = "info",
        global = true,
        value_name = "FILTER"
    )]
    pub rust_log: String,
    /// How log lines look
    #[arg(
        long,
        env = "LOG_FORMAT",
        default_value = "text",
        global = true,
        value_name = "FORMAT"
    )]
    pub log_format: LogFormat,
}

/// How log lines look.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line, for machines.
    Json,
}

/// Starts logging for the whole process. An error when the filter cannot be understood.
pub(crate) fn start(args: &LogArgs) -> Result<(), SettingError> {
    if args.rust_log.trim().is_empty() {
        return Err(SettingError::malformed("RUST_LOG", "is empty"));
    }
    let filter = EnvFilter::try_new(&args.rust_log)
        .map_err(|e| SettingError::malformed("RUST_LOG", format!("is not a log filter: {e}")))?;
    let lines = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(io::stderr);
    // A second start in one process (tests) keeps the first one's choice.
    let _ = match args.log_format {
        LogFormat::Text => lines.try_init(),
        LogFormat::Json => lines.json().flatten_event(true).try_init(),
    };
    Ok(())
}
