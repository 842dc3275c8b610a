//! The list of directories: which exist, their attributes, and which are gone.
//!
//! One reconciler reads it for all. A directory that is gone takes everything in it along. So it counts as gone only
//! if it is absent from the complete list, its own read confirms that, and not so many are gone at once that the API
//! key looks like another environment's.

use std::collections::HashMap;

use time::OffsetDateTime;

use crate::deletions::{self, Believed};
use crate::difference::{Difference, Entity, Kind};
use crate::findings::Findings;
use crate::judge::{self, named, plainly};
use crate::lease::Lease;
use crate::memberships::Way;
use crate::plan::{self, Known, Verdict};
use crate::reading::Reading;
use crate::report::DirectoryReport;
use crate::snapshot::Listed;
use crate::store::compared::Comparison;
use crate::store::{checks, directories, held, sweeps};
use crate::sweep::Mode;
use crate::work::{Failure, Work};
use crate::workos::pages::List;

/// The outcome of reading the list.
#[derive(Debug, Default)]
pub struct Pass {
    /// The directories that exist.
    pub there: Vec<String>,
    /// Differences in the directories themselves.
    pub findings: Findings,
    /// Directories that turned out to be gone.
    pub gone: Vec<String>,
    /// Directories that are not listed and whose own reads failed, so it is not known whether they are gone.
    pub unread: Vec<String>,
}

impl Pass {
    /// An error if some directories could not be read.
    pub fn complete(&self) -> Result<(), Failure> {
        match self.unread.len() {
            0 => Ok(()),
            unread => Err(Failure::Unconfirmed(Entity::Directory.as_str(), unread)),
        }
    }

    /// What it found in directories themselves, one report each.
    pub fn reports(&self) -> Vec<DirectoryReport> {
        let mut reports: HashMap<&str, DirectoryReport> = HashMap::new();
        let young = self.findings.young.iter().map(|(difference, ..)| difference);
        let of = [
            (self.findings.drift.iter().collect::<Vec<_>>(), 0),
            (self.findings.held.iter().collect(), 1),
            (young.collect(), 2),
        ];
        for (differences, list) in of {
            for difference in differences {
                let report = reports.entry(&difference.id).or_insert_with(|| DirectoryReport {
                    directory_id: difference.id.clone(),
                    complete: true,
                    ..DirectoryReport::default()
                });
                let lists = [&mut report.drift, &mut report.held, &mut report.too_young];
                for (place, target) in lists.into_iter().enumerate() {
                    if place == list {
                        target.push(difference.clone());
                    }
                }
            }
        }
        reports.into_values().collect()
    }
}

/// Reads the list, appends what differs, and adds new directories to those that are swept.
pub async fn pass(work: &Work, mode: Mode) -> Result<Pass, Failure> {
    let comparison = Comparison {
        entity: Entity::Directory,
        directory: "",
        values: mode.values,
        whole: false,
    };
    let mut listed = Listed::walk(work, comparison, List::directories(), |_| ()).await?;
    work.applied(work.rules.patience).await?;
    let mut pass = Pass {
        there: listed.ids().iter().cloned().collect(),
        ..Pass::default()
    };
    pass.there.sort();
    judge::there(
        work,
        comparison,
        listed.take_suspects(),
        listed.at(),
        &mut pass.findings,
    )
    .await?;
    judge_absent(work, &listed, &mut pass).await?;
    if !mode.dry_run {
        carry_out(work, &mut pass).await?;
    }
    Ok(pass)
}

/// Handles a directory whose own read says that it is gone: confirms it by the list, together with all others that are
/// gone.
pub async fn vanished(
    work: &Work,
    lease: &Lease,
    mode: Mode,
    report: &mut DirectoryReport,
) -> Result<(), Failure> {
    let directory = lease.directory();
    let found = pass(work, mode).await?;
    if found.there.iter().any(|id| id == directory) {
        return Err(Failure::Incomplete("directories"));
    }
    if found.unread.iter().any(|id| id == directory) {
        found.complete()?;
    }
    let own = |difference: &&Difference| difference.id == directory;
    report
        .drift
        .extend(found.findings.drift.iter().filter(own).cloned());
    report
        .held
        .extend(found.findings.held.iter().filter(own).cloned());
    let young = found.findings.young.iter().map(|(difference, ..)| difference);
    report.too_young.extend(young.filter(own).cloned());
    let told = report.found() + report.too_young.len() > 0 || found.gone.iter().any(|id| id == directory);
    // Taking its lease created a row if there was none.
    if !told || (!mode.dry_run && report.held.is_empty() && report.too_young.is_empty()) {
        sweeps::remove(&work.pool, directory).await?;
        // Also if an event reported its end: no sweep looks here again, and nobody needs to approve what went with it.
        if !mode.dry_run {
            held::clear(&work.pool, directory).await?;
        }
    }
    if told { Ok(()) } else { Err(Failure::Unknown) }
}

async fn judge_absent(work: &Work, listed: &Listed, pass: &mut Pass) -> Result<(), Failure> {
    let shown: HashMap<String, OffsetDateTime> = directories::shown(&work.pool).await?;
    let count = shown.len();
    let mut candidates = Vec::new();
    for (id, seen_at) in shown {
        if listed.ids().contains(&id) {
            continue;
        }
        let known = Known {
            shown: true,
            seen_at: Some(seen_at.into()),
            ..Known::default()
        };
        match plan::gone(&known, listed.at()) {
            Verdict::Drift(_) => candidates.push(named(Entity::Directory, id)),
            verdict => {
                let reading = || Reading::missing(Entity::Directory, &id, &id, listed.at());
                pass.findings
                    .take(plainly(Entity::Directory, &id, &id), verdict, reading);
            }
        }
    }
    candidates.sort();
    // None of our directories exists: the wrong key is likelier than the end of every customer.
    let believed = if count > 1 && candidates.len() == count {
        Believed::None
    } else {
        Believed::by_guard(work, count)
    };
    let confirmed =
        deletions::confirm(work, "", Entity::Directory, candidates, believed, Way::NoGroups).await?;
    if confirmed.incomplete {
        return confirmed.complete(Entity::Directory);
    }
    pass.unread = confirmed.unread.into_iter().map(|one| one.user_id).collect();
    for one in &confirmed.gone {
        let id = one.user_id.as_str();
        let judged = plainly(Entity::Directory, id, id);
        pass.findings.take(judged, Verdict::Drift(Kind::Extra), || {
            Reading::missing(Entity::Directory, id, id, listed.at())
        });
        pass.gone.push(id.to_owned());
    }
    pass.findings
        .held
        .extend(confirmed.held.into_iter().map(|one| Difference {
            entity: Entity::Directory,
            kind: Kind::Extra,
            id: one.user_id,
            columns: Vec::new(),
            values: None,
        }));
    Ok(())
}

async fn carry_out(work: &Work, pass: &mut Pass) -> Result<(), Failure> {
    for difference in pass.findings.drift.iter().chain(&pass.findings.held) {
        tracing::info!(
            directory = difference.id,
            kind = difference.kind.as_str(),
            "a directory differs between WorkOS and the tables"
        );
        let labels = [difference.entity.as_str(), difference.kind.as_str()];
        work.metrics.drift.with_label_values(&labels).inc();
    }
    let readings = std::mem::take(&mut pass.findings.readings);
    pass.findings.unreadable += work.append_readings(readings).await?;
    let held: Vec<String> = pass.findings.held.iter().map(|one| one.id.clone()).collect();
    held::replace_directories(&work.pool, &held).await?;
    for gone in &pass.gone {
        held::clear(&work.pool, gone).await?;
        sweeps::remove(&work.pool, gone).await?;
    }
    let targets: Vec<_> = pass
        .findings
        .young
        .iter()
        .map(|(_, target, until)| (target.clone(), work.readable_after(*until).into()))
        .collect();
    checks::again(&work.pool, &targets).await?;
    sweeps::add(&work.pool, &pass.there).await?;
    Ok(())
}
