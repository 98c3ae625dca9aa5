//! Offers: the addresses that meet a wish, out of the pools and claims as the view has them.
//!
//! The view may be behind etcd, so what is chosen here is only tried: the transaction that claims it decides, and whoever loses
//! it comes again, with what he lost told as `lost`.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

use super::address::{Reserved, choose};
use crate::model::claim::{Claim, ClaimState, Held, Owner, Successor};
use crate::model::fault::Fault;
use crate::model::key::AssignmentKey;
use crate::model::name::HostName;
use crate::model::pool::{Family, Pool};
use crate::model::snapshot::Snapshot;
use crate::model::wish::AddressWish;

/// Addresses that a create may wait for, and how their claims stand.
pub(crate) type Inheritance = BTreeMap<AssignmentKey, Held>;

/// The last address that was chosen of each pool: an automatic choice goes on behind it.
pub(crate) type Cursors = BTreeMap<IpNet, IpAddr>;

/// What one create may have.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Offer<'o> {
    pub(crate) snapshot: &'o Snapshot,
    pub(crate) reserved: &'o Reserved,
    pub(crate) inheritance: &'o Inheritance,
    /// Whether containers are given IPv6 on this host.
    pub(crate) ipv6: bool,
}

/// An address on its way to a claim.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Chosen {
    pub(crate) key: AssignmentKey,
    /// Asked for by name, so no other will do.
    pub(crate) exactly: bool,
    /// The claim of the container whose place is taken.
    pub(crate) held: Option<Held>,
}

impl Chosen {
    /// The claim as it is while the create is under way.
    pub(crate) fn claim(&self, owner: &Owner, request: &str) -> Claim {
        let (owner, request) = (owner.clone(), request.to_owned());
        match &self.held {
            Some(held) => Claim { successor: Some(Box::new(Successor { owner, request })), ..held.claim.clone() },
            None => Claim { v: 1, state: ClaimState::Pending, owner, request, successor: None },
        }
    }
}

impl Offer<'_> {
    /// Chooses an address for every item of a wish, none twice and none of the `lost`.
    ///
    /// # Errors
    /// All that cannot be had, in one text. `Refusal` or `Conflict` after the first of them, where `Refusal` is what no wait
    /// helps against, `Conflict` what somebody else has.
    pub(crate) fn choose(
        self,
        wishes: &[AddressWish],
        lost: &BTreeSet<IpAddr>,
        cursors: &mut Cursors,
    ) -> Result<Vec<Chosen>, Fault> {
        let (mut chosen, mut besides) = (Vec::new(), lost.clone());
        let mut faults = Vec::new();
        // Addresses asked for by name first, so that an automatic choice does not take one of them.
        let (exact, any): (Vec<&AddressWish>, Vec<&AddressWish>) =
            wishes.iter().partition(|wish| matches!(wish, AddressWish::Exactly(_)));
        for wish in exact.into_iter().chain(any) {
            let one = match wish {
                AddressWish::Exactly(address) => self.exactly(*address),
                AddressWish::Any(family) => self.any(*family, None, &besides, cursors),
                AddressWish::From(net) => self.any(Family::of_net(*net), Some(*net), &besides, cursors),
            };
            match one {
                Ok(one) => {
                    besides.insert(one.key.address);
                    chosen.push(one);
                }
                Err(fault) => faults.push(fault),
            }
        }
        let texts: Vec<String> = faults.iter().map(ToString::to_string).collect();
        match faults.into_iter().next() {
            None => Ok(chosen),
            Some(Fault::Conflict(_)) => Err(Fault::Conflict(texts.join("; "))),
            Some(_) => Err(Fault::Refusal(texts.join("; "))),
        }
    }

    fn exactly(self, address: IpAddr) -> Result<Chosen, Fault> {
        let doing = format!("claim {address}");
        self.gives(Family::of(address)).map_err(|fault| fault.during(&doing))?;
        if let Some(reason) = self.reserved.reason(address) {
            return Err(Fault::Refusal(format!("{doing}: {reason}")));
        }
        let Some(pool) = self.snapshot.pool_of(address).filter(|pool| pool.gives()) else {
            let pools = self.pools(Family::of(address));
            return Err(Fault::Refusal(format!("{doing}: it is in no pool; the pools are: {pools}")));
        };
        let key = AssignmentKey { pool: pool.cidr, address };
        let Some(record) = self.snapshot.claims.get(&key) else {
            // Its holder's pool was taken away by force.
            let elsewhere = self.snapshot.claims_elsewhere(pool.cidr).find(|(held, _)| *held == address);
            return match elsewhere {
                Some((_, record)) => Err(taken(address, record.readable(), |host| self.snapshot.keeps_whole(host))),
                None => Ok(Chosen { key, exactly: true, held: None }),
            };
        };
        match self.inheritance.get(&key).cloned() {
            Some(held) => Ok(Chosen { key, exactly: true, held: Some(held) }),
            None => Err(taken(address, record.readable(), |host| self.snapshot.keeps_whole(host))),
        }
    }

    /// A free address of a family: of the pool with this CIDR, or of any that `auto` may choose from.
    fn any(
        self,
        family: Family,
        only: Option<IpNet>,
        besides: &BTreeSet<IpAddr>,
        cursors: &mut Cursors,
    ) -> Result<Chosen, Fault> {
        self.gives(family).map_err(|fault| fault.during("claim an address"))?;
        let is_wanted = |pool: &&Pool| only.map_or_else(|| pool.chooses(), |net| net == pool.cidr && pool.gives());
        let mut full = Vec::new();
        for pool in self.snapshot.pools_of(family).filter(is_wanted).map(|pool| pool.cidr) {
            let after = match cursors.entry(pool) {
                Entry::Occupied(cursor) => Some(*cursor.get()),
                Entry::Vacant(cursor) => last_given(self.snapshot, pool).map(|last| *cursor.insert(last)),
            };
            let claimed = |from| self.snapshot.claims_of_pool(pool, from).map(|(address, _)| address);
            let besides: BTreeSet<IpAddr> = self
                .snapshot
                .claims_elsewhere(pool)
                .map(|(address, _)| address)
                .chain(besides.iter().copied())
                .collect();
            if let Some(address) = choose(pool, after, claimed, &besides, self.reserved) {
                cursors.insert(pool, address);
                return Ok(Chosen { key: AssignmentKey { pool, address }, exactly: false, held: None });
            }
            full.push(pool.to_string());
        }
        Err(match (full.is_empty(), only) {
            (true, Some(net)) => {
                let pools = self.pools(family);
                Fault::Refusal(format!("claim an address of {net}: it is not a pool; the pools are: {pools}"))
            }
            (true, None) => Fault::Refusal(
                "claim an address: there is no pool to choose from; make one with calicoctl pool add".to_owned(),
            ),
            (false, _) => Fault::Conflict(format!(
                "claim an address: every address of {} is taken; remove containers or add a pool",
                full.join(", ")
            )),
        })
    }

    /// # Errors
    /// `Refusal` if containers are not given addresses of a family on this host.
    fn gives(self, family: Family) -> Result<(), Fault> {
        if family == Family::V4 || self.ipv6 {
            return Ok(());
        }
        Err(Fault::Refusal("this host gives no IPv6, for the reason that the node's log told at its start".to_owned()))
    }

    /// The pools of a family, in words.
    fn pools(self, family: Family) -> String {
        let pools: Vec<String> = self.snapshot.pools_of(family).map(|pool| pool.cidr.to_string()).collect();
        pools.join(", ")
    }
}

/// Has the next automatic choice from a pool step over so many addresses behind this one.
pub(crate) fn step_over(cursors: &mut Cursors, from: &AssignmentKey, addresses: u16) {
    let behind = match from.address {
        IpAddr::V4(address) => {
            address.to_bits().checked_add(addresses.into()).map(|bits| Ipv4Addr::from_bits(bits).into())
        }
        IpAddr::V6(address) => {
            address.to_bits().checked_add(addresses.into()).map(|bits| Ipv6Addr::from_bits(bits).into())
        }
    };
    // From behind a pool's end the choice begins anew.
    cursors.insert(from.pool, behind.unwrap_or(from.address));
}

/// The newest claim of a pool: where an automatic choice goes on after a restart.
fn last_given(snapshot: &Snapshot, pool: IpNet) -> Option<IpAddr> {
    let of_pool = snapshot.claims_of_pool(pool, pool.network());
    of_pool.max_by_key(|(_, record)| record.revision).map(|(address, _)| address)
}

/// That an address is somebody else's; `None` for a claim that cannot be read.
pub(crate) fn taken(address: IpAddr, claim: Option<&Claim>, is_own: impl Fn(&HostName) -> bool) -> Fault {
    let holder = claim.map_or_else(|| "an unknown owner".to_owned(), Claim::holder);
    let elsewhere = claim.map(|claim| &claim.owner.host).filter(|host| !is_own(host));
    let advice = elsewhere.map(|host| {
        format!("; if that host is no more, free it by calicoctl node remove --hostname={host} --remove-endpoints")
    });
    Fault::Conflict(format!("claim {address}: already held by {holder}{}", advice.unwrap_or_default()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::snapshot::Change;
    use crate::model::snapshot::tests::from_json;

    const POOLS: &str = r#"{
        "/calico/v1/ipam/v4/pool/10.1.0.0-29": {"cidr": "10.1.0.0/29"},
        "/calico/v1/ipam/v4/pool/10.2.0.0-30": {"cidr": "10.2.0.0/30", "ipam": false},
        "/calico/v1/ipam/v4/pool/10.3.0.0-30": {"cidr": "10.3.0.0/30", "disabled": true},
        "/calico/v1/ipam/v6/pool/fd00::-64": {"cidr": "fd00::/64"}
    }"#;

    fn claim(name: &str) -> Claim {
        let owner = Owner {
            host: "h2".parse().unwrap(),
            orchestrator: crate::model::name::Orchestrator::docker(),
            workload: None,
            endpoint: "1".repeat(32).parse().unwrap(),
            name: name.to_owned(),
            since: String::new(),
        };
        Claim { v: 1, state: ClaimState::Bound, owner, request: "aa".to_owned(), successor: None }
    }

    /// The pools, with an address held by `name` at a revision.
    fn with(held: &[(&str, i64)]) -> Snapshot {
        let mut snapshot = from_json(POOLS);
        for (address, revision) in held {
            let path = format!("/calico/v1/ipam/v4/assignment/10.1.0.0-29/{address}");
            let value = Some(serde_json::to_vec(&claim(&format!("holder of {address}"))).unwrap());
            assert!(snapshot.apply(&Change { revision: *revision, path, value }).is_some());
        }
        snapshot
    }

    struct Case {
        snapshot: Snapshot,
        inheritance: Inheritance,
        cursors: Cursors,
        lost: BTreeSet<IpAddr>,
        ipv6: bool,
    }

    fn case(snapshot: Snapshot) -> Case {
        Case { snapshot, inheritance: Inheritance::new(), cursors: Cursors::new(), lost: BTreeSet::new(), ipv6: true }
    }

    impl Case {
        fn chosen(&mut self, wishes: &str) -> Result<Vec<Chosen>, Fault> {
            let wishes: Vec<AddressWish> = wishes.split(',').map(|wish| wish.parse().unwrap()).collect();
            let reserved = Reserved::new(&self.snapshot, Vec::new());
            let offer = Offer {
                snapshot: &self.snapshot,
                reserved: &reserved,
                inheritance: &self.inheritance,
                ipv6: self.ipv6,
            };
            offer.choose(&wishes, &self.lost, &mut self.cursors)
        }

        /// The addresses, or the kind and the text of the fault.
        fn say(&mut self, wishes: &str) -> String {
            match self.chosen(wishes) {
                Ok(chosen) => chosen.iter().map(|one| one.key.address.to_string()).collect::<Vec<_>>().join(" "),
                Err(fault) => format!("{}: {fault}", fault.status()),
            }
        }
    }

    #[test]
    fn an_address_asked_for_by_name_goes_before_automatic_ones_and_none_is_chosen_twice() {
        let mut case = case(with(&[]));
        assert_eq!(case.say("auto,10.1.0.1,10.1.0.0/29,ipv6"), "10.1.0.1 10.1.0.2 10.1.0.3 fd00::1");
        // On behind what was chosen last, and never what was lost to somebody else.
        case.lost.insert("10.1.0.4".parse().unwrap());
        assert_eq!(case.say("auto"), "10.1.0.5");
    }

    #[test]
    fn after_a_restart_automatic_addresses_go_on_behind_the_newest_claim() {
        assert_eq!(case(with(&[("10.1.0.4", 9), ("10.1.0.5", 3)])).say("auto"), "10.1.0.6");
        assert_eq!(case(with(&[("10.1.0.4", 3), ("10.1.0.6", 9)])).say("auto"), "10.1.0.1");
    }

    /// All hosts of a cluster chose the same address each time, and one of them got it.
    #[test]
    fn who_steps_aside_goes_on_behind_the_addresses_that_it_steps_over_and_from_the_start_behind_the_last() {
        let mut case = case(from_json(r#"{"/calico/v1/ipam/v4/pool/10.1.0.0-24": {"cidr": "10.1.0.0/24"}}"#));
        let first = case.chosen("auto").unwrap().remove(0).key;
        assert_eq!(first.address.to_string(), "10.1.0.1");
        for (by, next) in [(0, "10.1.0.2"), (100, "10.1.0.102"), (1000, "10.1.0.1"), (u16::MAX, "10.1.0.1")] {
            step_over(&mut case.cursors, &first, by);
            assert_eq!(case.say("auto"), next);
        }
    }

    #[test]
    fn pools_that_auto_must_not_take_from_give_to_who_names_them_unless_they_are_disabled() {
        let mut case = case(with(&[]));
        assert_eq!(case.say("10.2.0.0/30,10.2.0.2"), "10.2.0.2 10.2.0.1");
        let refused = case.say("10.3.0.0/30");
        assert!(refused.starts_with("400: claim an address of 10.3.0.0/30: it is not a pool"), "{refused}");
        let refused = case.say("10.3.0.1");
        assert!(refused.starts_with("400: claim 10.3.0.1: it is in no pool"), "{refused}");
        case.snapshot = from_json("{}");
        assert!(case.say("auto").starts_with("400: claim an address: there is no pool to choose from"));
    }

    #[test]
    fn all_that_cannot_be_had_is_told_at_once_with_the_kind_of_the_first() {
        let taken: Vec<String> = (1..=6).map(|last| format!("10.1.0.{last}")).collect();
        let taken: Vec<(&str, i64)> = taken.iter().map(|address| (address.as_str(), 1)).collect();
        let mut case = case(with(&taken));
        case.ipv6 = false;
        let refused = case.say("10.1.0.3,auto,ipv6");
        assert!(refused.starts_with("409: claim 10.1.0.3: already held by "), "{refused}");
        for part in ["holder of 10.1.0.3", "every address of 10.1.0.0/29 is taken", "gives no IPv6"] {
            assert!(refused.contains(part), "{part} in {refused}");
        }
        assert!(case.say("ipv6,10.1.0.3").starts_with("409: "), "who is named is chosen first");
        assert!(case.say("fd00::5,10.1.0.3").starts_with("400: claim fd00::5: this host gives no IPv6"));
    }

    #[test]
    fn who_takes_the_place_of_a_holder_waits_in_its_claim_and_anybody_else_is_refused() {
        let mut case = case(with(&[("10.1.0.3", 7)]));
        let key = AssignmentKey { pool: "10.1.0.0/29".parse().unwrap(), address: "10.1.0.3".parse().unwrap() };
        let held = Held { revision: 7, claim: claim("holder of 10.1.0.3") };
        case.inheritance.insert(key.clone(), held.clone());
        let chosen = case.chosen("10.1.0.3").unwrap();
        assert_eq!(chosen, [Chosen { key: key.clone(), exactly: true, held: Some(held) }]);
        let heir = claim("heir").owner;
        let waiting = chosen[0].claim(&heir, "bb");
        assert_eq!(waiting.owner.name, "holder of 10.1.0.3");
        assert_eq!(waiting.successor, Some(Box::new(Successor { owner: heir.clone(), request: "bb".to_owned() })));
        // The holder has gone meanwhile: the address is free, and claimed as such.
        case.snapshot = with(&[]);
        let chosen = case.chosen("10.1.0.3").unwrap();
        assert_eq!(chosen, [Chosen { key, exactly: true, held: None }]);
        let pending = chosen[0].claim(&heir, "bb");
        assert_eq!((pending.state, pending.owner, pending.successor), (ClaimState::Pending, heir, None));
    }

    #[test]
    fn a_claim_that_cannot_be_read_is_somebodys() {
        let mut snapshot = with(&[]);
        let path = "/calico/v1/ipam/v4/assignment/10.1.0.0-29/10.1.0.1".to_owned();
        assert!(snapshot.apply(&Change { revision: 2, path, value: Some(b"?".to_vec()) }).is_some());
        let mut case = case(snapshot);
        assert_eq!(case.say("10.1.0.1"), "409: claim 10.1.0.1: already held by an unknown owner");
        assert_eq!(case.say("auto"), "10.1.0.2");
    }
}
