//! Reads one target outside of sweeps (an object, or one side's list of memberships), and appends what follows from it.

use std::collections::HashSet;
use std::time::Duration;

use schema::timestamp::Timestamp;
use time::OffsetDateTime;

use crate::deletions::{self, Believed};
use crate::difference::{Entity, Kind};
use crate::findings::Findings;
use crate::judge::{CHUNK, id_of, plainly};
use crate::lease::Lease;
use crate::memberships::{Way, groups_of, members};
use crate::plan::{self, Known, Verdict};
use crate::reading::{Pair, Reading};
use crate::store::checks::{self, Target, What};
use crate::store::compared::{Comparison, compare};
use crate::store::held::Held;
use crate::store::{directories, memberships, sweeps};
use crate::work::{Failure, Work};
use crate::workos::client::ApiError;
use crate::workos::objects::Read;

/// How long to wait before repeating a read that failed or changed nothing.
pub const LATER: Duration = Duration::from_secs(10);

/// Reads one target, which is in doubt or only to be read again, and appends what follows from it. Returns the time
/// that the reading speaks for.
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
    checks::again(&work.pool, &again).await?;
    checks::done(&work.pool, target, now).await?;
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
                // Already gone. Recording that again, for a later time, is only useful to settle a doubt.
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

/// Reads one side's list, and judges every membership that is in it or that is known.
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
    let held = |other: &str| {
        let (group_id, user_id) = if of_user { (other, id) } else { (id, other) };
        Held {
            group_id: group_id.to_owned(),
            user_id: user_id.to_owned(),
        }
    };
    let mut take = |one: &Held, verdict, there| membership(findings, directory, one, verdict, there, at);
    let there: Vec<Held> = listed.iter().map(|other| held(other)).collect();
    for chunk in there.chunks(CHUNK) {
        let pairs: Vec<(&str, &str)> = chunk
            .iter()
            .map(|one| (one.group_id.as_str(), one.user_id.as_str()))
            .collect();
        let known = memberships::known(&work.pool, directory, &pairs).await?;
        for (one, known) in chunk.iter().zip(&known) {
            take(one, plan::there(known, false, work.times(at, None)), true);
        }
    }
    let all = if of_user {
        memberships::of_user(&work.pool, id).await?
    } else {
        memberships::of_group(&work.pool, id).await?
    };
    let mut absent = Vec::new();
    for (other, known) in all.iter().filter(|(other, _)| !listed.contains(other)) {
        // In doubt and not listed means gone, once the reading is late enough to show it.
        let in_doubt = Known {
            shown: true,
            ..*known
        };
        match plan::gone(&in_doubt, at) {
            Verdict::Drift(_) if known.shown => absent.push(held(other)),
            verdict => take(&held(other), verdict, false),
        }
    }
    absent.sort();
    // As in a sweep: a list may be incomplete, and half a list would remove the other half.
    let shown = all.iter().filter(|(_, known)| known.shown).count();
    let believed = Believed::by_guard(work, shown);
    let entity = Entity::Membership;
    let confirmed = deletions::confirm(work, directory, entity, absent, believed, Way::ByGroup).await?;
    for one in &confirmed.gone {
        take(one, Verdict::Drift(Kind::Extra), false);
    }
    if !confirmed.held.is_empty() || confirmed.complete(entity).is_err() {
        // Leave it to a sweep, which sees all lists together and holds back implausibly many deletions.
        sweeps::again(&work.pool, directory).await?;
    }
    Ok(at)
}

fn membership(
    findings: &mut Findings,
    directory: &str,
    one: &Held,
    verdict: Verdict,
    there: bool,
    at: Timestamp,
) {
    let pair = Pair {
        directory,
        organization: None,
        group: &one.group_id,
        user: &one.user_id,
    };
    let id = id_of(Entity::Membership, one);
    findings.take(plainly(Entity::Membership, directory, &id), verdict, || {
        Reading::membership(pair, there, at)
    });
}
