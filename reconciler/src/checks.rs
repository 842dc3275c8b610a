//! Decides what is read outside of sweeps, and when (`read_target` reads it): objects in doubt, which fail closed, at
//! once and again after the margin; and what a sweep found too young to judge, once the margin has passed.
//!
//! Which objects are in doubt follows from the registers, so there is no list to maintain, and nothing is lost when a
//! process dies: a reading that settles the doubt removes the row from the view `dsync.checks`. Only when each may be
//! read next is kept in memory, so as not to ask again before that can help.
//!
//! Each directory is read separately: one that answers slowly, or not at all, keeps no other waiting.

use std::collections::{HashMap, HashSet, VecDeque};
use std::time::Duration;

use schema::timestamp::Timestamp;
use service::postgres::answered;
use time::OffsetDateTime;
use tokio::task::{JoinError, JoinSet};
use tokio_util::sync::CancellationToken;

use crate::read_target::{LATER, read_target};
use crate::store::checks::{self, Check, Target};
use crate::work::{Failure, Work, contained};

/// How often the tables are asked what there is to read. The queries are answered from indexes.
const POLL: Duration = Duration::from_secs(1);
/// How many directories are read at once; the others wait in the order they came.
const DIRECTORIES_AT_ONCE: usize = 16;
/// After this many failures, the rest of a directory waits for its next turn: each failure uses up a request's
/// patience.
const FAILURES: usize = 2;
/// How many targets of a directory are read in a turn; the others wait for the next. At 4 requests a second, a turn
/// takes about ten seconds.
const AT_A_TIME: usize = 40;
/// After this long, a turn begins no more reads: each may be of a large group, whose list takes minutes.
const TURN: Duration = Duration::from_secs(30);

/// Reads objects in doubt, and what sweeps want read again.
pub struct Checker {
    work: Work,
    /// The earliest time at which a target is read again.
    not_before: HashMap<Target, Timestamp>,
    /// When targets that could not be read were last tried. They come last, those tried longest ago first, so that a
    /// target that can never be read keeps no other waiting.
    failed: HashMap<Target, Timestamp>,
    /// Directories that have a turn now or are waiting for one.
    busy: HashSet<String>,
    waiting: VecDeque<Waiting>,
    turns: JoinSet<Turn>,
}

/// A directory waiting for its turn: what to read in it, each with its doubt if there was one, and since when it waits.
struct Waiting {
    directory: String,
    targets: Vec<(Target, Option<Check>)>,
    since: OffsetDateTime,
}

/// The outcome of a directory's turn.
struct Turn {
    directory: String,
    read: Vec<(Target, Outcome)>,
}

/// The outcome of reading a target.
enum Outcome {
    /// It was read: the time that the reading speaks for, and the doubt if there was one.
    Read(Timestamp, Option<Check>),
    /// `WorkOS` gave no usable answer; when that was.
    Failed(Timestamp),
}

impl Checker {
    /// Creates a checker that has read nothing yet.
    pub fn new(work: Work) -> Self {
        Self {
            work,
            not_before: HashMap::new(),
            failed: HashMap::new(),
            busy: HashSet::new(),
            waiting: VecDeque::new(),
            turns: JoinSet::new(),
        }
    }

    /// Reads what is due, until shutdown.
    pub async fn run(mut self, shutdown: CancellationToken) {
        let mut tick = tokio::time::interval(POLL);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = shutdown.cancelled() => return,
                Some(turn) = self.turns.join_next() => {
                    self.note(turn);
                    continue;
                }
                _ = tick.tick() => {}
            }
            let begun = tokio::select! {
                () = shutdown.cancelled() => return,
                begun = self.begin() => begun,
            };
            if let Err(error) = begun {
                tracing::warn!(%error, "cannot look up what to read again; trying again");
            }
        }
    }

    /// Reads everything that is due now, and waits until it is done. Returns how many targets that were.
    pub async fn round(&mut self) -> Result<usize, Failure> {
        let count = self.begin().await?;
        while let Some(turn) = self.turns.join_next().await {
            self.note(turn);
        }
        Ok(count)
    }

    /// Queues a turn for each directory in which something is due, unless it has one already. Returns how many
    /// targets that are.
    async fn begin(&mut self) -> Result<usize, Failure> {
        let now = self.work.clock.now();
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
            // What a sweep wants read again is read as soon as it is due, unless it just failed.
            let asked = again.contains(*target) && !self.failed.contains_key(*target);
            let due = asked || not_before.is_none_or(|moment| *moment <= now.into());
            due && !self.busy.contains(&target.directory)
        });
        let due = in_turn(targets, &self.failed);
        let count = due.iter().map(Vec::len).sum();
        for targets in due {
            let directory = targets[0].directory.clone();
            let targets = targets
                .into_iter()
                .map(|target| (target.clone(), doubts.get(target).cloned()))
                .collect();
            self.busy.insert(directory.clone());
            self.waiting.push_back(Waiting {
                directory,
                targets,
                since: now,
            });
        }
        self.take_turns();
        Ok(count)
    }

    fn take_turns(&mut self) {
        while self.turns.len() < DIRECTORIES_AT_ONCE
            && let Some(Waiting {
                directory,
                targets,
                since,
            }) = self.waiting.pop_front()
        {
            let work = self.work.clone();
            self.turns.spawn(async move {
                let read = read_all(&work, &directory, targets, since).await;
                Turn { directory, read }
            });
        }
    }

    fn note(&mut self, turn: Result<Turn, JoinError>) {
        let Turn { directory, read } = match turn.map_err(JoinError::try_into_panic) {
            Ok(turn) => turn,
            // As if the panic had happened here.
            Err(Ok(panic)) => std::panic::resume_unwind(panic),
            Err(Err(_)) => return,
        };
        self.busy.remove(&directory);
        self.take_turns();
        let now = Timestamp::from(self.work.clock.now());
        for (target, outcome) in read {
            match outcome {
                Outcome::Read(at, check) => {
                    self.failed.remove(&target);
                    if let Some(check) = check {
                        let settles_at = self.work.readable_after(check.settled_at);
                        let next = next_read(&check, at, settles_at, now);
                        self.not_before.insert(target, next);
                    }
                }
                Outcome::Failed(at) => {
                    self.not_before.insert(target.clone(), at.plus(LATER));
                    self.failed.insert(target, at);
                }
            }
        }
    }
}

/// Picks what is read of each directory in its turn, and orders the turns: first directories in which nothing failed,
/// then those whose failures are longest ago. Targets within a turn are ordered in the same way.
fn in_turn<'a>(mut targets: Vec<&'a Target>, failed: &HashMap<Target, Timestamp>) -> Vec<Vec<&'a Target>> {
    targets.sort_by_key(|target| (failed.get(*target), *target));
    let mut due: HashMap<&str, Vec<&Target>> = HashMap::new();
    for target in targets {
        let of_directory = due.entry(&target.directory).or_default();
        if of_directory.len() < AT_A_TIME {
            of_directory.push(target);
        }
    }
    let mut turns: Vec<Vec<&Target>> = due.into_values().collect();
    turns.sort_by_key(|targets| targets.last().map(|target| (failed.get(*target), *target)));
    turns
}

/// When to read again what was just read as of `at`: once a reading can settle the doubt. After a while if this one did
/// and is only not applied yet, or if that time is past by our clock, which must then be ahead of `WorkOS`'s.
fn next_read(check: &Check, at: Timestamp, settles_at: Timestamp, now: Timestamp) -> Timestamp {
    if at < check.settled_at && settles_at > now {
        settles_at
    } else {
        now.plus(LATER)
    }
}

/// Reads targets of one directory under its lease. Returns the outcome of each.
async fn read_all(
    work: &Work,
    directory: &str,
    targets: Vec<(Target, Option<Check>)>,
    now: OffsetDateTime,
) -> Vec<(Target, Outcome)> {
    let lease = match work.leases.take(directory, false).await {
        Ok(Some(lease)) => lease,
        // The reconciler that holds the lease reads them.
        Ok(None) => return Vec::new(),
        Err(error) => {
            tracing::debug!(directory, %error, "cannot take the lease of this directory");
            return Vec::new();
        }
    };
    let (mut read, mut failures) = (Vec::new(), 0);
    let began = work.clock.now();
    for (target, check) in targets {
        if work.clock.now() - began > TURN {
            break;
        }
        let outcome = tokio::select! {
            outcome = contained(read_target(work, &lease, &target, check.is_some(), now)) => outcome,
            () = lease.lost().cancelled() => break,
        };
        match outcome {
            Ok(at) => read.push((target, Outcome::Read(at, check))),
            Err(error) => {
                tracing::warn!(directory, what = target.what.as_str(), id = target.id, %error, "read failed; retrying");
                // A failure on our side is not the object's: the next turn begins where this one stopped.
                if !matches!(error, Failure::Api(_) | Failure::Panicked) {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::checks::What;

    #[test]
    fn directories_without_failures_have_their_turns_first() {
        let target = |directory: &str, id: u32| Target {
            directory: directory.to_owned(),
            what: What::User,
            id: format!("u{id:03}"),
        };
        let failed = HashMap::from([
            (target("a", 1), Timestamp::from_micros(9)),
            (target("b", 1), Timestamp::from_micros(5)),
            (target("b", 2), Timestamp::from_micros(4)),
        ]);
        let mut all = vec![target("a", 1), target("a", 2), target("b", 1), target("b", 2)];
        all.extend((0..50).map(|id| target("c", id)));
        all.push(target("d", 1));
        let turns = in_turn(all.iter().collect(), &failed);
        let told: Vec<(&str, usize)> = turns
            .iter()
            .map(|turn| (turn[0].directory.as_str(), turn.len()))
            .collect();
        assert_eq!(told, [("c", AT_A_TIME), ("d", 1), ("b", 2), ("a", 2)]);
        assert_eq!(turns[2], [&target("b", 2), &target("b", 1)]);
        assert_eq!(turns[3], [&target("a", 2), &target("a", 1)]);
    }

    #[test]
    fn a_doubt_is_read_again_when_that_can_settle_it() {
        let at = |seconds: i64| Timestamp::from_micros(seconds * 1_000_000);
        let check = Check {
            target: Target {
                directory: "d".to_owned(),
                what: What::User,
                id: "u".to_owned(),
            },
            settled_at: at(130),
        };
        // A reading as of 110 could show that it is there, but not that it is gone. One at 130 + 60 can.
        assert_eq!(next_read(&check, at(110), at(191), at(171)), at(191));
        // A reading as of 131 settles it, as soon as that is applied.
        assert_eq!(next_read(&check, at(131), at(191), at(192)), at(202));
        // With our clock ahead, one at 130 + 60 should have settled it already. By WorkOS's clock it is not that late.
        assert_eq!(next_read(&check, at(110), at(191), at(500)), at(510));
    }
}
