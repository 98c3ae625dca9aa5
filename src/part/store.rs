//! The store: this process's view of the datastore, kept true by a load and a watch.
//!
//! One task writes, everybody reads. A broken or compacted watch ends in a new load, whose snapshot replaces the old one;
//! until the first load is complete nobody sees anything.

use std::sync::{PoisonError, RwLock};

use tokio::sync::watch;

use crate::model::snapshot::Snapshot;

/// How far the view has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Synced {
    /// The newest revision in the view; 0 before the first load.
    pub(crate) revision: i64,
    /// Whether the watch is up. While it is down the view stands still.
    pub(crate) connected: bool,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Store {
    view: RwLock<Snapshot>,
    synced: watch::Sender<Synced>,
}

impl Store {
    pub(crate) fn new() -> Self {
        Store { view: RwLock::new(Snapshot::default()), synced: watch::Sender::new(Synced::default()) }
    }

    /// Reads the view. `read` must be short: the watch waits for it.
    pub(crate) fn read<T>(&self, read: impl FnOnce(&Snapshot) -> T) -> T {
        read(&self.view.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Wakes on every change of the view.
    pub(crate) fn synced(&self) -> watch::Receiver<Synced> {
        self.synced.subscribe()
    }
}
