//! Reconciling: Docker's events make it quick, the list of all containers makes it right.
//!
//! An event only says which container to look at; what is done follows from the look. The reader of events never waits
//! for work, since dockerd drops the events of a listener that stalls. After every connection, and on a clock, all
//! containers are listed and compared with the records, because events get lost when dockerd is killed.
//!
//! What somebody does to the host's side of a link, the kernel tells, and a link that does not work any more is mended at
//! once. What somebody does inside a container nobody tells: a few of those that run are looked at in turn with every
//! comparison, all of them within [`ROUND`] as long as there are not more than [`AT_A_TIME`] for each.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::future::ready;
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::{StreamExt, stream};
use tokio::sync::{Semaphore, mpsc};
use tokio::task::{JoinError, JoinSet};
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

use super::Network;
use super::settle::Waits;
use crate::edge::docker::{Container, Event, Listed};
use crate::edge::kernel_routes::{LinkEvent, listen};
use crate::edge::wall_clock::now_s;
use crate::model::endpoint::Endpoint;
use crate::model::fault::Fault;
use crate::model::key::AssignmentKey;
use crate::model::name::{ContainerId, IfName, Orchestrator};
use crate::model::report::Beside;
use crate::part::under_way::or_never;
use crate::plan::backoff::{Backoff, Retries};
use crate::plan::rota::Rota;

/// How often all containers are compared with the records though no event asked for it.
const AUDIT: Duration = Duration::from_secs(10);

/// How often every container that runs is looked at inside, and how many of them at most with one comparison.
const ROUND: Duration = Duration::from_mins(1);
const AT_A_TIME: usize = 32;

/// How long to wait before another try to start a container whose start the OCI hook has refused again.
const RESTART: Backoff = Backoff::between(AUDIT, Duration::from_mins(5));

/// How long a link is left alone that something happened to: who makes or removes it does so in several steps.
const LINK_RESTS: Duration = Duration::from_millis(200);

/// How long to wait before trying dockerd, or a container whose wiring failed, again.
const RETRY: Backoff = Backoff::between(Duration::from_millis(250), Duration::from_secs(10));

/// How many containers are settled at once.
const AT_ONCE: usize = 16;

/// What is under way.
struct Work {
    network: Arc<Network>,
    tasks: JoinSet<Done>,
    slots: Arc<Semaphore>,
    /// The containers that are being settled, or are to be again.
    settling: Retries<ContainerId>,
    /// Those that are being started because the hook has refused it, or are to be again.
    starting: Retries<ContainerId>,
    /// Whether claims are being tended, and what stood in the way of it the last time.
    tending: bool,
    untended: BTreeSet<String>,
    /// Those whose links something happened to, and whether something has again since.
    resting: HashMap<ContainerId, bool>,
    /// Those whose inside is looked at.
    rota: Rota<ContainerId>,
}

/// What a task has done.
enum Done {
    Settled(ContainerId, Result<(), Fault>),
    /// The links of a container have come to rest, and work, or do not.
    Rested(ContainerId, bool),
    /// A container whose start the hook had refused was started, or its start refused again.
    Started(ContainerId),
    /// Claims are tended, but for what is told of.
    Tended(BTreeSet<String>),
    /// Something that nothing follows from.
    Other,
}

/// What a task has done. One that panicked ends this part, and the process with it.
fn joined(done: Result<Done, JoinError>) -> Done {
    done.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()))
}

async fn until(at: Option<Instant>) {
    or_never(at.map(|at| tokio::time::sleep_until(at.into()))).await;
}

impl Network {
    /// Follows Docker until told to stop.
    ///
    /// # Errors
    /// What no retry can mend: nothing can be wired any more.
    pub(crate) async fn reconcile(self: &Arc<Self>, stop: &CancellationToken) -> Result<(), Fault> {
        let mut work = Work {
            network: Arc::clone(self),
            tasks: JoinSet::new(),
            slots: Arc::new(Semaphore::new(AT_ONCE)),
            settling: Retries::at(RETRY),
            starting: Retries::at(RESTART),
            tending: false,
            untended: BTreeSet::new(),
            resting: HashMap::new(),
            rota: Rota::default(),
        };
        let mut backoff = RETRY;
        while !stop.is_cancelled() {
            let ended = tokio::select! {
                () = stop.cancelled() => break,
                ended = work.follow(&mut backoff) => ended,
            };
            self.wirer.check()?;
            self.forget_engine();
            if self.docker_up.send_replace(false) || backoff.is_well() {
                tracing::warn!(fault = %ended, "dockerd is away: what is wired stays");
            }
            let pause = async {
                // Who waits for an address waits for no dockerd.
                if self.store.is_connected()
                    && let Err(fault) = self.release_orphans().await
                {
                    tracing::warn!(%fault, "a claim that belongs to no create is not released yet");
                }
                tokio::time::sleep(backoff.failed()).await;
            };
            tokio::select! {
                () = stop.cancelled() => break,
                () = pause => {}
            }
        }
        // What is under way is finished, but nothing is tried again: half a wiring helps nobody.
        while let Some(done) = work.tasks.join_next().await {
            joined(done);
        }
        Ok(())
    }

    /// Frees the addresses of containers that dockerd says are gone, those that are ours.
    ///
    /// # Errors
    /// What was not freed within the time that a start may wait for the agent; the events of their ends lead to other tries.
    ///
    /// # Cancel safety
    /// What is cut off goes on with the next look, as after a crash.
    pub(crate) async fn ended(&self, gone: Vec<ContainerId>) -> Result<(), Fault> {
        let settle = |id: ContainerId| async move { self.settle(&id, Waits::Destroy).await };
        let settled = stream::iter(gone).filter(|id| ready(self.is_ours(id))).map(settle).buffer_unordered(AT_ONCE);
        let faults = settled.filter_map(|settled| ready(settled.err())).map(|fault| fault.to_string()).collect();
        let limit = self.ground.apply_timeout;
        let faults: Vec<String> = tokio::time::timeout(limit, faults).await.map_err(|_| {
            Fault::Away(format!("free the addresses of containers: not done within {} s", limit.as_secs_f32()))
        })?;
        if faults.is_empty() { Ok(()) } else { Err(Fault::World(faults.join("; "))) }
    }

    /// The containers of ours that need a look: gone, running without a link that works, or with one and not running.
    async fn unsettled(&self, listed: &[Listed]) -> Vec<ContainerId> {
        let running: HashMap<&ContainerId, bool> = listed.iter().map(|one| (&one.id, one.running)).collect();
        let mut unsettled = Vec::new();
        for id in self.containers() {
            let Some(running) = running.get(&id).copied() else {
                unsettled.push(id);
                continue;
            };
            for one in self.recorded(&id) {
                let fits = match self.wirer.links.link(&one.endpoint.interface).await {
                    Ok(link) if running => link.is_some_and(|link| link.operates),
                    Ok(link) => link.is_none(),
                    // Why it could not be seen is told by the look that follows.
                    Err(_) => false,
                };
                if one.endpoint.is_active() != running || !fits {
                    unsettled.push(id.clone());
                    break;
                }
            }
        }
        unsettled
    }

    /// The containers of ours of which the list says something else than is known about whether they are on networks of
    /// Docker's too. What it says is no more than a reason to look: of a connecting that failed halfway it says nothing.
    fn in_doubt(&self, listed: &[Listed]) -> Vec<ContainerId> {
        let ours: HashSet<ContainerId> = self.containers().into_iter().collect();
        let known = self.beside.borrow();
        let differ = listed.iter().filter(|one| {
            let is_beside = one.running && !one.networks.is_empty();
            ours.contains(&one.id) && is_beside != known.contains_key(one.id.as_str())
        });
        differ.map(|one| one.id.clone()).collect()
    }

    /// Notes, and tells, if a container of ours that runs is on networks of Docker's too: it was added to Calico while it was on
    /// one, or somebody has connected it around the proxy.
    pub(super) fn note_networks(&self, container: &Container) {
        let networks: Vec<&str> = container.networks.keys().map(String::as_str).collect();
        let is_beside = container.pid.is_some() && !networks.is_empty();
        let beside = || Beside { container: container.name.clone(), networks: networks.join(", ") };
        self.set_beside(&container.id, is_beside.then(beside));
    }

    /// See [`Network::note_networks`]; `None`: on none.
    pub(super) fn set_beside(&self, id: &ContainerId, now: Option<Beside>) {
        self.beside.send_if_modified(|all| {
            let before = match &now {
                Some(beside) => all.insert(id.to_string(), beside.clone()),
                None => all.remove(id.as_str()),
            };
            let changed = before != now;
            if let Some(beside) = now.filter(|_| changed) {
                tracing::warn!("{beside}");
            }
            self.metrics.escaping.set(i64::try_from(all.len()).unwrap_or(i64::MAX));
            changed
        });
    }

    /// Forgets those containers that were let go and are gone.
    fn forget_released(&self, listed: &[Listed]) -> Result<(), Fault> {
        let there: HashSet<&str> = listed.iter().map(|one| one.id.as_str()).collect();
        let released = self.released.all();
        released.iter().filter(|id| !there.contains(id.as_str())).try_for_each(|id| self.released.clear(id))
    }

    /// The containers that are recorded as running here, in order.
    fn running(&self) -> Vec<ContainerId> {
        let docker = Orchestrator::docker();
        self.store.read(|snapshot| {
            let active = snapshot.endpoints_of(&self.ground.host.name).filter(|(key, record)| {
                key.orchestrator == docker && record.readable().is_some_and(Endpoint::is_active)
            });
            let mut ids: Vec<ContainerId> = active.filter_map(|(key, _)| key.workload.as_str().parse().ok()).collect();
            ids.dedup();
            ids
        })
    }

    /// The running container that an interface is recorded to belong to.
    fn behind(&self, interface: &str) -> Option<ContainerId> {
        let interface: IfName = interface.parse().ok()?;
        self.store.read(|snapshot| {
            let mut here = snapshot.endpoints_at(&interface);
            let (key, _) = here.find(|(key, record)| {
                key.host == self.ground.host.name
                    && key.orchestrator == Orchestrator::docker()
                    && record.readable().is_some_and(Endpoint::is_active)
            })?;
            key.workload.as_str().parse().ok()
        })
    }

    /// Whether all links that a container is recorded to have are there and work, as far as is seen from outside.
    async fn links_work(&self, id: &ContainerId) -> Result<bool, Fault> {
        for one in self.recorded(id).iter().filter(|one| one.endpoint.is_active()) {
            if !self.wirer.links.link(&one.endpoint.interface).await?.is_some_and(|link| link.operates) {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// The containers that are kept on this host's disk and not in the datastore: they are gone and their addresses still to
    /// be freed, or the datastore has lost them.
    fn reserved_only(&self) -> Result<Vec<ContainerId>, Fault> {
        let known: HashSet<ContainerId> = self.containers().into_iter().collect();
        let mut reserved = self.reservations.containers()?;
        reserved.retain(|id| !known.contains(id));
        Ok(reserved)
    }

    /// Starts a container whose start the OCI hook had to refuse, if its restart policy wants it to run.
    async fn start_refused(&self, id: &ContainerId) -> Result<(), Fault> {
        // A client has started or stopped it meanwhile.
        if !self.refused.is_set(id.as_str()) {
            return Ok(());
        }
        // Whatever fails, dockerd does not try it again by itself: so it stays refused until it is up, or is not to be.
        if let Some(container) = self.docker.inspect(id.as_str()).await?
            && container.restarts
            && !container.is_up
        {
            tracing::info!(container = id.short(), "starting it: its start was refused before");
            self.docker.start(id).await?;
        }
        self.refused.clear(id.as_str())
    }

    /// Tells of a container that is not ours though its environment says so: it was created around the proxy, or its
    /// image brings the variable.
    async fn tell_of_stranger(&self, id: &ContainerId) {
        // One that is gone again, or a dockerd that is, is no news.
        let Ok(Some(container)) = self.docker.inspect(id.as_str()).await else { return };
        let wishes = container.env.iter().any(|variable| variable.starts_with("CALICO_IP="));
        if !wishes || !self.keys(id).is_empty() {
            return;
        }
        self.metrics.created_around.inc();
        tracing::warn!(
            container = id.short(),
            name = container.name,
            "CALICO_IP is in its environment, but it was not created through this proxy: it is not Calico's; calicoctl container add makes it so"
        );
    }

    /// Learns which runtimes dockerd knows now. What was known before stays in force if it does not say.
    pub(crate) async fn look_at_runtimes(&self) {
        let before = self.runtimes().has_ours();
        match self.learn_runtimes().await {
            Err(fault) => tracing::warn!(%fault, "the runtimes of dockerd are not known"),
            Ok(()) if self.runtimes().has_ours() == before => {}
            Ok(()) if before => {
                tracing::warn!("dockerd knows runtime calico no more: containers are wired once they run");
            }
            Ok(()) => tracing::info!("dockerd knows runtime calico: containers are wired before they run"),
        }
    }

    /// Takes one create request of this host out of all claims.
    pub(super) async fn release_request(&self, request: &str) -> Result<(), Fault> {
        let pending: Vec<AssignmentKey> = self.store.read(|snapshot| {
            let of_request =
                snapshot.parts().filter(|(_, _, claim)| claim.pending().any(|(_, pending)| pending == request));
            of_request.map(|(key, _, _)| key.clone()).collect()
        });
        for key in pending {
            self.release_claim(&key, request).await?;
        }
        Ok(())
    }
}

impl Work {
    /// Reads events and compares on a clock until the connection to dockerd or the view is lost; answers why.
    async fn follow(&mut self, backoff: &mut Backoff) -> Fault {
        let network = Arc::clone(&self.network);
        if let Err(fault) = network.docker.ping().await {
            return fault;
        }
        let mut events = match network.docker.events().await {
            Ok(events) => pin!(events),
            Err(fault) => return fault,
        };
        // dockerd drops the events of a listener that stalls for 100 ms, so whoever reads them does nothing else.
        let (heard, mut hears) = mpsc::unbounded_channel();
        let read = async {
            loop {
                match events.next().await {
                    Some(Ok(event)) => {
                        // The other side is in this very function.
                        let _ = heard.send(event);
                    }
                    Some(Err(fault)) => return fault,
                    None => return Fault::DockerAway("read events: the stream ended".to_owned()),
                }
            }
        };
        let work = async {
            network.look_at_runtimes().await;
            network.docker_up.send_replace(true);
            backoff.well();
            self.heed(&mut hears).await
        };
        // The stream begins with its first poll, so the first comparison comes after that, not before.
        tokio::select! {
            biased;
            fault = read => fault,
            fault = work => fault,
        }
    }

    /// Works on what events tell, and compares on a clock; answers why it cannot go on.
    async fn heed(&mut self, events: &mut mpsc::UnboundedReceiver<Event>) -> Fault {
        let network = Arc::clone(&self.network);
        let mut synced = network.store.synced();
        let mut audit = tokio::time::interval(AUDIT);
        // Those that were due while etcd was away are one.
        audit.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut first = true;
        let mut links = match listen() {
            Ok(links) => links,
            Err(fault) => return fault,
        };
        loop {
            tokio::select! {
                biased;
                Some(event) = events.recv() => {
                    tracing::debug!(?event);
                    match event {
                        Event::Started(id) => {
                            self.look_around(id.clone());
                            self.begin(id);
                        }
                        Event::Ended(id) => self.begin(id),
                        Event::Reloaded => network.look_at_runtimes().await,
                    }
                }
                Some(event) = links.next() => match event {
                    LinkEvent::Changed(name) => self.let_rest(&name),
                    LinkEvent::Lost => audit.reset_immediately(),
                    LinkEvent::Rerouted(_) => {}
                },
                Some(done) = self.tasks.join_next(), if !self.tasks.is_empty() => self.finished(joined(done)),
                () = until(self.settling.next()) => {
                    for id in self.settling.due(Instant::now()) {
                        self.begin(id);
                    }
                }
                () = until(self.starting.next()) => {
                    for id in self.starting.due(Instant::now()) {
                        self.start_refused(id);
                    }
                }
                _ = audit.tick(), if network.store.is_connected() => {
                    if let Err(fault) = network.wirer.check() {
                        return fault;
                    }
                    match self.compare(first).await {
                        Ok(()) => {
                            first = false;
                            network.docker_up.send_replace(true);
                        }
                        Err(fault @ Fault::DockerAway(_)) => return fault,
                        // It goes on to tell what happens, and that is heeded.
                        Err(fault) => {
                            if network.docker_up.send_replace(false) {
                                tracing::error!(%fault, "the containers are not compared with dockerd's; trying again");
                            }
                        }
                    }
                }
                // A view that comes back asks for a comparison at once.
                back = async { synced.wait_for(|synced| synced.connected).await.is_ok() }, if !network.store.is_connected() => {
                    if !back {
                        return Fault::Away("follow the view: it ended".to_owned());
                    }
                    audit.reset_immediately();
                }
            }
        }
    }

    /// Begins the work on every container whose record does not agree with Docker; at first, on every one that runs.
    ///
    /// # Errors
    /// The containers could not be listed. Whatever else fails is told, and keeps nobody from the rest.
    async fn compare(&mut self, first: bool) -> Result<(), Fault> {
        let network = Arc::clone(&self.network);
        // By one that is not believed nobody is taken for gone, and nothing for not made. That is told where it is found.
        let is_believed = match network.check_engine().await {
            Ok(()) => true,
            Err(Fault::Away(_)) => false,
            Err(fault) => return Err(fault),
        };
        let asked_s = now_s();
        let listed = Arc::new(network.docker.list().await?);
        if is_believed {
            self.tend_claims(Arc::clone(&listed), asked_s);
            if let Err(fault) = network.forget_released(&listed) {
                tracing::warn!(%fault, "what is known of a container that was taken out of Calico, and is gone, stays");
            }
        }
        let mut ids = if first { network.containers() } else { network.unsettled(&listed).await };
        match network.reserved_only() {
            Ok(reserved) => ids.extend(reserved),
            Err(fault) => tracing::warn!(%fault, "containers that are kept on this host alone are not looked at"),
        }
        ids.extend(network.in_doubt(&listed));
        ids.extend(self.next_in_turn());
        if !is_believed {
            let there: HashSet<&ContainerId> = listed.iter().map(|one| &one.id).collect();
            ids.retain(|id| there.contains(id));
        }
        for id in ids {
            // One that failed lately has its own clock.
            if !self.settling.has(&id) {
                self.begin(id);
            }
        }
        for id in network.refused.all().iter().filter_map(|id| id.parse().ok()) {
            if is_believed && !self.starting.has(&id) {
                self.start_refused(id);
            }
        }
        Ok(())
    }

    /// Finishes creates that were cut off, releases what belongs to none, keeps what has changed of records, and has claims
    /// follow renames: beside the events, since dockerd and etcd may take their time over it.
    fn tend_claims(&mut self, listed: Arc<Vec<Listed>>, listed_s: u64) {
        if std::mem::replace(&mut self.tending, true) {
            return;
        }
        let network = Arc::clone(&self.network);
        self.tasks.spawn(async move {
            let unfinished = network.finish_creates(&listed, listed_s).await.err().unwrap_or_default();
            let unfinished = unfinished.into_iter();
            let mut untended: BTreeSet<String> =
                unfinished.map(|fault| format!("a create that was cut off is not finished yet: {fault}")).collect();
            if let Err(fault) = network.release_orphans().await {
                untended.insert(format!("a claim that belongs to no create is not released yet: {fault}"));
            }
            if let Err(fault) = network.keep_changed().await {
                untended.insert(format!("what has changed of a container is not kept on the disk yet: {fault}"));
            }
            if let Err(fault) = network.follow_names(&listed).await {
                untended.insert(format!("a claim does not say yet that its container was renamed: {fault}"));
            }
            Done::Tended(untended)
        });
    }

    /// The containers whose inside is looked at this time.
    fn next_in_turn(&mut self) -> Vec<ContainerId> {
        let running = self.network.running();
        self.rota.next(&running, ROUND.as_secs() / AUDIT.as_secs(), AT_A_TIME)
    }

    /// Looks at a link that something happened to, once it has come to rest.
    fn let_rest(&mut self, interface: &str) {
        let Some(id) = self.network.behind(interface) else { return };
        match self.resting.get_mut(&id) {
            // The look that is under way may have been before that.
            Some(again) => *again = true,
            None => self.look_at_links(id),
        }
    }

    fn look_at_links(&mut self, id: ContainerId) {
        self.resting.insert(id.clone(), false);
        let network = Arc::clone(&self.network);
        self.tasks.spawn(async move {
            tokio::time::sleep(LINK_RESTS).await;
            let work = network.links_work(&id).await;
            // Why it could not be seen is told by the look that follows.
            Done::Rested(id, work.unwrap_or(false))
        });
    }

    /// Looks at a container that was started and is not ours: its user may have thought that it would be.
    fn look_around(&mut self, id: ContainerId) {
        if self.network.is_loaded() && self.network.keys(&id).is_empty() {
            let network = Arc::clone(&self.network);
            self.tasks.spawn(async move {
                network.tell_of_stranger(&id).await;
                Done::Other
            });
        }
    }

    /// Starts a container whose start the OCI hook had to refuse, if its restart policy wants it to run.
    fn start_refused(&mut self, id: ContainerId) {
        self.starting.begun(id.clone());
        let (network, slots) = (Arc::clone(&self.network), Arc::clone(&self.slots));
        self.tasks.spawn(async move {
            // The semaphore is never closed, so a permit always comes.
            let _slot = slots.acquire_owned().await;
            if let Err(fault) = network.start_refused(&id).await {
                tracing::warn!(container = id.short(), %fault, "its start was refused, and it is not started yet");
            }
            Done::Started(id)
        });
    }

    fn begin(&mut self, id: ContainerId) {
        self.settling.begun(id.clone());
        let (network, slots) = (Arc::clone(&self.network), Arc::clone(&self.slots));
        self.tasks.spawn(async move {
            // The semaphore is never closed, so a permit always comes.
            let _slot = slots.acquire_owned().await;
            let settled = network.settle(&id, Waits::All).await;
            Done::Settled(id, settled)
        });
    }

    fn finished(&mut self, done: Done) {
        match done {
            Done::Settled(id, Ok(())) => {
                self.settling.well(&id);
                self.network.failing.send_if_modified(|failing| failing.remove(id.as_str()).is_some());
            }
            Done::Settled(id, Err(fault)) => {
                if self.settling.failed(id.clone(), Instant::now()) {
                    tracing::error!(container = id.short(), %fault, "the container's network is not as it should be; trying again");
                }
                let why = fault.to_string();
                self.network
                    .failing
                    .send_if_modified(|failing| failing.insert(id.to_string(), why.clone()) != Some(why));
            }
            Done::Rested(id, works) => {
                let again = self.resting.remove(&id) == Some(true);
                if !works {
                    self.begin(id);
                } else if again {
                    self.look_at_links(id);
                }
            }
            Done::Started(id) if self.network.refused.is_set(id.as_str()) => {
                self.starting.failed(id, Instant::now());
            }
            Done::Started(id) => self.starting.well(&id),
            Done::Tended(untended) => {
                for why in untended.difference(&self.untended) {
                    tracing::warn!("{why}");
                }
                (self.tending, self.untended) = (false, untended);
            }
            Done::Other => {}
        }
    }
}
