//! Settings: how they are written, how secrets are read, and what is said when one is wrong.
//!
//! Every setting is a flag and an environment variable of the same name (`--listen-addr`, `LISTEN_ADDR`). A wrong one
//! ends the program with one line and exit code 2; that line names the setting and never shows a secret.

mod groups;
mod refusal;
mod secret;
mod values;

use std::fmt;

#[cfg(feature = "postgres")]
pub use groups::DatabaseArgs;
pub use groups::{JournalArgs, JournalLimitArgs};
pub(crate) use refusal::refusal;
pub use secret::Secret;
pub use values::{Percent, ValueError, duration, duration_or_off, percent, size};

/// Why a setting cannot be used, found after the command line was parsed. Returned (anywhere in the chain of an
/// [`anyhow::Error`]) from the function given to [`crate::boot::run`], it ends the program as a parse error would:
/// one line, exit code 2.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SettingError {
    /// It is required and was not given.
    #[error("{0} is not set")]
    Missing(Setting),
    /// It was given, but cannot be used. The reason never repeats a secret.
    #[error("{setting} {reason}")]
    Malformed {
        /// Which setting.
        setting: Setting,
        /// What is wrong with it, as the rest of a sentence: "must begin with /".
        reason: String,
    },
}

impl SettingError {
    /// The required setting `env` (the environment variable's name) was not given.
    pub fn missing(env: &'static str) -> Self {
        Self::Missing(Setting(env))
    }

    /// What another package says of a setting: `error` names `env` if that is to blame, else it stays as it is. It must hold
    /// no secret.
    pub fn found_later<E>(env: Option<&'static str>, error: E) -> anyhow::Error
    where
        E: std::error::Error + Send + Sync + 'static,
    {
        match env {
            Some(env) => Self::malformed(env, format!("cannot be used: {error}")).into(),
            None => error.into(),
        }
    }

    /// The setting `env` cannot be used. `reason` ends the sentence that begins with its name; no secret in it.
    pub fn malformed(env: &'static str, reason: impl Into<String>) -> Self {
        Self::Malformed {
            setting: Setting(env),
            reason: reason.into(),
        }
    }
}

/// A setting's name; shown as `LISTEN_ADDR (--listen-addr)`.
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
