//! A sweep of one directory: everything `WorkOS` has in it, compared with everything the tables show of it, and an
//! observation appended for every difference.
//!
//! ```text
//!   read directory ─► walk groups ─► walk users ∥ memberships ─► wait for the projector ─► compare, judge (pure)
//!                                                                                              │
//!        notes: swept, held, to be read again ◄─ append ◄─ still ours? ◄─ confirm absences ◄───┘
//! ```
//!
//! Nothing is appended before everything was read, and nothing is noted before it was appended. A sweep that fails, is
//! stopped or loses its lease leaves nothing behind; the next one begins anew.

use std::collections::{HashMap, HashSet};
use std::time::{Duration, Instant};

use schema::timestamp::Timestamp;
use time::OffsetDateTime;
use tokio::sync::oneshot;

use crate::deletions::{self, Believed, Confirmed};
use crate::difference::{Difference, Entity, Kind};
use crate::directories;
use crate::findings::{Findings, Judged};
use crate::lease::Lease;
use crate::memberships::{Memberships, Way, cheaper};
use crate::plan::{self, Known, Verdict};
use crate::reading::{Pair, Reading};
use crate::report::DirectoryReport;
use crate::snapshot::{Listed, Snapshot};
use crate::store::checks::What;
use crate::store::compared::{Comparison, compare};
use crate::store::held::Held;
use crate::store::{checks, groups, held, memberships, sweeps, users};
use crate::work::{Failure, Work};
use crate::workos::objects::Read;
use crate::workos::pages::List;

/// Objects compared by one statement, after the walk.
const CHUNK: usize = 500;
/// With more differences than this too young to judge, the whole directory is swept again instead of each being read.
const REREADS: usize = 200;

/// The same, of those that are perhaps gone.
const REREAD_DELETIONS: usize = 10;

/// How a pass is made.
#[derive(Clone, Copy, Debug, Default)]
pub struct Mode {
    /// Only tell; append and note nothing.
    pub dry_run: bool,
    /// Tell values too.
    pub values: bool,
}

/// Sweeps the directory of `lease`. What could not be done is in the report.
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
        outcome = run(&work, lease, mode, &mut report) => outcome,
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
    for difference in report.drift.iter().chain(&report.held) {
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
            "this directory could not be swept whole"
        );
        if let Err(error) = sweeps::fail(&work.pool, directory).await {
            tracing::debug!(directory, %error, "the failure is not noted");
        }
    } else {
        tracing::info!(
            directory,
            drift,
            held,
            too_young,
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
    let started_at = match mode.dry_run {
        true => None,
        false => Some(
            sweeps::start(&work.pool, directory, work.leases.holder())
                .await?
                .ok_or(Failure::LeaseLost)?,
        ),
    };
    let mut findings = Findings::default();
    let Read::There(read_at, object) = work.api.directory(directory).await? else {
        return directories::vanished(work, lease, mode, report).await;
    };
    let snapshot = walk(work, directory, &object, &mut findings, mode, report).await?;
    work.applied(work.rules.patience).await?;
    let of_directory = Comparison {
        entity: Entity::Directory,
        directory,
        values: mode.values,
    };
    let itself = [(directory.to_owned(), object)];
    judge_there(work, of_directory, &itself, work.as_of(read_at), &mut findings).await?;
    let mut decided = vec![
        judge_objects(work, directory, mode, &snapshot.users, &mut findings).await?,
        judge_objects(work, directory, mode, &snapshot.groups, &mut findings).await?,
    ];
    decided.push(judge_memberships(work, directory, &itself[0].1, &snapshot, &mut findings).await?);
    if let Some(started_at) = started_at {
        if !lease.is_held().await? {
            return Err(Failure::LeaseLost);
        }
        let readings = std::mem::take(&mut findings.readings);
        findings.unreadable += work.append_readings(readings).await?;
        note(work, directory, started_at, &decided, &findings).await?;
    }
    let incomplete = decided.iter().find(|decided| decided.confirmed.incomplete);
    fill(report, findings);
    match incomplete {
        Some(decided) => Err(Failure::Incomplete(decided.entity.as_str())),
        None => Ok(()),
    }
}

/// Reads everything there is in the directory.
async fn walk(
    work: &Work,
    directory: &str,
    object: &str,
    findings: &mut Findings,
    mode: Mode,
    report: &mut DirectoryReport,
) -> Result<Snapshot, Failure> {
    let comparison = |entity| Comparison {
        entity,
        directory,
        values: mode.values,
    };
    let groups = Listed::walk(work, comparison(Entity::Group), List::groups(directory), |_| ()).await?;
    let expected = users::count(&work.pool, directory).await?.max(users_told(object));
    let (say, said) = oneshot::channel();
    let walk_users = async {
        let first = |filled| {
            // Nobody listens any more: the other side failed, and so do we.
            let _ = say.send(filled);
        };
        Listed::walk(work, comparison(Entity::User), List::users(directory), first).await
    };
    // Members are read while users are, unless users say it all themselves or must be known first.
    let members = Work {
        api: work.api.counting(),
        ..work.clone()
    };
    let names: Vec<String> = groups.ids().iter().cloned().collect();
    let walk_members = async {
        if said.await.unwrap_or(true) {
            return Ok(None);
        }
        match cheaper(&members, directory, &groups, expected.max(1)).await? {
            Way::ByGroup => Memberships::by_group(&members, directory, &names).await.map(Some),
            _ => Ok(None),
        }
    };
    let (users, early) = tokio::try_join!(walk_users, walk_members)?;
    let memberships = match early {
        Some(early) => early,
        None => match Memberships::from_field(&members, directory, &users, &groups).await? {
            Some(told) => told,
            None => match cheaper(&members, directory, &groups, users.ids().len()).await? {
                Way::ByGroup => Memberships::by_group(&members, directory, &names).await?,
                Way::ByUser => Memberships::by_user(&members, directory, &users).await?,
                Way::NoGroups | Way::Field => Memberships::none(users.at()),
            },
        },
    };
    findings.unreadable += users.unreadable() + groups.unreadable();
    report.users = users.ids().len();
    report.groups = groups.ids().len();
    report.memberships = memberships.members().values().map(HashSet::len).sum();
    report.memberships_read = Some(memberships.way());
    report.membership_requests = members.api.requests();
    work.api.add_requests(members.api.requests());
    Ok(Snapshot {
        users,
        groups,
        memberships,
    })
}

/// What was decided about absences of one kind.
struct Decided {
    entity: Entity,
    confirmed: Confirmed,
}

/// Judges listed objects that did not look as their rows when their page came, as the rows are now.
pub(crate) async fn judge_there(
    work: &Work,
    comparison: Comparison<'_>,
    objects: &[(String, String)],
    at: Timestamp,
    findings: &mut Findings,
) -> Result<(), Failure> {
    for chunk in objects.chunks(CHUNK) {
        let texts: Vec<&str> = chunk.iter().map(|(_, object)| object.as_str()).collect();
        let compared = compare(&work.pool, comparison, &texts).await?;
        findings.unreadable += compared.unreadable.len();
        for suspect in compared.suspects {
            let (id, object) = &chunk[suspect.index];
            let verdict = plan::there(&suspect.known, true, work.times(at, suspect.updated_at));
            let judged = Judged {
                entity: comparison.entity,
                directory: comparison.directory,
                id,
                columns: suspect.columns,
                values: suspect.values,
                side: What::MembershipsOfUser,
            };
            findings.take(judged, verdict, || {
                Reading::listed(comparison.entity, comparison.directory, id, object, at)
            });
        }
    }
    Ok(())
}

/// Judges a complete list of users or groups: what it has, and what it lacks.
async fn judge_objects(
    work: &Work,
    directory: &str,
    mode: Mode,
    listed: &Listed,
    findings: &mut Findings,
) -> Result<Decided, Failure> {
    let entity = listed.entity();
    let comparison = Comparison {
        entity,
        directory,
        values: mode.values,
    };
    judge_there(work, comparison, listed.suspects(), listed.at(), findings).await?;
    let shown = match entity {
        Entity::Group => groups::shown(&work.pool, directory).await?,
        _ => users::shown(&work.pool, directory).await?,
    };
    let count = shown.len();
    let absent: HashMap<String, OffsetDateTime> = shown
        .into_iter()
        .filter(|(id, _)| !listed.ids().contains(id))
        .collect();
    let mut candidates = Vec::new();
    for (id, seen_at) in absent {
        let known = Known {
            shown: true,
            seen_at: Some(seen_at.into()),
            ..Known::default()
        };
        match plan::gone(&known, listed.at()) {
            Verdict::Drift(_) => candidates.push(named(entity, id)),
            verdict => {
                let reading = || Reading::missing(entity, directory, &id, listed.at());
                findings.take(plainly(entity, directory, &id), verdict, reading);
            }
        }
    }
    candidates.sort();
    let confirmed = deletions::confirm(
        work,
        directory,
        entity,
        candidates,
        Believed::by_guard(work, count),
        Way::NoGroups,
    )
    .await?;
    for one in &confirmed.gone {
        let id = id_of(entity, one);
        findings.take(
            plainly(entity, directory, &id),
            Verdict::Drift(Kind::Extra),
            || Reading::missing(entity, directory, &id, listed.at()),
        );
    }
    hold(findings, entity, &confirmed.held);
    Ok(Decided { entity, confirmed })
}

/// Judges memberships whose user and group were both listed; of the others, user or group itself tells.
async fn judge_memberships(
    work: &Work,
    directory: &str,
    directory_object: &str,
    snapshot: &Snapshot,
    findings: &mut Findings,
) -> Result<Decided, Failure> {
    let read = &snapshot.memberships;
    let (users, groups) = (snapshot.users.ids(), snapshot.groups.ids());
    let entity = Entity::Membership;
    let side = match read.way() {
        Way::ByUser => What::MembershipsOfGroup,
        _ => What::MembershipsOfUser,
    };
    let organization = organization_of(directory_object);
    let reading = |group: &str, user: &str, there, at| {
        let pair = Pair {
            directory,
            organization: organization.as_deref(),
            group,
            user,
        };
        Reading::membership(pair, there, at)
    };
    let mut shown: HashMap<String, HashSet<String>> = HashMap::new();
    let mut absent = Vec::new();
    let mut count = 0;
    memberships::shown(&work.pool, directory, |row| {
        count += 1;
        let both_listed = users.contains(&row.user_id) && groups.contains(&row.group_id);
        if both_listed && !read.has(&row.group_id, &row.user_id) {
            absent.push(row);
        } else {
            shown.entry(row.group_id).or_default().insert(row.user_id);
        }
    })
    .await?;
    let mut candidates = Vec::new();
    for row in absent {
        let Some(at) = read.at(&row.group_id, &row.user_id) else {
            continue;
        };
        let known = Known {
            shown: true,
            seen_at: Some(row.seen_at.into()),
            ..Known::default()
        };
        let id = format!("{}/{}", row.group_id, row.user_id);
        match plan::gone(&known, at) {
            Verdict::Drift(_) => candidates.push(Held {
                group_id: row.group_id,
                user_id: row.user_id,
            }),
            verdict => findings.take(from_side(directory, &id, side), verdict, || {
                reading(&row.group_id, &row.user_id, false, at)
            }),
        }
    }
    candidates.sort();
    let confirmed = deletions::confirm(
        work,
        directory,
        entity,
        candidates,
        Believed::by_guard(work, count),
        read.way(),
    )
    .await?;
    for one in &confirmed.gone {
        let Some(at) = read.at(&one.group_id, &one.user_id) else {
            continue;
        };
        let id = id_of(entity, one);
        findings.take(
            from_side(directory, &id, side),
            Verdict::Drift(Kind::Extra),
            || reading(&one.group_id, &one.user_id, false, at),
        );
    }
    hold(findings, entity, &confirmed.held);
    let mut missing: Vec<(&str, &str)> = Vec::new();
    for (group, members) in read.members() {
        let known = shown.get(group);
        let new = members.iter().filter(|user| {
            users.contains(*user)
                && groups.contains(group)
                && known.is_none_or(|known| !known.contains(*user))
        });
        missing.extend(new.map(|user| (group.as_str(), user.as_str())));
    }
    missing.sort_unstable();
    for chunk in missing.chunks(CHUNK) {
        let known = memberships::known(&work.pool, directory, chunk).await?;
        for ((group, user), known) in chunk.iter().zip(&known) {
            let Some(at) = read.at(group, user) else { continue };
            let id = format!("{group}/{user}");
            let verdict = plan::there(known, false, work.times(at, None));
            findings.take(from_side(directory, &id, side), verdict, || {
                reading(group, user, true, at)
            });
        }
    }
    Ok(Decided { entity, confirmed })
}

/// Notes what came of the sweep: what is held, what is to be read again, and that it was made.
async fn note(
    work: &Work,
    directory: &str,
    started_at: OffsetDateTime,
    decided: &[Decided],
    findings: &Findings,
) -> Result<(), Failure> {
    let complete = decided.iter().filter(|decided| !decided.confirmed.incomplete);
    for decided in complete.clone() {
        held::replace(&work.pool, directory, decided.entity, &decided.confirmed.held).await?;
    }
    let whole = complete.count() == decided.len();
    let again_in = if sweeps_again(findings) {
        let latest = findings
            .young
            .iter()
            .map(|(_, _, until)| work.readable_after(*until))
            .max();
        latest.map(|latest| until(latest, work.clock.now().into()))
    } else {
        let targets: Vec<_> = findings
            .young
            .iter()
            .map(|(_, target, until)| (target.clone(), work.readable_after(*until).into()))
            .collect();
        checks::again(&work.pool, &targets).await?;
        None
    };
    if whole {
        let drift = (findings.drift.len() + findings.held.len()) as u64;
        sweeps::finish(&work.pool, directory, started_at, drift, again_in).await?;
    }
    Ok(())
}

/// Whether what is too young to judge is left to another sweep, instead of each being read: too many, or so many that
/// are perhaps gone that the guard should see them together.
fn sweeps_again(findings: &Findings) -> bool {
    let maybe_gone = findings
        .young
        .iter()
        .filter(|(difference, ..)| difference.kind == Kind::Extra);
    findings.young.len() > REREADS || maybe_gone.count() > REREAD_DELETIONS
}

fn until(moment: Timestamp, now: Timestamp) -> Duration {
    let micros = moment.as_micros().saturating_sub(now.as_micros());
    Duration::from_micros(micros.unsigned_abs()).min(Duration::from_hours(1))
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

fn hold(findings: &mut Findings, entity: Entity, held: &[Held]) {
    findings.held.extend(held.iter().map(|one| Difference {
        entity,
        kind: Kind::Extra,
        id: id_of(entity, one),
        columns: Vec::new(),
        values: None,
    }));
}

pub(crate) fn plainly<'a>(entity: Entity, directory: &'a str, id: &'a str) -> Judged<'a> {
    Judged {
        entity,
        directory,
        id,
        columns: Vec::new(),
        values: None,
        side: What::MembershipsOfUser,
    }
}

/// A membership, to be read again from `side`.
fn from_side<'a>(directory: &'a str, id: &'a str, side: What) -> Judged<'a> {
    Judged {
        side,
        ..plainly(Entity::Membership, directory, id)
    }
}

pub(crate) fn named(entity: Entity, id: String) -> Held {
    let (group_id, user_id) = match entity {
        Entity::Group => (id, String::new()),
        _ => (String::new(), id),
    };
    Held { group_id, user_id }
}

fn id_of(entity: Entity, held: &Held) -> String {
    match entity {
        Entity::Membership => format!("{}/{}", held.group_id, held.user_id),
        Entity::Group => held.group_id.clone(),
        Entity::User | Entity::Directory => held.user_id.clone(),
    }
}

/// How many users the directory says it has.
fn users_told(directory: &str) -> usize {
    let told = || -> Option<usize> {
        let directory: serde_json::Value = serde_json::from_str(directory).ok()?;
        let users = directory.pointer("/metadata/users")?;
        let count = |state: &str| users[state].as_u64().unwrap_or_default();
        usize::try_from(count("active") + count("inactive")).ok()
    };
    told().unwrap_or_default()
}

fn organization_of(directory: &str) -> Option<String> {
    let text = schema::json::storable(directory.as_bytes()).ok()?;
    let [organization] = schema::json::members(&text, &["organization_id"]).ok()?;
    organization.and_then(schema::json::string).map(Into::into)
}
