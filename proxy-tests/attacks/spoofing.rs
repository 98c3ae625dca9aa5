//! Packets under another's address (attack 1 of the catalogue).

use std::net::Ipv4Addr;
use std::time::Duration;

use nix::sys::signal::Signal;
use nix::sys::socket::SockProtocol;

use super::allow_all;
use super::frames::{Listener, Packet, Port, words};
use crate::lab::netns::{Netns, Probe};
use crate::lab::wait::wait_until;
use crate::lab::{Lab, OUTSIDE};

/// One who listens at a target, and where.
struct Target {
    name: &'static str,
    address: Ipv4Addr,
    ear: Listener,
}

#[test]
fn no_packet_under_anothers_address_leaves_its_container_whatever_the_hosts_rp_filter_is() {
    let lab = Lab::hosts(2);
    allow_all(&lab, "open");
    lab.etcd().put("/calico/v1/config/DefaultEndpointToHostAction", "ACCEPT");
    lab.start_nodes();
    let (h1, h2) = (lab.host(1), lab.host(2));
    let open = "-e CALICO_IP=auto -e CALICO_PROFILE=open";
    let eve = h1.run("eve", open);
    let (ann, bob, cat) = (h1.run("ann", open), h1.run("bob", open), h2.run("cat", open));
    eve.comes_to_reach(cat.ip());
    ann.comes_to_reach(cat.ip());
    h1.sh(&format!("ip route add 198.51.100.0/24 via {OUTSIDE}"));

    let target = |name, address, ear| Target { name, address, ear };
    let let_in = |space: &Netns| Listener::let_in(space, SockProtocol::Udp);
    let targets = [
        target("a container of the same host", bob.ip(), Listener::at(&bob.space())),
        target("a container of another host", cat.ip(), Listener::at(&cat.space())),
        target("its host", h1.ip, let_in(&h1.space)),
        target("another host", h2.ip, let_in(&h2.space)),
        target("the outside", OUTSIDE, Listener::at(&lab.outside())),
    ];
    // Flows of another container that stand, in which a forged packet would be one of many.
    let servers = [bob.serve(&[7000]), cat.serve(&[7000])];
    let flow = Probe::Udp { from: Some(5000), to: 7000 };
    let sources = [
        ("a container of the same host", ann.ip()),
        ("a container of another host", cat.ip()),
        ("its host", h1.ip),
        ("another host", h2.ip),
        ("the loopback", Ipv4Addr::LOCALHOST),
        ("the outside", Ipv4Addr::new(198, 51, 100, 7)),
        ("nobody", Ipv4Addr::UNSPECIFIED),
        ("a broadcast", Ipv4Addr::BROADCAST),
        ("a group", Ipv4Addr::new(224, 0, 0, 1)),
    ];
    let port = Port::of(&eve);
    let link = eve.link();
    // The node would put it right at once.
    h1.signal_node(Signal::SIGSTOP);
    for (all, rp_filter) in [("0", "1"), ("0", "0"), ("2", "1"), ("0", "2")] {
        // 2 is what systemd's udev rules set, some time after an interface has come up, and for all what Ubuntu sets.
        h1.sh(&format!("sysctl -qw net.ipv4.conf.all.rp_filter={all} net.ipv4.conf.{link}.rp_filter={rp_filter}"));
        for address in [bob.ip(), cat.ip()] {
            assert!(ann.gets_through(address, flow), "ann has no flow to {address}");
        }
        for target in &targets {
            let to = (target.address, 7000);
            let forged = sources.map(|(whose, source)| (whose, source, words()));
            for (_, source, words) in &forged {
                port.send(&Packet::udp((*source, 5000), to, words));
            }
            let own = words();
            port.send(&Packet::udp((eve.ip(), 5000), to, &own));
            target.ear.comes_to_hear(&format!("eve's own packet to {}", target.name), &own);
            for (whose, _, words) in &forged {
                let arrived = target.ear.heard(words);
                assert!(
                    !arrived,
                    "rp_filter {all}, {rp_filter}: {} hears eve under the address of {whose}",
                    target.name
                );
            }
        }
        h1.sh(&format!("conntrack -D -p udp --orig-src {} 2>/dev/null || true", eve.ip()));
    }

    h1.signal_node(Signal::SIGCONT);

    // Both locks are put back when somebody opens one.
    lab.etcd().put("/calico/v1/config/IptablesRefreshInterval", "1");
    let setting = format!("cat /proc/sys/net/ipv4/conf/{link}/rp_filter");
    wait_until("rp_filter is strict again", Duration::from_secs(10), || h1.sh(&setting) == "1");
    h1.sh("iptables -t raw -F");
    wait_until("the raw table is back", Duration::from_secs(10), || {
        h1.sh("iptables-save -t raw").contains("rpfilter --invert")
    });

    // The counterpart: with both locks open, and nobody awake to close them, the others hear eve in ann's flow.
    assert!(ann.gets_through(bob.ip(), flow));
    h1.signal_node(Signal::SIGSTOP);
    h1.sh(&format!("iptables -t raw -F; sysctl -qw net.ipv4.conf.{link}.rp_filter=0"));
    let forged = words();
    port.send(&Packet::udp((ann.ip(), 5000), (bob.ip(), 7000), &forged));
    targets[0].ear.comes_to_hear("a packet under ann's address, with both locks open,", &forged);
    h1.signal_node(Signal::SIGCONT);
    drop(servers);
    wait_until("rp_filter is strict again", Duration::from_secs(10), || h1.sh(&setting) == "1");
    lab.assert_consistent();
}

#[test]
fn a_host_whose_rp_filter_is_loose_from_the_beginning_lets_no_foreign_source_through_and_is_no_obstacle() {
    let lab = Lab::hosts(1);
    allow_all(&lab, "open");
    let h1 = lab.host(1);
    // As Ubuntu has it.
    h1.sh("sysctl -qw net.ipv4.conf.all.rp_filter=2 net.ipv4.conf.default.rp_filter=2");
    h1.start_node();
    let open = "-e CALICO_IP=auto -e CALICO_PROFILE=open";
    let (ann, bob, eve) = (h1.run("ann", open), h1.run("bob", open), h1.run("eve", open));
    ann.comes_to_reach(bob.ip());
    let (port, ear) = (Port::of(&eve), Listener::at(&bob.space()));
    let (forged, own) = (words(), words());
    port.send(&Packet::udp((ann.ip(), 5000), (bob.ip(), 7000), &forged));
    port.send(&Packet::udp((eve.ip(), 5000), (bob.ip(), 7000), &own));
    ear.comes_to_hear("eve's own packet", &own);
    assert!(!ear.heard(&forged), "bob hears eve under ann's address");
    // The interface's own is strict, the host's is the operator's.
    assert_eq!(h1.sh(&format!("cat /proc/sys/net/ipv4/conf/{}/rp_filter", eve.link())), "1");
    assert_eq!(h1.sh("sysctl -n net.ipv4.conf.all.rp_filter"), "2");
    lab.assert_consistent();
    lab.remove_everything();
}
