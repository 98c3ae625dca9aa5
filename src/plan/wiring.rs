//! Wiring: what the network of a container looks like, as values. `edge::wiring` makes it so.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::model::endpoint::Endpoint;
use crate::model::fault::Fault;
use crate::model::name::{IfName, Mac};
use crate::model::pool::Family;

/// The Ethernet address of every host side. It is fixed, so that the container's next hop stays the same over restarts
/// and its IPv6 link-local address is known beforehand.
pub(crate) const HOST_MAC: Mac = Mac([0xee; 6]);

/// The link-local address of every host side, and the next hop of every container: what the kernel itself makes of
/// [`HOST_MAC`].
pub(crate) const HOST_LINK_LOCAL: Ipv6Addr = HOST_MAC.link_local();

/// The interface group of every host side (decided), so that all can be found and removed at once.
pub(crate) const LINK_GROUP: u32 = 97;

/// The group of interfaces that are being removed together. Nobody else comes upon this number: it spells `cali`.
pub(crate) const LEAVING_GROUP: u32 = 0x6361_6c69;

/// A veth pair with what belongs on it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Wiring {
    pub(crate) host_interface: IfName,
    pub(crate) container_interface: IfName,
    pub(crate) mac: Mac,
    /// Each alone on its link: prefix length 32 or 128.
    pub(crate) addresses: Vec<IpAddr>,
    /// The next hop of IPv4, the host's own address: a route to it on the link, and the default route through it. That of
    /// IPv6 is [`HOST_LINK_LOCAL`].
    pub(crate) gateway: Ipv4Addr,
}

impl Wiring {
    /// Whether there is an address of a family. Where there is none, nothing of it is on the link.
    pub(crate) fn has(&self, family: Family) -> bool {
        self.addresses.iter().any(|address| Family::of(*address) == family)
    }
}

/// The wiring of an endpoint on a host with this address.
///
/// # Errors
/// A record without a MAC or without an address cannot be wired.
pub(crate) fn desired_wiring(endpoint: &Endpoint, host_ip: Ipv4Addr) -> Result<Wiring, Fault> {
    let wrong = |cause: &str| Fault::World(format!("wire interface {}: its record has {cause}", endpoint.interface));
    if endpoint.addresses.is_empty() {
        return Err(wrong("no address: one is needed"));
    }
    Ok(Wiring {
        host_interface: endpoint.interface.clone(),
        container_interface: endpoint.container_interface.clone(),
        mac: endpoint.mac.ok_or_else(|| wrong("no MAC address: one is needed"))?,
        addresses: endpoint.addresses.iter().copied().collect(),
        gateway: host_ip,
    })
}

/// What a container's hosts file lacks of the lines for its own name, one for each address. The container may have written
/// anything into it.
pub(crate) fn lacking_hosts_lines(text: &[u8], addresses: &[IpAddr], hostname: &str) -> String {
    let plain = !hostname.is_empty() && hostname.bytes().all(|b| b.is_ascii_graphic());
    let lines = addresses.iter().filter(|_| plain).map(|address| format!("{address}\t{hostname}"));
    let mut lacking = String::new();
    for line in lines.filter(|line| !text.split(|byte| *byte == b'\n').any(|one| one == line.as_bytes())) {
        // Behind a last line without an end ours would become a part of it.
        if lacking.is_empty() && text.last().is_some_and(|byte| *byte != b'\n') {
            lacking.push('\n');
        }
        lacking.push_str(&line);
        lacking.push('\n');
    }
    lacking
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_next_hop_is_what_the_kernel_makes_of_the_hosts_ethernet_address() {
        assert_eq!(HOST_LINK_LOCAL.to_string(), "fe80::ecee:eeff:feee:eeee");
    }

    #[test]
    fn a_container_finds_all_its_addresses_under_its_own_name() {
        let addresses: Vec<IpAddr> = ["10.0.0.1", "fd00::1"].map(|text| text.parse().unwrap()).into();
        for (text, lacking) in [
            (&b""[..], "10.0.0.1\tweb\nfd00::1\tweb\n"),
            (b"10.0.0.1\tweb\n", "fd00::1\tweb\n"),
            (b"\xff\nfd00::1\tweb\n10.0.0.1\tweb", ""),
            (b"10.0.0.1\tweb2\n\xff", "\n10.0.0.1\tweb\nfd00::1\tweb\n"),
        ] {
            assert_eq!(lacking_hosts_lines(text, &addresses, "web"), lacking, "{}", text.escape_ascii());
        }
        assert_eq!([lacking_hosts_lines(b"", &addresses, "a b"), lacking_hosts_lines(b"", &[], "web")], ["", ""]);
    }
}
