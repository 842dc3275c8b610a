//! A sweep of one directory: compares everything `WorkOS` has in it with everything the tables show of it, and appends
//! an observation for every difference.
//!
//! ```text
//!   read directory ─► walk groups ─► walk users ∥ memberships ─► wait for the projector ─► compare, judge (pure)
//!                                                                                              │
//!       record: swept, held, to be read again ◄─ append ◄─ still ours? ◄─ confirm absences ◄───┘
//! ```
//!
//! Nothing is appended before everything was read (except when relisting, see `relist`), and nothing is recorded in the
//! database before it was appended. If a sweep fails, is stopped or loses its lease, the next one starts over.

use std::time::{Duration, Instant};

use schema::timestamp::Timestamp;

use crate::deletions::{self, Confirmed};
use crate::difference::{Difference, Entity, Kind};
use crate::findings::{Findings, Young};
use crate::judge;
use crate::judge_memberships::organization_of;
use crate::lease::Lease;
use crate::read_target::LATER;
use crate::relist;
use crate::report::DirectoryReport;
use crate::store::compared::Comparison;
use crate::store::sweeps::Started;
use crate::store::{checks, held, sweeps};
use crate::walk::walk;
use crate::work::{Failure, Work, contained, stored};
use crate::workos::objects::Read;
use crate::{directories, judge_memberships, memberships::Way};

/// If more differences than this are too young to judge, the whole directory is swept again instead of rereading each.
const REREADS: usize = 200;

/// The same limit for differences that may be deletions.
const REREAD_DELETIONS: usize = 10;

/// The resolution of the server's clock.
const SECOND: Duration = Duration::from_secs(1);

/// The longest that the next sweep is put off for differences that were too young, whatever the clocks say.
const AGAIN_WITHIN: Duration = Duration::from_hours(1);

/// How to make a pass.
#[derive(Clone, Copy, Debug, Default)]
pub struct Mode {
    /// Only report; append and record nothing.
    pub dry_run: bool,
    /// Report values too.
    pub values: bool,
}

/// Sweeps the directory of `lease`. Failures are in the report.
pub async fn sweep(work: &Work, lease: &Lease, mode: Mode) -> DirectoryReport {
    let began = Instant::now();
    let work = Work {
        api: work.api.counting(),
        ..work.clone()
    };
    let mut report = DirectoryReport {
        directory_id: lease.directory().to_owned(),
        ..DirectoryReport::default()
    };
    let outcome = tokio::select! {
        outcome = contained(Box::pin(run(&work, lease, mode, &mut report))) => outcome,
        () = lease.lost().cancelled() => Err(Failure::LeaseLost),
    };
    report.requests = work.api.requests();
    report.seconds = began.elapsed().as_secs_f64();
    match outcome {
        Ok(()) => report.complete = report.unreadable == 0 && report.error.is_none(),
        Err(error) => report.error = Some(error.to_string()),
    }
    if !mode.dry_run {
        finish(&work, &report).await;
    }
    report
}

async fn finish(work: &Work, report: &DirectoryReport) {
    let directory = report.directory_id.as_str();
    work.metrics.sweep_seconds.observe(report.seconds);
    // The pass over the list of directories counts those that are gone.
    let is_gone = |one: &Difference| one.entity == Entity::Directory && one.kind == Kind::Extra;
    for difference in report
        .drift
        .iter()
        .chain(&report.held)
        .filter(|one| !is_gone(one))
    {
        let labels = [difference.entity.as_str(), difference.kind.as_str()];
        work.metrics.drift.with_label_values(&labels).inc();
    }
    let (drift, held, too_young) = (report.drift.len(), report.held.len(), report.too_young.len());
    let (requests, seconds) = (report.requests, report.seconds);
    if let Some(error) = &report.error {
        tracing::warn!(
            directory,
            error,
            drift,
            requests,
            seconds,
            "this directory could not be swept completely"
        );
        if let Err(error) = stored(sweeps::fail(&work.pool, directory)).await {
            tracing::debug!(directory, %error, "cannot record that the sweep failed");
        }
    } else {
        tracing::info!(
            directory,
            drift,
            held,
            too_young,
            unreadable = report.unreadable,
            requests,
            seconds,
            memberships = report.memberships_read.map(Way::as_str),
            membership_requests = report.membership_requests,
            "swept"
        );
    }
}

async fn run(work: &Work, lease: &Lease, mode: Mode, report: &mut DirectoryReport) -> Result<(), Failure> {
    let directory = lease.directory();
    let started = if mode.dry_run {
        None
    } else {
        let started = stored(sweeps::start(&work.pool, directory, work.leases.holder())).await?;
        Some(started.ok_or(Failure::LeaseLost)?)
    };
    let whole = started.is_some_and(|started| started.whole);
    let mut findings = Findings::default();
    let Read::There(read_at, object) = work.api.directory(directory).await? else {
        return directories::vanished(work, lease, mode, report).await;
    };
    let mut snapshot = walk(work, (directory, &object), whole, &mut findings, report).await?;
    if whole {
        let organization = organization_of(&object);
        findings.unreadable +=
            relist::memberships(work, directory, organization.as_deref(), &snapshot).await?;
        let itself = [(directory.to_owned(), object.clone())];
        relist::objects(work, (Entity::Directory, directory), &itself, work.as_of(read_at)).await?;
    }
    work.applied(work.rules.patience).await?;
    let of_directory = Comparison {
        entity: Entity::Directory,
        directory,
        values: mode.values,
    };
    let itself = vec![(directory.to_owned(), object.clone())];
    judge::there(work, of_directory, itself, work.as_of(read_at), &mut findings).await?;
    let mut confirmed = vec![
        judge::objects(work, directory, mode.values, &mut snapshot.users, &mut findings).await?,
        judge::objects(work, directory, mode.values, &mut snapshot.groups, &mut findings).await?,
    ];
    confirmed.push(judge_memberships::memberships(work, directory, &object, &snapshot, &mut findings).await?);
    if let Some(started) = started {
        if !lease.is_held().await? {
            return Err(Failure::LeaseLost);
        }
        hold(work, directory, &confirmed).await?;
        // It is there, whatever the list of directories lacked.
        stored(held::replace(&work.pool, directory, Entity::Directory, &[])).await?;
        let readings = std::mem::take(&mut findings.readings);
        findings.unreadable += work.append_readings(readings).await?;
        let swept = Swept { started, read_at };
        note(work, directory, swept, &confirmed, &findings).await?;
    }
    fill(report, findings);
    confirmed.iter().try_for_each(Confirmed::complete)
}

/// When a sweep was made.
#[derive(Clone, Copy)]
struct Swept {
    /// By the database's clock.
    started: Started,
    /// When its first read was answered, by the server's clock.
    read_at: Timestamp,
}

/// Records what is held. Before anything is appended: it must stay held, even if the sweep ends there.
async fn hold(work: &Work, directory: &str, confirmed: &[Confirmed]) -> Result<(), Failure> {
    for one in confirmed.iter().filter(|one| !one.incomplete) {
        let mut held = one.held.clone();
        if !one.unread.is_empty() {
            // What could not be read this time may be among what was held before.
            held.extend(stored(held::of(&work.pool, directory, one.entity)).await?);
        }
        stored(held::replace(&work.pool, directory, one.entity, &held)).await?;
        deletions::tell_held(directory, one.entity, held.len());
    }
    Ok(())
}

/// Records the outcome of the sweep: what is to be read again, and that it was made.
async fn note(
    work: &Work,
    directory: &str,
    swept: Swept,
    confirmed: &[Confirmed],
    findings: &Findings,
) -> Result<(), Failure> {
    let whole = confirmed.iter().all(|one| one.complete().is_ok());
    // Changes since the sweep began need no rereading: their events have arrived, and the list could not show them.
    let young: Vec<&Young> = findings
        .young
        .iter()
        .filter(|(_, _, until)| *until <= swept.read_at.plus(SECOND))
        .collect();
    let again_in = if sweeps_again(&young) {
        let readable = young.iter().map(|(_, _, until)| work.readable_after(*until));
        Some(again_in(readable, work.clock.now().into()))
    } else {
        let targets: Vec<_> = young
            .iter()
            .map(|(_, target, until)| (target.clone(), work.readable_after(*until).into()))
            .collect();
        stored(checks::again(&work.pool, &targets)).await?;
        None
    };
    if whole {
        let drift = (findings.drift.len() + findings.held.len()) as u64;
        stored(sweeps::finish(
            &work.pool,
            directory,
            swept.started,
            drift,
            again_in,
        ))
        .await?;
    }
    Ok(())
}

/// Whether differences too young to judge are left to another sweep instead of rereading each: there are too many, or
/// so many possible deletions that the guard should see them together.
fn sweeps_again(young: &[&Young]) -> bool {
    let maybe_gone = young
        .iter()
        .filter(|(difference, ..)| difference.kind == Kind::Extra);
    young.len() > REREADS || maybe_gone.count() > REREAD_DELETIONS
}

/// In how long the next sweep begins that can judge everything this one could not: at the latest of the times from
/// which on each can be read. If that is past, as it is when this sweep took longer than the margin, soon, but not at
/// once: if our clock is ahead, it is past by our clock, but not yet by `WorkOS`'s.
fn again_in(readable: impl Iterator<Item = Timestamp>, now: Timestamp) -> Duration {
    readable
        .max()
        .map_or(Duration::ZERO, |latest| latest.since(now))
        .clamp(LATER, AGAIN_WITHIN)
}

fn fill(report: &mut DirectoryReport, findings: Findings) {
    report.drift = findings.drift;
    report.held = findings.held;
    report.too_young = findings
        .young
        .into_iter()
        .map(|(difference, ..)| difference)
        .collect();
    report.older = findings.older;
    report.unreadable = findings.unreadable;
    for list in [
        &mut report.drift,
        &mut report.held,
        &mut report.too_young,
        &mut report.older,
    ] {
        list.sort_by(|a, b| (a.entity, a.kind, &a.id).cmp(&(b.entity, b.kind, &b.id)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_next_sweep_begins_when_everything_can_be_read_and_soon_if_it_can_be_read_already() {
        let at = |seconds: u64| Timestamp::from_micros(0).plus(Duration::from_secs(seconds));
        let now = at(10_000);
        for (readable, seconds) in [
            (vec![at(10_020), at(10_060), at(9_000)], 60),
            (vec![at(10_001)], 10),
            (vec![at(9_999), at(9_000)], 10),
            (vec![at(1)], 10),
            (vec![at(13_599)], 3_599),
            (vec![at(13_601)], 3_600),
        ] {
            let told = again_in(readable.iter().copied(), now);
            assert_eq!(told, Duration::from_secs(seconds), "{readable:?}");
        }
    }
}
