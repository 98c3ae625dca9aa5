//! Settling: making the network of one container what Docker's word on the container requires.

use std::net::IpAddr;
use std::path::Path;
use std::time::Instant;

use tokio::io::AsyncWriteExt;

use super::succession::has_lost_nothing;
use super::{Network, Recorded};
use crate::edge::docker::Container;
use crate::edge::etcd::{Outcome, When, Write, to_json};
use crate::edge::links::Netlink;
use crate::edge::netns::Netns;
use crate::edge::sysctl;
use crate::model::endpoint::{Endpoint, State};
use crate::model::fault::Fault;
use crate::model::key::{EndpointKey, Key};
use crate::model::name::{ContainerId, EndpointId};
use crate::plan::desired::endpoint_object;
use crate::plan::wiring::{Wiring, desired_wiring, hosts_line};

/// How often a record that somebody else changes meanwhile is written again.
const ATTEMPTS: usize = 20;

impl Network {
    /// Makes the network of a container what Docker's word on the container requires: wired and routed while it runs,
    /// dark while it does not, freed when it is gone. Safe to call at any time, any number of times; a container that is
    /// not ours is left alone.
    ///
    /// `through_us` tells that a client waits for this start: on failure the container is stopped. Otherwise it is left
    /// running and dark, because a stop by us would end its restart policy.
    ///
    /// # Errors
    /// The container runs without its network, or what is recorded of it could not be changed. What was half done is
    /// undone; the message tells what was not.
    pub(crate) async fn settle(&self, id: &ContainerId, through_us: bool) -> Result<(), Fault> {
        let lock = self.lock(id);
        let _serial = lock.lock().await;
        let keys = self.keys(id);
        if keys.is_empty() {
            return Ok(());
        }
        let recorded = self.recorded(id);
        let Some(container) = self.docker.inspect(id.as_str()).await? else {
            return self.bury(id).await;
        };
        if let Some((key, Some(why))) = keys.iter().find(|(_, unreadable)| unreadable.is_some())
            && container.pid.is_some()
        {
            let fault = Fault::World(format!("read the record of endpoint {}: {why}", key.endpoint));
            return self.give_up(&container, &recorded, fault, through_us).await;
        }
        let Some(pid) = container.pid else {
            return self.darken(&recorded).await;
        };
        let started = Instant::now();
        match self.light(&container, pid, &recorded).await {
            Ok(changed) => {
                if changed {
                    self.metrics.wiring.observe(started.elapsed().as_secs_f64());
                }
                Ok(())
            }
            Err(fault) => self.give_up(&container, &recorded, fault, through_us).await,
        }
    }

    /// Removes all that is left of a container that is gone. Its lock is held.
    pub(super) async fn bury(&self, id: &ContainerId) -> Result<(), Fault> {
        let keys = self.keys(id);
        let interfaces = self.recorded(id).into_iter().map(|one| one.endpoint.interface);
        let unread = keys.iter().filter(|(_, unreadable)| unreadable.is_some());
        for interface in interfaces.chain(unread.filter_map(|(key, _)| key.endpoint.interface())) {
            self.netlink.remove(&interface).await?;
        }
        for (key, _) in &keys {
            self.free(key).await?;
        }
        tracing::info!(container = id.short(), "freed: the container is gone");
        Ok(())
    }

    /// Says in the record that there is no interface, and takes it away, even if the former is not possible now.
    pub(super) async fn darken(&self, recorded: &[Recorded]) -> Result<(), Fault> {
        let mut done = Ok(());
        for one in recorded {
            // The record first, so that the agent does not look for the way back of a route that went with its interface.
            if one.endpoint.is_active() {
                done = done.and(self.update(one, |endpoint| endpoint.state = State::Inactive).await.map(drop));
            }
            done = done.and(self.netlink.remove(&one.endpoint.interface).await);
        }
        done
    }

    /// Wires a running container and waits until the agent has programmed it. Answers whether there was anything to do.
    async fn light(&self, container: &Container, pid: i32, recorded: &[Recorded]) -> Result<bool, Fault> {
        recorded.iter().try_for_each(has_lost_nothing)?;
        self.take_over(&container.id).await?;
        let netns = Netns::of_container(&container.id, pid)?;
        let inside = Netlink::open_in(&netns)?;
        let mut changed = false;
        for one in recorded {
            let wiring = desired_wiring(&one.endpoint, self.ground.host_ip)?;
            match self.wired(&wiring, &inside).await? {
                None => {
                    self.wire(&wiring, &netns, &inside).await?;
                    changed = true;
                }
                // Whoever made the pair was killed before the rest.
                Some(index) if !inside.is_addressed(index).await? => {
                    self.complete(&wiring, &inside).await?;
                    changed = true;
                }
                Some(_) => {}
            }
            let addresses: Vec<IpAddr> = one.endpoint.addresses.iter().copied().collect();
            if let Some(path) = &container.hosts_path {
                add_hosts_line(Path::new(path), &addresses, &container.hostname).await?;
            }
            let gateway = Some(IpAddr::V4(wiring.gateway));
            let mut revision = one.revision;
            if !one.endpoint.is_active() || one.endpoint.ipv4_gateway != gateway {
                let active = |endpoint: &mut Endpoint| {
                    endpoint.state = State::Active;
                    endpoint.ipv4_gateway = gateway;
                };
                revision = self.update(one, active).await?;
                changed = true;
            }
            self.await_programmed(&one.key.endpoint, revision).await?;
        }
        Ok(changed)
    }

    /// The number of the container's end, if the pair is there and its ends belong to each other.
    async fn wired(&self, wiring: &Wiring, inside: &Netlink) -> Result<Option<u32>, Fault> {
        let Some(host) = self.netlink.link(&wiring.host_interface).await? else { return Ok(None) };
        let container = inside.link(&wiring.container_interface).await?.filter(|container| {
            host.peer == Some(container.index)
                && container.peer == Some(host.index)
                && container.mac == Some(wiring.mac)
        });
        Ok(container.map(|container| container.index))
    }

    async fn wire(&self, wiring: &Wiring, netns: &Netns, inside: &Netlink) -> Result<(), Fault> {
        // What is left of an earlier run: the namespace of a dead container goes away in its own time.
        self.netlink.remove(&wiring.host_interface).await?;
        self.netlink.add_pair(wiring, netns).await?;
        self.complete(wiring, inside).await
    }

    /// Does all that comes after the pair; what is done already may be done again.
    async fn complete(&self, wiring: &Wiring, inside: &Netlink) -> Result<(), Fault> {
        // Before the interface is up, so that nothing is ever open on it.
        sysctl::apply_to_interface(&wiring.host_interface)?;
        self.netlink.set_up(&wiring.host_interface).await?;
        inside.address(wiring).await
    }

    /// Waits until chains, sets and route of an endpoint stand, at or after a revision of its record.
    async fn await_programmed(&self, endpoint: &EndpointId, revision: i64) -> Result<(), Fault> {
        let mut programmed = self.programmed.clone();
        let done = programmed.wait_for(|programmed| {
            programmed.endpoints.get(endpoint).is_some_and(|one| one.revision >= revision && one.active)
        });
        if matches!(tokio::time::timeout(self.ground.apply_timeout, done).await, Ok(Ok(_))) {
            return Ok(());
        }
        let why = self.programmed.borrow().faults.get(&endpoint_object(endpoint)).cloned();
        Err(Fault::Away(format!(
            "wait for the agent to program endpoint {endpoint}: not done within {} s{}",
            self.ground.apply_timeout.as_secs_f32(),
            why.map(|why| format!(": {why}")).unwrap_or_default()
        )))
    }

    /// Undoes a wiring that failed, and answers what the caller must know.
    async fn give_up(
        &self,
        container: &Container,
        recorded: &[Recorded],
        fault: Fault,
        through_us: bool,
    ) -> Result<(), Fault> {
        let id = &container.id;
        let recorded: Vec<Recorded> = if recorded.is_empty() { Vec::new() } else { self.recorded(id) };
        let mut undo = Vec::new();
        if let Err(fault) = self.darken(&recorded).await {
            undo.push(fault.to_string());
        }
        // A process that ended before it could be wired has not failed to be wired. dockerd may not know of the end yet.
        if container.pid.is_none_or(|pid| Netns::of_container(id, pid).is_err()) {
            tracing::info!(container = id.short(), %fault, "the container exited before it was wired");
            return Ok(());
        }
        self.metrics.wiring_failures.inc();
        if through_us && let Err(fault) = self.docker.stop(id).await {
            undo.push(fault.to_string());
        }
        let mut doing = format!("wire container {}", id.short());
        if !undo.is_empty() {
            doing = format!("{doing} (and undo it: {})", undo.join("; "));
        }
        Err(fault.during(&doing))
    }

    /// Changes a record by compare-and-swap; answers the revision at which it stands now.
    ///
    /// # Errors
    /// `Conflict` if the record is gone or somebody else keeps changing it.
    async fn update(&self, one: &Recorded, change: impl Fn(&mut Endpoint)) -> Result<i64, Fault> {
        let key = Key::Endpoint(one.key.clone());
        let doing = format!("update endpoint {}", one.key.endpoint);
        let (mut endpoint, mut revision) = (one.endpoint.clone(), one.revision);
        for _ in 0..ATTEMPTS {
            change(&mut endpoint);
            let write = [Write::Put(key.clone(), to_json(&endpoint)?)];
            if let Outcome::Done(revision) =
                self.etcd.transact(&doing, &[When::At(key.clone(), revision)], &write).await?
            {
                self.store.reach(revision).await?;
                return Ok(revision);
            }
            (endpoint, revision) = self.read_endpoint(&one.key, &doing).await?;
        }
        Err(Fault::Conflict(format!("{doing}: others kept changing it; try again")))
    }

    async fn read_endpoint(&self, key: &EndpointKey, doing: &str) -> Result<(Endpoint, i64), Fault> {
        let found = self.etcd.get(&Key::Endpoint(key.clone())).await?;
        let found = found.ok_or_else(|| Fault::Conflict(format!("{doing}: its record is gone")))?;
        let endpoint = serde_json::from_slice(&found.value)
            .map_err(|error| Fault::World(format!("{doing}: its record cannot be read: {error}")))?;
        Ok((endpoint, found.revision))
    }
}

/// Adds the container's own name to its hosts file, in place as Docker's bridge does it, unless it is there.
async fn add_hosts_line(path: &Path, addresses: &[IpAddr], hostname: &str) -> Result<(), Fault> {
    let fault =
        |error: std::io::Error| Fault::World(format!("add the container's name to {}: {error}", path.display()));
    let Some(line) = hosts_line(addresses, hostname) else { return Ok(()) };
    let text = tokio::fs::read_to_string(path).await.map_err(fault)?;
    if text.lines().any(|one| one == line.trim_end()) {
        return Ok(());
    }
    let mut file = tokio::fs::OpenOptions::new().append(true).open(path).await.map_err(fault)?;
    file.write_all(line.as_bytes()).await.map_err(fault)?;
    file.flush().await.map_err(fault)
}
