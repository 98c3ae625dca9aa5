//! A node that ends and starts again in good order: nobody notices.

use std::os::unix::net::UnixDatagram;
use std::time::{Duration, Instant};

use crate::lab::container::{SOON, reach_each_other};
use crate::lab::netns::Pinger;
use crate::lab::wait::wait_until;
use crate::lab::{Lab, START, spawn_logged};

#[test]
fn a_restart_of_the_node_loses_no_packet() {
    let lab = Lab::hosts(2);
    let (h1, h2) = (lab.host(1), lab.host(2));
    // How long clients are waited for is one thing, that BIRD ends as it should another.
    h1.spawn_node(&["--drain-timeout", "0"]);
    h2.spawn_node(&[]);
    h1.await_ready();
    h2.await_ready();
    let ann = h1.run("ann", "-e CALICO_IP=192.168.1.1 -e CALICO_PROFILE=web");
    let bob = h1.run("bob", "-e CALICO_IP=192.168.1.2 -e CALICO_PROFILE=web");
    let far = h2.run("far", "-e CALICO_IP=192.168.2.1 -e CALICO_PROFILE=web");
    let eve = h1.run("eve", "-e CALICO_IP=192.168.1.66 -e CALICO_PROFILE=other");
    reach_each_other(&[&ann, &bob, &far]);
    wait_until("the session is up on both sides", SOON, || {
        h1.established_sessions() == 1 && h2.established_sessions() == 1
    });
    eve.never_reaches(bob.ip());

    let near = Pinger::start(&ann.space(), bob.ip(), true);
    let out = Pinger::start(&ann.space(), far.ip(), true);
    let back = Pinger::start(&far.space(), ann.ip(), true);
    let foe = Pinger::start(&eve.space(), bob.ip(), true);
    for host in [h1, h2] {
        let before = near.answered_so_far();
        host.stop_node();
        assert_eq!(host.processes("bird"), 0, "bird outlives its node");
        // Some packets go while there is no node.
        wait_until("packets flow without the node", SOON, || near.answered_so_far() > before + 25);
        assert!(h2.has_route("192.168.1.1 via 172.25.0.1"), "the peer has forgotten: {:?}", h2.routes());
        host.start_node();
        wait_until("the session is up again", SOON * 2, || {
            h1.established_sessions() == 1 && h2.established_sessions() == 1
        });
        let after = near.answered_so_far();
        wait_until("packets flow with the new node", SOON, || near.answered_so_far() > after + 25);
    }
    for (way, pinger) in [("near", near), ("out", out), ("back", back)] {
        let pinged = pinger.stop();
        assert!(pinged.lost.is_empty(), "{way}: {pinged:?}");
    }
    let foe = foe.stop();
    assert!(foe.sent > 50 && foe.answered == 0, "{foe:?}");
    lab.assert_consistent();

    // What happened meanwhile is caught up with.
    h1.stop_node();
    h1.raw_docker("stop bob").ok();
    h1.raw_docker("rm -f eve").ok();
    h1.raw_docker("restart ann").ok();
    h1.start_node();
    lab.assert_consistent();
    far.comes_to_reach(ann.ip());
    lab.remove_everything();
}

#[test]
fn systemd_hears_that_the_node_is_ready_before_dockerd_and_etcd_are_there_and_it_serves_once_they_are() {
    let lab = Lab::hosts(1);
    let h1 = lab.host(1);
    h1.kill_dockerd();
    lab.kill_etcd();
    let path = h1.scratch().join("notify");
    let systemd = UnixDatagram::bind(&path).unwrap();
    systemd.set_read_timeout(Some(START)).unwrap();
    let listen = format!("unix://{}", h1.proxy_socket().display());
    let node = h1.node_command(&["--listen", &listen]).env("NOTIFY_SOCKET", &path).env("WATCHDOG_USEC", "300000");
    h1.keep_node(spawn_logged(node, &h1.node_log()));
    let mut told = [0; 64];
    let count = systemd.recv(&mut told).unwrap();
    assert_eq!(&told[..count], b"READY=1");
    // And that its agent does not hang, as its unit asks for.
    for _ in 0..3 {
        let count = systemd.recv(&mut told).unwrap();
        assert_eq!(&told[..count], b"WATCHDOG=1");
    }
    // What it promises by that: nothing passes unseen, and clients are answered.
    assert!(
        h1.sh("nft list tables").contains("calico-guard")
            && h1.rules().iter().any(|rule| rule.contains("calico-FORWARD"))
    );
    assert_eq!(h1.api("GET", "/_ping", None).status, 502);
    assert!(!h1.is_ready());
    h1.spawn_dockerd();
    lab.start_etcd();
    h1.await_dockerd();
    h1.await_ready();
    let ann = h1.run("ann", "-e CALICO_IP=auto");
    assert!(h1.space.pings(ann.ip()));
    lab.assert_consistent();
}

/// etcd cuts off a client that pings it more often than it allows, which took a healthy etcd away every 15 s.
#[test]
fn an_idle_node_keeps_its_etcd() {
    let lab = Lab::running(1);
    let h1 = lab.host(1);
    let idle = Instant::now();
    while idle.elapsed() < Duration::from_secs(40) {
        assert!(h1.is_ready(), "lost after {:?}", idle.elapsed());
        std::thread::park_timeout(Duration::from_millis(20));
    }
    let log = h1.node_log_text();
    assert!(!log.contains("etcd is away") && !log.contains("lost the lease"), "{log}");
}

/// BIRD waited four minutes for a peer that is switched off before it brought any route to the kernel.
#[test]
fn a_host_that_is_switched_off_keeps_the_others_from_each_other_for_half_a_minute_at_most() {
    let lab = Lab::running(2);
    let (h1, h2) = (lab.host(1), lab.host(2));
    let (ann, far) = (
        h1.run("ann", "-e CALICO_IP=auto -e CALICO_PROFILE=web"),
        h2.run("far", "-e CALICO_IP=auto -e CALICO_PROFILE=web"),
    );
    ann.comes_to_reach(far.ip());
    lab.etcd().put("/calico/bgp/v1/host/h9/ip_addr_v4", "172.25.0.99");
    // As after a reboot: of routes that are learnt nothing is left.
    h1.kill_node();
    h1.sh("ip route flush proto bird");
    h1.start_node();
    wait_until("ann reaches the other host again", Duration::from_secs(50), || ann.reaches(far.ip()));
    let metrics = h1.sh("curl -s http://127.0.0.1:9091/metrics");
    for sessions in ["{state=\"up\"} 1", "{state=\"down\"} 1"] {
        assert!(metrics.contains(&format!("calico_bgp_sessions{sessions}")), "{metrics}");
    }
    lab.etcd().ctl(&["del", "/calico/bgp/v1/host/h9/ip_addr_v4"]).run().ok();
    lab.remove_everything();
}

/// Hosts told each other of whatever lay in a pool: the networks of bridges, of tunnels, and the one that they are in themselves.
#[test]
fn no_host_tells_others_of_anything_but_containers() {
    let lab = Lab::running(2);
    let (h1, h2) = (lab.host(1), lab.host(2));
    // A network of an interface, a route of somebody's, and one address of somebody's, all of them in the pool.
    h1.sh("ip link add lan0 type bridge && ip address add 192.168.200.1/24 dev lan0 && ip link set lan0 up");
    h1.sh("ip route add 192.168.201.0/24 dev lan0 && ip route add 192.168.202.7/32 dev lan0");
    let learned = || h1.sh(&format!("birdc -s {}/bird.ctl show route", h1.run_dir().display()));
    wait_until("BIRD has learned them", SOON, || {
        let shown = learned();
        ["192.168.200.0/24", "192.168.201.0/24", "192.168.202.7/32"].iter().all(|route| shown.contains(route))
    });
    let ann = h1.run("ann", "-e CALICO_IP=auto -e CALICO_PROFILE=web");
    let bob = h2.run("bob", "-e CALICO_IP=auto -e CALICO_PROFILE=web");
    wait_until("h2 has heard of ann", SOON, || h2.has_route(&ann.ip().to_string()));
    reach_each_other(&[&ann, &bob]);
    let told: Vec<String> = h2.routes().into_iter().filter(|route| route.contains("192.168.20")).collect();
    assert_eq!(told, [""; 0]);
    lab.assert_consistent();
    lab.remove_everything();
}

/// Records, next hops and BGP spoke on of an address that the host had lost, and nothing told of it.
#[test]
fn a_host_that_has_lost_its_address_says_so() {
    let lab = Lab::running(1);
    let h1 = lab.host(1);
    assert!(!h1.calicoctl("status").ok().contains("on no interface"));
    let shown = h1.sh(&format!("ip -o -4 address show to {}", h1.ip));
    let words: Vec<&str> = shown.split_whitespace().collect();
    h1.sh(&format!("ip address del {} dev {}", words[3], words[1]));
    let told = h1.calicoctl("status").ok();
    assert!(told.contains(&format!("this host's address {} is on no interface", h1.ip)), "{told}");
}
