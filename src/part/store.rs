//! The store: this process's view of the datastore, kept true by a load and a watch.
//!
//! One task writes, everybody reads. A broken or compacted watch ends in a new load, whose snapshot replaces the old one;
//! until the first load is complete nobody sees anything, and while etcd is away the view stands still. It stands still too
//! while what answers is not believed to be this host's datastore (see [`crate::plan::standing`]). What a load lacks of this
//! host's containers is put back before the load becomes the view, so that nobody takes them for destroyed.
//!
//! Whether etcd is there is found by trying, at most once a second, and at first with one small read: a whole load only
//! when it has answered that. A watch that ends as soon as it began counts as a failed try.

use std::collections::HashSet;
use std::mem::Discriminant;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use tokio::sync::{Notify, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::edge::etcd::{CALL_TIMEOUT, Etcd, Watch};
use crate::edge::kept_file::KeptFile;
use crate::edge::random;
use crate::edge::reservations::Reservations;
use crate::model::fault::Fault;
use crate::model::host::Host;
use crate::model::key::{AssignmentKey, EndpointKey, Key};
use crate::model::name::{ContainerId, HostName};
use crate::model::snapshot::{Change, News, Record, Snapshot};
use crate::part::metrics::Metrics;
use crate::part::under_way::or_never;
use crate::plan::backoff::Backoff;
use crate::plan::settings::Settings;
use crate::plan::standing::{self, Seen, Standing};

mod going_back;
mod putting_back;

/// How long to wait before trying etcd again.
const RETRY: Backoff = Backoff::between(Duration::from_millis(100), Duration::from_secs(1));

/// How long a watch has to stand before its end is news and not a failed try.
const STANDS: Duration = Duration::from_secs(10);

/// How long the hosts are given to put back what they hold, when the datastore has gone back: they have all noticed within
/// about the longest wait between two tries.
const GRACE: Duration = Duration::from_secs(2);

/// How long to wait before reading all again where that has failed and what happens is followed all the same.
const READ_AGAIN: Duration = Duration::from_secs(10);

/// What a record adds to the time within which hosts begin to load a datastore again, and the most that it comes to.
const LOAD_RECORD: Duration = Duration::from_micros(25);
const LOAD_MOST: Duration = Duration::from_secs(5);

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
    settings: watch::Sender<Settings>,
    /// Why the datastore that answers is not believed.
    doubt: RwLock<Option<String>>,
    /// What was seen of the datastore; `None` before the first load.
    seen: Mutex<Option<Seen>>,
    /// Whether this process follows the datastore no more, and another may in its place.
    has_ended: AtomicBool,
    /// Why this host does not say yet what it holds, though it is asked.
    outstanding: RwLock<Option<String>>,
    /// The datastore has lost something of this host's containers: a load puts it back.
    lacks: Notify,
    /// The containers that are gone, of which something is kept here still.
    going: Mutex<HashSet<ContainerId>>,
}

/// Who this host is and what it keeps on its disk, whatever the datastore says; with the metrics of its loads.
pub(crate) struct Holdings {
    pub(crate) host: Host,
    pub(crate) reservations: Reservations,
    pub(crate) last_seen: KeptFile,
    pub(crate) metrics: Arc<Metrics>,
}

impl Store {
    pub(crate) fn new(host: HostName) -> Self {
        Store {
            view: RwLock::new(Snapshot::of(host.clone())),
            host,
            news: Mutex::new(News::All),
            synced: watch::Sender::new(Synced::default()),
            settings: watch::Sender::default(),
            doubt: RwLock::default(),
            seen: Mutex::default(),
            has_ended: AtomicBool::default(),
            outstanding: RwLock::default(),
            lacks: Notify::new(),
            going: Mutex::default(),
        }
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

    /// This host's settings. Wakes when one of them changes, and not with other news.
    pub(crate) fn settings(&self) -> watch::Receiver<Settings> {
        self.settings.subscribe()
    }

    fn tell_settings(&self) {
        let now = self.read(|snapshot| Settings::of(snapshot, &self.host));
        self.settings.send_if_modified(|settings| {
            let differ = *settings != now;
            *settings = now;
            differ
        });
    }

    /// Whether the view is complete and follows etcd now.
    pub(crate) fn is_connected(&self) -> bool {
        self.synced.borrow().connected
    }

    /// Why the datastore that answers is not believed; `None` if none answers or it is.
    pub(crate) fn doubt(&self) -> Option<String> {
        self.doubt.read().unwrap_or_else(PoisonError::into_inner).clone()
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

    /// Waits until the view shows something that etcd knows already.
    ///
    /// # Errors
    /// `Away` if that takes longer than a call to etcd may.
    pub(crate) async fn see(&self, shows: impl Fn(&Snapshot) -> bool) -> Result<(), Fault> {
        let mut synced = self.synced();
        let seen = async {
            // Not with `wait_for`: its condition is asked under the lock of the watch, which a look at the view takes too.
            // With a writer waiting in between, neither would ever go on.
            while !self.read(&shows) {
                synced.changed().await.ok()?;
            }
            Some(())
        };
        tokio::time::timeout(CALL_TIMEOUT, seen).await.ok().flatten().ok_or_else(|| {
            Fault::Away(format!("follow etcd: what it knows is not there within {} s", CALL_TIMEOUT.as_secs()))
        })
    }

    fn write<T>(&self, change: impl FnOnce(&mut Snapshot, &mut News) -> T) -> T {
        let mut view = self.view.write().unwrap_or_else(PoisonError::into_inner);
        let answer = change(&mut view, &mut self.news());
        let synced = Synced { revision: view.revision, connected: true };
        drop(view);
        self.synced.send_replace(synced);
        answer
    }

    /// Whether this process follows the datastore no more. What it does not know may be known to the next one.
    pub(crate) fn has_ended(&self) -> bool {
        self.has_ended.load(Ordering::Relaxed)
    }

    /// Says that a container is gone and its record about to be taken away: the datastore has not lost it.
    pub(crate) fn let_go(&self, container: &ContainerId) {
        self.going().insert(container.clone());
    }

    /// Says that nothing is kept here any more of a container that is gone.
    pub(crate) fn gone(&self, container: &ContainerId) {
        self.going().remove(container);
    }

    fn going(&self) -> std::sync::MutexGuard<'_, HashSet<ContainerId>> {
        self.going.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Follows etcd until told to stop.
    pub(crate) async fn run(&self, etcd: &Etcd, holdings: &Holdings, stop: &CancellationToken) {
        let mut backoff = RETRY;
        let mut known = None;
        let mut told: Option<Discriminant<Fault>> = None;
        while !stop.is_cancelled() {
            let mut since = None;
            let ended = tokio::select! {
                () = stop.cancelled() => break,
                ended = self.follow(etcd, holdings, &mut known, &mut since) => ended,
            };
            self.lose();
            if since.is_some_and(|since: Instant| since.elapsed() >= STANDS) {
                (backoff, told) = (RETRY, None);
            }
            if told.replace(std::mem::discriminant(&ended)) == Some(std::mem::discriminant(&ended)) {
                tracing::debug!(fault = %ended, "etcd is still away");
            } else if matches!(ended, Fault::Away(_)) {
                tracing::warn!(fault = %ended, "etcd is away: what is programmed stays, and nothing new is");
            } else {
                tracing::error!(fault = %ended, "the datastore is not followed: what is programmed stays, and nothing new is");
            }
            tokio::select! {
                () = stop.cancelled() => break,
                () = tokio::time::sleep(backoff.failed()) => {}
            }
        }
        self.has_ended.store(true, Ordering::Relaxed);
        self.lose();
        self.keep_seen(holdings).await;
    }

    /// The datastore is not followed any more: what the view has come to is what was last seen of it.
    fn lose(&self) {
        if self.is_connected() {
            self.note_view();
        }
        self.synced.send_modify(|synced| synced.connected = false);
    }

    /// Asks whether this is the datastore that the host's containers are recorded in, and nobody else is this host.
    async fn check(
        &self,
        etcd: &Etcd,
        known: Option<&Standing>,
        own: Ipv4Addr,
        reserved: usize,
        found: &Standing,
    ) -> Result<(), Fault> {
        let doubt = match standing::doubt(known, reserved, found) {
            Some(why) => Some(why),
            None => self.namesake(etcd, own).await?,
        };
        self.believe(etcd, doubt)
    }

    /// Who else is this host, in words. Asked before each load: who was cut off for long may find another one in its place.
    async fn namesake(&self, etcd: &Etcd, own: Ipv4Addr) -> Result<Option<String>, Fault> {
        let recorded = etcd.get(&Key::HostIp(self.host.clone())).await?;
        let recorded = recorded.and_then(|found| std::str::from_utf8(&found.value).ok()?.trim().parse::<IpAddr>().ok());
        let Some(other) = recorded.filter(|recorded| *recorded != own) else { return Ok(None) };
        // A word of this process's own is nobody else's, and one that has just begun has said none.
        let report = etcd.get(&Key::HostStatus(self.host.clone())).await?;
        let reported = self.seen().as_ref().map_or(0, |seen| seen.reported);
        Ok(report.filter(|report| report.revision != reported).map(|_| standing::namesake(&self.host, own, other)))
    }

    fn believe(&self, etcd: &Etcd, doubt: Option<String>) -> Result<(), Fault> {
        self.doubt.write().unwrap_or_else(PoisonError::into_inner).clone_from(&doubt);
        let fault = |why| Fault::World(format!("load the datastore in etcd at {}: {why}", etcd.address()));
        doubt.map_or(Ok(()), |why| Err(fault(why)))
    }

    /// Loads and watches, and loads again on a clock, until the watch ends; answers why it did. `since`: when the first
    /// watch began.
    async fn follow(
        &self,
        etcd: &Etcd,
        holdings: &Holdings,
        known: &mut Option<Standing>,
        since: &mut Option<Instant>,
    ) -> Fault {
        let mut followed: Option<Watch> = None;
        loop {
            let loading = Box::pin(self.load(etcd, holdings, *known, followed.is_some()));
            let loaded = match &mut followed {
                None => loading.await,
                // A load may take its time, and who writes meanwhile waits until the view has it.
                Some(watch) => tokio::select! {
                    loaded = loading => loaded,
                    ended = self.stand(etcd, holdings, watch, known) => return ended,
                },
            };
            let (standing, snapshot, mut watch) = match (loaded, &mut followed) {
                (Ok(loaded), _) => loaded,
                // What is followed is as good as before.
                (Err(fault @ Fault::Away(_)), Some(watch)) => {
                    tracing::warn!(%fault, "the datastore is not read again, and is followed as before");
                    tokio::select! {
                        ended = self.stand(etcd, holdings, watch, known) => return ended,
                        () = tokio::time::sleep(READ_AGAIN) => continue,
                    }
                }
                (Err(fault), _) => return fault,
            };
            // It is not read any more, and etcd would keep for it what it does not take.
            drop(followed.take());
            let revision = snapshot.revision;
            *known = Some(Standing { ready: snapshot.is_ready(), ..standing });
            since.get_or_insert_with(Instant::now);
            let was_awaited = self.withheld().is_some();
            let old = self.write(|view, news| {
                *news = News::All;
                std::mem::replace(view, snapshot)
            });
            // Outside of the lock: it takes its time with a hundred thousand records.
            drop(old);
            self.tell_settings();
            self.tell_awaited(was_awaited);
            holdings.metrics.resyncs.inc();
            tracing::info!(revision, etcd = etcd.address(), "the view of the datastore is complete");
            tokio::select! {
                ended = self.stand(etcd, holdings, &mut watch, known) => return ended,
                () = self.resync_due() => followed = Some(watch),
            }
        }
    }

    /// Follows the datastore until the watch ends, and says meanwhile, and keeps, what follows from that.
    ///
    /// # Cancel safety
    /// No change is lost when the future is dropped before it is ready.
    async fn stand(&self, etcd: &Etcd, holdings: &Holdings, watch: &mut Watch, known: &mut Option<Standing>) -> Fault {
        tokio::select! {
            ended = self.heed(watch, known) => ended,
            never = self.speak(etcd, holdings) => match never {},
            never = self.keep_up(holdings) => match never {},
        }
    }

    /// Takes in what a watch tells until it is over; answers why it is.
    ///
    /// # Cancel safety
    /// No change is lost when the future is dropped before it is ready.
    async fn heed(&self, watch: &mut Watch, known: &mut Option<Standing>) -> Fault {
        loop {
            let changes = match watch.next().await {
                Ok(changes) => changes,
                Err(fault) => return fault,
            };
            if let Some(ready) = readiness(&changes) {
                if !ready && known.is_some_and(|known| known.ready) {
                    return wiped();
                }
                *known = known.map(|known| Standing { ready, ..known });
            }
            if changes.is_empty() {
                continue;
            }
            if let Some(address) = self.take_in(&changes) {
                tracing::warn!(%address, "the claim of an address was taken away, and not its endpoint: it is put back");
                self.lacks.notify_one();
            }
        }
    }

    /// Waits until all is to be read again: as the settings have it, or because something is to be put back.
    async fn resync_due(&self) {
        tokio::select! {
            () = self.lacks.notified() => {}
            () = self.resync_interval() => {}
        }
    }

    /// Waits for between half of the interval and all of it: hosts that began at once, after a cut, do not go on so.
    async fn resync_interval(&self) {
        let (began, mut settings) = (Instant::now(), self.settings());
        let share = random::part_of(Duration::from_secs(1)).as_secs_f64();
        loop {
            let due = settings.borrow_and_update().resync.map(|every| began + every / 2 + (every / 2).mul_f64(share));
            let slept = or_never(due.map(tokio::time::sleep_until));
            tokio::select! {
                () = slept => return,
                // The sender lives as long as the store.
                _ = settings.changed() => {}
            }
        }
    }

    /// Brings a load to where the view has come, which was followed meanwhile: nobody sees the datastore go back.
    async fn catch_up(&self, loaded: &mut Snapshot, watch: &mut Watch) -> Result<(), Fault> {
        let catch_up = async {
            while self.read(|view| loaded.is_behind(view)) {
                let changes = watch.next().await?;
                if loaded.is_ready() && readiness(&changes) == Some(false) {
                    return Err(wiped());
                }
                loaded.follow(&changes, &mut News::none());
            }
            Ok(())
        };
        let late = |_| Fault::Away("load the datastore: what came meanwhile is not told".to_owned());
        tokio::time::timeout(CALL_TIMEOUT, catch_up).await.map_err(late)?
    }

    /// Answers an address of this host's containers whose claim was taken away by itself.
    fn take_in(&self, changes: &[Change]) -> Option<IpAddr> {
        let was_awaited = self.withheld().is_some();
        let unclaimed = self.write(|view, news| {
            let released = released_by(changes, view);
            let stale = view.follow(changes, news);
            if stale > 0 {
                tracing::debug!(stale, "etcd told again what it had told before");
            }
            released.into_iter().find(|(claim, endpoint)| {
                let endpoint = view.endpoints.get(endpoint).and_then(Record::readable);
                endpoint.is_some_and(|one| one.addresses.contains(&claim.address)) && !view.claims.contains_key(claim)
            })
        });
        if changes.iter().any(|change| change.path.contains("/config/")) {
            self.tell_settings();
        }
        self.tell_awaited(was_awaited);
        unclaimed.map(|(claim, _)| claim.address)
    }

    /// Loads a datastore that is believed and lacks nothing that this host can put back, and watches it from there; from
    /// where the view has come, if that is `followed` meanwhile.
    async fn load(
        &self,
        etcd: &Etcd,
        holdings: &Holdings,
        known: Option<Standing>,
        followed: bool,
    ) -> Result<(Standing, Snapshot, Watch), Fault> {
        let (known, own) = (known.as_ref(), holdings.host.ip);
        // Before the load, beside which the view may go on.
        if followed {
            self.note_view();
        }
        let seen = self.seen().clone();
        let reserved = holdings.reservations.containers()?;
        let count = reserved.len();
        self.check(etcd, known, own, count, &etcd.standing().await?).await?;
        if !followed {
            tokio::time::sleep(random::part_of(self.read(load_time))).await;
        }
        let (mut standing, mut snapshot) = etcd.load_into(Snapshot::of(self.host.clone())).await?;
        self.check(etcd, known, own, count, &standing).await?;
        let went_back = self.heed_going_back(etcd, holdings, seen, standing.cluster, &snapshot).await?;
        let put_back = self.put_back(etcd, holdings, &reserved, &snapshot, known.is_some()).await?;
        if put_back || went_back {
            tokio::time::sleep(GRACE).await;
            (standing, snapshot) = etcd.load_into(Snapshot::of(self.host.clone())).await?;
            self.check(etcd, known, own, count, &standing).await?;
        }
        let mut watch = etcd.watch_after(snapshot.revision).await?;
        if followed {
            self.catch_up(&mut snapshot, &mut watch).await?;
        }
        Ok((standing, snapshot, watch))
    }
}

/// Within what time hosts that have lost a datastore of this size at once begin to load it, each at its own moment: all of
/// them have a record each of all endpoints and claims to ask for.
fn load_time(view: &Snapshot) -> Duration {
    let records = u32::try_from(view.remote.len() + view.claims.len()).unwrap_or(u32::MAX);
    (LOAD_RECORD * records).min(LOAD_MOST)
}

/// The claims that some changes take away from endpoints of this host, with the endpoints.
fn released_by(changes: &[Change], view: &Snapshot) -> Vec<(AssignmentKey, EndpointKey)> {
    let gone = changes.iter().filter(|change| change.value.is_none()).filter_map(|change| Key::parse(&change.path));
    let claims = gone.filter_map(|key| if let Key::Assignment(key) = key { Some(key) } else { None });
    let of_owner = |claim: AssignmentKey| {
        let key = view.claims.get(&claim)?.readable()?.owner.endpoint()?;
        view.endpoints.contains_key(&key).then_some((claim, key))
    };
    claims.filter_map(of_owner).collect()
}

/// What some changes say of whether the datastore holds its defaults, the worst if they are of several revisions; `None`:
/// nothing. All that one transaction does comes at once, so a wipe is seen before any part of it is taken in.
fn readiness(changes: &[Change]) -> Option<bool> {
    let said = changes.iter().filter(|change| change.path == Key::Ready.path());
    said.map(|change| change.value.as_deref() == Some(b"true")).min()
}

fn wiped() -> Fault {
    Fault::Away(format!("watch the datastore: {} was taken away", Key::Ready.path()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wipe_is_one_though_the_datastore_was_filled_again_right_after_it() {
        let change = |path: &str, value: Option<&[u8]>| Change {
            revision: 1,
            path: path.to_owned(),
            value: value.map(<[u8]>::to_vec),
        };
        let ready = |value: Option<&[u8]>| change(&Key::Ready.path(), value);
        let other = || change("/calico/v1/config/InterfacePrefix", None);
        assert_eq!(readiness(&[]), None);
        assert_eq!(readiness(&[other()]), None);
        assert_eq!(readiness(&[other(), ready(Some(b"true"))]), Some(true));
        assert_eq!(readiness(&[ready(None), other(), ready(Some(b"true"))]), Some(false));
        assert_eq!(readiness(&[ready(Some(b"no"))]), Some(false));
    }
}
