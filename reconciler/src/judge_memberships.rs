//! Compares memberships with the rows, but only those whose user and group were both listed: for the others, the user
//! or group itself decides.

use std::collections::{HashMap, HashSet};

use crate::deletions::{self, Absent, Confirmed};
use crate::difference::{Entity, Kind};
use crate::findings::{Findings, Judged};
use crate::judge::{CHUNK, hold, plainly};
use crate::key::ObjectKey;
use crate::plan::{self, Verdict};
use crate::reading::{Pair, Reading};
use crate::snapshot::Snapshot;
use crate::store::memberships::{self, Shown};
use crate::work::{Failure, Work, stored};

/// What memberships are judged with.
struct Judge<'a> {
    work: &'a Work,
    directory: &'a str,
    organization: Option<String>,
    snapshot: &'a Snapshot,
}

/// Judges every membership; `object` is the directory's own JSON text.
pub(crate) async fn memberships(
    work: &Work,
    directory: &str,
    object: &str,
    snapshot: &Snapshot,
    findings: &mut Findings,
) -> Result<Confirmed, Failure> {
    let judge = Judge {
        work,
        directory,
        organization: organization_of(object),
        snapshot,
    };
    let mut shown: HashMap<String, HashSet<String>> = HashMap::new();
    let (mut absent, mut count) = (Vec::new(), 0);
    stored(memberships::shown(&work.pool, directory, |row| {
        count += 1;
        if judge.is_listed(&row.group_id, &row.user_id)
            && !snapshot.memberships.has(&row.group_id, &row.user_id)
        {
            absent.push(row);
        } else {
            shown.entry(row.group_id).or_default().insert(row.user_id);
        }
    }))
    .await?;
    let mut confirmed = judge.absent(absent, count, findings).await?;
    confirmed.unread.extend_from_slice(snapshot.memberships.unread());
    judge.missing(&shown, findings).await?;
    Ok(confirmed)
}

impl Judge<'_> {
    fn is_listed(&self, group: &str, user: &str) -> bool {
        self.snapshot.users.ids().contains(user) && self.snapshot.groups.ids().contains(group)
    }

    /// Judges memberships that are shown but were not read.
    async fn absent(
        &self,
        absent: Vec<Shown>,
        shown: usize,
        findings: &mut Findings,
    ) -> Result<Confirmed, Failure> {
        let read = &self.snapshot.memberships;
        let (mut candidates, mut young) = (Vec::new(), Vec::new());
        for row in absent {
            let Some(at) = read.at(&row.group_id, &row.user_id) else {
                continue;
            };
            match plan::gone(Some(row.seen_at.into()), at) {
                Verdict::Drift(_) => candidates.push(ObjectKey::from(row)),
                verdict => young.push((ObjectKey::from(row), verdict)),
            }
        }
        candidates.sort();
        let absent = Absent::Memberships(read.way().other_side());
        let mut confirmed = deletions::confirm(self.work, self.directory, absent, candidates, shown).await?;
        let keys = young.iter().map(|(key, _)| key);
        let still = deletions::still_held(self.work, self.directory, Entity::Membership, keys).await?;
        for (key, verdict) in young {
            if still.contains(&key) {
                confirmed.held.push(key);
            } else {
                self.take(findings, &key.group_id, &key.user_id, verdict, false);
            }
        }
        for key in &confirmed.gone {
            let verdict = Verdict::Drift(Kind::Extra);
            self.take(findings, &key.group_id, &key.user_id, verdict, false);
        }
        hold(findings, &confirmed);
        Ok(confirmed)
    }

    /// Judges memberships that were read but are not shown.
    async fn missing(
        &self,
        shown: &HashMap<String, HashSet<String>>,
        findings: &mut Findings,
    ) -> Result<(), Failure> {
        let read = &self.snapshot.memberships;
        let missing = read.missing(shown, |group, user| self.is_listed(group, user));
        for chunk in missing.chunks(CHUNK) {
            let rows = stored(memberships::rows(&self.work.pool, self.directory, chunk)).await?;
            for ((group, user), row) in chunk.iter().zip(&rows) {
                let Some(at) = read.at(group, user) else { continue };
                let verdict = plan::there(row, false, self.work.times(at, None));
                self.take(findings, group, user, verdict, true);
            }
        }
        Ok(())
    }

    fn take(&self, findings: &mut Findings, group: &str, user: &str, verdict: Verdict, there: bool) {
        let read = &self.snapshot.memberships;
        let Some(at) = read.at(group, user) else { return };
        let id = ObjectKey::membership(group, user).id(Entity::Membership);
        let judged = Judged {
            side: read.way().other_side(),
            ..plainly(Entity::Membership, self.directory, &id)
        };
        findings.take(judged, verdict, || {
            let pair = Pair {
                directory: self.directory,
                organization: self.organization.as_deref(),
                group,
                user,
            };
            Reading::membership(pair, there, at)
        });
    }
}

/// The organization that a directory's JSON text names.
pub(crate) fn organization_of(directory: &str) -> Option<String> {
    let text = schema::json::storable(directory.as_bytes()).ok()?;
    let [organization] = schema::json::members(&text, &["organization_id"]).ok()?;
    organization.and_then(schema::json::string).map(Into::into)
}
