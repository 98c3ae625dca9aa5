//! Addresses: which one a container gets, and which ones it must never get.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

use crate::model::name::INTERFACE_PREFIX;
use crate::model::pool::{Pool, nobodys, overlap};
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

    /// Whether an interface of this host has an address.
    pub(crate) fn is_on_an_interface(&self, address: IpAddr) -> bool {
        self.connected.iter().any(|one| one.net.addr() == address)
    }

    /// Why no container may have an address; `None` if one may.
    pub(crate) fn reason(&self, address: IpAddr) -> Option<String> {
        if let Some((_, kind)) = nobodys(address) {
            return Some(format!("it is {kind}, which is no container's"));
        }
        if let Some(own) = self.connected.iter().find(|own| own.net.addr() == address) {
            return Some(format!("it is this host's own address on interface {}", own.interface));
        }
        if let Some(near) = self.near(address) {
            return Some(format!(
                "it lies in subnet {}, to which interface {} of this host is connected",
                near.net.trunc(),
                near.interface
            ));
        }
        self.singles.contains(&address).then(|| "it is the address of a host or a next hop of containers".to_owned())
    }

    fn near(&self, address: IpAddr) -> Option<&Connected> {
        self.connected.iter().find(|near| near.net.contains(&address))
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

/// The next free address of a pool after the last one given out, going round at the end.
///
/// Never the network's address or the last one, which in IPv4 is the broadcast address. What is not free is told by
/// `claimed`, which answers those of the pool from an address on, in order, by `besides` and by `reserved`. Subnets that are
/// nobody's or connected are stepped over as a whole, and what is taken one by one: a pool of IPv6 is never walked.
pub(crate) fn choose<C: Iterator<Item = IpAddr>>(
    pool: IpNet,
    after: Option<IpAddr>,
    claimed: impl Fn(IpAddr) -> C,
    besides: &BTreeSet<IpAddr>,
    reserved: &Reserved,
) -> Option<IpAddr> {
    let (mut first, mut last) = (number(pool.network()), number(pool.broadcast()));
    if pool.max_prefix_len() - pool.prefix_len() >= 2 {
        first += 1;
        last -= 1;
    }
    let after = after.filter(|after| pool.contains(after)).map(number);
    let start = after.filter(|after| (first..last).contains(after)).map_or(first, |after| after + 1);
    let address = |number: u128| match pool {
        IpNet::V4(_) => IpAddr::V4(Ipv4Addr::from(u32::try_from(number).unwrap_or(u32::MAX))),
        IpNet::V6(_) => IpAddr::V6(Ipv6Addr::from(number)),
    };
    // The last address to be stepped over with one that is not to be had, claimed or not.
    let unfit = |candidate: IpAddr| {
        let near = reserved.near(candidate).map(|near| near.net);
        match near.or_else(|| nobodys(candidate).map(|(net, _)| *net)) {
            Some(subnet) => Some(number(subnet.broadcast())),
            None => (besides.contains(&candidate) || reserved.reason(candidate).is_some()).then(|| number(candidate)),
        }
    };
    let free_among = |from: u128, to: u128| {
        let mut claimed = claimed(address(from)).map(number).peekable();
        let mut next = from;
        while next <= to {
            while claimed.next_if(|one| *one < next).is_some() {}
            let stepped_over = if claimed.peek() == Some(&next) { Some(next) } else { unfit(address(next)) };
            let Some(last) = stepped_over else { return Some(address(next)) };
            next = last.checked_add(1)?;
        }
        None
    };
    free_among(start, last).or_else(|| free_among(first, start.checked_sub(1)?))
}

fn number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(v4) => u32::from(v4).into(),
        IpAddr::V6(v6) => v6.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pick(pool: &str, after: Option<&str>, taken: &[&str], reserved: &Reserved) -> Option<String> {
        let taken: BTreeSet<IpAddr> = taken.iter().map(|text| text.parse().unwrap()).collect();
        let after = after.map(|text| text.parse().unwrap());
        let claimed = |from| taken.range(from..).copied();
        let chosen = choose(pool.parse().unwrap(), after, claimed, &BTreeSet::new(), reserved);
        // Who has it matters not.
        assert_eq!(chosen, choose(pool.parse().unwrap(), after, |_| std::iter::empty(), &taken, reserved));
        chosen.map(|address| address.to_string())
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
    fn a_pool_of_ipv6_is_not_walked() {
        let none = Reserved::default();
        assert_eq!(pick("fd00::/64", None, &[], &none).as_deref(), Some("fd00::1"));
        assert_eq!(pick("fd00::/64", Some("fd00::ff"), &["fd00::100"], &none).as_deref(), Some("fd00::101"));
        assert_eq!(pick("fd00::/126", Some("fd00::2"), &["fd00::1"], &none).as_deref(), Some("fd00::2"));
        assert_eq!(pick("fd00::/127", None, &["fd00::"], &none).as_deref(), Some("fd00::1"));
        assert_eq!(pick("fd00::7/128", None, &["fd00::7"], &none), None);
        // To the end and round again, over all that is nobody's.
        assert_eq!(pick("::/0", Some("fe7f:ffff::ffff:ffff"), &[], &none).as_deref(), Some("fe7f:ffff::1:0:0"));
        let end = "fe7f:ffff:ffff:ffff:ffff:ffff:ffff:ffff";
        assert_eq!(pick("::/0", Some(end), &[], &none).as_deref(), Some("fec0::"));
        assert_eq!(pick("::/0", Some("ff00::"), &[], &none).as_deref(), Some("::2"));
        assert_eq!(pick("0.0.0.0/0", Some("126.255.255.255"), &[], &none).as_deref(), Some("128.0.0.0"));
        // Half of the pool, and more, is a subnet of the host's.
        let near = |net: &str| Connected { interface: "eth0".to_owned(), net: net.parse().unwrap() };
        let reserved = Reserved::new(&Snapshot::default(), vec![near("fd00::1/65"), near("fd00:0:0:0:8000::1/66")]);
        assert_eq!(pick("fd00::/64", None, &[], &reserved).as_deref(), Some("fd00::c000:0:0:0"));
        assert_eq!(pick("fd00::/66", None, &[], &reserved), None);
        let whole = Reserved::new(&Snapshot::default(), vec![near("fd00::1/8")]);
        assert_eq!(pick("fd00::/64", Some("fd00::5"), &[], &whole), None);
    }

    #[test]
    fn an_address_that_nobody_can_have_alone_is_nobodys() {
        let none = Reserved::default();
        for address in [
            "::",
            "::1",
            "ff02::1",
            "fe80::1",
            "fe80::ecee:eeff:feee:eeee",
            "::ffff:10.0.0.1",
            "127.0.0.1",
            "224.0.0.1",
            "0.0.0.0",
        ] {
            assert!(none.reason(address.parse().unwrap()).is_some(), "{address}");
        }
        for address in ["fd00::1", "2001:db8::", "10.0.0.255", "169.254.1.1", "240.0.0.1"] {
            assert_eq!(none.reason(address.parse().unwrap()), None, "{address}");
        }
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
