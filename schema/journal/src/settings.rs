//! The settings of the log that several programs share, for `#[command(flatten)]`.
//!
//! All of them are `global`: they may be given before or after a subcommand.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use service::settings::{Secret, SettingError, duration, duration_or_off, size};

use crate::connection::{Connection, is_stream_name};
use crate::stream::Limits;

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
    nats_creds: Option<PathBuf>,
    /// File with the certificates (PEM) of the only certificate authorities to trust; makes TLS mandatory. Unset = the
    /// system's authorities, and TLS if `NATS_URL` begins with `tls://` or the broker asks for it
    #[arg(long, env = "NATS_CA", global = true, value_name = "PATH")]
    nats_ca: Option<PathBuf>,
    /// Name of the log's stream
    #[arg(long, env = "DSYNC_STREAM", default_value = "DSYNC", global = true, value_name = "NAME", value_parser = stream_name)]
    dsync_stream: String,
}

impl JournalArgs {
    /// How to connect, as a program that calls itself `name` at the broker. The broker's URL was given by value or by
    /// file; if it was not given, it is that of a broker on this machine.
    pub fn connection(&self, name: &str) -> Result<Connection, SettingError> {
        let url = Secret::given("NATS_URL", self.nats_url.as_ref(), self.nats_url_file.as_deref())?;
        Ok(Connection {
            url: url.map_or_else(
                || "nats://127.0.0.1:4222".to_owned(),
                |url| url.expose().to_owned(),
            ),
            creds: self.nats_creds.clone(),
            ca: self.nats_ca.clone(),
            stream: self.dsync_stream.clone(),
            name: name.to_owned(),
        })
    }
}

/// How much the log keeps, and for how long. For programs that create or update the stream.
#[derive(Args, Clone, Copy, Debug)]
#[expect(clippy::struct_field_names, reason = "a setting is called as its field is")]
pub struct JournalLimitArgs {
    /// Number of copies of the log in a NATS cluster
    #[arg(long, env = "DSYNC_STREAM_REPLICAS", default_value = "1", global = true, value_name = "N", value_parser = replicas)]
    dsync_stream_replicas: usize,
    /// How long the log keeps records; 0 = forever
    #[arg(long, env = "DSYNC_LOG_MAX_AGE", default_value = "0", global = true, value_name = "DURATION", value_parser = duration_or_off)]
    dsync_log_max_age: Duration,
    /// Maximum size of the log; 0 = no limit. A full log refuses new records (503); it never drops the oldest
    #[arg(long, env = "DSYNC_LOG_MAX_BYTES", default_value = "0", global = true, value_name = "SIZE", value_parser = size)]
    dsync_log_max_bytes: u64,
    /// How long the log remembers event ids (about 210 bytes of broker memory each); never longer than the log's max
    /// age
    #[arg(long, env = "DSYNC_DEDUP_WINDOW", default_value = "4d", global = true, value_name = "DURATION", value_parser = duration)]
    dsync_dedup_window: Duration,
}

impl JournalLimitArgs {
    /// What the log is to keep.
    pub fn limits(&self) -> Limits {
        Limits {
            replicas: self.dsync_stream_replicas,
            max_age: self.dsync_log_max_age,
            max_bytes: self.dsync_log_max_bytes,
            dedup_window: self.dsync_dedup_window,
        }
    }
}

/// Why a value is refused, worded to follow the value in a sentence.
#[derive(Clone, Copy, Debug, thiserror::Error)]
enum ValueError {
    #[error("is not a stream name: letters, digits, - and _ only")]
    StreamName,
    #[error("is not a number of copies from 1 to 5")]
    Replicas,
}

fn stream_name(text: &str) -> Result<String, ValueError> {
    is_stream_name(text)
        .then(|| text.to_owned())
        .ok_or(ValueError::StreamName)
}

fn replicas(text: &str) -> Result<usize, ValueError> {
    text.parse()
        .ok()
        .filter(|n| (1..=5).contains(n))
        .ok_or(ValueError::Replicas)
}

#[cfg(test)]
mod tests {
    use std::error::Error as _;

    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        journal: JournalArgs,
        #[command(flatten)]
        limits: JournalLimitArgs,
        #[command(subcommand)]
        command: Option<Sub>,
    }

    #[derive(clap::Subcommand)]
    enum Sub {
        Verify,
    }

    fn parsed(args: &[&str]) -> clap::error::Result<Cli> {
        let cli = Cli::try_parse_from(std::iter::once(&"program").chain(args))?;
        assert_eq!(cli.command.is_some(), args.contains(&"verify"));
        Ok(cli)
    }

    fn url(args: &[&str]) -> Result<String, String> {
        let connection = parsed(args).unwrap().journal.connection("program");
        Ok(connection.map_err(|e| e.to_string())?.url)
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

    #[test]
    fn what_is_given_and_what_is_not_reaches_the_broker() {
        let cli = parsed(&[
            "verify",
            "--nats-creds",
            "a",
            "--nats-ca",
            "b",
            "--dsync-stream",
            "C",
        ])
        .unwrap();
        let connection = cli.journal.connection("program").unwrap();
        assert_eq!(
            (connection.creds, connection.ca),
            (Some("a".into()), Some("b".into()))
        );
        assert_eq!((&*connection.stream, &*connection.name), ("C", "program"));
        let kept = Limits {
            replicas: 1,
            max_age: Duration::ZERO,
            max_bytes: 0,
            dedup_window: Duration::from_hours(96),
        };
        assert_eq!(cli.limits.limits(), kept);
        let given = [
            ["--dsync-stream-replicas", "3"],
            ["--dsync-log-max-age", "30d"],
            ["--dsync-log-max-bytes", "1KiB"],
            ["--dsync-dedup-window", "5m"],
        ];
        let cli = parsed(given.as_flattened()).unwrap();
        let kept = Limits {
            replicas: 3,
            max_age: Duration::from_hours(720),
            max_bytes: 1024,
            dedup_window: Duration::from_mins(5),
        };
        assert_eq!(cli.limits.limits(), kept);
        assert_eq!(cli.journal.connection("").unwrap().stream, "DSYNC");
    }

    #[test]
    fn what_no_broker_takes_is_refused_with_a_reason() {
        for (args, why) in [
            (
                ["--dsync-stream", "a.b"],
                "is not a stream name: letters, digits, - and _ only",
            ),
            (
                ["--dsync-stream-replicas", "0"],
                "is not a number of copies from 1 to 5",
            ),
            (
                ["--dsync-stream-replicas", "6"],
                "is not a number of copies from 1 to 5",
            ),
        ] {
            let Err(error) = parsed(&args) else {
                panic!("{args:?} was accepted")
            };
            assert_eq!(error.source().map(ToString::to_string).as_deref(), Some(why));
        }
    }
}
