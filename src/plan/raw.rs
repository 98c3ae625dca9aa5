//! The raw table: what bears another's source address is dropped before anything else looks at it.
//!
//! A match asks the routes whether an answer would leave through the interface that the packet came in by. It stands
//! before connection tracking, so that a packet under another's address never counts as one of that other's connection,
//! which the filter table lets pass whoever sends it. In IPv4 a kernel setting of each interface does the same
//! (`rp_filter`) and is kept as the second lock; alone it is not enough, since whoever writes 0 to it opens every
//! established flow to forgery until the next look. IPv6 has no such setting.
//!
//! In IPv6 two sources pass that no route speaks of: none at all, as duplicate address detection has it, and link-local
//! ones, which the match looks for on that very interface only. Neither is ever forwarded (linux net/ipv6/ip6_output.c,
//! `ip6_forward`), so they come to `INPUT` at most. To what bears a link-local source and should be forwarded the kernel
//! answers with an error, for which it looks for the sender as a neighbour, and what is for another link-local address than
//! its own it takes for something that a neighbour there should have been sent: as many as somebody makes up would fill its
//! table of neighbours, which all share. So both are dropped here too. Source: linux net/ipv6/netfilter/ip6t_rpfilter.c and
//! net/ipv4/netfilter/ipt_rpfilter.c.
//!
//! The services of this very software are closed to containers here too: whatever `DefaultEndpointToHostAction` says, and
//! whatever rules somebody puts before ours, no container gets to the Docker API, the datastore, BGP or the metrics by an
//! address of its host. (Those of other hosts are reached by forwarding, where the sender's policy decides.)

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use crate::model::name::INTERFACE_PREFIX;
use crate::model::pool::Family;
use crate::model::rule::{Ports, Protocol};

use super::chain::{Chain, ChainName, End, Entry, Interface, LINK_LOCAL, Match, PORTS_MOST, Target};
use super::diff::Table;
use super::wiring::HOST_LINK_LOCAL;

const PREROUTING: &str = "PREROUTING";

/// The port at the end of an address or a URL: `tcp://127.0.0.1:2377`, `[::1]:9091`, `http://10.0.0.1:2379/`.
pub(crate) fn port_of(place: &str) -> Option<u16> {
    place.trim_end_matches('/').rsplit_once(':')?.1.parse().ok()
}

/// What the table should hold, whatever the datastore says. The services are TCP ports of this host's
/// that no container reaches.
pub(crate) fn desired_raw(family: Family, services: &BTreeSet<u16>) -> Table {
    let name = ChainName::fixed(PREROUTING);
    let ours = || Match::In(Interface::StartsWith(INTERFACE_PREFIX.to_owned()));
    let mut entries = vec![Entry::new(vec![ours(), Match::SourceElsewhere], Target::Drop, "a foreign source address")];
    if family == Family::V6 {
        let (from, to) = (Match::Net(End::Source, LINK_LOCAL), Match::Net(End::Destination, LINK_LOCAL));
        let astray = vec![ours(), from, Match::NotNet(End::Destination, LINK_LOCAL), Match::ToOne];
        entries.push(Entry::new(astray, Target::Drop, "not to be answered with an error"));
        let to_others = vec![ours(), to, Match::OutsideRange(End::Destination, IpAddr::V6(HOST_LINK_LOCAL).into())];
        entries.push(Entry::new(to_others, Target::Drop, "nobody else is on the link"));
    }
    let services: Vec<Ports> = services.iter().map(|port| Ports { first: *port, last: *port }).collect();
    entries.extend(services.chunks(PORTS_MOST).map(|ports| {
        let matches = vec![
            ours(),
            Match::Protocol(Protocol::TCP),
            Match::Ports(End::Destination, ports.to_vec()),
            Match::ToThisHost(family),
        ];
        Entry::new(matches, Target::Drop, "services of the node are not for containers")
    }));
    let chain = Chain::ordered(name.clone(), entries);
    let jump = Entry::new(Vec::new(), Target::Jump(name.clone()), "source addresses of containers");
    Table { jumps: [(PREROUTING, jump.render(&name))].into(), chains: [(name, Arc::new(chain.render()))].into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_is_found_at_the_end_of_a_place() {
        for (place, port) in [
            ("tcp://127.0.0.1:2377", Some(2377)),
            ("[::1]:9091", Some(9091)),
            ("http://10.0.0.1:2379/", Some(2379)),
            ("unix:///run/docker.sock", None),
            ("https://etcd", None),
        ] {
            assert_eq!(port_of(place), port, "{place}");
        }
    }
}
