//! Succession: an address passes over from a container to the one that was made to take its place.
//!
//! The claim stays the holder's and notes the successor, whose record is there from its create on. The address passes over
//! in one transaction when the holder is destroyed, or when the successor is started while the holder does not run
//! (docker-compose 1 removes the old container last). Which of the two is first does not matter, nor does a crash
//! between any steps: all that decides stands in the claim and in dockerd's list.
//!
//! Invariant: one holder at any time. A holder that lost its address says so in its record and never gets a network again.
//!
//! Locks: who passes an address over takes the holder's lock, and may hold the successor's. A successor is always created
//! after its holder, so no two wait for each other.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use super::settle::Waits;
use super::{Network, Recorded};
use crate::edge::docker::Container;
use crate::edge::etcd::{Outcome, When, Write, to_json};
use crate::model::claim::{Change, Held, Owner};
use crate::model::fault::Fault;
use crate::model::key::{AssignmentKey, EndpointKey, Key};
use crate::model::name::{ContainerId, Orchestrator, WorkloadId};
use crate::model::recreation::Replaceable;
use crate::model::wish::AddressWish;
use crate::plan::body::Ask;
use crate::plan::offer::Inheritance;

/// How often a transaction that lost a race is tried again.
const ATTEMPTS: usize = 20;

/// The container that an owner is; `None` while it is being created.
pub(super) fn container_of(owner: &Owner) -> Option<ContainerId> {
    owner.workload.as_ref()?.as_str().parse().ok()
}

impl Network {
    /// Those of the addresses asked for by name whose holder the asking container is to replace.
    ///
    /// A container in a claim that dockerd knows no more is let go of on the way: its event may still be under way.
    pub(super) async fn inheritance(&self, ask: &Ask) -> Result<Inheritance, Fault> {
        let mut found = BTreeMap::new();
        for wish in &ask.wish.addresses {
            let AddressWish::Exactly(address) = wish else { continue };
            let Some((_, held)) = self.held_here(*address) else { continue };
            if let Some(next) = &held.claim.successor {
                self.still_there(&next.owner).await?;
            }
            let Some((key, held)) = self.held_here(*address) else { continue };
            let Some(container) = self.still_there(&held.claim.owner).await? else { continue };
            let names = [container.name.as_str(), held.claim.owner.name.trim_start_matches('/')];
            let old = Replaceable { id: &container.id, names, labels: &container.labels };
            if held.claim.successor.is_none() && ask.labels.replace(&old) {
                found.insert(key, held);
            }
        }
        Ok(found)
    }

    /// The key of an address's claim, and the claim if there is one.
    pub(super) fn claim_of(&self, address: IpAddr) -> Result<(AssignmentKey, Option<Held>), Fault> {
        self.store.read(|snapshot| {
            let pool = snapshot
                .pool_of(address)
                .ok_or_else(|| Fault::Conflict(format!("its address {address} is in no pool any more")))?;
            let key = AssignmentKey { pool: pool.cidr, address };
            let Some(record) = snapshot.claims.get(&key) else { return Ok((key, None)) };
            let claim = record
                .readable()
                .ok_or_else(|| Fault::Conflict(format!("the claim of its address {address} cannot be read")))?;
            Ok((key, Some(Held { revision: record.revision, claim: claim.clone() })))
        })
    }

    /// The claim of an address that a container of this host holds.
    fn held_here(&self, address: IpAddr) -> Option<(AssignmentKey, Held)> {
        self.store.read(|snapshot| {
            let key = AssignmentKey { pool: snapshot.pool_of(address)?.cidr, address };
            let record = snapshot.claims.get(&key)?;
            let claim = record.readable()?.clone();
            let here = claim.owner.host == self.ground.host.name && claim.owner.orchestrator == Orchestrator::docker();
            here.then_some((key, Held { revision: record.revision, claim }))
        })
    }

    /// The container of an owner. One that is gone is settled, so that it holds nothing any more.
    async fn still_there(&self, owner: &Owner) -> Result<Option<Container>, Fault> {
        let Some(id) = container_of(owner) else { return Ok(None) };
        let found = self.docker.inspect(id.as_str()).await?.filter(|found| found.id == id);
        if found.is_none() {
            self.settle(&id, Waits::All).await?;
        }
        Ok(found)
    }

    /// Waits until the view knows of some keys what etcd knows now.
    pub(super) async fn catch_up(&self, keys: impl IntoIterator<Item = &Key>) -> Result<(), Fault> {
        for key in keys {
            if let Some(found) = self.etcd.get(key).await? {
                self.store.reach(found.revision).await?;
            }
        }
        Ok(())
    }

    /// The claims of a container's addresses, with their keys.
    fn claims_on(&self, id: &ContainerId) -> Vec<(AssignmentKey, Held)> {
        let recorded = self.recorded(id);
        let addresses = recorded.iter().flat_map(|one| &one.endpoint.addresses);
        addresses
            .filter_map(|address| self.claim_of(*address).ok().and_then(|(key, held)| Some((key, held?))))
            .collect()
    }

    /// The claims that a container is to have next, with their keys.
    fn awaited(&self, id: &ContainerId) -> Vec<(AssignmentKey, Held)> {
        let mut claims = self.claims_on(id);
        claims.retain(|(_, held)| {
            let next = held.claim.successor.as_ref().map(|next| &next.owner);
            next.is_some_and(|next| next.host == self.ground.host.name && next.workload == Some(id.workload()))
        });
        claims
    }

    /// What a container waits for, in words.
    pub(super) fn waits(&self, id: &ContainerId) -> Option<String> {
        let (key, held) = self.awaited(id).into_iter().next()?;
        Some(format!("it waits for its address {}, which {} holds", key.address, held.claim.owner.called()))
    }

    /// Refuses the start of a container that has lost an address, or that waits for one whose holder runs.
    ///
    /// # Errors
    /// `Conflict` with the reason. `Ok` says nothing of what happens between this look and the start.
    pub(super) async fn check_start(&self, id: &ContainerId) -> Result<(), Fault> {
        self.recorded(id).iter().try_for_each(has_lost_nothing)?;
        for (key, held) in self.awaited(id) {
            if let Some(holder) = self.still_there(&held.claim.owner).await? {
                is_down(&holder, key.address)?;
            }
        }
        Ok(())
    }

    /// Makes way for a container that is about to start: whoever holds what it waits for is down, and is not started by
    /// what is kept on disk. What it waits for passes over once it runs, since a start may still fail.
    ///
    /// # Errors
    /// `Conflict` while a holder runs.
    pub(super) async fn make_way(&self, id: &ContainerId) -> Result<(), Fault> {
        'again: for _ in 0..ATTEMPTS {
            for (key, held) in self.awaited(id) {
                let Some(holder) = container_of(&held.claim.owner) else {
                    return Err(Fault::World(format!("take over {}: nobody holds it", key.address)));
                };
                let lock = self.lock(&holder);
                let _serial = lock.lock().await;
                let found = self.find(&holder).await?;
                let Some(container) = self.inspect_or_bury(&holder).await? else {
                    self.bury(&holder).await?;
                    continue 'again;
                };
                is_down(&container, key.address)?;
                if !self.darken(&found).await? {
                    continue 'again;
                }
                self.withhold(
                    &holder,
                    format!("container {} is about to have its address {}", id.short(), key.address),
                )?;
            }
            return Ok(());
        }
        Err(Fault::Conflict("take over an address: others kept changing its claim; try again".to_owned()))
    }

    /// The containers that hold what a container waits for.
    pub(super) fn awaited_holders(&self, id: &ContainerId) -> Vec<ContainerId> {
        self.awaited(id).iter().filter_map(|(_, held)| container_of(&held.claim.owner)).collect()
    }

    /// Who is using an address of a container already that it is to have next, in words.
    pub(super) fn followed(&self, id: &ContainerId) -> Option<String> {
        self.claims_on(id).into_iter().find_map(|(key, held)| {
            let next = held.claim.successor.filter(|_| held.claim.owner.workload == Some(id.workload()))?.owner;
            let mut theirs = self.recorded(&container_of(&next)?).into_iter();
            let is_used = theirs.any(|one| next.is(&one.key) && one.endpoint.is_active());
            is_used.then(|| format!("{} has its address {} by now", next.called(), key.address))
        })
    }

    /// Takes over what a container waits for.
    ///
    /// # Errors
    /// `Conflict` while a holder runs; nothing of that holder's has passed over then.
    pub(super) async fn take_over(&self, id: &ContainerId) -> Result<(), Fault> {
        for _ in 0..ATTEMPTS {
            let awaited = self.awaited(id);
            let Some((key, held)) = awaited.first() else { return Ok(()) };
            let Some(holder) = container_of(&held.claim.owner) else {
                return Err(Fault::World(format!("take over {}: nobody holds it", key.address)));
            };
            let lock = self.lock(&holder);
            let _serial = lock.lock().await;
            let found = self.find(&holder).await?;
            match self.inspect_or_bury(&holder).await? {
                None => self.bury(&holder).await?,
                Some(container) => {
                    is_down(&container, key.address)?;
                    if !self.darken(&found).await? {
                        continue;
                    }
                    self.pass_over(&holder, &id.workload(), &awaited).await?;
                }
            }
        }
        Err(Fault::Conflict("take over an address: others kept changing its claim; try again".to_owned()))
    }

    /// Passes over what one holder has of the awaited claims. If somebody else changes one of them, nothing passes over,
    /// and the view is up to date for another try.
    async fn pass_over(
        &self,
        holder: &ContainerId,
        to: &WorkloadId,
        awaited: &[(AssignmentKey, Held)],
    ) -> Result<(), Fault> {
        let (mut when, mut writes, mut passed) = (Vec::new(), Vec::new(), BTreeSet::new());
        for (key, held) in awaited.iter().filter(|(_, held)| held.claim.owner.workload == Some(holder.workload())) {
            let Some(claim) = held.claim.passed_over() else { continue };
            let key_of_claim = Key::Assignment(key.clone());
            when.push(When::At(key_of_claim.clone(), held.revision));
            writes.push(Write::Put(key_of_claim, to_json(&claim)?));
            passed.insert(key.address);
        }
        for one in self.recorded(holder) {
            let own: BTreeSet<IpAddr> = one.endpoint.addresses.intersection(&passed).copied().collect();
            if !own.is_empty() {
                let key = Key::Endpoint(one.key.clone());
                when.push(When::At(key.clone(), one.revision));
                writes.push(Write::Put(key, to_json(&one.endpoint.without(&own, to))?));
            }
        }
        // Before it passes over, so that nobody starts the holder with it should this process die right after that.
        let addresses: Vec<String> = passed.iter().map(ToString::to_string).collect();
        let why = format!("its address {} has passed over to container {}", addresses.join(", "), to.short());
        self.withhold(holder, why)?;
        match self.etcd.transact("pass an address over", &when, &writes).await? {
            Outcome::Done(revision) => {
                tracing::info!(from = holder.short(), ?passed, %to, "the address passed over");
                self.store.reach(revision).await?;
                self.reserve(holder)
            }
            Outcome::Lost => {
                let keys: Vec<&Key> = writes.iter().map(Write::key).collect();
                self.catch_up(keys).await?;
                self.reserve(holder)
            }
        }
    }

    /// The claims in which an endpoint has a part.
    pub(super) fn claims_of(&self, endpoint: &EndpointKey) -> Vec<(AssignmentKey, Held)> {
        self.store.read(|snapshot| {
            let its =
                snapshot.parts_of(&endpoint.endpoint).filter(|(_, _, claim)| claim.without(endpoint) != Change::None);
            its.map(|(key, revision, claim)| (key.clone(), Held { revision, claim: claim.clone() })).collect()
        })
    }
}

impl Network {
    /// Whether a container has all that it was made with, and nobody else has it too.
    ///
    /// # Errors
    /// `Conflict`, naming who has it now.
    pub(super) fn has_its_addresses(&self, id: &ContainerId) -> Result<(), Fault> {
        if let Some(followed) = self.followed(id) {
            return Err(Fault::Conflict(followed));
        }
        for one in &self.recorded(id) {
            has_lost_nothing(one)?;
            for address in &one.endpoint.addresses {
                // Without a claim that can be read it is not known to be anybody else's.
                if let Ok((_, Some(held))) = self.claim_of(*address)
                    && !held.claim.owner.is(&one.key)
                    && !held.claim.successor.as_ref().is_some_and(|next| next.owner.is(&one.key))
                {
                    let holder = held.claim.holder();
                    return Err(Fault::Conflict(format!(
                        "its address {address} is held by {holder}: remove one of them"
                    )));
                }
            }
        }
        Ok(())
    }
}

/// Whether an endpoint has all that it was made with.
///
/// # Errors
/// `Conflict`, naming who has it now.
pub(super) fn has_lost_nothing(one: &Recorded) -> Result<(), Fault> {
    let Some(lost) = &one.endpoint.handed_over else { return Ok(()) };
    let addresses: Vec<String> = lost.addresses.iter().map(ToString::to_string).collect();
    Err(Fault::Conflict(format!(
        "its address {} has passed over to container {}, which took its place: remove this one",
        addresses.join(", "),
        lost.to.short()
    )))
}

fn is_down(holder: &Container, address: IpAddr) -> Result<(), Fault> {
    if !holder.is_up {
        return Ok(());
    }
    Err(Fault::Conflict(format!(
        "its address {address} is still held by container {} ({}), which runs: stop or remove that one first",
        holder.name,
        holder.id.short()
    )))
}
