//! The store: this process's view of the datastore, kept true by a load and a watch.
//!
//! One task writes, everybody reads. A broken or compacted watch ends in a new load, whose snapshot replaces the old one;
//! until the first load is complete nobody sees anything, and while etcd is away the view stands still.

use std::sync::{Mutex, PoisonError, RwLock};
use std::time::Duration;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::edge::etcd::{CALL_TIMEOUT, Etcd};
use crate::model::fault::Fault;
use crate::model::name::HostName;
use crate::model::snapshot::{News, Snapshot};

/// How long to wait before trying etcd again: doubled from the first to the second.
const RETRY: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(2));

/// How far the view has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Synced {
    /// The newest revision in the view; 0 before the first load.
    pub(crate) revision: i64,
    /// Whether the watch is up.
    pub(crate) connected: bool,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Store {
    host: HostName,
    view: RwLock<Snapshot>,
    /// What of the view may have changed since [`Store::take`]. Written under the view's lock.
    news: Mutex<News>,
    synced: watch::Sender<Synced>,
}

impl Store {
    pub(crate) fn new(host: HostName) -> Self {
        let view = RwLock::new(Snapshot::of(host.clone()));
        Store { host, view, news: Mutex::new(News::All), synced: watch::Sender::new(Synced::default()) }
    }

    /// Reads the view. `read` must be short: the watch waits for it.
    pub(crate) fn read<T>(&self, read: impl FnOnce(&Snapshot) -> T) -> T {
        read(&self.view.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Reads the view, with what may have changed in it since the last time. For one reader alone: the agent.
    pub(crate) fn take<T>(&self, read: impl FnOnce(&Snapshot, &News) -> T) -> T {
        self.read(|snapshot| {
            let news = std::mem::replace(&mut *self.news(), News::none());
            read(snapshot, &news)
        })
    }

    fn news(&self) -> std::sync::MutexGuard<'_, News> {
        self.news.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Wakes on every change of the view.
    pub(crate) fn synced(&self) -> watch::Receiver<Synced> {
        self.synced.subscribe()
    }

    /// Whether the view is complete and follows etcd now.
    pub(crate) fn is_connected(&self) -> bool {
        self.synced.borrow().connected
    }

    /// Waits until the view includes a revision, so that who wrote it also reads it.
    ///
    /// # Errors
    /// `Away` if that takes longer than a call to etcd may.
    pub(crate) async fn reach(&self, revision: i64) -> Result<(), Fault> {
        let mut synced = self.synced();
        match tokio::time::timeout(CALL_TIMEOUT, synced.wait_for(|synced| synced.revision >= revision)).await {
            Ok(Ok(_)) => Ok(()),
            _ => Err(Fault::Away(format!(
                "follow etcd to revision {revision}: not there within {} s",
                CALL_TIMEOUT.as_secs()
            ))),
        }
    }

    fn write(&self, change: impl FnOnce(&mut Snapshot, &mut News)) {
        let mut view = self.view.write().unwrap_or_else(PoisonError::into_inner);
        change(&mut view, &mut self.news());
        let synced = Synced { revision: view.revision, connected: true };
        drop(view);
        self.synced.send_replace(synced);
    }

    /// Follows etcd until told to stop.
    pub(crate) async fn run(&self, etcd: &Etcd, stop: &CancellationToken) {
        let mut wait = RETRY.0;
        let mut told = false;
        while !stop.is_cancelled() {
            let ended = tokio::select! {
                () = stop.cancelled() => return,
                ended = self.follow(etcd, &mut wait, &mut told) => ended,
            };
            self.synced.send_modify(|synced| synced.connected = false);
            if told {
                tracing::debug!(fault = %ended, "etcd is still away");
            } else {
                tracing::warn!(fault = %ended, "etcd is away: what is programmed stays, and nothing new is");
                told = true;
            }
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(wait) => {}
            }
            wait = (wait * 2).min(RETRY.1);
        }
    }

    /// Loads, then watches until the watch ends; answers why it did.
    async fn follow(&self, etcd: &Etcd, wait: &mut Duration, told: &mut bool) -> Fault {
        let snapshot = match etcd.load_into(Snapshot::of(self.host.clone())).await {
            Ok(snapshot) => snapshot,
            Err(fault) => return fault,
        };
        let revision = snapshot.revision;
        let mut watch = match etcd.watch_after(revision).await {
            Ok(watch) => watch,
            Err(fault) => return fault,
        };
        self.write(|view, news| (*view, *news) = (snapshot, News::All));
        tracing::info!(revision, etcd = etcd.address(), "the view of the datastore is complete");
        *wait = RETRY.0;
        *told = false;
        loop {
            match watch.next().await {
                Ok(changes) if changes.is_empty() => {}
                Ok(changes) => self.write(|view, news| {
                    for key in changes.iter().filter_map(|change| view.apply(change)) {
                        news.add(key);
                    }
                }),
                Err(fault) => return fault,
            }
        }
    }
}
