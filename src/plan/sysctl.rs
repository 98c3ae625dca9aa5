//! Kernel settings that containers' networks need.

use crate::model::name::IfName;

/// Settings of the whole host, with the value that each must have.
pub(crate) const HOST: [(&str, &str); 1] = [("net/ipv4/ip_forward", "1")];

/// The highest of this and the interface's own value counts (linux Documentation/networking/ip-sysctl, rp_filter); at 2 a
/// container could send under another's address whatever the interface says.
pub(crate) const REVERSE_PATH_FOR_ALL: &str = "net/ipv4/conf/all/rp_filter";

/// The settings of the host's side of a container's link.
pub(crate) fn for_interface(name: &IfName) -> Vec<(String, &'static str)> {
    let of = |group: &str, setting: &str| format!("net/{group}/{name}/{setting}");
    vec![
        // A packet under an address that is not routed to this interface is dropped before any chain.
        (of("ipv4/conf", "rp_filter"), "1"),
        // The host answers for the next hop, whatever it is, and at once.
        (of("ipv4/conf", "proxy_arp"), "1"),
        (of("ipv4/neigh", "proxy_delay"), "0"),
        // 127.0.0.0/8 of the host stays the host's.
        (of("ipv4/conf", "route_localnet"), "0"),
        // Nothing polices IPv6 on this link, so there is none.
        (of("ipv6/conf", "disable_ipv6"), "1"),
    ]
}
