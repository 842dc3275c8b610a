//! Compares complete lists with the rows: what the lists have, and what they lack. `plan` has the time rule, and
//! `deletions` confirms absences; this module applies both to the rows.

use std::collections::HashMap;

use schema::json;
use schema::reduce::reduced;
use schema::timestamp::Timestamp;
use time::OffsetDateTime;

use crate::deletions::{self, Absent, Confirmed};
use crate::difference::{Difference, Entity, Kind};
use crate::findings::{Findings, Judged};
use crate::key::ObjectKey;
use crate::memberships::Side;
use crate::plan::{self, Verdict};
use crate::reading::Reading;
use crate::snapshot::Listed;
use crate::store::compared::{Comparison, compare};
use crate::store::{groups, users};
use crate::work::{Failure, Work, stored};

/// Objects compared per statement, after the walk.
pub(crate) const CHUNK: usize = 500;

/// What a record needs besides its object: the envelope, and the message's headers.
const ROOM: usize = 1024;

/// Judges listed objects that differed from their rows when their page came, by what the rows are now.
pub(crate) async fn there(
    work: &Work,
    comparison: Comparison<'_>,
    objects: Vec<(String, String)>,
    at: Timestamp,
    findings: &mut Findings,
) -> Result<(), Failure> {
    let mut objects = objects.into_iter();
    loop {
        // After judging, an object is kept as a reading or not at all.
        let chunk: Vec<(String, String)> = objects.by_ref().take(CHUNK).collect();
        if chunk.is_empty() {
            return Ok(());
        }
        let texts: Vec<&str> = chunk.iter().map(|(_, object)| object.as_str()).collect();
        let compared = stored(compare(&work.pool, comparison, &texts)).await?;
        findings.unreadable += compared.unreadable.len();
        for suspect in compared.suspects {
            let (id, object) = &chunk[suspect.index];
            let reading = || Reading::listed(comparison.entity, comparison.directory, id, object, at);
            if suspect.row.shown && is_all_the_log_takes(work, comparison, object, reading).await? {
                continue;
            }
            let verdict = plan::there(&suspect.row, true, work.times(at, suspect.updated_at));
            let judged = Judged {
                entity: comparison.entity,
                directory: comparison.directory,
                id,
                columns: suspect.columns,
                values: suspect.values,
                side: Side::User,
            };
            findings.take(judged, verdict, reading);
        }
    }
}

/// Whether what readers see of `object` is all of it that the log takes. Somebody inactive whose record is too large is stored
/// without attributes, and would otherwise differ in every sweep.
async fn is_all_the_log_takes(
    work: &Work,
    comparison: Comparison<'_>,
    object: &str,
    reading: impl FnOnce() -> Reading,
) -> Result<bool, Failure> {
    let most = work.journal.max_payload();
    if most.is_none_or(|most| object.len() + ROOM <= most) {
        return Ok(false);
    }
    let record = reading().record(work.clock.now().into());
    let Some(reduced) = record.and_then(|record| reduced(&record)) else {
        return Ok(false);
    };
    let text = std::str::from_utf8(&reduced.body).unwrap_or_default();
    let Ok([Some(stored_part)]) = json::members(text, &["data"]) else {
        return Ok(false);
    };
    let compared = stored(compare(&work.pool, comparison, &[stored_part.get()])).await?;
    Ok(compared.suspects.is_empty() && compared.unreadable.is_empty())
}

/// Judges a complete list of users or groups: what it has, and what it lacks.
pub(crate) async fn objects(
    work: &Work,
    directory: &str,
    values: bool,
    listed: &mut Listed,
    findings: &mut Findings,
) -> Result<Confirmed, Failure> {
    let entity = listed.entity();
    let comparison = Comparison {
        entity,
        directory,
        values,
    };
    there(work, comparison, listed.take_suspects(), listed.at(), findings).await?;
    let (kind, shown) = match entity {
        Entity::Group => (
            Absent::Groups,
            stored(groups::shown(&work.pool, directory)).await?,
        ),
        _ => (Absent::Users, stored(users::shown(&work.pool, directory)).await?),
    };
    absent(work, directory, kind, shown, listed, findings).await
}

/// Judges objects that readers see and a complete list lacks. `shown`: all that readers see, and when each was last
/// seen. For the list of directories, `directory` is empty.
pub(crate) async fn absent(
    work: &Work,
    directory: &str,
    absent: Absent,
    shown: HashMap<String, OffsetDateTime>,
    listed: &Listed,
    findings: &mut Findings,
) -> Result<Confirmed, Failure> {
    let (entity, at) = (absent.entity(), listed.at());
    let mut take = |id: &str, verdict| {
        findings.take(plainly(entity, directory, id), verdict, || {
            Reading::missing(entity, directory, id, at)
        });
    };
    let count = shown.len();
    let (mut candidates, mut young) = (Vec::new(), Vec::new());
    for (id, seen_at) in shown {
        if listed.ids().contains(&id) {
            continue;
        }
        match plan::gone(Some(seen_at.into()), at) {
            Verdict::Drift(_) => candidates.push(ObjectKey::of(entity, id)),
            verdict => young.push((ObjectKey::of(entity, id), verdict)),
        }
    }
    candidates.sort();
    let mut confirmed = deletions::confirm(work, directory, absent, candidates, count).await?;
    let keys = young.iter().map(|(key, _)| key);
    let still = deletions::still_held(work, directory, entity, keys).await?;
    for (key, verdict) in young {
        if still.contains(&key) {
            confirmed.held.push(key);
        } else {
            take(&key.id(entity), verdict);
        }
    }
    for key in &confirmed.gone {
        take(&key.id(entity), Verdict::Drift(Kind::Extra));
    }
    hold(findings, &confirmed);
    Ok(confirmed)
}

/// Reports what is held back.
pub(crate) fn hold(findings: &mut Findings, confirmed: &Confirmed) {
    let entity = confirmed.entity;
    let held = confirmed.held.iter();
    findings
        .held
        .extend(held.map(|key| Difference::extra(entity, key.id(entity))));
}

/// An object of which nothing but the id is reported.
pub(crate) fn plainly<'a>(entity: Entity, directory: &'a str, id: &'a str) -> Judged<'a> {
    Judged {
        entity,
        directory,
        id,
        columns: Vec::new(),
        values: None,
        side: Side::User,
    }
}
