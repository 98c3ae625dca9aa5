//! What IPv6 has of its own for packets to be other than they seem (attacks 1, 3 and 14): headers before the one that
//! matters, addresses that count on one link, and what IPv4 has too.

use std::net::{IpAddr, Ipv6Addr};

use serde_json::{Value, json};

use super::frames::{EVERYBODY, HOST_MAC, IPV6, Listener, Packet, Port, frame, words};
use super::packets::{ACK, FIN, PUSH, RST, SYN, connect, pieces};
use super::{DUAL, dual};
use crate::lab::command::Run;

/// Headers of extension: options for each hop and for the receiver, filled with padding.
fn padding(kind: u8) -> (u8, Vec<u8>) {
    (kind, vec![0, 1, 4, 0, 0, 0, 0])
}

/// A routing header of a type, with one address still to be visited.
fn routing(kind: u8, next: Ipv6Addr) -> (u8, Vec<u8>) {
    (43, [&[2, kind, 1, 0, 0, 0, 0][..], &next.octets()].concat())
}

#[test]
#[expect(clippy::too_many_lines, reason = "a table of packets reads best in one piece")]
fn what_is_not_a_packet_of_an_allowed_flow_of_ipv6_is_dropped_whatever_headers_it_has() {
    let lab = dual(1);
    let h1 = lab.host(1);
    let rules = |inbound: Value| json!({ "inbound_rules": inbound, "outbound_rules": [{ "action": "allow" }] });
    let server = rules(json!([{ "action": "allow", "protocol": "tcp", "dst_ports": [7000] }]));
    lab.etcd().put("/calico/v1/policy/profile/server/rules", &server.to_string());
    lab.etcd().put("/calico/v1/policy/profile/server/tags", "[]");
    let run = |name: &str, profile: &str| h1.run(name, &format!("{DUAL} -e CALICO_PROFILE={profile}"));
    let (ann, eve, dan) = (run("ann", "server"), run("eve", "open"), run("dan", "open"));
    // Eve's kernel knows nothing of what is sent here, and would refuse the answers.
    let nsenter = format!("--net={}", eve.space().path());
    let quiet = ["ip6tables", "-A", "OUTPUT", "-p", "tcp", "--tcp-flags", "RST", "RST", "-j", "DROP"];
    Run::new("nsenter").arg(nsenter).args(quiet).run().ok();
    let listeners = ann
        .space()
        .enter(|| [7000u16, 7001].map(|port| std::net::TcpListener::bind((Ipv6Addr::UNSPECIFIED, port)).unwrap()));
    let (port, dans) = (Port::of(&eve), Port::of(&dan));
    let (at_ann, at_eve, at_dan) = (Listener::at(&ann.space()), Listener::at(&eve.space()), Listener::at(&dan.space()));
    let (from, to, closed) = ((eve.ip6(), 5000), (ann.ip6(), 7000), (ann.ip6(), 7001));
    let syn = |from: (Ipv6Addr, u16), to: (Ipv6Addr, u16), words: &[u8]| Packet::tcp(from, to, (1, 0), SYN, words);

    let mut silent: Vec<(String, Vec<u8>)> = Vec::new();
    let mut send = |what: &str, make: &dyn Fn(&[u8]) -> Vec<Packet>| {
        let words = words();
        for packet in &make(&words) {
            port.send(packet);
        }
        silent.push((what.to_owned(), words));
    };
    let ports = [5000u16, 7000].map(u16::to_be_bytes).concat();
    for protocol in [2, 4, 33, 41, 46, 47, 50, 51, 59, 89, 103, 132, 136, 139, 253, 255] {
        send(&format!("protocol {protocol}"), &|words| {
            vec![Packet::new(eve.ip6(), ann.ip6(), protocol, [&ports, &[0; 12][..], words].concat())]
        });
    }
    send("udp to the port that is open in tcp", &|words| vec![Packet::udp(from, to, words)]);
    for (name, flags) in [
        ("nothing", 0),
        ("FIN", FIN),
        ("RST", RST),
        ("SYN and FIN", SYN | FIN),
        ("SYN and RST", SYN | RST),
        ("everything", 0x3f),
        ("an acknowledgement", ACK),
    ] {
        send(&format!("tcp with {name}"), &|words| vec![Packet::tcp(from, to, (1, 1), flags, words)]);
    }
    // A closed port behind every kind of header, and behind many.
    let [hops, receiver] = [0, 60].map(padding);
    let chains = [
        ("options for each hop", vec![hops.clone()]),
        ("options for the receiver", vec![receiver.clone()]),
        ("eight headers of options", vec![receiver.clone(); 8]),
        ("a routing header of type 0", vec![routing(0, dan.ip6())]),
        ("a routing header of type 2", vec![routing(2, dan.ip6())]),
        ("a routing header of type 4", vec![routing(4, dan.ip6())]),
        ("all of them", vec![hops, receiver.clone(), routing(0, dan.ip6()), receiver.clone()]),
        ("a fragment that is whole", vec![(44, vec![0, 0, 0, 0, 0, 0, 9])]),
    ];
    for (what, extensions) in &chains {
        send(&format!("a closed port behind {what}"), &|words| {
            vec![Packet { extensions: extensions.clone(), ..syn(from, closed, words) }]
        });
    }
    send("a closed port behind a header of authentication", &|words| {
        let head = (51, [&[4, 0, 0][..], &[0; 20]].concat());
        vec![Packet { extensions: vec![head], ..syn(from, closed, words) }]
    });
    // By its host, on to one whom the policy of the way does not know.
    h1.sh("sysctl -qw net.ipv6.conf.all.accept_source_route=1");
    for kind in [0, 2, 3, 4] {
        send(&format!("a way by the host, of type {kind}"), &|words| {
            vec![Packet { extensions: vec![routing(kind, ann.ip6())], ..syn(from, (h1.ip6, 7001), words) }]
        });
    }
    // The words where no cut goes through them, neither here nor where the packet is cut again.
    let long = |words: &[u8]| [&[0; 100][..], words, &[0; 100][..]].concat();
    let broken = |number: u16, first: usize, from: (Ipv6Addr, u16), to: (Ipv6Addr, u16), words: &[u8]| {
        let whole = syn(from, to, &long(words));
        let end = whole.payload.len();
        pieces(&whole, number, &[(0, first, true), (first, first + 8, true), (first + 8, end, false)])
    };
    send("pieces of a packet to a closed port", &|words| broken(1, 24, (eve.ip6(), 5001), closed, words));
    // (A first piece that does not hold all of the header is ill made, whatever it is for: RFC 8200, 4.5.)
    for to in [to, closed] {
        send("pieces, the first of which is too short", &|words| broken(6, 8, (eve.ip6(), 5008), to, words));
    }
    send("pieces that overlap", &|words| {
        let (open, shut) = (syn((eve.ip6(), 5002), to, &long(words)), syn((eve.ip6(), 5002), closed, &long(words)));
        let mut all = pieces(&open, 2, &[(0, 24, true)]);
        all.extend(pieces(&shut, 2, &[(0, 16, true), (16, shut.payload.len(), false)]));
        all
    });
    send("a last piece alone", &|words| {
        let whole = syn(from, to, &[&[0; 44][..], words].concat());
        pieces(&whole, 3, &[(64, whole.payload.len(), false)])
    });
    send("a first piece that ends before the ports", &|words| {
        // Options for the receiver, and in the second piece what they stand before.
        let tcp = syn((eve.ip6(), 5005), closed, words).payload;
        let inner = [&[6][..], &padding(60).1, &tcp].concat();
        let whole = Packet::new(eve.ip6(), ann.ip6(), 60, inner);
        let end = whole.payload.len();
        pieces(&whole, 5, &[(0, 8, true), (8, end, false)])
    });
    let sources = ["::", "::1", "fe80::1", "::ffff:10.0.0.1", "ff02::1", "ff0e::1"];
    for source in sources.map(|text| text.parse::<Ipv6Addr>().unwrap()).into_iter().chain([dan.ip6(), h1.ip6]) {
        send(&format!("the open port, under {source}"), &|words| vec![syn((source, 5000), to, words)]);
    }

    // What is allowed, by the same ways.
    let [whole, behind, in_pieces] = [words(), words(), words()];
    port.send(&syn((eve.ip6(), 5003), to, &whole));
    at_ann.comes_to_hear("a packet to the open port", &whole);
    port.send(&Packet { extensions: vec![receiver], ..syn((eve.ip6(), 5006), to, &behind) });
    at_ann.comes_to_hear("a packet to the open port behind options", &behind);
    for packet in &broken(4, 24, (eve.ip6(), 5007), to, &in_pieces) {
        port.send(packet);
    }
    at_ann.comes_to_hear("a packet to the open port in pieces", &in_pieces);

    // Inside a connection, from its end and from another who knows all of it.
    let from = (eve.ip6(), 5004);
    let (number, acknowledged) = connect(&port, &at_eve, (IpAddr::V6(from.0), from.1), (IpAddr::V6(to.0), to.1));
    let say = |port: &Port, number: u32, acknowledged, flags, words: &[u8]| {
        port.send(&Packet::tcp(from, to, (number, acknowledged), flags, words));
    };
    let [late, unseen, injected, reset, good] = [words(), words(), words(), words(), words()];
    say(&port, number.wrapping_add(1 << 29), acknowledged, ACK | PUSH, &late);
    say(&port, number, acknowledged.wrapping_add(1 << 29), ACK | PUSH, &unseen);
    say(&dans, number, acknowledged, ACK | PUSH, &injected);
    say(&dans, number, acknowledged, RST | ACK, &reset);
    say(&port, number, acknowledged, ACK | PUSH, &good);
    at_ann.comes_to_hear("what is said within the connection", &good);
    silent.extend(
        [("too late a number", late), ("an acknowledgement of nothing", unseen)]
            .map(|(what, words)| (what.to_owned(), words)),
    );
    for (what, words) in &silent {
        assert!(!at_ann.heard(words) && !at_dan.heard(words), "{what} arrives");
    }
    for (what, words) in [("what dan says in eve's connection", injected), ("dan's end of eve's connection", reset)] {
        assert!(!at_ann.heard(&words), "{what} arrives");
    }
    drop(listeners);
    lab.assert_consistent();
}

#[test]
fn nothing_but_its_own_packets_of_ipv6_leaves_a_containers_link() {
    let lab = dual(1);
    let h1 = lab.host(1);
    let open = format!("{DUAL} -e CALICO_PROFILE=open");
    let (ann, bob, eve) = (h1.run("ann", &open), h1.run("bob", &open), h1.run("eve", &open));
    let port = Port::of(&eve);
    let ann_mac = Port::of(&ann).mac;
    let foreign = [2, 0, 0, 0, 0, 9];
    let (bobs, anns, outside) = (Listener::at(&bob.space()), Listener::at(&ann.space()), Listener::at(&lab.outside()));
    let packet = |from: Ipv6Addr, to: Ipv6Addr, words: &[u8]| Packet::udp((from, 5000), (to, 7000), words).bytes();
    let tagged = |tag: &[u8], payload: &[u8]| [tag, &IPV6.to_be_bytes()[..], payload].concat();
    for (whom, ear, to) in [("bob", &bobs, bob.ip6()), ("the outside", &outside, crate::lab::OUTSIDE6)] {
        let mut silent: Vec<(&str, Vec<u8>)> = Vec::new();
        let mut send = |what, make: &dyn Fn(&[u8]) -> Vec<u8>| {
            let words = words();
            port.send_frame(&make(&words));
            silent.push((what, words));
        };
        let own = |words: &[u8]| packet(eve.ip6(), to, words);
        send("a foreign Ethernet address", &|words| frame(HOST_MAC, foreign, IPV6, &own(words)));
        send("ann's Ethernet address", &|words| frame(HOST_MAC, ann_mac, IPV6, &own(words)));
        send("ann's both addresses", &|words| frame(HOST_MAC, ann_mac, IPV6, &packet(ann.ip6(), to, words)));
        send("a frame to everybody", &|words| frame(EVERYBODY, port.mac, IPV6, &own(words)));
        send("a frame to a group", &|words| frame([0x33, 0x33, 0, 0, 0, 1], port.mac, IPV6, &own(words)));
        send("a frame to a foreign host", &|words| frame(foreign, port.mac, IPV6, &own(words)));
        send("a frame of IPv4 in name", &|words| frame(HOST_MAC, port.mac, super::frames::IPV4, &own(words)));
        send("a VLAN", &|words| frame(HOST_MAC, port.mac, 0x8100, &tagged(&[0, 5], &own(words))));
        send("a VLAN in a VLAN", &|words| {
            let inner = tagged(&[0, 5], &own(words));
            frame(HOST_MAC, port.mac, 0x88a8, &[&[0, 7, 0x81, 0][..], &inner].concat())
        });
        send("a priority tag and ann's address", &|words| {
            frame(HOST_MAC, port.mac, 0x8100, &tagged(&[0xe0, 0], &packet(ann.ip6(), to, words)))
        });
        for group in ["ff01::1", "ff02::1", "ff02::2", "ff02::fb", "ff05::2", "ff0e::101"] {
            let group: Ipv6Addr = group.parse().unwrap();
            let [.., a, b, c, d] = group.octets();
            send("a packet to a group", &|words| {
                frame([0x33, 0x33, a, b, c, d], port.mac, IPV6, &packet(eve.ip6(), group, words))
            });
            send("a packet to a group, to the host", &|words| {
                frame(HOST_MAC, port.mac, IPV6, &packet(eve.ip6(), group, words))
            });
        }
        let words = words();
        port.send_frame(&frame(HOST_MAC, port.mac, IPV6, &own(&words)));
        ear.comes_to_hear(&format!("eve's own packet to {whom}"), &words);
        for (what, words) in &silent {
            assert!(![&bobs, &anns, &outside].iter().any(|ear| ear.heard(words)), "{what} arrives, to {whom}");
        }
    }
    lab.assert_consistent();
}
