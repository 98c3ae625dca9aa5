//! Kernel settings that containers' networks need.

use crate::model::name::{INTERFACE_PREFIX, IfName};

/// Whether the host forwards IPv4.
pub(crate) const FORWARD_IPV4: &str = "net/ipv4/ip_forward";

/// Whether the host forwards IPv6. To switch it on makes the kernel forget the routes that routers have advertised, and hear
/// no more advertisements, on every interface whose [`hears_routers`] is not 2 (linux net/ipv6/addrconf.c,
/// `addrconf_fixup_forwarding`; Documentation/networking/ip-sysctl, accept_ra).
pub(crate) const FORWARD_IPV6: &str = "net/ipv6/conf/all/forwarding";

/// Where the interfaces' IPv6 settings are, a folder each.
pub(crate) const IPV6_INTERFACES: &str = "net/ipv6/conf";

/// The setting of an interface that says whether it hears routers: 1 as long as the host does not forward, 2 always.
pub(crate) fn hears_routers(interface: &str) -> String {
    format!("{IPV6_INTERFACES}/{interface}/accept_ra")
}

/// Whether an interface must be told to go on hearing routers when the host begins to forward: it is the host's own and
/// hears them now.
pub(crate) fn must_go_on_hearing(interface: &str, accept_ra: &str) -> bool {
    let whole = ["all", "default", "lo"].contains(&interface) || interface.starts_with(INTERFACE_PREFIX);
    !whole && accept_ra == "1"
}

/// The settings of the host's side of a container's link, in the order in which they are written.
pub(crate) fn for_interface(name: &IfName, ipv6: bool) -> Vec<(String, &'static str)> {
    let of = |group: &str, setting: &str| format!("net/{group}/{name}/{setting}");
    let mut settings = vec![
        // The second lock against foreign source addresses, after the raw table: where all interfaces have 2, as some
        // distributions set it, that counts instead, and the raw table stands alone.
        (of("ipv4/conf", "rp_filter"), "1"),
        // What the container sends is passed on. Of the host's whole, it is what a new interface begins with.
        (of("ipv4/conf", "forwarding"), "1"),
        // The host answers for the next hop, whatever it is, and at once.
        (of("ipv4/conf", "proxy_arp"), "1"),
        (of("ipv4/neigh", "proxy_delay"), "0"),
        // The sender would choose the way, past the receiver that policy saw (linux net/ipv4/ip_forward.c: the destination
        // is changed after the firewall).
        (of("ipv4/conf", "accept_source_route"), "0"),
        (of("ipv4/conf", "accept_redirects"), "0"),
        // 127.0.0.0/8 of the host stays the host's.
        (of("ipv4/conf", "route_localnet"), "0"),
    ];
    if !ipv6 {
        // Nothing on this link asks for IPv6, and nothing polices it there.
        settings.push((of("ipv6/conf", "disable_ipv6"), "1"));
        return settings;
    }
    settings.extend([
        // The container is no router of the host's.
        (of("ipv6/conf", "accept_ra"), "0"),
        (of("ipv6/conf", "accept_redirects"), "0"),
        (of("ipv6/conf", "autoconf"), "0"),
        (of("ipv6/conf", "forwarding"), "1"),
        // The next hop is made of the interface's Ethernet address, is there at once, and nobody on the link can claim it first.
        (link_local_of(name), "0"),
        (of("ipv6/conf", "accept_dad"), "0"),
        (of("ipv6/conf", "disable_ipv6"), "0"),
    ]);
    settings
}

/// How an interface comes to its link-local address: 0, it is made of its Ethernet address; 1, not at all.
pub(crate) fn link_local_of(name: &IfName) -> String {
    format!("{IPV6_INTERFACES}/{name}/addr_gen_mode")
}

/// The settings of the container's side of a link with IPv6, in the container's namespace. Docker switches IPv6 off in a
/// namespace without a network of its own, on the loopback interface too, over which a container reaches itself.
pub(crate) fn inside(name: &IfName) -> Vec<(String, &'static str)> {
    let of = |interface: &str, setting: &str| format!("{IPV6_INTERFACES}/{interface}/{setting}");
    let name = name.as_str();
    vec![
        (of("lo", "disable_ipv6"), "0"),
        // Addresses and routes are ours to give.
        (of(name, "accept_ra"), "0"),
        (of(name, "accept_redirects"), "0"),
        (of(name, "autoconf"), "0"),
        // Made of the Ethernet address, as the host expects it.
        (of(name, "addr_gen_mode"), "0"),
        // Nobody else is on the link, so nobody is waited for.
        (of(name, "accept_dad"), "0"),
        (of(name, "disable_ipv6"), "0"),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn interfaces_of_the_hosts_own_go_on_hearing_routers_if_they_do_now() {
        assert!(must_go_on_hearing("eth0", "1"));
        for (interface, accept_ra) in [("eth0", "0"), ("eth0", "2"), ("all", "1"), ("default", "1"), ("cali1", "1")] {
            assert!(!must_go_on_hearing(interface, accept_ra), "{interface} {accept_ra}");
        }
    }
}
