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

/// Those of the routes that lead to one address and no other.
pub(crate) fn to(seen: &BTreeSet<Route>, address: IpAddr) -> impl Iterator<Item = &Route> {
    let net = IpNet::from(address);
    let first = Route { net, interface: None, table: 0, metric: 0 };
    seen.range(first..).take_while(move |route| route.net == net)
}

/// The steps for one address. A route that nobody wants stays if it `may_stay`.
pub(crate) fn steps_for(
    address: IpAddr,
    wanted: &Routes,
    seen: &BTreeSet<Route>,
    may_stay: impl Fn(&Route) -> bool,
) -> Vec<RouteStep> {
    let right = wanted.get(&address).map(|name| Route::to(address, name.clone()));
    let stays = |route: &Route| right.as_ref().map_or_else(|| may_stay(route), |right| route == right);
    let mut steps: Vec<RouteStep> =
        to(seen, address).filter(|route| !stays(route)).cloned().map(RouteStep::Remove).collect();
    if let (Some(right), Some(name)) = (right, wanted.get(&address))
        && !seen.contains(&right)
    {
        steps.push(RouteStep::Put(address, name.clone()));
    }
    steps
}

/// The steps from what is there to what should be, removals first. Of the routes that nobody wants those to one address
/// stay that `may_stay`.
pub(crate) fn steps(wanted: &Routes, seen: &BTreeSet<Route>, may_stay: impl Fn(&Route) -> bool) -> Vec<RouteStep> {
    let full = |route: &&Route| route.net.prefix_len() == route.net.max_prefix_len();
    let mut steps: Vec<RouteStep> = seen.iter().filter(|route| !full(route)).cloned().map(RouteStep::Remove).collect();
    let addresses: BTreeSet<IpAddr> =
        seen.iter().filter(full).map(|route| route.net.addr()).chain(wanted.keys().copied()).collect();
    steps.extend(addresses.into_iter().flat_map(|address| steps_for(address, wanted, seen, &may_stay)));
    steps
}

/// What is there once a step is carried out.
pub(crate) fn carried_out(seen: &mut BTreeSet<Route>, step: &RouteStep) {
    let _ = match step {
        RouteStep::Put(address, name) => seen.insert(Route::to(*address, name.clone())),
        RouteStep::Remove(route) => seen.remove(route),
    };
}

impl RouteStep {
    /// The address that the step is about.
    pub(crate) fn address(&self) -> IpAddr {
        match self {
            RouteStep::Put(address, _) => *address,
            RouteStep::Remove(route) => route.net.addr(),
        }
    }
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
        let there = seen(&pairs(&[("10.0.0.2", "cali9"), ("10.0.0.3", "cali3")]));
        let found = steps(&wanted, &there, |_| false);
        assert_eq!(found.len(), 4, "{found:?}");
        assert!(matches!((&found[1], &found[2]), (RouteStep::Remove(_), RouteStep::Put(..))), "{found:?}");
        assert_eq!(steps(&wanted, &seen(&wanted), |_| false), []);
        // What may stay does so only where nothing else is wanted.
        let unwanted: IpAddr = "10.0.0.3".parse().unwrap();
        let fewer: Vec<RouteStep> = found.into_iter().filter(|step| step.address() != unwanted).collect();
        assert_eq!((fewer.len(), steps(&wanted, &there, |_| true)), (3, fewer));
    }

    #[test]
    fn a_route_of_ours_for_more_than_an_address_goes_away() {
        let wide = Route { net: "10.0.0.0/24".parse().unwrap(), interface: None, table: MAIN_TABLE, metric: 0 };
        assert_eq!(steps(&Routes::new(), &BTreeSet::from([wide.clone()]), |_| true), [RouteStep::Remove(wide)]);
    }
}
