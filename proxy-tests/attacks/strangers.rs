//! Interfaces with our prefix that nobody explains, while the node runs, sleeps or is dead (attack 5 of the catalogue).

use std::net::Ipv4Addr;
use std::time::Duration;

use nix::sys::signal::Signal;

use super::allow_all;
use crate::lab::netns::Netns;
use crate::lab::wait::wait_until;
use crate::lab::{Lab, ip};

#[test]
fn an_interface_that_nothing_explains_stays_dark_with_and_without_the_node_and_is_told_of_and_left_alone() {
    let lab = Lab::hosts(1);
    allow_all(&lab, "open");
    let h1 = lab.host(1);
    h1.start_node();
    let open = "-e CALICO_IP=auto -e CALICO_PROFILE=open";
    let (ann, bob, cat) = (h1.run("ann", open), h1.run("bob", open), h1.run("cat", open));
    // As root would make one by hand: an address of a pool, a route, and every setting that a wired one has.
    let stray = lab.namespace("stray");
    let (name, address) = ("califfffffff0", "192.168.77.1");
    let inside = format!("{}-stray", lab.name());
    h1.sh(&format!("ip link add {name} type veth peer name eth1 netns {inside}"));
    ip(&["-n", &inside, "address", "add", &format!("{address}/32"), "dev", "eth1"]);
    ip(&["-n", &inside, "link", "set", "eth1", "up"]);
    ip(&["-n", &inside, "route", "add", &h1.ip.to_string(), "dev", "eth1"]);
    ip(&["-n", &inside, "route", "add", "default", "via", &h1.ip.to_string(), "dev", "eth1"]);
    h1.sh(&format!(
        "ip link set {name} up; ip route add {address} dev {name}; sysctl -qw net.ipv4.conf.{name}.proxy_arp=1"
    ));
    let address: Ipv4Addr = address.parse().unwrap();
    wait_until("the host itself reaches it", Duration::from_secs(5), || h1.space.pings(address));
    // And a container's own, under another name.
    let (old, new) = (cat.link(), "califfffffff1");
    let rename = |from: &str, to: &str| {
        let route = format!("ip route replace {} dev {to} proto 97 scope link", cat.ip());
        h1.sh(&format!("ip link set {from} down; ip link set {from} name {to}; ip link set {to} up; {route}"));
    };
    assert!(cat.reaches(bob.ip()));

    let is_dark = |when: &str, space: &Netns, at: Ipv4Addr| {
        for _ in 0..2 {
            assert!(!space.pings(bob.ip()) && !space.pings(h1.ip), "{when}: it reaches out of {at}");
            assert!(!bob.reaches(at), "{when}: it is reached at {at}");
        }
    };
    let dark = |when: &str| {
        is_dark(when, &stray, address);
        assert!(ann.reaches(bob.ip()), "{when}: the others do not reach each other");
    };
    dark("with the node");
    wait_until("it is told of", Duration::from_secs(10), || {
        h1.calicoctl("status").out().contains(&format!("interface {name}"))
    });
    h1.signal_node(Signal::SIGSTOP);
    dark("while the node sleeps");
    h1.signal_node(Signal::SIGCONT);
    h1.kill_node();
    dark("without a node");
    rename(&old, new);
    is_dark("renamed, without a node", &cat.space(), cat.ip());
    // One that is started around us while nobody looks gets no network of ours at all.
    let before = h1.cali_links();
    h1.raw_docker_run(&[
        "run",
        "-d",
        "--name",
        "sly",
        "-e",
        "CALICO_IP=192.168.77.2",
        "--net",
        "none",
        "busybox",
        "sleep",
        "99",
    ])
    .run()
    .ok();
    assert_eq!(h1.cali_links(), before);
    h1.start_node();
    dark("with the next node");
    assert!(h1.cali_links().contains(name) && h1.has_route("192.168.77.1"), "it was not ours to remove");
    h1.raw_docker("rm -f sly").ok();

    // A container has its own interface again, by whatever way.
    cat.comes_to_reach(bob.ip());

    // The counterpart: it is the chains that keep it dark, not a mistake in how it was made.
    h1.kill_node();
    h1.sh("iptables -F; iptables -t raw -F; iptables -P FORWARD ACCEPT");
    wait_until("without chains it reaches bob", Duration::from_secs(5), || stray.pings(bob.ip()));
    h1.start_node();
    wait_until("it is dark again", Duration::from_secs(5), || !stray.pings(bob.ip()));
    h1.sh(&format!("ip link delete {name}"));
    lab.assert_consistent();
}
