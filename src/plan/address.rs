//! Addresses: which one a container gets, and which ones it must never get.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};

use ipnet::IpNet;

use crate::model::name::INTERFACE_PREFIX;
use crate::model::pool::{Pool, overlap};
use crate::model::snapshot::{Record, Snapshot};

/// A subnet that an interface of this host is connected to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Connected {
    pub(crate) interface: String,
    /// The interface's own address, with the length of the subnet.
    pub(crate) net: IpNet,
}

/// The addresses that stand for something already, so that no container may have them.
#[derive(Debug, Clone, Default)]
pub(crate) struct Reserved {
    connected: Vec<Connected>,
    /// Addresses of hosts and next hops of containers, with whose they are.
    singles: BTreeSet<IpAddr>,
}

impl Reserved {
    /// From what the cluster records of its hosts and what this host is connected to.
    pub(crate) fn new(snapshot: &Snapshot, connected: Vec<Connected>) -> Self {
        let mut singles: BTreeSet<IpAddr> = snapshot.host_ips.values().filter_map(Record::readable).copied().collect();
        singles.extend(snapshot.bgp_ips.values().filter_map(Record::readable).flatten());
        singles.extend(snapshot.next_hops());
        let connected = connected.into_iter().filter(|net| !net.interface.starts_with(INTERFACE_PREFIX)).collect();
        Reserved { connected, singles }
    }

    /// Why no container may have an address; `None` if one may.
    pub(crate) fn reason(&self, address: IpAddr) -> Option<String> {
        if let Some(own) = self.connected.iter().find(|own| own.net.addr() == address) {
            return Some(format!("it is this host's own address on interface {}", own.interface));
        }
        if let Some(near) = self.connected.iter().find(|near| near.net.contains(&address)) {
            return Some(format!(
                "it lies in subnet {}, to which interface {} of this host is connected",
                near.net.trunc(),
                near.interface
            ));
        }
        self.singles.contains(&address).then(|| "it is the address of a host or a next hop of containers".to_owned())
    }

    /// The pools that share addresses with a connected subnet, in words.
    pub(crate) fn overlapping<'r>(&'r self, pools: impl Iterator<Item = &'r Pool> + 'r) -> Vec<String> {
        pools
            .flat_map(|pool| self.connected.iter().map(move |near| (pool, near)))
            .filter(|(pool, near)| overlap(pool.cidr, near.net.trunc()))
            .map(|(pool, near)| {
                format!(
                    "pool {} overlaps subnet {} of interface {}: its addresses there are not given to containers",
                    pool.cidr,
                    near.net.trunc(),
                    near.interface
                )
            })
            .collect()
    }
}

/// The next free IPv4 address of a pool after the last one given out, going round at the end.
///
/// Never the network's or the broadcast address. `taken` and `reserved` say what is not free.
pub(crate) fn choose(
    pool: IpNet,
    after: Option<IpAddr>,
    taken: &dyn Fn(IpAddr) -> bool,
    reserved: &Reserved,
) -> Option<IpAddr> {
    let IpNet::V4(net) = pool else { return None };
    let (mut first, mut last) = (u32::from(net.network()), u32::from(net.broadcast()));
    if net.prefix_len() <= 30 {
        first += 1;
        last -= 1;
    }
    let start = match after {
        Some(IpAddr::V4(after)) if (first..last).contains(&u32::from(after)) => u32::from(after) + 1,
        _ => first,
    };
    (start..=last)
        .chain(first..start)
        .map(|number| IpAddr::V4(Ipv4Addr::from(number)))
        .find(|address| !taken(*address) && reserved.reason(*address).is_none())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pick(pool: &str, after: Option<&str>, taken: &[&str], reserved: &Reserved) -> Option<String> {
        let taken: BTreeSet<IpAddr> = taken.iter().map(|text| text.parse().unwrap()).collect();
        choose(pool.parse().unwrap(), after.map(|text| text.parse().unwrap()), &|ip| taken.contains(&ip), reserved)
            .map(|address| address.to_string())
    }

    #[test]
    fn the_next_free_address_after_the_last_one_is_chosen() {
        let none = Reserved::default();
        assert_eq!(pick("10.0.0.0/29", None, &[], &none).as_deref(), Some("10.0.0.1"));
        assert_eq!(pick("10.0.0.0/29", Some("10.0.0.3"), &["10.0.0.4"], &none).as_deref(), Some("10.0.0.5"));
        assert_eq!(pick("10.0.0.0/29", Some("10.0.0.6"), &[], &none).as_deref(), Some("10.0.0.1"));
        assert_eq!(pick("10.0.0.0/29", Some("10.0.0.5"), &["10.0.0.6"], &none).as_deref(), Some("10.0.0.1"));
        assert_eq!(pick("10.0.0.0/30", None, &["10.0.0.1", "10.0.0.2"], &none), None);
        assert_eq!(pick("10.0.0.0/32", None, &[], &none).as_deref(), Some("10.0.0.0"));
        assert_eq!(pick("10.0.0.0/31", Some("10.0.0.0"), &[], &none).as_deref(), Some("10.0.0.1"));
    }

    #[test]
    fn addresses_of_the_host_and_its_subnets_are_skipped_and_named() {
        let snapshot = crate::model::snapshot::tests::from_json(r#"{"/calico/v1/host/h2/bird_ip": "10.0.0.2"}"#);
        let near = Connected { interface: "eth0".to_owned(), net: "10.0.0.9/29".parse().unwrap() };
        let reserved = Reserved::new(&snapshot, vec![near]);
        assert_eq!(pick("10.0.0.0/28", Some("10.0.0.1"), &[], &reserved).as_deref(), Some("10.0.0.3"));
        assert_eq!(pick("10.0.0.0/28", Some("10.0.0.7"), &[], &reserved).as_deref(), Some("10.0.0.1"));
        let reason = reserved.reason("10.0.0.10".parse().unwrap()).unwrap();
        assert!(reason.contains("eth0") && reason.contains("10.0.0.8/29"), "{reason}");
        assert!(reserved.reason("10.0.0.9".parse().unwrap()).unwrap().contains("own address"));
    }
}
