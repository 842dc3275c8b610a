//! Compares memberships with the rows, but only those whose user and group were both listed: for the others, the user
//! or group itself decides.

use std::collections::{HashMap, HashSet};

use crate::deletions::{self, Believed};
use crate::difference::{Entity, Kind};
use crate::findings::{Findings, Judged};
use crate::judge::{CHUNK, Decided, hold, id_of, plainly};
use crate::memberships::Way;
use crate::plan::{self, Verdict};
use crate::reading::{Pair, Reading};
use crate::snapshot::Snapshot;
use crate::store::checks::What;
use crate::store::held::Held;
use crate::store::memberships::{self, Shown};
use crate::work::{Failure, Work};

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
) -> Result<Decided, Failure> {
    let judge = Judge {
        work,
        directory,
        organization: organization_of(object),
        snapshot,
    };
    let mut shown: HashMap<String, HashSet<String>> = HashMap::new();
    let (mut absent, mut count) = (Vec::new(), 0);
    memberships::shown(&work.pool, directory, |row| {
        count += 1;
        if judge.is_listed(&row.group_id, &row.user_id)
            && !snapshot.memberships.has(&row.group_id, &row.user_id)
        {
            absent.push(row);
        } else {
            shown.entry(row.group_id).or_default().insert(row.user_id);
        }
    })
    .await?;
    let decided = judge.absent(absent, count, findings).await?;
    judge.missing(&shown, findings).await?;
    Ok(decided)
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
    ) -> Result<Decided, Failure> {
        let read = &self.snapshot.memberships;
        let mut candidates = Vec::new();
        for row in absent {
            let Some(at) = read.at(&row.group_id, &row.user_id) else {
                continue;
            };
            let known = row.known();
            let one = Held::from(row);
            match plan::gone(&known, at) {
                Verdict::Drift(_) => candidates.push(one),
                verdict => self.take(findings, &one.group_id, &one.user_id, verdict, false),
            }
        }
        candidates.sort();
        let entity = Entity::Membership;
        let believed = Believed::by_guard(self.work, shown);
        let confirmed = deletions::confirm(
            self.work,
            self.directory,
            entity,
            candidates,
            believed,
            read.way(),
        )
        .await?;
        for one in &confirmed.gone {
            self.take(
                findings,
                &one.group_id,
                &one.user_id,
                Verdict::Drift(Kind::Extra),
                false,
            );
        }
        hold(findings, entity, &confirmed.held);
        Ok(Decided { entity, confirmed })
    }

    /// Judges memberships that were read but are not shown.
    async fn missing(
        &self,
        shown: &HashMap<String, HashSet<String>>,
        findings: &mut Findings,
    ) -> Result<(), Failure> {
        let read = &self.snapshot.memberships;
        let mut missing: Vec<(&str, &str)> = Vec::new();
        for (group, members) in read.members() {
            let known = shown.get(group);
            let new = members.iter().filter(|user| {
                self.is_listed(group, user) && known.is_none_or(|known| !known.contains(*user))
            });
            missing.extend(new.map(|user| (group.as_str(), user.as_str())));
        }
        missing.sort_unstable();
        for chunk in missing.chunks(CHUNK) {
            let known = memberships::known(&self.work.pool, self.directory, chunk).await?;
            for ((group, user), known) in chunk.iter().zip(&known) {
                let Some(at) = read.at(group, user) else { continue };
                let verdict = plan::there(known, false, self.work.times(at, None));
                self.take(findings, group, user, verdict, true);
            }
        }
        Ok(())
    }

    fn take(&self, findings: &mut Findings, group: &str, user: &str, verdict: Verdict, there: bool) {
        let read = &self.snapshot.memberships;
        let Some(at) = read.at(group, user) else { return };
        let id = id_of(
            Entity::Membership,
            &Held {
                group_id: group.to_owned(),
                user_id: user.to_owned(),
            },
        );
        let judged = Judged {
            side: match read.way() {
                Way::ByUser => What::MembershipsOfGroup,
                _ => What::MembershipsOfUser,
            },
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
