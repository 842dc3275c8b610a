//! The reconciler's command line and settings.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};
use journal::{JournalArgs, JournalLimitArgs};
use schema::ids::DirectoryId;
use service::boot::Program;
use service::healthcheck::HealthcheckArgs;
use service::logging::LogArgs;
use service::settings::{DatabaseArgs, Percent, Secret, SettingError, duration_or_off, percent};
use service::status::StatusArgs;

/// Reads `WorkOS`'s Events API and state API, and appends to the log whatever it lacks.
///
/// Without a subcommand, it runs as a service until SIGTERM or SIGINT. Any number of instances may run; they share the
/// directories. It never writes the tables: the projector does that, from the log.
#[derive(Debug, Parser)]
#[command(after_long_help = EXAMPLES)]
pub struct Cli {
    /// Logging.
    #[command(flatten)]
    pub log: LogArgs,
    /// Where the projection is.
    #[command(flatten)]
    pub database: DatabaseArgs,
    /// Where the log is.
    #[command(flatten)]
    pub journal: JournalArgs,
    /// How much the log keeps.
    #[command(flatten)]
    pub limits: JournalLimitArgs,
    /// Where `WorkOS` is.
    #[command(flatten)]
    pub workos: WorkosArgs,
    /// How often the catch-up polls the Events API; 0 = off
    #[arg(
        long,
        env = "EVENTS_POLL_INTERVAL",
        default_value = "15s",
        global = true,
        value_name = "DURATION",
        value_parser = duration_or_off
    )]
    pub events_poll_interval: Duration,
    /// How far back each poll of the catch-up reads again, because `WorkOS` lists some events late
    #[arg(
        long,
        env = "EVENTS_HOLDBACK",
        default_value = "60s",
        global = true,
        value_name = "DURATION",
        value_parser = duration_or_off
    )]
    pub events_holdback: Duration,
    /// How often each directory is swept in full; 0 = off
    #[arg(
        long,
        env = "SWEEP_INTERVAL",
        default_value = "1h",
        global = true,
        value_name = "DURATION",
        value_parser = duration_or_off
    )]
    pub sweep_interval: Duration,
    /// How old the data in `WorkOS`'s answers is assumed to be; differences newer than that are read again, not judged
    #[arg(
        long,
        env = "SWEEP_CLOCK_MARGIN",
        default_value = "60s",
        global = true,
        value_name = "DURATION",
        value_parser = duration_or_off
    )]
    pub sweep_clock_margin: Duration,
    /// Largest share of a directory's live users, groups or memberships that one pass may delete; above it (and above
    /// 10), all deletions of that kind are held until approved
    #[arg(
        long,
        env = "SWEEP_MAX_DELETIONS",
        default_value = "10%",
        global = true,
        value_name = "PERCENT",
        value_parser = percent
    )]
    pub sweep_max_deletions: Percent,
    /// Address that serves `/metrics`, `/livez` and `/readyz`; keep it private
    #[arg(long, env = "ADMIN_ADDR", default_value = "0.0.0.0:9466", value_name = "ADDR")]
    pub admin_addr: SocketAddr,
    /// What to do instead of running as a service.
    #[command(subcommand)]
    pub command: Option<Command>,
}

const EXAMPLES: &str = "\
Examples:
  DATABASE_URL=postgres://dsync@db/app WORKOS_API_KEY=sk_… dsync-reconciler
  dsync-reconciler sweep --dry-run
  dsync-reconciler sweep --directory directory_01… --values
  dsync-reconciler approve directory_01…

Exit codes of sweep: 0 no drift; 3 drift (repaired, unless held back or --dry-run); 1 something could not be read.";

impl Program for Cli {
    fn log(&self) -> &LogArgs {
        &self.log
    }

    fn is_service(&self) -> bool {
        self.command.is_none()
    }
}

/// Where `WorkOS` is.
#[derive(Args, Clone, Debug)]
pub struct WorkosArgs {
    /// `WorkOS`'s API key, `sk_…`
    #[arg(
        long,
        env = "WORKOS_API_KEY",
        hide_env_values = true,
        global = true,
        value_name = "KEY"
    )]
    workos_api_key: Option<Secret>,
    /// File that holds `WORKOS_API_KEY`
    #[arg(long, env = "WORKOS_API_KEY_FILE", global = true, value_name = "PATH")]
    workos_api_key_file: Option<PathBuf>,
    /// Base URL of `WorkOS`'s API
    #[arg(
        long,
        env = "WORKOS_API_URL",
        default_value = "https://api.workos.com",
        global = true,
        value_name = "URL",
        value_parser = url
    )]
    pub workos_api_url: reqwest::Url,
}

impl WorkosArgs {
    /// The API key, given by value or by file. An error when there is none.
    pub fn key(&self) -> Result<Secret, SettingError> {
        let key = Secret::required(
            "WORKOS_API_KEY",
            self.workos_api_key.as_ref(),
            self.workos_api_key_file.as_deref(),
        )?;
        if key.expose().chars().any(|c| c.is_control() || !c.is_ascii()) {
            return Err(SettingError::malformed(
                "WORKOS_API_KEY",
                "contains a character that no API key has",
            ));
        }
        Ok(key)
    }
}

/// What to do instead of running as a service.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Check the health of the dsync-reconciler that runs with the same `ADMIN_ADDR`; exit code 0 if it is healthy
    Healthcheck(HealthcheckArgs),
    /// Show the status: what is connected, how far behind it is, and what waits for a person
    Status(StatusArgs),
    /// Compare with `WorkOS` now, repair the differences, and report them
    ///
    /// Give it the service's settings: deletions that it holds back by its own `SWEEP_MAX_DELETIONS` wait for approval in the
    /// service's sweeps, too.
    Sweep(SweepArgs),
    /// Approve the deletions held back in a directory, after checking again that the objects are gone
    Approve {
        /// The directory's id
        #[arg(value_parser = directory_id)]
        directory_id: String,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
}

/// How to make a pass and report it.
#[derive(Debug, Clone, Args)]
pub struct SweepArgs {
    /// Sweep only this directory
    #[arg(long, value_name = "ID", value_parser = directory_id)]
    pub directory: Option<String>,
    /// Only report; repair nothing
    #[arg(long)]
    pub dry_run: bool,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
    /// Include the values of columns that differ; these are personal data
    #[arg(long)]
    pub values: bool,
}

/// Why a value is refused, worded to follow the value in a sentence.
#[derive(Clone, Copy, Debug, thiserror::Error)]
enum ValueError {
    #[error("is not an id: use only letters, digits, - and _, at most 128 characters")]
    Id,
    #[error("is not an API address: write it like https://api.workos.com")]
    Url,
}

fn directory_id(text: &str) -> Result<String, ValueError> {
    DirectoryId::new(text)
        .map(|id| id.to_string())
        .ok_or(ValueError::Id)
}

fn url(text: &str) -> Result<reqwest::Url, ValueError> {
    reqwest::Url::parse(text)
        .ok()
        .filter(|url| matches!(url.scheme(), "http" | "https") && url.has_host() && !url.cannot_be_a_base())
        .ok_or(ValueError::Url)
}
