//! From a container to its host (attack 6 of the catalogue).

use std::net::{Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use nix::sys::socket::SockProtocol;

use super::allow_all;
use super::frames::{Listener, Packet, Port, words};
use crate::lab::Lab;
use crate::lab::wait::wait_until;

const SYN: u8 = 2;

#[test]
fn a_container_never_gets_to_the_services_of_its_node_whatever_the_action_to_the_host_is() {
    let lab = Lab::hosts(1);
    allow_all(&lab, "open");
    let h1 = lab.host(1);
    // Another interface of the host's, as Docker's bridge is one.
    h1.sh(
        "ip link add bridge0 type bridge; ip addr add 172.30.0.1/16 dev bridge0; ip addr add 169.254.9.1/16 dev bridge0; \
         ip link set bridge0 up",
    );
    h1.start_node();
    let eve = h1.run("eve", "-e CALICO_IP=auto -e CALICO_PROFILE=open");
    let loner = h1.run("loner", "-e CALICO_IP=auto");
    let ear = Listener::let_in(&h1.space, SockProtocol::Tcp);
    let port = Port::of(&eve);
    let own = [h1.ip, Ipv4Addr::new(172, 30, 0, 1), Ipv4Addr::new(169, 254, 9, 1)];
    let others =
        [Ipv4Addr::LOCALHOST, Ipv4Addr::BROADCAST, Ipv4Addr::new(172, 25, 0, 255), Ipv4Addr::new(224, 0, 0, 1)];
    // The Docker API, etcd, BGP, metrics; and what is the host's own.
    let (services, hosts) = ([2377, 2379, 179, 9091], [22, 8080]);
    let send = |port: &Port, from: Ipv4Addr, to: Ipv4Addr, number: u16| {
        let words = words();
        port.send(&Packet::tcp((from, 40_000), (to, number), (1, 0), SYN, &words));
        words
    };
    // Somebody's own rule in front of ours, and a translation to the loopback.
    h1.sh("iptables -t nat -I PREROUTING -i cali+ -p tcp --dport 8022 -j DNAT --to-destination 127.0.0.1:22");

    let mut dropped = Vec::new();
    for (action, open) in [("DROP", false), ("RETURN", true), ("ACCEPT", true)] {
        lab.etcd().put("/calico/v1/config/DefaultEndpointToHostAction", action);
        wait_until(&format!("{action} is in force"), Duration::from_secs(5), || eve.reaches(h1.ip) == open);
        let mut closed = Vec::new();
        for to in own {
            closed.extend(services.map(|number| (to, number, send(&port, eve.ip(), to, number))));
        }
        // Nobody listens to all on a link, but what the host lets in there is the host's.
        for to in others {
            closed.extend(services.map(|number| (to, number, send(&port, eve.ip(), to, number))));
        }
        let loopback = Ipv4Addr::LOCALHOST;
        closed.extend(hosts.map(|number| (loopback, number, send(&port, eve.ip(), loopback, number))));
        closed.push((h1.ip, 8022, send(&port, eve.ip(), h1.ip, 8022)));
        let opened: Vec<_> =
            own.iter().flat_map(|to| hosts.map(|number| (*to, number, send(&port, eve.ip(), *to, number)))).collect();
        if open {
            for (to, number, words) in &opened {
                ear.comes_to_hear(&format!("{action}: what is sent to {to}:{number}"), words);
            }
        } else {
            dropped = opened;
        }
        for (to, number, words) in &closed {
            assert!(!ear.heard(words), "{action}: what is sent to {to}:{number} arrives");
        }
        // Without a profile there is nothing to be returned or accepted.
        loner.never_reaches(h1.ip);
    }
    for (to, number, words) in &dropped {
        assert!(!ear.heard(words), "DROP: what is sent to {to}:{number} arrives");
    }
    // The host's own connections to its containers get their replies all the while.
    let served = eve.serve(&[2377]);
    assert!(h1.space.answered(eve.ip(), crate::lab::netns::Probe::Tcp { from: None, to: 2377 }));
    drop(served);
    // The services themselves are there.
    assert_eq!(h1.docker_over_tcp(&["version"]).run().code, Some(0));

    // Without the node it stays so.
    h1.kill_node();
    let closed = services.map(|number| send(&port, eve.ip(), h1.ip, number));
    let opened = send(&port, eve.ip(), h1.ip, 22);
    ear.comes_to_hear("what is sent to port 22 of the host", &opened);
    assert!(!closed.iter().any(|words| ear.heard(words)), "a dead node lets a container to its services");
    h1.start_node();
    h1.sh("iptables -t nat -F PREROUTING");
    lab.assert_consistent();
}

/// In IPv6 the kernel's word for an address of the host's own is another one than in IPv4; by the latter none was closed.
#[test]
fn the_services_of_a_node_are_closed_in_ipv6_too_wherever_they_listen() {
    let lab = Lab::hosts(1);
    allow_all(&lab, "open");
    let h1 = lab.host(1);
    let ip6 = h1.ip6.to_string();
    // At a port that nothing says of but this option.
    h1.spawn_node(&["--ip6", &ip6, "--listen", "tcp://[::]:3377", "--insecure-root-for-anyone-who-connects"]);
    h1.await_ready();
    let eve = h1.run("eve", "-e CALICO_IP=auto,ipv6 -e CALICO_PROFILE=open");
    lab.etcd().put("/calico/v1/config/DefaultEndpointToHostAction", "ACCEPT");
    eve.comes_to_reach(h1.ip);
    let (port, ear) = (Port::of(&eve), Listener::let_in6(&h1.space, SockProtocol::Tcp));
    let send = |to: Ipv6Addr, number: u16| {
        let words = words();
        port.send(&Packet::tcp((eve.ip6(), 40_000), (to, number), (1, 0), SYN, &words));
        words
    };
    for to in [h1.ip6, "fe80::ecee:eeff:feee:eeee".parse().unwrap()] {
        let closed = [3377, 2377, 2379, 179, 9091].map(|number| (number, send(to, number)));
        ear.comes_to_hear(&format!("what is sent to another port of {to}"), &send(to, 22));
        for (number, words) in &closed {
            assert!(!ear.heard(words), "what is sent to {to}, port {number}, arrives");
        }
    }
}
