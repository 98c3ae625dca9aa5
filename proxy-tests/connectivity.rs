//! Who reaches whom on one host, and whom nobody reaches.

use std::net::Ipv4Addr;

use crate::lab::command::Run;
use crate::lab::container::{Container, SOON, reach_each_other};
use crate::lab::netns::{Netns, Probe, Servers};
use crate::lab::wait::wait_until;
use crate::lab::{Lab, OUTSIDE, ip};

#[test]
fn members_of_a_profile_reach_each_other_and_nobody_else_reaches_them() {
    let lab = Lab::running(1);
    let h1 = lab.host(1);
    let ann = h1.run("ann", "-e CALICO_IP=auto -e CALICO_PROFILE=web");
    let bob = h1.run("bob", "-e CALICO_IP=auto -e CALICO_PROFILE=web");

    // When `docker run` has returned, the network of this host is as its policy says: nothing to wait for.
    assert!(ann.reaches(bob.ip()), "bob was not there when docker run returned");
    assert!(bob.reaches(ann.ip()));
    let bobs = bob.ip().to_string();
    ann.exec(&["ping", "-c1", "-W1", &bobs]).ok();
    let servers = bob.serve(&[80, 5353]);
    let (tcp, udp) = (Probe::Tcp { from: None, to: 80 }, Probe::Udp { from: None, to: 5353 });
    assert!(ann.gets_through(bob.ip(), tcp) && ann.gets_through(bob.ip(), udp));

    let loner = h1.run("loner", "-e CALICO_IP=auto");
    let other = h1.run("other", "-e CALICO_IP=auto -e CALICO_PROFILE=other");
    for outsider in [&loner, &other] {
        outsider.never_reaches(bob.ip());
        ann.never_reaches(outsider.ip());
        assert!(!outsider.gets_through(bob.ip(), tcp) && !outsider.gets_through(bob.ip(), udp));
    }
    assert!(!servers.heard_from(other.ip()) && servers.heard_from(ann.ip()));
    drop(servers);

    // With a profile the loner belongs.
    loner.set_profiles("web");
    reach_each_other(&[&ann, &bob, &loner]);
    // Without it, no longer.
    loner.set_profiles("");
    loner.ceases_to_reach(bob.ip());
    ann.ceases_to_reach(loner.ip());
    assert!(ann.reaches(bob.ip()));
    lab.assert_consistent();
    lab.remove_everything();
}

#[test]
fn a_container_does_not_reach_its_host_and_the_host_reaches_its_containers() {
    let lab = Lab::running(1);
    let h1 = lab.host(1);
    let ann = h1.run("ann", "-e CALICO_IP=auto -e CALICO_PROFILE=web");
    let bob = h1.run("bob", "-e CALICO_IP=auto -e CALICO_PROFILE=web");
    let loner = h1.run("loner", "-e CALICO_IP=auto");

    let on_host = Servers::start(&h1.space, &[7000]);
    let (tcp, udp) = (Probe::Tcp { from: None, to: 7000 }, Probe::Udp { from: None, to: 7000 });
    for probe in [tcp, udp, Probe::Ping] {
        assert!(lab.outside().answered(h1.ip, probe), "the host answers the outside: {probe:?}");
        assert!(!ann.gets_through(h1.ip, probe), "the container reaches its host: {probe:?}");
    }
    assert!(ann.reaches(bob.ip()), "the container reaches somebody");
    assert!(on_host.heard_from(OUTSIDE) && !on_host.heard_from(ann.ip()));

    for container in [&ann, &loner] {
        let servers = container.serve(&[7001]);
        for probe in [Probe::Ping, Probe::Tcp { from: None, to: 7001 }, Probe::Udp { from: None, to: 7001 }] {
            assert!(h1.space.answered(container.ip(), probe), "the host reaches {}: {probe:?}", container.name);
        }
        drop(servers);
    }
}

#[test]
fn a_packet_with_the_source_address_of_another_is_dropped() {
    let lab = Lab::running(1);
    let h1 = lab.host(1);
    let bob = h1.run("bob", "-e CALICO_IP=192.168.1.2 -e CALICO_PROFILE=web");
    let ann = h1.run("ann", "-e CALICO_IP=192.168.1.1 -e CALICO_PROFILE=web");
    let eve = h1.run("eve", "-e CALICO_IP=192.168.1.66 -e CALICO_PROFILE=other");
    let servers = bob.serve(&[7000]);
    let udp = Probe::Udp { from: None, to: 7000 };

    // Whoever lies has spoken before under its own address: an unresolved next hop would hold the lie back by itself.
    let lie = |liar: &Container<'_>, claimed: Ipv4Addr| {
        let inside = liar.space();
        inside.answered(bob.ip(), udp);
        let ip =
            |args: &[&str]| Run::new("nsenter").arg(format!("--net={}", inside.path())).arg("ip").args(args).run().ok();
        assert!(ip(&["neigh", "show", &h1.ip.to_string()]).contains("lladdr"), "{} has no next hop", liar.name);
        ip(&["address", "add", &format!("{claimed}/32"), "dev", "eth1"]);
        for _ in 0..3 {
            assert!(!inside.answered_from(Some(claimed), bob.ip(), udp));
        }
        assert!(!servers.heard_from(claimed), "bob heard {} as {claimed}", liar.name);
    };
    // As a member, and as nobody: both from inside an interface whose address is neither.
    lie(&eve, ann.ip());
    lie(&ann, "192.168.200.200".parse().unwrap());
    assert!(ann.space().answered_from(Some(ann.ip()), bob.ip(), udp), "ann is heard under her own address");
    assert!(servers.heard_from(ann.ip()));
}

#[test]
fn an_interface_of_our_name_that_nobody_knows_is_dark() {
    let lab = Lab::running(1);
    let h1 = lab.host(1);
    let bob = h1.run("bob", "-e CALICO_IP=192.168.1.2 -e CALICO_PROFILE=open");
    let open = r#"{"id":"open","inbound_rules":[{"action":"allow"}],"outbound_rules":[{"action":"allow"}]}"#;
    h1.calicoctl_run(&["profile", "open", "rule", "update"]).input(open).run().ok();

    let stranger = lab.namespace("stranger");
    let (here, there) = (h1.space.path(), stranger.path());
    let [here, there] = [&here, &there].map(|path| path.rsplit('/').next().unwrap());
    ip(&["-n", here, "link", "add", "plain0", "type", "veth", "peer", "name", "eth0", "netns", there]);
    ip(&["-n", there, "address", "add", "192.168.50.1/32", "dev", "eth0"]);
    ip(&["-n", there, "link", "set", "eth0", "up"]);
    let gateway = h1.ip.to_string();
    ip(&["-n", there, "route", "add", &gateway, "dev", "eth0", "scope", "link"]);
    ip(&["-n", there, "route", "add", "default", "via", &gateway]);
    let bring_up = |name: &str| {
        ip(&["-n", here, "link", "set", name, "up"]);
        ip(&["-n", here, "route", "replace", "192.168.50.1/32", "dev", name]);
    };
    bring_up("plain0");
    // What is not one of ours is not held back: this way the packets do go.
    wait_until("the stranger reaches bob", SOON, || stranger.pings(bob.ip()));
    wait_until("the stranger reaches the host", SOON, || stranger.pings(h1.ip));
    assert!(bob.reaches("192.168.50.1".parse().unwrap()), "and back");

    ip(&["-n", here, "link", "set", "plain0", "down"]);
    ip(&["-n", here, "link", "set", "plain0", "name", "calideadbeef"]);
    bring_up("calideadbeef");
    stays_dark(&stranger, bob.ip());
    stays_dark(&stranger, h1.ip);
    stays_dark(&bob.space(), "192.168.50.1".parse().unwrap());
    assert!(h1.space.pings(bob.ip()), "bob himself is well");
}

fn stays_dark(from: &Netns, to: Ipv4Addr) {
    for _ in 0..3 {
        assert!(!from.pings(to), "reached {to}");
    }
}
