//! A child process that cannot outlive the test: it is killed when dropped, or by a watchdog if the test process dies.

use std::fs::File;
use std::io::Write as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, ExitStatus};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
pub use rustix::process::Signal;
use rustix::process::{Pid, kill_process};

use crate::eventually::eventually;
use crate::usage::after_the_name;
use crate::watchdog::{Watchdog, Watched};

/// How long a process may take to stop after SIGSTOP. A process that is waiting for the disk finishes that first.
const STOPS_WITHIN: Duration = Duration::from_secs(10);

/// A running child process; its output goes to a file.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    watchdog: Watchdog,
    log: PathBuf,
    /// Set once the process was waited for. From then on, its process id may be reused.
    exited: Option<ExitStatus>,
}

impl Process {
    /// Starts a command, with its output appended to the file `log`. `scratch` is removed if the test process dies.
    pub fn start(name: &str, mut watched: Watched, log: &Path, scratch: &Path) -> anyhow::Result<Process> {
        let out = File::options()
            .create(true)
            .append(true)
            .open(log)
            .context("cannot open the log file")?;
        // In its own process group, so that Ctrl-C in a terminal reaches only the test, which then stops its servers in
        // order.
        watched
            .command()
            .stdout(out.try_clone()?)
            .stderr(out)
            .process_group(0);
        let (child, watchdog) =
            Watchdog::start(watched, Some(scratch)).with_context(|| format!("cannot start {name}"))?;
        Ok(Process::new(name, child, watchdog, log))
    }

    /// Takes over a child that was started under a watchdog and writes to the file `log`.
    pub(crate) fn new(name: &str, child: Child, watchdog: Watchdog, log: &Path) -> Process {
        Process {
            name: name.to_owned(),
            child,
            watchdog,
            log: log.to_owned(),
            exited: None,
        }
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Sends a signal, unless the process has ended.
    pub fn signal(&mut self, signal: Signal) -> anyhow::Result<()> {
        if self.exited()?.is_none() {
            signal_pid(self.pid(), signal)?;
        }
        Ok(())
    }

    /// How it ended, if it has.
    pub fn exited(&mut self) -> anyhow::Result<Option<ExitStatus>> {
        if self.exited.is_none() {
            self.exited = self.child.try_wait()?;
            if self.exited.is_some() {
                self.watchdog.call_off();
            }
        }
        Ok(self.exited)
    }

    /// Waits for its end, at most `bound`.
    pub async fn wait(&mut self, bound: Duration) -> anyhow::Result<ExitStatus> {
        let start = Instant::now();
        loop {
            if let Some(status) = self.exited()? {
                return Ok(status);
            }
            if start.elapsed() > bound {
                bail!(
                    "{} still runs after {bound:?}. The end of its output:\n{}",
                    self.name,
                    self.tail(30)
                );
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Sends SIGTERM and waits for its end.
    pub async fn terminate(&mut self, bound: Duration) -> anyhow::Result<ExitStatus> {
        self.signal(Signal::TERM)?;
        self.wait(bound).await
    }

    /// Sends SIGKILL and waits for its end.
    pub fn kill(&mut self) {
        if self.exited.is_none() {
            // Fails only if it has ended by itself.
            self.child.kill().ok();
            self.watchdog.call_off();
            self.exited = self.child.wait().ok();
        }
    }

    /// Fails if it has ended, with the end of its output.
    pub fn must_run(&mut self) -> anyhow::Result<()> {
        match self.exited()? {
            None => Ok(()),
            Some(status) => bail!(
                "{} ended ({status}). The end of its output:\n{}",
                self.name,
                self.tail(30)
            ),
        }
    }

    /// Repeats `attempt` until it succeeds, for at most `bound`. Fails at once if the process ends.
    pub(crate) async fn comes_up(
        &mut self,
        bound: Duration,
        mut attempt: impl AsyncFnMut() -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        let up = eventually(bound, async || match self.must_run() {
            Ok(()) => attempt().await.map(Ok),
            Err(ended) => Ok(Err(ended)),
        });
        up.await?
    }

    /// The last lines of its output.
    pub fn tail(&self, lines: usize) -> String {
        let text = std::fs::read(&self.log).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let all: Vec<&str> = text.lines().collect();
        all[all.len().saturating_sub(lines)..].join("\n")
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // A test that fails by returning an error does not panic. Under nextest, print the output in any case: nextest
        // shows it only for tests that failed.
        let heard = std::thread::panicking() || std::env::var_os("NEXTEST").is_some();
        if heard && !self.tail(1).is_empty() {
            // Standard error may be closed. A second panic would abort the process and skip the rest of the cleanup.
            let words = format!("--- end of the output of {}\n{}\n---\n", self.name, self.tail(30));
            std::io::stderr().write_all(words.as_bytes()).ok();
        }
        self.kill();
    }
}

/// Sends a signal to a process. After SIGSTOP, waits until the process has stopped: its threads would otherwise run on
/// for a moment, long enough to answer the next request.
pub(crate) fn signal_pid(pid: u32, signal: Signal) -> anyhow::Result<()> {
    let id = i32::try_from(pid)
        .ok()
        .and_then(Pid::from_raw)
        .context("not a process id")?;
    kill_process(id, signal).context("cannot signal a process")?;
    let began = Instant::now();
    while signal == Signal::STOP && !has_stopped(pid) {
        ensure!(
            began.elapsed() < STOPS_WITHIN,
            "a process still runs after SIGSTOP"
        );
        std::thread::yield_now();
    }
    Ok(())
}

/// Whether no thread of the process runs any more, because it is stopped or gone.
fn has_stopped(pid: u32) -> bool {
    let Ok(threads) = std::fs::read_dir(format!("/proc/{pid}/task")) else {
        return true;
    };
    threads.flatten().all(|thread| {
        let id = thread.file_name().to_str().and_then(|name| name.parse().ok());
        // A thread may end at any time, and then has no state.
        let state = id.and_then(|id| after_the_name(id).ok());
        state.is_none_or(|state| state.starts_with(['T', 't', 'Z', 'X']))
    })
}
