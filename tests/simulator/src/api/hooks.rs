//! Lets a test act at an exact point of a walk through the API: make changes between two pages, or hold an answer at a
//! gate until the test lets it pass. So tests can script races deterministically.

use tokio::sync::oneshot;

use super::call::Endpoint;
use crate::change::Change;

/// Before or after the read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Moment {
    /// The request has arrived; the world has not been read for it.
    Before,
    /// The world has been read; the answer has not left.
    #[default]
    After,
}

/// The request that triggers a hook.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trigger {
    /// The endpoint it is sent to.
    pub endpoint: Endpoint,
    /// Text in its path and query, as sent, not decoded. Empty text matches any request.
    pub containing: String,
    /// How many such requests to count from now on; 1 means the next one.
    pub nth: u32,
    /// Before or after the read.
    pub moment: Moment,
}

impl Trigger {
    /// After the world was read for the next request to `endpoint`.
    pub fn after(endpoint: Endpoint) -> Self {
        let (containing, nth, moment) = (String::new(), 1, Moment::After);
        Self {
            endpoint,
            containing,
            nth,
            moment,
        }
    }

    /// Before the world is read for the next request to `endpoint`.
    pub fn before(endpoint: Endpoint) -> Self {
        Self {
            moment: Moment::Before,
            ..Self::after(endpoint)
        }
    }

    /// Only requests with `text` in their path and query.
    #[must_use]
    pub fn containing(self, text: impl Into<String>) -> Self {
        Self {
            containing: text.into(),
            ..self
        }
    }

    /// The `nth` request instead of the next.
    #[must_use]
    pub fn nth(self, nth: u32) -> Self {
        Self { nth, ..self }
    }
}

/// Holds an answer until the test releases it. Dropping the gate lets the answer pass.
#[derive(Debug)]
pub struct Gate {
    pub(super) reached: oneshot::Receiver<()>,
    pub(super) release: Option<oneshot::Sender<()>>,
}

impl Gate {
    /// Waits until the request reaches the gate. Returns `false` if it never will, because the simulator has ended.
    pub async fn reached(&mut self) -> bool {
        (&mut self.reached).await.is_ok()
    }

    /// Lets the answer pass.
    pub fn release(mut self) {
        if let Some(release) = self.release.take() {
            // An error means that the client is gone.
            let _ = release.send(());
        }
    }
}

/// What happens when a trigger fires.
#[derive(Debug)]
pub(crate) enum Action {
    Apply(Vec<Change>),
    Hold {
        reached: oneshot::Sender<()>,
        release: oneshot::Receiver<()>,
    },
}

/// The hooks that have not fired yet.
#[derive(Debug, Default)]
pub(crate) struct Hooks {
    waiting: Vec<(Trigger, Action)>,
}

impl Hooks {
    pub(crate) fn add(&mut self, trigger: Trigger, action: Action) {
        self.waiting.push((trigger, action));
    }

    pub(crate) fn add_gate(&mut self, trigger: Trigger) -> Gate {
        let ((arrive, reached), (release, pass)) = (oneshot::channel(), oneshot::channel());
        self.add(
            trigger,
            Action::Hold {
                reached: arrive,
                release: pass,
            },
        );
        Gate {
            reached,
            release: Some(release),
        }
    }

    /// The number that have not fired.
    pub(crate) fn len(&self) -> usize {
        self.waiting.len()
    }

    /// Counts a request, and takes out the actions that it triggers, in the order in which they were added.
    pub(crate) fn fire(&mut self, endpoint: Endpoint, uri: &str, moment: Moment) -> Vec<Action> {
        for (trigger, _) in &mut self.waiting {
            let matches =
                trigger.endpoint == endpoint && trigger.moment == moment && uri.contains(&trigger.containing);
            if matches {
                trigger.nth = trigger.nth.saturating_sub(1);
            }
        }
        let fired = self.waiting.extract_if(.., |(trigger, _)| trigger.nth == 0);
        fired.map(|(_, action)| action).collect()
    }
}
