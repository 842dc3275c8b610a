//! The projector's command line and settings.

use std::net::SocketAddr;

use clap::{Args, Parser, Subcommand};
use service::boot::Program;
use service::logging::LogArgs;
use service::settings::{DatabaseArgs, JournalArgs};

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
    /// What to do instead of running as a service.
    #[command(subcommand)]
    pub command: Option<Command>,
}

const EXAMPLES: &str = "\
Examples:
  DATABASE_URL=postgres://dsync@db/app dsync-projector
  dsync-projector migrate
  dsync-projector dead-letters list
  dsync-projector dead-letters retry --all";

impl Program for Cli {
    fn log(&self) -> &LogArgs {
        &self.log
    }
}

/// What the projector does besides running.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Bring the database schema up to date and exit
    Migrate(Output),
    /// Look at records that could not be applied, try them again, or give them up
    DeadLetters {
        /// What to do with them; without, they are listed.
        #[command(subcommand)]
        action: Option<DeadLetters>,
        /// How to print.
        #[command(flatten)]
        output: Output,
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
