//! The simulated WorkOS of a run: small directories that change all the time, and a canary by which recovery is
//! measured.

use std::time::Duration;

use rand::prelude::*;
use serde_json::json;
use tokio::task::AbortHandle;
use workos_sim::{
    Change, Delivery, DeliveryOptions, DirectoryOptions, EventsOptions, Faults, Options, Seed, Sim, Tuning,
};

pub(crate) const SECRET: &str = "whsec_of_the_soak_0123456789";
/// The pause between changes.
const PACE: Duration = Duration::from_millis(100);
/// One in this many changes deletes a directory and creates another.
const DEPARTURES: u32 = 600;
/// The initial contents of a directory.
const SEED: Seed = Seed {
    users: 12,
    groups: 4,
    groups_per_user: 2,
    with_roles: true,
};

/// The simulated WorkOS. One of its users is the canary.
pub(crate) struct World {
    pub(crate) sim: Sim,
    canary: String,
    sung: u64,
}

/// Ongoing changes. They stop when this is dropped.
pub(crate) struct Traffic(AbortHandle);

impl Drop for Traffic {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl World {
    pub(crate) async fn new(seed: u64) -> anyhow::Result<World> {
        let events = EventsOptions {
            holdback: Duration::from_secs(1),
            ..EventsOptions::default()
        };
        let tuning = Tuning {
            events,
            ..Tuning::default()
        };
        let sim = Sim::start(Options {
            seed,
            tuning,
            ..Options::default()
        })
        .await?;
        let directory = sim.create_directory(DirectoryOptions::default())?;
        let canary = sim.create_user(&directory)?;
        Ok(World { sim, canary, sung: 0 })
    }

    /// Starts delivering to `url` as WorkOS does: with retries, some twice, some late, some out of order. Pauses
    /// between retries are at most a second, so that recovery times measure dsync and not WorkOS's back-off.
    pub(crate) fn deliver(&self, url: String, seed: u64, lost: u8) -> anyhow::Result<Delivery> {
        let faults = Faults {
            seed,
            lost,
            doubled: 15,
            shuffled: 15,
            shuffle_within: Duration::from_secs(1),
            stale: 10,
            stale_after: Duration::from_secs(3),
            ..Faults::default()
        };
        Ok(self.sim.deliver(DeliveryOptions {
            faults,
            backoff: Duration::from_millis(50),
            backoff_max: Duration::from_secs(1),
            timeout: Duration::from_secs(5),
            concurrency: 16,
            ..DeliveryOptions::new(url, SECRET)
        })?)
    }

    /// Makes changes until the result is dropped.
    pub(crate) fn traffic(&self, seed: u64) -> anyhow::Result<Traffic> {
        let sim = self.sim.clone();
        let mut rng = StdRng::seed_from_u64(seed);
        let shapes = [
            DirectoryOptions::default(),
            DirectoryOptions::newer(),
            DirectoryOptions::awkward(),
        ];
        let mut directories = Vec::new();
        for shape in &shapes {
            directories.push(a_directory(&sim, shape)?);
        }
        let task = tokio::spawn(async move {
            let mut pace = tokio::time::interval(PACE);
            loop {
                pace.tick().await;
                if rng.random_ratio(1, DEPARTURES) {
                    let leaves = rng.random_range(0..directories.len());
                    let directory = directories[leaves].clone();
                    sim.change(Change::DeleteDirectory { directory })?;
                    directories[leaves] = a_directory(&sim, &shapes[leaves])?;
                }
                sim.world().burst(&directories, 1)?;
            }
            #[expect(unreachable_code, reason = "gives the task its error type")]
            Ok::<(), workos_sim::ChangeError>(())
        });
        Ok(Traffic(task.abort_handle()))
    }

    /// Changes the canary. Returns the number that it shows from now on, which only grows.
    pub(crate) fn sing(&mut self) -> anyhow::Result<u64> {
        self.sung += 1;
        let set = Change::fields(json!({ "job_title": self.sung.to_string() }));
        let user = self.canary.clone();
        self.sim.change(Change::UpdateUser { user, set })?;
        Ok(self.sung)
    }

    /// The canary's user id.
    pub(crate) fn canary(&self) -> &str {
        &self.canary
    }
}

fn a_directory(sim: &Sim, shape: &DirectoryOptions) -> Result<String, workos_sim::ChangeError> {
    let directory = sim.create_directory(shape.clone())?;
    sim.seed(&directory, &SEED)?;
    Ok(directory)
}
