//! One of our programs as a service: started with ports of its own and with its output in a file that outlives it.
//!
//! It sees nothing of this process's environment but the path, and it ends with this process, however that ends.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use tests::{Metrics, Port, Process, Watched, eventually};

const READY_WITHIN: Duration = Duration::from_mins(1);

/// A setting's name and value.
pub(crate) type Setting = (&'static str, String);

/// Those of the named settings that this process's own environment has.
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
        .context("a program without a directory")?
        .join(program);
    ensure!(
        path.is_file(),
        "{} is not built: ops/run builds it",
        path.display()
    );
    let mut watched = Watched::new(path, "/dev/null");
    let command = watched.command().args(args).env_clear();
    command.env("PATH", std::env::var_os("PATH").unwrap_or_default());
    command.envs(settings.iter().map(|(name, value)| (name, value)));
    let log = logs.join(format!("{name}.log"));
    // It has no directory of its own that would have to go with it.
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

    /// What it is called here.
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

    /// Waits until it says it is ready. Fails at once when it ends.
    pub(crate) async fn ready(&mut self) -> anyhow::Result<()> {
        let url = format!("{}/readyz", self.admin_url());
        let process = &mut self.process;
        eventually(READY_WITHIN, async || {
            process.must_run()?;
            let answer = reqwest::get(&url)
                .await
                .context("nothing answers at its admin address")?;
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

    /// Fails when it has ended, with its last words.
    pub(crate) fn must_run(&mut self) -> anyhow::Result<()> {
        self.process.must_run()
    }

    /// Whether it has ended.
    pub(crate) fn has_ended(&mut self) -> bool {
        self.process.exited().is_ok_and(|status| status.is_some())
    }

    /// Its metrics now.
    pub(crate) async fn metrics(&self) -> anyhow::Result<Metrics> {
        let answer = reqwest::get(format!("{}/metrics", self.admin_url())).await?;
        Ok(Metrics::new(answer.error_for_status()?.text().await?))
    }
}
