//! The command line. Every setting is a flag and an environment variable.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};
use journal::{JournalArgs, JournalLimitArgs};
use service::boot::Program;
use service::healthcheck::HealthcheckArgs;
use service::logging::LogArgs;
use service::settings::{Secret, SettingError, duration, size};
use service::status::StatusArgs;

use crate::sender::Networks;
use crate::sign::SignArgs;

const SECRET: &str = "WORKOS_WEBHOOK_SECRET";

/// Receives WorkOS's webhooks, checks their signatures and stores them in the log.
#[derive(Parser, Debug)]
pub struct Cli {
    /// Webhooks.
    #[command(flatten)]
    pub webhook: WebhookArgs,
    /// Where the log is.
    #[command(flatten)]
    pub journal: JournalArgs,
    /// What the log keeps.
    #[command(flatten)]
    pub limits: JournalLimitArgs,
    /// Logging.
    #[command(flatten)]
    pub log: LogArgs,
    /// What to do instead of serving.
    #[command(subcommand)]
    pub command: Option<Command>,
}

/// What to do instead of serving.
#[derive(Subcommand, Debug)]
pub enum Command {
    /// Print a valid signature header for the body on standard input, for testing with curl
    Sign(SignArgs),
    /// Check the health of the dsync-ingest that runs with the same `ADMIN_ADDR`; exit code 0 if it is healthy
    Healthcheck(HealthcheckArgs),
    /// Show the status: what is connected, how far behind it is, and what waits for a person
    Status(StatusArgs),
}

/// Settings of this program alone.
#[derive(Args, Debug)]
pub struct WebhookArgs {
    /// Address to listen on for webhooks
    #[arg(
        long,
        env = "LISTEN_ADDR",
        default_value = "0.0.0.0:8080",
        value_name = "ADDR"
    )]
    pub listen_addr: SocketAddr,
    /// File with the certificate chain (PEM) for serving webhooks over TLS, reloaded when it changes; unset = plain
    /// HTTP, behind a proxy that terminates TLS
    #[arg(long, env = "TLS_CERT", value_name = "PATH")]
    pub tls_cert: Option<PathBuf>,
    /// File with the private key (PEM) for `TLS_CERT`
    #[arg(long, env = "TLS_KEY", value_name = "PATH")]
    pub tls_key: Option<PathBuf>,
    /// Address that serves `/metrics`, `/livez` and `/readyz`; keep it private
    #[arg(long, env = "ADMIN_ADDR", default_value = "0.0.0.0:9464", value_name = "ADDR")]
    pub admin_addr: SocketAddr,
    /// Signing secret of the WorkOS webhook endpoint; several, separated by commas, while rotating
    #[arg(
        long,
        env = "WORKOS_WEBHOOK_SECRET",
        hide_env_values = true,
        global = true,
        value_name = "SECRET"
    )]
    workos_webhook_secret: Option<Secret>,
    /// File that holds `WORKOS_WEBHOOK_SECRET`
    #[arg(long, env = "WORKOS_WEBHOOK_SECRET_FILE", global = true, value_name = "PATH")]
    workos_webhook_secret_file: Option<PathBuf>,
    /// Path that WorkOS posts to
    #[arg(long, env = "WEBHOOK_PATH", default_value = "/webhooks/workos", value_name = "PATH", value_parser = path)]
    pub webhook_path: String,
    /// How far a signature's time may be in the past or the future
    #[arg(long, env = "WEBHOOK_TOLERANCE", default_value = "180s", value_name = "DURATION", value_parser = duration)]
    pub webhook_tolerance: Duration,
    /// Largest body accepted; a body too large for the broker is refused as well
    #[arg(long, env = "WEBHOOK_MAX_BODY", default_value = "960KiB", value_name = "SIZE", value_parser = max_body)]
    pub webhook_max_body: usize,
    /// Addresses and CIDRs allowed to post, separated by commas; `workos` = the list that WorkOS publishes; unset = any
    #[arg(long, env = "WEBHOOK_ALLOWED_IPS", value_name = "LIST", value_parser = Networks::parse_senders)]
    pub webhook_allowed_ips: Option<Networks>,
    /// Addresses and CIDRs of proxies whose `X-Forwarded-For` is trusted, separated by commas
    #[arg(long, env = "TRUSTED_PROXIES", value_name = "LIST", value_parser = Networks::parse)]
    pub trusted_proxies: Option<Networks>,
}

impl Program for Cli {
    fn log(&self) -> &LogArgs {
        &self.log
    }

    fn is_service(&self) -> bool {
        self.command.is_none()
    }
}

impl WebhookArgs {
    /// The signing secrets, given by value or by file. An error when there are none.
    pub fn secrets(&self) -> Result<Secret, SettingError> {
        Secret::required(
            SECRET,
            self.workos_webhook_secret.as_ref(),
            self.workos_webhook_secret_file.as_deref(),
        )
    }
}

/// Why a value is refused, worded to follow the value in a sentence.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
enum Refused {
    #[error("is not a path: it must begin with / and contain no spaces, ? or #")]
    Path,
    #[error("is not a size from 1KiB to 64MiB")]
    MaxBody,
}

fn path(text: &str) -> Result<String, Refused> {
    let plain = text.bytes().all(|b| b.is_ascii_graphic() && !b"?#".contains(&b));
    if text.starts_with('/') && plain {
        Ok(text.to_owned())
    } else {
        Err(Refused::Path)
    }
}

/// The upper limit is the largest `max_payload` a broker can have.
fn max_body(text: &str) -> Result<usize, Refused> {
    let bytes = size(text)
        .ok()
        .filter(|bytes| (1 << 10..=64 << 20).contains(bytes));
    bytes
        .and_then(|bytes| usize::try_from(bytes).ok())
        .ok_or(Refused::MaxBody)
}
