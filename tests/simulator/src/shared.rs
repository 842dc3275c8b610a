//! The state that a simulator's API, deliveries and handle share, behind locks. No logic.

use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::{
    api::{hooks::Hooks, limits::Windows, record::Record},
    change::ChangeError,
    clock::Clock,
    sim::{Options, Tuning},
    world::World,
};

/// The shared state. Each lock is held for one step only, never across a wait.
pub(crate) struct Shared {
    pub(crate) clock: Clock,
    pub(crate) api_key: String,
    world: Mutex<World>,
    tuning: Mutex<Tuning>,
    windows: Mutex<Windows>,
    hooks: Mutex<Hooks>,
    record: Mutex<Record>,
    script_errors: Mutex<Vec<ChangeError>>,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared").finish_non_exhaustive()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    pub(crate) fn new(options: &Options) -> Self {
        Self {
            clock: options.clock.clone(),
            api_key: options.api_key.clone(),
            world: Mutex::new(World::new(options.clock.clone(), options.seed)),
            tuning: Mutex::new(options.tuning.clone()),
            windows: Mutex::default(),
            hooks: Mutex::default(),
            record: Mutex::new(Record::new()),
            script_errors: Mutex::default(),
        }
    }

    pub(crate) fn world(&self) -> MutexGuard<'_, World> {
        lock(&self.world)
    }

    pub(crate) fn tuning(&self) -> MutexGuard<'_, Tuning> {
        lock(&self.tuning)
    }

    pub(crate) fn lock_windows(&self) -> MutexGuard<'_, Windows> {
        lock(&self.windows)
    }

    pub(crate) fn lock_hooks(&self) -> MutexGuard<'_, Hooks> {
        lock(&self.hooks)
    }

    pub(crate) fn lock_record(&self) -> MutexGuard<'_, Record> {
        lock(&self.record)
    }

    pub(crate) fn script_errors(&self) -> MutexGuard<'_, Vec<ChangeError>> {
        lock(&self.script_errors)
    }
}
