//! Orderly shutdown by signals: the first starts a drain, the second aborts.

use std::io;
use std::process;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// Listens for SIGTERM and SIGINT from now on.
pub(crate) struct Signals {
    term: Signal,
    int: Signal,
}

impl Signals {
    /// An error when the process cannot listen for signals. Must be called within a runtime.
    pub(crate) fn listen() -> io::Result<Self> {
        Ok(Self {
            term: signal(SignalKind::terminate())?,
            int: signal(SignalKind::interrupt())?,
        })
    }

    /// Waits for the next signal. Returns its exit code by the shell's convention: 128 + the signal's number.
    async fn next(&mut self) -> i32 {
        tokio::select! {
            _ = self.term.recv() => 128 + SignalKind::terminate().as_raw_value(),
            _ = self.int.recv() => 128 + SignalKind::interrupt().as_raw_value(),
        }
    }

    /// Cancels `shutdown` at the first signal. At the second, ends the process at once with a non-zero code.
    pub(crate) async fn govern(mut self, shutdown: CancellationToken) {
        self.next().await;
        tracing::info!("stopping: finishing work in progress; a second signal stops at once");
        shutdown.cancel();
        let code = self.next().await;
        tracing::warn!("stopped at once by a second signal");
        process::exit(code);
    }
}
