//! Strikes, undoes the strikes, and measures how long everything takes to recover.

use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use tests::{Cut, Line};
use workos_sim::Clock;

use crate::plan::{PROJECTORS, Place, Round, Strike};
use crate::stage::Stage;

/// The longest time to recover. Anything slower would need a person.
const RECOVERS_WITHIN: Duration = Duration::from_mins(2);
/// How long one check may take.
const LOOK: Duration = Duration::from_secs(3);
/// The pause between checks.
const AGAIN: Duration = Duration::from_millis(50);
/// The pause between changes of the canary until one is seen.
const SING: Duration = Duration::from_millis(300);

impl Stage {
    /// Runs one round: makes each strike for as long as it lasts. Returns the time from the end of the last strike
    /// until everything had recovered.
    pub(crate) async fn round(&mut self, round: &Round) -> anyhow::Result<Duration> {
        let began = Instant::now();
        for blow in round {
            self.strike(blow.strike)
                .await
                .with_context(|| format!("{:?}", blow.strike))?;
        }
        let mut ends: Vec<_> = round.iter().collect();
        ends.sort_by_key(|blow| blow.lasts);
        for blow in ends {
            tokio::time::sleep(blow.lasts.saturating_sub(began.elapsed())).await;
            self.lift(blow.strike)
                .await
                .with_context(|| format!("undoing {:?}", blow.strike))?;
        }
        let catch_up = round.iter().any(|blow| blow.strike.concerns_catch_up());
        self.recovered(catch_up)
            .await
            .with_context(|| format!("after {round:?}"))
    }

    async fn strike(&mut self, strike: Strike) -> anyhow::Result<()> {
        match strike {
            Strike::Kill(Place::Nats) => self.nats.kill(),
            Strike::Kill(Place::Postgres) => self.postgres.kill()?,
            Strike::Kill(place) => self.program(place)?.kill(),
            Strike::Freeze(Place::Nats) => self.nats.pause()?,
            Strike::Freeze(Place::Postgres) => self.postgres.pause()?,
            Strike::Freeze(place) => self.program(place)?.pause()?,
            Strike::Terminate(Place::Nats) => self.nats.stop().await?,
            Strike::Terminate(Place::Postgres) => self.postgres.stop().await?,
            Strike::Terminate(place) => self.program(place)?.terminate().await?,
            Strike::Cut(link, how) => self.lines[&link].cut(how),
            Strike::Slow(link, bytes) => self.lines[&link].set(Line::Slow { bytes }),
            Strike::Silence(link) => self.lines[&link].set(Line::Silent),
            Strike::Refuse(link) => {
                self.lines[&link].set(Line::Refused);
                self.lines[&link].cut(Cut::Reset);
            }
            Strike::DiskFull(place) => self.disks[&place].fill()?,
            Strike::Clock(place, seconds) => std::fs::write(&self.clocks[&place], seconds.to_string())?,
        }
        Ok(())
    }

    async fn lift(&mut self, strike: Strike) -> anyhow::Result<()> {
        match strike {
            Strike::Kill(Place::Nats) | Strike::Terminate(Place::Nats) => self.nats.start_again().await?,
            Strike::Kill(Place::Postgres) | Strike::Terminate(Place::Postgres) => {
                self.postgres.start_again().await?;
            }
            Strike::Kill(place) | Strike::Terminate(place) => self.program(place)?.start_again()?,
            Strike::Freeze(Place::Nats) => self.nats.resume()?,
            Strike::Freeze(Place::Postgres) => self.postgres.resume()?,
            Strike::Freeze(place) => self.program(place)?.resume()?,
            Strike::Cut(..) => {}
            Strike::Slow(link, _) | Strike::Silence(link) | Strike::Refuse(link) => {
                self.lines[&link].set(Line::Open);
            }
            Strike::DiskFull(place) => self.disks[&place].clear()?,
            Strike::Clock(place, _) => std::fs::write(&self.clocks[&place], "0")?,
        }
        Ok(())
    }

    /// Waits until a change made now is in the tables, every program is ready and, if `catch_up`, catch-up has reached
    /// now. Returns how long that took.
    pub(crate) async fn recovered(&mut self, catch_up: bool) -> anyhow::Result<Duration> {
        let began = Instant::now();
        let since = Clock::system().now().rfc3339();
        let song = self.world.sing()?;
        let mut last = Instant::now();
        loop {
            self.supervise().await?;
            let why = match tokio::time::timeout(LOOK, self.is_well(song, catch_up.then_some(&since))).await {
                Ok(Ok(())) => return Ok(began.elapsed()),
                Ok(Err(why)) => why,
                Err(_) => anyhow::anyhow!("no answer from the database or a program within {LOOK:?}"),
            };
            if began.elapsed() > RECOVERS_WITHIN {
                bail!("not recovered after {RECOVERS_WITHIN:?}: {why:#}");
            }
            if last.elapsed() > SING {
                self.world.sing()?;
                last = Instant::now();
            }
            tokio::time::sleep(AGAIN).await;
        }
    }
}

impl Stage {
    /// Simulates a power cut with the broker's default sync setting, which loses what was acknowledged since the last
    /// sync, by setting the store back to a copy. The projectors are stopped in the meantime, so that they cannot read
    /// the messages before they are lost. Freezing them would not be enough: the broker would go on sending, and a
    /// projector would apply what waits in its socket once it thaws.
    pub(crate) async fn lose_power(&mut self, seed: u64) -> anyhow::Result<()> {
        let traffic = self.world.traffic(seed)?;
        self.recovered(false).await?;
        for n in 0..PROJECTORS {
            self.strike(Strike::Kill(Place::Projector(n))).await?;
        }
        let synced = self.nats.copy_of_store()?;
        let before = self.delivery.acknowledged().len();
        tests::eventually(RECOVERS_WITHIN, async || {
            let since = self.delivery.acknowledged().len() - before;
            anyhow::ensure!(since > 50, "only {since} webhooks were acknowledged");
            Ok(())
        })
        .await?;
        drop(traffic);
        self.nats.set_back(&synced).await?;
        for n in 0..PROJECTORS {
            self.lift(Strike::Kill(Place::Projector(n))).await?;
        }
        self.recovered(false).await?;
        Ok(())
    }
}
