//! Claims: an address is held before its container exists, and given back when that container is destroyed.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::net::IpAddr;
use std::sync::PoisonError;
use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;

use super::succession::container_of;
use super::{Network, Recorded};
use crate::edge::docker::Listed;
use crate::edge::etcd::{Outcome, When, Write, to_json};
use crate::edge::fail_point::fail_point;
use crate::edge::{random, wall_clock};
use crate::model::claim::{Change, Claim, ClaimState, Owner};
use crate::model::endpoint::{Endpoint, State};
use crate::model::fault::Fault;
use crate::model::key::{AWAITED, AssignmentKey, EndpointKey, Key, POOLS};
use crate::model::name::{CONTAINER_INTERFACE, ContainerId, EndpointId, IfName, Mac, Orchestrator, ProfileName, hex};
use crate::model::pool::Family;
use crate::model::profile::{default_rules, default_tags};
use crate::model::wish::AddressWish;
use crate::plan::address::Reserved;
use crate::plan::body::Ask;
use crate::plan::offer::{Chosen, Inheritance, Offer, step_over, taken};

/// How long a claim outlives a node that dies in the middle of a create (decided: 60 s), and how often it is renewed.
const LEASE: Duration = Duration::from_mins(1);
const LEASE_RENEWAL: Duration = Duration::from_secs(15);

/// How long after it could not be renewed that is tried again.
const RENEWED_AGAIN: Duration = Duration::from_secs(1);

/// How often a transaction that lost a race is tried again before the address is called taken.
const ATTEMPTS: usize = 100;

/// How many addresses a create loses to others before it goes on elsewhere, and how far away at most: all hosts choose the next one
/// that is free, so of those who begin at once each time one gets on.
const PATIENCE: usize = 3;
const ASIDE: u16 = 1024;

/// Addresses that are claimed for a create that is under way.
#[derive(Debug)]
pub(crate) struct Prepared {
    pub(super) ask: Ask,
    pub(super) request: String,
    endpoint: EndpointId,
    mac: Mac,
    interface: IfName,
    container_interface: IfName,
    claimed: Vec<Claimed>,
}

/// A claim of ours, or one that we are to succeed in, and the revision at which it was written.
#[derive(Debug, Clone)]
struct Claimed {
    key: AssignmentKey,
    revision: i64,
    claim: Claim,
}

/// The names of an endpoint's two ends.
fn interfaces_of(endpoint: &EndpointId) -> Result<(IfName, IfName), Fault> {
    let fault = || Fault::World(format!("name the interfaces of endpoint {endpoint}: no such names"));
    let container = CONTAINER_INTERFACE.parse().map_err(|_| fault())?;
    Ok((endpoint.interface().ok_or_else(fault)?, container))
}

impl Network {
    /// Keeps a lease for pending claims until told to stop.
    pub(crate) async fn keep_lease(&self, stop: &CancellationToken) {
        let mut told = String::new();
        while !stop.is_cancelled() {
            let mut synced = self.store.synced();
            let round = async {
                // The sender lives as long as the store, so waiting only ends with a connection.
                let _ = synced.wait_for(|synced| synced.connected).await;
                match self.etcd.lease(LEASE).await {
                    Ok(lease) => {
                        self.lease.send_replace(Some(lease));
                        let fault = self.renew(lease).await;
                        self.lease.send_replace(None);
                        tracing::warn!(%fault, "lost the lease that pending claims hang on");
                        told.clear();
                    }
                    Err(fault) => {
                        let fault = fault.to_string();
                        if fault != told {
                            tracing::warn!(fault, "no lease for pending claims: no address can be claimed");
                            told = fault;
                        }
                    }
                }
                tokio::time::sleep(Duration::from_millis(500)).await;
            };
            tokio::select! {
                () = stop.cancelled() => {}
                () = round => {}
            }
        }
    }

    /// Keeps the lease alive until it has run out, for all that is known here; answers why.
    async fn renew(&self, lease: i64) -> Fault {
        let mut renewed = Instant::now();
        loop {
            let asked = Instant::now();
            match self.etcd.renew(lease).await {
                Ok(true) => {
                    renewed = asked;
                    self.renewal_due().await;
                }
                Ok(false) => {
                    return Fault::Away(format!("keep a lease in etcd at {}: it has run out", self.etcd.address()));
                }
                Err(fault) if renewed.elapsed() + RENEWED_AGAIN >= LEASE => return fault,
                Err(_) => tokio::time::sleep(RENEWED_AGAIN).await,
            }
        }
    }

    /// On a clock, and when etcd is there again: one that has gone back to an older state does not know the lease.
    async fn renewal_due(&self) {
        let mut synced = self.store.synced();
        let there_again = async {
            let _ = synced.wait_for(|synced| !synced.connected).await;
            let _ = synced.wait_for(|synced| synced.connected).await;
        };
        let _ = tokio::time::timeout(LEASE_RENEWAL, there_again).await;
    }

    fn lease(&self) -> Result<i64, Fault> {
        let lease = *self.lease.borrow();
        lease.filter(|_| self.store.is_connected()).ok_or_else(|| {
            let at = self.etcd.address();
            Fault::Away(match self.store.doubt() {
                Some(why) => format!("claim an address: etcd at {at} is not believed: {why}"),
                None => format!("claim an address: etcd at {at} is away; it must answer first"),
            })
        })
    }

    /// Checks a wish and claims its addresses.
    ///
    /// # Errors
    /// `Refusal` for a wish that can never be met, `Conflict` for an address that is taken or a pool that is full,
    /// `Away` without etcd. Nothing is left claimed.
    pub(crate) async fn prepare(&self, ask: Ask) -> Result<Prepared, Fault> {
        let request = hex(&random::bytes::<8>()?);
        self.begin(&request);
        let prepared = match self.claim(ask, &request).await {
            Ok(prepared) => match self.note(&request, &prepared.ask, prepared.addresses().collect()) {
                Ok(()) => Ok(prepared),
                Err(fault) => {
                    self.abandon(prepared).await;
                    Err(fault)
                }
            },
            Err(fault) => Err(fault),
        };
        if prepared.is_err() {
            // What etcd did without our hearing of it is released by the next comparison.
            self.lose_sight(&request);
        }
        prepared
    }

    async fn claim(&self, mut ask: Ask, request: &str) -> Result<Prepared, Fault> {
        let doing = "claim an address";
        self.lease()?;
        self.await_engine().await.map_err(|fault| fault.during(doing))?;
        for named in ask.requested.networks.clone().into_keys() {
            if let Some((name, id)) = self.docker.network(&named).await? {
                ask.requested.know(&named, name, id);
            }
        }
        let families: BTreeSet<Family> = ask.wish.addresses.iter().map(AddressWish::family).collect();
        let reserved = self.reserved(families).await?;
        let endpoint = EndpointId::from_random(random::bytes()?);
        let owner = Owner {
            host: self.ground.host.name.clone(),
            orchestrator: Orchestrator::docker(),
            workload: None,
            endpoint: endpoint.clone(),
            name: ask.name.clone(),
            since: wall_clock::now(),
        };
        let mut lost = BTreeSet::new();
        let mut newest = false;
        for _ in 0..ATTEMPTS {
            let inheritance = self.inheritance(&ask).await?;
            // Asked at the last moment: the datastore may have gone back while dockerd took its time.
            let lease = self.lease()?;
            if let Some(why) = self.store.withheld() {
                return Err(Fault::Away(format!("{doing}: {why}")));
            }
            let chosen = match self.choose(&ask.wish.addresses, &reserved, &inheritance, &lost) {
                Ok(chosen) => chosen,
                // The view may be some milliseconds behind who has just added a pool, or freed an address.
                Err(fault) if !newest => {
                    self.see_pools().await?;
                    if matches!(fault, Fault::Conflict(_)) {
                        self.see_freed(&ask.wish.addresses).await?;
                    }
                    newest = true;
                    continue;
                }
                Err(fault) => return Err(fault),
            };
            let claims: Vec<Claim> = chosen.iter().map(|one| one.claim(&owner, request)).collect();
            // That some host is awaited the view may hear a moment late.
            let mut when = vec![When::Quiet(AWAITED.to_owned(), 0)];
            let mut writes = Vec::new();
            for (one, claim) in chosen.iter().zip(&claims) {
                let key = Key::Assignment(one.key.clone());
                when.push(When::Present(Key::Pool(one.key.pool)));
                if let Some(held) = &one.held {
                    when.push(When::At(key.clone(), held.revision));
                    writes.push(Write::Put(key, to_json(claim)?));
                } else {
                    when.push(When::Absent(key.clone()));
                    writes.push(Write::PutLeased(key, to_json(claim)?, lease));
                }
            }
            if let Outcome::Done(revision) = self.etcd.transact(doing, &when, &writes).await? {
                let claimed = chosen.iter().zip(claims);
                let claimed = claimed.map(|(one, claim)| Claimed { key: one.key.clone(), revision, claim }).collect();
                fail_point("create: the claim is pending");
                return Prepared::of(ask, request, endpoint, claimed);
            }
            let losses = lost.len();
            self.find_lost(&chosen, &mut lost).await?;
            if lost.len() > losses && losses >= PATIENCE {
                self.step_aside(&chosen)?;
            }
        }
        Err(Fault::Conflict(format!("claim an address: lost the race for one {ATTEMPTS} times; try again")))
    }

    /// Has automatic choices go on some way behind those that were lost.
    fn step_aside(&self, chosen: &[Chosen]) -> Result<(), Fault> {
        let mut cursors = self.cursors.lock().unwrap_or_else(PoisonError::into_inner);
        for one in chosen.iter().filter(|one| !one.exactly) {
            step_over(&mut cursors, &one.key, u16::from_ne_bytes(random::bytes()?) % ASIDE);
        }
        Ok(())
    }

    /// The endpoint of a create that is under way, and its claims, as the view has them.
    fn claimed_for(&self, request: &str) -> Option<(EndpointId, Vec<Claimed>)> {
        let of_request = |claim: &Claim| {
            let (owner, _) = claim.pending().find(|(_, pending)| *pending == request)?;
            Some(owner.endpoint.clone())
        };
        self.store.read(|snapshot| {
            let endpoint = snapshot.parts().find_map(|(_, _, claim)| of_request(claim))?;
            let its = snapshot.parts_of(&endpoint).filter(|(_, _, claim)| of_request(claim).is_some());
            let claimed =
                its.map(|(key, revision, claim)| Claimed { key: key.clone(), revision, claim: claim.clone() });
            let claimed = claimed.collect();
            Some((endpoint, claimed))
        })
    }

    /// Binds to a container the addresses that were claimed for its create by an earlier run. What is claimed stays so
    /// without a gap; only what has been lost meanwhile is claimed anew.
    pub(super) async fn bind_again(&self, ask: Ask, request: &str, id: &ContainerId) -> Result<(), Fault> {
        let is_whole = |claimed: &[Claimed]| {
            let claimed: Vec<_> = claimed.iter().map(|one| AddressWish::Exactly(one.key.address)).collect();
            ask.wish.addresses.iter().all(|wish| claimed.contains(wish))
        };
        let prepared = match self.claimed_for(request).filter(|(_, claimed)| is_whole(claimed)) {
            Some((endpoint, claimed)) => Prepared::of(ask, request, endpoint, claimed)?,
            None => {
                self.release_request(request).await?;
                self.claim(ask, request).await?
            }
        };
        self.try_bind(&prepared, id).await.map(drop)
    }

    /// Waits until the view knows every pool that etcd knows now.
    async fn see_pools(&self) -> Result<(), Fault> {
        for path in POOLS {
            self.store.reach(self.etcd.newest(path).await?).await?;
        }
        Ok(())
    }

    /// Has the view show which of the addresses are free by now: those that etcd says are, and, where any will do, those of
    /// containers that dockerd knows no more, whose event may still be under way.
    async fn see_freed(&self, wishes: &[AddressWish]) -> Result<(), Fault> {
        for wish in wishes {
            let AddressWish::Exactly(address) = wish else { continue };
            let Ok((key, Some(held))) = self.claim_of(*address) else { continue };
            let now = self.etcd.get(&Key::Assignment(key.clone())).await?;
            if now.is_none_or(|now| now.revision != held.revision) {
                let has_gone = |revision| revision != Some(held.revision);
                self.store.see(|view| has_gone(view.claims.get(&key).map(|record| record.revision))).await?;
            }
        }
        if wishes.iter().all(|wish| matches!(wish, AddressWish::Exactly(_))) {
            return Ok(());
        }
        let listed: HashSet<ContainerId> = self.docker.list().await?.into_iter().map(|one| one.id).collect();
        self.ended(self.containers().into_iter().filter(|id| !listed.contains(id)).collect()).await
    }

    /// Learns which of the addresses was taken by somebody else.
    async fn find_lost(&self, chosen: &[Chosen], lost: &mut BTreeSet<IpAddr>) -> Result<(), Fault> {
        for one in chosen {
            match self.etcd.get(&Key::Assignment(one.key.clone())).await? {
                Some(found) if one.held.is_some() => self.store.reach(found.revision).await?,
                Some(found) if one.exactly => {
                    let claim = serde_json::from_slice(&found.value).ok();
                    return Err(taken(one.key.address, claim.as_ref(), |host| *host == self.ground.host.name));
                }
                Some(_) => {
                    lost.insert(one.key.address);
                }
                None => {}
            }
        }
        Ok(())
    }

    /// Chooses an address for every item of a wish, as the view has it.
    fn choose(
        &self,
        wishes: &[AddressWish],
        reserved: &Reserved,
        inheritance: &Inheritance,
        lost: &BTreeSet<IpAddr>,
    ) -> Result<Vec<Chosen>, Fault> {
        let mut cursors = self.cursors.lock().unwrap_or_else(PoisonError::into_inner);
        self.store.read(|snapshot| {
            let offer = Offer { snapshot, reserved, inheritance, ipv6: self.ground.host.gives_ipv6 };
            offer.choose(wishes, lost, &mut cursors)
        })
    }

    /// Binds the claims to the container that Docker made, with its endpoint record. Answers the warnings for the user.
    ///
    /// # Errors
    /// The container has been removed again and the claims released; the message tells where that failed.
    pub(crate) async fn bind(&self, prepared: Prepared, id: &ContainerId) -> Result<Vec<String>, Fault> {
        match self.try_bind(&prepared, id).await {
            Ok(warnings) => {
                self.forget(&prepared.request);
                Ok(warnings)
            }
            Err(fault) => {
                let fault = fault.during(&format!("record container {}", id.short()));
                if self.store.has_ended() {
                    // The node that has taken over finishes it, or has done so already.
                    self.lose_sight(&prepared.request);
                    return Err(fault);
                }
                let undone = self.docker.remove(id).await;
                self.abandon(prepared).await;
                Err(match undone {
                    Ok(()) => fault,
                    Err(undo) => fault.during(&format!("{undo}; remove it by hand; before that")),
                })
            }
        }
    }

    /// Binds the claims to a container that was there before; on failure only the claims go.
    pub(super) async fn bind_existing(&self, prepared: Prepared, id: &ContainerId) -> Result<(), Fault> {
        match self.try_bind(&prepared, id).await {
            Ok(_) => {
                self.forget(&prepared.request);
                Ok(())
            }
            Err(fault) => {
                let key = self.endpoint_key(&prepared, id);
                // Its claims first: without them nothing that is still on its way can bind it.
                self.abandon(prepared).await;
                Err(with_undo(fault, self.unbind(&key).await))
            }
        }
    }

    /// Takes back what etcd may have done of a binding without our hearing of it.
    async fn unbind(&self, key: &EndpointKey) -> Result<(), Fault> {
        match self.etcd.get(&Key::Endpoint(key.clone())).await? {
            None => Ok(()),
            Some(found) => {
                self.store.reach(found.revision).await?;
                self.free(key).await
            }
        }
    }

    async fn try_bind(&self, prepared: &Prepared, id: &ContainerId) -> Result<Vec<String>, Fault> {
        let lock = self.lock(id);
        let _serial = lock.lock().await;
        if !self.recorded(id).is_empty() {
            return Err(Fault::Conflict("it has been added already".to_owned()));
        }
        let one = Recorded { key: self.endpoint_key(prepared, id), endpoint: self.new_endpoint(prepared), revision: 0 };
        // While etcd brings the record to its disk, what is kept of it comes to this host's.
        let (reservations, likely) = (self.reservations.clone(), self.reservation(id, std::slice::from_ref(&one)));
        let writing = tokio::task::spawn_blocking(move || reservations.write_aside(likely));
        let recorded = self.record(prepared, &one).await;
        let written = writing.await.unwrap_or_else(|error| Err(Fault::World(format!("write a reservation: {error}"))));
        let made = match recorded {
            Ok(made) => made,
            Err(fault) => return Err(with_undo(fault, self.reservations.tidy(id))),
        };
        if let Err(fault) = written.and_then(|aside| self.reserve_new(id, &aside)) {
            return Err(with_undo(fault, self.free(&one.key).await));
        }
        fail_point("create: the reservation is kept");
        Ok(warnings(prepared, &made))
    }

    /// Binds the claims in the transaction that writes the endpoint's record; answers the profiles that it made.
    async fn record(&self, prepared: &Prepared, one: &Recorded) -> Result<Vec<ProfileName>, Fault> {
        let key = Key::Endpoint(one.key.clone());
        let mut claimed = prepared.claimed.clone();
        for attempt in 0..ATTEMPTS {
            let mut when = vec![When::Absent(key.clone())];
            let mut writes = vec![Write::Put(key.clone(), to_json(&one.endpoint)?)];
            for claimed in &claimed {
                let Some(bound) = claimed.claim.bound_to(&prepared.endpoint, &one.key.workload) else {
                    return Err(Fault::Conflict(format!("keep {}: its claim was lost meanwhile", claimed.key.address)));
                };
                when.push(When::At(Key::Assignment(claimed.key.clone()), claimed.revision));
                writes.push(Write::Put(Key::Assignment(claimed.key.clone()), to_json(&bound)?));
            }
            let (there, made) = self.profiles_there(&prepared.ask.wish.profiles, attempt == 0).await?;
            // One that is taken away just now must not be left named by an endpoint.
            when.extend(there.iter().cloned().map(When::Present));
            for profile in &made {
                when.push(When::Absent(Key::ProfileTags(profile.clone())));
                when.push(When::Absent(Key::ProfileRules(profile.clone())));
                writes.push(Write::Put(Key::ProfileTags(profile.clone()), to_json(&default_tags(profile))?));
                writes.push(Write::Put(Key::ProfileRules(profile.clone()), to_json(&default_rules(profile))?));
            }
            if let Outcome::Done(revision) = self.etcd.transact("bind the claim", &when, &writes).await? {
                fail_point("create: the claim is bound");
                self.store.reach(revision).await?;
                return Ok(made);
            }
            for one in &mut claimed {
                // Its holder may have been destroyed meanwhile: then it is ours.
                let found = self.etcd.get(&Key::Assignment(one.key.clone())).await?;
                let read = found.and_then(|found| Some((found.revision, serde_json::from_slice(&found.value).ok()?)));
                let Some((revision, claim)) = read else {
                    return Err(Fault::Conflict(format!("keep {}: its claim was lost meanwhile", one.key.address)));
                };
                *one = Claimed { key: one.key.clone(), revision, claim };
            }
        }
        Err(Fault::Conflict("bind the claim: its profiles or claims kept changing; try again".to_owned()))
    }

    fn endpoint_key(&self, prepared: &Prepared, id: &ContainerId) -> EndpointKey {
        EndpointKey {
            host: self.ground.host.name.clone(),
            orchestrator: Orchestrator::docker(),
            workload: id.workload(),
            endpoint: prepared.endpoint.clone(),
        }
    }

    fn new_endpoint(&self, prepared: &Prepared) -> Endpoint {
        let addresses: BTreeSet<IpAddr> = prepared.addresses().collect();
        let (ipv4_gateway, ipv6_gateway) = self.ground.gateways(&addresses);
        Endpoint {
            state: State::Inactive,
            interface: prepared.interface.clone(),
            container_interface: prepared.container_interface.clone(),
            mac: Some(prepared.mac),
            profiles: prepared.ask.wish.profiles.clone(),
            addresses,
            ipv4_gateway,
            ipv6_gateway,
            requested: Some(prepared.ask.requested.clone()),
            handed_over: None,
            wired_by: None,
            rest: BTreeMap::new(),
        }
    }

    /// A record of each of the profiles that is there, and those that have neither rules nor tags. The view may be behind:
    /// what it does not know is asked for, and all is if it is not to be believed.
    async fn profiles_there(
        &self,
        profiles: &[ProfileName],
        believed: bool,
    ) -> Result<(Vec<Key>, Vec<ProfileName>), Fault> {
        let (mut there, mut missing) = (Vec::new(), Vec::new());
        for profile in profiles {
            let (rules, tags) = (Key::ProfileRules(profile.clone()), Key::ProfileTags(profile.clone()));
            let seen = self.store.read(|snapshot| {
                let tagged = || snapshot.tags.contains_key(profile).then(|| tags.clone());
                if snapshot.rules.contains_key(profile) { Some(rules.clone()) } else { tagged() }
            });
            if let Some(key) = seen.filter(|_| believed) {
                there.push(key);
            } else if self.etcd.get(&rules).await?.is_some() {
                there.push(rules);
            } else if self.etcd.get(&tags).await?.is_some() {
                there.push(tags);
            } else {
                missing.push(profile.clone());
            }
        }
        Ok((there, missing))
    }

    /// Releases the claims of a create that came to nothing. A failure is logged: the next comparison releases them.
    pub(crate) async fn abandon(&self, prepared: Prepared) {
        self.forget(&prepared.request);
        for one in &prepared.claimed {
            if let Err(fault) = self.release_claim(&one.key, &prepared.request).await {
                tracing::warn!(%fault, "a claim that came to nothing is not released yet");
                // A client waits, and who does not answer now does not answer for the next one.
                break;
            }
        }
    }

    /// Takes a create request that came to nothing out of a claim.
    pub(super) async fn release_claim(&self, key: &AssignmentKey, request: &str) -> Result<(), Fault> {
        let key = Key::Assignment(key.clone());
        for _ in 0..ATTEMPTS {
            let Some(found) = self.etcd.get(&key).await? else { return Ok(()) };
            // One that cannot be read is nobody's whom we know.
            let Ok(claim) = serde_json::from_slice::<Claim>(&found.value) else { return Ok(()) };
            let Some(write) = self.changed(&key, claim.without_request(request))? else { return Ok(()) };
            let when = [When::At(key.clone(), found.revision)];
            if let Outcome::Done(revision) = self.etcd.transact("release a claim", &when, &[write]).await? {
                // Who hears of it may ask for the address at once.
                return self.store.reach(revision).await;
            }
        }
        Err(Fault::Conflict("release a claim: others kept changing it; try again".to_owned()))
    }

    /// Has claims name the containers of this host as dockerd does now.
    pub(super) async fn follow_names(&self, listed: &[Listed]) -> Result<(), Fault> {
        let names: HashMap<&str, &str> = listed.iter().map(|one| (one.id.as_str(), one.name.as_str())).collect();
        let name_of = |owner: &Owner| {
            let here = owner.host == self.ground.host.name && owner.orchestrator == Orchestrator::docker();
            let workload = owner.workload.as_ref().filter(|_| here)?;
            names.get(workload.as_str()).copied()
        };
        let renamed: Vec<(Key, i64, Claim)> = self.store.read(|snapshot| {
            let renamed = snapshot.parts().filter_map(|(key, revision, claim)| {
                Some((Key::Assignment(key.clone()), revision, claim.renamed(name_of)?))
            });
            renamed.collect()
        });
        for (key, revision, claim) in renamed {
            if let Some(write) = self.changed(&key, Change::Becomes(Box::new(claim)))? {
                // If somebody else changes it just then, the next comparison does it.
                self.etcd.transact("rename the holder of an address", &[When::At(key, revision)], &[write]).await?;
            }
        }
        Ok(())
    }

    /// The write that changes a claim; `None` if nothing changes.
    fn changed(&self, key: &Key, change: Change) -> Result<Option<Write>, Fault> {
        Ok(match change {
            Change::None => None,
            Change::Free => Some(Write::Delete(key.clone())),
            Change::Becomes(claim) if claim.state == ClaimState::Pending => {
                Some(Write::PutLeased(key.clone(), to_json(&claim)?, self.lease()?))
            }
            Change::Becomes(claim) => Some(Write::Put(key.clone(), to_json(&claim)?)),
        })
    }

    /// Lets go of a create whose end nobody knows, because the connection to dockerd broke: if the container is there, the
    /// next comparison binds it.
    pub(crate) fn lose(&self, prepared: &Prepared) {
        if let Err(fault) = self.note_end(&prepared.request) {
            tracing::warn!(%fault, "the address of a create that was cut off is held for longer than it need be");
        }
        self.lose_sight(&prepared.request);
    }

    /// Removes the record of an endpoint and its part in claims, in one transaction: what it owned passes over to a
    /// successor or is free, what it waited for stays with its owner.
    pub(super) async fn free(&self, key: &EndpointKey) -> Result<(), Fault> {
        let doing = format!("free the addresses of container {}", key.workload.short());
        for _ in 0..ATTEMPTS {
            let (mut when, mut writes) = (Vec::new(), vec![Write::Delete(Key::Endpoint(key.clone()))]);
            let mut heirs = BTreeSet::new();
            for (claim, held) in self.claims_of(key) {
                let next = held.claim.successor.as_ref().filter(|next| next.owner.host == self.ground.host.name);
                heirs.extend(next.and_then(|next| container_of(&next.owner)));
                let path = Key::Assignment(claim);
                if let Some(write) = self.changed(&path, held.claim.without(key))? {
                    when.push(When::At(path, held.revision));
                    writes.push(write);
                }
            }
            if let Outcome::Done(revision) = self.etcd.transact(&doing, &when, &writes).await? {
                fail_point("destroy: the addresses are free");
                self.store.reach(revision).await?;
                // One that has just been put back was not in the view.
                if !self.claims_of(key).is_empty() {
                    continue;
                }
                // They wait no more.
                return heirs.iter().try_for_each(|heir| self.reserve(heir));
            }
            self.catch_up(writes.iter().map(Write::key)).await?;
        }
        Err(Fault::Conflict(format!("{doing}: others kept changing their claims; try again")))
    }
}

impl Prepared {
    fn of(ask: Ask, request: &str, endpoint: EndpointId, claimed: Vec<Claimed>) -> Result<Self, Fault> {
        let (interface, container_interface) = interfaces_of(&endpoint)?;
        let (request, mac) = (request.to_owned(), Mac::from_random(random::bytes()?));
        Ok(Prepared { ask, request, endpoint, mac, interface, container_interface, claimed })
    }

    /// With another name for the container's end.
    pub(super) fn with_container_interface(self, container_interface: IfName) -> Self {
        Prepared { container_interface, ..self }
    }

    pub(crate) fn addresses(&self) -> impl Iterator<Item = IpAddr> + '_ {
        self.claimed.iter().map(|one| one.key.address)
    }
}

/// A fault, and what was not undone of what had led to it.
pub(super) fn with_undo(fault: Fault, undone: Result<(), Fault>) -> Fault {
    match undone {
        Ok(()) => fault,
        Err(undo) => fault.during(&format!("{undo}; before that")),
    }
}

fn warnings(prepared: &Prepared, made: &[ProfileName]) -> Vec<String> {
    let ask = &prepared.ask;
    let mut warnings = ask.warnings.clone();
    for one in prepared.claimed.iter().filter(|one| one.claim.successor.is_some()) {
        warnings.push(format!(
            "calico: {} is held by {}, whose place this container takes: it passes over when that one is removed, or when this one is started after that one was stopped",
            one.key.address,
            one.claim.owner.called()
        ));
    }
    if ask.wish.profiles.is_empty() {
        warnings.push(
            "calico: no profile is set, so all traffic is dropped; set CALICO_PROFILE, or use calicoctl container <C> profile set".to_owned(),
        );
    }
    for profile in made {
        warnings.push(format!(
            "calico: profile {profile} did not exist and was made: its members reach each other, and everything goes out"
        ));
    }
    warnings
}
