//! Secrets: given directly or by a file, never printed.

use std::fmt;
use std::path::Path;

use secrecy::{ExposeSecret, SecretString};

use super::SettingError;

/// A secret setting. `Debug` shows nothing of it, there is no `Display`, and its memory is wiped when it goes.
#[derive(Clone)]
pub struct Secret(SecretString);

impl Secret {
    /// The secret itself. Keep it out of logs and errors.
    pub fn expose(&self) -> &str {
        self.0.expose_secret()
    }

    /// The secret called `env`, from whichever was given: its value, or the file that `<env>_FILE` names (one
    /// line break at the end is dropped). Both, an unreadable file, or an empty secret is an error.
    pub fn given(
        env: &'static str,
        value: Option<&Self>,
        file: Option<&Path>,
    ) -> Result<Option<Self>, SettingError> {
        let secret = match (value, file) {
            (None, None) => return Ok(None),
            (Some(_), Some(_)) => {
                return Err(SettingError::malformed(
                    env,
                    "is given twice, directly and by its _FILE",
                ));
            }
            (Some(value), None) => value.clone(),
            (None, Some(path)) => Self::read(env, path)?,
        };
        if secret.expose().trim().is_empty() {
            return Err(SettingError::malformed(env, "is empty"));
        }
        Ok(Some(secret))
    }

    /// As [`Secret::given`], and an error when it was not given at all.
    pub fn required(
        env: &'static str,
        value: Option<&Self>,
        file: Option<&Path>,
    ) -> Result<Self, SettingError> {
        Self::given(env, value, file)?.ok_or_else(|| SettingError::missing(env))
    }

    fn read(env: &'static str, path: &Path) -> Result<Self, SettingError> {
        let mut text = std::fs::read_to_string(path).map_err(|e| {
            SettingError::malformed(
                env,
                format!("cannot be read from its _FILE {}: {}", path.display(), e.kind()),
            )
        })?;
        if text.ends_with('\n') {
            text.pop();
            if text.ends_with('\r') {
                text.pop();
            }
        }
        Ok(Self::from(text))
    }
}

impl From<String> for Secret {
    fn from(secret: String) -> Self {
        Self(SecretString::from(secret))
    }
}

impl From<&str> for Secret {
    fn from(secret: &str) -> Self {
        Self(SecretString::from(secret))
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}
