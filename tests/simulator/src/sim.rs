//! The simulator as a whole: the world, its HTTP API on a local port, and the methods with which a test uses both.

use std::{
    net::SocketAddr,
    sync::{Arc, MutexGuard},
};

use axum::{Router, routing::any};
use tokio::{net::TcpListener, task::AbortHandle};

use crate::{
    api::{
        self, EventsOptions,
        faults::ApiFaults,
        hooks::{Action, Gate, Trigger},
        limits::RateLimits,
        record::{Request, RequestCounts},
    },
    change::{Change, ChangeError, Outcome},
    clock::{Clock, Millis},
    control,
    delivery::{Delivery, DeliveryOptions, Faults},
    event::Event,
    history::{Seed, Seeded},
    options::DirectoryOptions,
    shared::Shared,
    truth::Truth,
    world::World,
};

/// How a simulator starts.
#[derive(Clone, Debug)]
pub struct Options {
    /// The clock it runs by.
    pub clock: Clock,
    /// The seed of its random choices.
    pub seed: u64,
    /// Where the API listens; port 0 picks a free one.
    pub listen: SocketAddr,
    /// The API key that clients must send.
    pub api_key: String,
    /// Limits, faults and the behaviour of the Events API; may be changed later.
    pub tuning: Tuning,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            clock: Clock::system(),
            seed: 1,
            listen: SocketAddr::from(([127, 0, 0, 1], 0)),
            api_key: "sk_test_simulated".to_owned(),
            tuning: Tuning::default(),
        }
    }
}

impl Options {
    /// The default options, with a clock that stays at `at` until the test moves it.
    pub fn at(at: Millis) -> Self {
        Self {
            clock: Clock::fixed(at),
            ..Self::default()
        }
    }
}

/// The settings that may be changed while the simulator runs.
#[derive(Clone, Debug, Default)]
pub struct Tuning {
    /// Rate limits of the API.
    pub limits: RateLimits,
    /// Faults of the API.
    pub faults: ApiFaults,
    /// The behaviour of the Events API.
    pub events: EventsOptions,
}

/// Why a simulator did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The address is in use, or not one of this machine's.
    #[error("cannot listen on {address}")]
    Listen {
        /// Where it should have listened.
        address: SocketAddr,
        /// The cause.
        source: std::io::Error,
    },
}

/// A running simulator. Clones share it; its API stops when the last one is dropped.
#[derive(Clone, Debug)]
pub struct Sim {
    shared: Arc<Shared>,
    server: Arc<Server>,
}

#[derive(Debug)]
struct Server {
    address: SocketAddr,
    task: AbortHandle,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Sim {
    /// Starts the API and an empty world.
    pub async fn start(options: Options) -> Result<Self, StartError> {
        let shared = Arc::new(Shared::new(&options));
        let refused = |source| StartError::Listen {
            address: options.listen,
            source,
        };
        let listener = TcpListener::bind(options.listen).await.map_err(refused)?;
        let address = listener.local_addr().map_err(refused)?;
        let router = Router::new()
            .nest("/_sim", control::routes())
            .fallback(any(api::handle))
            .with_state(shared.clone());
        let task = tokio::spawn(async move {
            // It ends only when aborted, because it handles errors of single connections itself.
            let _ = axum::serve(listener, router).await;
        });
        let server = Arc::new(Server {
            address,
            task: task.abort_handle(),
        });
        Ok(Self { shared, server })
    }

    /// `http://127.0.0.1:…`, without a trailing slash.
    pub fn url(&self) -> String {
        format!("http://{}", self.server.address)
    }

    /// The API key that clients must send.
    pub fn api_key(&self) -> &str {
        &self.shared.api_key
    }

    /// The clock that the simulator runs by.
    pub fn clock(&self) -> &Clock {
        &self.shared.clock
    }

    /// The world itself, locked. Do not hold the guard across an await.
    pub fn world(&self) -> MutexGuard<'_, World> {
        self.shared.world()
    }

    /// Makes one change.
    pub fn change(&self, change: Change) -> Result<Outcome, ChangeError> {
        self.world().apply(change)
    }

    /// Creates a directory and returns its id.
    pub fn create_directory(&self, options: DirectoryOptions) -> Result<String, ChangeError> {
        self.world().create_directory(options)
    }

    /// Creates a user with made-up attributes and returns its id.
    pub fn create_user(&self, directory: &str) -> Result<String, ChangeError> {
        self.world().create_user(directory, &serde_json::Map::new())
    }

    /// Creates a group and returns its id.
    pub fn create_group(&self, directory: &str, name: &str) -> Result<String, ChangeError> {
        self.world().create_group(directory, Some(name.to_owned()), None)
    }

    /// Adds a user to a group.
    pub fn add_member(&self, group: &str, user: &str) -> Result<(), ChangeError> {
        self.world().add_member(group, user)
    }

    /// Removes a user from a group.
    pub fn remove_member(&self, group: &str, user: &str) -> Result<(), ChangeError> {
        self.world().remove_member(group, user)
    }

    /// Fills a directory as its first sync would.
    pub fn seed(&self, directory: &str, seed: &Seed) -> Result<Seeded, ChangeError> {
        self.world().seed(directory, seed)
    }

    /// Makes `count` random changes, spread over all live directories. Returns how many events they emitted.
    pub fn burst(&self, count: usize) -> Result<usize, ChangeError> {
        let mut world = self.world();
        let before = world.events().len();
        world.burst(&[], count)?;
        Ok(world.events().len() - before)
    }

    /// What a faithful consumer should show.
    pub fn truth(&self) -> Truth {
        self.world().truth()
    }

    /// Every event so far, in the order of emission.
    pub fn events(&self) -> Vec<Event> {
        self.world().events().to_vec()
    }

    /// Delivers every event, past and future, to `url`.
    pub fn deliver_to(
        &self,
        url: impl Into<String>,
        secret: impl Into<String>,
        faults: Faults,
    ) -> Result<Delivery, reqwest::Error> {
        self.deliver(DeliveryOptions {
            faults,
            ..DeliveryOptions::new(url, secret)
        })
    }

    /// Delivers events as `options` specify.
    pub fn deliver(&self, options: DeliveryOptions) -> Result<Delivery, reqwest::Error> {
        Delivery::start(self.shared.clone(), options)
    }

    /// Changes limits, API faults or the behaviour of the Events API.
    pub fn tune(&self, change: impl FnOnce(&mut Tuning)) {
        change(&mut self.shared.tuning());
    }

    /// Makes `changes` when a request matches the trigger.
    pub fn script(&self, trigger: Trigger, changes: Vec<Change>) {
        self.shared.lock_hooks().add(trigger, Action::Apply(changes));
    }

    /// Holds the request that matches the trigger until the test releases it.
    pub fn gate(&self, trigger: Trigger) -> Gate {
        self.shared.lock_hooks().add_gate(trigger)
    }

    /// The number of scripts and gates not yet reached. If any are left, a scripted race did not take place.
    pub fn unfired(&self) -> usize {
        self.shared.lock_hooks().len()
    }

    /// The errors of scripted changes that could not be made; none if everything went as planned.
    pub fn script_errors(&self) -> Vec<ChangeError> {
        self.shared.script_errors().clone()
    }

    /// Every request to the API since the start or since [`Sim::take_requests`], oldest first.
    pub fn requests(&self) -> Vec<Request> {
        self.shared.lock_record().requests().to_vec()
    }

    /// Returns the same requests, and forgets them.
    pub fn take_requests(&self) -> Vec<Request> {
        self.shared.lock_record().take()
    }

    /// The number of requests by endpoint and status.
    pub fn request_counts(&self) -> RequestCounts {
        self.shared.lock_record().counts()
    }
}
