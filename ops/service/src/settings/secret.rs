//! Secrets: given directly or by a file, and never printed.

use std::fmt;
use std::path::Path;

use secrecy::{ExposeSecret, SecretString};

use super::SettingError;

/// A secret setting. `Debug` does not show it, there is no `Display`, and its memory is wiped on drop.
#[derive(Clone)]
pub struct Secret(SecretString);

impl Secret {
    /// The secret itself. Keep it out of logs and errors.
    pub fn expose(&self) -> &str {
        self.0.expose_secret()
    }

    /// The secret called `env`, from its value or from the file that `<env>_FILE` names, without one line break at its
    /// end. `None` if neither was given. An error if both were given, the file cannot be read, or the secret is empty.
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

    /// Like [`Secret::given`], but an error if it was not given.
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

#[cfg(test)]
mod tests {
    use super::*;

    fn file(content: &[u8]) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), content).unwrap();
        file
    }

    fn from_file(content: &[u8]) -> Result<String, String> {
        Secret::required("THE_KEY", None, Some(file(content).path()))
            .map(|secret| secret.expose().to_owned())
            .map_err(|e| e.to_string())
    }

    #[test]
    fn it_is_never_printed() {
        let secret = Secret::from("hunter2");
        assert_eq!(secret.expose(), "hunter2");
        assert!(!format!("{secret:?} {:#?}", Some(secret.clone())).contains("hunter2"));
    }

    #[test]
    fn a_file_may_hold_it_and_one_line_break_at_its_end_is_dropped() {
        for content in [&b"k 1"[..], b"k 1\n", b"k 1\r\n"] {
            assert_eq!(from_file(content).as_deref(), Ok("k 1"));
        }
        assert_eq!(from_file(b"k\n\n").as_deref(), Ok("k\n"));
    }

    #[test]
    fn missing_empty_doubled_and_unreadable_are_errors_that_show_nothing_of_it() {
        let (value, blank) = (Secret::from("hunter2"), Secret::from(" "));
        let held = file(b"hunter2");
        let error = |value, file| Secret::required("THE_KEY", value, file).unwrap_err().to_string();
        assert_eq!(error(None, None), "THE_KEY (--the-key) is not set");
        assert_eq!(error(Some(&blank), None), "THE_KEY (--the-key) is empty");
        assert_eq!(from_file(b"\n"), Err("THE_KEY (--the-key) is empty".to_owned()));
        assert_eq!(
            error(Some(&value), Some(held.path())),
            "THE_KEY (--the-key) is given twice, directly and by its _FILE"
        );
        assert_eq!(
            error(None, Some(Path::new("/no/such/file"))),
            "THE_KEY (--the-key) cannot be read from its _FILE /no/such/file: entity not found"
        );
        assert!(from_file(b"hunter2\xff").unwrap_err().contains("cannot be read"));
        assert!(matches!(Secret::given("THE_KEY", None, None), Ok(None)));
    }
}
