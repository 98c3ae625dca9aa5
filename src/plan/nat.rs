//! The nat table: what leaves a masquerade pool for somewhere outside all pools takes the host's address.
//!
//! Chain and jump exist only while a pool asks for it: a host without one keeps its nat table untouched, and with it the
//! cost of address translation away from its packets.

use crate::model::pool::{Family, Pool};
use crate::model::rule::{Ports, Protocol};

use super::chain::{Chain, ChainName, End, Entry, Match, Target};
use super::sets::{self, SetName, Sets};

const POSTROUTING: &str = "POSTROUTING";

/// Where BIRD listens (RFC 4271, 8.2.1). It knows its peers by their address alone, so a container that bears its host's would be
/// taken for it by the BIRD of every other host.
const BGP: Ports = Ports { first: 179, last: 179 };

/// The kernel's chain that ours is jumped to from, with the entry that stands first in it.
pub(crate) fn jump() -> (&'static str, ChainName, Entry) {
    let chain = ChainName::fixed(POSTROUTING);
    (POSTROUTING, chain.clone(), Entry::new(Vec::new(), Target::Jump(chain), "masquerade of containers"))
}

/// The chain and the sets that it speaks of; `None` while no pool asks for masquerade.
pub(crate) fn desired_nat<'p>(family: Family, pools: impl Iterator<Item = &'p Pool>) -> Option<(Chain, Sets)> {
    let pools: Vec<&Pool> = pools.filter(|pool| pool.family() == family).collect();
    if !pools.iter().any(|pool| pool.masquerade) {
        return None;
    }
    let (inside, hidden) = (SetName::pools(family), SetName::masquerade(family));
    let matches = vec![Match::InSet(End::Source, hidden.clone()), Match::NotInSet(End::Destination, inside.clone())];
    let from_pool = Match::InSet(End::Source, hidden.clone());
    let bgp = vec![from_pool, Match::Protocol(Protocol::TCP), Match::Ports(End::Destination, vec![BGP])];
    let entries = vec![
        Entry::new(bgp, Target::Return, "no container speaks BGP as its host"),
        Entry::new(matches, Target::Masquerade, "leaves all pools"),
    ];
    let chain = Chain::ordered(ChainName::fixed(POSTROUTING), entries);
    let masquerading = pools.iter().filter(|pool| pool.masquerade);
    let sets = Sets::from([
        (inside, sets::nets(family, pools.iter().map(|pool| pool.cidr))),
        (hidden, sets::nets(family, masquerading.map(|pool| pool.cidr))),
    ]);
    Some((chain, sets))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pool(cidr: &str, masquerade: bool) -> Pool {
        Pool { masquerade, ..Pool::new(cidr.parse().unwrap()) }
    }

    #[test]
    fn nothing_stands_in_nat_until_a_pool_asks_for_it() {
        assert_eq!(desired_nat(Family::V4, [pool("10.0.0.0/8", false), pool("fd00::/8", true)].iter()), None);
    }

    #[test]
    fn all_pools_are_inside_and_only_masquerade_pools_are_hidden() {
        let pools = [pool("10.0.0.0/8", false), pool("11.0.0.0/8", true)];
        let (chain, sets) = desired_nat(Family::V4, pools.iter()).unwrap();
        let lines = chain.render().lines;
        assert!(lines[0].spec.contains("--dports 179") && lines[0].spec.ends_with("-j RETURN"), "{}", lines[0].spec);
        assert!(lines[1].spec.ends_with("-j MASQUERADE"));
        let members: Vec<usize> = sets.values().map(|set| set.members.len()).collect();
        assert_eq!(sets.keys().map(SetName::as_str).collect::<Vec<_>>(), ["calico4-masq", "calico4-pools"]);
        assert_eq!(members, [1, 2]);
    }
}
