//! Putting back: what a datastore lacks of this host after it was restored from an older backup, or was emptied.
//!
//! The containers run, so their records are written again before anybody acts on their absence: from the view as it stood,
//! or from what is kept on this host's disk. With them goes what they cannot be without (pools, profiles, the record of
//! this host) as far as the view knows it; settings of the whole cluster are the operator's to restore. Everything is
//! written only where it is absent, so that hosts that do the same at the same time, and what a backup knows better, stand.
//!
//! A container that has been destroyed meanwhile gets its record back too. The next comparison with dockerd finds that and
//! frees it as if the record had never been lost.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;

use super::{Holdings, Store};
use crate::edge::etcd::{Etcd, Outcome, When, Write, to_json};
use crate::edge::reservations::Reservations;
use crate::model::claim::{Change, Claim, ClaimState, Owner, Successor};
use crate::model::endpoint::Endpoint;
use crate::model::fault::Fault;
use crate::model::key::{AssignmentKey, EndpointKey, Key};
use crate::model::name::{ContainerId, HostName, Orchestrator, ProfileName};
use crate::model::snapshot::{Record, Snapshot};
use crate::part::defaults;
use crate::plan::account::outstanding;

type Transaction = (Vec<When>, Vec<Write>);

/// An endpoint as it is kept on this host's disk.
#[derive(Debug, Clone)]
struct Kept {
    key: EndpointKey,
    endpoint: Endpoint,
    /// Whether its container starts only with a node's word: it may have no address yet, but wait for it.
    waits: bool,
}

fn absent(key: Key, value: Vec<u8>) -> Transaction {
    (vec![When::Absent(key.clone())], vec![Write::Put(key, value)])
}

/// The endpoints that are kept on a host's disk, of some containers. Blocks for as long as that is read.
fn kept(reservations: &Reservations, host: &HostName, containers: &[ContainerId]) -> Vec<Kept> {
    let mut kept = Vec::new();
    for container in containers {
        match reservations.read(container) {
            Ok(reservation) => {
                kept.extend(reservation.into_iter().flat_map(|one| {
                    let waits = one.withheld.is_some();
                    one.endpoints.into_iter().map(move |(id, endpoint)| {
                        let (host, orchestrator) = (host.clone(), Orchestrator::docker());
                        let key = EndpointKey { host, orchestrator, workload: container.workload(), endpoint: id };
                        Kept { key, endpoint, waits }
                    })
                }));
            }
            // Who settles the container says so.
            Err(fault) => tracing::debug!(%fault, "what is kept of a container is not put back"),
        }
    }
    kept
}

impl Store {
    /// The endpoints that this host keeps of some containers.
    async fn kept(&self, holdings: &Holdings, containers: Vec<ContainerId>) -> Result<Vec<Kept>, Fault> {
        let (reservations, host) = (holdings.reservations.clone(), self.host.clone());
        let read = tokio::task::spawn_blocking(move || kept(&reservations, &host, &containers));
        read.await.map_err(|error| Fault::World(format!("read what is kept of containers: {error}")))
    }

    /// What this host holds otherwise than the view says.
    pub(super) async fn outstanding(&self, holdings: &Holdings) -> Result<Option<String>, Fault> {
        let reserved = holdings.reservations.containers()?;
        let kept = self.kept(holdings, reserved.clone()).await?;
        let kept = kept.iter().map(|one| (&one.key, &one.endpoint));
        Ok(self.read(|view| outstanding(view, &self.host, &reserved, kept)))
    }

    /// Writes what the datastore `found` lacks of this host. Answers whether there was anything. `known`: the view is one
    /// of this datastore, as it was before.
    pub(super) async fn put_back(
        &self,
        etcd: &Etcd,
        holdings: &Holdings,
        reserved: &[ContainerId],
        found: &Snapshot,
        known: bool,
    ) -> Result<bool, Fault> {
        // Asked before the disk is looked at: a file goes before it is forgotten that its container is going.
        let going = self.going().clone();
        let staying: Vec<ContainerId> = reserved.iter().filter(|one| !going.contains(*one)).cloned().collect();
        let kept = self.kept(holdings, staying).await?;
        let transactions = self.read(|before| {
            let mut transactions = Loss { kept: &kept, reserved, before, found }.transactions()?;
            let recorded = found.host_ips.get(&holdings.host.name).and_then(Record::readable);
            if known && recorded != Some(&IpAddr::V4(holdings.host.ip)) {
                // Where a pool has been put back the condition of a default one does not hold any more.
                transactions.extend(defaults::wanted(&holdings.host, found)?);
            }
            Ok::<_, Fault>(transactions)
        })?;
        for (when, writes) in &transactions {
            if etcd.transact("put back what the datastore has lost", when, writes).await? != Outcome::Lost {
                let keys: Vec<String> = writes.iter().map(|write| write.key().path()).collect();
                tracing::warn!(?keys, "the datastore had lost what this host needs: put back");
            }
        }
        Ok(!transactions.is_empty())
    }
}

/// The claim of an address that the datastore has lost, as it was before, or as it must have been: that of the one which
/// does not wait, and beside it of the one which does. `None`: none of the endpoints that are kept had a part in it.
fn lost_claim(address: &AssignmentKey, kept: &[Kept], before: &Snapshot) -> Option<Claim> {
    let is_kept = |owner: &Owner| kept.iter().any(|one| owner.is(&one.key));
    if let Some(claim) = before.claims.get(address).and_then(Record::readable) {
        return if is_kept(&claim.owner) {
            Some(claim.clone())
        } else {
            claim.passed_over().filter(|next| is_kept(&next.owner))
        };
    }
    let again = |one: &Kept| Claim::bound_again(&one.key, one.key.workload.short(), String::new());
    let has_it = |one: &&Kept| one.endpoint.addresses.contains(&address.address);
    let holder = kept.iter().filter(has_it).min_by_key(|one| one.waits)?;
    let next = kept.iter().filter(has_it).find(|one| one.waits && one.key != holder.key).map(again);
    let successor = next.map(|next| Box::new(Successor { owner: next.owner, request: next.request }));
    Some(Claim { successor, ..again(holder) })
}

/// What this host keeps, and the datastore as it was and as it is: what is put back follows from these.
struct Loss<'a> {
    kept: &'a [Kept],
    /// The containers of which anything is kept here: any other of this host's has been destroyed since.
    reserved: &'a [ContainerId],
    before: &'a Snapshot,
    found: &'a Snapshot,
}

/// An endpoint on its way back.
struct Return {
    when: Vec<When>,
    writes: Vec<Write>,
    /// The pools of the addresses that it claims.
    pools: Vec<IpNet>,
    /// Whether it waits for an address, whose holder goes before.
    waits: bool,
    /// Who had an address of its in a backup, or was it, and what is left to them; `None`: nothing is.
    bereft: BTreeMap<EndpointKey, (i64, Option<Endpoint>)>,
}

impl Return {
    fn claims(&mut self, key: &AssignmentKey, when: When, claim: &Claim) -> Result<(), Fault> {
        self.when.push(when);
        self.writes.push(Write::Put(Key::Assignment(key.clone()), to_json(claim)?));
        Ok(())
    }
}

impl Loss<'_> {
    /// What is to be written so that the endpoints that are kept stand in the datastore, each in a transaction of its own:
    /// pools and profiles before those who need them, and who waits for an address after its holder. Of one that stands
    /// nothing is written but the claim of an address of its that the datastore has lost: what else it names and is not
    /// there, somebody has taken away.
    fn transactions(&self) -> Result<Vec<Transaction>, Fault> {
        let (mut all, mut last) = (Vec::new(), Vec::new());
        let (mut pools, mut profiles) = (BTreeSet::new(), BTreeSet::new());
        let mut lost_any = false;
        for one in self.kept {
            if let Some(record) = self.found.endpoints.get(&one.key) {
                all.extend(self.claims_lost(&one.key, record)?);
                continue;
            }
            let endpoint = self.before.endpoints.get(&one.key).and_then(Record::readable).unwrap_or(&one.endpoint);
            let Some(back) = self.endpoint(&one.key, endpoint)? else { continue };
            lost_any = true;
            pools.extend(back.pools);
            profiles.extend(endpoint.profiles.iter().cloned());
            if back.waits { &mut last } else { &mut all }.push((back.when, back.writes));
        }
        if lost_any && self.found.pools.is_empty() {
            pools.extend(self.before.pools.keys().copied());
        }
        let mut first = self.needed(&pools, &profiles)?;
        first.extend(all);
        first.extend(last);
        Ok(first)
    }

    /// What of some pools and profiles was there before and is not any more.
    fn needed(&self, pools: &BTreeSet<IpNet>, profiles: &BTreeSet<ProfileName>) -> Result<Vec<Transaction>, Fault> {
        let (before, found) = (self.before, self.found);
        let mut all = Vec::new();
        for pool in pools.iter().filter(|pool| !found.pools.contains_key(*pool)) {
            if let Some(record) = before.pools.get(pool).and_then(Record::readable) {
                all.push(absent(Key::Pool(*pool), to_json(record)?));
            }
        }
        for profile in profiles {
            let rules = before.rules.get(profile).filter(|_| !found.rules.contains_key(profile));
            if let Some(rules) = rules.and_then(Record::readable) {
                all.push(absent(Key::ProfileRules(profile.clone()), to_json(rules)?));
            }
            let tags = before.tags.get(profile).filter(|_| !found.tags.contains_key(profile));
            if let Some(tags) = tags.and_then(Record::readable) {
                all.push(absent(Key::ProfileTags(profile.clone()), to_json(tags)?));
            }
        }
        Ok(all)
    }

    /// An endpoint with all its addresses; `None` if one of them is somebody else's by now, or in no pool.
    fn endpoint(&self, key: &EndpointKey, endpoint: &Endpoint) -> Result<Option<Return>, Fault> {
        let path = Key::Endpoint(key.clone());
        let mut back = Return {
            when: vec![When::Absent(path.clone())],
            writes: vec![Write::Put(path, to_json(endpoint)?)],
            pools: Vec::new(),
            waits: false,
            bereft: BTreeMap::new(),
        };
        if !self.replaces_others(key, endpoint, &mut back)? {
            return Ok(None);
        }
        for address in &endpoint.addresses {
            let pool = self.found.pool_of(*address).or_else(|| self.before.pool_of(*address));
            let Some(pool) = pool.map(|pool| pool.cidr) else { return Ok(None) };
            let claim = AssignmentKey { pool, address: *address };
            let is_its = match self.found.claims.get(&claim) {
                Some(record) => self.found_claim(key, &claim, record, &mut back)?,
                None => self.lost_claim(key, &claim, &mut back)?,
            };
            if !is_its {
                return Ok(None);
            }
        }
        for (owner, (revision, left)) in std::mem::take(&mut back.bereft) {
            let path = Key::Endpoint(owner);
            back.when.push(When::At(path.clone(), revision));
            back.writes.push(match left {
                Some(left) => Write::Put(path, to_json(&left)?),
                None => Write::Delete(path),
            });
        }
        Ok(Some(back))
    }

    /// Has an endpoint take the place of what a backup has of its container: it was taken out since, and added again. Answers
    /// whether it may.
    fn replaces_others(&self, key: &EndpointKey, endpoint: &Endpoint, back: &mut Return) -> Result<bool, Fault> {
        let of_container =
            self.found.endpoints_of_workload(key.host.clone(), key.orchestrator.clone(), key.workload.clone());
        for (other, record) in of_container.filter(|(other, _)| self.is_replaced(other)) {
            back.bereft.insert(other.clone(), (record.revision, None));
            for (claim, revision, held) in self.found.parts_of(&other.endpoint) {
                // What it has from the other is claimed with the rest.
                if endpoint.addresses.contains(&claim.address) {
                    continue;
                }
                let path = Key::Assignment(claim.clone());
                let write = match held.without(other) {
                    Change::None => continue,
                    Change::Free => Write::Delete(path.clone()),
                    Change::Becomes(heir) if heir.state == ClaimState::Bound => {
                        Write::Put(path.clone(), to_json(&*heir)?)
                    }
                    // Somebody's create is under way, and goes on from what stands there.
                    Change::Becomes(_) => return Ok(false),
                };
                back.when.push(When::At(path, revision));
                back.writes.push(write);
            }
        }
        Ok(true)
    }

    /// Whether an endpoint is one that its container, of which others are kept, has no more.
    fn is_replaced(&self, key: &EndpointKey) -> bool {
        let mut kept = self.kept.iter().filter(|one| one.key.workload == key.workload).peekable();
        kept.peek().is_some() && kept.all(|one| one.key != *key)
    }

    /// Has an endpoint take the claim of its address that the datastore has. Answers whether it may.
    fn found_claim(
        &self,
        key: &EndpointKey,
        claim: &AssignmentKey,
        record: &Record<Claim>,
        back: &mut Return,
    ) -> Result<bool, Fault> {
        let Some(held) = record.readable() else { return Ok(false) };
        if held.owners().any(|owner| owner.is(key)) {
            return Ok(true);
        }
        let is_own = |owner: &Owner| owner.host == key.host && owner.orchestrator == key.orchestrator;
        let becomes = if held.owners().all(|owner| is_own(owner) && self.has_lost(owner, claim.address)) {
            if !held.owners().filter_map(Owner::endpoint).all(|owner| self.bereave(owner, claim.address, back)) {
                return Ok(false);
            }
            Claim::bound_again(key, key.workload.short(), String::new())
        } else {
            // As it was in the midst of the create. Somebody else's stays so; that they collide is told where the
            // container is settled.
            let was_made = held.pending().any(|(owner, _)| owner.host == key.host && owner.endpoint == key.endpoint);
            let bound = held.bound_to(&key.endpoint, &key.workload).filter(|_| was_made);
            let Some(bound) = bound else { return Ok(false) };
            bound
        };
        back.claims(claim, When::At(Key::Assignment(claim.clone()), record.revision), &becomes)?;
        Ok(true)
    }

    /// Whether this host knows that one of its own has an address no more, of which a backup knows nothing: it has been
    /// destroyed since, or has handed it over.
    fn has_lost(&self, owner: &Owner, address: IpAddr) -> bool {
        let Some(workload) = &owner.workload else { return false };
        let mut kept = self.kept.iter().filter(|one| owner.is(&one.key));
        kept.any(|one| !one.endpoint.addresses.contains(&address))
            || !self.reserved.iter().any(|id| id.workload() == *workload)
            || owner.endpoint().is_some_and(|owner| self.is_replaced(&owner))
    }

    /// Takes an address from the record that a backup has of somebody who has lost it. Answers whether it can be read.
    fn bereave(&self, owner: EndpointKey, address: IpAddr, back: &mut Return) -> bool {
        let Some(record) = self.found.endpoints.get(&owner) else { return true };
        let Some(found) = record.readable() else { return false };
        // What is kept of it says to whom it has gone.
        let left = self.kept.iter().find(|one| one.key == owner).map_or(found, |one| &one.endpoint);
        let (_, left) = back.bereft.entry(owner).or_insert_with(|| (record.revision, Some(left.clone())));
        if let Some(left) = left {
            left.addresses.remove(&address);
        }
        true
    }

    /// Has an endpoint claim an address of its that nobody has. Answers whether it may.
    fn lost_claim(&self, key: &EndpointKey, claim: &AssignmentKey, back: &mut Return) -> Result<bool, Fault> {
        let Some(lost) = lost_claim(claim, self.kept, self.before) else { return Ok(false) };
        let path = Key::Assignment(claim.clone());
        if !lost.owner.is(key) {
            // Its holder's transaction writes the claim, with both in it.
            back.waits = true;
            back.when.push(When::Present(path));
            return Ok(lost.owners().any(|owner| owner.is(key)));
        }
        back.claims(claim, When::Absent(path), &lost)?;
        back.pools.push(claim.pool);
        Ok(true)
    }

    /// The claims that a record has lost: an address without one would be given to somebody else too.
    fn claims_lost(&self, key: &EndpointKey, record: &Record<Endpoint>) -> Result<Vec<Transaction>, Fault> {
        let mut all = Vec::new();
        for address in record.readable().into_iter().flat_map(|endpoint| &endpoint.addresses) {
            let Some(pool) = self.found.pool_of(*address).map(|pool| pool.cidr) else { continue };
            let claim = AssignmentKey { pool, address: *address };
            let is_held = self.found.claims.contains_key(&claim)
                || self.found.claims_elsewhere(pool).any(|(held, _)| held == *address);
            let lost = (!is_held).then(|| lost_claim(&claim, self.kept, self.before)).flatten();
            let Some(lost) = lost.filter(|lost| lost.owner.is(key)) else { continue };
            let path = Key::Assignment(claim);
            let when = vec![
                When::At(Key::Endpoint(key.clone()), record.revision),
                When::Present(Key::Pool(pool)),
                When::Absent(path.clone()),
            ];
            all.push((when, vec![Write::Put(path, to_json(&lost)?)]));
        }
        Ok(all)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::snapshot::tests::from_json;

    fn lacking(
        kept: &[Kept],
        reserved: &[ContainerId],
        before: &Snapshot,
        found: &Snapshot,
    ) -> Result<Vec<Transaction>, Fault> {
        Loss { kept, reserved, before, found }.transactions()
    }

    const WHOLE: &str = r#"{
        "/calico/v1/Ready": "true",
        "/calico/v1/ipam/v4/pool/10.0.0.0-8": {"cidr": "10.0.0.0/8"},
        "/calico/v1/policy/profile/web/rules": {"inbound_rules": [{"action": "allow"}], "outbound_rules": []},
        "/calico/v1/policy/profile/web/tags": ["web"],
        "/calico/v1/host/h1/workload/docker/WORKLOAD/endpoint/aaaa1111aaaa1111aaaa1111aaaa1111":
            {"state": "active", "name": "caliaaaa1111aaa", "profile_ids": ["web"], "ipv4_nets": ["10.0.0.1/32"]}
    }"#;

    fn whole() -> Snapshot {
        from_json(&WHOLE.replace("WORKLOAD", &"c".repeat(64)))
    }

    fn kept() -> Vec<Kept> {
        let whole = whole();
        let (key, record) = whole.endpoints.iter().next().unwrap();
        vec![Kept { key: key.clone(), endpoint: record.readable().unwrap().clone(), waits: false }]
    }

    /// Who waited for an address became its owner, and its holder, which ran, went dark.
    #[test]
    fn who_waits_for_an_address_is_put_back_behind_its_holder_in_whatever_order_they_are_read() {
        let old = kept().remove(0);
        let mut new = Kept { waits: true, ..old.clone() };
        new.key.workload = "d".repeat(64).parse().unwrap();
        new.key.endpoint = "b".repeat(32).parse().unwrap();
        let claimed = {
            let mut claim = Claim::bound_again(&old.key, "", String::new());
            let owner = Claim::bound_again(&new.key, "", String::new()).owner;
            claim.successor = Some(Box::new(Successor { owner, request: "r2".to_owned() }));
            String::from_utf8(to_json(&claim).unwrap()).unwrap()
        };
        let with_claim = WHOLE.replace("WORKLOAD", &"c".repeat(64)).replacen(
            '{',
            &format!(r#"{{"/calico/v1/ipam/v4/assignment/10.0.0.0-8/10.0.0.1": {claimed},"#),
            1,
        );
        let pool = from_json(r#"{"/calico/v1/ipam/v4/pool/10.0.0.0-8": {"cidr": "10.0.0.0/8"}}"#);
        for before in [Snapshot::default(), from_json(&with_claim)] {
            for kept in [[old.clone(), new.clone()], [new.clone(), old.clone()]] {
                let all = lacking(&kept, &[], &before, &pool).unwrap();
                let of = |key: &EndpointKey| {
                    let put = |write: &Write| *write.key() == Key::Endpoint(key.clone());
                    all.iter().position(|(_, writes)| writes.iter().any(put)).unwrap()
                };
                let (holders, waiting) = (&all[of(&old.key)].1, &all[of(&new.key)]);
                let Write::Put(Key::Assignment(path), claim) = &holders[1] else { panic!("{holders:?}") };
                let claim: Claim = serde_json::from_slice(claim).unwrap();
                assert!(claim.owner.is(&old.key) && claim.successor.unwrap().owner.is(&new.key));
                assert!(of(&old.key) < of(&new.key), "{all:?}");
                assert_eq!(waiting.1.len(), 1, "{waiting:?}");
                assert!(waiting.0.contains(&When::Present(Key::Assignment(path.clone()))), "{waiting:?}");
            }
            // Its holder is gone, so it waits no more.
            let alone = lacking(&[new.clone()], &[], &before, &pool).unwrap();
            let Some(Write::Put(_, claim)) = alone.last().and_then(|(_, writes)| writes.get(1)) else {
                panic!("{alone:?}")
            };
            let claim: Claim = serde_json::from_slice(claim).unwrap();
            assert!(claim.owner.is(&new.key) && claim.successor.is_none());
        }
    }

    /// What a datastore holds of `WHOLE`, with this claim of its address.
    fn with_claim(claim: &Claim) -> Snapshot {
        let claim = String::from_utf8(to_json(claim).unwrap()).unwrap();
        let text = WHOLE.replace("WORKLOAD", &"c".repeat(64));
        from_json(&text.replacen(
            '{',
            &format!(r#"{{"/calico/v1/ipam/v4/assignment/10.0.0.0-8/10.0.0.1": {claim},"#),
            1,
        ))
    }

    /// A claim that was taken away by itself was never written again, and the address given out a second time.
    #[test]
    fn the_claim_of_a_record_that_stands_is_put_back_if_it_is_lost_and_the_address_is_nobodys() {
        let [one] = <[Kept; 1]>::try_from(kept()).unwrap();
        let claim = Claim::bound_again(&one.key, "", String::new());
        assert_eq!(lacking(&kept(), &[], &whole(), &with_claim(&claim)).unwrap(), []);
        let all = lacking(&kept(), &[], &Snapshot::default(), &whole()).unwrap();
        let [(when, writes)] = all.as_slice() else { panic!("{all:?}") };
        let revision = whole().endpoints[&one.key].revision;
        assert!(when.contains(&When::At(Key::Endpoint(one.key.clone()), revision)), "{when:?}");
        let [Write::Put(path, value)] = writes.as_slice() else { panic!("{writes:?}") };
        assert!(when.contains(&When::Absent(path.clone())), "{when:?}");
        assert!(serde_json::from_slice::<Claim>(value).unwrap().owner.is(&one.key));
    }

    /// A profile that an operator had removed, so that what it allowed is dropped, was there again, with all its rules.
    #[test]
    fn what_a_record_that_stands_names_and_is_not_there_stays_away() {
        let claim = Claim::bound_again(&kept()[0].key, "", String::new());
        let mut found = with_claim(&claim);
        found.rules.clear();
        found.tags.clear();
        found.pools.clear();
        assert_eq!(lacking(&kept(), &[], &with_claim(&claim), &found).unwrap(), []);
    }

    /// The container ran and had no record: its address went to the next one who asked.
    #[test]
    fn a_claim_that_a_backup_holds_from_the_midst_of_the_create_is_the_containers() {
        let [one] = <[Kept; 1]>::try_from(kept()).unwrap();
        let mut claim = Claim::bound_again(&one.key, "", String::new());
        claim.owner.workload = None;
        let mut found = with_claim(&claim);
        found.endpoints.clear();
        let all = lacking(&kept(), &[], &Snapshot::default(), &found).unwrap();
        let [(when, writes)] = all.as_slice() else { panic!("{all:?}") };
        assert_eq!((when.len(), writes.len()), (2, 2), "{all:?}");
        let Write::Put(Key::Assignment(_), value) = &writes[1] else { panic!("{writes:?}") };
        assert!(serde_json::from_slice::<Claim>(value).unwrap().owner.is(&one.key));
        claim.owner.host = "h2".parse().unwrap();
        let mut found = with_claim(&claim);
        found.endpoints.clear();
        assert_eq!(lacking(&kept(), &[], &Snapshot::default(), &found).unwrap(), [], "another host's");
    }

    /// Its chains went and its flows were cut, until the destroyed one was found to be gone; meanwhile the address was free.
    #[test]
    fn who_got_the_address_of_a_container_that_was_destroyed_since_the_backup_has_it() {
        let [one] = <[Kept; 1]>::try_from(kept()).unwrap();
        let mut old = one.key.clone();
        old.workload = "d".repeat(64).parse().unwrap();
        old.endpoint = "b".repeat(32).parse().unwrap();
        let of = |host: &str| {
            let mut old = old.clone();
            old.host = host.parse().unwrap();
            let record = serde_json::to_string(&one.endpoint).unwrap();
            let claim = String::from_utf8(to_json(&Claim::bound_again(&old, "", String::new())).unwrap()).unwrap();
            from_json(&format!(
                r#"{{"/calico/v1/ipam/v4/pool/10.0.0.0-8": {{"cidr": "10.0.0.0/8"}}, "{}": {record},
                  "/calico/v1/ipam/v4/assignment/10.0.0.0-8/10.0.0.1": {claim}}}"#,
                Key::Endpoint(old).path()
            ))
        };
        let found = of("h1");
        let all = lacking(&kept(), &[], &Snapshot::default(), &found).unwrap();
        let [(when, writes)] = all.as_slice() else { panic!("{all:?}") };
        let [Write::Put(own, _), Write::Put(_, claim), Write::Put(olds, left)] = writes.as_slice() else {
            panic!("{writes:?}")
        };
        assert_eq!((own, olds), (&Key::Endpoint(one.key.clone()), &Key::Endpoint(old.clone())));
        assert!(serde_json::from_slice::<Claim>(claim).unwrap().owner.is(&one.key));
        assert!(serde_json::from_slice::<Endpoint>(left).unwrap().addresses.is_empty());
        assert!(when.contains(&When::At(olds.clone(), found.endpoints[&old].revision)), "{when:?}");
        // Not if it may be there, nor if it is another host's to say.
        let reserved = ["d".repeat(64).parse().unwrap()];
        assert_eq!(lacking(&kept(), &reserved, &Snapshot::default(), &found).unwrap(), []);
        assert_eq!(lacking(&kept(), &[], &Snapshot::default(), &of("h2")).unwrap(), []);
    }

    /// The one that ran went dark, and the one that had handed its address over could start with it again.
    #[test]
    fn who_has_handed_an_address_over_since_the_backup_does_not_get_it_back() {
        let [new] = <[Kept; 1]>::try_from(kept()).unwrap();
        let mut old = Kept { ..new.clone() };
        old.key.workload = "d".repeat(64).parse().unwrap();
        old.key.endpoint = "b".repeat(32).parse().unwrap();
        let record = serde_json::to_string(&old.endpoint).unwrap();
        let claim = String::from_utf8(to_json(&Claim::bound_again(&old.key, "", String::new())).unwrap()).unwrap();
        let found = from_json(&format!(
            r#"{{"/calico/v1/ipam/v4/pool/10.0.0.0-8": {{"cidr": "10.0.0.0/8"}}, "{}": {record},
              "/calico/v1/ipam/v4/assignment/10.0.0.0-8/10.0.0.1": {claim}}}"#,
            Key::Endpoint(old.key.clone()).path()
        ));
        let reserved = [&old, &new].map(|one| one.key.workload.as_str().parse().unwrap());
        // As long as it is kept with the address, it has it.
        let all = lacking(&[old.clone(), new.clone()], &reserved, &Snapshot::default(), &found).unwrap();
        assert_eq!(all, []);
        old.endpoint.addresses.clear();
        old.endpoint.mac = None;
        let all = lacking(&[old.clone(), new.clone()], &reserved, &Snapshot::default(), &found).unwrap();
        let [(when, writes)] = all.as_slice() else { panic!("{all:?}") };
        let [Write::Put(own, _), Write::Put(_, claim), Write::Put(olds, left)] = writes.as_slice() else {
            panic!("{writes:?}")
        };
        assert_eq!((own, olds), (&Key::Endpoint(new.key.clone()), &Key::Endpoint(old.key.clone())));
        assert!(serde_json::from_slice::<Claim>(claim).unwrap().owner.is(&new.key));
        assert_eq!(serde_json::from_slice::<Endpoint>(left).unwrap(), old.endpoint, "as it is kept");
        assert!(when.contains(&When::At(olds.clone(), found.endpoints[&old.key].revision)), "{when:?}");
    }

    /// It had two endpoints then, and was dark until somebody removed one.
    #[test]
    fn a_container_that_was_taken_out_and_added_again_since_the_backup_has_its_new_endpoint_alone() {
        let [old] = <[Kept; 1]>::try_from(kept()).unwrap();
        let found = with_claim(&Claim::bound_again(&old.key, "", String::new()));
        let reserved = ["c".repeat(64).parse().unwrap()];
        let mut new = old.clone();
        new.key.endpoint = "b".repeat(32).parse().unwrap();
        let (record, other) = (Key::Endpoint(old.key.clone()), "10.0.0.2".parse().unwrap());
        // With the same address again, and with another one.
        for addresses in [old.endpoint.addresses.clone(), BTreeSet::from([other])] {
            new.endpoint.addresses.clone_from(&addresses);
            let all = lacking(&[new.clone()], &reserved, &Snapshot::default(), &found).unwrap();
            let [(when, writes)] = all.as_slice() else { panic!("{all:?}") };
            assert!(when.contains(&When::At(record.clone(), found.endpoints[&old.key].revision)), "{when:?}");
            assert!(writes.contains(&Write::Delete(record.clone())), "{writes:?}");
            let claims = writes.iter().filter_map(|write| match write {
                Write::Put(Key::Assignment(key), claim) => {
                    assert!(serde_json::from_slice::<Claim>(claim).unwrap().owner.is(&new.key), "{writes:?}");
                    Some((key.address, true))
                }
                Write::Delete(Key::Assignment(key)) => Some((key.address, false)),
                _ => None,
            });
            let wanted = if addresses.contains(&other) {
                BTreeMap::from([(other, true), ("10.0.0.1".parse().unwrap(), false)])
            } else {
                BTreeMap::from([("10.0.0.1".parse().unwrap(), true)])
            };
            assert_eq!(claims.collect::<BTreeMap<_, _>>(), wanted);
        }
        // One that is kept as well stays.
        let both = lacking(&[old.clone(), new.clone()], &reserved, &Snapshot::default(), &found).unwrap();
        assert!(both.iter().all(|(_, writes)| !writes.contains(&Write::Delete(record.clone()))), "{both:?}");
    }

    fn written(before: &Snapshot, found: &Snapshot) -> Vec<String> {
        let all = lacking(&kept(), &[], before, found).unwrap();
        all.iter().flat_map(|(_, writes)| writes).map(|write| write.key().path()).collect()
    }

    #[test]
    fn of_a_datastore_that_was_emptied_all_that_a_container_needs_is_put_back_and_nothing_where_it_is_there() {
        let paths = written(&whole(), &Snapshot::default());
        let ends: Vec<&str> = paths.iter().map(|path| path.rsplit('/').next().unwrap()).collect();
        assert_eq!(ends, ["10.0.0.0-8", "rules", "tags", "aaaa1111aaaa1111aaaa1111aaaa1111", "10.0.0.1"]);
        let claim = Claim::bound_again(&kept()[0].key, "", String::new());
        assert_eq!(written(&whole(), &with_claim(&claim)), Vec::<String>::new());
    }

    #[test]
    fn without_a_view_of_before_the_record_is_put_back_where_there_is_a_pool_for_it() {
        let empty = Snapshot::default();
        assert_eq!(written(&empty, &empty), Vec::<String>::new());
        let pool = from_json(r#"{"/calico/v1/ipam/v4/pool/10.0.0.0-8": {"cidr": "10.0.0.0/8"}}"#);
        assert_eq!(written(&empty, &pool).len(), 2);
    }

    #[test]
    fn what_another_has_got_meanwhile_stays_his() {
        let owner = r#"{"host":"h2","orchestrator":"docker","workload":null,"endpoint":"bbbb1111bbbb1111bbbb1111bbbb1111","name":"x","since":""}"#;
        let claim = format!(r#"{{"v":1,"state":"bound","owner":{owner},"request":"","successor":null}}"#);
        let found = from_json(&format!(
            r#"{{"/calico/v1/ipam/v4/pool/10.0.0.0-8": {{"cidr": "10.0.0.0/8"}}, "/calico/v1/ipam/v4/assignment/10.0.0.0-8/10.0.0.1": {claim}}}"#
        ));
        assert!(
            written(&whole(), &found).iter().all(|path| !path.contains("endpoint") && !path.contains("assignment"))
        );
    }
}
