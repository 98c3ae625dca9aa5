//! This host, as its node was told of it or has found it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::bgp::AsNumber;
use super::name::HostName;

/// What a node knows of the host that it runs on, for as long as it runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Host {
    pub(crate) name: HostName,
    /// Where other hosts reach it, and the next hop of IPv4 of every container here.
    pub(crate) ip: Ipv4Addr,
    /// What is recorded as the next hop of IPv6; `None`: BIRD speaks of IPv4 only.
    pub(crate) ip6: Option<Ipv6Addr>,
    /// Whether containers are given IPv6 here.
    pub(crate) gives_ipv6: bool,
    /// `None`: the global one holds.
    pub(crate) as_number: Option<AsNumber>,
}

impl Host {
    /// The addresses at which other hosts reach this one.
    pub(crate) fn addresses(&self) -> impl Iterator<Item = IpAddr> {
        [Some(IpAddr::V4(self.ip)), self.ip6.map(IpAddr::V6)].into_iter().flatten()
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// Host `h1` with an address of IPv4.
    pub(crate) fn h1() -> Host {
        let (name, ip) = ("h1".parse().unwrap(), Ipv4Addr::new(172, 25, 0, 1));
        Host { name, ip, ip6: None, gives_ipv6: true, as_number: None }
    }
}
