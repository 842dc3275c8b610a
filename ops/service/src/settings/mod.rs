//! Settings: the form of their values, how secrets are read, and the messages about wrong ones.
//!
//! Every setting is a flag and an environment variable of the same name (`--listen-addr`, `LISTEN_ADDR`). A wrong value
//! ends the program with exit code 2 and one line, which names the setting and never shows a secret.

#[cfg(feature = "postgres")]
mod database;
mod refusal;
mod secret;
mod values;

use std::fmt;

#[cfg(feature = "postgres")]
pub use database::DatabaseArgs;
pub(crate) use refusal::refusal;
pub use secret::Secret;
pub use values::{Percent, ValueError, duration, duration_or_off, percent, size};

/// Why a setting cannot be used, found after the command line was parsed. If the function passed to
/// [`crate::boot::run`] returns it, anywhere in the chain of an [`anyhow::Error`], the program ends as after a parse
/// error: with one line and exit code 2.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SettingError {
    /// The setting is required and was not given.
    #[error("{0} is not set")]
    Missing(Setting),
    /// The setting was given, but cannot be used. The reason never repeats a secret.
    #[error("{setting} {reason}")]
    Malformed {
        /// Which setting.
        setting: Setting,
        /// What is wrong with it, worded to follow the setting's name: "must begin with /".
        reason: String,
    },
}

impl SettingError {
    /// The required setting `env` (the environment variable's name) was not given.
    pub fn missing(env: &'static str) -> Self {
        Self::Missing(Setting(env))
    }

    /// Turns another package's `error` into one that names the setting to blame, `env`. Without `env`, `error` is
    /// returned as it is. It must not contain a secret.
    pub fn found_later<E>(env: Option<&'static str>, error: E) -> anyhow::Error
    where
        E: std::error::Error + Send + Sync + 'static,
    {
        match env {
            Some(env) => Self::malformed(env, format!("cannot be used: {error}")).into(),
            None => error.into(),
        }
    }

    /// The setting `env` cannot be used. `reason` follows its name in the message and must not contain a secret.
    pub fn malformed(env: &'static str, reason: impl Into<String>) -> Self {
        Self::Malformed {
            setting: Setting(env),
            reason: reason.into(),
        }
    }
}

/// A setting's name, shown as `LISTEN_ADDR (--listen-addr)`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Setting(&'static str);

impl fmt::Display for Setting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} (--{})",
            self.0,
            self.0.to_ascii_lowercase().replace('_', "-")
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_name_variable_and_flag() {
        assert_eq!(
            SettingError::missing("WORKOS_API_KEY").to_string(),
            "WORKOS_API_KEY (--workos-api-key) is not set"
        );
        assert_eq!(
            SettingError::malformed("WEBHOOK_PATH", "must begin with /").to_string(),
            "WEBHOOK_PATH (--webhook-path) must begin with /"
        );
    }
}
