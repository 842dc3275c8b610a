//! One of the programs, found beside the test's own build, and its settings.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::Path;
use std::process::ExitStatus;
use std::time::Duration;

use anyhow::ensure;

use crate::process::Process;
use crate::running::Running;
use crate::template::build_dir;
use crate::watchdog::{Watchdog, Watched};

/// The time limit for programs that run to their end, such as subcommands.
const ENDS_WITHIN: Duration = Duration::from_mins(2);

/// A program and its settings. Of the test's own environment it gets only `PATH`.
#[derive(Debug, Clone)]
pub struct Program {
    pub(crate) name: String,
    args: Vec<String>,
    pub(crate) env: BTreeMap<String, String>,
}

/// The result of a program that ran to its end.
#[derive(Debug)]
pub struct Output {
    /// How it ended.
    pub status: ExitStatus,
    /// Its standard output.
    pub stdout: String,
    /// Its standard error, logs included.
    pub stderr: String,
}

impl Program {
    /// The program of the workspace with this name, such as `dsync-ingest`.
    pub fn new(name: &str) -> Program {
        Program {
            name: name.to_owned(),
            args: Vec::new(),
            env: BTreeMap::new(),
        }
    }

    /// Adds a setting.
    #[must_use]
    pub fn env(mut self, name: &str, value: impl Into<String>) -> Program {
        self.env.insert(name.to_owned(), value.into());
        self
    }

    /// Adds an argument.
    #[must_use]
    pub fn arg(mut self, arg: impl Into<String>) -> Program {
        self.args.push(arg.into());
        self
    }

    /// Runs it to its end.
    pub async fn run(&self) -> anyhow::Result<Output> {
        self.run_with_input(Vec::new()).await
    }

    /// Runs it to its end with `input` on its standard input.
    pub async fn run_with_input(&self, input: Vec<u8>) -> anyhow::Result<Output> {
        let dir = tempfile::Builder::new().prefix("dsync-program-").tempdir()?;
        let file = |name| dir.path().join(name);
        std::fs::write(file("input"), input)?;
        let mut watched = self.watched(&file("input"))?;
        watched
            .command()
            .stdout(File::create(file("stdout"))?)
            .stderr(File::create(file("stderr"))?);
        let (child, watchdog) = Watchdog::start(watched, Some(dir.path()))?;
        let mut process = Process::new(&self.name, child, watchdog, &file("stderr"));
        let status = process.wait(ENDS_WITHIN).await?;
        let read =
            |name| Ok::<_, std::io::Error>(String::from_utf8_lossy(&std::fs::read(file(name))?).into_owned());
        Ok(Output {
            status,
            stdout: read("stdout")?,
            stderr: read("stderr")?,
        })
    }

    /// Starts it with ports of its own for `ADMIN_ADDR` and `LISTEN_ADDR`, without waiting.
    pub fn spawn(self) -> anyhow::Result<Running> {
        Running::spawn(self)
    }

    /// Starts it and waits until it is ready.
    pub async fn start(self) -> anyhow::Result<Running> {
        let mut running = self.spawn()?;
        running.ready().await?;
        Ok(running)
    }

    /// The command that runs it with the file `input` as its standard input.
    pub(crate) fn watched(&self, input: &Path) -> anyhow::Result<Watched> {
        let path = build_dir()?.join(&self.name);
        ensure!(
            path.is_file(),
            "{} does not exist; run `cargo build --workspace --bins` first",
            path.display()
        );
        let mut watched = Watched::new(path, input);
        let command = watched.command().args(&self.args).env_clear();
        command.env("PATH", std::env::var_os("PATH").unwrap_or_default());
        command.env("RUST_BACKTRACE", "1").envs(&self.env);
        Ok(watched)
    }
}
