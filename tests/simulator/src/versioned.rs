//! A value with its past, so that a read can be answered as of some seconds ago.

use crate::clock::Millis;

/// The moment as of which the world is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum When {
    /// The newest state, including changes within the current millisecond.
    Now,
    /// The state at the end of that millisecond.
    At(Millis),
}

/// Every state that an object had, oldest first. `None` means that it did not exist.
#[derive(Clone, Debug)]
pub(crate) struct Versioned<T> {
    versions: Vec<(Millis, Option<T>)>,
}

impl<T> Default for Versioned<T> {
    fn default() -> Self {
        Self { versions: Vec::new() }
    }
}

impl<T> Versioned<T> {
    pub(crate) fn get(&self, when: When) -> Option<&T> {
        let newest = match when {
            When::Now => self.versions.last(),
            When::At(moment) => self.versions.iter().rev().find(|(since, _)| *since <= moment),
        };
        newest?.1.as_ref()
    }

    /// The newest state in which it existed, whether or not it still does.
    pub(crate) fn newest(&self) -> Option<&T> {
        self.versions.iter().rev().find_map(|(_, state)| state.as_ref())
    }

    /// Adds a state. `at` is never before the last one, because the world's timestamps only grow.
    pub(crate) fn put(&mut self, at: Millis, state: Option<T>) {
        self.versions.push((at, state));
    }

    /// When it was last created, changed or deleted.
    pub(crate) fn touched(&self) -> Option<Millis> {
        self.versions.last().map(|(at, _)| *at)
    }
}
