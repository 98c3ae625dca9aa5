//! Settling: making the network of one container what Docker's word on the container requires.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::Path;
use std::sync::PoisonError;
use std::time::{Duration, Instant};

use super::{Network, Recorded, is_of, usable};
use crate::edge::docker::Container;
use crate::edge::etcd::{Outcome, When, Write, to_json};
use crate::edge::fail_point::fail_point;
use crate::edge::netns::Netns;
use crate::edge::wiring::add_hosts_lines;
use crate::model::endpoint::{Endpoint, State, WiredBy};
use crate::model::fault::Fault;
use crate::model::key::{EndpointKey, Key};
use crate::model::name::{ContainerId, IfName};
use crate::part::agent::{EndpointProgrammed, WHOLE};
use crate::plan::desired::endpoint_object;
use crate::plan::wiring::desired_wiring;

/// How often a record that somebody else changes meanwhile is looked at again.
const ATTEMPTS: usize = 20;

/// How long dockerd may take to hear that a process has ended, and how often it is asked.
const END_IS_KNOWN: Duration = Duration::from_secs(2);
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// Who waits for a container to be settled, and for what. The kernel takes some 20 ms to remove an interface: for that
/// nobody waits who is to have his answer when the container's addresses are free.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Waits {
    /// A client for a start: if it fails, the container is stopped. Otherwise it is left running and dark, because a stop
    /// by us would end its restart policy.
    Start,
    /// A client for the end of a container. Interfaces that are there yet are left to the event that tells of its end.
    Destroy,
    /// Somebody for all that is to be done.
    All,
}

/// The endpoints of a container, with their interfaces on the host.
pub(super) type Ends = BTreeMap<EndpointKey, Option<IfName>>;

/// What was found of an endpoint before dockerd was asked: only that may be taken away on its word.
pub(super) struct Found {
    recorded: Recorded,
    /// The index of the host's side of its link, if there was one.
    link: Option<u32>,
}

impl Network {
    /// Makes the network of a container what Docker's word on the container requires: wired and routed while it runs,
    /// dark while it does not, freed when it is gone. Safe to call at any time, any number of times; a container that is
    /// not ours is left alone.
    ///
    /// # Errors
    /// The container runs without its network, or what is recorded of it could not be changed. What was half done is
    /// undone; the message tells what was not. `Away`, and no client waits for a start: whether all is right could not be
    /// seen.
    pub(crate) async fn settle(&self, id: &ContainerId, who: Waits) -> Result<(), Fault> {
        let lock = self.lock(id);
        for _ in 0..ATTEMPTS {
            let serial = lock.lock().await;
            let tidied = self.reservations.tidy(id);
            let keys = self.keys(id);
            if keys.is_empty() && !self.is_reserved(id) {
                self.forget_container(id);
                self.store.gone(id);
                return tidied;
            }
            if !keys.is_empty() && self.released.is_set(id.as_str()) {
                return self.take_out_again(id).await;
            }
            let found = self.find(id).await?;
            let Some(container) = self.inspect_or_bury(id).await? else {
                let ends = self.ends(id);
                let freed = self.free_all(id, &ends).await;
                if self.has_links(&ends).await? {
                    drop(serial);
                    if who == Waits::Destroy {
                        return freed;
                    }
                }
                return self.clear_away(id, &ends, freed).await;
            };
            // It is there, whatever was said of it before.
            self.store.gone(id);
            self.note_networks(&container);
            let kept = if keys.is_empty() { self.restore(&container).await } else { self.reserve(id) };
            if let Err(fault) = tidied.and(kept) {
                let runs_dark = who == Waits::Start && container.pid.is_some();
                return if runs_dark { self.give_up(&container, fault, who).await } else { Err(fault) };
            }
            if keys.is_empty() {
                continue;
            }
            let Some(pid) = container.pid else {
                let recorded = self.record_end(&found).await;
                drop(serial);
                let removed = self.remove_links(&found).await;
                if recorded? {
                    removed?;
                    // Who made way for it may start again.
                    for holder in self.awaited_holders(id) {
                        let lock = self.lock(&holder);
                        let _serial = lock.lock().await;
                        self.reserve(&holder)?;
                    }
                    return Ok(());
                }
                removed?;
                continue;
            };
            if let Some((key, Some(why))) = keys.iter().find(|(_, unreadable)| unreadable.is_some()) {
                let fault = Fault::World(format!("read the record of endpoint {}: {why}", key.endpoint));
                return self.give_up(&container, fault, who).await;
            }
            let started = Instant::now();
            return match self.light(&container, pid).await {
                Ok(changed) => {
                    if changed {
                        self.metrics.wiring.observe(started.elapsed().as_secs_f64());
                    }
                    Ok(())
                }
                Err(fault) => self.give_up(&container, fault, who).await,
            };
        }
        Err(Fault::Conflict(format!("settle container {}: others kept changing its record; try again", id.short())))
    }

    /// What there is of a container's endpoints.
    pub(super) async fn find(&self, id: &ContainerId) -> Result<Vec<Found>, Fault> {
        let mut found = Vec::new();
        for recorded in self.recorded(id) {
            let link = self.wirer.links.link(&recorded.endpoint.interface).await?.map(|link| link.index);
            found.push(Found { recorded, link });
        }
        Ok(found)
    }

    /// Frees what a container has that is gone, and removes all that is left of it. Its lock is held.
    pub(super) async fn bury(&self, id: &ContainerId) -> Result<(), Fault> {
        let ends = self.ends(id);
        let freed = self.free_all(id, &ends).await;
        self.clear_away(id, &ends, freed).await
    }

    /// The endpoints of a container, as they are recorded or kept, each with its interface on the host.
    pub(super) fn ends(&self, id: &ContainerId) -> Ends {
        let keys = self.keys(id).into_iter().map(|(key, _)| key);
        let mut ends: Ends = keys.map(|key| (key.clone(), key.endpoint.interface())).collect();
        ends.extend(self.kept_here(id).into_iter().chain(self.recorded(id)).map(|one| {
            let Recorded { key, endpoint, .. } = one;
            (key, Some(endpoint.interface))
        }));
        for end in ends.values_mut() {
            end.take_if(|interface| self.is_anothers(interface, id));
        }
        ends
    }

    /// Frees the addresses of a container that is gone.
    async fn free_all(&self, id: &ContainerId, ends: &Ends) -> Result<(), Fault> {
        if !self.is_loaded() {
            return Err(Fault::Away(format!(
                "free the addresses of container {}: etcd at {} has not answered yet",
                id.short(),
                self.etcd.address()
            )));
        }
        self.store.let_go(id);
        for key in ends.keys() {
            self.free(key).await?;
        }
        Ok(())
    }

    async fn has_links(&self, ends: &Ends) -> Result<bool, Fault> {
        for interface in ends.values().flatten() {
            if self.wirer.links.link(interface).await?.is_some() {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Removes what is left of a container that is gone and whose addresses were freed, or were not. What is kept of it
    /// goes last: while etcd is away it stays, and by that the release is not forgotten, nor are its interfaces by a node
    /// that is killed.
    async fn clear_away(&self, id: &ContainerId, ends: &Ends, freed: Result<(), Fault>) -> Result<(), Fault> {
        for interface in ends.values().flatten() {
            self.wirer.links.remove(interface).await?;
        }
        fail_point("destroy: the interface is gone");
        freed?;
        self.reservations.remove(id)?;
        self.store.gone(id);
        fail_point("destroy: the reservation is gone");
        self.forget_container(id);
        self.refused.clear(id.as_str())?;
        tracing::info!(container = id.short(), "freed: the container is gone");
        Ok(())
    }

    /// Forgets what this process knew of a container that is ours no more.
    pub(super) fn forget_container(&self, id: &ContainerId) {
        self.hooked.lock().unwrap_or_else(PoisonError::into_inner).remove(id);
        self.lit.lock().unwrap_or_else(PoisonError::into_inner).remove(id);
        self.set_beside(id, None);
        self.forget_kept_at(id);
    }

    /// Whether an interface is that of another container: what somebody has written under a name like theirs is not theirs.
    fn is_anothers(&self, interface: &IfName, id: &ContainerId) -> bool {
        self.store.read(|snapshot| {
            let mut named = snapshot.endpoints_at(interface).filter(|(key, _)| key.host == self.ground.host.name);
            named.any(|(key, record)| !is_of(key, id) && usable(key, record).is_ok())
        })
    }

    /// Says in the records that there is no interface, and takes those away that were found, even if the former is not
    /// possible now. Answers whether that is all: a record that somebody has changed since it was found is left, since the
    /// container may have been started again.
    pub(super) async fn darken(&self, found: &[Found]) -> Result<bool, Fault> {
        // The record first, so that the agent does not look for the way back of a route that went with its interface.
        let recorded = self.record_end(found).await;
        let removed = self.remove_links(found).await;
        recorded.and_then(|all| removed.map(|()| all))
    }

    async fn record_end(&self, found: &[Found]) -> Result<bool, Fault> {
        let mut done = Ok(true);
        for Found { recorded, .. } in found.iter().filter(|one| one.recorded.endpoint.is_active()) {
            let inactive = Endpoint { state: State::Inactive, ..recorded.endpoint.clone() };
            let replaced = self.replace(recorded, &inactive).await;
            done = done.and_then(|all| Ok(replaced?.is_some() && all));
            fail_point("stop: the record is inactive");
        }
        done
    }

    /// Takes links away that were found. They are known by what is never given out again, so that this needs no lock.
    async fn remove_links(&self, found: &[Found]) -> Result<(), Fault> {
        let mut done = Ok(());
        for index in found.iter().filter_map(|one| one.link) {
            let removed = self.wirer.links.remove_link(index).await;
            fail_point("stop: the interface is gone");
            done = done.and(removed);
        }
        done
    }

    /// Wires a running container and waits until the agent has programmed it. Answers whether there was anything to do.
    async fn light(&self, container: &Container, pid: i32) -> Result<bool, Fault> {
        let id = &container.id;
        self.check_withheld(id)?;
        self.take_over(id).await?;
        self.has_its_addresses(id)?;
        let recorded = self.recorded(id);
        for one in &recorded {
            self.await_policy(one).await?;
        }
        fail_point("start: the policy stands");
        // Only now: while the policy was waited for the container may have exited.
        let Some(netns) = Netns::of_container(id, pid)? else {
            return Err(Fault::Away(format!(
                "open its network: its process {pid} is not to be seen; the node must see the host's processes"
            )));
        };
        // What stood for this very process and does not any more, somebody else has taken away.
        let stood = self.lit.lock().unwrap_or_else(PoisonError::into_inner).get(id) == Some(&pid);
        let mut changed = false;
        for one in &recorded {
            let wiring = desired_wiring(&one.endpoint, self.ground.host.ip)?;
            let wired = self.wirer.wire(&wiring, &netns).await?;
            changed |= wired;
            if wired && stood {
                self.metrics.count_drift(&format!("link {}", one.endpoint.interface));
            }
            // What runs already may have changed the file on purpose, and is not taken from the network for it. Behind the hook,
            // which has written it before that, dockerd may have made it anew (from 26 on).
            let runs = stood || one.endpoint.is_active();
            let may_lack = wired || !runs || !stood && self.was_hooked(id);
            if let Some(path) = container.hosts_path.as_deref().filter(|_| may_lack) {
                let addresses: Vec<IpAddr> = one.endpoint.addresses.iter().copied().collect();
                match add_hosts_lines(Path::new(path), id, &addresses, &container.hostname) {
                    Err(fault) if runs => {
                        tracing::warn!(container = id.short(), %fault, "it is in the network, but not by its own name");
                    }
                    added => added?,
                }
            }
            let by = if wired { Some(WiredBy::Node) } else { one.endpoint.wired_by };
            match self.activate(one, by).await {
                Ok(None) => self.await_route(&one.key, one.revision).await?,
                Ok(Some(revision)) => {
                    fail_point("start: the record is active");
                    changed = true;
                    self.await_route(&one.key, revision).await?;
                }
                // The policy stands and so does the route. The record follows when etcd is back.
                Err(fault @ Fault::Away(_)) => {
                    tracing::debug!(container = id.short(), %fault, "the start is not recorded yet");
                }
                Err(fault) => return Err(fault),
            }
        }
        self.lit.lock().unwrap_or_else(PoisonError::into_inner).insert(id.clone(), pid);
        Ok(changed)
    }

    /// Says in a record that the endpoint is wired, and by whom; answers the revision of the change if there was any.
    pub(super) async fn activate(&self, one: &Recorded, by: Option<WiredBy>) -> Result<Option<i64>, Fault> {
        let mut recorded = one.clone();
        for _ in 0..ATTEMPTS {
            let state = State::Active;
            let (ipv4_gateway, ipv6_gateway) = self.ground.gateways(&recorded.endpoint.addresses);
            let active = Endpoint { state, ipv4_gateway, ipv6_gateway, wired_by: by, ..recorded.endpoint.clone() };
            if active == recorded.endpoint {
                return Ok(None);
            }
            if let Some(revision) = self.replace(&recorded, &active).await? {
                return Ok(Some(revision));
            }
            recorded = self.read_endpoint(&one.key).await?;
        }
        Err(Fault::Conflict(format!("update endpoint {}: others kept changing it; try again", one.key.endpoint)))
    }

    /// Waits until the agent has routed an endpoint at or after a revision of its record.
    async fn await_route(&self, endpoint: &EndpointKey, revision: i64) -> Result<(), Fault> {
        if !self.store.is_connected() {
            // It was made with the interface, and the agent hears of nothing new.
            return Ok(());
        }
        self.await_programmed(endpoint, |one| one.revision >= revision && one.active).await
    }

    /// Waits until what the agent has programmed of an endpoint is right.
    pub(super) async fn await_programmed(
        &self,
        key: &EndpointKey,
        is_right: impl Fn(&EndpointProgrammed) -> bool,
    ) -> Result<(), Fault> {
        let mut programmed = self.programmed.clone();
        let done = programmed.wait_for(|programmed| programmed.endpoints.get(key).is_some_and(&is_right));
        if matches!(tokio::time::timeout(self.ground.apply_timeout, done).await, Ok(Ok(_))) {
            return Ok(());
        }
        let programmed = self.programmed.borrow();
        let endpoint = &key.endpoint;
        let why =
            [endpoint_object(endpoint).as_str(), WHOLE].into_iter().find_map(|object| programmed.faults.get(object));
        Err(Fault::Away(format!(
            "wait for the agent to program endpoint {endpoint}: not done within {} s{}",
            self.ground.apply_timeout.as_secs_f32(),
            why.map(|why| format!(": {why}")).unwrap_or_default()
        )))
    }

    /// Undoes a wiring that failed, unless it is only that something cannot be had now and nobody waits for a start, and
    /// answers what the caller must know.
    async fn give_up(&self, container: &Container, fault: Fault, who: Waits) -> Result<(), Fault> {
        let id = &container.id;
        let mut undo = Vec::new();
        // What cannot be had now says nothing against what stands, and policy keeps dark what does not; and what is there by now
        // may be the next process's, of which nothing is known here.
        let ended = self.end_of(container).await;
        let waits = who != Waits::Start && matches!(fault, Fault::Away(_)) && ended.is_none();
        let stays = waits || matches!(ended, Some(Some(_)));
        let undone = async { if stays { Ok(true) } else { self.darken(&self.find(id).await?).await } };
        match undone.await {
            Ok(true) => {}
            Ok(false) => undo.push("somebody else changed its record meanwhile".to_owned()),
            Err(fault) => undo.push(fault.to_string()),
        }
        // A process that ended before it could be wired has not failed to be wired.
        if ended.is_some() || self.end_of(container).await.is_some() {
            tracing::info!(container = id.short(), %fault, "the container exited before it was wired");
            return Ok(());
        }
        self.metrics.wiring_failures.inc();
        if who == Waits::Start
            && let Err(fault) = self.docker.stop(id).await
        {
            undo.push(fault.to_string());
        }
        let mut doing = format!("wire container {}", id.short());
        if !undo.is_empty() {
            doing = format!("{doing} (and undo it: {})", undo.join("; "));
        }
        Err(fault.during(&doing))
    }

    /// The process that a container has by now, if any, where the one that it had has ended for certain; else `None`. It is not
    /// to be seen then, and dockerd says so too, which may hear of it a moment later. A node that is kept from looking sees no
    /// process either.
    async fn end_of(&self, container: &Container) -> Option<Option<i32>> {
        let Some(pid) = container.pid else { return Some(None) };
        if !matches!(Netns::of_container(&container.id, pid), Ok(None)) {
            return None;
        }
        let ended = async {
            loop {
                match self.docker.inspect(container.id.as_str()).await.map(|now| now.and_then(|now| now.pid)) {
                    Ok(now) if now != Some(pid) => return now,
                    _ => tokio::time::sleep(LOOK_EVERY).await,
                }
            }
        };
        tokio::time::timeout(END_IS_KNOWN, ended).await.ok()
    }

    /// Whether the hook has wired a container since this node runs.
    fn was_hooked(&self, id: &ContainerId) -> bool {
        self.hooked.lock().unwrap_or_else(PoisonError::into_inner).contains_key(id)
    }

    /// Puts another record in the place of one; `None` if somebody has changed it meanwhile.
    async fn replace(&self, one: &Recorded, endpoint: &Endpoint) -> Result<Option<i64>, Fault> {
        let key = Key::Endpoint(one.key.clone());
        let write = [Write::Put(key.clone(), to_json(endpoint)?)];
        let doing = format!("update endpoint {}", one.key.endpoint);
        if !self.store.is_connected() {
            return Err(Fault::Away(format!("{doing}: etcd at {} is away", self.etcd.address())));
        }
        // To etcd this would mean that there is none.
        if one.revision == 0 {
            return Err(Fault::Away(format!("{doing}: its record has been read from this host's disk alone so far")));
        }
        match self.etcd.transact(&doing, &[When::At(key, one.revision)], &write).await? {
            Outcome::Done(revision) => {
                self.store.reach(revision).await?;
                Ok(Some(revision))
            }
            Outcome::Lost => Ok(None),
        }
    }

    async fn read_endpoint(&self, key: &EndpointKey) -> Result<Recorded, Fault> {
        let doing = format!("update endpoint {}", key.endpoint);
        let found = self.etcd.get(&Key::Endpoint(key.clone())).await?;
        let found = found.ok_or_else(|| Fault::Conflict(format!("{doing}: its record is gone")))?;
        let endpoint = serde_json::from_slice(&found.value)
            .map_err(|error| Fault::World(format!("{doing}: its record cannot be read: {error}")))?;
        Ok(Recorded { key: key.clone(), endpoint, revision: found.revision })
    }
}
