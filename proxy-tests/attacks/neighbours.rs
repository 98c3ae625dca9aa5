//! Neighbours that are not there (attacks 3 and 15): the kernel has one table of neighbours for all links of a machine, so
//! whoever fills it with what he makes up cuts others off.

use std::net::{Ipv4Addr, Ipv6Addr};

use super::frames::{ARP, EVERYBODY, HOST_MAC, Listener, Mac, Packet, Port, arp, frame, words};
use super::{DUAL, dual};
use crate::lab::OUTSIDE;
use crate::lab::command::Run;
use crate::lab::container::{Container, SOON};
use crate::lab::wait::wait_until;

/// How many are made up: far below what the machine's table holds, for it is that of other tests too.
const MANY: u16 = 200;

const NEXT_HOP: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0xecee, 0xeeff, 0xfeee, 0xeeee);

/// Where whoever looks for the next hop sends his question: the group and its Ethernet address (RFC 4291, 2.7.1).
const ASKED: (Ipv6Addr, Mac) =
    (Ipv6Addr::new(0xff02, 0, 0, 0, 0, 1, 0xffee, 0xeeee), [0x33, 0x33, 0xff, 0xee, 0xee, 0xee]);

/// A message of neighbour discovery: who it is about, and the Ethernet address that it tells, as which option.
fn discovery(kind: u8, word: u32, from: Ipv6Addr, to: Ipv6Addr, about: Ipv6Addr, (option, mac): (u8, Mac)) -> Packet {
    let data = [&about.octets()[..], &[option, 1], &mac].concat();
    Packet::icmp(from, to, (kind, 0), word, &data)
}

fn link_local(mac: Mac) -> Ipv6Addr {
    let [a, b, c, d, e, f] = mac;
    Ipv6Addr::from([0xfe, 0x80, 0, 0, 0, 0, 0, 0, a ^ 2, b, c, 0xff, 0xfe, d, e, f])
}

fn reaches6(from: &Container<'_>, to: &Container<'_>) -> bool {
    let (space, to) = (format!("--net={}", from.space().path()), to.ip6().to_string());
    Run::new("nsenter").arg(space).args(["ping", "-6", "-n", "-c1", "-W5", &to]).run().code == Some(0)
}

#[test]
fn neighbours_that_a_container_makes_up_are_none_of_its_hosts() {
    let lab = dual(1);
    let h1 = lab.host(1);
    let open = format!("{DUAL} -e CALICO_PROFILE=open");
    let (ann, bob, eve) = (h1.run("ann", &open), h1.run("bob", &open), h1.run("eve", &open));
    // Whoever answers to everybody knows a way to everybody.
    h1.sh(&format!("ip route add default via {OUTSIDE}"));
    let (port, link) = (Port::of(&eve), eve.link());
    let (eves, anns) = (Listener::at(&eve.space()), Listener::at(&ann.space()));
    // What is known at eve's link beside what is hers.
    let own = [eve.ip().to_string(), eve.ip6().to_string(), link_local(port.mac).to_string()];
    let made_up = || {
        let known = h1.sh(&format!("ip -4 neigh show dev {link}; ip -6 neigh show dev {link}"));
        let foreign = known.lines().filter(|line| !own.iter().any(|own| line.starts_with(&format!("{own} "))));
        foreign.map(str::to_owned).collect::<Vec<_>>()
    };
    let nobody = |when: &str| {
        let known = made_up();
        assert!(known.is_empty(), "{when}: {} neighbours, such as {:?}", known.len(), known[0]);
    };
    nobody("before");

    // IPv4: questions and answers of whoever, while the host's own setting is loose too.
    let whoever = |number: u16| Ipv4Addr::from([10, 77, (number >> 8) as u8, (number & 0xff) as u8]);
    for all in ["0", "2"] {
        h1.sh(&format!("sysctl -qw net.ipv4.conf.all.rp_filter={all}"));
        for address in (1..=MANY).map(whoever) {
            for about in [h1.ip, bob.ip()] {
                let asked = arp(1, (port.mac, address), ([0; 6], about));
                port.send_frame(&frame(EVERYBODY, port.mac, ARP, &asked));
            }
            port.send_frame(&frame(HOST_MAC, port.mac, ARP, &arp(2, (port.mac, address), (HOST_MAC, h1.ip))));
        }
        let answers = |frame: &[u8]| frame[12..14] == ARP.to_be_bytes() && frame[20..22] == [0, 2];
        let before = eves.count(|frame| frame.len() >= 42 && answers(frame));
        port.send_frame(&frame(EVERYBODY, port.mac, ARP, &arp(1, (port.mac, eve.ip()), ([0; 6], h1.ip))));
        wait_until("an honest question is answered", SOON, || {
            eves.count(|frame| frame.len() >= 42 && answers(frame)) > before
        });
        nobody(&format!("IPv4, rp_filter {all}"));
    }

    // IPv6: solicitations to the next hop and to its group, and packets that the host would answer with an error.
    let answers = |frame: &[u8]| {
        frame.len() >= 78
            && frame[12..14] == [0x86, 0xdd]
            && frame[6..12] == HOST_MAC
            && frame[20] == 58
            && frame[54] == 136
    };
    let ask = |from: Ipv6Addr| {
        let option = (1, port.mac);
        port.send(&discovery(135, 0, from, NEXT_HOP, NEXT_HOP, option));
        let packet = discovery(135, 0, from, ASKED.0, NEXT_HOP, option);
        port.send_frame(&frame(ASKED.1, port.mac, packet.kind(), &packet.bytes()));
    };
    for number in 1..=MANY {
        let whoever = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 7, number);
        ask(whoever);
        port.send(&Packet::udp((whoever, 5000), (ann.ip6(), 7000), b"?"));
        for own in [eve.ip6(), link_local(port.mac)] {
            port.send(&Packet::udp((own, 5000), (whoever, 7000), b"?"));
        }
        // And one under an address that is not link-local.
        ask(Ipv6Addr::new(0x2001, 0xdb8, 77, 0, 0, 0, 0, number));
    }
    for honest in [link_local(port.mac), eve.ip6()] {
        let told = |frame: &[u8]| answers(frame) && frame[38..54] == honest.octets();
        let before = eves.count(told);
        ask(honest);
        wait_until(&format!("the question of {honest} is answered"), SOON, || eves.count(told) > before);
    }
    let own_packet = words();
    port.send(&Packet::udp((eve.ip6(), 5000), (ann.ip6(), 7000), &own_packet));
    anns.comes_to_hear("eve's own packet", &own_packet);
    nobody("IPv6");

    // Whoever is claimed to be at eve's link stays where he is.
    for about in [bob.ip6(), ann.ip6(), h1.ip6, NEXT_HOP] {
        ask(about);
        for to in [NEXT_HOP, "ff02::1".parse().unwrap()] {
            let packet = discovery(136, 0x2000_0000, link_local(port.mac), to, about, (2, port.mac));
            let mac = if to == NEXT_HOP { HOST_MAC } else { [0x33, 0x33, 0, 0, 0, 1] };
            port.send_frame(&frame(mac, port.mac, packet.kind(), &packet.bytes()));
        }
    }
    h1.sh(&format!("ip neigh flush dev {}; ip -6 neigh flush dev {}", ann.link(), bob.link()));
    assert!(reaches6(&ann, &bob) && reaches6(&bob, &ann) && ann.reaches(bob.ip()) && reaches6(&eve, &ann));
    nobody("after claims");
    lab.assert_consistent();
}
