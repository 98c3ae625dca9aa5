//! BIRD's configuration: who this host speaks BGP with, and what it tells them.
//!
//! BIRD learns the containers' routes from the kernel and advertises them, and those that other hosts have told of, as far
//! as they lie in a pool; what peers tell goes into the kernel. The peers are the full mesh of all hosts unless it is
//! switched off, the global peers, and the host's own. What else of this host lies in a pool is nobody's business: a network
//! of an interface, a bridge's or a tunnel's. Other hosts would send there what is meant for another network of that number,
//! and where it is the one that this host itself is in, they would lose the way to it.
//!
//! What is believed of whom: a host of the mesh tells of single addresses in pools and of nothing else. A peer that somebody has
//! configured may be a router of the site, so it may tell of anything, a default route too, as in the original. But neither
//! takes the place of a route that the host has already, whatever its metric: not of a container here, nor of the host's
//! own default.
//!
//! One address is one session: a peer that stands in several lists is rendered once, the host's own list first, then the
//! global one, then the mesh. The original rendered it once per list and BIRD refused the file for its equal names.
//! Each family has sessions of its own, between addresses of that family, so that either goes on when the other is broken.
//! A host without an IPv6 address of its own speaks of IPv4 only, and peers with an IPv6 address are left out there.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

use crate::model::bgp::AsNumber;
use crate::model::host::Host;
use crate::model::key::BgpScope;
use crate::model::name::{HostName, INTERFACE_PREFIX};
use crate::model::pool::{Family, nobodys};
use crate::model::snapshot::{Record, Snapshot};

use super::routes::ROUTE_PROTOCOL;

/// What the names of sessions with other hosts begin with.
const MESH: &str = "Mesh";

/// How BIRD prefers routes that are in the kernel already: the containers' and the host's own. Above its 100 for BGP (BIRD
/// 2.0.12, doc/bird.sgml, "preference"), or whoever announces the address of a container here would silence it to everybody.
const OWN_FIRST: u16 = 200;

/// How much BIRD says of what its protocols do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Talk {
    Nothing,
    States,
    All,
}

/// What a host's BIRD should do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Speaker {
    /// Unspecified: the host has no address, so there is nobody to speak with.
    ip: Ipv4Addr,
    ip6: Option<Ipv6Addr>,
    as_number: AsNumber,
    talk: Talk,
    /// Of the families that the host has an address of.
    pools: Vec<IpNet>,
    peers: BTreeMap<IpAddr, Neighbor>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Neighbor {
    name: String,
    as_number: AsNumber,
    words: String,
}

/// How long a BIRD that begins waits for all of its peers before it brings routes to the kernel and to anybody else: of one that is
/// switched off it would hear nothing, and its own limit is 240 s. A session comes about within some 5 s ("connect delay time").
/// Source: BIRD 2.0.12, doc/bird.sgml, "graceful restart wait".
const RECOVERY_S: u32 = 30;

/// What the BIRD of a host should do, by the snapshot.
pub(crate) fn desired_bird(snapshot: &Snapshot, host: &Host) -> Speaker {
    let families = host.addresses().map(Family::of);
    let mut speaker = Speaker {
        ip: host.ip,
        ip6: host.ip6,
        as_number: snapshot.as_of(&host.name),
        talk: talk(snapshot, &host.name),
        pools: families.flat_map(|family| snapshot.pools_of(family)).map(|pool| pool.cidr).collect(),
        peers: BTreeMap::new(),
    };
    let is_own = |address: &IpAddr| host.addresses().any(|own| own == *address);
    let own = BgpScope::Host(host.name.clone());
    for (scope, prefix, words) in
        [(&own, "Node", "peer of this host"), (&BgpScope::Global, "Global", "peer of all hosts")]
    {
        let records = snapshot.bgp_peers.iter().filter(|((of, _), _)| of == scope);
        for peer in records.filter_map(|(_, record)| record.readable()).filter(|peer| !is_own(&peer.ip)) {
            speaker.meet(prefix, peer.ip, peer.as_num, words);
        }
    }
    let mesh = snapshot.bgp_mesh.as_ref().and_then(Record::readable).is_none_or(|mesh| mesh.enabled);
    if mesh {
        for ((other, family), record) in &snapshot.bgp_ips {
            // Known again by name as well as by address: the address in the datastore may be one that we had before.
            let Some(Some(address)) = record.readable() else { continue };
            if *other != host.name && !is_own(address) && *family == Family::of(*address) {
                speaker.meet(MESH, *address, snapshot.as_of(other), &format!("host {other}"));
            }
        }
    }
    speaker
}

fn talk(snapshot: &Snapshot, host: &HostName) -> Talk {
    let level = |scope: &BgpScope| snapshot.bgp_log.get(scope).and_then(Record::readable).map(String::as_str);
    match level(&BgpScope::Host(host.clone())).or_else(|| level(&BgpScope::Global)) {
        Some("none") => Talk::Nothing,
        Some("debug") => Talk::All,
        _ => Talk::States,
    }
}

impl Speaker {
    fn meet(&mut self, prefix: &str, address: IpAddr, as_number: AsNumber, words: &str) {
        // Whom nobody can be reached at is no neighbour: BIRD would read nothing of a file that names him.
        if nobodys(address).is_some() || (address.is_ipv6() && self.ip6.is_none()) {
            return;
        }
        let name = format!("{prefix}_{}", address.to_string().replace(['.', ':'], "_"));
        self.peers.entry(address).or_insert_with(|| Neighbor { name, as_number, words: words.to_owned() });
    }

    /// The text of BIRD's file. Source of the grammar: BIRD 2.0.12, doc/bird.sgml.
    pub(crate) fn render(&self) -> String {
        let mut text = String::from("# Written by calico-node; changes are lost.\n");
        // BIRD wants one even when it speaks with nobody.
        let id = if self.ip.is_unspecified() { Ipv4Addr::new(0, 0, 0, 1) } else { self.ip };
        let _ = writeln!(text, "router id {id};\nlog stderr all;");
        let _ = writeln!(text, "graceful restart wait {RECOVERY_S};\n");
        let channels: Vec<Channel> =
            [Some(IpAddr::V4(self.ip)), self.ip6.map(IpAddr::V6)].into_iter().flatten().map(Channel::of).collect();
        for channel in &channels {
            self.render_filters(channel, &mut text);
        }
        self.render_kernel(&channels, &mut text);
        for channel in channels.iter().filter(|channel| !channel.ip.is_unspecified()) {
            self.render_peers(channel, &mut text);
        }
        text
    }

    fn render_filters(&self, channel: &Channel, text: &mut String) {
        let six = channel.six;
        let length = if channel.family == Family::V4 { Ipv4Addr::BITS } else { Ipv6Addr::BITS };
        let _ = writeln!(
            text,
            "# What peers are told: the containers here, and what other hosts have told.\nfilter calico_told{six} {{\n  \
             if source != RTS_BGP && source != RTS_INHERIT then reject;\n  \
             if source = RTS_INHERIT && krt_source != {ROUTE_PROTOCOL} then reject;"
        );
        self.render_pools(channel, text);
        let _ = writeln!(
            text,
            "# What the hosts of the mesh are believed.\nfilter calico_pools{six} {{\n  if net.len != {length} then reject;"
        );
        self.render_pools(channel, text);
    }

    fn render_pools(&self, channel: &Channel, text: &mut String) {
        for pool in self.pools.iter().filter(|pool| Family::of_net(**pool) == channel.family) {
            let _ = writeln!(text, "  if net ~ {pool} then accept;");
        }
        text.push_str("  reject;\n}\n\n");
    }

    fn debug(&self) -> &'static str {
        match self.talk {
            Talk::Nothing => "",
            Talk::States => "  debug { states };\n",
            Talk::All => "  debug all;\n",
        }
    }

    fn render_kernel(&self, channels: &[Channel], text: &mut String) {
        let debug = self.debug();
        let names: String = channels.iter().map(|channel| format!("  {};\n", channel.name)).collect();
        let _ = write!(
            text,
            "protocol device {{\n{debug}  scan time 2;\n}}\n\n\
             # Next hops of peers lie in the networks of the host's own interfaces.\n\
             protocol direct {{\n{debug}{names}  interface -\"{INTERFACE_PREFIX}*\", \"*\";\n}}\n\n"
        );
        for channel in channels {
            let _ = write!(
                text,
                "protocol kernel {{\n{debug}  learn;\n  persist;\n  scan time 2;\n  graceful restart;\n  {} {{\n    preference {OWN_FIRST};\n    \
                 import all;\n    export where source = RTS_BGP;\n  }};\n}}\n\n",
                channel.name
            );
        }
    }

    fn render_peers(&self, channel: &Channel, text: &mut String) {
        let mut peers = self.peers.iter().filter(|(address, _)| Family::of(**address) == channel.family).peekable();
        if peers.peek().is_none() {
            return;
        }
        let (debug, Channel { ip, name: of, six, .. }) = (self.debug(), channel);
        if !text.ends_with("\n\n") {
            text.push('\n');
        }
        let _ = write!(
            text,
            "template bgp calico_bgp{six} {{\n{debug}  local as {};\n  multihop;\n  source address {ip};\n  graceful restart;\n  \
             graceful restart time 3600;\n  {of} {{\n    import all;\n    export filter calico_told{six};\n    next hop self;\n    \
             gateway recursive;\n    add paths on;\n  }};\n}}\n",
            self.as_number,
        );
        for (address, Neighbor { name, as_number, words }) in peers {
            let _ = write!(
                text,
                "\nprotocol bgp {name} from calico_bgp{six} {{\n  description \"{words}\";\n  neighbor {address} as {as_number};\n"
            );
            if name.starts_with(MESH) {
                let _ = writeln!(text, "  {of} {{\n    import filter calico_pools{six};\n  }};");
            }
            text.push_str("}\n");
        }
    }
}

/// A family that is spoken of, and the host's address of it.
struct Channel {
    ip: IpAddr,
    family: Family,
    /// BIRD's own word for it.
    name: &'static str,
    /// What the names of its filters and of its template end in.
    six: &'static str,
}

impl Channel {
    fn of(ip: IpAddr) -> Self {
        let family = Family::of(ip);
        let (name, six) = match family {
            Family::V4 => ("ipv4", ""),
            Family::V6 => ("ipv6", "6"),
        };
        Channel { ip, family, name, six }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::host::tests::h1;
    use crate::model::snapshot::tests::from_json;

    const HOSTS: &str = r#"
        "/calico/bgp/v1/host/h1/ip_addr_v4": "172.25.0.1",
        "/calico/bgp/v1/host/h2/ip_addr_v4": "172.25.0.2",
        "/calico/bgp/v1/host/h2/as_num": "64513",
        "/calico/bgp/v1/host/h3/ip_addr_v4": "172.25.0.2",
        "/calico/bgp/v1/host/h4/ip_addr_v4": "",
        "/calico/bgp/v1/host/h5/ip_addr_v4": "172.25.0.9",
        "/calico/bgp/v1/global/peer_v4/10.0.0.7": {"ip": "10.0.0.7", "as_num": "64512"},
        "/calico/bgp/v1/host/h1/peer_v4/172.25.0.2": {"ip": "172.25.0.2", "as_num": 1}"#;

    fn names(more: &str, host: &str, ip: &str) -> Vec<String> {
        let snapshot = from_json(&format!("{{{HOSTS}{more}}}"));
        let speaker = desired_bird(&snapshot, &Host { name: host.parse().unwrap(), ip: ip.parse().unwrap(), ..h1() });
        speaker.peers.values().map(|peer| format!("{} {}", peer.name, peer.as_number)).collect()
    }

    #[test]
    fn every_address_is_one_session() {
        assert_eq!(
            names("", "h1", "172.25.0.1"),
            ["Global_10_0_0_7 64512", "Node_172_25_0_2 1", "Mesh_172_25_0_9 64511"]
        );
    }

    #[test]
    fn a_host_is_no_peer_of_itself_under_an_address_that_it_had_before() {
        assert_eq!(
            names("", "h5", "172.25.0.10"),
            ["Global_10_0_0_7 64512", "Mesh_172_25_0_1 64511", "Mesh_172_25_0_2 64513"]
        );
    }

    #[test]
    fn a_record_that_bird_cannot_read_is_nobodys_neighbour() {
        let hostile = r#",
            "/calico/bgp/v1/host/h6/ip_addr_v4": "127.0.0.1",
            "/calico/bgp/v1/host/h7/ip_addr_v4": "172.25.0.7",
            "/calico/bgp/v1/host/h7/as_num": "0",
            "/calico/bgp/v1/host/h8/ip_addr_v6": "fe80::1",
            "/calico/bgp/v1/global/peer_v6/fe80::2": {"ip": "fe80::2", "as_num": "64512"},
            "/calico/bgp/v1/global/peer_v4/10.0.0.9": {"ip": "10.0.0.9", "as_num": 0}"#;
        let snapshot = from_json(&format!("{{{HOSTS}{hostile}}}"));
        let ip6 = Some("fd00::1".parse().unwrap());
        let speaker = desired_bird(&snapshot, &Host { ip6, ..h1() });
        let met: Vec<&str> = speaker.peers.values().map(|peer| &*peer.name).collect();
        assert_eq!(met, ["Global_10_0_0_7", "Node_172_25_0_2", "Mesh_172_25_0_7", "Mesh_172_25_0_9"]);
        let text = speaker.render();
        assert!(!text.contains(" as 0;") && !text.contains("fe80"), "{text}");
        let unreadable: Vec<String> = snapshot.unreadable().into_iter().map(|(path, _)| path).collect();
        assert_eq!(unreadable, ["/calico/bgp/v1/host/h7/as_num", "/calico/bgp/v1/global/peer_v4/10.0.0.9"]);
    }

    #[test]
    fn each_family_has_sessions_of_its_own_where_the_host_has_an_address_of_it() {
        let snapshot = from_json(
            r#"{
            "/calico/v1/ipam/v6/pool/fd00::-64": {"cidr": "fd00::/64"},
            "/calico/bgp/v1/host/h1/ip_addr_v6": "2001:db8::1",
            "/calico/bgp/v1/host/h2/ip_addr_v4": "172.25.0.2",
            "/calico/bgp/v1/host/h2/ip_addr_v6": "2001:db8::2",
            "/calico/bgp/v1/host/h3/ip_addr_v6": "",
            "/calico/bgp/v1/global/peer_v6/2001:db8::7": {"ip": "2001:db8::7", "as_num": 1}
            }"#,
        );
        let speaker = |ip6: Option<&str>| {
            let ip6 = ip6.map(|text| text.parse().unwrap());
            desired_bird(&snapshot, &Host { ip6, ..h1() })
        };
        let names = |speaker: &Speaker| speaker.peers.values().map(|peer| peer.name.clone()).collect::<Vec<_>>();
        let both = speaker(Some("2001:db8::1"));
        assert_eq!(names(&both), ["Mesh_172_25_0_2", "Mesh_2001_db8__2", "Global_2001_db8__7"]);
        let text = both.render();
        assert!(text.contains("source address 2001:db8::1;") && text.contains("if net ~ fd00::/64"), "{text}");
        let four = speaker(None);
        assert_eq!(names(&four), ["Mesh_172_25_0_2"]);
        assert!(!four.render().contains("ipv6") && !four.render().contains("fd00"), "{}", four.render());
    }

    #[test]
    fn the_mesh_can_be_switched_off() {
        let off = r#", "/calico/bgp/v1/global/node_mesh": {"enabled": false}"#;
        assert_eq!(names(off, "h5", "172.25.0.9"), ["Global_10_0_0_7 64512"]);
    }
}
