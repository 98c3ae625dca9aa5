//! Routes: to each address of an active endpoint through its interface.
//!
//! Ours are known by their protocol number; whatever carries it and is not wanted goes away, whatever does not carry it is
//! somebody else's.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;

use crate::model::name::IfName;

/// The protocol number of our routes (decided). Not among those of linux/rtnetlink.h or iproute2's `rt_protos`.
pub(crate) const ROUTE_PROTOCOL: u8 = 97;

/// The routing table that routes stand in unless they are told otherwise. Source: `RT_TABLE_MAIN`, linux/rtnetlink.h.
pub(crate) const MAIN_TABLE: u32 = 254;

/// Wanted routes: the address and the interface that leads to it.
pub(crate) type Routes = BTreeMap<IpAddr, IfName>;

/// A route of ours as the kernel has it, with all that tells it from another.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Route {
    pub(crate) net: IpNet,
    /// `None`: through an interface whose name no interface of ours can have, or through none or several.
    pub(crate) interface: Option<IfName>,
    pub(crate) table: u32,
    pub(crate) metric: u32,
}

impl Route {
    /// The route that leads to an address.
    pub(crate) fn to(address: IpAddr, interface: IfName) -> Self {
        Route { net: address.into(), interface: Some(interface), table: MAIN_TABLE, metric: 0 }
    }
}

/// One change of the kernel's routes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum RouteStep {
    /// Adds the route or makes it lead through this interface.
    Put(IpAddr, IfName),
    Remove(Route),
}

/// The steps from what is there to what should be, removals first.
pub(crate) fn steps(wanted: &Routes, seen: &BTreeSet<Route>) -> Vec<RouteStep> {
    let right = |route: &Route| {
        let wanted = wanted.get(&route.net.addr());
        wanted.is_some_and(|name| *route == Route::to(route.net.addr(), name.clone()))
    };
    let mut steps: Vec<RouteStep> = seen.iter().filter(|route| !right(route)).cloned().map(RouteStep::Remove).collect();
    let missing = wanted.iter().filter(|(address, name)| !seen.contains(&Route::to(**address, (*name).clone())));
    steps.extend(missing.map(|(address, name)| RouteStep::Put(*address, name.clone())));
    steps
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_difference_is_carried_out() {
        let pairs = |pairs: &[(&str, &str)]| -> Routes {
            pairs.iter().map(|(address, name)| (address.parse().unwrap(), name.parse().unwrap())).collect()
        };
        let seen = |routes: &Routes| routes.iter().map(|(address, name)| Route::to(*address, name.clone())).collect();
        let wanted = pairs(&[("10.0.0.1", "cali1"), ("10.0.0.2", "cali2")]);
        let found = steps(&wanted, &seen(&pairs(&[("10.0.0.2", "cali9"), ("10.0.0.3", "cali3")])));
        assert_eq!(found.len(), 4, "{found:?}");
        assert!(matches!((&found[0], &found[3]), (RouteStep::Remove(_), RouteStep::Put(..))), "{found:?}");
        assert_eq!(steps(&wanted, &seen(&wanted)), []);
    }

    #[test]
    fn a_route_of_ours_for_more_than_an_address_goes_away() {
        let wide = Route { net: "10.0.0.0/24".parse().unwrap(), interface: None, table: MAIN_TABLE, metric: 0 };
        assert_eq!(steps(&Routes::new(), &BTreeSet::from([wide.clone()])), [RouteStep::Remove(wide)]);
    }
}
