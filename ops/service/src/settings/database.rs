//! Where the database is: settings that several programs share, for `#[command(flatten)]`.

use std::path::PathBuf;

use clap::Args;

use super::{Secret, SettingError};

/// Where the database is. The settings are `global`: they may be given before or after a subcommand.
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
