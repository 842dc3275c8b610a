//! Things a test makes happen at an exact point of a walk through the API: changes between two pages, or a gate at
//! which an answer waits until the test lets it pass. That scripts races without a race.

use tokio::sync::oneshot;

use super::call::Endpoint;
use crate::change::Change;

/// On which side of the reading.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Moment {
    /// The request has arrived; the world has not been read for it.
    Before,
    /// The world has been read; the answer has not left.
    #[default]
    After,
}

/// Which request sets something off.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trigger {
    /// To this endpoint …
    pub endpoint: Endpoint,
    /// … with this text in its path and query (as sent, not decoded); empty: any …
    pub containing: String,
    /// … the how manieth such request from now on; 1 is the next one.
    pub nth: u32,
    /// Before or after the reading.
    pub moment: Moment,
}

impl Trigger {
    /// After the next request to `endpoint` was read.
    pub fn after(endpoint: Endpoint) -> Self {
        let (containing, nth, moment) = (String::new(), 1, Moment::After);
        Self {
            endpoint,
            containing,
            nth,
            moment,
        }
    }

    /// Before the next request to `endpoint` is read.
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

    /// Not the next but the `nth` one.
    #[must_use]
    pub fn nth(self, nth: u32) -> Self {
        Self { nth, ..self }
    }
}

/// An answer that waits for the test. Dropping it lets the answer pass.
#[derive(Debug)]
pub struct Gate {
    pub(super) reached: oneshot::Receiver<()>,
    pub(super) release: Option<oneshot::Sender<()>>,
}

impl Gate {
    /// Waits until the request has come to the gate. `false`: it never will, the simulator has ended.
    pub async fn reached(&mut self) -> bool {
        (&mut self.reached).await.is_ok()
    }

    /// Lets the answer pass.
    pub fn release(mut self) {
        if let Some(release) = self.release.take() {
            // An error means that the client has gone meanwhile.
            let _ = release.send(());
        }
    }
}

/// What a trigger sets off.
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

    /// How many have not fired.
    pub(crate) fn len(&self) -> usize {
        self.waiting.len()
    }

    /// Counts a request, and takes out what it sets off, in the order it was added.
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
