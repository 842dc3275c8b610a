//! The subcommands `sweep`, which makes one pass now, and `approve`, which applies held deletions.

use std::collections::{BTreeSet, HashSet};
use std::io::Write;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use futures_util::{StreamExt as _, stream};
use schema::timestamp::Timestamp;
use serde_json::json;
use service::progress;

use crate::config::SweepArgs;
use crate::deletions::{self, Absent, Looked, really_gone};
use crate::difference::Entity;
use crate::directories;
use crate::key::ObjectKey;
use crate::lease::Lease;
use crate::memberships::Side;
use crate::reading::{Pair, Reading};
use crate::report::{DirectoryReport, Report};
use crate::snapshot::Listed;
use crate::store::compared::Comparison;
use crate::store::{groups, held, sweeps, users};
use crate::sweep::{Mode, sweep};
use crate::work::{Failure, Work, contained, stored};
use crate::workos::client::ApiError;
use crate::workos::pages::List;

/// Exit code when there was drift.
const DRIFT: u8 = 3;
/// Directories swept at once.
const AT_ONCE: usize = 26;
/// Up to this many held users or groups are each read before their deletion is applied. If there are more, their list
/// is read again, and only a sample of them. Directories and memberships are always each read.
const READ_EACH: usize = 100;
/// How long to wait for the projector after everything was appended, so that the next reader sees the repairs.
const SHOWN_WITHIN: Duration = Duration::from_secs(20);

/// `sweep`: makes one pass now and writes its report to `out`.
pub async fn run_sweep(work: &Work, args: &SweepArgs, out: &mut impl Write) -> anyhow::Result<ExitCode> {
    let mode = Mode {
        dry_run: args.dry_run,
        values: args.values,
    };
    let report = pass(work, args.directory.as_deref(), mode).await;
    if args.json {
        writeln!(out, "{}", serde_json::to_string_pretty(&report)?)?;
    } else {
        write!(out, "{}", report.text())?;
    }
    Ok(if report.is_incomplete() {
        ExitCode::FAILURE
    } else if report.has_drift() {
        ExitCode::from(DRIFT)
    } else {
        ExitCode::SUCCESS
    })
}

/// Makes one pass over one directory, or over all.
pub async fn pass(work: &Work, only: Option<&str>, mode: Mode) -> Report {
    let began = Instant::now();
    let mut report = Report {
        dry_run: mode.dry_run,
        ..Report::default()
    };
    let listing = Work {
        api: work.api.counting(),
        ..work.clone()
    };
    let (chosen, found) = match only {
        Some(directory) => (vec![directory.to_owned()], Vec::new()),
        None => match contained(directories::pass(&listing, mode)).await {
            Ok(pass) => {
                report.error = pass.complete().err().map(|error| error.to_string());
                (pass.there.clone(), pass.reports())
            }
            Err(error) => {
                report.error = Some(error.to_string());
                (Vec::new(), Vec::new())
            }
        },
    };
    let bar = progress::bar("directories");
    bar.set_length(chosen.len() as u64);
    let mut swept: Vec<DirectoryReport> = stream::iter(chosen)
        .map(|directory| {
            let bar = bar.clone();
            async move {
                let report = sweep_one(work, &directory, mode).await;
                bar.inc(1);
                report
            }
        })
        .buffer_unordered(AT_ONCE)
        .collect()
        .await;
    bar.finish_and_clear();
    for found in found {
        match swept
            .iter_mut()
            .find(|one| one.directory_id == found.directory_id)
        {
            Some(one) if mode.dry_run => one.held.extend(found.held),
            Some(one) => {
                one.drift.splice(0..0, found.drift);
                one.held.extend(found.held);
                one.too_young.extend(found.too_young);
            }
            None => swept.push(found),
        }
    }
    swept.sort_by(|a, b| a.directory_id.cmp(&b.directory_id));
    report.requests = listing.api.requests() + swept.iter().map(|one| one.requests).sum::<u64>();
    report.directories = swept;
    if !mode.dry_run && report.has_drift() {
        shown(work).await;
    }
    report.seconds = began.elapsed().as_secs_f64();
    report
}

/// Waits until readers see what was appended. If that takes too long, it is the projector's problem, and is only
/// logged.
async fn shown(work: &Work) {
    if let Err(error) = work.applied(SHOWN_WITHIN).await {
        tracing::warn!(%error, "the projector has not applied the appended records yet");
    }
}

async fn sweep_one(work: &Work, directory: &str, mode: Mode) -> DirectoryReport {
    match lease(work, directory, true).await {
        Ok(lease) => {
            let report = sweep(work, &lease, mode).await;
            lease.release().await;
            report
        }
        Err(error) => DirectoryReport {
            directory_id: directory.to_owned(),
            error: Some(Failure::from(error).to_string()),
            ..DirectoryReport::default()
        },
    }
}

/// Takes the directory's lease as soon as nobody else holds it.
async fn lease(work: &Work, directory: &str, to_sweep: bool) -> sqlx::Result<Lease> {
    let mut told = false;
    loop {
        if let Some(lease) = work.leases.take(directory, to_sweep).await? {
            return Ok(lease);
        }
        if !told {
            tracing::warn!(
                directory,
                "another reconciler is working on this directory; waiting for it"
            );
            told = true;
        }
        tokio::time::sleep(Duration::from_millis(250)).await;
    }
}

/// `approve`: applies the deletions held back in a directory, after checking again that the objects are gone.
pub async fn run_approve(
    work: &Work,
    directory: &str,
    as_json: bool,
    out: &mut impl Write,
) -> anyhow::Result<ExitCode> {
    let lease = lease(work, directory, false).await?;
    let approved = approve(work, &lease).await;
    lease.release().await;
    let Approved {
        deleted,
        back,
        unread,
    } = approved?;
    shown(work).await;
    if as_json {
        let done = json!({ "directory_id": directory, "deleted": deleted, "there_after_all": back });
        writeln!(out, "{done}")?;
    } else {
        writeln!(
            out,
            "{directory}: {deleted} deletions approved, {back} dropped because the objects exist"
        )?;
    }
    anyhow::ensure!(
        unread == 0,
        "{unread} objects could not be read; their deletions stay held back"
    );
    Ok(ExitCode::SUCCESS)
}

/// What became of the held deletions.
#[derive(Default)]
struct Approved {
    deleted: usize,
    /// The objects exist after all.
    back: usize,
    /// The objects could not be read; the deletions stay held.
    unread: usize,
}

async fn approve(work: &Work, lease: &Lease) -> anyhow::Result<Approved> {
    let directory = lease.directory();
    let (mut all, mut any) = (Approved::default(), false);
    for entity in Entity::EVERY {
        let held = stored(held::of(&work.pool, directory, entity)).await?;
        any |= !held.is_empty();
        let one = let_through(work, directory, entity, &held)
            .await
            .with_context(|| format!("cannot check the held {} deletions", entity.as_str()))?;
        all.deleted += one.deleted;
        all.back += one.back;
        all.unread += one.unread;
        if entity == Entity::Directory && one.deleted > 0 {
            // What else was held in it went with it.
            stored(held::clear(&work.pool, directory)).await?;
            break;
        }
    }
    if !any {
        // Taking the lease created a row if there was none.
        let known = stored(crate::store::directories::seen_at(&work.pool, directory)).await?;
        if known.is_none() {
            stored(sweeps::remove(&work.pool, directory)).await?;
            anyhow::bail!("there is no directory {directory}");
        }
        anyhow::bail!("nothing is held back in {directory}");
    }
    Ok(all)
}

/// For many users or groups: those that a second complete list lacks too, provided that reads of a sample agree, and of
/// those that no list has although nobody holds them: the sweep may have found that they exist. Thousands of single reads at
/// 4 a second would take the better part of an hour. `None`: each must be read, for example because the directory is gone
/// and has no lists.
async fn by_list(
    work: &Work,
    directory: &str,
    absent: Absent,
    asked: &[ObjectKey],
) -> Result<Option<Vec<(ObjectKey, Timestamp)>>, Failure> {
    let list = match absent {
        Absent::Users => List::users(directory),
        Absent::Groups => List::groups(directory),
        Absent::Directories { .. } | Absent::Memberships(_) => return Ok(None),
    };
    if asked.len() <= READ_EACH {
        return Ok(None);
    }
    let entity = absent.entity();
    let comparison = Comparison {
        entity,
        directory,
        values: false,
    };
    let listed = match Listed::walk(work, comparison, list, false, |_| ()).await {
        Err(Failure::Api(ApiError::NotFound(_))) => return Ok(None),
        listed => listed?,
    };
    let is_listed = |key: &ObjectKey| listed.ids().contains(&key.id(entity));
    let gone: Vec<ObjectKey> = asked.iter().filter(|key| !is_listed(key)).cloned().collect();
    let shown = match entity {
        Entity::Group => stored(groups::shown(&work.pool, directory)).await?,
        _ => stored(users::shown(&work.pool, directory)).await?,
    };
    let held: HashSet<&ObjectKey> = asked.iter().collect();
    let mut others: Vec<ObjectKey> = shown
        .into_iter()
        .filter(|(_, seen_at)| Timestamp::from(*seen_at) <= listed.at())
        .map(|(id, _)| ObjectKey::of(entity, id))
        .filter(|key| !held.contains(key) && !is_listed(key))
        .collect();
    others.sort();
    let sample: Vec<ObjectKey> = [&gone, &others]
        .into_iter()
        .flat_map(|keys| deletions::sample(keys))
        .cloned()
        .collect();
    let looked = really_gone(work, directory, absent, &sample).await?;
    let agree = looked.gone.len() == sample.len();
    Ok(agree.then(|| gone.into_iter().map(|key| (key, listed.at())).collect()))
}

/// Appends the deletions of those `held` that are gone, as of the time each was found to be gone.
async fn let_through(
    work: &Work,
    directory: &str,
    entity: Entity,
    held: &[ObjectKey],
) -> Result<Approved, Failure> {
    let (absent, asked) = match entity {
        // In the table, a directory's own deletion names nothing but the directory.
        Entity::Directory => {
            let itself = ObjectKey::of(entity, directory.to_owned());
            let absent = Absent::Directories {
                none_is_listed: false,
            };
            (absent, vec![itself; held.len()])
        }
        Entity::User => (Absent::Users, held.to_vec()),
        Entity::Group => (Absent::Groups, held.to_vec()),
        Entity::Membership => (Absent::Memberships(Side::User), held.to_vec()),
    };
    let looked = match by_list(work, directory, absent, &asked).await? {
        Some(gone) => Looked {
            gone,
            ..Looked::default()
        },
        None => really_gone(work, directory, absent, &asked).await?,
    };
    let Looked {
        mut gone,
        ownerless,
        mut unread,
        ..
    } = looked;
    // Who is not found is in no group.
    gone.extend(ownerless);
    // A directory itself is approved by name, and may be the last.
    if entity != Entity::Directory && !gone.is_empty() && !directories::is_ours(work, directory).await? {
        unread.extend(gone.drain(..).map(|(key, _)| key));
    }
    let readings = gone
        .iter()
        .map(|(key, at)| match entity {
            Entity::Directory | Entity::User | Entity::Group => {
                Reading::missing(entity, directory, &key.id(entity), *at)
            }
            Entity::Membership => {
                let pair = Pair {
                    directory,
                    organization: None,
                    group: &key.group_id,
                    user: &key.user_id,
                };
                Reading::membership(pair, false, *at)
            }
        })
        .collect();
    work.append_readings(readings).await?;
    let unread: BTreeSet<ObjectKey> = unread.into_iter().collect();
    let settled: Vec<ObjectKey> = held
        .iter()
        .zip(&asked)
        .filter(|(_, asked)| !unread.contains(asked))
        .map(|(held, _)| held.clone())
        .collect();
    stored(held::remove(&work.pool, directory, entity, &settled)).await?;
    Ok(Approved {
        deleted: gone.len(),
        back: settled.len() - gone.len(),
        unread: unread.len(),
    })
}
