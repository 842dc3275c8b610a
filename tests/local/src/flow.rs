//! Follows events on their way: emitted, delivered as webhooks, stored in the log, applied to the tables.
//!
//! It waits for as long as anything moves, and no longer.

use std::fmt;
use std::time::{Duration, Instant};

use anyhow::bail;
use tokio::time::MissedTickBehavior;
use workos_sim::Counts;

use crate::programs::Programs;
use crate::screen::Screen;
use crate::servers::{Position, Servers};
use crate::summary::count;
use crate::world::World;

/// The polling interval.
const LOOK: Duration = Duration::from_millis(100);
/// If nothing has moved for this long, nothing will.
const STALLED: Duration = Duration::from_mins(1);

/// Everything that runs.
pub(crate) struct Stage {
    /// The programs; dropped first.
    pub programs: Programs,
    /// The simulated WorkOS.
    pub world: World,
    /// The servers.
    pub servers: Servers,
    /// The reading at the end of the previous phase.
    before: Reading,
}

/// Counts of webhooks, and of the faults injected into them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Came {
    /// Events emitted.
    pub events: u64,
    /// Webhooks sent, retries after a failure included.
    pub webhooks: u64,
    /// Events sent twice.
    pub doubled: u64,
    /// Events held back by up to three seconds, so that later ones overtake them.
    pub shuffled: u64,
    /// Events sent once more, much later.
    pub stale: u64,
    /// Events never sent.
    pub lost: u64,
}

/// How far everything has come, counted from the start of the run.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Reading {
    came: Came,
    delivered: u64,
    position: Position,
    /// Whether delivery has taken up every event so far and no webhook is pending.
    idle: bool,
}

impl Stage {
    /// The stage before anything has happened.
    pub(crate) fn new(programs: Programs, world: World, servers: Servers) -> Stage {
        Stage {
            programs,
            world,
            servers,
            before: Reading::default(),
        }
    }

    /// Calls `emit` to make changes until it returns false, and shows progress until all of them have arrived. Returns
    /// what came since the previous phase. Fails if a program ends, or if nothing moves for [`STALLED`].
    pub(crate) async fn follow(
        &mut self,
        screen: &Screen,
        mut emit: impl FnMut(&World) -> anyhow::Result<bool>,
    ) -> anyhow::Result<Came> {
        let bars = ["delivered", "stored", "applied"].map(|label| screen.bar(label));
        let mut ticks = tokio::time::interval(LOOK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut more = true;
        let (mut last, mut moved) = (self.before.clone(), Instant::now());
        loop {
            ticks.tick().await;
            more = more && emit(&self.world)?;
            self.programs.must_run()?;
            let now = self.read().await?;
            let (came, before) = (now.came.since(&self.before.came), &self.before);
            bars[0].show(now.delivered - before.delivered, came.deliveries());
            bars[1].show(now.position.stored - before.position.stored, came.told());
            bars[2].show(now.position.applied - before.position.applied, came.told());
            if !more && now.arrived() {
                self.before = now;
                return Ok(came);
            }
            if now != last {
                (last, moved) = (now, Instant::now());
            } else if moved.elapsed() > STALLED {
                bail!("no progress for {STALLED:?}: {}", self.stuck(&last));
            }
        }
    }

    async fn read(&self) -> anyhow::Result<Reading> {
        let emitted = self.world.emitted();
        let progress = self.world.delivery.progress();
        Ok(Reading {
            came: Came::of(&progress.counts),
            delivered: progress.counts.acked,
            position: self.servers.position().await?,
            idle: progress.taken_up >= emitted && progress.pending == 0,
        })
    }

    fn stuck(&self, reading: &Reading) -> String {
        let answers = self.world.delivery.progress().counts.answers;
        format!(
            "{} of {} webhooks delivered (answers by status: {answers:?}), {} of {} events stored, {} applied",
            reading.delivered,
            reading.came.deliveries(),
            reading.position.stored,
            reading.came.told(),
            reading.position.applied
        )
    }
}

impl Came {
    /// The counts since delivery began.
    pub(crate) fn of(counts: &Counts) -> Came {
        Came {
            events: counts.events,
            webhooks: counts.sent,
            doubled: counts.doubled,
            shuffled: counts.shuffled,
            stale: counts.stale,
            lost: counts.lost,
        }
    }

    /// The number of deliveries, repeats included.
    fn deliveries(&self) -> u64 {
        self.told() + self.doubled + self.stale
    }

    /// The number of events that are delivered at all.
    fn told(&self) -> u64 {
        self.events - self.lost
    }

    /// The injected faults, in words.
    pub(crate) fn faults(&self) -> String {
        let [doubled, shuffled, stale] = [self.doubled, self.shuffled, self.stale].map(count);
        let lost = match self.lost {
            0 => String::new(),
            lost => format!(", {} lost", count(lost)),
        };
        format!("{doubled} duplicated, {shuffled} reordered, {stale} stale{lost}")
    }

    fn since(&self, before: &Came) -> Came {
        Came {
            events: self.events - before.events,
            webhooks: self.webhooks - before.webhooks,
            doubled: self.doubled - before.doubled,
            shuffled: self.shuffled - before.shuffled,
            stale: self.stale - before.stale,
            lost: self.lost - before.lost,
        }
    }
}

/// In one line.
impl fmt::Display for Came {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [events, webhooks] = [self.events, self.webhooks].map(count);
        write!(f, "{events} events as {webhooks} webhooks: {}", self.faults())
    }
}

impl Reading {
    /// Whether everything emitted is delivered, stored and applied, except what was lost on purpose.
    fn arrived(&self) -> bool {
        let Position { stored, applied } = self.position;
        self.idle && stored >= self.came.told() && applied >= stored
    }
}
