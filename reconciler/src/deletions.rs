//! Absences made sure of. A list may lack what is there; so each absence is confirmed by a read of that one object, and
//! a membership's by the list from the other side. Too many at once are not believed at all.

use std::collections::{BTreeMap, HashSet};

use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use schema::timestamp::Timestamp;
use service::settings::Percent;

use crate::difference::Entity;
use crate::guard;
use crate::memberships::{Way, groups_of, members};
use crate::store::held::Held;
use crate::work::{Failure, Work};
use crate::workos::client::ApiError;
use crate::workos::objects::Read;

/// Reads of single objects under way at once.
const AT_ONCE: usize = 8;
/// How many of a mass deletion are read before it is held: if any of them is there, the list was not complete.
const SAMPLE: usize = 20;

/// What became of absences.
#[derive(Debug, Default)]
pub struct Confirmed {
    /// Gone, each by its own read.
    pub gone: Vec<Held>,
    /// Held back: too many.
    pub held: Vec<Held>,
    /// The list was not complete: nothing follows from it.
    pub incomplete: bool,
}

/// How many deletions at once are believed.
#[derive(Clone, Copy, Debug)]
pub enum Believed {
    /// As many as the guard lets through, of so many objects.
    Some {
        /// Objects of this kind that readers see.
        shown: usize,
        /// The guard's share.
        max: Percent,
    },
    /// None.
    None,
}

impl Believed {
    /// What the guard says, of `shown` objects.
    pub fn by_guard(work: &Work, shown: usize) -> Self {
        Self::Some {
            shown,
            max: work.rules.max_deletions,
        }
    }

    fn holds(self, deletions: usize) -> bool {
        match self {
            Self::Some { shown, max } => guard::holds(deletions, shown, max),
            Self::None => deletions > 0,
        }
    }
}

/// Makes sure of absences of one kind. `way` is how memberships were read.
pub async fn confirm(
    work: &Work,
    directory: &str,
    entity: Entity,
    absent: Vec<Held>,
    believed: Believed,
    way: Way,
) -> Result<Confirmed, Failure> {
    if !believed.holds(absent.len()) {
        let gone = really_gone(work, directory, entity, &absent, way).await?;
        if gone.len() < absent.len() {
            tracing::warn!(
                directory,
                entity = entity.as_str(),
                there = absent.len() - gone.len(),
                "objects that were not listed are there when asked for"
            );
        }
        return Ok(Confirmed {
            gone: gone.into_iter().map(|(one, _)| one).collect(),
            ..Confirmed::default()
        });
    }
    let sample: Vec<Held> = sample(&absent).cloned().collect();
    let gone = really_gone(work, directory, entity, &sample, way).await?;
    if gone.len() < sample.len() {
        tracing::error!(
            directory,
            entity = entity.as_str(),
            not_listed = absent.len(),
            "a list lacked objects that are there when asked for: nothing is concluded from it"
        );
        return Ok(Confirmed {
            incomplete: true,
            ..Confirmed::default()
        });
    }
    tracing::error!(
        directory,
        entity = entity.as_str(),
        held = absent.len(),
        "so many deletions at once are held back; `dsync-reconciler approve` lets them through"
    );
    Ok(Confirmed {
        held: absent,
        ..Confirmed::default()
    })
}

/// Some of the absent, from one end to the other.
pub fn sample(absent: &[Held]) -> impl Iterator<Item = &Held> {
    absent.iter().step_by(absent.len().div_ceil(SAMPLE).max(1))
}

/// Those that are gone by their own read, and the moment it speaks for.
pub async fn really_gone(
    work: &Work,
    directory: &str,
    entity: Entity,
    absent: &[Held],
    way: Way,
) -> Result<Vec<(Held, Timestamp)>, Failure> {
    match entity {
        Entity::Membership => memberships_gone(work, directory, absent, way).await,
        _ => {
            stream::iter(absent.to_vec())
                .map(|one| async move {
                    let read = match entity {
                        Entity::User => work.api.user(directory, &one.user_id).await?,
                        Entity::Group => work.api.group(directory, &one.group_id).await?,
                        Entity::Directory | Entity::Membership => work.api.directory(&one.user_id).await?,
                    };
                    Ok(match read {
                        Read::Gone(at) => Some((one, work.as_of(at))),
                        Read::There(..) => None,
                    })
                })
                .buffered(AT_ONCE)
                .try_filter_map(|one| async move { Ok(one) })
                .try_collect()
                .await
        }
    }
}

/// Memberships that the lists from the other side do not have either, read twice: a list that was cut short once is
/// cut short now and then.
async fn memberships_gone(
    work: &Work,
    directory: &str,
    absent: &[Held],
    way: Way,
) -> Result<Vec<(Held, Timestamp)>, Failure> {
    let mut sides: BTreeMap<String, Vec<Held>> = BTreeMap::new();
    for one in absent {
        let side = if way == Way::ByUser {
            &one.group_id
        } else {
            &one.user_id
        };
        sides.entry(side.clone()).or_default().push(one.clone());
    }
    let gone: Vec<Vec<(Held, Timestamp)>> = stream::iter(sides)
        .map(|(side, asked)| async move {
            let mut left: Vec<Held> = asked;
            let mut first_at = None;
            for _ in 0..2 {
                let listed = match way {
                    Way::ByUser => members(work, directory, &side).await,
                    _ => groups_of(work, directory, &side).await,
                };
                let listed: HashSet<String> = match listed {
                    Ok((at, listed)) => {
                        first_at.get_or_insert(at);
                        listed.into_iter().collect()
                    }
                    // User or group is gone itself: that is for its own absence to say.
                    Err(Failure::Api(ApiError::NotFound(_))) => return Ok(Vec::new()),
                    Err(error) => return Err(error),
                };
                left.retain(|one| {
                    let other = if way == Way::ByUser {
                        &one.user_id
                    } else {
                        &one.group_id
                    };
                    !listed.contains(other)
                });
                if left.is_empty() {
                    break;
                }
            }
            Ok(left
                .into_iter()
                .filter_map(|one| Some((one, first_at?)))
                .collect())
        })
        .buffered(AT_ONCE)
        .try_collect()
        .await?;
    Ok(gone.into_iter().flatten().collect())
}
