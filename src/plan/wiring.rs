//! Wiring: what the network of a container looks like, as values. `edge::links` makes it so.

use std::net::{IpAddr, Ipv4Addr};

use crate::model::endpoint::Endpoint;
use crate::model::fault::Fault;
use crate::model::name::{IfName, Mac};

/// The Ethernet address of every host side. It is fixed, so that the container's next hop stays the same over restarts
/// and its IPv6 link-local address is known beforehand.
pub(crate) const HOST_MAC: Mac = Mac([0xee; 6]);

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
    /// Each alone on its link: prefix length 32.
    pub(crate) addresses: Vec<Ipv4Addr>,
    /// The host's own address: a route to it on the link, and the default route through it.
    pub(crate) gateway: Ipv4Addr,
}

/// The wiring of an endpoint on a host with this address.
///
/// # Errors
/// A record without a MAC or without an IPv4 address cannot be wired.
pub(crate) fn desired_wiring(endpoint: &Endpoint, host_ip: Ipv4Addr) -> Result<Wiring, Fault> {
    let wrong = |cause: &str| Fault::World(format!("wire interface {}: its record has {cause}", endpoint.interface));
    let addresses: Vec<Ipv4Addr> = endpoint.ipv4().collect();
    if addresses.is_empty() {
        return Err(wrong("no IPv4 address: one is needed"));
    }
    Ok(Wiring {
        host_interface: endpoint.interface.clone(),
        container_interface: endpoint.container_interface.clone(),
        mac: endpoint.mac.ok_or_else(|| wrong("no MAC address: one is needed"))?,
        addresses,
        gateway: host_ip,
    })
}

/// The line of a container's hosts file for its own name; `None` where it has none.
pub(crate) fn hosts_line(addresses: &[IpAddr], hostname: &str) -> Option<String> {
    let address = addresses.first()?;
    let plain = !hostname.is_empty() && hostname.bytes().all(|b| b.is_ascii_graphic());
    plain.then(|| format!("{address}\t{hostname}\n"))
}
