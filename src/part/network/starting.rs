//! Starting: what the OCI hook and the node tell each other about a container whose process is about to run.
//!
//! Nothing here takes the container's lock or asks dockerd about it: dockerd holds a lock of its own on a container that it
//! starts, and answers nobody about it until the start is over, and who settles the container at that moment holds ours
//! and waits for dockerd. What is written is compared and swapped instead.

use std::collections::BTreeMap;
use std::sync::PoisonError;
use std::time::{Duration, Instant};

use super::claims::now;
use super::succession::has_lost_nothing;
use super::{Network, Recorded};
use crate::edge::docker::Container;
use crate::edge::etcd::{Outcome, When, Write, to_json};
use crate::edge::fail_point::fail_point;
use crate::edge::iptables;
use crate::model::claim::Claim;
use crate::model::control::ContainerWiring;
use crate::model::endpoint::{Endpoint, State, WiredBy};
use crate::model::fault::Fault;
use crate::model::key::{EndpointKey, Key};
use crate::model::name::{ContainerId, Orchestrator};
use crate::model::pool::Family;
use crate::model::reservation::Reservation;
use crate::part::store::Synced;

impl Network {
    /// What a container that is being started is to be wired with, once its policy stands in the kernel.
    ///
    /// # Errors
    /// It must not start: it has lost an address, or waits for one, or its policy does not stand.
    pub(crate) async fn starting(&self, id: &ContainerId) -> Result<ContainerWiring, Fault> {
        if !self.is_loaded() {
            return Ok(ContainerWiring::Unknown);
        }
        if let Some((key, Some(why))) = self.keys(id).iter().find(|(_, unreadable)| unreadable.is_some()) {
            return Err(Fault::World(format!("read the record of endpoint {}: {why}", key.endpoint)));
        }
        if self.recorded(id).is_empty() {
            return Ok(ContainerWiring::NotOurs);
        }
        self.make_way(id).await?;
        self.has_its_addresses(id)?;
        let recorded = self.recorded(id);
        for one in &recorded {
            self.await_policy(one).await?;
        }
        fail_point("start: the hook is about to be answered");
        Ok(ContainerWiring::Wire(self.reservation(id, &recorded)))
    }

    /// A client wants a container stopped: what the hook refused is not started any more.
    pub(crate) async fn stopped(&self, id: &ContainerId) -> Result<(), Fault> {
        self.refused.clear(id.as_str())?;
        self.settle(id, false).await
    }

    /// dockerd has started a container for a client that waits; its start began at `begun`.
    ///
    /// # Errors
    /// It runs without its network, and has been stopped.
    pub(crate) async fn started(&self, id: &ContainerId, begun: Instant) -> Result<(), Fault> {
        let hooked = self.hooked.lock().unwrap_or_else(PoisonError::into_inner).get(id).copied();
        // What the hook has done in this very start need not be looked at before the client hears of it; the event of the
        // start leads to a look anyhow.
        if hooked.is_some_and(|at| at >= begun) && self.waits(id).is_none() && self.await_active(id).await {
            return Ok(());
        }
        self.settle(id, true).await
    }

    /// Waits a little until the record of a container that the hook has wired says so.
    async fn await_active(&self, id: &ContainerId) -> bool {
        let mut synced = self.store.synced();
        let is_active = |_: &Synced| self.recorded(id).iter().all(|one| one.endpoint.is_active());
        let active = synced.wait_for(is_active);
        self.store.is_connected() && matches!(tokio::time::timeout(Duration::from_secs(1), active).await, Ok(Ok(_)))
    }

    /// The hook has wired a container.
    pub(crate) async fn wired(&self, id: &ContainerId) -> Result<(), Fault> {
        self.hooked.lock().unwrap_or_else(PoisonError::into_inner).insert(id.clone(), Instant::now());
        self.refused.clear(id.as_str())?;
        fail_point("start: the hook has wired");
        for one in self.recorded(id) {
            self.activate(&one, Some(WiredBy::Runtime)).await?;
        }
        Ok(())
    }

    /// Waits until chains and sets of an endpoint stand, at or after the revision of its record.
    pub(super) async fn await_policy(&self, one: &Recorded) -> Result<(), Fault> {
        if self.is_loaded() {
            return self.await_programmed(&one.key.endpoint, |programmed| programmed.revision >= one.revision).await;
        }
        // The agent has not heard of the datastore yet, so what an earlier one left in the kernel is what counts.
        let doing = format!("start endpoint {}: etcd at {} is away", one.key.endpoint, self.etcd.address());
        if !self.programmed_marks.is_set(one.key.endpoint.as_str()) {
            return Err(Fault::Away(format!("{doing}, and its policy does not stand in the kernel")));
        }
        iptables::has_jumps(Family::V4).await.map_err(|fault| fault.during(&doing))
    }

    /// What is to be kept of a container on this host.
    fn reservation(&self, id: &ContainerId, recorded: &[Recorded]) -> Reservation {
        let endpoints: BTreeMap<_, _> =
            recorded.iter().map(|one| (one.key.endpoint.clone(), one.endpoint.clone())).collect();
        let lost = recorded.iter().find_map(|one| has_lost_nothing(one).err()).map(|fault| fault.to_string());
        let withheld = lost.or_else(|| self.waits(id)).or_else(|| self.followed(id));
        Reservation { v: 1, container: id.clone(), gateway: self.ground.host_ip, endpoints, withheld }
    }

    /// What is kept of a container on this host's disk, as it would stand in the datastore.
    pub(super) fn reserved_here(&self, id: &ContainerId) -> Result<Vec<Recorded>, Fault> {
        let endpoints = self.reservations.read(id)?.map(|reservation| reservation.endpoints).unwrap_or_default();
        let recorded = endpoints.into_iter().map(|(endpoint, record)| Recorded {
            key: EndpointKey {
                host: self.ground.host.clone(),
                orchestrator: Orchestrator::docker(),
                workload: id.workload(),
                endpoint,
            },
            endpoint: record,
            revision: 0,
        });
        Ok(recorded.collect())
    }

    /// Keeps on this host's disk that a container starts only with a node's word from now on.
    pub(super) fn withhold(&self, id: &ContainerId, why: String) -> Result<(), Fault> {
        let recorded = self.recorded(id);
        self.reservations.write(&Reservation { withheld: Some(why), ..self.reservation(id, &recorded) })
    }

    /// Refuses a container that may not start by what is kept on this host's disk alone, while that is all there is.
    pub(super) fn check_withheld(&self, id: &ContainerId) -> Result<(), Fault> {
        let withheld = if self.is_loaded() { None } else { self.reservations.read(id)?.and_then(|kept| kept.withheld) };
        withheld.map_or(Ok(()), |why| Err(Fault::Away(format!("etcd at {} is away, and {why}", self.etcd.address()))))
    }

    /// Whether anything is kept of a container on this host's disk; what cannot be read is something.
    pub(super) fn is_reserved(&self, id: &ContainerId) -> bool {
        self.reservations.read(id) != Ok(None)
    }

    /// Writes the records of a container again that the datastore has lost: it was put back to an older state, or was
    /// emptied. The container is there, so what it holds is its own, unless somebody else has got it meanwhile.
    pub(super) async fn restore(&self, container: &Container) -> Result<(), Fault> {
        let doing = format!("record container {} again, which the datastore has lost", container.id.short());
        for one in self.reserved_here(&container.id)? {
            let key = Key::Endpoint(one.key.clone());
            let inactive = Endpoint { state: State::Inactive, ..one.endpoint };
            let mut when = vec![When::Absent(key.clone())];
            let mut writes = vec![Write::Put(key, to_json(&inactive)?)];
            for address in &inactive.addresses {
                let (claim, held) = self.claim_of(*address).map_err(|fault| fault.during(&doing))?;
                let path = Key::Assignment(claim);
                match held {
                    None => {
                        when.push(When::Absent(path.clone()));
                        let claim = Claim::bound_again(&one.key, &container.name, now());
                        writes.push(Write::Put(path, to_json(&claim)?));
                    }
                    Some(held) if held.claim.owner.is(&one.key) => when.push(When::At(path, held.revision)),
                    Some(held) => {
                        let holder = held.claim.holder();
                        return Err(Fault::Conflict(format!("{doing}: its address {address} is held by {holder}")));
                    }
                }
            }
            match self.etcd.transact(&doing, &when, &writes).await? {
                Outcome::Done(revision) => self.store.reach(revision).await?,
                Outcome::Lost => self.catch_up(writes.iter().map(Write::key)).await?,
            }
            tracing::warn!(container = container.id.short(), "recorded again: the datastore had lost it");
        }
        Ok(())
    }

    /// Keeps what a container is wired with on this host's disk.
    pub(super) fn reserve(&self, id: &ContainerId) -> Result<(), Fault> {
        if !self.is_loaded() {
            return Ok(());
        }
        let recorded = self.recorded(id);
        self.reservations.write(&self.reservation(id, &recorded))
    }
}
