//! Logging: what is logged (`RUST_LOG`) and in which format (`LOG_FORMAT`). Logs go to standard error, which keeps the
//! output of subcommands clean.

use std::io::{self, IsTerminal as _};

use clap::{Args, ValueEnum};
use tracing::{Level, Metadata};
use tracing_subscriber::filter::{EnvFilter, FilterExt as _, LevelFilter, filter_fn};
use tracing_subscriber::layer::{Layer as _, SubscriberExt as _};
use tracing_subscriber::util::SubscriberInitExt as _;

use crate::settings::SettingError;

/// The packages of this workspace that log.
const OURS: [&str; 9] = [
    "dsync_ingest",
    "dsync_projector",
    "dsync_reconciler",
    "ingest",
    "projector",
    "reconciler",
    "journal",
    "migrations",
    "service",
];

/// Libraries that log.
const THEIRS: [&str; 12] = [
    "async_nats",
    "axum",
    "h2",
    "hyper",
    "hyper_util",
    "reqwest",
    "rustls",
    "sqlx",
    "sqlx_core",
    "sqlx_postgres",
    "tokio",
    "tower",
];

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
    if let Some(word) = neither_level_nor_module(wanted) {
        let reason = format!(
            "contains {word:?}, which is neither a level (error, warn, info, debug, trace, off) nor a module"
        );
        return Err(SettingError::malformed("RUST_LOG", reason));
    }
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

/// The first directive that the filter would take for the name of a module, although there is no such module. It would
/// switch off everything else: with `warning`, the program would say nothing at all.
fn neither_level_nor_module(filter: &str) -> Option<&str> {
    // Spans have names of their own, and commas between their fields.
    if filter.contains('[') {
        return None;
    }
    filter.split(',').map(str::trim).find(|directive| {
        let is_known = directive.is_empty()
            || directive.contains('=')
            || directive.contains("::")
            || directive.parse::<LevelFilter>().is_ok()
            || OURS.contains(directive)
            || THEIRS.contains(directive);
        !is_known
    })
}

/// Whether an event may be logged at all, whatever the filter says. Libraries write payloads and headers at trace
/// level, and the broker's client already at debug level.
fn is_discreet(event: &Metadata<'_>) -> bool {
    let target = event.target().split("::").next().unwrap_or_default();
    let loudest = match target {
        "async_nats" => Level::INFO,
        _ if OURS.contains(&target) => Level::TRACE,
        _ => Level::DEBUG,
    };
    *event.level() <= loudest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_that_would_silence_the_program_is_found() {
        for (filter, word) in [
            ("warning", Some("warning")),
            ("none", Some("none")),
            ("info,projectr", Some("projectr")),
            (" verbose , journal=debug", Some("verbose")),
            ("info", None),
            ("WARN", None),
            ("off", None),
            ("3", None),
            ("info,projector=debug", None),
            ("journal", None),
            ("info,async_nats", None),
            ("info,migrations", None),
            ("projector::apply", None),
            ("strange=debug", None),
            ("info,", None),
            ("[span{field=1,other=2}]=debug", None),
        ] {
            assert_eq!(neither_level_nor_module(filter), word, "{filter}");
        }
    }
}
