//! The projector's command line and settings.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};
use journal::JournalArgs;
use service::boot::Program;
use service::healthcheck::HealthcheckArgs;
use service::logging::LogArgs;
use service::settings::{DatabaseArgs, duration, duration_or_off};
use service::status::StatusArgs;

/// Folds the log into Postgres: users, groups, memberships and roles as `WorkOS` reports them.
///
/// Without a subcommand it runs as a service until SIGTERM or SIGINT. Any number may run: one works each lane, and the
/// others take over when it stops. The position is kept in the database, so it can be stopped and started at any time.
#[derive(Debug, Parser)]
#[command(after_long_help = EXAMPLES)]
pub struct Cli {
    /// Settings for logging.
    #[command(flatten)]
    pub log: LogArgs,
    /// The database with the projection.
    #[command(flatten)]
    pub database: DatabaseArgs,
    /// The log.
    #[command(flatten)]
    pub journal: JournalArgs,
    /// Address that serves `/metrics`, `/livez` and `/readyz`; keep it private
    #[arg(long, env = "ADMIN_ADDR", default_value = "0.0.0.0:9465", value_name = "ADDR")]
    pub admin_addr: SocketAddr,
    /// How long a deleted object keeps its attributes
    #[arg(long, env = "TOMBSTONE_RETENTION", default_value = "30d", value_name = "DURATION", value_parser = duration)]
    pub tombstone_retention: Duration,
    /// How long history (directory.changes) is kept; it is dropped a month at a time; 0 = forever
    #[arg(long, env = "HISTORY_RETENTION", default_value = "0", value_name = "DURATION", value_parser = duration_or_off)]
    pub history_retention: Duration,
    /// What to do instead of running as a service.
    #[command(subcommand)]
    pub command: Option<Command>,
}

const EXAMPLES: &str = "\
Examples:
  DATABASE_URL=postgres://dsync@db/app dsync-projector
  dsync-projector migrate
  dsync-projector verify
  dsync-projector rebuild
  dsync-projector dead-letters list
  dsync-projector dead-letters retry --all
  dsync-projector roles apply roles.toml
  dsync-projector erase --user directory_user_01E1JG7J09H96KYP8HM9B0G5SJ

A file of role rules:
  [priorities]                 # how strong a role is, whatever its source; 0 if not listed
  admin = 100
  [[group]]                    # members of a group: by id, name or idp_id
  role = \"admin\"
  name = \"Platform\"
  organization = \"org_01\"    # or directory = \"directory_01\"; without either, for all
  [[attribute]]                # a custom attribute that is, or contains, a value
  role = \"finance\"
  path = [\"department\"]
  value = \"Finance\"
  priority = 20                # overrides [priorities] for this rule
  [[default]]                  # for users with no other role; the most specific rule counts
  role = \"member\"";

impl Program for Cli {
    fn log(&self) -> &LogArgs {
        &self.log
    }

    fn is_service(&self) -> bool {
        self.command.is_none()
    }
}

/// What the projector can do instead of running as a service.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Bring the database schema up to date and exit
    Migrate(Output),
    /// Build the projection again from the log, beside the live one, and replace the rows that differ
    ///
    /// Readers and the service keep running. At the end, writers wait for a moment while the rows that differ are
    /// replaced in one transaction. The command needs a session of its own: connect to Postgres directly, not through
    /// a transaction pooler.
    Rebuild {
        /// If the log no longer reaches back to its beginning, have the reconciler list every directory first
        #[arg(long)]
        sweep: bool,
        /// Restore the rows that the newest rebuild replaced
        #[arg(long, conflicts_with = "sweep")]
        undo: bool,
        /// Maximum number of rows to name
        #[arg(long, default_value_t = 100, value_name = "ROWS")]
        limit: usize,
        /// Output format.
        #[command(flatten)]
        output: Output,
    },
    /// Compare the projection with the log; if they differ, name the rows and columns and exit with code 3
    Verify {
        /// Maximum number of rows to name
        #[arg(long, default_value_t = 100, value_name = "ROWS")]
        limit: usize,
        /// Output format.
        #[command(flatten)]
        output: Output,
    },
    /// Check the health of the dsync-projector that runs with the same `ADMIN_ADDR`; exit code 0 if it is healthy
    Healthcheck(HealthcheckArgs),
    /// Show the status: what is connected, how far behind it is, and what waits for a person
    Status(StatusArgs),
    /// List, show, retry or drop the records that could not be applied
    DeadLetters {
        /// What to do with them. If not given, they are listed.
        #[command(subcommand)]
        action: Option<DeadLetters>,
        /// Output format.
        #[command(flatten)]
        output: Output,
    },
    /// Show or replace the rules that add roles to WorkOS's own
    Roles {
        /// What to do with them. If not given, they are shown.
        #[command(subcommand)]
        action: Option<Roles>,
        /// Output format.
        #[command(flatten)]
        output: Output,
    },
    /// Erase a person from the tables, history, dead letters, quarantine and log; later records about them are left out
    Erase {
        /// Whom to erase.
        #[command(flatten)]
        whom: Whom,
        /// Output format.
        #[command(flatten)]
        output: Output,
    },
}

/// Whom to erase.
#[derive(Debug, Clone, Args)]
pub struct Whom {
    /// The directory user's id at WorkOS
    #[arg(long, value_name = "ID")]
    pub user: String,
    /// Erase even someone who is still in the directory
    #[arg(long)]
    pub force: bool,
    /// Apply records about this person again from now on; what was erased stays erased
    #[arg(long, conflicts_with = "force")]
    pub undo: bool,
}

/// What to do with role rules.
#[derive(Debug, Subcommand)]
pub enum Roles {
    /// Print the rules in force, in the format of a rules file
    Show,
    /// Replace all rules with those in a file, after showing who gains and who loses which role
    Apply {
        /// The file, in TOML, or `-` for standard input; `dsync-projector --help` shows an example
        file: PathBuf,
        /// Apply without asking
        #[arg(long)]
        yes: bool,
    },
}

/// How a subcommand prints.
#[derive(Debug, Clone, Copy, Args)]
pub struct Output {
    /// Print JSON
    #[arg(long, global = true)]
    pub json: bool,
}

/// What to do with dead letters.
#[derive(Debug, Subcommand)]
pub enum DeadLetters {
    /// List the waiting records, without their content
    List,
    /// Show one record with its content, which is personal data
    Show {
        /// Its id
        id: i64,
    },
    /// Try to apply records again, for example after an upgrade
    Retry {
        /// Their ids
        #[arg(required_unless_present = "all")]
        ids: Vec<i64>,
        /// Retry all waiting records
        #[arg(long, conflicts_with = "ids")]
        all: bool,
    },
    /// Drop records for good; the log still has them for as long as it keeps records
    Drop {
        /// Their ids
        #[arg(required = true)]
        ids: Vec<i64>,
    },
}
