//! Tricks below IP: ARP, Ethernet addresses, tags, other protocols (attack 3 of the catalogue).

use std::net::Ipv4Addr;

use super::allow_all;
use super::frames::{ARP, EVERYBODY, HOST_MAC, IPV4, Listener, Mac, Packet, Port, arp, frame, words};
use crate::lab::wait::wait_until;
use crate::lab::{Lab, OUTSIDE};

const REQUEST: u16 = 1;
const REPLY: u16 = 2;
const NOBODY: Mac = [0; 6];
/// A locally administered address that is nobody's.
const FOREIGN: Mac = [2, 0, 0, 0, 0, 9];

/// Whether a frame is an ARP reply that claims an address.
fn claims(frame: &[u8], address: Ipv4Addr) -> bool {
    frame.len() >= 42
        && frame[12..14] == ARP.to_be_bytes()
        && frame[20..22] == [0, 2]
        && frame[28..32] == address.octets()
}

#[test]
fn nothing_below_ip_leaves_a_containers_link_or_moves_anothers_traffic() {
    let lab = Lab::hosts(1);
    allow_all(&lab, "open");
    let h1 = lab.host(1);
    h1.start_node();
    let open = "-e CALICO_IP=auto -e CALICO_PROFILE=open";
    let (ann, bob, eve) = (h1.run("ann", open), h1.run("bob", open), h1.run("eve", open));
    assert!(ann.reaches(bob.ip()) && eve.reaches(bob.ip()) && h1.space.pings(ann.ip()));
    let port = Port::of(&eve);
    let bobs = Listener::at(&bob.space());
    let anns = Listener::at(&ann.space());
    let eves = Listener::at(&eve.space());
    let outside = Listener::at(&lab.outside());

    // Whoever else's address eve claims to have, nobody believes it.
    let claimed = [h1.ip, ann.ip(), bob.ip(), OUTSIDE, Ipv4Addr::LOCALHOST];
    for address in claimed {
        for (to, verb, target) in [
            (EVERYBODY, REQUEST, (NOBODY, address)),
            (EVERYBODY, REPLY, (EVERYBODY, address)),
            (HOST_MAC, REPLY, (HOST_MAC, h1.ip)),
            (HOST_MAC, REQUEST, (NOBODY, h1.ip)),
        ] {
            port.send_frame(&frame(to, port.mac, ARP, &arp(verb, (port.mac, address), target)));
        }
    }
    // The host answers eve for the next hop, but not for eve herself, nor for what it has no route to.
    let nowhere = Ipv4Addr::new(203, 0, 113, 1);
    for address in [eve.ip(), nowhere, h1.ip] {
        port.send_frame(&frame(EVERYBODY, port.mac, ARP, &arp(REQUEST, (port.mac, eve.ip()), (NOBODY, address))));
    }
    wait_until("the host answers for the next hop", crate::lab::container::SOON, || {
        eves.heard_where(|frame| claims(frame, h1.ip))
    });
    for address in [eve.ip(), nowhere] {
        assert!(!eves.heard_where(|frame| frame[6..12] == HOST_MAC && claims(frame, address)), "claims {address}");
    }
    let mac = port.mac.map(|byte| format!("{byte:02x}")).join(":");
    let poisoned: Vec<String> = h1
        .sh("ip neigh show")
        .lines()
        .filter(|line| line.contains(&mac) && !line.starts_with(&format!("{} ", eve.ip())))
        .map(str::to_owned)
        .collect();
    // A claim is believed on eve's own link at most, where nothing is routed to that address.
    let link = eve.link();
    assert!(poisoned.iter().all(|line| line.contains(&format!("dev {link} "))), "{poisoned:#?}");
    for address in claimed {
        let way = h1.sh(&format!("ip route get {address}"));
        assert!(!way.contains(&link), "{way}");
    }
    assert!(ann.reaches(bob.ip()) && h1.space.pings(ann.ip()) && h1.space.pings(OUTSIDE));

    // On its own network the host answers for itself and for no container.
    let switch = Port::open(&lab.outside(), "br0");
    for address in [bob.ip(), eve.ip(), h1.ip] {
        switch.send_frame(&frame(EVERYBODY, switch.mac, ARP, &arp(REQUEST, (switch.mac, OUTSIDE), (NOBODY, address))));
    }
    wait_until("the host answers on its network", crate::lab::container::SOON, || {
        outside.heard_where(|frame| claims(frame, h1.ip))
    });
    for address in [bob.ip(), eve.ip()] {
        assert!(!outside.heard_where(|frame| claims(frame, address)), "the host claims {address} on its network");
    }

    // Frames that are not what eve's own IP sends.
    let packet = |from: Ipv4Addr, to: Ipv4Addr, words: &[u8]| Packet::udp((from, 5000), (to, 7000), words).bytes();
    let tagged = |tag: &[u8], payload: &[u8]| [tag, &IPV4.to_be_bytes()[..], payload].concat();
    let ann_mac = Port::of(&ann).mac;
    for (whom, ear, to) in [("bob", &bobs, bob.ip()), ("the outside", &outside, OUTSIDE)] {
        let mut silent: Vec<(&str, Vec<u8>)> = Vec::new();
        let mut send = |what, make: &dyn Fn(&[u8]) -> Vec<u8>| {
            let words = words();
            port.send_frame(&make(&words));
            silent.push((what, words));
        };
        send("a foreign Ethernet address", &|words| frame(HOST_MAC, FOREIGN, IPV4, &packet(eve.ip(), to, words)));
        send("ann's Ethernet address", &|words| frame(HOST_MAC, ann_mac, IPV4, &packet(eve.ip(), to, words)));
        send("ann's both addresses", &|words| frame(HOST_MAC, ann_mac, IPV4, &packet(ann.ip(), to, words)));
        send("a frame to everybody", &|words| frame(EVERYBODY, port.mac, IPV4, &packet(eve.ip(), to, words)));
        send("a frame to a foreign host", &|words| frame(FOREIGN, port.mac, IPV4, &packet(eve.ip(), to, words)));
        send("a VLAN", &|words| frame(HOST_MAC, port.mac, 0x8100, &tagged(&[0, 5], &packet(eve.ip(), to, words))));
        send("a VLAN in a VLAN", &|words| {
            let inner = tagged(&[0, 5], &packet(eve.ip(), to, words));
            frame(HOST_MAC, port.mac, 0x88a8, &[&[0, 7, 0x81, 0][..], &inner].concat())
        });
        send("a priority tag and ann's address", &|words| {
            frame(HOST_MAC, port.mac, 0x8100, &tagged(&[0xe0, 0], &packet(ann.ip(), to, words)))
        });
        for kind in [0x88b5, 0x88cc, 0x8863, 0x8847, 0x9000] {
            send("another protocol, to everybody", &|words| frame(EVERYBODY, port.mac, kind, words));
            send("another protocol, to the host", &|words| frame(HOST_MAC, port.mac, kind, words));
        }
        send("a packet to everybody", &|words| {
            frame(EVERYBODY, port.mac, IPV4, &packet(eve.ip(), Ipv4Addr::BROADCAST, words))
        });
        send("a packet to a group", &|words| {
            frame([1, 0, 0x5e, 0, 0, 0xfb], port.mac, IPV4, &packet(eve.ip(), Ipv4Addr::new(224, 0, 0, 251), words))
        });
        let own = words();
        port.send_frame(&frame(HOST_MAC, port.mac, IPV4, &packet(eve.ip(), to, &own)));
        ear.comes_to_hear(&format!("eve's own packet to {whom}"), &own);
        for (what, words) in &silent {
            assert!(![&bobs, &anns, &outside].iter().any(|ear| ear.heard(words)), "{what} arrives, to {whom}");
        }
    }
    lab.assert_consistent();
}
