//! Groups of settings that several programs share, for `#[command(flatten)]`.
//!
//! All of them are `global`: they may be given before or after a subcommand.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;

use super::{Secret, SettingError, duration, duration_or_off, size};

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
    /// The database's URL, given by value or by file. An error when it was not given.
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
    /// NATS server, 2.10 or newer, with JetStream enabled (`--jetstream`)
    ///
    /// [default: nats://127.0.0.1:4222]
    #[expect(
        clippy::doc_markdown,
        reason = "help text, in the form in which clap shows defaults"
    )]
    // A secret, because it may contain a password. clap does not know the default: otherwise the default could not be
    // told from a URL that is given in addition to a file.
    #[arg(
        long,
        env = "NATS_URL",
        hide_env_values = true,
        global = true,
        value_name = "URL"
    )]
    nats_url: Option<Secret>,
    /// File that holds `NATS_URL`
    #[arg(long, env = "NATS_URL_FILE", global = true, value_name = "PATH")]
    nats_url_file: Option<PathBuf>,
    /// NATS credentials file
    #[arg(long, env = "NATS_CREDS", global = true, value_name = "PATH")]
    pub nats_creds: Option<PathBuf>,
    /// File with the certificates (PEM) of the only certificate authorities to trust; makes TLS mandatory. Unset = the
    /// system's authorities, and TLS if `NATS_URL` begins with `tls://` or the broker asks for it
    #[arg(long, env = "NATS_CA", global = true, value_name = "PATH")]
    pub nats_ca: Option<PathBuf>,
    /// Name of the log's stream
    #[arg(long, env = "DSYNC_STREAM", default_value = "DSYNC", global = true, value_name = "NAME", value_parser = stream_name)]
    pub dsync_stream: String,
}

impl JournalArgs {
    /// The broker's URL, given by value or by file. If it was not given, a broker on this machine.
    pub fn url(&self) -> Result<Secret, SettingError> {
        let given = Secret::given("NATS_URL", self.nats_url.as_ref(), self.nats_url_file.as_deref())?;
        Ok(given.unwrap_or_else(|| Secret::from("nats://127.0.0.1:4222")))
    }
}

/// How much the log keeps, and for how long. For programs that create or update the stream.
#[derive(Args, Clone, Copy, Debug)]
pub struct JournalLimitArgs {
    /// Number of copies of the log in a NATS cluster
    #[arg(long, env = "DSYNC_STREAM_REPLICAS", default_value = "1", global = true, value_name = "N", value_parser = replicas)]
    pub dsync_stream_replicas: usize,
    /// How long the log keeps records; 0 = forever
    #[arg(long, env = "DSYNC_LOG_MAX_AGE", default_value = "0", global = true, value_name = "DURATION", value_parser = duration_or_off)]
    pub dsync_log_max_age: Duration,
    /// Maximum size of the log; 0 = no limit. A full log refuses new records (503); it never drops the oldest
    #[arg(long, env = "DSYNC_LOG_MAX_BYTES", default_value = "0", global = true, value_name = "SIZE", value_parser = size)]
    pub dsync_log_max_bytes: u64,
    /// How long the log remembers event ids (about 210 bytes of broker memory each); never longer than the log's max
    /// age
    #[arg(long, env = "DSYNC_DEDUP_WINDOW", default_value = "4d", global = true, value_name = "DURATION", value_parser = duration)]
    dsync_dedup_window: Duration,
}

impl JournalLimitArgs {
    /// How long ids are remembered: as set, but never longer than records are kept, because the broker would refuse
    /// that.
    pub fn dedup_window(&self) -> Duration {
        match self.dsync_log_max_age {
            Duration::ZERO => self.dsync_dedup_window,
            max_age => self.dsync_dedup_window.min(max_age),
        }
    }
}

/// Why a value of these groups is refused, worded to follow the value in a sentence.
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

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        journal: JournalArgs,
        #[command(subcommand)]
        command: Option<Sub>,
    }

    #[derive(clap::Subcommand)]
    enum Sub {
        Verify,
    }

    fn url(args: &[&str]) -> Result<String, String> {
        let cli = Cli::try_parse_from(std::iter::once(&"program").chain(args)).unwrap();
        assert_eq!(cli.command.is_some(), args.contains(&"verify"));
        let url = cli.journal.url().map_err(|e| e.to_string())?;
        Ok(url.expose().to_owned())
    }

    #[test]
    fn the_brokers_url_is_given_directly_by_a_file_or_not_at_all() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "nats://me:hunter2@b:1\n").unwrap();
        let file = file.path().to_str().unwrap();
        for (args, found) in [
            (&[][..], "nats://127.0.0.1:4222"),
            (&["verify"], "nats://127.0.0.1:4222"),
            (&["--nats-url", "nats://a:1", "verify"], "nats://a:1"),
            // Before and after a subcommand. The URL was not given here, and must not count as given.
            (&["--nats-url-file", file, "verify"], "nats://me:hunter2@b:1"),
            (&["verify", "--nats-url-file", file], "nats://me:hunter2@b:1"),
        ] {
            assert_eq!(url(args).as_deref(), Ok(found), "{args:?}");
        }
        let name = "NATS_URL (--nats-url)";
        let both = url(&["--nats-url", "nats://a:1", "--nats-url-file", file]);
        assert_eq!(
            both,
            Err(format!("{name} is given twice, directly and by its _FILE"))
        );
        assert_eq!(url(&["--nats-url", ""]), Err(format!("{name} is empty")));
    }
}
