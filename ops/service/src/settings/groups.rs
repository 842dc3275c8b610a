//! Groups of settings that several programs share, for `#[command(flatten)]`.
//!
//! All of them are `global`: they may stand before or after a subcommand.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;

#[cfg(feature = "postgres")]
use super::SettingError;
use super::{Secret, duration, duration_or_off, size};

/// Where the database is.
#[cfg(feature = "postgres")]
#[derive(Args, Clone, Debug)]
pub struct DatabaseArgs {
    /// Postgres 15 or newer, as `postgres://user:password@host:5432/database`
    #[arg(
        long,
        env = "DATABASE_URL",
        hide_env_values = true,
        global = true,
        value_name = "URL"
    )]
    database_url: Option<Secret>,
    /// File that holds `DATABASE_URL`
    #[arg(long, env = "DATABASE_URL_FILE", global = true, value_name = "PATH")]
    database_url_file: Option<PathBuf>,
}

#[cfg(feature = "postgres")]
impl DatabaseArgs {
    /// The database's URL, whichever way it was given; an error when it was not.
    pub fn url(&self) -> Result<Secret, SettingError> {
        Secret::required(
            "DATABASE_URL",
            self.database_url.as_ref(),
            self.database_url_file.as_deref(),
        )
    }
}

/// Where the log is: the NATS server and the stream.
#[derive(Args, Clone, Debug)]
pub struct JournalArgs {
    /// NATS 2.10 or newer with its streams (`--jetstream`) enabled
    // Held as a secret because a password may be part of it.
    #[arg(
        long,
        env = "NATS_URL",
        default_value = "nats://127.0.0.1:4222",
        hide_env_values = true,
        global = true,
        value_name = "URL"
    )]
    pub nats_url: Secret,
    /// NATS credentials file
    #[arg(long, env = "NATS_CREDS", global = true, value_name = "PATH")]
    pub nats_creds: Option<PathBuf>,
    /// File with the certificates (PEM) of the only authorities whose brokers are believed, and TLS a must; unset = those the
    /// system knows, and TLS where `NATS_URL` begins with `tls://` or the broker asks for it
    #[arg(long, env = "NATS_CA", global = true, value_name = "PATH")]
    pub nats_ca: Option<PathBuf>,
    /// Name of the log's stream
    #[arg(long, env = "DSYNC_STREAM", default_value = "DSYNC", global = true, value_name = "NAME", value_parser = stream_name)]
    pub dsync_stream: String,
}

/// How long and how much the log keeps. For whoever creates or updates the stream.
#[derive(Args, Clone, Copy, Debug)]
pub struct JournalLimitArgs {
    /// Copies of the log in a NATS cluster
    #[arg(long, env = "DSYNC_STREAM_REPLICAS", default_value = "1", global = true, value_name = "N", value_parser = replicas)]
    pub dsync_stream_replicas: usize,
    /// How long the log is kept; 0 = for ever
    #[arg(long, env = "DSYNC_LOG_MAX_AGE", default_value = "0", global = true, value_name = "DURATION", value_parser = duration_or_off)]
    pub dsync_log_max_age: Duration,
    /// How large the log may grow; 0 = no limit. A full log refuses (503), it never drops its oldest
    #[arg(long, env = "DSYNC_LOG_MAX_BYTES", default_value = "0", global = true, value_name = "SIZE", value_parser = size)]
    pub dsync_log_max_bytes: u64,
    /// How long the log remembers event ids (about 210 bytes of broker memory each); never more than the max age
    #[arg(long, env = "DSYNC_DEDUP_WINDOW", default_value = "4d", global = true, value_name = "DURATION", value_parser = duration)]
    dsync_dedup_window: Duration,
}

impl JournalLimitArgs {
    /// How long ids are remembered: as set, but never longer than the log is kept, which the broker would refuse.
    pub fn dedup_window(&self) -> Duration {
        match self.dsync_log_max_age {
            Duration::ZERO => self.dsync_dedup_window,
            max_age => self.dsync_dedup_window.min(max_age),
        }
    }
}

/// Why a value of these groups is refused; the rest of a sentence that begins with the value.
#[derive(Clone, Copy, Debug, thiserror::Error)]
enum GroupValueError {
    #[error("is not a stream name: letters, digits, - and _ only")]
    StreamName,
    #[error("is not a number of copies from 1 to 5")]
    Replicas,
}

fn stream_name(text: &str) -> Result<String, GroupValueError> {
    let plain = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
    if text.is_empty() || text.len() > 255 || !text.chars().all(plain) {
        return Err(GroupValueError::StreamName);
    }
    Ok(text.to_owned())
}

fn replicas(text: &str) -> Result<usize, GroupValueError> {
    text.parse()
        .ok()
        .filter(|n| (1..=5).contains(n))
        .ok_or(GroupValueError::Replicas)
}
