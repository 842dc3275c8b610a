//! Following events on their way: emitted, delivered as webhooks, stored in the log, applied to the tables.
//!
//! It waits for as long as something moves, and no longer.

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

/// How often we look.
const LOOK: Duration = Duration::from_millis(100);
/// When nothing has moved for so long, nothing will.
const STALLED: Duration = Duration::from_mins(1);

/// All that runs.
pub(crate) struct Stage {
    /// The programs; they go first.
    pub programs: Programs,
    /// WorkOS.
    pub world: World,
    /// The servers.
    pub servers: Servers,
    /// Where the phase before ended.
    before: Reading,
}

/// What came as webhooks, and what went wrong with them on purpose.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Came {
    /// Events emitted.
    pub events: u64,
    /// Webhooks sent, retries after a failure included.
    pub webhooks: u64,
    /// Events sent twice.
    pub doubled: u64,
    /// Events held back by up to three seconds, so that later ones overtook them.
    pub shuffled: u64,
    /// Events sent once more, long after.
    pub stale: u64,
    /// Events never sent.
    pub lost: u64,
}

/// How far everything is, counted from the start of the run.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Reading {
    came: Came,
    delivered: u64,
    position: Position,
    /// Whether every event so far was taken up and no webhook is under way.
    idle: bool,
}

impl Stage {
    /// All of it, before anything has happened.
    pub(crate) fn new(programs: Programs, world: World, servers: Servers) -> Stage {
        Stage {
            programs,
            world,
            servers,
            before: Reading::default(),
        }
    }

    /// Lets `emit` make things happen, until it says that no more are to come, and shows how they arrive until all of them
    /// have. What came since the end of the phase before.
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
                bail!("nothing has moved for {STALLED:?}: {}", self.stuck(&last));
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
            "{} of {} webhooks are delivered (answers by status: {answers:?}), {} of {} events stored, {} applied",
            reading.delivered,
            reading.came.deliveries(),
            reading.position.stored,
            reading.came.told(),
            reading.position.applied
        )
    }
}

impl Came {
    /// Since the delivery began.
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

    /// How many deliveries there are in all, repeats included.
    fn deliveries(&self) -> u64 {
        self.told() + self.doubled + self.stale
    }

    /// How many events the webhooks tell of.
    fn told(&self) -> u64 {
        self.events - self.lost
    }

    /// What went wrong, in words.
    pub(crate) fn faults(&self) -> String {
        let [doubled, shuffled, stale] = [self.doubled, self.shuffled, self.stale].map(count);
        let lost = match self.lost {
            0 => String::new(),
            lost => format!(", {} lost", count(lost)),
        };
        format!("{doubled} doubled, {shuffled} shuffled, {stale} stale{lost}")
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
    /// Everything that was emitted is delivered, stored and applied, but for what was lost on the way.
    fn arrived(&self) -> bool {
        let Position { stored, applied } = self.position;
        self.idle && stored >= self.came.told() && applied >= stored
    }
}
