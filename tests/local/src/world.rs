//! The simulated WorkOS of a run: its directories, how they change, and which faults their webhooks suffer.

use std::time::Duration;

use workos_sim::{
    Absent, Change, Delivery, DeliveryOptions, DirectoryOptions, EventsOptions, Faults, Options, Owner,
    Previous, RoleShape, Seed, Shape, Sim, Tuning,
};

/// Signs the webhooks of the simulated WorkOS; used for nothing else.
pub(crate) const SECRET: &str = "whsec_simulated";

/// Changes that a burst makes at a time.
const SLICE: usize = 100;
/// Slices in a burst.
const SLICES: usize = 24;
/// A customer leaves before this slice.
const LEAVES: usize = 9;
/// The directory without an organization is linked to one before this slice.
const LINKED: usize = 15;

/// The simulator, and the delivery of its webhooks to dsync-ingest.
pub(crate) struct World {
    /// The simulated WorkOS.
    pub sim: Sim,
    /// The delivery of its webhooks.
    pub delivery: Delivery,
    leaving: String,
    unlinked: String,
}

/// The size of the first sync.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct Seeded {
    /// Directories.
    pub directories: usize,
    /// Users in all of them.
    pub users: usize,
    /// Groups in all of them.
    pub groups: usize,
}

/// A burst of changes in progress.
#[derive(Debug, Default)]
pub(crate) struct Burst {
    slices: usize,
}

/// A fifth are duplicated, a fifth are held back by seconds, and a tenth are delivered again long after newer ones.
fn faults(lost: u8) -> Faults {
    Faults {
        seed: 7,
        lost,
        doubled: 20,
        shuffled: 20,
        shuffle_within: Duration::from_secs(3),
        stale: 10,
        stale_after: Duration::from_secs(5),
        ..Faults::none()
    }
}

/// One directory of every shape, with its numbers of users and groups.
fn customers() -> [(DirectoryOptions, usize, usize); 5] {
    let named = |name: &str, options: DirectoryOptions| DirectoryOptions {
        name: Some(name.to_owned()),
        ..options
    };
    let unlinked = DirectoryOptions {
        owner: Owner::Nobody,
        kind: "generic scim v2.0".to_owned(),
        shape: Shape::Spec,
        absent: Absent::Missing,
        roles: RoleShape::RoleOnly,
        previous: Previous::Nowhere,
        ..DirectoryOptions::default()
    };
    [
        (named("Older environment", DirectoryOptions::default()), 1_000, 30),
        (named("Newer environment", DirectoryOptions::newer()), 900, 25),
        (named("Awkward environment", DirectoryOptions::awkward()), 400, 12),
        (named("Nobody's until linked", unlinked), 200, 8),
        (named("Leaving customer", DirectoryOptions::default()), 150, 6),
    ]
}

/// A simulator with nobody in it.
pub(crate) async fn simulator() -> anyhow::Result<Sim> {
    // Like the real one, the Events API shows an event only after some seconds.
    let events = EventsOptions {
        holdback: Duration::from_secs(2),
        ..EventsOptions::default()
    };
    let tuning = Tuning {
        events,
        ..Tuning::default()
    };
    Ok(Sim::start(Options {
        tuning,
        ..Options::default()
    })
    .await?)
}

impl World {
    /// Fills the simulator with directories, and starts delivering its webhooks to `url`.
    pub(crate) fn fill(sim: Sim, url: &str) -> anyhow::Result<(World, Seeded)> {
        let mut seeded = Seeded::default();
        let mut ids = Vec::new();
        for (options, users, groups) in customers() {
            let id = sim.create_directory(options)?;
            let seed = Seed {
                users,
                groups,
                ..Seed::default()
            };
            sim.seed(&id, &seed)?;
            seeded.directories += 1;
            seeded.users += users;
            seeded.groups += groups;
            ids.push(id);
        }
        let (leaving, unlinked) = (ids.pop().unwrap_or_default(), ids.pop().unwrap_or_default());
        let delivery = sim.deliver(DeliveryOptions {
            faults: faults(0),
            concurrency: 32,
            ..DeliveryOptions::new(url, SECRET)
        })?;
        let world = World {
            sim,
            delivery,
            leaving,
            unlinked,
        };
        Ok((world, seeded))
    }

    /// The number of events emitted so far.
    pub(crate) fn emitted(&self) -> usize {
        self.sim.world().events().len()
    }

    /// From now on some webhooks are lost, too, and the reconciler has to recover them.
    pub(crate) fn lose_webhooks(&self) {
        self.delivery.set_faults(faults(10));
    }

    /// A few random changes.
    pub(crate) fn trickle(&self) -> anyhow::Result<()> {
        self.sim.burst(3)?;
        Ok(())
    }
}

impl Burst {
    /// The number of changes that it makes in all.
    pub(crate) const CHANGES: usize = SLICE * SLICES + 2;

    /// Makes the next changes. Returns whether there are more to come.
    pub(crate) fn go_on(&mut self, world: &World) -> anyhow::Result<bool> {
        if self.slices == LEAVES {
            let directory = world.leaving.clone();
            world.sim.change(Change::DeleteDirectory { directory })?;
        }
        if self.slices == LINKED {
            let name = Some("Late".to_owned());
            let made = world.sim.change(Change::CreateOrganization { name })?;
            world.sim.change(Change::LinkDirectory {
                directory: world.unlinked.clone(),
                organization: made.created.unwrap_or_default(),
            })?;
        }
        world.sim.burst(SLICE)?;
        self.slices += 1;
        Ok(self.slices < SLICES)
    }
}
