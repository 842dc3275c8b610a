//! The simulated world: all state, the timestamps that order it, and the emission of events.
//!
//! Pure apart from the clock it is given: no I/O, and no randomness except from its seeded generator. The changes are
//! in the submodules, one for each kind of object; the reads are in `world/read.rs`.

mod directories;
mod groups;
mod read;
mod users;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
};

use rand::{SeedableRng, rngs::StdRng};
use serde_json::{Map, Value, json, value::RawValue};
use tokio::sync::watch;

use crate::{
    change::{ChangeError, Thing},
    clock::{Clock, Millis},
    event::{Envelope, Event},
    ids::Ids,
    model::{Directory, Group, User},
    options::Previous,
    versioned::{Versioned, When},
};

/// Everything that exists, with its past.
pub struct World {
    pub(crate) clock: Clock,
    pub(crate) rng: StdRng,
    ids: Ids,
    last_stamp: Millis,
    silent: bool,
    pub(crate) organizations: BTreeMap<String, String>,
    pub(crate) directories: BTreeMap<String, Versioned<Directory>>,
    pub(crate) users: BTreeMap<String, Versioned<Arc<User>>>,
    pub(crate) groups: BTreeMap<String, Versioned<Group>>,
    memberships: HashMap<(String, String), Versioned<()>>,
    /// Indexes. They keep deleted objects, for reads of the past.
    pub(crate) directory_ids: BTreeSet<String>,
    pub(crate) users_of_directory: HashMap<String, BTreeSet<String>>,
    pub(crate) groups_of_directory: HashMap<String, BTreeSet<String>>,
    pub(crate) users_of_group: HashMap<String, BTreeSet<String>>,
    pub(crate) groups_of_user: HashMap<String, BTreeSet<String>>,
    events: Vec<Event>,
    emitted: watch::Sender<usize>,
}

impl World {
    /// An empty world. With a fixed clock, the same `seed` and changes give the same bytes every time.
    pub fn new(clock: Clock, seed: u64) -> Self {
        Self {
            clock,
            rng: StdRng::seed_from_u64(seed),
            ids: Ids::default(),
            last_stamp: Millis::default(),
            silent: false,
            organizations: BTreeMap::new(),
            directories: BTreeMap::new(),
            users: BTreeMap::new(),
            groups: BTreeMap::new(),
            memberships: HashMap::new(),
            directory_ids: BTreeSet::new(),
            users_of_directory: HashMap::new(),
            groups_of_directory: HashMap::new(),
            users_of_group: HashMap::new(),
            groups_of_user: HashMap::new(),
            events: Vec::new(),
            emitted: watch::Sender::new(0),
        }
    }

    /// Every event so far, in the order of emission (which is the order of ids).
    pub fn events(&self) -> &[Event] {
        &self.events
    }

    /// A counter of events emitted, which wakes deliveries.
    pub(crate) fn emissions(&self) -> watch::Receiver<usize> {
        self.emitted.subscribe()
    }

    /// Makes changes without emitting events: drift for a consumer to find.
    pub(crate) fn silently<T>(&mut self, changes: impl FnOnce(&mut Self) -> T) -> T {
        let before = std::mem::replace(&mut self.silent, true);
        let result = changes(self);
        self.silent = before;
        result
    }

    /// The timestamp of a change: the clock's time, but never before an earlier change's.
    fn stamp(&mut self) -> Millis {
        self.last_stamp = self.clock.now().max(self.last_stamp);
        self.last_stamp
    }

    /// The timestamp of a change that must be later than all before it. If an object went and came back within one
    /// millisecond, time could not tell which came first, so the simulated WorkOS never does that.
    fn later_stamp(&mut self) -> Millis {
        let next = Millis(self.last_stamp.0 + 1);
        self.last_stamp = self.clock.now().max(next);
        self.last_stamp
    }

    fn new_id(&mut self, prefix: &str, at: Millis) -> String {
        self.ids.next(prefix, at, &mut self.rng)
    }

    fn emit(&mut self, kind: &str, directory: &str, at: Millis, data: &Value, context: &Value) {
        if self.silent {
            return;
        }
        let id = self.new_id("event", at);
        let envelope = Envelope {
            object: "event",
            id: &id,
            event: kind,
            data,
            created_at: at.rfc3339(),
            context,
        };
        let raw: Arc<RawValue> = serde_json::value::to_raw_value(&envelope)
            .expect("an envelope has string keys only")
            .into();
        let organization = data
            .get("organization_id")
            .or_else(|| data.pointer("/user/organization_id"))
            .and_then(Value::as_str)
            .map(str::to_owned);
        self.events.push(Event {
            id,
            kind: kind.to_owned(),
            created_at: at,
            directory: directory.to_owned(),
            organization,
            raw,
        });
        self.emitted.send_replace(self.events.len());
    }

    /// Emits an `updated` event, with the previous attributes where this directory's options want them.
    fn emit_updated(
        &mut self,
        kind: &str,
        directory: &Directory,
        at: Millis,
        data: Value,
        previous: Map<String, Value>,
    ) {
        let (mut data, mut context) = (data, json!({}));
        if !previous.is_empty() {
            match directory.options.previous {
                Previous::Data => data["previous_attributes"] = previous.into(),
                Previous::Context => context["previous_attributes"] = previous.into(),
                Previous::Nowhere => {}
            }
        }
        self.emit(kind, &directory.id, at, &data, &context);
    }

    fn directory(&self, id: &str) -> Result<Directory, ChangeError> {
        let found = self
            .directories
            .get(id)
            .and_then(|versions| versions.get(When::Now));
        found
            .cloned()
            .ok_or_else(|| ChangeError::not_there(Thing::Directory, id))
    }

    fn user(&self, id: &str) -> Result<(User, Directory), ChangeError> {
        let found = self.user_at(id, When::Now);
        let user = found.ok_or_else(|| ChangeError::not_there(Thing::User, id))?;
        Ok((User::clone(user), self.directory(&user.directory)?))
    }

    fn group(&self, id: &str) -> Result<(Group, Directory), ChangeError> {
        let found = self.group_at(id, When::Now);
        let group = found.ok_or_else(|| ChangeError::not_there(Thing::Group, id))?;
        Ok((group.clone(), self.directory(&group.directory)?))
    }

    fn put_user(&mut self, at: Millis, user: User) {
        let id = user.id.clone();
        self.users.entry(id).or_default().put(at, Some(Arc::new(user)));
    }

    fn put_group(&mut self, at: Millis, group: Group) {
        let id = group.id.clone();
        self.groups.entry(id).or_default().put(at, Some(group));
    }

    fn put_directory(&mut self, at: Millis, directory: Directory) {
        let id = directory.id.clone();
        self.directories.entry(id).or_default().put(at, Some(directory));
    }
}
