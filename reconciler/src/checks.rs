//! What is read apart from sweeps, at once and again after the margin: objects that fail closed in doubt, and what a
//! sweep found too young to judge.
//!
//! Which objects are in doubt follows from the registers, so there is no list to keep in order and nothing is lost with
//! a process: a reading that settles the doubt takes the row out of `dsync.checks`. What is kept in memory is only when
//! each was last read, so as not to ask again before that can help.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use futures_util::{StreamExt as _, stream};
use schema::timestamp::Timestamp;
use service::postgres::answered;
use time::OffsetDateTime;
use tokio_util::sync::CancellationToken;

use crate::difference::Entity;
use crate::findings::Findings;
use crate::judge::plainly;
use crate::lease::Lease;
use crate::memberships::{groups_of, members};
use crate::plan::{self, Known, Verdict};
use crate::reading::{Pair, Reading};
use crate::store::checks::{self, Check, Target, What};
use crate::store::compared::{Comparison, compare};
use crate::store::{directories, memberships};
use crate::work::{Failure, Work};
use crate::workos::client::ApiError;
use crate::workos::objects::Read;

/// How often the tables are asked what there is to read. An index answers.
const POLL: Duration = Duration::from_secs(1);
/// Directories read in at once.
const DIRECTORIES_AT_ONCE: usize = 16;
/// Reads that failed, or that changed nothing, are not repeated before this.
const LATER: Duration = Duration::from_secs(10);
/// After so many failures the rest of a directory is left to the next round: each takes all our patience, and a round
/// ends with its slowest directory.
const FAILURES: usize = 2;
/// So many of one directory are read in a round, the others in the next: at 4 requests a second, some ten seconds.
const AT_A_TIME: usize = 40;

/// Reads what is to be read.
pub struct Checker {
    work: Work,
    /// Not before which moment a target is read again.
    not_before: HashMap<Target, Timestamp>,
    /// When those that could not be read were last tried. They come last, those first that were tried longest ago: one
    /// that can never be read keeps nobody waiting.
    failed: HashMap<Target, Timestamp>,
}

impl Checker {
    /// One that has read nothing yet.
    pub fn new(work: Work) -> Self {
        Self {
            work,
            not_before: HashMap::new(),
            failed: HashMap::new(),
        }
    }

    /// Reads what is due, until shutdown.
    pub async fn run(mut self, shutdown: CancellationToken) {
        let mut tick = tokio::time::interval(POLL);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = shutdown.cancelled() => return,
                _ = tick.tick() => {}
            }
            let round = tokio::select! {
                () = shutdown.cancelled() => return,
                round = self.round() => round,
            };
            if let Err(error) = round {
                tracing::warn!(%error, "objects in doubt cannot be read now");
            }
        }
    }

    /// Reads everything that is due now; how many targets that were.
    pub async fn round(&mut self) -> Result<usize, Failure> {
        let now = self.work.clock.now();
        let mut due: HashMap<String, Vec<(Target, bool)>> = HashMap::new();
        let in_doubt = answered(checks::in_doubt(
            &self.work.pool,
            self.work.as_of(now.into()).into(),
        ))
        .await?;
        let doubts: HashMap<Target, Check> = in_doubt
            .into_iter()
            .map(|check| (check.target.clone(), check))
            .collect();
        let again: HashSet<Target> = answered(checks::due(&self.work.pool, now))
            .await?
            .into_iter()
            .collect();
        let still = |target: &Target| doubts.contains_key(target) || again.contains(target);
        self.not_before.retain(|target, _| still(target));
        self.failed.retain(|target, _| still(target));
        let mut targets: Vec<&Target> = again
            .iter()
            .chain(doubts.keys().filter(|target| !again.contains(*target)))
            .collect();
        targets.retain(|target| {
            let not_before = self.not_before.get(*target);
            // What a sweep wants read is read when that is due, unless it just failed.
            let asked = again.contains(*target) && !self.failed.contains_key(*target);
            asked || not_before.is_none_or(|moment| *moment <= now.into())
        });
        targets.sort_by_key(|target| (self.failed.get(*target), *target));
        for target in targets {
            let of_directory = due.entry(target.directory.clone()).or_default();
            if of_directory.len() < AT_A_TIME {
                of_directory.push((target.clone(), doubts.contains_key(target)));
            }
        }
        let count = due.values().map(Vec::len).sum();
        let work = &self.work;
        let read: Vec<Vec<(Target, Outcome)>> = stream::iter(due)
            .map(|(directory, targets)| read_all(work, directory, targets, now))
            .buffer_unordered(DIRECTORIES_AT_ONCE)
            .collect()
            .await;
        for (target, outcome) in read.into_iter().flatten() {
            match outcome {
                Outcome::Read(at) => {
                    self.failed.remove(&target);
                    if let Some(check) = doubts.get(&target) {
                        let settles_at = self.work.readable_after(check.settled_at);
                        let next = next_read(check, at, settles_at, now.into());
                        self.not_before.insert(target, next);
                    }
                }
                Outcome::Failed(at) => {
                    self.not_before.insert(target.clone(), later(at));
                    self.failed.insert(target, at);
                }
            }
        }
        Ok(count)
    }
}

/// What came of reading a target.
enum Outcome {
    /// It was read; the moment that speaks for.
    Read(Timestamp),
    /// `WorkOS` could not tell; when that was.
    Failed(Timestamp),
}

fn later(than: Timestamp) -> Timestamp {
    than.plus_micros(i64::try_from(LATER.as_micros()).unwrap_or(i64::MAX))
}

/// When to read again what was read as of `at` just now: once a reading can settle it, or after a while, should that
/// one have done so and not be applied yet.
fn next_read(check: &Check, at: Timestamp, settles_at: Timestamp, now: Timestamp) -> Timestamp {
    if at < check.settled_at {
        settles_at.max(now)
    } else {
        later(now)
    }
}

/// Reads targets of one directory under its lease; what came of each.
async fn read_all(
    work: &Work,
    directory: String,
    targets: Vec<(Target, bool)>,
    now: OffsetDateTime,
) -> Vec<(Target, Outcome)> {
    let lease = match work.leases.take(&directory, false).await {
        Ok(Some(lease)) => lease,
        // Whoever has it reads them.
        Ok(None) => return Vec::new(),
        Err(error) => {
            tracing::debug!(directory, %error, "no lease");
            return Vec::new();
        }
    };
    let (mut read, mut failures) = (Vec::new(), 0);
    for (target, in_doubt) in targets {
        let outcome = tokio::select! {
            outcome = read_one(work, &lease, &target, in_doubt, now) => outcome,
            () = lease.lost().cancelled() => break,
        };
        match outcome {
            Ok(at) => read.push((target, Outcome::Read(at))),
            Err(error) => {
                tracing::warn!(directory, what = target.what.as_str(), id = target.id, %error, "cannot be read now");
                // Trouble of ours is not this object's: the next round begins where this one stopped.
                if !matches!(error, Failure::Api(_)) {
                    break;
                }
                read.push((target, Outcome::Failed(work.clock.now().into())));
                failures += 1;
                if failures == FAILURES {
                    break;
                }
            }
        }
    }
    lease.release().await;
    read
}

/// Reads one target, which is in doubt or only to be read again, and appends what follows; the moment the reading spoke
/// for.
pub async fn read_one(
    work: &Work,
    lease: &Lease,
    target: &Target,
    in_doubt: bool,
    now: OffsetDateTime,
) -> Result<Timestamp, Failure> {
    let mut findings = Findings::default();
    let at = match target.what {
        What::Directory | What::User | What::Group => {
            read_object(work, target, in_doubt, &mut findings).await?
        }
        What::MembershipsOfUser | What::MembershipsOfGroup => {
            read_memberships(work, target, &mut findings).await?
        }
    };
    if !lease.is_held().await? {
        return Err(Failure::LeaseLost);
    }
    let found = findings.drift.len();
    if found > 0 {
        tracing::info!(
            directory = target.directory,
            what = target.what.as_str(),
            id = target.id,
            found,
            "read apart from the sweeps, and found different"
        );
    }
    let readings = std::mem::take(&mut findings.readings);
    work.append_readings(readings).await?;
    let again: Vec<_> = findings
        .young
        .iter()
        .map(|(_, target, until)| (target.clone(), work.readable_after(*until).into()))
        .collect();
    checks::done(&work.pool, target, now).await?;
    checks::again(&work.pool, &again).await?;
    Ok(at)
}

async fn read_object(
    work: &Work,
    target: &Target,
    in_doubt: bool,
    findings: &mut Findings,
) -> Result<Timestamp, Failure> {
    let (directory, id) = (target.directory.as_str(), target.id.as_str());
    let (entity, read) = match target.what {
        What::User => (Entity::User, work.api.user(directory, id).await?),
        What::Group => (Entity::Group, work.api.group(directory, id).await?),
        _ => (Entity::Directory, work.api.directory(id).await?),
    };
    match read {
        Read::There(at, object) => {
            let at = work.as_of(at);
            let comparison = Comparison {
                entity,
                directory,
                values: false,
                whole: false,
            };
            let compared = compare(&work.pool, comparison, &[&object]).await?;
            for suspect in compared.suspects {
                let verdict = plan::there(&suspect.known, true, work.times(at, suspect.updated_at));
                findings.take(plainly(entity, directory, id), verdict, || {
                    Reading::listed(entity, directory, id, &object, at)
                });
            }
            Ok(at)
        }
        Read::Gone(at) => {
            let at = work.as_of(at);
            let verdict = plan::gone(&known(work, entity, target).await?, at);
            let missing = || Reading::missing(entity, directory, id, at);
            match verdict {
                // Gone already: saying so again, of a later moment, settles a doubt, and is good for nothing else.
                Verdict::Same if in_doubt => findings.readings.push(missing()),
                verdict => findings.take(plainly(entity, directory, id), verdict, missing),
            }
            Ok(at)
        }
    }
}

async fn known(work: &Work, entity: Entity, target: &Target) -> sqlx::Result<Known> {
    let seen_at = match entity {
        Entity::Directory => directories::seen_at(&work.pool, &target.id).await?,
        Entity::User => crate::store::users::seen_at(&work.pool, &target.id).await?,
        _ => crate::store::groups::seen_at(&work.pool, &target.id).await?,
    };
    Ok(Known {
        shown: seen_at.is_some(),
        seen_at: seen_at.map(Into::into),
        ..Known::default()
    })
}

/// Reads one side's list, and judges every membership that it has or that is known.
async fn read_memberships(
    work: &Work,
    target: &Target,
    findings: &mut Findings,
) -> Result<Timestamp, Failure> {
    let (directory, id) = (target.directory.as_str(), target.id.as_str());
    let of_user = target.what == What::MembershipsOfUser;
    let listed = if of_user {
        groups_of(work, directory, id).await
    } else {
        members(work, directory, id).await
    };
    let (at, mut others) = match listed {
        Ok(listed) => listed,
        // User or group is gone: its own absence says so of its memberships too.
        Err(Failure::Api(ApiError::NotFound(at))) => return Ok(work.as_of(at)),
        Err(error) => return Err(error),
    };
    let first = others.clone();
    let pairs: Vec<(&str, &str)> = first
        .iter()
        .map(|other| {
            if of_user {
                (other.as_str(), id)
            } else {
                (id, other.as_str())
            }
        })
        .collect();
    let known_listed = memberships::known(&work.pool, directory, &pairs).await?;
    for ((group, user), known) in pairs.iter().zip(&known_listed) {
        let verdict = plan::there(known, false, work.times(at, None));
        membership(findings, directory, group, user, verdict, true, at);
    }
    let all = if of_user {
        memberships::of_user(&work.pool, id).await?
    } else {
        memberships::of_group(&work.pool, id).await?
    };
    if all
        .iter()
        .any(|(other, known)| known.shown && !others.contains(other))
    {
        // A list that was cut short once is cut short now and then: nothing is taken away on the word of one.
        let (_, more) = if of_user {
            groups_of(work, directory, id).await?
        } else {
            members(work, directory, id).await?
        };
        others.extend(more);
    }
    for (other, known) in all.iter().filter(|(other, _)| !others.contains(other)) {
        let (group, user) = if of_user {
            (other.as_str(), id)
        } else {
            (id, other.as_str())
        };
        // In doubt and not listed: gone, as soon as the reading is late enough to say so.
        let in_doubt = Known {
            shown: true,
            ..*known
        };
        membership(
            findings,
            directory,
            group,
            user,
            plan::gone(&in_doubt, at),
            false,
            at,
        );
    }
    Ok(at)
}

fn membership(
    findings: &mut Findings,
    directory: &str,
    group: &str,
    user: &str,
    verdict: Verdict,
    there: bool,
    at: Timestamp,
) {
    let pair = Pair {
        directory,
        organization: None,
        group,
        user,
    };
    let id = format!("{group}/{user}");
    findings.take(plainly(Entity::Membership, directory, &id), verdict, || {
        Reading::membership(pair, there, at)
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_doubt_is_read_again_when_that_can_settle_it() {
        let at = |seconds: i64| Timestamp::from_micros(seconds * 1_000_000);
        let check = Check {
            target: Target {
                directory: "d".to_owned(),
                what: What::User,
                id: "u".to_owned(),
            },
            after: at(100),
            settled_at: at(130),
        };
        // Read as of 110: it might have been shown to be there, but not to be gone. 130 + 60 can.
        assert_eq!(next_read(&check, at(110), at(191), at(171)), at(191));
        // Read as of 131: settled, as soon as that is applied.
        assert_eq!(next_read(&check, at(131), at(191), at(192)), at(202));
    }
}
