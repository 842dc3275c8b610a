//! Keeps the log's stream as the settings say: sets it up at start, and again whenever the broker comes back or the
//! stream is lost.
//!
//! Nothing is appended until setup has succeeded once: a stream that happens to take our subjects may not be ours. Nor
//! after the stream was found to be one that would lose what it acknowledges, until it is set right: readiness, which asks
//! every few seconds, looks at its settings. No request waits for setup, and a failure does not end the program. If the
//! broker will not change the limits, that is logged and tried again every minute; until then the stream is used with the
//! limits it has.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use journal::{Ensured, Error, Fitness, Journal, Limits};
use schema::timestamp::Timestamp;
use service::readiness::Readiness;
use service::retry::Backoff;
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;

/// Longer than the journal's own timeout, because the journal's error says more.
const CHECK_WITHIN: Duration = Duration::from_secs(4);

/// How often to retry a change of settings that the broker did not make.
const KEPT: Duration = Duration::from_mins(1);

/// The state of the stream. Cheap to clone.
#[derive(Clone)]
pub struct Stream {
    journal: Journal,
    state: watch::Receiver<State>,
    doubt: Arc<Notify>,
    /// When the stream that was last checked had been created.
    created: Arc<Mutex<Option<Timestamp>>>,
}

#[derive(Clone)]
enum State {
    /// Not set up yet, or no longer, and why.
    Unseen(Arc<str>),
    Ready,
}

/// Why records cannot be appended now.
#[derive(Debug, thiserror::Error)]
pub enum NotReady {
    /// The stream is not set up yet, and why.
    #[error("the log's stream is not set up: {0}")]
    Unseen(Arc<str>),
    /// The stream was set up, but does not answer now.
    #[error(transparent)]
    Unanswered(#[from] Error),
}

impl Stream {
    /// Keeps the stream set up in the background, until `shutdown`.
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
            created: Arc::default(),
        }
    }

    /// Whether records may be appended.
    pub fn ready(&self) -> Result<(), NotReady> {
        match &*self.state.borrow() {
            State::Ready => Ok(()),
            State::Unseen(why) => Err(NotReady::Unseen(Arc::clone(why))),
        }
    }

    /// To be called when nothing answers for the stream, which may have been deleted, or when it takes too little. Does
    /// nothing until setup has succeeded.
    pub fn doubt(&self) {
        if self.ready().is_ok() {
            self.doubt.notify_one();
        }
    }

    /// Adds a readiness check: the stream was set up, and answers now.
    pub fn report_to(&self, readiness: &Readiness) {
        let stream = self.clone();
        readiness.check("log", CHECK_WITHIN, move || {
            let stream = stream.clone();
            async move { stream.check().await }
        });
    }

    async fn check(&self) -> Result<(), NotReady> {
        let answered = self.journal.fitness().await;
        // An instance that is not ready gets no webhooks, so no failing append would ever reveal the loss.
        if matches!(answered, Err(Error::NoStream)) {
            self.doubt();
        }
        if let Ok(fitness) = answered {
            self.compare(fitness);
        }
        self.ready()?;
        Ok(answered.map(|_| ())?)
    }

    /// Somebody may have edited our stream, or put another in its place, so that it takes our records but may lose them.
    fn compare(&self, Fitness { created, is_fit }: Fitness) {
        let mut last = self.created.lock().unwrap_or_else(PoisonError::into_inner);
        let is_other = last.replace(created).is_some_and(|previous| previous != created);
        if is_other || !is_fit {
            self.doubt();
        }
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
                                "the broker did not change the log's stream, which differs from the settings; using it as it is"
                            );
                            complaint = why;
                        }
                        KEPT
                    } else {
                        complaint.clear();
                        Duration::MAX
                    };
                    backoff.reset();
                    // The first connection is the one on which setup has just succeeded.
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
                    let is_unfit = matches!(error, Error::Unfit { .. });
                    self.state.send_if_modified(|state| match state {
                        // An answer that did not come says nothing about the stream.
                        State::Ready if !is_unfit => false,
                        State::Ready => {
                            *state = State::Unseen(why.as_str().into());
                            true
                        }
                        unseen @ State::Unseen(_) => {
                            *unseen = State::Unseen(why.as_str().into());
                            true
                        }
                    });
                    // There are many attempts; each reason is logged once.
                    if complaint != why {
                        tracing::warn!(error = %why, "the log's stream cannot be set up; trying again");
                        complaint = why;
                    }
                }
            }
            // Also after a success, because doubts come by the hundred.
            if !backoff.wait(&self.shutdown).await {
                return;
            }
        }
    }
}
