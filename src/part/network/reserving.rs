//! Reserving: what this host keeps of its containers beside the datastore, and what it makes of that when the datastore is
//! away, or has lost them.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::sync::{Arc, MutexGuard, PoisonError};

use super::succession::has_lost_nothing;
use super::{Network, Recorded};
use crate::edge::docker::Container;
use crate::edge::etcd::{Outcome, When, Write, to_json};
use crate::edge::reservations::Aside;
use crate::edge::wall_clock;
use crate::model::claim::{Claim, Successor};
use crate::model::endpoint::{Endpoint, State};
use crate::model::fault::Fault;
use crate::model::key::{EndpointKey, Key};
use crate::model::name::{ContainerId, Orchestrator};
use crate::model::reservation::Reservation;

impl Network {
    /// What is to be kept of a container on this host.
    pub(super) fn reservation(&self, id: &ContainerId, recorded: &[Recorded]) -> Reservation {
        // What a start and a stop change is left out, so that neither of them has to wait for the disk.
        let kept = |endpoint: &Endpoint| Endpoint { state: State::Inactive, wired_by: None, ..endpoint.clone() };
        let endpoints: BTreeMap<_, _> =
            recorded.iter().map(|one| (one.key.endpoint.clone(), kept(&one.endpoint))).collect();
        let lost = recorded.iter().find_map(|one| has_lost_nothing(one).err()).map(|fault| fault.to_string());
        let withheld = lost.or_else(|| self.waits(id)).or_else(|| self.followed(id));
        Reservation { v: 1, container: id.clone(), gateway: self.ground.host.ip, endpoints, withheld }
    }

    /// What is kept of a container on this host's disk, as it would stand in the datastore.
    pub(super) fn reserved_here(&self, id: &ContainerId) -> Result<Vec<Recorded>, Fault> {
        let endpoints = self.reservations.read(id)?.map(|reservation| reservation.endpoints).unwrap_or_default();
        let recorded = endpoints.into_iter().map(|(endpoint, record)| Recorded {
            key: EndpointKey {
                host: self.ground.host.name.clone(),
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
        // Of one of which nothing is known there is nothing to keep, and it does not start either.
        let known = self.whole(id).map_or_else(|| self.reservations.read(id), |known| Ok(Some(known)))?;
        known.map_or(Ok(()), |known| self.reservations.write(&Reservation { withheld: Some(why), ..known }))
    }

    /// What is to be kept of a container; `None` where a record of it cannot be read, or there is none.
    fn whole(&self, id: &ContainerId) -> Option<Reservation> {
        let recorded = self.recorded(id);
        let is_whole = !recorded.is_empty() && self.keys(id).iter().all(|(_, unreadable)| unreadable.is_none());
        is_whole.then(|| self.reservation(id, &recorded))
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
        let waits = self.reservations.read(&container.id)?.is_some_and(|kept| kept.withheld.is_some());
        for one in self.reserved_here(&container.id)? {
            let key = Key::Endpoint(one.key.clone());
            let inactive = one.endpoint;
            let mut when = vec![When::Absent(key.clone())];
            let mut writes = vec![Write::Put(key, to_json(&inactive)?)];
            for address in &inactive.addresses {
                let (claim, held) = self.claim_of(*address).map_err(|fault| fault.during(&doing))?;
                let path = Key::Assignment(claim);
                let own = Claim::bound_again(&one.key, &container.name, wall_clock::now());
                match held {
                    None if waits && self.is_kept_of_another(*address, &container.id)? => {
                        return Err(Fault::Away(format!("{doing}: its address {address} is its holder's first")));
                    }
                    None => {
                        when.push(When::Absent(path.clone()));
                        writes.push(Write::Put(path, to_json(&own)?));
                    }
                    Some(held) if held.claim.owners().any(|owner| owner.is(&one.key)) => {
                        when.push(When::At(path, held.revision));
                    }
                    Some(held) if waits && held.claim.successor.is_none() && held.claim.owner.host == one.key.host => {
                        when.push(When::At(path.clone(), held.revision));
                        let successor = Some(Box::new(Successor { owner: own.owner, request: own.request }));
                        writes.push(Write::Put(path, to_json(&Claim { successor, ..held.claim })?));
                    }
                    Some(held) => {
                        let holder = held.claim.holder();
                        return Err(Fault::Conflict(format!("{doing}: its address {address} is held by {holder}")));
                    }
                }
            }
            match self.etcd.transact(&doing, &when, &writes).await? {
                Outcome::Done(revision) => {
                    self.store.reach(revision).await?;
                    tracing::warn!(container = container.id.short(), "recorded again: the datastore had lost it");
                }
                Outcome::Lost => self.catch_up(writes.iter().map(Write::key)).await?,
            }
        }
        Ok(())
    }

    /// Whether another container's reservation has an address.
    fn is_kept_of_another(&self, address: IpAddr, id: &ContainerId) -> Result<bool, Fault> {
        for other in self.reservations.containers()?.iter().filter(|other| *other != id) {
            let kept = self.reservations.read(other)?.map(|kept| kept.endpoints).unwrap_or_default();
            if kept.values().any(|endpoint| endpoint.addresses.contains(&address)) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Keeps what a container is wired with on this host's disk. Where a record of it cannot be read, or there is none, what
    /// is kept stays: it is all that is known.
    pub(super) fn reserve(&self, id: &ContainerId) -> Result<(), Fault> {
        // First: what changes meanwhile is looked at again.
        let newest = self.newest(id);
        if let Some(known) = self.is_loaded().then(|| self.whole(id)).flatten() {
            self.reservations.write(&known)?;
        }
        self.kept_at().insert(id.clone(), newest);
        Ok(())
    }

    /// Keeps what has changed of containers' records since: who gives one other profiles writes to the datastore alone, and no
    /// event of Docker's tells.
    pub(super) async fn keep_changed(self: &Arc<Self>) -> Result<(), Fault> {
        let mut ids = self.containers();
        ids.retain(|id| self.kept_at().get(id) != Some(&self.newest(id)));
        let mut first = Ok(());
        for id in ids {
            // One that is being started or stopped just now has its turn the next time.
            let Ok(serial) = self.lock(&id).try_lock_owned() else { continue };
            let network = Arc::clone(self);
            let kept = tokio::task::spawn_blocking(move || {
                let _serial = serial;
                network.reserve(&id)
            });
            let kept =
                kept.await.map_err(|error| Fault::World(format!("keep what has changed of a container: {error}")));
            first = first.and(kept.and_then(|kept| kept));
        }
        first
    }

    /// Forgets what was kept when of a container that is ours no more.
    pub(super) fn forget_kept_at(&self, id: &ContainerId) {
        self.kept_at().remove(id);
    }

    fn kept_at(&self) -> MutexGuard<'_, HashMap<ContainerId, i64>> {
        self.kept_at.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The revision of a container's newest record.
    fn newest(&self, id: &ContainerId) -> i64 {
        self.store
            .read(|snapshot| self.endpoints_in(snapshot, id).map(|(_, record)| record.revision).max())
            .unwrap_or(0)
    }

    /// The same of a container that has just been recorded, which was written aside already as it was likely to be.
    pub(super) fn reserve_new(&self, id: &ContainerId, aside: &Aside) -> Result<(), Fault> {
        let wanted = self.reservation(id, &self.recorded(id));
        if aside.is(&wanted) { self.reservations.put(aside) } else { self.reservations.write(&wanted) }
    }
}
