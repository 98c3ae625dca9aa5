//! Going back: in a datastore that was put back to an older state no address is given out before every host has said what it
//! holds.
//!
//! What a backup does not know is free in it, and may be in use on another host, whose node writes it again as soon as it
//! has read the datastore ([`putting_back`](super::putting_back)). That may take as long as it takes somebody to restart
//! that node. So the first node that notices writes into the datastore, for all to see, that each host is awaited; a node
//! that has put back what it holds takes that away of its own host.
//!
//! A process notices by what it has seen of the datastore, a new one by what the last one kept on the disk. Several do;
//! a number tells a later one that it is not the first, and then it awaits only whom nobody has before.
//!
//! Limits: until the first has noticed, within a second or two of the restore, nobody is held back who has no memory of it;
//! and nobody waits for a host that neither the backup nor whoever notices knows.

use std::collections::BTreeSet;
use std::convert::Infallible;
use std::sync::{MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::{Holdings, Store};
use crate::edge::etcd::{Etcd, Outcome, When, Write, to_json};
use crate::edge::wall_clock;
use crate::model::fault::Fault;
use crate::model::gone_back::GoneBack;
use crate::model::key::Key;
use crate::model::name::HostName;
use crate::model::snapshot::{Record, Snapshot};
use crate::plan::standing::{self, Seen};

/// What is done.
const AWAIT: &str = "tell that the datastore has gone back";

/// How many hosts one transaction speaks of, below etcd's limit of 128.
const MOST: usize = 100;

/// How often it is tried while others tell it too.
const TRIES: usize = 100;

/// How long to wait before this host says again that it has spoken, where that came to nothing.
const AGAIN: Duration = Duration::from_secs(1);

/// How long to wait for what this host or another is about to mend: all containers are compared with the datastore, and what
/// has failed is tried again, every ten seconds.
const SETTLES: Duration = Duration::from_secs(15);

/// How often it is kept on the disk how far the datastore has come.
const KEEP_SEEN_EVERY: Duration = Duration::from_secs(10);

impl Store {
    /// Why no address may be given out: another host may hold it, and has not said so yet.
    pub(crate) fn withheld(&self) -> Option<String> {
        let why = self.read(|snapshot| standing::waits_for(snapshot.awaited.keys()))?;
        let own = self.outstanding.read().unwrap_or_else(PoisonError::into_inner);
        Some(own.as_ref().map_or(why.clone(), |own| format!("{why}; on this host, {own}")))
    }

    /// Notes this host's report of itself.
    pub(crate) fn reported(&self, revision: i64) {
        if let Some(seen) = self.seen().as_mut() {
            seen.reported = revision;
        }
    }

    /// Notes how far the view has come, and who else is in it. Only while it is a view of the datastore that was last seen.
    pub(super) fn note_view(&self) {
        let revision = self.synced.borrow().revision;
        let (hosts, number) = self.read(|snapshot| (hosts(snapshot), number(snapshot)));
        if let Some(seen) = self.seen().as_mut() {
            (seen.revision, seen.hosts) = (seen.revision.max(revision), hosts);
            seen.number = seen.number.max(number);
        }
    }

    pub(super) fn seen(&self) -> MutexGuard<'_, Option<Seen>> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Compares a datastore with what was `seen` before it was read. If it has gone back, every host is awaited before
    /// anything else is written to it; what was seen before is forgotten only then, so that neither a load that fails nor the
    /// end of this process leaves it untold.
    pub(super) async fn heed_going_back(
        &self,
        etcd: &Etcd,
        holdings: &Holdings,
        seen: Option<Seen>,
        cluster: u64,
        snapshot: &Snapshot,
    ) -> Result<bool, Fault> {
        let own = etcd.get(&Key::HostLastStatus(self.host.clone())).await?;
        let before = seen.or_else(|| kept(holdings));
        // Where this host is recorded, and no report of it, somebody has taken that away.
        let taken_away = snapshot.host_ips.contains_key(&self.host);
        let none = || before.as_ref().filter(|_| taken_away).map_or(0, |before| before.reported);
        let reported = own.map_or_else(none, |own| own.revision);
        let (host, revision) = (self.host.clone(), snapshot.revision);
        let mut found = Seen { host, cluster, revision, reported, hosts: hosts(snapshot), number: number(snapshot) };
        let before = before.unwrap_or_else(|| found.clone());
        if !before.is_ahead_of(&found) {
            self.seen().get_or_insert(before.going_on(found));
            return Ok(false);
        }
        let (hosts, number) = self.tell_going_back(etcd, &before, &found).await?;
        tracing::warn!(
            ?hosts,
            "the datastore has gone back, is another one, or this host was taken out of it: these hosts are to say what they hold"
        );
        found.number = number;
        found.hosts.extend(hosts);
        *self.seen() = Some(found);
        Ok(true)
    }

    /// Has the hosts awaited that are to be, and tells in the datastore that it has gone back, if that is news. Answers who is
    /// awaited from now on, and how many times it has gone back.
    async fn tell_going_back(
        &self,
        etcd: &Etcd,
        before: &Seen,
        found: &Seen,
    ) -> Result<(BTreeSet<HostName>, u64), Fault> {
        let path = Key::GoneBack;
        let awaited = to_json(&serde_json::json!({"by": self.host, "since": wall_clock::now()}))?;
        for _ in 0..TRIES {
            // Asked anew each time: of all hosts, which notice within a second, one is the first.
            let told = etcd.get(&path).await?;
            let when =
                told.as_ref().map_or_else(|| When::Absent(path.clone()), |told| When::At(path.clone(), told.revision));
            let when = std::slice::from_ref(&when);
            let told: Option<GoneBack> = told.and_then(|told| serde_json::from_slice(&told.value).ok());
            let (hosts, tells) = before.await_in(found, told.as_ref());
            let mut writes: Vec<Write> =
                hosts.iter().map(|host| Write::Put(Key::Awaited(host.clone()), awaited.clone())).collect();
            if told.as_ref() != Some(&tells) {
                // Last, so that who reads it finds them awaited.
                writes.push(Write::Put(path.clone(), to_json(&tells)?));
            }
            let mut is_told = true;
            for writes in writes.chunks(MOST) {
                is_told = is_told && etcd.transact(AWAIT, when, writes).await? != Outcome::Lost;
            }
            if is_told {
                return Ok((hosts, tells.number));
            }
        }
        Err(Fault::Away(format!("{AWAIT}: other hosts kept telling it")))
    }

    /// Says each time that this host is awaited that the datastore has what it holds, once it does.
    pub(super) async fn speak(&self, etcd: &Etcd, holdings: &Holdings) -> Infallible {
        let mut synced = self.synced();
        let mut since: Option<Instant> = None;
        loop {
            synced.borrow_and_update();
            let awaited = self.read(|snapshot| Some(snapshot.awaited.get(&self.host)?.revision));
            if let Some(revision) = awaited {
                let waited = since.get_or_insert_with(Instant::now).elapsed();
                let said = match self.missing(holdings, waited).await {
                    Some(why) => Err(why),
                    None => self.say(etcd, revision).await.map_err(|fault| fault.to_string()),
                };
                self.tell_outstanding(said.clone().err());
                if said.is_err() {
                    tokio::time::sleep(AGAIN).await;
                    continue;
                }
            } else {
                since = None;
                self.tell_outstanding(None);
            }
            if synced.changed().await.is_err() {
                return std::future::pending().await;
            }
        }
    }

    /// What keeps this host from saying that the datastore has what it holds, when it has been awaited for so long.
    async fn missing(&self, holdings: &Holdings, waited: Duration) -> Option<String> {
        match self.outstanding(holdings).await {
            // It is not to be had: the address is somebody else's by now, or in no pool. All others go on.
            Ok(Some(why)) if waited >= SETTLES => {
                tracing::warn!(
                    why,
                    "the other hosts are told that the datastore has what this one holds, though it has not"
                );
                None
            }
            Ok(outstanding) => outstanding,
            Err(fault) => Some(fault.to_string()),
        }
    }

    /// Says that the datastore has what this host holds.
    async fn say(&self, etcd: &Etcd, revision: i64) -> Result<(), Fault> {
        let key = Key::Awaited(self.host.clone());
        // In answer to this word and no later one: whoever awaits it after that is to have an answer of his own.
        let (when, spoken) = ([When::At(key.clone(), revision)], [Write::Delete(key)]);
        etcd.transact("say what this host holds", &when, &spoken).await.map(drop)
    }

    fn tell_outstanding(&self, now: Option<String>) {
        let before =
            std::mem::replace(&mut *self.outstanding.write().unwrap_or_else(PoisonError::into_inner), now.clone());
        if let Some(why) = now.filter(|now| before.as_ref() != Some(now)) {
            tracing::warn!(why, "the other hosts are not told yet that the datastore has what this one holds");
        }
    }

    /// Brings what is kept on the disk up to date, time and again.
    pub(super) async fn keep_up(&self, holdings: &Holdings) -> Infallible {
        loop {
            self.note_view();
            self.keep_seen(holdings).await;
            tokio::time::sleep(KEEP_SEEN_EVERY).await;
        }
    }

    /// Keeps on the disk what is seen of the datastore here. Without it the next node knows less, which is all.
    pub(super) async fn keep_seen(&self, holdings: &Holdings) {
        let Some(line) = self.seen().as_ref().and_then(|seen| serde_json::to_string(seen).ok()) else { return };
        let file = holdings.last_seen.clone();
        if let Ok(Err(fault)) = tokio::task::spawn_blocking(move || file.keep(&line)).await {
            tracing::debug!(%fault, "how far the datastore has come is not kept");
        }
    }

    /// Tells when somebody is awaited from now on, or nobody any more.
    pub(super) fn tell_awaited(&self, before: bool) {
        match (before, self.withheld()) {
            (false, Some(why)) => tracing::warn!(why, "no address is given out"),
            (true, None) => tracing::info!("all hosts have said what they hold: addresses are given out again"),
            _ => {}
        }
    }
}

/// What the node before this one has seen.
fn kept(holdings: &Holdings) -> Option<Seen> {
    let read = holdings.last_seen.read().and_then(|line| {
        let path = holdings.last_seen.path().display();
        line.map(|line| serde_json::from_str(&line))
            .transpose()
            .map_err(|error| Fault::World(format!("read {path}: {error}")))
    });
    read.unwrap_or_else(|fault| {
        tracing::warn!(%fault, "whether the datastore has gone back cannot be told");
        None
    })
}

/// How many times a datastore has gone back, as is told in it.
fn number(snapshot: &Snapshot) -> u64 {
    snapshot.gone_back.as_ref().and_then(Record::readable).map_or(0, |told| told.number)
}

/// The hosts that a view knows.
fn hosts(snapshot: &Snapshot) -> BTreeSet<HostName> {
    snapshot.host_ips.keys().chain(snapshot.awaited.keys()).cloned().collect()
}
