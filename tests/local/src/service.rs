//! One of the programs as a service, with ports of its own, and its output in a file that outlives it.
//!
//! Of this process's environment it sees only `PATH`. It ends when this process ends, however that happens.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use tests::{Metrics, Port, Process, Watched, eventually};

const READY_WITHIN: Duration = Duration::from_mins(1);

/// A setting's name and value.
pub(crate) type Setting = (&'static str, String);

/// The named settings, as far as they are set in this process's environment.
pub(crate) fn given(names: &[&'static str]) -> Vec<Setting> {
    let value = |name: &&'static str| Some((*name, std::env::var(name).ok()?));
    names.iter().filter_map(value).collect()
}

/// A running service; killed when dropped.
pub(crate) struct Service {
    name: String,
    process: Process,
    admin: Port,
}

/// Starts `program`, which is built beside this one, with its output in the file `<name>.log`.
pub(crate) fn launch(
    name: &str,
    program: &str,
    args: &[&str],
    settings: &[Setting],
    logs: &Path,
) -> anyhow::Result<Process> {
    let here = std::env::current_exe()?;
    let path = here
        .parent()
        .context("this program's path has no directory")?
        .join(program);
    ensure!(
        path.is_file(),
        "{} does not exist; ops/run builds it",
        path.display()
    );
    let mut watched = Watched::new(path, "/dev/null");
    let command = watched.command().args(args).env_clear();
    command.env("PATH", std::env::var_os("PATH").unwrap_or_default());
    command.envs(settings.iter().map(|(name, value)| (name, value)));
    let log = logs.join(format!("{name}.log"));
    // The program has no directory of its own to be deleted with it.
    Process::start(name, watched, &log, Path::new(""))
}

impl Service {
    /// Starts `program` as `name`, without waiting for it.
    pub(crate) fn start(
        name: &str,
        program: &str,
        settings: &[Setting],
        logs: &Path,
    ) -> anyhow::Result<Service> {
        let admin = Port::reserve()?;
        let mut settings = settings.to_vec();
        settings.push(("ADMIN_ADDR", admin.address()));
        Ok(Service {
            name: name.to_owned(),
            process: launch(name, program, &[], &settings, logs)?,
            admin,
        })
    }

    /// Its name in the output and in the name of its log file.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Its process id.
    pub(crate) fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// `http://127.0.0.1:<port>` of its admin address.
    pub(crate) fn admin_url(&self) -> String {
        format!("http://{}", self.admin.address())
    }

    /// Waits until it reports that it is ready. Fails at once if it ends.
    pub(crate) async fn ready(&mut self) -> anyhow::Result<()> {
        let url = format!("{}/readyz", self.admin_url());
        let process = &mut self.process;
        eventually(READY_WITHIN, async || {
            process.must_run()?;
            let answer = reqwest::get(&url)
                .await
                .context("no answer from its admin address")?;
            let status = answer.status();
            ensure!(
                status.is_success(),
                "{status}: {}",
                answer.text().await.unwrap_or_default()
            );
            Ok(())
        })
        .await
        .with_context(|| format!("{} is not ready", self.name))
    }

    /// Fails if it has ended, with the end of its output.
    pub(crate) fn must_run(&mut self) -> anyhow::Result<()> {
        self.process.must_run()
    }

    /// Whether it has ended.
    pub(crate) fn has_ended(&mut self) -> bool {
        self.process.exited().is_ok_and(|status| status.is_some())
    }

    /// Its current metrics.
    pub(crate) async fn metrics(&self) -> anyhow::Result<Metrics> {
        let answer = reqwest::get(format!("{}/metrics", self.admin_url())).await?;
        Ok(Metrics::new(answer.error_for_status()?.text().await?))
    }
}
