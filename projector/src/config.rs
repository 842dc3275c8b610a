//! The projector's command line and settings.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};
use service::boot::Program;
use service::healthcheck::HealthcheckArgs;
use service::logging::LogArgs;
use service::settings::{DatabaseArgs, JournalArgs, duration, duration_or_off};
use service::status::StatusArgs;

/// Folds the log into Postgres: users, groups, memberships and roles as `WorkOS` reports them.
///
/// Without a subcommand it runs as a service until SIGTERM or SIGINT. Any number may run: one works each lane, the
/// others take over when it stops. Its position is in the database, so it may be stopped and started at any time.
#[derive(Debug, Parser)]
#[command(after_long_help = EXAMPLES)]
pub struct Cli {
    /// How it logs.
    #[command(flatten)]
    pub log: LogArgs,
    /// Where the projection is.
    #[command(flatten)]
    pub database: DatabaseArgs,
    /// Where the log is.
    #[command(flatten)]
    pub journal: JournalArgs,
    /// Where /metrics, /livez and /readyz are answered; keep it private
    #[arg(long, env = "ADMIN_ADDR", default_value = "0.0.0.0:9465", value_name = "ADDR")]
    pub admin_addr: SocketAddr,
    /// How long after its deletion an object keeps its attributes
    #[arg(long, env = "TOMBSTONE_RETENTION", default_value = "30d", value_name = "DURATION", value_parser = duration)]
    pub tombstone_retention: Duration,
    /// How long history (directory.changes) is kept, in whole months; 0 = for ever
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
  [priorities]                 # of a role, wherever it comes from; 0 if not named
  admin = 100
  [[group]]                    # members of a group: by id, name or idp_id
  role = \"admin\"
  name = \"Platform\"
  organization = \"org_01\"    # or directory = \"directory_01\"; without either, for all
  [[attribute]]                # a custom attribute is, or holds, a value
  role = \"finance\"
  path = [\"department\"]
  value = \"Finance\"
  priority = 20                # by this rule
  [[default]]                  # for who has no other role; the nearest one counts
  role = \"member\"";

impl Program for Cli {
    fn log(&self) -> &LogArgs {
        &self.log
    }

    fn is_service(&self) -> bool {
        self.command.is_none()
    }
}

/// What the projector does besides running.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Bring the database schema up to date and exit
    Migrate(Output),
    /// Build the projection again from the log, beside the live one, and replace what is not what the log says
    ///
    /// Readers and the service go on meanwhile. At the end writers wait for a moment, and the rows that differ are
    /// replaced in one transaction. It needs a session of its own: connect to Postgres directly, not through a
    /// transaction pooler.
    Rebuild {
        /// Where the log no longer reaches back to its beginning, have the reconciler list every directory first
        #[arg(long)]
        sweep: bool,
        /// Put back what the newest rebuild replaced
        #[arg(long, conflicts_with = "sweep")]
        undo: bool,
        /// How many rows are named at most
        #[arg(long, default_value_t = 100, value_name = "ROWS")]
        limit: usize,
        /// How to print.
        #[command(flatten)]
        output: Output,
    },
    /// Compare the projection with the log; exit code 3, and the rows and columns by name, where it is not what the log says
    Verify {
        /// How many rows are named at most
        #[arg(long, default_value_t = 100, value_name = "ROWS")]
        limit: usize,
        /// How to print.
        #[command(flatten)]
        output: Output,
    },
    /// Ask the dsync-projector that runs with the same `ADMIN_ADDR` how it is; exit code 0 when it is well
    Healthcheck(HealthcheckArgs),
    /// Show how everything is: what is connected, how far behind, what waits for a person
    Status(StatusArgs),
    /// Look at records that could not be applied, try them again, or give them up
    DeadLetters {
        /// What to do with them; without, they are listed.
        #[command(subcommand)]
        action: Option<DeadLetters>,
        /// How to print.
        #[command(flatten)]
        output: Output,
    },
    /// Show or change the rules that add to WorkOS's own roles
    Roles {
        /// What to do with them; without, they are shown.
        #[command(subcommand)]
        action: Option<Roles>,
        /// How to print.
        #[command(flatten)]
        output: Output,
    },
    /// Forget a person: row, history, dead letters, quarantine, log, and what is said of them later
    Erase {
        /// Whom.
        #[command(flatten)]
        whom: Whom,
        /// How to print.
        #[command(flatten)]
        output: Output,
    },
}

/// Whom to forget.
#[derive(Debug, Clone, Args)]
pub struct Whom {
    /// WorkOS's id of the directory user
    #[arg(long, value_name = "ID")]
    pub user: String,
    /// Also someone who is still in the directory
    #[arg(long)]
    pub force: bool,
    /// Apply again what is said of this person; what was erased stays erased
    #[arg(long, conflicts_with = "force")]
    pub undo: bool,
}

/// What to do with role rules.
#[derive(Debug, Subcommand)]
pub enum Roles {
    /// Print the rules that hold, as a file
    Show,
    /// Make a file's rules hold instead of those that do, after showing who gains and who loses which role
    Apply {
        /// The file, in TOML, or `-` for standard input; `--help` shows one
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
    /// List those that wait, without their content
    List,
    /// Show one with its content, which is personal data
    Show {
        /// Its number
        id: i64,
    },
    /// Try some again, after an upgrade say
    Retry {
        /// Their numbers
        #[arg(required_unless_present = "all")]
        ids: Vec<i64>,
        /// Try every one that waits
        #[arg(long, conflicts_with = "ids")]
        all: bool,
    },
    /// Give some up for good; the log still has them for as long as it is kept
    Drop {
        /// Their numbers
        #[arg(required = true)]
        ids: Vec<i64>,
    },
}
