//! Compares complete lists with the rows: what the lists have, and what they lack. `plan` has the time rule, and
//! `deletions` confirms absences; this module applies both to the rows.

use std::collections::HashMap;

use schema::timestamp::Timestamp;
use time::OffsetDateTime;

use crate::deletions::{self, Believed, Confirmed};
use crate::difference::{Difference, Entity, Kind};
use crate::findings::{Findings, Judged};
use crate::memberships::Way;
use crate::plan::{self, Known, Verdict};
use crate::reading::Reading;
use crate::snapshot::Listed;
use crate::store::checks::What;
use crate::store::compared::{Comparison, compare};
use crate::store::held::Held;
use crate::store::{groups, users};
use crate::work::{Failure, Work};

/// Objects compared per statement, after the walk.
pub(crate) const CHUNK: usize = 500;

/// What was decided about absences of one kind.
pub(crate) struct Decided {
    pub(crate) entity: Entity,
    pub(crate) confirmed: Confirmed,
}

impl Decided {
    /// An error if not everything could be decided.
    pub(crate) fn complete(&self) -> Result<(), Failure> {
        self.confirmed.complete(self.entity)
    }
}

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
}

/// Judges a complete list of users or groups: what it has, and what it lacks.
pub(crate) async fn objects(
    work: &Work,
    directory: &str,
    values: bool,
    listed: &mut Listed,
    findings: &mut Findings,
) -> Result<Decided, Failure> {
    let entity = listed.entity();
    let comparison = Comparison {
        entity,
        directory,
        values,
        whole: false,
    };
    there(work, comparison, listed.take_suspects(), listed.at(), findings).await?;
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

/// Reports what is held back.
pub(crate) fn hold(findings: &mut Findings, entity: Entity, held: &[Held]) {
    findings.held.extend(held.iter().map(|one| Difference {
        entity,
        kind: Kind::Extra,
        id: id_of(entity, one),
        columns: Vec::new(),
        values: None,
    }));
}

/// An object of which nothing but the id is reported.
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

/// The deletion of an object, from its id.
pub(crate) fn named(entity: Entity, id: String) -> Held {
    let (group_id, user_id) = match entity {
        Entity::Group => (id, String::new()),
        _ => (String::new(), id),
    };
    Held { group_id, user_id }
}

/// A deletion's id in the form that differences use.
pub(crate) fn id_of(entity: Entity, held: &Held) -> String {
    match entity {
        Entity::Membership => format!("{}/{}", held.group_id, held.user_id),
        Entity::Group => held.group_id.clone(),
        Entity::User | Entity::Directory => held.user_id.clone(),
    }
}
