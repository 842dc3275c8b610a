//! Keeps the log's stream as the settings want it: at start, and again whenever the broker came back or lost it.
//!
//! Until that has worked once, nothing is appended: what is there might be another stream that happens to take our
//! subjects. No request waits for it, and no failure of it ends the program. Limits that the broker will not change are
//! told and tried again now and then: the stream serves with those it has.

use std::sync::Arc;
use std::time::Duration;

use journal::{Ensured, Error, Journal, Limits};
use service::readiness::Readiness;
use service::retry::Backoff;
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;

/// Longer than the journal's own time-out, whose error says more.
const CHECK_WITHIN: Duration = Duration::from_secs(4);

/// How often a change of settings that the broker would not make is tried again.
const KEPT: Duration = Duration::from_mins(1);

/// What is known about the stream. Cheap to clone.
#[derive(Clone)]
pub struct Stream {
    journal: Journal,
    state: watch::Receiver<State>,
    doubt: Arc<Notify>,
}

#[derive(Clone)]
enum State {
    /// Not seen to so far; what is in the way.
    Unseen(Arc<str>),
    Ready,
}

/// Why records cannot be appended now.
#[derive(Debug, thiserror::Error)]
pub enum NotReady {
    /// The stream was not seen to yet, and why.
    #[error("the log's stream is not set up: {0}")]
    Unseen(Arc<str>),
    /// It was, but does not answer now.
    #[error(transparent)]
    Unanswered(#[from] Error),
}

impl Stream {
    /// Sees to the stream in the background, until `shutdown`.
    pub fn keep(journal: Journal, limits: Limits, shutdown: CancellationToken) -> Self {
        let (sender, state) = watch::channel(State::Unseen("the broker has not answered yet".into()));
        let doubt = Arc::new(Notify::new());
        let keeper = Keeper {
            journal: journal.clone(),
            limits,
            state: sender,
            doubt: Arc::clone(&doubt),
            shutdown,
        };
        tokio::spawn(keeper.run());
        Self {
            journal,
            state,
            doubt,
        }
    }

    /// Whether records may be appended.
    pub fn ready(&self) -> Result<(), NotReady> {
        match &*self.state.borrow() {
            State::Ready => Ok(()),
            State::Unseen(why) => Err(NotReady::Unseen(Arc::clone(why))),
        }
    }

    /// To be called when nothing answers for the stream: it may have been deleted. Before it was set up that is no news.
    pub fn doubt(&self) {
        if self.ready().is_ok() {
            self.doubt.notify_one();
        }
    }

    /// Makes readiness ask whether the stream was set up and answers now.
    pub fn report_to(&self, readiness: &Readiness) {
        let stream = self.clone();
        readiness.check("log", CHECK_WITHIN, move || {
            let stream = stream.clone();
            async move { stream.check().await }
        });
    }

    async fn check(&self) -> Result<(), NotReady> {
        let answered = self.journal.ready().await;
        // Whoever is not ready gets no webhooks, so no failing append would ever tell.
        if matches!(answered, Err(Error::NoStream)) {
            self.doubt();
        }
        self.ready()?;
        Ok(answered?)
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
            let connected = *connections.borrow_and_update();
            match self.journal.ensure(&self.limits).await {
                Ok(ensured) => {
                    self.state.send_replace(State::Ready);
                    let again = if let Ensured::Kept { differing, why } = ensured {
                        if complaint != why {
                            tracing::warn!(
                                ?differing,
                                error = %why,
                                "the log's stream stays as it is, which is not as set; it is used all the same"
                            );
                            complaint = why;
                        }
                        KEPT
                    } else {
                        complaint.clear();
                        Duration::MAX
                    };
                    backoff.reset();
                    // The first connection is the one this was just done on.
                    if connected == 0 && *connections.borrow() == 1 {
                        connections.mark_unchanged();
                    }
                    tokio::select! {
                        () = self.shutdown.cancelled() => return,
                        _ = connections.changed() => {}
                        () = self.doubt.notified() => {}
                        () = tokio::time::sleep(again) => {}
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
