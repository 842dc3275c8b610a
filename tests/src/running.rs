//! A running program of dsync: observed through its admin port, and ended in every way in which a process can end.

use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use tempfile::TempDir;

use crate::metrics::Metrics;
use crate::ports::Port;
use crate::process::{Process, Signal};
use crate::program::Program;

const READY_WITHIN: Duration = Duration::from_secs(30);
const DRAINS_WITHIN: Duration = Duration::from_secs(30);
/// Settings whose secrets must appear nowhere.
const SECRET_SETTINGS: [&str; 5] = [
    "DATABASE_URL",
    "NATS_URL",
    "WORKOS_WEBHOOK_SECRET",
    "WORKOS_API_KEY",
    "WORKOS_API_URL",
];

/// A program that runs until it is told to stop. Killed when dropped.
#[derive(Debug)]
pub struct Running {
    program: Program,
    process: Option<Process>,
    admin: Port,
    listen: Port,
    log: PathBuf,
    dir: TempDir,
}

impl Running {
    pub(crate) fn spawn(mut program: Program) -> anyhow::Result<Running> {
        let (admin, listen) = (Port::reserve()?, Port::reserve()?);
        let dir = tempfile::Builder::new().prefix("dsync-program-").tempdir()?;
        let log = dir.path().join("output.log");
        program
            .env
            .entry("ADMIN_ADDR".to_owned())
            .or_insert_with(|| admin.address());
        if program.name == "dsync-ingest" {
            program
                .env
                .entry("LISTEN_ADDR".to_owned())
                .or_insert_with(|| listen.address());
        }
        let mut running = Running {
            program,
            process: None,
            admin,
            listen,
            log,
            dir,
        };
        running.start_again()?;
        Ok(running)
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.program.name
    }

    /// Its process id.
    pub fn pid(&self) -> Option<u32> {
        self.process.as_ref().map(Process::pid)
    }

    /// `http://127.0.0.1:<port>` of its admin address.
    pub fn admin_url(&self) -> String {
        format!("http://{}", self.admin.address())
    }

    /// `http://127.0.0.1:<port>`, where it receives webhooks.
    pub fn listen_url(&self) -> String {
        format!("http://{}", self.listen.address())
    }

    /// Starts it again with the same settings, after it ended or was killed.
    pub fn start_again(&mut self) -> anyhow::Result<()> {
        self.process = None;
        let watched = self.program.watched(Path::new("/dev/null"))?;
        self.process = Some(Process::start(
            &self.program.name,
            watched,
            &self.log,
            self.dir.path(),
        )?);
        Ok(())
    }

    /// Waits until `/readyz` answers 200. Fails at once if the program ends.
    pub async fn ready(&mut self) -> anyhow::Result<()> {
        let url = format!("{}/readyz", self.admin_url());
        let process = self.process.as_mut().context("the program is not running")?;
        let ready = process.comes_up(READY_WITHIN, async || {
            let answer = reqwest::get(&url).await;
            let answer = answer.context("no answer from the admin address")?;
            let status = answer.status();
            ensure!(
                status.is_success(),
                "{status}: {}",
                answer.text().await.unwrap_or_default()
            );
            Ok(())
        });
        ready.await.with_context(|| {
            format!(
                "{} is not ready. Its output:\n{}",
                self.program.name,
                self.tail(30)
            )
        })
    }

    /// The current status of `/readyz`.
    pub async fn readiness(&self) -> anyhow::Result<u16> {
        Ok(reqwest::get(format!("{}/readyz", self.admin_url()))
            .await?
            .status()
            .as_u16())
    }

    /// Its current metrics.
    pub async fn metrics(&self) -> anyhow::Result<Metrics> {
        let answer = reqwest::get(format!("{}/metrics", self.admin_url())).await?;
        Ok(Metrics::new(answer.error_for_status()?.text().await?))
    }

    /// Kills it with SIGKILL.
    pub fn kill(&mut self) {
        self.process = None;
    }

    /// Sends SIGTERM. Fails unless it drains and exits with 0.
    pub async fn terminate(&mut self) -> anyhow::Result<()> {
        let Some(mut process) = self.process.take() else {
            return Ok(());
        };
        let status = process.terminate(DRAINS_WITHIN).await?;
        ensure!(
            status.success(),
            "{} ended with {status} after SIGTERM:\n{}",
            self.program.name,
            self.tail(30)
        );
        Ok(())
    }

    /// Fails if it has ended by itself, with the end of its output.
    pub fn must_run(&mut self) -> anyhow::Result<()> {
        self.process
            .as_mut()
            .context("the program is not running")?
            .must_run()
    }

    /// Freezes it.
    pub fn pause(&mut self) -> anyhow::Result<()> {
        self.process
            .as_mut()
            .context("the program is not running")?
            .signal(Signal::STOP)
    }

    /// Undoes [`Running::pause`].
    pub fn resume(&mut self) -> anyhow::Result<()> {
        self.process
            .as_mut()
            .context("the program is not running")?
            .signal(Signal::CONT)
    }

    /// Waits for its end, at most `bound`.
    pub async fn exit(&mut self, bound: Duration) -> anyhow::Result<ExitStatus> {
        self.process
            .as_mut()
            .context("the program is not running")?
            .wait(bound)
            .await
    }

    /// Everything it has printed and logged so far, over all its starts.
    pub fn output(&self) -> String {
        String::from_utf8_lossy(&std::fs::read(&self.log).unwrap_or_default()).into_owned()
    }

    /// Fails if its output contains a secret from its settings, or one of `others`.
    pub fn keeps_secrets(&self, others: &[&str]) -> anyhow::Result<()> {
        let output = self.output();
        let mut secrets: Vec<String> = others.iter().map(ToString::to_string).collect();
        for name in SECRET_SETTINGS {
            secrets.extend(
                self.program
                    .env
                    .get(name)
                    .into_iter()
                    .flat_map(|value| secrets_in(value)),
            );
        }
        for (index, secret) in secrets.iter().enumerate() {
            let line = output.lines().position(|line| line.contains(secret.as_str()));
            ensure!(
                line.is_none(),
                "{} shows secret {index} in line {line:?} of its output",
                self.program.name
            );
        }
        Ok(())
    }

    /// The last lines of its output.
    pub fn tail(&self, lines: usize) -> String {
        let output = self.output();
        let all: Vec<&str> = output.lines().collect();
        all[all.len().saturating_sub(lines)..].join("\n")
    }

    /// A directory of its own, for files that it is to read.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }
}

/// Searches the output of every program in every test when it ends. It must not contain the program's secrets or
/// anybody's email address.
impl Drop for Running {
    fn drop(&mut self) {
        self.process = None;
        if !std::thread::panicking() {
            let leak = self.keeps_secrets(&[]).err().map(|error| error.to_string());
            let leak = leak.or_else(|| {
                address_in(&self.output()).map(|line| format!("an email address in line {line}"))
            });
            assert!(
                leak.is_none(),
                "{} leaks something private: {leak:?}",
                self.program.name
            );
        }
    }
}

/// The first line of a log that contains an email address, counted from 0.
fn address_in(log: &str) -> Option<usize> {
    let of_a_name = |c: char| c.is_ascii_alphanumeric();
    log.lines().position(|line| {
        line.match_indices('@').any(|(at, _)| {
            line[..at].ends_with(of_a_name)
                && line[at + 1..].starts_with(of_a_name)
                && line[at + 1..]
                    .split(['"', ' ', ',', ')'])
                    .next()
                    .is_some_and(|host| host.contains('.'))
        })
    })
}

/// The secrets in a setting: the password of a URL, otherwise each of its comma-separated parts.
fn secrets_in(value: &str) -> Vec<String> {
    if let Some((_, rest)) = value.split_once("://") {
        let login = rest.split_once('@').map(|(login, _)| login);
        return login
            .and_then(|login| login.split_once(':'))
            .map(|(_, password)| password.to_owned())
            .into_iter()
            .collect();
    }
    value
        .split(',')
        .map(str::trim)
        .filter(|part| !part.is_empty())
        .map(str::to_owned)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_leak_fails_the_test_that_leaked() {
        assert_eq!(address_in("fine\nuser a.b@example.com left"), Some(1));
        for fine in ["", "@", "a @ b.c", "rust@1", "at main.rs:1 @ 5"] {
            assert_eq!(address_in(fine), None, "{fine}");
        }
        // A program that prints the password it was given.
        let leaked = std::panic::catch_unwind(|| {
            let dir = tempfile::tempdir().unwrap();
            let log = dir.path().join("output.log");
            std::fs::write(&log, "cannot connect with pw-0123456789").unwrap();
            let program =
                Program::new("none").env("DATABASE_URL", "postgres://me:pw-0123456789@127.0.0.1:1/x");
            drop(Running {
                program,
                process: None,
                admin: Port::reserve().unwrap(),
                listen: Port::reserve().unwrap(),
                log,
                dir,
            });
        });
        assert!(leaked.is_err());
    }

    #[test]
    fn the_secret_of_a_url_is_its_password() {
        assert_eq!(secrets_in("postgres://me:pw@127.0.0.1:1/x"), ["pw"]);
        assert!(secrets_in("nats://127.0.0.1:4222").is_empty());
        assert_eq!(secrets_in("whsec_a, whsec_b"), ["whsec_a", "whsec_b"]);
    }
}
