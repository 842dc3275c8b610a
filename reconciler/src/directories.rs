//! The list of directories: which exist, their attributes, and which are gone.
//!
//! One reconciler reads it for all. A directory that is gone takes everything in it along. So it counts as gone only
//! if it is absent from the complete list, its own read confirms that, and not so many are gone at once that the API
//! key looks like another environment's.

use std::collections::{HashMap, HashSet};

use schema::timestamp::Timestamp;
use time::OffsetDateTime;

use crate::deletions::{self, Absent};
use crate::difference::{Difference, Entity};
use crate::findings::Findings;
use crate::judge;
use crate::key::ObjectKey;
use crate::lease::Lease;
use crate::report::DirectoryReport;
use crate::snapshot::Listed;
use crate::store::compared::Comparison;
use crate::store::{checks, directories, held, sweeps};
use crate::sweep::Mode;
use crate::work::{Failure, Work, stored};
use crate::workos::objects::Read;
use crate::workos::pages::{List, Pages, id_of};

/// The outcome of reading the list.
#[derive(Debug, Default)]
pub struct Pass {
    /// The directories that exist; none if the API key may be another environment's.
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
    };
    let mut listed = Listed::walk(work, comparison, List::directories(), false, |_| ()).await?;
    work.applied(work.rules.patience).await?;
    let mut pass = Pass {
        there: listed.ids().iter().cloned().collect(),
        ..Pass::default()
    };
    pass.there.sort();
    let shown = stored(directories::shown(&work.pool)).await?;
    let none_is_listed = none_is_listed(&shown, listed.ids(), listed.at());
    if none_is_listed {
        // Another environment's directories would also make ours look like a few among many.
        pass.there.clear();
        tracing::error!(
            known = shown.len(),
            listed = listed.ids().len(),
            "WorkOS lists none of the directories that the tables have: is WORKOS_API_KEY another environment's? No directory \
             is added, and deletions wait for approval"
        );
    } else {
        let suspects = listed.take_suspects();
        judge::there(work, comparison, suspects, listed.at(), &mut pass.findings).await?;
    }
    let absent = Absent::Directories { none_is_listed };
    let confirmed = judge::absent(work, "", absent, shown, &listed, &mut pass.findings).await?;
    if confirmed.incomplete {
        confirmed.complete()?;
    }
    let ids = |keys: Vec<ObjectKey>| keys.iter().map(|key| key.id(Entity::Directory)).collect();
    (pass.gone, pass.unread) = (ids(confirmed.gone), ids(confirmed.unread));
    if !mode.dry_run {
        carry_out(work, &mut pass).await?;
    }
    Ok(pass)
}

/// Fails if the API key looks like another environment's: `WorkOS` lists none of the directories that readers see.
pub async fn recognise(work: &Work) -> Result<(), Failure> {
    let shown = stored(directories::shown(&work.pool)).await?;
    if shown.is_empty() {
        return Ok(());
    }
    let mut pages = Pages::of(&work.api, List::directories());
    let mut listed = HashSet::new();
    while let Some(page) = pages.next().await? {
        let ids = page.objects.iter().filter_map(|object| id_of(object));
        listed.extend(ids);
    }
    let Some(walked) = pages.walked() else {
        return Ok(());
    };
    if none_is_listed(&shown, &listed, work.as_of(walked.first_at)) {
        return Err(Failure::OtherEnvironment);
    }
    Ok(())
}

/// Whether the API key sees our environment, where it did not find something of this directory: another environment's finds
/// nothing of ours, nor the directory.
pub(crate) async fn is_ours(work: &Work, directory: &str) -> Result<bool, Failure> {
    if let Read::There(..) = work.api.directory(directory).await? {
        return Ok(true);
    }
    match recognise(work).await {
        Err(Failure::OtherEnvironment) => Ok(false),
        recognised => recognised.map(|()| true),
    }
}

/// Whether a list as of `at` has none of the directories that readers see, and that is not because all of them are younger
/// than the list. Even the only one there is: its deletion comes as an event, and what nobody told of may be a wrong key.
fn none_is_listed(shown: &HashMap<String, OffsetDateTime>, listed: &HashSet<String>, at: Timestamp) -> bool {
    let older = shown.values().any(|seen_at| Timestamp::from(*seen_at) <= at);
    older && shown.keys().all(|id| !listed.contains(id))
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
    let is_held = !stored(held::of(&work.pool, directory, Entity::Directory))
        .await?
        .is_empty();
    if is_held
        && stored(directories::seen_at(&work.pool, directory))
            .await?
            .is_some()
    {
        // The list pass decides about it, or people do: one pass for each of many held would be too many.
        report
            .held
            .push(Difference::extra(Entity::Directory, directory.to_owned()));
        if !mode.dry_run {
            stored(sweeps::fail(&work.pool, directory)).await?;
        }
        return Ok(());
    }
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
        // Also if an event reported its end: no sweep looks here again, and nobody needs to approve what went with it.
        if !mode.dry_run {
            stored(held::clear(&work.pool, directory)).await?;
        }
        stored(sweeps::remove(&work.pool, directory)).await?;
    } else if !mode.dry_run {
        // It stays due, and would be swept again at once, for as long as nobody decides.
        stored(sweeps::fail(&work.pool, directory)).await?;
    }
    if told { Ok(()) } else { Err(Failure::Unknown) }
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
    // Before anything is appended: what is held must stay so, even if this pass ends here.
    let held: Vec<String> = pass.findings.held.iter().map(|one| one.id.clone()).collect();
    stored(held::replace_directories(&work.pool, &held)).await?;
    deletions::tell_held("", Entity::Directory, held.len());
    let readings = std::mem::take(&mut pass.findings.readings);
    pass.findings.unreadable += work.append_readings(readings).await?;
    for gone in &pass.gone {
        stored(held::clear(&work.pool, gone)).await?;
        stored(sweeps::remove(&work.pool, gone)).await?;
    }
    let targets: Vec<_> = pass
        .findings
        .young
        .iter()
        .map(|(_, target, until)| (target.clone(), work.readable_after(*until).into()))
        .collect();
    stored(checks::again(&work.pool, &targets)).await?;
    stored(sweeps::add(&work.pool, &pass.there)).await?;
    Ok(())
}
