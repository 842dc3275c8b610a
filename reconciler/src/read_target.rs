//! Reads one target outside of sweeps: an object, or the list of memberships of one user or group. Compares what it read
//! with the rows, and appends what differs. `checks` decides what is read, and when.

use std::collections::HashSet;
use std::time::Duration;

use schema::timestamp::Timestamp;
use time::OffsetDateTime;

use crate::deletions::{self, Absent};
use crate::difference::{Entity, Kind};
use crate::directories::is_ours;
use crate::findings::Findings;
use crate::judge::{CHUNK, plainly};
use crate::key::ObjectKey;
use crate::lease::Lease;
use crate::memberships::{Side, groups_of, members};
use crate::plan::{self, Verdict};
use crate::reading::{Pair, Reading};
use crate::store::checks::{self, Target, What};
use crate::store::compared::{Comparison, compare};
use crate::store::{directories, groups, held, memberships, sweeps, users};
use crate::work::{Failure, Work, stored};
use crate::workos::client::ApiError;
use crate::workos::objects::Read;

/// How long to wait before repeating a read that failed or changed nothing.
pub const LATER: Duration = Duration::from_secs(10);

/// Reads one target, which is in doubt or only to be read again, and appends what follows from it. Returns the time
/// that the reading speaks for.
pub async fn read_target(
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
            "a read outside of sweeps found differences; repairing them"
        );
    }
    let readings = std::mem::take(&mut findings.readings);
    work.append_readings(readings).await?;
    let our_now = work.clock.now();
    let put_off = |until: Timestamp| {
        let due = OffsetDateTime::from(work.readable_after(until));
        // If our clock is ahead, that time may be past by our clock, but not yet by WorkOS's.
        if due > our_now { due } else { our_now + LATER }
    };
    let young = findings.young.iter();
    let again: Vec<_> = young
        .map(|(_, target, until)| (target.clone(), put_off(*until)))
        .collect();
    // What was put off stays, because it is due later.
    stored(checks::again(&work.pool, &again)).await?;
    stored(checks::done(&work.pool, target, now)).await?;
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
            };
            let compared = stored(compare(&work.pool, comparison, &[&object])).await?;
            for suspect in compared.suspects {
                let verdict = plan::there(&suspect.row, true, work.times(at, suspect.updated_at));
                findings.take(plainly(entity, directory, id), verdict, || {
                    Reading::listed(entity, directory, id, &object, at)
                });
            }
            Ok(at)
        }
        Read::Gone(at) => {
            let at = work.as_of(at);
            let verdict = plan::gone(seen_at(work, target).await?, at);
            let missing = || Reading::missing(entity, directory, id, at);
            match verdict {
                // Already gone. Recording that again, for a later time, is only useful to settle a doubt.
                Verdict::Same if in_doubt => {
                    // Another environment does not have it either.
                    if is_ours(work, directory).await? {
                        findings.readings.push(missing());
                    }
                }
                // What is held waits for approval, or for a list that has it.
                Verdict::Drift(_) if is_held(work, target, entity).await? => {}
                // One read ends no directory: a sweep asks the list, as another environment's key finds none of ours.
                Verdict::Drift(_) if !sees(work, target).await? => {
                    stored(sweeps::again(&work.pool, directory)).await?;
                }
                verdict => findings.take(plainly(entity, directory, id), verdict, missing),
            }
            Ok(at)
        }
    }
}

async fn is_held(work: &Work, target: &Target, entity: Entity) -> sqlx::Result<bool> {
    let key = ObjectKey::of(entity, target.id.clone());
    stored(held::is_held(&work.pool, &target.directory, entity, &key)).await
}

/// Whether `WorkOS` has the directory of a target.
async fn sees(work: &Work, target: &Target) -> Result<bool, Failure> {
    if target.what == What::Directory {
        return Ok(false);
    }
    let directory = work.api.directory(&target.directory).await?;
    Ok(matches!(directory, Read::There(..)))
}

/// When an object was last seen. `None` if readers do not see it.
async fn seen_at(work: &Work, target: &Target) -> sqlx::Result<Option<Timestamp>> {
    let seen_at = match target.what {
        What::User => stored(users::seen_at(&work.pool, &target.id)).await?,
        What::Group => stored(groups::seen_at(&work.pool, &target.id)).await?,
        _ => stored(directories::seen_at(&work.pool, &target.id)).await?,
    };
    Ok(seen_at.map(Into::into))
}

/// Reads one side's list, and judges every membership that is in it or in the tables.
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
    let (at, listed) = match listed {
        Ok((at, listed)) => (at, listed.into_iter().collect::<HashSet<String>>()),
        // The user or the group is gone; its own absence ends its memberships, too.
        Err(Failure::Api(ApiError::NotFound(at))) => return Ok(work.as_of(at)),
        Err(error) => return Err(error),
    };
    let key = |other: &str| {
        let (group, user) = if of_user { (other, id) } else { (id, other) };
        ObjectKey::membership(group, user)
    };
    let mut take = |key: &ObjectKey, verdict, there| membership(findings, directory, key, verdict, there, at);
    let there: Vec<ObjectKey> = listed.iter().map(|other| key(other)).collect();
    for chunk in there.chunks(CHUNK) {
        let pairs: Vec<(&str, &str)> = chunk
            .iter()
            .map(|key| (key.group_id.as_str(), key.user_id.as_str()))
            .collect();
        let rows = stored(memberships::rows(&work.pool, directory, &pairs)).await?;
        for (key, row) in chunk.iter().zip(&rows) {
            take(key, plan::there(row, false, work.times(at, None)), true);
        }
    }
    let all = if of_user {
        stored(memberships::of_user(&work.pool, id)).await?
    } else {
        stored(memberships::of_group(&work.pool, id)).await?
    };
    let mut absent = Vec::new();
    for one in all.iter().filter(|one| !listed.contains(&one.other)) {
        // In doubt and not listed means gone, too, once the reading is late enough to show it.
        match plan::gone(Some(one.seen_at.into()), at) {
            Verdict::Drift(_) if one.shown => absent.push(key(&one.other)),
            verdict => take(&key(&one.other), verdict, false),
        }
    }
    absent.sort();
    // As in a sweep: a list may be incomplete, and half a list would remove the other half.
    let shown = all.iter().filter(|one| one.shown).count();
    let confirmed =
        deletions::confirm(work, directory, Absent::Memberships(Side::User), absent, shown).await?;
    for key in &confirmed.gone {
        take(key, Verdict::Drift(Kind::Extra), false);
    }
    if !confirmed.held.is_empty() || confirmed.complete().is_err() {
        // Leave it to a sweep, which sees all lists together and holds back implausibly many deletions.
        stored(sweeps::again(&work.pool, directory)).await?;
    }
    // Lists of what another environment's key does not see may be empty.
    if findings.readings.iter().any(Reading::is_removal) && !sees(work, target).await? {
        *findings = Findings::default();
        stored(sweeps::again(&work.pool, directory)).await?;
    }
    Ok(at)
}

fn membership(
    findings: &mut Findings,
    directory: &str,
    key: &ObjectKey,
    verdict: Verdict,
    there: bool,
    at: Timestamp,
) {
    let pair = Pair {
        directory,
        organization: None,
        group: &key.group_id,
        user: &key.user_id,
    };
    let id = key.id(Entity::Membership);
    findings.take(plainly(Entity::Membership, directory, &id), verdict, || {
        Reading::membership(pair, there, at)
    });
}
