//! Pools: the address ranges that containers are given addresses from.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use serde::{Deserialize, Serialize};

/// The two address families, as the datastore spells them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub(crate) enum Family {
    #[serde(rename = "v4")]
    V4,
    #[serde(rename = "v6")]
    V6,
}

impl Family {
    pub(crate) const BOTH: [Family; 2] = [Family::V4, Family::V6];

    pub(crate) fn of(address: IpAddr) -> Self {
        if address.is_ipv4() { Family::V4 } else { Family::V6 }
    }

    pub(crate) fn of_net(net: IpNet) -> Self {
        Family::of(net.addr())
    }

    /// `v4` or `v6`, as keys have it.
    pub(crate) fn key(self) -> &'static str {
        match self {
            Family::V4 => "v4",
            Family::V6 => "v6",
        }
    }
}

/// A pool's record. Its CIDR is the network address and prefix, no host bits set.
///
/// Source: the pools of calico-docker. Keys of later versions (`ipam`, `disabled`) are read; what else a record
/// holds is kept through a rewrite.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Pool {
    pub(crate) cidr: IpNet,
    /// Leave by a tunnel. Recorded only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) ipip: Option<String>,
    /// Masquerade what leaves all pools (`--nat-outgoing`).
    #[serde(default, skip_serializing_if = "is_false")]
    pub(crate) masquerade: bool,
    /// `false`: not for automatic choice.
    #[serde(default = "yes", skip_serializing_if = "is_true")]
    pub(crate) ipam: bool,
    /// Being removed: no new address is taken from it.
    #[serde(default, skip_serializing_if = "is_false")]
    pub(crate) disabled: bool,
    #[serde(flatten)]
    pub(crate) rest: BTreeMap<String, serde_json::Value>,
}

fn yes() -> bool {
    true
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde's skip_serializing_if passes a reference")]
fn is_true(value: &bool) -> bool {
    *value
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde's skip_serializing_if passes a reference")]
fn is_false(value: &bool) -> bool {
    !*value
}

impl Pool {
    pub(crate) fn new(cidr: IpNet) -> Self {
        Pool { cidr: cidr.trunc(), ipip: None, masquerade: false, ipam: true, disabled: false, rest: BTreeMap::new() }
    }

    pub(crate) fn family(&self) -> Family {
        Family::of_net(self.cidr)
    }

    pub(crate) fn contains(&self, address: IpAddr) -> bool {
        self.cidr.contains(&address)
    }

    /// Whether new addresses may be taken from it at all.
    pub(crate) fn gives(&self) -> bool {
        !self.disabled
    }

    /// Whether `auto` may choose from it.
    pub(crate) fn chooses(&self) -> bool {
        !self.disabled && self.ipam
    }
}

/// The ranges of which no address can be one endpoint's alone. Source: RFC 6890, RFC 4291, RFC 5771.
const NOBODYS: [(IpNet, &str); 9] = [
    (IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::UNSPECIFIED, 32)), "the unspecified address"),
    (IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::new(127, 0, 0, 0), 8)), "a loopback address"),
    (IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::new(224, 0, 0, 0), 4)), "a multicast address"),
    (IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::BROADCAST, 32)), "the broadcast address"),
    (IpNet::V6(Ipv6Net::new_assert(Ipv6Addr::UNSPECIFIED, 128)), "the unspecified address"),
    (IpNet::V6(Ipv6Net::new_assert(Ipv6Addr::LOCALHOST, 128)), "a loopback address"),
    (
        IpNet::V6(Ipv6Net::new_assert(Ipv6Addr::new(0, 0, 0, 0, 0, 0xffff, 0, 0), 96)),
        "an IPv4 address in the spelling of IPv6",
    ),
    (IpNet::V6(Ipv6Net::new_assert(Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0), 10)), "a link-local address"),
    (IpNet::V6(Ipv6Net::new_assert(Ipv6Addr::new(0xff00, 0, 0, 0, 0, 0, 0, 0), 8)), "a multicast address"),
];

/// The range that an address is in, if it cannot be a container's, and what it is.
///
/// Ranges that somebody may want are not among them: 169.254.0.0/16, where clouds have services that a container may stand
/// in for, and 240.0.0.0/4, which Linux treats as any other.
pub(crate) fn nobodys(address: IpAddr) -> Option<&'static (IpNet, &'static str)> {
    NOBODYS.iter().find(|(net, _)| net.contains(&address))
}

/// Whether two ranges share an address.
pub(crate) fn overlap(a: IpNet, b: IpNet) -> bool {
    a.contains(&b.network()) || b.contains(&a.network())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pool_writes_only_what_is_set() {
        let mut pool = Pool::new("192.168.7.9/16".parse().unwrap());
        assert_eq!(serde_json::to_string(&pool).unwrap(), r#"{"cidr":"192.168.0.0/16"}"#);
        pool.masquerade = true;
        let text = serde_json::to_string(&pool).unwrap();
        assert_eq!(text, r#"{"cidr":"192.168.0.0/16","masquerade":true}"#);
        assert_eq!(serde_json::from_str::<Pool>(&text).unwrap(), pool);
        // What others have written is not lost.
        let text = r#"{"cidr":"192.168.0.0/16","masquerade":true,"blockSize":26}"#;
        assert_eq!(serde_json::to_string(&serde_json::from_str::<Pool>(text).unwrap()).unwrap(), text);
    }

    #[test]
    fn ranges_overlap_when_one_holds_the_other() {
        let net = |text: &str| text.parse().unwrap();
        assert!(overlap(net("10.0.0.0/8"), net("10.1.0.0/16")));
        assert!(overlap(net("10.1.0.0/16"), net("10.0.0.0/8")));
        assert!(!overlap(net("10.0.0.0/16"), net("10.1.0.0/16")));
        assert!(!overlap(net("10.0.0.0/8"), net("fd00::/8")));
    }
}
