//! Who is in which group, read in the cheapest way that is complete. The result says which way that was.
//!
//! | way | requests | complete because |
//! |---|---|---|
//! | field | none beyond the users | users' `groups` was proved to be filled: the lists of some users and groups agree with it, including those of users whom it would take out of a group or put into one |
//! | by group | a page per hundred members, at least one per group | each group's list was read to its end |
//! | by user | a page per user | each user's list was read to its end |
//!
//! `groups: []` is never read as "member of nothing": for newer teams it is always `[]`.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::atomic::{AtomicUsize, Ordering};

use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use schema::timestamp::Timestamp;
use serde::Serialize;

use crate::deletions::{FAILURES, sample};
use crate::judge::CHUNK;
use crate::key::ObjectKey;
use crate::plan::{self, Verdict};
use crate::snapshot::Listed;
use crate::store::memberships;
use crate::work::{Failure, Work, stored};
use crate::workos::client::ApiError;
use crate::workos::pages::{List, PAGE, Pages, id_of};

/// Lists of members walked concurrently: enough to use up a limit of 4 requests a second, few enough to leave the
/// walk of the users its turns.
const GROUPS_AT_ONCE: usize = 3;
/// Lists of groups walked concurrently, under the limit of 100 requests a second.
const USERS_AT_ONCE: usize = 32;
/// How many users and groups are read to prove that `groups` is filled.
const PROOF: usize = 3;

/// How memberships were read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Way {
    /// There are no groups.
    NoGroups,
    /// From the users' own `groups` field.
    Field,
    /// From each group's list of members.
    ByGroup,
    /// From each user's list of groups.
    ByUser,
}

impl Way {
    /// For reports.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::NoGroups => "no groups",
            Self::Field => "users' groups field",
            Self::ByGroup => "by group",
            Self::ByUser => "by user",
        }
    }

    /// The side whose lists confirm what was read in this way: not the one whose lists were read.
    pub const fn other_side(self) -> Side {
        match self {
            Self::ByUser => Side::Group,
            Self::NoGroups | Self::Field | Self::ByGroup => Side::User,
        }
    }
}

/// Whose list tells of memberships.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// A user's list of groups.
    User,
    /// A group's list of members.
    Group,
}

/// Every membership that was read in a directory.
#[derive(Debug)]
pub struct Memberships {
    way: Way,
    /// Members by group.
    members: HashMap<String, HashSet<String>>,
    /// The time that each list speaks for: by group, by user, or one for all.
    at: HashMap<String, Timestamp>,
    at_all: Option<Timestamp>,
    /// The groups or users whose lists could not be read. Their memberships are left as they are.
    unread: Vec<ObjectKey>,
}

impl Memberships {
    /// How they were read.
    pub fn way(&self) -> Way {
        self.way
    }

    /// Whether the user was in the group.
    pub fn has(&self, group: &str, user: &str) -> bool {
        self.members
            .get(group)
            .is_some_and(|members| members.contains(user))
    }

    /// Members by group.
    pub fn members(&self) -> &HashMap<String, HashSet<String>> {
        &self.members
    }

    /// The groups or users whose lists could not be read.
    pub fn unread(&self) -> &[ObjectKey] {
        &self.unread
    }

    /// The time for which this membership's presence or absence is known. `None`: it was not read.
    pub fn at(&self, group: &str, user: &str) -> Option<Timestamp> {
        match self.way {
            Way::NoGroups | Way::Field => self.at_all,
            Way::ByGroup => self.at.get(group).copied(),
            Way::ByUser => self.at.get(user).copied(),
        }
    }

    fn new(way: Way) -> Self {
        Self {
            way,
            members: HashMap::new(),
            at: HashMap::new(),
            at_all: None,
            unread: Vec::new(),
        }
    }

    /// No memberships, because there is no group to be in.
    pub fn none(at: Timestamp) -> Self {
        Self {
            at_all: Some(at),
            ..Self::new(Way::NoGroups)
        }
    }

    /// From the users' own `groups` field, if it is proved to be complete: the lists of some users with groups and
    /// without, of users whom it would take out of a group or put into one, and of groups that no user names, all agree
    /// with it. `None` if not.
    pub async fn from_field(
        work: &Work,
        directory: &str,
        users: &Listed,
        groups: &Listed,
    ) -> Result<Option<Self>, Failure> {
        let told = users.groups_of();
        if told.is_empty() {
            return Ok(None);
        }
        let mut all = Self::new(Way::Field);
        all.at_all = Some(users.at());
        for (user, groups) in told {
            for group in groups {
                all.members.entry(group.clone()).or_default().insert(user.clone());
            }
        }
        // Users who would lose a group come first: if the field is filled for some only, they show it. A walk that
        // believed it would end with removals that are refuted, and conclude nothing, time and again. So do those who would
        // gain one: a field that is not up to date would bring back a membership that has ended.
        let changed = all.changed(work, directory, users, groups).await?;
        let silent = users
            .ids()
            .iter()
            .filter(|id| !told.contains_key(*id))
            .take(PROOF);
        for user in changed.iter().chain(told.keys().take(PROOF)).chain(silent) {
            let listed = match groups_of(work, directory, user).await {
                Ok((_, listed)) => listed,
                // Deleted during the walk: other users will show it.
                Err(Failure::Api(ApiError::NotFound(_))) => continue,
                Err(error) if error.is_of_one_read() => return Ok(None),
                Err(error) => return Err(error),
            };
            let said: BTreeSet<&String> = told.get(user).into_iter().flatten().collect();
            if listed.iter().collect::<BTreeSet<_>>() != said {
                return Ok(None);
            }
        }
        let unnamed = groups.ids().iter().filter(|id| !all.members.contains_key(*id));
        for group in unnamed.take(PROOF) {
            let page = Pages::of(&work.api, List::members(directory, group)).next().await;
            match page {
                Ok(Some(page)) if !page.objects.is_empty() => return Ok(None),
                Ok(_) | Err(ApiError::NotFound(_)) => {}
                Err(error) => {
                    let error = Failure::from(error);
                    return if error.is_of_one_read() {
                        Ok(None)
                    } else {
                        Err(error)
                    };
                }
            }
        }
        Ok(Some(all))
    }

    /// Users whom these memberships would take out of a group that readers see them in, or put into one. Of those, only
    /// samples.
    async fn changed(
        &self,
        work: &Work,
        directory: &str,
        users: &Listed,
        groups: &Listed,
    ) -> Result<BTreeSet<String>, Failure> {
        let is_listed = |group: &str, user: &str| users.ids().contains(user) && groups.ids().contains(group);
        let mut lost = Vec::new();
        let mut shown: HashMap<String, HashSet<String>> = HashMap::new();
        stored(memberships::shown(&work.pool, directory, |row| {
            let (group, user) = (&row.group_id, &row.user_id);
            if self.has(group, user) {
                shown.entry(row.group_id).or_default().insert(row.user_id);
            } else if is_listed(group, user)
                && let Some(at) = self.at(group, user)
                && matches!(plan::gone(Some(row.seen_at.into()), at), Verdict::Drift(_))
            {
                lost.push(row.into());
            }
        }))
        .await?;
        lost.sort();
        // What is known to have ended is asked about first of all.
        let (mut back, mut new) = (Vec::new(), Vec::new());
        for chunk in self.missing(&shown, is_listed).chunks(CHUNK) {
            let rows = stored(memberships::rows(&work.pool, directory, chunk)).await?;
            for ((group, user), row) in chunk.iter().zip(&rows) {
                let Some(at) = self.at(group, user) else { continue };
                if matches!(plan::there(row, false, work.times(at, None)), Verdict::Drift(_)) {
                    let known = if row.void_at.is_some() {
                        &mut back
                    } else {
                        &mut new
                    };
                    known.push(ObjectKey::membership(group, user));
                }
            }
        }
        let samples = [&lost, &back, &new].into_iter().flat_map(|keys| sample(keys));
        Ok(samples.map(|one| one.user_id.clone()).collect())
    }

    /// Memberships (group, user) that were read and are not among those `shown`, of users and groups that are listed.
    pub(crate) fn missing(
        &self,
        shown: &HashMap<String, HashSet<String>>,
        is_listed: impl Fn(&str, &str) -> bool,
    ) -> Vec<(&str, &str)> {
        let mut missing: Vec<(&str, &str)> = Vec::new();
        for (group, members) in &self.members {
            let known = shown.get(group);
            let new = members
                .iter()
                .filter(|user| is_listed(group, user) && known.is_none_or(|known| !known.contains(*user)));
            missing.extend(new.map(|user| (group.as_str(), user.as_str())));
        }
        missing.sort_unstable();
        missing
    }

    /// From each group's members. A group that was deleted during the walk is left out; the next list of groups will
    /// show that it is gone.
    pub async fn by_group(work: &Work, directory: &str, groups: &[String]) -> Result<Self, Failure> {
        let mut all = Self::new(Way::ByGroup);
        let failures = &AtomicUsize::new(0);
        let mut lists = stream::iter(groups.to_vec())
            .map(|group| async move {
                let list = tried(directory, &group, failures, members(work, directory, &group)).await;
                list.map(|list| (group, list))
            })
            .buffer_unordered(GROUPS_AT_ONCE);
        while let Some((group, list)) = lists.try_next().await? {
            match list {
                Tried::Read(at, members) => {
                    all.at.insert(group.clone(), at);
                    all.members.insert(group, members.into_iter().collect());
                }
                Tried::Gone => {}
                Tried::Unread => all.unread.push(ObjectKey::membership(&group, "")),
            }
        }
        Ok(all)
    }

    /// From each user's groups.
    pub async fn by_user(work: &Work, directory: &str, users: &Listed) -> Result<Self, Failure> {
        let mut all = Self::new(Way::ByUser);
        let ids: Vec<String> = users.ids().iter().cloned().collect();
        let failures = &AtomicUsize::new(0);
        let mut lists = stream::iter(ids)
            .map(|user| async move {
                let list = tried(directory, &user, failures, groups_of(work, directory, &user)).await;
                list.map(|list| (user, list))
            })
            .buffer_unordered(USERS_AT_ONCE);
        while let Some((user, list)) = lists.try_next().await? {
            match list {
                Tried::Read(at, groups) => {
                    for group in groups {
                        all.members.entry(group).or_default().insert(user.clone());
                    }
                    all.at.insert(user, at);
                }
                Tried::Gone => {}
                Tried::Unread => all.unread.push(ObjectKey::membership("", &user)),
            }
        }
        Ok(all)
    }
}

/// What came of reading one list.
enum Tried {
    /// The ids in it, and the time that it speaks for.
    Read(Timestamp, Vec<String>),
    /// The user or group whose list it is, is gone.
    Gone,
    /// It could not be read.
    Unread,
}

/// Reads one list of many. One that cannot be read is no reason to leave all others as they are.
async fn tried(
    directory: &str,
    id: &str,
    failures: &AtomicUsize,
    list: impl Future<Output = Result<(Timestamp, Vec<String>), Failure>>,
) -> Result<Tried, Failure> {
    if failures.load(Ordering::Relaxed) >= FAILURES {
        return Ok(Tried::Unread);
    }
    match list.await {
        Ok((at, ids)) => Ok(Tried::Read(at, ids)),
        Err(Failure::Api(ApiError::NotFound(_))) => Ok(Tried::Gone),
        Err(error) if error.is_of_one_read() => {
            failures.fetch_add(1, Ordering::Relaxed);
            tracing::warn!(directory, id, %error, "cannot read this list of memberships; they are left as they are");
            Ok(Tried::Unread)
        }
        Err(error) => Err(error),
    }
}

/// The members of a group, and the time that the list speaks for.
pub async fn members(work: &Work, directory: &str, group: &str) -> Result<(Timestamp, Vec<String>), Failure> {
    ids(work, List::members(directory, group)).await
}

/// The groups of a user, and the time that the list speaks for.
pub async fn groups_of(
    work: &Work,
    directory: &str,
    user: &str,
) -> Result<(Timestamp, Vec<String>), Failure> {
    ids(work, List::groups_of(directory, user)).await
}

async fn ids(work: &Work, list: List<'_>) -> Result<(Timestamp, Vec<String>), Failure> {
    let mut pages = Pages::of(&work.api, list);
    let mut ids = Vec::new();
    while let Some(page) = pages.next().await? {
        ids.extend(page.objects.iter().filter_map(|object| id_of(object)));
    }
    let walked = pages.walked().ok_or(Failure::Incomplete("memberships"))?;
    Ok((work.as_of(walked.first_at), ids))
}

/// The cheaper of the two ways to read lists, in requests, because these are what all directories share.
pub async fn cheaper(work: &Work, directory: &str, groups: &Listed, users: usize) -> Result<Way, Failure> {
    let known: HashMap<String, usize> = stored(memberships::counts(&work.pool, directory))
        .await?
        .into_iter()
        .collect();
    let sizes: Vec<usize> = groups
        .ids()
        .iter()
        .map(|group| known.get(group).copied().unwrap_or_default())
        .collect();
    Ok(choose(&sizes, users))
}

/// Chooses by how many members each group is thought to have and how many users there are.
fn choose(group_sizes: &[usize], users: usize) -> Way {
    let by_group: usize = group_sizes.iter().map(|size| size.div_ceil(PAGE).max(1)).sum();
    match by_group {
        0 => Way::NoGroups,
        by_group if by_group <= users => Way::ByGroup,
        _ => Way::ByUser,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_fewest_requests_win() {
        assert_eq!(choose(&[], 50), Way::NoGroups);
        assert_eq!(choose(&[0, 10, 250], 20_000), Way::ByGroup);
        assert_eq!(choose(&[5; 300], 40), Way::ByUser);
        assert_eq!(choose(&[100, 101], 3), Way::ByGroup);
        assert_eq!(choose(&[100, 101, 1], 3), Way::ByUser);
    }
}
