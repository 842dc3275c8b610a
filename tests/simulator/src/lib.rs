//! A simulated WorkOS Directory Sync, faithful down to its faults.
//!
//! A [`World`] contains directories with users, groups, memberships and roles. Every [`Change`] to it emits the events
//! that WorkOS would send. A [`Sim`] serves the world through WorkOS's state API and Events API, and delivers the
//! events as signed webhooks. Each of the three can be made to go wrong, on purpose and repeatably. [`Truth`] is what a
//! faithful consumer should show in the end.
//!
//! The simulator shares no type with the rest of the project, so that one mistake cannot hide in both. It never reads a
//! database or a log, and by default it listens on this machine only.
//!
//! ```no_run
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! use workos_sim::{DirectoryOptions, Faults, Options, Seed, Sim};
//!
//! let sim = Sim::start(Options::default()).await?;
//! let directory = sim.create_directory(DirectoryOptions::default())?;
//! sim.seed(&directory, &Seed { users: 200, groups: 10, ..Seed::default() })?;
//! let faults = Faults { doubled: 20, shuffled: 20, stale: 10, ..Faults::none() };
//! let delivery = sim.deliver_to("http://127.0.0.1:8080/webhooks/workos", "whsec_1", faults)?;
//! sim.burst(500)?;
//! delivery.drained().await;
//! let expected = sim.truth();
//! # let _ = expected;
//! # Ok(())
//! # }
//! ```

mod api;
mod change;
mod clock;
mod control;
mod delivery;
mod event;
mod history;
mod ids;
mod model;
mod options;
mod people;
mod render;
mod shared;
mod sign;
mod sim;
mod truth;
mod versioned;
mod world;

pub use api::{
    Endpoint, EventsOptions,
    faults::ApiFaults,
    hooks::{Gate, Moment, Trigger},
    limits::RateLimits,
    record::{Request, RequestCounts, peak},
};
pub use change::{Change, ChangeError, Outcome, Thing};
pub use clock::{Clock, Millis};
pub use delivery::{Acknowledged, Counts, Delivery, DeliveryOptions, Faults, From, Progress};
pub use event::Event;
pub use history::{Seed, Seeded};
pub use options::{Absent, DirectoryOptions, Owner, Previous, RoleShape, Shape, Timestamps};
pub use sign::sign;
pub use sim::{Options, Sim, StartError, Tuning};
pub use truth::{DirectoryRow, DirectoryTruth, GroupRow, Truth, UserRow};
pub use world::World;
