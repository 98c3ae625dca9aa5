//! BIRD's configuration: who this host speaks BGP with, and what it tells them.
//!
//! BIRD learns the containers' routes from the kernel and advertises what lies in a pool; what peers tell goes into the
//! kernel. The peers are the full mesh of all hosts unless it is switched off, the global peers, and the host's own.
//!
//! One address is one session: a peer that stands in several lists is rendered once, the host's own list first, then the
//! global one, then the mesh. The original rendered it once per list and BIRD refused the file for its equal names.
//! Limit: IPv4 only; peers with an IPv6 address are left out.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::{IpAddr, Ipv4Addr};

use ipnet::IpNet;

use crate::model::bgp::AsNumber;
use crate::model::key::BgpScope;
use crate::model::name::{HostName, INTERFACE_PREFIX};
use crate::model::pool::Family;
use crate::model::snapshot::{Record, Snapshot};

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
    as_number: AsNumber,
    talk: Talk,
    pools: Vec<IpNet>,
    peers: BTreeMap<Ipv4Addr, Neighbor>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Neighbor {
    name: String,
    as_number: AsNumber,
    words: String,
}

/// What the BIRD of a host should do, by the snapshot.
pub(crate) fn desired_bird(snapshot: &Snapshot, host: &HostName, ip: Ipv4Addr) -> Speaker {
    let mut speaker = Speaker {
        ip,
        as_number: snapshot.as_of(host),
        talk: talk(snapshot, host),
        pools: snapshot.pools_of(Family::V4).map(|pool| pool.cidr).collect(),
        peers: BTreeMap::new(),
    };
    let own = BgpScope::Host(host.clone());
    for (scope, prefix, words) in
        [(&own, "Node", "peer of this host"), (&BgpScope::Global, "Global", "peer of all hosts")]
    {
        let records = snapshot.bgp_peers.iter().filter(|((of, _), _)| of == scope);
        for peer in records.filter_map(|(_, record)| record.readable()) {
            if let IpAddr::V4(address) = peer.ip {
                speaker.meet(prefix, address, peer.as_num, words);
            }
        }
    }
    let mesh = snapshot.bgp_mesh.as_ref().and_then(Record::readable).is_none_or(|mesh| mesh.enabled);
    if mesh {
        for ((other, family), record) in &snapshot.bgp_ips {
            // Known again by name as well as by address: the address in the datastore may be one that we had before.
            let Some(Some(IpAddr::V4(address))) = record.readable() else { continue };
            if other != host && *address != ip && *family == Family::V4 {
                speaker.meet("Mesh", *address, snapshot.as_of(other), &format!("host {other}"));
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
    fn meet(&mut self, prefix: &str, address: Ipv4Addr, as_number: AsNumber, words: &str) {
        if address.is_unspecified() {
            return;
        }
        let name = format!("{prefix}_{}", address.to_string().replace('.', "_"));
        self.peers.entry(address).or_insert_with(|| Neighbor { name, as_number, words: words.to_owned() });
    }

    /// The text of BIRD's file. Source of the grammar: BIRD 2.0.12, doc/bird.sgml.
    pub(crate) fn render(&self) -> String {
        let mut text = String::from("# Written by calico-node; changes are lost.\n");
        // BIRD wants one even when it speaks with nobody.
        let id = if self.ip.is_unspecified() { Ipv4Addr::new(0, 0, 0, 1) } else { self.ip };
        let _ = writeln!(text, "router id {id};\nlog stderr all;\n");
        self.render_filters(&mut text);
        self.render_kernel(&mut text);
        if !self.ip.is_unspecified() && !self.peers.is_empty() {
            self.render_peers(&mut text);
        }
        text
    }

    fn render_filters(&self, text: &mut String) {
        text.push_str("# What peers are told.\nfilter calico_pools {\n");
        for pool in &self.pools {
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

    fn render_kernel(&self, text: &mut String) {
        let debug = self.debug();
        let _ = write!(
            text,
            "protocol device {{\n{debug}  scan time 2;\n}}\n\n\
             # Next hops of peers lie in the networks of the host's own interfaces.\n\
             protocol direct {{\n{debug}  ipv4;\n  interface -\"{INTERFACE_PREFIX}*\", \"*\";\n}}\n\n\
             protocol kernel {{\n{debug}  learn;\n  persist;\n  scan time 2;\n  graceful restart;\n  ipv4 {{\n    import all;\n    \
             export where source = RTS_BGP;\n  }};\n}}\n\n"
        );
    }

    fn render_peers(&self, text: &mut String) {
        let (ip, debug) = (self.ip, self.debug());
        let _ = write!(
            text,
            "template bgp calico_bgp {{\n{debug}  local as {};\n  multihop;\n  source address {ip};\n  graceful restart;\n  \
             graceful restart time 3600;\n  ipv4 {{\n    import all;\n    export filter calico_pools;\n    next hop self;\n    \
             gateway recursive;\n    add paths on;\n  }};\n}}\n",
            self.as_number
        );
        for (address, Neighbor { name, as_number, words }) in &self.peers {
            let _ = write!(
                text,
                "\nprotocol bgp {name} from calico_bgp {{\n  description \"{words}\";\n  neighbor {address} as {as_number};\n}}\n"
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
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
        let speaker = desired_bird(&snapshot, &host.parse().unwrap(), ip.parse().unwrap());
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
    fn the_mesh_can_be_switched_off() {
        let off = r#", "/calico/bgp/v1/global/node_mesh": {"enabled": false}"#;
        assert_eq!(names(off, "h5", "172.25.0.9"), ["Global_10_0_0_7 64512"]);
    }
}
