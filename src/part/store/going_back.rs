//! Going back: in a datastore that was put back to an older state no address is given out before every host has said what it
//! holds.
//!
//! What a backup does not know is free in it, and may be in use on another host, whose node writes it again as soon as it
//! has read the datastore ([`putting_back`](super::putting_back)). That may take as long as it takes somebody to restart
//! that node. So each other host is waited for until it has reported itself, which a node does after that.
//!
//! A process knows that the datastore has gone back, and which hosts there were, by what it has seen of it, a new one by
//! what the last one kept on the disk. Limits: nobody waits for the word of a host that reports nothing, or that neither the
//! backup nor this host knows.

use std::collections::BTreeSet;
use std::sync::{MutexGuard, PoisonError};

use super::{Holdings, Store};
use crate::edge::etcd::Etcd;
use crate::model::fault::Fault;
use crate::model::key::Key;
use crate::model::name::HostName;
use crate::model::snapshot::Snapshot;
use crate::plan::settings::Settings;
use crate::plan::standing::{self, Seen};

impl Store {
    /// Why no address may be given out: another host may hold it, and has not said so yet.
    pub(crate) fn withheld(&self) -> Option<String> {
        self.withheld.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Notes this host's report of itself.
    pub(crate) fn reported(&self, revision: i64) {
        if let Some(seen) = self.seen().as_mut() {
            seen.reported = revision;
        }
    }

    /// Notes how far the view has come, and who else is in it.
    pub(super) fn note_view(&self) {
        let revision = self.synced.borrow().revision;
        if revision == 0 {
            return;
        }
        let others = self.read(|snapshot| others(&self.host, snapshot));
        if let Some(seen) = self.seen().as_mut() {
            seen.revision = seen.revision.max(revision);
            if seen.waits_since.is_some() {
                seen.others.extend(others);
            } else {
                seen.others = others;
            }
        }
    }

    /// Since which revision other hosts are waited for.
    pub(super) fn waits_since(&self) -> Option<i64> {
        self.seen().as_ref().and_then(|seen| seen.waits_since)
    }

    pub(super) fn seen(&self) -> MutexGuard<'_, Option<Seen>> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Compares a datastore with what was seen before. If it has gone back, that is kept before anything is written to
    /// it, so that neither a load that fails nor the end of this process makes it forgotten.
    pub(super) async fn heed_going_back(
        &self,
        etcd: &Etcd,
        holdings: &Holdings,
        cluster: u64,
        revision: i64,
    ) -> Result<bool, Fault> {
        // Before it is asked for: this host goes on to report itself.
        let before = self.seen().clone();
        let own = etcd.get(&Key::HostLastStatus(self.host.clone())).await?;
        let reported = own.map_or(0, |own| own.revision);
        let found = Seen { cluster, revision, reported, waits_since: None, others: BTreeSet::new() };
        let kept = || {
            holdings.last_seen.read().unwrap_or_else(|fault| {
                tracing::warn!(%fault, "whether the datastore has gone back cannot be told");
                None
            })
        };
        let before = before.or_else(kept).unwrap_or_else(|| found.clone());
        if !before.is_ahead_of(&found) {
            self.seen().get_or_insert(before);
            return Ok(false);
        }
        *self.seen() = Some(Seen { waits_since: Some(revision), others: before.others, ..found });
        if let Err(fault) = self.keep_seen(holdings) {
            tracing::warn!(%fault, "that the datastore has gone back is forgotten with this process");
        }
        Ok(true)
    }

    /// Keeps on the disk what is seen of the datastore here.
    pub(super) fn keep_seen(&self, holdings: &Holdings) -> Result<(), Fault> {
        let seen = self.seen().clone();
        seen.map_or(Ok(()), |seen| holdings.last_seen.keep(&seen))
    }

    /// Brings what is kept on the disk up to date. Without it the next node knows less, which is all.
    pub(super) fn keep_up(&self, holdings: &Holdings) {
        self.note_view();
        if let Err(fault) = self.keep_seen(holdings) {
            tracing::debug!(%fault, "how far the datastore has come is not kept");
        }
    }

    /// The hosts that are waited for: those of a view, and those that were seen before. Who is not to report is not.
    pub(super) fn awaited(&self, snapshot: &Snapshot) -> Vec<HostName> {
        let before = self.seen().as_ref().map(|seen| seen.others.clone()).unwrap_or_default();
        let mut awaited = others(&self.host, snapshot);
        awaited.extend(before.into_iter().filter(|host| reports(host, snapshot)));
        awaited.into_iter().collect()
    }

    /// Withholds addresses until these hosts have spoken.
    pub(super) fn wait_for(&self, silent: &[HostName]) {
        let why = (!silent.is_empty()).then(|| standing::waits_for(silent));
        let mut withheld = self.withheld.write().unwrap_or_else(PoisonError::into_inner);
        match (&*withheld, &why) {
            (None, Some(why)) => tracing::warn!(why, "no address is given out"),
            (Some(_), None) => tracing::info!("all hosts have said what they hold: addresses are given out again"),
            _ => {}
        }
        *withheld = why;
        drop(withheld);
        *self.silent.lock().unwrap_or_else(PoisonError::into_inner) = silent.to_vec();
    }

    /// Asks whether all other hosts have said since a revision what they hold: they put it back before they report themselves.
    pub(super) async fn ask_others(&self, etcd: &Etcd, since: i64) {
        let mut silent = Vec::new();
        // Who has spoken once need not be asked again.
        let before = self.silent.lock().unwrap_or_else(PoisonError::into_inner).clone();
        for host in before {
            match etcd.get(&Key::HostLastStatus(host.clone())).await {
                Ok(Some(found)) if found.revision > since => {}
                Ok(_) => silent.push(host),
                // Asked again with the next look.
                Err(_) => return,
            }
        }
        self.wait_for(&silent);
        if silent.is_empty()
            && let Some(seen) = self.seen().as_mut()
        {
            seen.waits_since = None;
        }
    }
}

/// The hosts beside this one that report themselves: of the others nobody would ever hear.
fn others(own: &HostName, snapshot: &Snapshot) -> BTreeSet<HostName> {
    snapshot.host_ips.keys().filter(|host| *host != own && reports(host, snapshot)).cloned().collect()
}

/// Whether a host is to report itself.
fn reports(host: &HostName, snapshot: &Snapshot) -> bool {
    Settings::of(snapshot, host).host_report.is_some()
}
