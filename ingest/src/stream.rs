//! Keeps the log's stream as the settings want it: at start, and again whenever the broker came back or lost it.
//!
//! Until that has worked once, nothing is appended: what is there might be another stream that happens to take our
//! subjects. No request waits for it, and no failure of it ends the program.

use std::sync::Arc;
use std::time::Duration;

use journal::{Journal, Limits};
use service::retry::Backoff;
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;

/// What is known about the stream. Cheap to clone.
#[derive(Clone)]
pub struct Stream {
    state: watch::Receiver<State>,
    doubt: Arc<Notify>,
}

#[derive(Clone)]
enum State {
    /// Not seen to so far; what is in the way.
    Unseen(Arc<str>),
    Ready,
}

/// The stream was not seen to yet, and why.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the log's stream is not set up: {0}")]
pub struct NotReady(Arc<str>);

impl Stream {
    /// Sees to the stream in the background, until `shutdown`.
    pub fn keep(journal: Journal, limits: Limits, shutdown: CancellationToken) -> Self {
        let (sender, state) = watch::channel(State::Unseen("not tried yet".into()));
        let doubt = Arc::new(Notify::new());
        let keeper = Keeper {
            journal,
            limits,
            state: sender,
            doubt: Arc::clone(&doubt),
            shutdown,
        };
        tokio::spawn(keeper.run());
        Self { state, doubt }
    }

    /// Whether records may be appended.
    pub fn ready(&self) -> Result<(), NotReady> {
        match &*self.state.borrow() {
            State::Ready => Ok(()),
            State::Unseen(why) => Err(NotReady(Arc::clone(why))),
        }
    }

    /// To be called when nothing answers for the stream: it may have been deleted.
    pub fn doubt(&self) {
        self.doubt.notify_one();
    }
}

struct Keeper {
    journal: Journal,
    limits: Limits,
    state: watch::Sender<State>,
    doubt: Arc<Notify>,
    shutdown: CancellationToken,
}

impl Keeper {
    async fn run(self) {
        let mut connections = self.journal.connections();
        let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(5));
        let mut complaint = String::new();
        loop {
            connections.mark_unchanged();
            match self.journal.ensure(&self.limits).await {
                Ok(_) => {
                    self.state.send_replace(State::Ready);
                    complaint.clear();
                    backoff.reset();
                    tokio::select! {
                        () = self.shutdown.cancelled() => return,
                        _ = connections.changed() => {}
                        () = self.doubt.notified() => {}
                    }
                }
                Err(error) => {
                    let why = error.to_string();
                    self.state.send_if_modified(|state| match state {
                        State::Ready => false,
                        unseen @ State::Unseen(_) => {
                            *unseen = State::Unseen(why.as_str().into());
                            true
                        }
                    });
                    // Attempts are many, their reason is one.
                    if complaint != why {
                        tracing::warn!(error = %why, "the log's stream cannot be set up; trying again");
                        complaint = why;
                    }
                }
            }
            // Also after a success: doubts come by the hundred.
            if !backoff.wait(&self.shutdown).await {
                return;
            }
        }
    }
}
