//! Leases: which directories this process may send requests for.
//!
//! A lease is shared by everything this process does in a directory (a sweep, reads of single objects), so that only
//! one process at a time uses that directory's rate limit. It is renewed in the background. When it is lost, the
//! tasks that work under it are told and stop. A process that died or froze loses its leases because it does not
//! renew them. One that no longer reaches the database stops before another process can take over.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use service::postgres::{answered, answered_within, described};
use sqlx::PgPool;
use tokio_util::sync::CancellationToken;

use crate::store::sweeps::{self, Cadence};

/// How long a lease lasts without being renewed: the longest that a dead reconciler keeps others waiting.
pub const LEASE: Duration = Duration::from_secs(20);
/// How often it is renewed.
const RENEW: Duration = Duration::from_secs(4);
/// How long we use one that could not be renewed: for a second, what was sent under it still counts against the rate
/// limit.
pub const USED: Duration = LEASE.saturating_sub(Duration::from_millis(1_100));
/// How often to check which are used up.
const LOOK: Duration = Duration::from_millis(250);

/// The leases of this process. Cheap to clone; clones share them.
#[derive(Clone)]
pub struct Leases {
    pool: PgPool,
    holder: Arc<str>,
    held: Arc<Mutex<HashMap<String, Held>>>,
    /// Leases are taken and released one at a time, so that the table and the map agree.
    changes: Arc<tokio::sync::Mutex<()>>,
}

struct Held {
    users: usize,
    swept: bool,
    /// How long we use it, if it is not renewed.
    until: Instant,
    lost: CancellationToken,
}

/// A share in a directory's lease. Give it back with [`Lease::release`]; if it is dropped, the lease expires on its
/// own.
pub struct Lease {
    leases: Leases,
    directory: String,
    sweeps: bool,
    lost: CancellationToken,
}

impl Leases {
    /// Creates a set without any leases. `holder` must be unique to this process.
    pub fn new(pool: PgPool, holder: &str) -> Self {
        Self {
            pool,
            holder: holder.into(),
            held: Arc::default(),
            changes: Arc::default(),
        }
    }

    /// The name under which this process holds leases.
    pub fn holder(&self) -> &str {
        &self.holder
    }

    /// Takes the lease of the directory that is most overdue for a sweep. `None` while none is due.
    pub async fn claim(&self, cadence: Cadence) -> sqlx::Result<Option<Lease>> {
        let _one = self.changes.lock().await;
        let (busy, asked) = (self.swept(), Instant::now());
        let claimed = answered(sweeps::claim(&self.pool, &self.holder, LEASE, cadence, &busy)).await?;
        Ok(claimed.map(|directory| self.share(directory, true, asked)))
    }

    /// Takes the lease of one directory, to sweep it or to read some of it. `None` while another process holds it or,
    /// with `to_sweep`, while this process sweeps it already.
    pub async fn take(&self, directory: &str, to_sweep: bool) -> sqlx::Result<Option<Lease>> {
        let _one = self.changes.lock().await;
        if to_sweep && self.swept().iter().any(|busy| busy == directory) {
            return Ok(None);
        }
        let asked = Instant::now();
        let taken = answered(sweeps::take(&self.pool, directory, &self.holder, LEASE)).await?;
        Ok(taken.then(|| self.share(directory.to_owned(), to_sweep, asked)))
    }

    /// A share in the lease that the database was asked for at `asked`.
    fn share(&self, directory: String, sweeps: bool, asked: Instant) -> Lease {
        let mut all = self.lock();
        let held = all.entry(directory.clone()).or_insert_with(|| Held {
            users: 0,
            swept: false,
            until: asked,
            lost: CancellationToken::new(),
        });
        held.users += 1;
        held.swept |= sweeps;
        held.until = asked + USED;
        Lease {
            lost: held.lost.clone(),
            leases: self.clone(),
            directory,
            sweeps,
        }
    }

    fn swept(&self) -> Vec<String> {
        let all = self.lock();
        let swept = all.iter().filter(|(_, held)| held.swept);
        swept.map(|(directory, _)| directory.clone()).collect()
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Held>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Renews the leases held, and drops those that could not be renewed in time, until shutdown has begun and none is
    /// held any more.
    pub async fn keep(self, shutdown: CancellationToken) {
        let overdue = async {
            loop {
                tokio::time::sleep(LOOK).await;
                self.drop_overdue();
            }
        };
        // Side by side: a lease may end while its renewal waits for the database.
        tokio::select! {
            () = self.renew(&shutdown) => {}
            () = overdue => {}
        }
    }

    async fn renew(&self, shutdown: &CancellationToken) {
        loop {
            tokio::time::sleep(RENEW).await;
            let names: Vec<String> = self.lock().keys().cloned().collect();
            if names.is_empty() {
                if shutdown.is_cancelled() {
                    return;
                }
                continue;
            }
            let asked = Instant::now();
            match answered_within(LEASE / 2, sweeps::renew(&self.pool, &names, &self.holder, LEASE)).await {
                Ok(kept) => self.renewed(&names, &kept, asked),
                Err(error) => tracing::warn!(error = %described(&error), "cannot renew leases; trying again"),
            }
            self.drop_overdue();
        }
    }

    fn renewed(&self, names: &[String], kept: &[String], asked: Instant) {
        let mut all = self.lock();
        for name in names {
            let Some(held) = all.get_mut(name) else { continue };
            if kept.contains(name) {
                held.until = asked + USED;
            } else {
                held.until = asked;
            }
        }
    }

    fn drop_overdue(&self) {
        let now = Instant::now();
        self.lock().retain(|directory, held| {
            let keep = held.until > now;
            if !keep {
                tracing::warn!(
                    directory,
                    "lost the lease of this directory; another reconciler may take over"
                );
                held.lost.cancel();
            }
            keep
        });
    }

    /// Takes one share back. Returns whether it was the last one.
    fn leave(&self, directory: &str, swept: bool, lost: &CancellationToken) -> bool {
        let mut all = self.lock();
        // A lease that was lost and taken again is a different one.
        let Some(held) = all.get_mut(directory).filter(|_| !lost.is_cancelled()) else {
            return false;
        };
        held.users = held.users.saturating_sub(1);
        held.swept &= !swept;
        let nobody_left = held.users == 0;
        if nobody_left {
            all.remove(directory);
        }
        nobody_left
    }
}

impl Lease {
    /// The directory.
    pub fn directory(&self) -> &str {
        &self.directory
    }

    /// Cancelled when the lease is lost.
    pub fn lost(&self) -> &CancellationToken {
        &self.lost
    }

    /// Asks the database whether it is still held, and renews it. To be called before anything that another process
    /// might be doing, too.
    pub async fn is_held(&self) -> sqlx::Result<bool> {
        if self.lost.is_cancelled() {
            return Ok(false);
        }
        let names = [self.directory.clone()];
        let kept = answered(sweeps::renew(
            &self.leases.pool,
            &names,
            &self.leases.holder,
            LEASE,
        ))
        .await?;
        Ok(!kept.is_empty())
    }

    /// Gives the share back, and with the last one the lease.
    pub async fn release(mut self) {
        let leases = self.leases.clone();
        let _one = leases.changes.lock().await;
        let directory = std::mem::take(&mut self.directory);
        if leases.leave(&directory, self.sweeps, &self.lost)
            && let Err(error) = answered(sweeps::release(&leases.pool, &directory, &leases.holder)).await
        {
            tracing::debug!(directory, error = %described(&error), "cannot release the lease; it expires on its own");
        }
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        if !self.directory.is_empty() {
            self.leases.leave(&self.directory, self.sweeps, &self.lost);
        }
    }
}
