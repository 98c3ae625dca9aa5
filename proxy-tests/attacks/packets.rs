//! Packets that belong to nothing, or to more than they seem to (attack 14 of the catalogue).

use std::net::IpAddr;

use serde_json::json;

use super::frames::{Listener, MORE, Packet, Port, words};
use crate::lab::Lab;
use crate::lab::container::SOON;
use crate::lab::netns::Probe;
use crate::lab::wait::wait_for;

pub(super) const FIN: u8 = 1;
pub(super) const SYN: u8 = 2;
pub(super) const RST: u8 = 4;
pub(super) const PUSH: u8 = 8;
pub(super) const ACK: u8 = 16;

/// The pieces of a packet, each with its offset in bytes and whether more follow.
pub(super) fn pieces(whole: &Packet, number: u16, cuts: &[(usize, usize, bool)]) -> Vec<Packet> {
    let piece = |&(from, to, more): &(usize, usize, bool)| {
        let offset = u16::try_from(from / 8).unwrap();
        let payload = whole.payload[from..to].to_vec();
        Packet { fragment: (number, offset | if more { MORE } else { 0 }), payload, ..whole.clone() }
    };
    cuts.iter().map(piece).collect()
}

/// A TCP connection by hand: the numbers with which it goes on.
pub(super) fn connect(port: &Port, ear: &Listener, from: (IpAddr, u16), to: (IpAddr, u16)) -> (u32, u32) {
    // Where the sender's address is in a frame, and where the TCP header begins.
    let (sender, tcp) = if from.0.is_ipv4() { (26..30, 34) } else { (22..38, 54) };
    let whose = match to.0 {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    };
    port.send(&Packet::tcp(from, to, (1000, 0), SYN, &[]));
    let theirs = wait_for("the connection is answered", SOON, || {
        let mut number = None;
        ear.heard_where(|frame| {
            let answers = frame.len() >= tcp + 20
                && frame[sender.clone()] == whose
                && frame[tcp + 2..tcp + 4] == from.1.to_be_bytes()
                && frame[tcp + 13] == SYN | ACK;
            if answers {
                number = frame[tcp + 4..tcp + 8].try_into().ok().map(u32::from_be_bytes);
            }
            answers
        });
        number
    });
    port.send(&Packet::tcp(from, to, (1001, theirs + 1), ACK, &[]));
    (1001, theirs + 1)
}

#[test]
#[expect(clippy::too_many_lines, reason = "a table of packets reads best in one piece")]
fn what_is_not_a_packet_of_an_allowed_flow_is_dropped_whatever_it_looks_like() {
    let lab = Lab::hosts(1);
    let h1 = lab.host(1);
    let put = |profile: &str, inbound: serde_json::Value, outbound: serde_json::Value| {
        let rules = json!({ "id": profile, "inbound_rules": inbound, "outbound_rules": outbound });
        lab.etcd().put(&format!("/calico/v1/policy/profile/{profile}/rules"), &rules.to_string());
        lab.etcd().put(&format!("/calico/v1/policy/profile/{profile}/tags"), "[]");
    };
    let all = json!([{ "action": "allow" }]);
    put("server", json!([{ "action": "allow", "protocol": "tcp", "dst_ports": [7000] }]), all.clone());
    put("open", all.clone(), all.clone());
    h1.start_node();
    let run = |name: &str, profile: &str| h1.run(name, &format!("-e CALICO_IP=auto -e CALICO_PROFILE={profile}"));
    let (ann, eve, dan) = (run("ann", "server"), run("eve", "open"), run("dan", "open"));
    // Eve's kernel knows nothing of what is sent here, and would refuse the answers.
    let nsenter = format!("--net={}", eve.space().path());
    let quiet = ["iptables", "-A", "OUTPUT", "-p", "tcp", "--tcp-flags", "RST", "RST", "-j", "DROP"];
    crate::lab::command::Run::new("nsenter").arg(nsenter).args(quiet).run().ok();
    let servers = ann.serve(&[7000, 7001]);
    let (port, at_eve) = (Port::of(&eve), Listener::at(&eve.space()));
    let (at_ann, at_dan) = (Listener::at(&ann.space()), Listener::at(&dan.space()));
    let (from, to) = ((eve.ip(), 5000), (ann.ip(), 7000));

    let mut silent: Vec<(String, Vec<u8>)> = Vec::new();
    let mut send = |what: &str, make: &dyn Fn(&[u8]) -> Vec<Packet>| {
        let words = words();
        for packet in &make(&words) {
            port.send(packet);
        }
        silent.push((what.to_owned(), words));
    };
    let ports = |to: u16| [5000u16, to].map(u16::to_be_bytes).concat();
    for protocol in [2, 4, 33, 41, 46, 47, 50, 51, 89, 103, 132, 136, 253, 255] {
        send(&format!("protocol {protocol}"), &|words| {
            vec![Packet::new(eve.ip(), ann.ip(), protocol, [&ports(7000), &[0; 12][..], words].concat())]
        });
    }
    send("a packet in a packet", &|words| {
        let inner = Packet::tcp(from, to, (1, 0), SYN, words).bytes();
        vec![Packet::new(eve.ip(), ann.ip(), 4, inner)]
    });
    send("udp to the port that is open in tcp", &|words| vec![Packet::udp(from, to, words)]);
    for (name, flags) in [
        ("nothing", 0),
        ("FIN", FIN),
        ("RST", RST),
        ("SYN and FIN", SYN | FIN),
        ("SYN and RST", SYN | RST),
        ("everything", 0x3f),
        ("FIN, PUSH and URG", FIN | PUSH | 0x20),
    ] {
        send(&format!("tcp with {name}"), &|words| vec![Packet::tcp(from, to, (1, 1), flags, words)]);
    }
    for flags in [SYN, ACK, SYN | ACK, ACK | PUSH] {
        send(&format!("tcp with {flags:#x} to a closed port"), &|words| {
            vec![Packet::tcp(from, (ann.ip(), 7001), (1, 1), flags, words)]
        });
    }
    // The ports in a first piece of eight bytes, the rest in others.
    let fragments = |number: u16, to: u16, words: &[u8]| {
        let data = [words, &[0; 200][..]].concat();
        let whole = Packet::tcp((eve.ip(), 5001), (ann.ip(), to), (1, 0), SYN, &data);
        let end = whole.payload.len();
        pieces(&whole, number, &[(0, 8, true), (8, 16, true), (16, end, false)])
    };
    send("pieces of a packet to a closed port", &|words| fragments(1, 7001, words));
    send("pieces that overlap", &|words| {
        let data = [words, &[0; 200][..]].concat();
        let allowed = Packet::tcp((eve.ip(), 5002), to, (1, 0), SYN, &data);
        let closed = Packet::tcp((eve.ip(), 5002), (ann.ip(), 7001), (1, 0), SYN, &data);
        let end = allowed.payload.len();
        let mut all = pieces(&allowed, 2, &[(0, 24, true)]);
        all.extend(pieces(&closed, 2, &[(0, 16, true), (16, end, false)]));
        all
    });
    send("a last piece alone", &|words| {
        let whole = Packet::tcp(from, to, (1, 0), SYN, &[&[0; 44][..], words].concat());
        pieces(&whole, 3, &[(64, whole.payload.len(), false)])
    });
    // A way that the sender chooses: by the host, on to one whom the policy of the way does not know.
    h1.sh("sysctl -qw net.ipv4.conf.all.accept_source_route=1");
    for kind in [131, 137] {
        send(&format!("a source route of type {kind}"), &|words| {
            let mut packet = Packet::udp(from, (h1.ip, 7000), words);
            packet.options = [&[kind, 7, 4][..], &dan.ip().octets(), &[0]].concat();
            vec![packet]
        });
    }
    // Errors about flows that are not there, and of which eve is no part.
    let flow = Packet::udp((ann.ip(), 6000), (dan.ip(), 7000), &[0; 8]).bytes();
    send("an error about no flow", &|words| {
        vec![Packet::icmp(eve.ip(), ann.ip(), (3, 3), 0, &[&flow, words].concat())]
    });

    // What is allowed, by the same ways: whole, in pieces, and inside a connection.
    let whole = words();
    port.send(&Packet::tcp((eve.ip(), 5003), to, (1, 0), SYN, &whole));
    at_ann.comes_to_hear("a packet to the open port", &whole);
    let broken = words();
    for packet in &fragments(4, 7000, &broken) {
        port.send(packet);
    }
    at_ann.comes_to_hear("a packet to the open port in pieces", &broken);

    let from = (eve.ip(), 5004);
    let (number, acknowledged) = connect(&port, &at_eve, (from.0.into(), from.1), (to.0.into(), to.1));
    let (late, unseen, good) = (words(), words(), words());
    let say = |number, acknowledged, words: &[u8]| {
        port.send(&Packet::tcp(from, to, (number, acknowledged), ACK | PUSH, words));
    };
    // (Too low a number passes as a late repetition and is for the receiver to drop: linux nf_conntrack_proto_tcp.c.)
    say(number.wrapping_add(1 << 29), acknowledged, &late);
    say(number, acknowledged.wrapping_add(1 << 29), &unseen);
    say(number, acknowledged, &good);
    at_ann.comes_to_hear("what is said within the connection", &good);
    silent.extend(
        [("too late a number", late), ("an acknowledgement of nothing", unseen)]
            .map(|(what, words)| (what.to_owned(), words)),
    );
    let open = words();
    port.send(&Packet::udp(from, (dan.ip(), 7000), &open));
    at_dan.comes_to_hear("a packet to one who is open", &open);
    for (what, words) in &silent {
        assert!(!at_ann.heard(words) && !at_dan.heard(words), "{what} arrives");
    }
    assert!(eve.gets_through(ann.ip(), Probe::Tcp { from: None, to: 7000 }));
    drop(servers);
    lab.assert_consistent();
}
