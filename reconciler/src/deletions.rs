//! Confirms absences. A list may lack objects that exist, so each absence is confirmed by a read of that one object,
//! and a membership's by the list from the other side. Too many at once are not believed at all.

use std::collections::{BTreeMap, HashSet};
use std::sync::atomic::{AtomicUsize, Ordering};

use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use schema::timestamp::Timestamp;
use service::settings::Percent;

use crate::difference::Entity;
use crate::guard;
use crate::key::ObjectKey;
use crate::memberships::{Side, groups_of, members};
use crate::store::held;
use crate::work::{Failure, Work, stored};
use crate::workos::client::ApiError;
use crate::workos::objects::Read;

/// How many single objects are read at once.
const AT_ONCE: usize = 8;
/// How many objects of a mass deletion are read before it is held.
const SAMPLE: usize = 20;
/// After this many failed reads, the others are not tried: each failure took a request's whole patience, and the
/// cause is not these objects.
pub(crate) const FAILURES: usize = 20;

/// The outcome of confirming absences.
#[derive(Debug)]
pub struct Confirmed {
    /// The kind of the objects.
    pub entity: Entity,
    /// Gone, each confirmed by its own read.
    pub gone: Vec<ObjectKey>,
    /// Held back, because there are too many.
    pub held: Vec<ObjectKey>,
    /// Not known to be gone or to exist, because their own reads failed. They stay as they are.
    pub unread: Vec<ObjectKey>,
    /// The list was incomplete, or nothing could be read to find out. Nothing is concluded from it.
    pub incomplete: bool,
}

impl Confirmed {
    fn nothing(entity: Entity) -> Self {
        Self {
            entity,
            gone: Vec::new(),
            held: Vec::new(),
            unread: Vec::new(),
            incomplete: false,
        }
    }

    /// An error if not all absences could be decided.
    pub fn complete(&self) -> Result<(), Failure> {
        if !self.unread.is_empty() {
            Err(Failure::Unconfirmed(self.entity.as_str(), self.unread.len()))
        } else if self.incomplete {
            Err(Failure::Incomplete(self.entity.as_str()))
        } else {
            Ok(())
        }
    }
}

/// What reading the absent objects one by one showed.
#[derive(Debug, Default)]
pub struct Looked {
    /// Gone, and the time that the reading speaks for.
    pub gone: Vec<(ObjectKey, Timestamp)>,
    /// Memberships whose user or group itself was not found, and the time that this speaks for.
    pub ownerless: Vec<(ObjectKey, Timestamp)>,
    /// Exist after all.
    pub there: Vec<ObjectKey>,
    /// Could not be read.
    pub unread: Vec<ObjectKey>,
}

impl Looked {
    /// Whether so few of a mass deletion's sample exist that the list may be believed, but for these. Of what half a list
    /// lacks, about all exist.
    fn is_mostly_gone(&self) -> bool {
        self.gone.len() > self.there.len()
    }

    fn add(&mut self, other: Self) {
        self.gone.extend(other.gone);
        self.ownerless.extend(other.ownerless);
        self.there.extend(other.there);
        self.unread.extend(other.unread);
    }
}

/// A read that failed. One object that cannot be read is no reason to leave all others as they are.
fn failed(directory: &str, id: &str, asked: Vec<ObjectKey>, error: Failure) -> Result<Looked, Failure> {
    if !error.is_of_one_read() {
        return Err(error);
    }
    tracing::warn!(directory, id, %error, "not listed, but cannot confirm that it is gone; left as it is");
    Ok(Looked {
        unread: asked,
        ..Looked::default()
    })
}

/// What is absent, and with that how it is confirmed to be gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Absent {
    /// Directories: each is read.
    Directories {
        /// Whether `WorkOS` lists none of those that readers see: the API key may be another environment's.
        none_is_listed: bool,
    },
    /// Users: each is read.
    Users,
    /// Groups: each is read.
    Groups,
    /// Memberships: this side's lists are read.
    Memberships(Side),
}

impl Absent {
    /// The kind of the objects.
    pub const fn entity(self) -> Entity {
        match self {
            Self::Directories { .. } => Entity::Directory,
            Self::Users => Entity::User,
            Self::Groups => Entity::Group,
            Self::Memberships(_) => Entity::Membership,
        }
    }

    /// Whether this many deletions of `shown` objects are held back.
    fn holds(self, deletions: usize, shown: usize, max: Percent) -> bool {
        // The wrong key is likelier than the end of every customer.
        let wrong_key = deletions > 0 && matches!(self, Self::Directories { none_is_listed: true });
        wrong_key || guard::holds(deletions, shown, max)
    }
}

/// Confirms that `keys` are gone, of which readers see `shown` objects in total. If they are too many to believe, only a
/// sample is read, and all are held. What is held already stays so until somebody approves it, however few others are gone
/// now: that more people were hired since makes a half-read directory no truer.
pub async fn confirm(
    work: &Work,
    directory: &str,
    absent: Absent,
    keys: Vec<ObjectKey>,
    shown: usize,
) -> Result<Confirmed, Failure> {
    let entity = absent.entity();
    let confirmed = Confirmed::nothing(entity);
    if !absent.holds(keys.len(), shown, work.rules.max_deletions) {
        let before = still_held(work, directory, entity, keys.iter()).await?;
        let (held, keys): (Vec<_>, Vec<_>) = keys.into_iter().partition(|key| before.contains(key));
        let looked = really_gone(work, directory, absent, &keys).await?;
        if !looked.there.is_empty() {
            tracing::warn!(
                directory,
                entity = entity.as_str(),
                there = looked.there.len(),
                "objects that were not listed exist when read one by one"
            );
        }
        return Ok(Confirmed {
            gone: looked.gone.into_iter().map(|(key, _)| key).collect(),
            held,
            unread: looked.unread,
            ..confirmed
        });
    }
    let sample: Vec<ObjectKey> = sample(&keys).cloned().collect();
    let looked = really_gone(work, directory, absent, &sample).await?;
    if !looked.there.is_empty() {
        tracing::error!(
            directory,
            entity = entity.as_str(),
            not_listed = keys.len(),
            there = looked.there.len(),
            gone = looked.gone.len(),
            "a list lacked objects that exist when read one by one; unless most of those read are gone, nothing is concluded \
             from it"
        );
    }
    if !looked.is_mostly_gone() {
        return Ok(Confirmed {
            unread: looked.unread,
            incomplete: true,
            ..confirmed
        });
    }
    // What is known to exist is not held. An approval asks about it first (`command::by_list`).
    let there: HashSet<ObjectKey> = looked.there.into_iter().collect();
    Ok(Confirmed {
        held: keys.into_iter().filter(|key| !there.contains(key)).collect(),
        unread: looked.unread,
        ..confirmed
    })
}

/// Logs that deletions are held, now that it is recorded: only then is there something to approve.
pub(crate) fn tell_held(directory: &str, entity: Entity, held: usize) {
    if held > 0 {
        tracing::error!(
            directory,
            entity = entity.as_str(),
            held,
            "too many deletions at once; held back until approved with `dsync-reconciler approve`"
        );
    }
}

/// Those of `keys` that are held. Nothing but their approval or a list that has them ends that: not even an event about one
/// of them, which makes its absence too young to judge. The state API may still be the one that is wrong.
pub(crate) async fn still_held(
    work: &Work,
    directory: &str,
    entity: Entity,
    keys: impl ExactSizeIterator<Item = &ObjectKey>,
) -> Result<HashSet<ObjectKey>, Failure> {
    if keys.len() == 0 {
        return Ok(HashSet::new());
    }
    let held = stored(held::already(&work.pool, directory, entity)).await?;
    let held: HashSet<ObjectKey> = held.into_iter().collect();
    Ok(keys.filter(|key| held.contains(*key)).cloned().collect())
}

/// A sample of the absent, spread evenly over all of them.
pub fn sample(keys: &[ObjectKey]) -> impl Iterator<Item = &ObjectKey> {
    keys.iter().step_by(keys.len().div_ceil(SAMPLE).max(1))
}

/// Reads each of the absent.
pub async fn really_gone(
    work: &Work,
    directory: &str,
    absent: Absent,
    keys: &[ObjectKey],
) -> Result<Looked, Failure> {
    let failures = AtomicUsize::new(0);
    let failures = &failures;
    // One list may tell of several memberships.
    let mut by_id: BTreeMap<String, Vec<ObjectKey>> = BTreeMap::new();
    for key in keys {
        let id = match absent {
            Absent::Groups | Absent::Memberships(Side::Group) => &key.group_id,
            Absent::Directories { .. } | Absent::Users | Absent::Memberships(Side::User) => &key.user_id,
        };
        by_id.entry(id.clone()).or_default().push(key.clone());
    }
    let looks: Vec<Looked> = stream::iter(by_id)
        .map(|(id, asked)| async move {
            if failures.load(Ordering::Relaxed) >= FAILURES {
                return Ok(Looked {
                    unread: asked,
                    ..Looked::default()
                });
            }
            let looked = match absent {
                Absent::Directories { .. } => object_gone(work, work.api.directory(&id).await, &asked),
                Absent::Users => object_gone(work, work.api.user(directory, &id).await, &asked),
                Absent::Groups => object_gone(work, work.api.group(directory, &id).await, &asked),
                Absent::Memberships(side) => memberships_gone(work, directory, side, &id, &asked).await,
            };
            looked.or_else(|error| {
                failures.fetch_add(1, Ordering::Relaxed);
                failed(directory, &id, asked, error)
            })
        })
        .buffered(AT_ONCE)
        .try_collect()
        .await?;
    let mut all = Looked::default();
    for looked in looks {
        all.add(looked);
    }
    Ok(all)
}

fn object_gone(work: &Work, read: Result<Read, ApiError>, asked: &[ObjectKey]) -> Result<Looked, Failure> {
    let mut looked = Looked::default();
    match read? {
        Read::Gone(at) => looked.gone = speaking_for(asked, work.as_of(at)),
        Read::There(..) => looked.there = asked.to_vec(),
    }
    Ok(looked)
}

fn speaking_for(keys: &[ObjectKey], at: Timestamp) -> Vec<(ObjectKey, Timestamp)> {
    keys.iter().map(|key| (key.clone(), at)).collect()
}

/// Memberships that the list of this side, the user or group `id`, does not have either. It is read twice, because a
/// list is cut short now and then.
async fn memberships_gone(
    work: &Work,
    directory: &str,
    side: Side,
    id: &str,
    asked: &[ObjectKey],
) -> Result<Looked, Failure> {
    let mut looked = Looked::default();
    let mut left = asked.to_vec();
    let mut first_at = None;
    for _ in 0..2 {
        let listed = match side {
            Side::Group => members(work, directory, id).await,
            Side::User => groups_of(work, directory, id).await,
        };
        let listed: HashSet<String> = match listed {
            Ok((at, listed)) => {
                first_at.get_or_insert(at);
                listed.into_iter().collect()
            }
            // The user or group itself is gone. In a sweep, its own absence decides.
            Err(Failure::Api(ApiError::NotFound(at))) => {
                looked.ownerless = speaking_for(&left, work.as_of(at));
                return Ok(looked);
            }
            Err(error) => return Err(error),
        };
        let (there, gone) = left.into_iter().partition(|key| {
            let other = match side {
                Side::Group => &key.user_id,
                Side::User => &key.group_id,
            };
            listed.contains(other)
        });
        looked.there.extend::<Vec<_>>(there);
        left = gone;
        if left.is_empty() {
            break;
        }
    }
    if let Some(at) = first_at {
        looked.gone = speaking_for(&left, at);
    }
    Ok(looked)
}

#[cfg(test)]
mod tests {
    use service::settings::percent;

    use super::*;

    #[test]
    fn half_a_list_is_not_believed_and_one_that_lacks_a_few_is() {
        let key = || ObjectKey::membership("g", "u");
        let at = Timestamp::from_micros(0);
        for (gone, there, believed) in [
            (20, 0, true),
            (15, 5, true),
            (11, 9, true),
            (10, 10, false),
            (1, 19, false),
            (0, 1, false),
            // Nothing could be read.
            (0, 0, false),
        ] {
            let looked = Looked {
                gone: vec![(key(), at); gone],
                there: vec![key(); there],
                // Says nothing either way.
                ownerless: vec![(key(), at); 3],
                unread: vec![key(); 5],
            };
            assert_eq!(looked.is_mostly_gone(), believed, "{gone} gone, {there} there");
        }
    }

    #[test]
    fn where_none_of_our_directories_is_listed_none_is_believed_to_be_gone() {
        let all = percent("100%").unwrap();
        let directories = |none_is_listed| Absent::Directories { none_is_listed };
        for (deletions, shown) in [(1, 1), (1, 2), (2, 2), (20, 21)] {
            assert!(directories(true).holds(deletions, shown, all));
            assert!(!directories(false).holds(deletions, shown, all));
            assert!(!Absent::Users.holds(deletions, shown, all));
        }
        assert!(!directories(true).holds(0, 2, all), "there is nothing to hold");
        // Otherwise the guard decides.
        assert!(directories(false).holds(11, 20, percent("10%").unwrap()));
    }
}
