//! Who is in which group, read in the cheapest way that is complete. The result says which way that was.
//!
//! | way | requests | complete because |
//! |---|---|---|
//! | field | none beyond the users | users' `groups` was proved to be filled: the lists of some users and groups agree with it, including those of users whom it would take out of a group |
//! | by group | a page per hundred members, at least one per group | each group's list was read to its end |
//! | by user | a page per user | each user's list was read to its end |
//!
//! `groups: []` is never read as "member of nothing": for newer teams it is always `[]`.

use std::collections::{BTreeSet, HashMap, HashSet};

use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use schema::timestamp::Timestamp;
use serde::Serialize;

use crate::deletions::sample;
use crate::plan::{self, Verdict};
use crate::snapshot::Listed;
use crate::store::memberships;
use crate::work::{Failure, Work};
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
    /// without, of users whom it would take out of a group, and of groups that no user names, all agree with it.
    /// `None` if not.
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
        // believed it would end with removals that are refuted, and conclude nothing, time and again.
        let denied = all.denied(work, directory, users, groups).await?;
        let silent = users
            .ids()
            .iter()
            .filter(|id| !told.contains_key(*id))
            .take(PROOF);
        for user in denied.iter().chain(told.keys().take(PROOF)).chain(silent) {
            let listed = match groups_of(work, directory, user).await {
                Ok((_, listed)) => listed,
                // Deleted during the walk: other users will show it.
                Err(Failure::Api(ApiError::NotFound(_))) => continue,
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
                Err(error) => return Err(error.into()),
            }
        }
        Ok(Some(all))
    }

    /// Users whom these memberships would take out of a group that readers see them in. Of those, only the sample that
    /// is also read when there are too many removals to believe.
    async fn denied(
        &self,
        work: &Work,
        directory: &str,
        users: &Listed,
        groups: &Listed,
    ) -> Result<BTreeSet<String>, Failure> {
        let mut lost = Vec::new();
        memberships::shown(&work.pool, directory, |row| {
            let (group, user) = (&row.group_id, &row.user_id);
            let listed = users.ids().contains(user) && groups.ids().contains(group);
            if listed
                && !self.has(group, user)
                && let Some(at) = self.at(group, user)
                && matches!(plan::gone(&row.known(), at), Verdict::Drift(_))
            {
                lost.push(row.into());
            }
        })
        .await?;
        lost.sort();
        Ok(sample(&lost).map(|one| one.user_id.clone()).collect())
    }

    /// From each group's members. A group that was deleted during the walk is left out; the next list of groups will
    /// show that it is gone.
    pub async fn by_group(work: &Work, directory: &str, groups: &[String]) -> Result<Self, Failure> {
        let mut all = Self::new(Way::ByGroup);
        let mut lists = stream::iter(groups.to_vec())
            .map(|group| async move {
                match members(work, directory, &group).await {
                    Ok((at, members)) => Ok(Some((group, at, members))),
                    Err(Failure::Api(ApiError::NotFound(_))) => Ok(None),
                    Err(error) => Err(error),
                }
            })
            .buffer_unordered(GROUPS_AT_ONCE);
        while let Some(list) = lists.try_next().await? {
            if let Some((group, at, members)) = list {
                all.at.insert(group.clone(), at);
                all.members.insert(group.clone(), members.into_iter().collect());
            }
        }
        Ok(all)
    }

    /// From each user's groups.
    pub async fn by_user(work: &Work, directory: &str, users: &Listed) -> Result<Self, Failure> {
        let mut all = Self::new(Way::ByUser);
        let ids: Vec<String> = users.ids().iter().cloned().collect();
        let mut lists = stream::iter(ids)
            .map(|user| async move {
                match groups_of(work, directory, &user).await {
                    Ok((at, groups)) => Ok(Some((user, at, groups))),
                    Err(Failure::Api(ApiError::NotFound(_))) => Ok(None),
                    Err(error) => Err(error),
                }
            })
            .buffer_unordered(USERS_AT_ONCE);
        while let Some(list) = lists.try_next().await? {
            if let Some((user, at, groups)) = list {
                all.at.insert(user.clone(), at);
                for group in groups {
                    all.members.entry(group).or_default().insert(user.clone());
                }
            }
        }
        Ok(all)
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
    let known: HashMap<String, usize> = memberships::counts(&work.pool, directory)
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
