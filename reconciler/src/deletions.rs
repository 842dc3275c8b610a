//! Confirms absences. A list may lack objects that exist, so each absence is confirmed by a read of that one object,
//! and a membership's by the list from the other side. Too many at once are not believed at all.

use std::collections::{BTreeMap, HashSet};
use std::sync::atomic::{AtomicUsize, Ordering};

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

/// How many single objects are read at once.
const AT_ONCE: usize = 8;
/// How many objects of a mass deletion are read before it is held. If any of them exists, the list was incomplete.
const SAMPLE: usize = 20;
/// After this many failed reads, the others are not tried: each failure took a request's whole patience, and the
/// cause is not these objects.
const FAILURES: usize = 20;

/// The outcome of confirming absences.
#[derive(Debug, Default)]
pub struct Confirmed {
    /// Gone, each confirmed by its own read.
    pub gone: Vec<Held>,
    /// Held back, because there are too many.
    pub held: Vec<Held>,
    /// Not known to be gone or to exist, because their own reads failed. They stay as they are.
    pub unread: Vec<Held>,
    /// The list was incomplete, or nothing could be read to find out. Nothing is concluded from it.
    pub incomplete: bool,
}

impl Confirmed {
    /// An error if not all absences could be decided.
    pub fn complete(&self, entity: Entity) -> Result<(), Failure> {
        if !self.unread.is_empty() {
            Err(Failure::Unconfirmed(entity.as_str(), self.unread.len()))
        } else if self.incomplete {
            Err(Failure::Incomplete(entity.as_str()))
        } else {
            Ok(())
        }
    }
}

/// What reading the absent objects one by one showed. Those that exist after all are in neither list.
#[derive(Debug, Default)]
pub struct Looked {
    /// Gone, and the time that the reading speaks for.
    pub gone: Vec<(Held, Timestamp)>,
    /// Could not be read.
    pub unread: Vec<Held>,
}

impl Looked {
    fn there(&self, of: usize) -> usize {
        of - self.gone.len() - self.unread.len()
    }
}

/// What one read, of one or several of the absent, showed.
enum Look {
    Gone(Vec<(Held, Timestamp)>),
    Unread(Vec<Held>),
}

impl Look {
    /// A read that failed. One object that cannot be read is no reason to leave all others as they are; an API key
    /// that is not accepted is, and so is any failure that is not `WorkOS`'s.
    fn failed(directory: &str, id: &str, asked: Vec<Held>, error: Failure) -> Result<Self, Failure> {
        match error {
            Failure::Api(ApiError::Unauthorized(_)) => Err(error),
            Failure::Api(_) => {
                tracing::warn!(directory, id, %error, "not listed, but cannot confirm that it is gone; left as it is");
                Ok(Self::Unread(asked))
            }
            error => Err(error),
        }
    }
}

impl FromIterator<Look> for Looked {
    fn from_iter<I: IntoIterator<Item = Look>>(looks: I) -> Self {
        let mut looked = Self::default();
        for look in looks {
            match look {
                Look::Gone(gone) => looked.gone.extend(gone),
                Look::Unread(unread) => looked.unread.extend(unread),
            }
        }
        looked
    }
}

/// How many deletions at once are believed.
#[derive(Clone, Copy, Debug)]
pub enum Believed {
    /// As many as the guard allows.
    Some {
        /// Objects of this kind that readers see.
        shown: usize,
        /// The largest share that the guard allows.
        max: Percent,
    },
    /// None.
    None,
}

impl Believed {
    /// As many as the guard allows of `shown` objects.
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

/// Confirms absences of one kind. `way` is how memberships were read.
pub async fn confirm(
    work: &Work,
    directory: &str,
    entity: Entity,
    absent: Vec<Held>,
    believed: Believed,
    way: Way,
) -> Result<Confirmed, Failure> {
    if !believed.holds(absent.len()) {
        let looked = really_gone(work, directory, entity, &absent, way).await?;
        let there = looked.there(absent.len());
        if there > 0 {
            tracing::warn!(
                directory,
                entity = entity.as_str(),
                there,
                "objects that were not listed exist when read one by one"
            );
        }
        return Ok(Confirmed {
            gone: looked.gone.into_iter().map(|(one, _)| one).collect(),
            unread: looked.unread,
            ..Confirmed::default()
        });
    }
    let sample: Vec<Held> = sample(&absent).cloned().collect();
    let looked = really_gone(work, directory, entity, &sample, way).await?;
    if looked.there(sample.len()) > 0 {
        tracing::error!(
            directory,
            entity = entity.as_str(),
            not_listed = absent.len(),
            "a list lacked objects that exist when read one by one; nothing is concluded from it"
        );
        return Ok(Confirmed {
            incomplete: true,
            ..Confirmed::default()
        });
    }
    if looked.gone.is_empty() {
        return Ok(Confirmed {
            unread: looked.unread,
            incomplete: true,
            ..Confirmed::default()
        });
    }
    tracing::error!(
        directory,
        entity = entity.as_str(),
        held = absent.len(),
        "too many deletions at once; held back until approved with `dsync-reconciler approve`"
    );
    Ok(Confirmed {
        held: absent,
        unread: looked.unread,
        ..Confirmed::default()
    })
}

/// A sample of the absent, spread evenly over all of them.
pub fn sample(absent: &[Held]) -> impl Iterator<Item = &Held> {
    absent.iter().step_by(absent.len().div_ceil(SAMPLE).max(1))
}

/// Reads each of the absent. Returns those that are gone and those that could not be read.
pub async fn really_gone(
    work: &Work,
    directory: &str,
    entity: Entity,
    absent: &[Held],
    way: Way,
) -> Result<Looked, Failure> {
    let failures = AtomicUsize::new(0);
    let failures = &failures;
    let mut sides: BTreeMap<String, Vec<Held>> = BTreeMap::new();
    for one in absent {
        let side = match entity {
            Entity::Membership if way == Way::ByUser => &one.group_id,
            Entity::Group => &one.group_id,
            _ => &one.user_id,
        };
        sides.entry(side.clone()).or_default().push(one.clone());
    }
    let looks: Vec<Look> = stream::iter(sides)
        .map(|(id, asked)| async move {
            if failures.load(Ordering::Relaxed) >= FAILURES {
                return Ok(Look::Unread(asked));
            }
            let gone = match entity {
                Entity::Membership => memberships_gone(work, directory, &id, &asked, way).await,
                _ => object_gone(work, directory, entity, &id, &asked).await,
            };
            gone.map(Look::Gone).or_else(|error| {
                failures.fetch_add(1, Ordering::Relaxed);
                Look::failed(directory, &id, asked, error)
            })
        })
        .buffered(AT_ONCE)
        .try_collect()
        .await?;
    Ok(looks.into_iter().collect())
}

async fn object_gone(
    work: &Work,
    directory: &str,
    entity: Entity,
    id: &str,
    asked: &[Held],
) -> Result<Vec<(Held, Timestamp)>, Failure> {
    let read = match entity {
        Entity::User => work.api.user(directory, id).await?,
        Entity::Group => work.api.group(directory, id).await?,
        Entity::Directory | Entity::Membership => work.api.directory(id).await?,
    };
    Ok(match read {
        Read::Gone(at) => asked.iter().map(|one| (one.clone(), work.as_of(at))).collect(),
        Read::There(..) => Vec::new(),
    })
}

/// Memberships that the list from the other side does not have either. It is read twice, because a list is cut short
/// now and then.
async fn memberships_gone(
    work: &Work,
    directory: &str,
    side: &str,
    asked: &[Held],
    way: Way,
) -> Result<Vec<(Held, Timestamp)>, Failure> {
    let mut left = asked.to_vec();
    let mut first_at = None;
    for _ in 0..2 {
        let listed = match way {
            Way::ByUser => members(work, directory, side).await,
            _ => groups_of(work, directory, side).await,
        };
        let listed: HashSet<String> = match listed {
            Ok((at, listed)) => {
                first_at.get_or_insert(at);
                listed.into_iter().collect()
            }
            // The user or group itself is gone; its own absence decides.
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
}
