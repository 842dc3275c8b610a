//! What `WorkOS` has in one directory, from lists that were read to their end.
//!
//! A [`Listed`] can be made only from a walk that reached its end, and a [`Snapshot`] only from complete lists. Nothing
//! else may conclude that an object is absent.

use std::collections::{HashMap, HashSet};

use schema::json;
use schema::timestamp::Timestamp;

use crate::difference::Entity;
use crate::memberships::Memberships;
use crate::relist;
use crate::store::compared::{Comparison, compare};
use crate::work::{Failure, Work, stored};
use crate::workos::pages::{List, Pages};

/// Objects compared per statement: a few pages, so that a statement's fixed cost matters little.
const TOGETHER: usize = 500;

/// A complete list of objects of one kind.
#[derive(Debug)]
pub struct Listed {
    entity: Entity,
    at: Timestamp,
    ids: HashSet<String>,
    suspects: Vec<(String, String)>,
    groups_of: HashMap<String, Vec<String>>,
    unreadable: usize,
}

/// Everything in a directory.
#[derive(Debug)]
pub struct Snapshot {
    /// Its users.
    pub users: Listed,
    /// Its groups.
    pub groups: Listed,
    /// Who is in which group.
    pub memberships: Memberships,
}

impl Listed {
    /// Walks `list` to its end, comparing every few pages with the tables as they come.
    ///
    /// With `whole`, each page is also appended as it comes, different or not. `first` is called after the first page,
    /// with whether any user on it names its groups.
    pub async fn walk(
        work: &Work,
        comparison: Comparison<'_>,
        list: List<'_>,
        whole: bool,
        first: impl FnOnce(bool),
    ) -> Result<Self, Failure> {
        let mut listed = Self {
            entity: comparison.entity,
            at: Timestamp::from_micros(0),
            ids: HashSet::new(),
            suspects: Vec::new(),
            groups_of: HashMap::new(),
            unreadable: 0,
        };
        let mut first = Some(first);
        let mut waiting = Vec::new();
        let mut pages = Pages::of(&work.api, list);
        while let Some(page) = pages.next().await? {
            let named = waiting.len();
            listed.name(comparison, page.objects, &mut waiting);
            if whole {
                let list = (comparison.entity, comparison.directory);
                listed.unreadable +=
                    relist::objects(work, list, &waiting[named..], work.as_of(page.at)).await?;
            }
            if let Some(first) = first.take() {
                first(!listed.groups_of.is_empty());
            }
            if waiting.len() >= TOGETHER {
                listed
                    .compare(work, comparison, std::mem::take(&mut waiting))
                    .await?;
            }
        }
        listed.compare(work, comparison, waiting).await?;
        let walked = pages
            .walked()
            .ok_or(Failure::Incomplete(comparison.entity.as_str()))?;
        listed.at = work.as_of(walked.first_at);
        Ok(listed)
    }

    /// Takes in a page: the id of each object, and the groups that a user says it is in.
    fn name(
        &mut self,
        comparison: Comparison<'_>,
        objects: Vec<String>,
        waiting: &mut Vec<(String, String)>,
    ) {
        for object in objects {
            match names_of(comparison, &object) {
                Some((id, groups)) => {
                    if !groups.is_empty() {
                        self.groups_of.insert(id.clone(), groups);
                    }
                    waiting.push((id, object));
                }
                None => self.unreadable += 1,
            }
        }
    }

    async fn compare(
        &mut self,
        work: &Work,
        comparison: Comparison<'_>,
        objects: Vec<(String, String)>,
    ) -> Result<(), Failure> {
        let texts: Vec<&str> = objects.iter().map(|(_, object)| object.as_str()).collect();
        let compared = stored(compare(&work.pool, comparison, &texts)).await?;
        // These do not count as listed. One that has a row is then read by its id, and found to exist.
        self.unreadable += compared.unreadable.len();
        let unreadable: HashSet<usize> = compared.unreadable.into_iter().collect();
        let suspects: HashSet<usize> = compared.suspects.iter().map(|suspect| suspect.index).collect();
        for (index, (id, object)) in objects.into_iter().enumerate() {
            if unreadable.contains(&index) {
                continue;
            }
            if suspects.contains(&index) {
                self.suspects.push((id.clone(), object));
            }
            self.ids.insert(id);
        }
        Ok(())
    }

    /// The kind of the objects.
    pub fn entity(&self) -> Entity {
        self.entity
    }

    /// The time that the list speaks for.
    pub fn at(&self) -> Timestamp {
        self.at
    }

    /// Every id listed.
    pub fn ids(&self) -> &HashSet<String> {
        &self.ids
    }

    /// Objects that differed from their rows when their page came: id and JSON text. Empty when called again.
    pub fn take_suspects(&mut self) -> Vec<(String, String)> {
        std::mem::take(&mut self.suspects)
    }

    /// The groups that users say they are in. A user who is not in this map named none, which does not mean "in no
    /// group".
    pub fn groups_of(&self) -> &HashMap<String, Vec<String>> {
        &self.groups_of
    }

    /// Objects that could not be read.
    pub fn unreadable(&self) -> usize {
        self.unreadable
    }

    /// Removes an object that turned out to be gone during the walk.
    pub fn forget(&mut self, id: &str) {
        self.ids.remove(id);
        self.suspects.retain(|(suspect, _)| suspect != id);
    }
}

/// The id of a listed object and the groups it says it is in. `None` if it has no id or says it is elsewhere.
fn names_of(comparison: Comparison<'_>, object: &str) -> Option<(String, Vec<String>)> {
    let text = json::storable(object.as_bytes()).ok()?;
    let [id, directory, groups] = json::members(&text, &["id", "directory_id", "groups"]).ok()?;
    let id = id.and_then(json::string).filter(|id| schema::ids::is_id(id))?;
    let elsewhere = directory
        .and_then(json::string)
        .is_some_and(|directory| directory != comparison.directory);
    if comparison.entity != Entity::Directory && elsewhere {
        return None;
    }
    let groups = groups.map(json::elements).unwrap_or_default();
    let groups = groups.into_iter().filter_map(|group| {
        let [id] = json::members(group.get(), &["id"]).ok()?;
        id.and_then(json::string).map(Into::into)
    });
    Some((id.into_owned(), groups.collect()))
}
