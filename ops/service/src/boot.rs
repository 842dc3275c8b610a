//! From command line to exit code: every program starts and ends in the same way.
//!
//! A program defines its command line and what to do with it. It never installs loggers, runtimes or signal handlers
//! itself.

use std::future::Future;
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use prometheus::core::Collector;
use prometheus::{IntGauge, IntGaugeVec, Opts, Registry};
use serde_json::json;
use time::format_description::well_known::Rfc3339;
use tokio_util::sync::CancellationToken;

use crate::clock::Clock;
use crate::logging::{self, LogArgs, LogFormat};
use crate::readiness::Readiness;
use crate::settings::{SettingError, refusal};
use crate::shutdown::Signals;

/// Exit code for a missing or malformed setting.
const BAD_SETTING: u8 = 2;

/// How long a drain may take. Orchestrators kill after 30 s; ending before that leaves a message that says why.
const DRAIN: Duration = Duration::from_secs(25);

/// A program's command line.
pub trait Program: Parser {
    /// Its logging settings.
    fn log(&self) -> &LogArgs;

    /// Whether it runs as a service, as opposed to a subcommand that does its work and exits.
    fn is_service(&self) -> bool;
}

/// What a running program gets. Cheap to clone; clones share everything.
#[derive(Clone)]
pub struct Context {
    /// The program's name, as in `dsync-ingest`.
    pub name: &'static str,
    /// The clock.
    pub clock: Clock,
    /// Where metrics are registered; `/metrics` shows them.
    pub metrics: Registry,
    /// The checks behind `/readyz`.
    pub readiness: Readiness,
    /// Cancelled when the process is told to stop: finish work in progress and return.
    pub shutdown: CancellationToken,
    /// What `/readyz` would answer, for `/metrics`.
    pub(crate) ready: IntGauge,
}

impl Context {
    /// A new context, with `dsync_build_info` and `dsync_ready` registered. [`run`] makes the real one; tests make their own.
    pub fn new(name: &'static str, version: &str, clock: Clock) -> Self {
        let metrics = Registry::new();
        let info = IntGaugeVec::new(
            Opts::new(
                "dsync_build_info",
                "Always 1; the label is the version that runs.",
            ),
            &["version"],
        )
        .expect("a valid metric");
        info.with_label_values(&[version]).set(1);
        let ready =
            IntGauge::new("dsync_ready", "Whether /readyz answers 200 (1 or 0).").expect("a valid metric");
        for metric in [Box::new(info) as Box<dyn Collector>, Box::new(ready.clone())] {
            metrics.register(metric).expect("a new registry is empty");
        }
        Self {
            name,
            clock,
            metrics,
            readiness: Readiness::default(),
            shutdown: CancellationToken::new(),
            ready,
        }
    }
}

/// Runs a program from command line to exit code.
///
/// `name` is the program's name (`dsync-ingest`), and `version` is shown by `--version` and `dsync_build_info`. `main`
/// gets the parsed command line and a [`Context`]. It should return soon after [`Context::shutdown`] is cancelled. If
/// it returns an error, that is printed once, and the exit code is 2 for a [`SettingError`], otherwise 1.
pub fn run<C, F>(name: &'static str, version: &'static str, main: impl FnOnce(C, Context) -> F) -> ExitCode
where
    C: Program,
    F: Future<Output = anyhow::Result<ExitCode>>,
{
    let mut command = C::command().name(name).version(version);
    let parsed = command.try_get_matches_from_mut(std::env::args_os());
    let cli = match parsed.and_then(|matches| C::from_arg_matches(&matches)) {
        Ok(cli) => cli,
        Err(error) => {
            let Some(line) = refusal(&command, &error) else {
                // Help or version was asked for. It is not an error if nobody reads it.
                let _ = error.print();
                return ExitCode::SUCCESS;
            };
            eprintln!("{name}: {line}");
            return ExitCode::from(BAD_SETTING);
        }
    };
    let log = cli.log().clone();
    let is_service = cli.is_service();
    start(name, version, (&log, is_service), |context| main(cli, context))
        .unwrap_or_else(|error| report(name, &log, &error))
}

fn start<F>(
    name: &'static str,
    version: &'static str,
    (log, is_service): (&LogArgs, bool),
    main: impl FnOnce(Context) -> F,
) -> anyhow::Result<ExitCode>
where
    F: Future<Output = anyhow::Result<ExitCode>>,
{
    logging::start(log, is_service)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let code = runtime.block_on(async {
        let context = Context::new(name, version, Clock::system());
        let shutdown = context.shutdown.clone();
        tokio::spawn(Signals::listen()?.govern(shutdown.clone()));
        tokio::select! {
            code = main(context) => code,
            () = overdue(shutdown) => anyhow::bail!("did not finish within {DRAIN:?} after being told to stop"),
        }
    });
    // Blocking work that hangs (name resolution) must not keep the process alive.
    runtime.shutdown_timeout(Duration::from_secs(1));
    code
}

async fn overdue(shutdown: CancellationToken) {
    shutdown.cancelled().await;
    tokio::time::sleep(DRAIN).await;
}

/// Prints the error that ended the program, whatever `RUST_LOG` says.
fn report(name: &str, log: &LogArgs, error: &anyhow::Error) -> ExitCode {
    if let Some(setting) = error.chain().find_map(|e| e.downcast_ref::<SettingError>()) {
        eprintln!("{name}: {setting}");
        return ExitCode::from(BAD_SETTING);
    }
    let message = format!("{}{}", whole(error), hint(error));
    match log.log_format {
        LogFormat::Text => eprintln!("{name}: {message}"),
        LogFormat::Json => {
            let timestamp = Clock::system().now().format(&Rfc3339).unwrap_or_default();
            let line = json!({"timestamp": timestamp, "level": "ERROR", "message": message, "target": name});
            eprintln!("{line}");
        }
    }
    ExitCode::FAILURE
}

/// The error and its causes, in one text. Many an error quotes its cause: what was said is not said again.
fn whole(error: &anyhow::Error) -> String {
    let mut text = String::new();
    for cause in error.chain().map(said) {
        let cause = cause.trim();
        if text.contains(cause) {
            continue;
        }
        if !text.is_empty() {
            text.push_str(": ");
        }
        text.push_str(cause);
    }
    text
}

/// What an error says of itself, or what we say instead where that misleads.
#[cfg(feature = "postgres")]
fn said(cause: &(dyn std::error::Error + 'static)) -> String {
    match cause.downcast_ref() {
        Some(error @ sqlx::Error::PoolTimedOut) => crate::postgres::described(error).to_string(),
        _ => cause.to_string(),
    }
}

#[cfg(not(feature = "postgres"))]
fn said(cause: &(dyn std::error::Error + 'static)) -> String {
    cause.to_string()
}

/// What to check, if the error leaves that open.
#[cfg(feature = "postgres")]
fn hint(error: &anyhow::Error) -> String {
    use crate::postgres::{UNMIGRATED, UNPROVEN, is_missing_schema, is_unproven};
    let database = error.chain().find_map(|e| e.downcast_ref::<sqlx::Error>());
    match database {
        Some(error) if is_unproven(error) => format!(" ({UNPROVEN})"),
        Some(missing) if is_missing_schema(missing) && !whole(error).contains(UNMIGRATED) => {
            format!(" ({UNMIGRATED})")
        }
        _ => String::new(),
    }
}

#[cfg(not(feature = "postgres"))]
fn hint(_: &anyhow::Error) -> &'static str {
    ""
}

#[cfg(test)]
mod tests {
    use anyhow::{Context as _, anyhow};

    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("the log: {0}; run this again")]
    struct Quoting(#[from] std::fmt::Error);

    #[test]
    fn a_cause_that_an_error_quotes_is_printed_once() {
        let quoting = anyhow::Error::from(Quoting(std::fmt::Error)).context("cannot begin");
        assert_eq!(
            whole(&quoting),
            format!("cannot begin: the log: {}; run this again", std::fmt::Error)
        );
    }

    #[test]
    fn causes_that_say_something_else_are_all_printed() {
        let error = Err::<(), _>(anyhow!("no such file\n"))
            .context("cannot read it")
            .context("a setting")
            .unwrap_err();
        assert_eq!(whole(&error), "a setting: cannot read it: no such file");
    }
}
