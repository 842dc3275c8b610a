//! Leases: which directories this process may send requests for.
//!
//! A lease is shared by whatever this process does in a directory (a sweep, reads of single objects), so that the rate
//! limit of that directory is kept by one process at a time. It is renewed in the background; when it is lost, whoever
//! works under it hears of it and stops. A process that died or froze loses it by doing nothing.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use service::postgres::{answered, answered_within, described};
use sqlx::PgPool;
use tokio_util::sync::CancellationToken;

use crate::store::sweeps::{self, Cadence};

/// How long a lease holds without being renewed: the longest a dead reconciler keeps others waiting.
pub const LEASE: Duration = Duration::from_secs(20);
/// How often it is renewed.
const RENEW: Duration = Duration::from_secs(4);

/// The leases of this process. Cheap to clone; clones share them.
#[derive(Clone)]
pub struct Leases {
    pool: PgPool,
    holder: Arc<str>,
    held: Arc<Mutex<HashMap<String, Held>>>,
    /// Taking and giving back one at a time, so that the table says what the map says.
    changes: Arc<tokio::sync::Mutex<()>>,
}

struct Held {
    users: usize,
    swept: bool,
    until: Instant,
    lost: CancellationToken,
}

/// A share in a directory's lease. Give it back with [`Lease::release`]; dropped, it runs out by itself.
pub struct Lease {
    leases: Leases,
    directory: String,
    sweeps: bool,
    lost: CancellationToken,
}

impl Leases {
    /// No leases yet. `holder` is unlike any other process's.
    pub fn new(pool: PgPool, holder: &str) -> Self {
        Self {
            pool,
            holder: holder.into(),
            held: Arc::default(),
            changes: Arc::default(),
        }
    }

    /// Who holds them.
    pub fn holder(&self) -> &str {
        &self.holder
    }

    /// The lease of the directory that is most overdue for a sweep; nothing while none is due.
    pub async fn claim(&self, cadence: Cadence) -> sqlx::Result<Option<Lease>> {
        let _one = self.changes.lock().await;
        let busy: Vec<String> = self.swept();
        let claimed = answered(sweeps::claim(&self.pool, &self.holder, LEASE, cadence, &busy)).await?;
        Ok(claimed.map(|directory| self.share(directory, true)))
    }

    /// The lease of one directory: to sweep it, or to read some of it. None while another holds it, or this process
    /// sweeps it already.
    pub async fn take(&self, directory: &str, to_sweep: bool) -> sqlx::Result<Option<Lease>> {
        let _one = self.changes.lock().await;
        if to_sweep && self.swept().iter().any(|busy| busy == directory) {
            return Ok(None);
        }
        let taken = answered(sweeps::take(&self.pool, directory, &self.holder, LEASE)).await?;
        Ok(taken.then(|| self.share(directory.to_owned(), to_sweep)))
    }

    fn share(&self, directory: String, sweeps: bool) -> Lease {
        let mut all = self.lock();
        let held = all.entry(directory.clone()).or_insert_with(|| Held {
            users: 0,
            swept: false,
            until: Instant::now(),
            lost: CancellationToken::new(),
        });
        held.users += 1;
        held.swept |= sweeps;
        held.until = Instant::now() + LEASE;
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

    /// Renews what is held, until shutdown and until nothing is held any more.
    pub async fn keep(self, shutdown: CancellationToken) {
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
                Err(error) => tracing::warn!(error = %described(&error), "leases cannot be renewed now"),
            }
            self.drop_overdue();
        }
    }

    fn renewed(&self, names: &[String], kept: &[String], asked: Instant) {
        let mut all = self.lock();
        for name in names {
            let Some(held) = all.get_mut(name) else { continue };
            if kept.contains(name) {
                held.until = asked + LEASE;
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
                    "lost the lease of this directory; another goes on with it"
                );
                held.lost.cancel();
            }
            keep
        });
    }

    /// Takes one share back; whether it was the last one.
    fn leave(&self, directory: &str, swept: bool, lost: &CancellationToken) -> bool {
        let mut all = self.lock();
        // A lease that was lost and taken anew is another one.
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

    /// Whether it is still held, asked of the database: before something is done that another might be doing too.
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

    /// Gives it back.
    pub async fn release(mut self) {
        let leases = self.leases.clone();
        let _one = leases.changes.lock().await;
        let directory = std::mem::take(&mut self.directory);
        if leases.leave(&directory, self.sweeps, &self.lost)
            && let Err(error) = answered(sweeps::release(&leases.pool, &directory, &leases.holder)).await
        {
            tracing::debug!(directory, error = %described(&error), "the lease runs out by itself");
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
