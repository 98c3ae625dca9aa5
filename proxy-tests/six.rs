//! IPv6, alone and beside IPv4: who reaches whom, and what a container cannot do to its host and its neighbours.

use std::net::Ipv6Addr;

use serde_json::{Value, json};

use crate::lab::command::Run;
use crate::lab::container::{Container, SOON};
use crate::lab::host::Host;
use crate::lab::netns::Netns;
use crate::lab::wait::wait_until;
use crate::lab::{Lab, OUTSIDE, OUTSIDE6};

/// The next hop of every container: the host's end of its link.
const NEXT_HOP: &str = "fe80::ecee:eeff:feee:eeee";

/// All nodes of a link (RFC 4291, 2.7.1), and their Ethernet address.
const ALL_NODES: (&str, &str) = ("ff02::1", "33:33:00:00:00:01");

/// A lab with a node on each host that has an IPv6 address.
fn running(hosts: u8) -> Lab {
    let lab = Lab::hosts(hosts);
    for host in lab.all_hosts() {
        start(host);
    }
    for host in lab.all_hosts() {
        host.await_ready();
    }
    lab
}

fn start(host: &Host) {
    host.spawn_node(&["--ip6", &host.ip6.to_string()]);
}

/// Runs a program of the machine in a network.
fn within(space: &Netns, program: &[&str]) -> Run {
    Run::new("nsenter").arg(format!("--net={}", space.path())).args(program)
}

/// Whether one packet is answered, by when a packet that is let through has been for long.
fn pings(space: &Netns, to: Ipv6Addr) -> bool {
    answered(space, to, "1")
}

/// The same for one that must be answered, however busy the machine is.
fn reaches(space: &Netns, to: Ipv6Addr) -> bool {
    answered(space, to, "5")
}

fn answered(space: &Netns, to: Ipv6Addr, within_s: &str) -> bool {
    within(space, &["ping", "-6", "-n", "-c", "1", "-W", within_s, &to.to_string()]).run().code == Some(0)
}

#[track_caller]
fn comes_to_reach(from: &Container<'_>, to: Ipv6Addr) {
    let space = from.space();
    wait_until(&format!("{} on {} reaches {to}", from.name, from.host.name), SOON, || pings(&space, to));
}

#[track_caller]
fn ceases_to_reach(from: &Container<'_>, to: Ipv6Addr) {
    let space = from.space();
    wait_until(&format!("{} on {} no longer reaches {to}", from.name, from.host.name), SOON, || !pings(&space, to));
    assert!(!pings(&space, to), "{} reaches {to} again", from.name);
}

/// How many packets the entries of a chain that hold this text have met.
fn met(host: &Host, table: &str, chain: &str, text: &str) -> u64 {
    let listed = host.command("ip6tables").args(["-t", table, "-nvxL", chain]).run().ok();
    let counts = listed.lines().filter(|line| line.contains(text)).filter_map(|line| line.split_whitespace().next());
    counts.map(|count| count.parse::<u64>().unwrap()).sum()
}

/// Sends an ICMPv6 message out of an interface, under whatever addresses. `to` is an address and its Ethernet address.
fn send(space: &Netns, interface: &str, from: &str, to: (&str, &str), message: &str) {
    let (address, mac) = to;
    let args = [interface, mac, from, address, "255", message];
    within(space, &["python3", "-c", include_str!("six/send.py")]).args(args).run().ok();
}

fn hex(address: Ipv6Addr) -> String {
    address.octets().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A router advertisement: default router for half an hour, and a prefix to make addresses of.
fn advertisement() -> String {
    let prefix: Ipv6Addr = "2001:db8:bad::".parse().unwrap();
    format!("86000000400007080000000000000000030440c000278d0000278d0000000000{}", hex(prefix))
}

/// What an interface of a host has of IPv6.
fn state(host: &Host, interface: &str) -> (Vec<String>, Vec<String>) {
    let lines = |args: &[&str]| -> Vec<String> {
        let printed = host.command("ip").args(args).run().ok();
        // How long something lives changes by itself.
        let lasting = |line: &str| line.trim().split(" expires ").next().unwrap().to_owned();
        printed.lines().filter(|line| !line.contains("valid_lft")).map(lasting).collect()
    };
    (lines(&["-6", "address", "show", "dev", interface]), lines(&["-6", "route", "show", "table", "all"]))
}

#[test]
fn containers_reach_each_other_by_both_families_on_one_host_and_between_two() {
    let lab = running(2);
    let (h1, h2) = (lab.host(1), lab.host(2));
    let ann = h1.run("ann", "-e CALICO_IP=fd80:24e2:f998:72d6::1:1 -e CALICO_PROFILE=web");
    let bob = h1.run("bob", "-e CALICO_IP=ipv6,auto -e CALICO_PROFILE=web");
    // When `docker run` has returned, the network of this host is as its policy says: nothing to wait for.
    assert!(reaches(&ann.space(), bob.ip6()), "bob was not there when docker run returned");
    assert!(reaches(&bob.space(), ann.ip6()));
    bob.exec(&["ping", "-6", "-c1", "-W5", &ann.ip6().to_string()]).ok();
    let cat = h2.run("cat", "-e CALICO_IP=192.168.7.1,fd80:24e2:f998:72d6::/64 -e CALICO_PROFILE=web");
    let loner = h2.run("loner", "-e CALICO_IP=ipv6");
    for (from, to) in [(&ann, &cat), (&cat, &ann), (&bob, &cat), (&cat, &bob), (&bob, &bob)] {
        comes_to_reach(from, to.ip6());
    }
    bob.comes_to_reach(cat.ip());
    cat.comes_to_reach(bob.ip());
    for outsider in [(&loner, &ann), (&loner, &cat), (&ann, &loner), (&cat, &loner)] {
        assert!(!pings(&outsider.0.space(), outsider.1.ip6()), "{} reaches {}", outsider.0.name, outsider.1.name);
    }
    loner.set_profiles("web");
    comes_to_reach(&loner, ann.ip6());
    loner.set_profiles("");
    ceases_to_reach(&loner, ann.ip6());

    // Who asks for one family has that one.
    let record = ann.record();
    assert_eq!((&record["ipv4_nets"], &record["ipv4_gateway"]), (&json!([]), &Value::Null));
    assert_eq!(record["ipv6_gateway"], h1.ip6.to_string());
    let settings = bob.inspect()["NetworkSettings"].clone();
    for shown in [&settings, &settings["Networks"]["none"]] {
        assert_eq!(shown["GlobalIPv6Address"], bob.ip6().to_string(), "{settings}");
        assert_eq!((&shown["GlobalIPv6PrefixLen"], &shown["IPv6Gateway"]), (&json!(128), &json!(NEXT_HOP)));
        assert_eq!((&shown["IPAddress"], &shown["IPPrefixLen"]), (&json!(bob.ip().to_string()), &json!(32)));
    }
    let hosts = bob.exec(&["cat", "/etc/hosts"]).ok();
    for address in [bob.ip().to_string(), bob.ip6().to_string()] {
        assert!(hosts.contains(&format!("{address}\t{}", &bob.id[..12])), "{address} in {hosts}");
    }
    let status = h1.calicoctl("status").ok();
    let (_, six) = status.split_once("IPv6 BGP status").unwrap();
    assert!(six.contains(&h2.ip6.to_string()) && six.contains("Established"), "{status}");
    lab.assert_consistent();

    // A restart keeps both addresses, whoever asks for it; so does a new node.
    let before = (bob.ip(), bob.ip6());
    h1.docker("restart -t 1 bob").ok();
    h1.raw_docker("restart -t 1 ann").ok();
    assert_eq!((bob.ip(), bob.ip6()), before);
    comes_to_reach(&cat, bob.ip6());
    comes_to_reach(&cat, ann.ip6());
    h1.stop_node();
    assert!(reaches(&cat.space(), bob.ip6()), "without a node containers keep talking");
    h1.raw_docker("restart -t 1 bob").ok();
    assert!(reaches(&bob.space(), ann.ip6()), "without a node the runtime wires by what is kept");
    start(h1);
    h1.await_ready();
    assert!(reaches(&cat.space(), bob.ip6()) && reaches(&ann.space(), bob.ip6()));
    lab.remove_everything();
}

#[test]
fn a_rule_of_one_family_allows_nothing_in_the_other() {
    let lab = running(1);
    let h1 = lab.host(1);
    h1.calicoctl("profile add both").ok();
    let rules = |inbound: Value| {
        let text = json!({"inbound_rules": inbound, "outbound_rules": [{"action": "allow"}]}).to_string();
        h1.calicoctl_run(&["profile", "both", "rule", "update"]).input(text).run().ok();
    };
    rules(json!([]));
    let ann = h1.run("ann", "-e CALICO_IP=auto,ipv6 -e CALICO_PROFILE=both");
    let bob = h1.run("bob", "-e CALICO_IP=auto,ipv6 -e CALICO_PROFILE=both");
    let (space, four, six) = (ann.space(), bob.ip(), bob.ip6());
    for (inbound, by_four, by_six) in [
        (json!([{"src_net": "192.168.0.0/16"}]), true, false),
        (json!([{"src_net": "fd80:24e2:f998:72d6::/64"}]), false, true),
        (json!([{"protocol": "icmp"}]), true, false),
        (json!([{"protocol": "icmpv6"}]), false, true),
        (json!([{"action": "deny", "src_net": "0.0.0.0/0"}, {"action": "allow"}]), false, true),
        (json!([{"action": "deny", "dst_net": "::/0"}, {"action": "allow"}]), true, false),
        (json!([{"protocol": "icmpv6", "icmp_type": 129}]), false, false),
        (json!([{"protocol": "icmpv6", "icmp_type": 128}]), false, true),
        (json!([{"src_tag": "both"}]), true, true),
    ] {
        rules(inbound.clone());
        wait_until(&format!("{inbound} holds"), SOON, || (space.pings(four), pings(&space, six)) == (by_four, by_six));
    }
}

#[test]
fn what_a_container_says_of_routes_and_neighbours_changes_nothing_on_its_host() {
    let lab = running(1);
    let h1 = lab.host(1);
    let ann = h1.run("ann", "-e CALICO_IP=ipv6 -e CALICO_PROFILE=web");
    let bob = h1.run("bob", "-e CALICO_IP=ipv6 -e CALICO_PROFILE=web");
    let (evil, link, bobs_link) = (ann.space(), ann.link(), bob.link());
    let (before, bobs) = (state(h1, &link), state(h1, &bobs_link));
    let host_mac = "ee:ee:ee:ee:ee:ee";

    // The same advertisement counts where the host is told to listen: it is well made.
    send(&lab.outside(), "br0", "fe80::bad", ALL_NODES, &advertisement());
    wait_until("the host hears its router, and has an address that its router made it have", SOON, || {
        let local = h1.sh("ip -6 route show table local");
        h1.sh("ip -6 route show default dev eth0").contains("proto ra") && local.contains("anycast 2001:db8:bad:")
    });
    let quiet = (state(h1, &link), state(h1, "eth0"));

    let seen = |chain: &str, kind: &str| met(h1, "filter", chain, &format!("ipv6-icmptype {kind}"));
    let known = seen("calico-INPUT", "134");
    for to in [ALL_NODES, (NEXT_HOP, host_mac)] {
        send(&evil, "eth1", "fe80::bad", to, &advertisement());
    }
    wait_until("both advertisements have come and gone", SOON, || seen("calico-INPUT", "134") >= known + 2);
    // Redirect: the way to bob is by ann.
    let own: Ipv6Addr = "fe80::bad".parse().unwrap();
    let redirect = format!("8900000000000000{}{}", hex(own), hex(bob.ip6()));
    let known = seen("calico-INPUT", "137");
    send(&evil, "eth1", "fe80::bad", (NEXT_HOP, host_mac), &redirect);
    wait_until("the redirect has come and gone", SOON, || seen("calico-INPUT", "137") > known);
    // Neither goes through the host to another container.
    let known = seen("calico-FORWARD", "134");
    send(&evil, "eth1", &ann.ip6().to_string(), (&bob.ip6().to_string(), host_mac), &advertisement());
    wait_until("it was not forwarded", SOON, || seen("calico-FORWARD", "134") > known);

    // Neighbour advertisements: bob's address, the host's own on the link, and the host's own elsewhere are ann's.
    for claimed in [bob.ip6(), NEXT_HOP.parse().unwrap(), h1.ip6] {
        let own_mac = ann.record()["mac"].as_str().unwrap().replace(':', "");
        let claim = format!("8800000020000000{}0201{own_mac}", hex(claimed));
        let known = seen("calico-INPUT", "136");
        for to in [ALL_NODES, (NEXT_HOP, host_mac)] {
            send(&evil, "eth1", "fe80::bad", to, &claim);
        }
        wait_until("the claim has come", SOON, || seen("calico-INPUT", "136") > known);
    }
    assert_eq!((state(h1, &link), state(h1, "eth0")), quiet);
    assert_eq!((&state(h1, &link).0, &state(h1, &bobs_link).0), (&before.0, &bobs.0));
    assert!(!h1.sh("ip -6 address show").contains("dadfailed"));
    assert!(reaches(&h1.space, bob.ip6()) && reaches(&bob.space(), ann.ip6()), "everybody is where he was");
    // Nobody squats the next hop: a new container has it at once.
    h1.docker("restart -t 1 ann").ok();
    assert!(reaches(&ann.space(), bob.ip6()));
}

#[test]
fn a_packet_with_the_ipv6_source_of_another_is_dropped() {
    let lab = running(2);
    let (h1, h2) = (lab.host(1), lab.host(2));
    let ann = h1.run("ann", "-e CALICO_IP=ipv6 -e CALICO_PROFILE=web");
    let bob = h1.run("bob", "-e CALICO_IP=ipv6 -e CALICO_PROFILE=web");
    let cat = h2.run("cat", "-e CALICO_IP=ipv6 -e CALICO_PROFILE=web");
    comes_to_reach(&ann, cat.ip6());
    let echoes = |container: &Container<'_>| -> u64 {
        let counters = within(&container.space(), &["cat", "/proc/net/snmp6"]).run().ok();
        let line = counters.lines().find(|line| line.starts_with("Icmp6InEchos ")).unwrap();
        line.split_whitespace().last().unwrap().parse().unwrap()
    };
    let request = "8000000012340001";
    let host_mac = "ee:ee:ee:ee:ee:ee";
    let dropped = || met(h1, "raw", "calico-PREROUTING", "rpfilter");
    for target in [&bob, &cat] {
        let to = target.ip6().to_string();
        let heard = echoes(target);
        // The frame is well made: under ann's own address it arrives.
        send(&ann.space(), "eth1", &ann.ip6().to_string(), (&to, host_mac), request);
        wait_until("an honest packet arrives", SOON, || echoes(target) > heard);
        let heard = echoes(target);
        let sources = [bob.ip6(), cat.ip6(), h1.ip6, h2.ip6, OUTSIDE6, "fd80:24e2:f998:72d6::dead".parse().unwrap()];
        for source in sources {
            let known = dropped();
            send(&ann.space(), "eth1", &source.to_string(), (&to, host_mac), request);
            wait_until(&format!("a packet from {source} was dropped"), SOON, || dropped() > known);
        }
        assert_eq!(echoes(target), heard, "{} heard a packet under another's address", target.name);
    }
    // Nor does the host itself hear any.
    let known = dropped();
    send(&ann.space(), "eth1", &bob.ip6().to_string(), (&h1.ip6.to_string(), host_mac), request);
    wait_until("the host does not hear it", SOON, || dropped() > known);
    // Another's Ethernet address is no better.
    within(&ann.space(), &["ip", "link", "set", "eth1", "address", "02:00:00:00:00:77"]).run().ok();
    assert!(!pings(&ann.space(), cat.ip6()));
}

#[test]
fn a_container_without_an_ipv6_address_has_no_ipv6_and_its_link_has_none() {
    let lab = running(1);
    let h1 = lab.host(1);
    let ann = h1.run("ann", "-e CALICO_IP=auto -e CALICO_PROFILE=web");
    let bob = h1.run("bob", "-e CALICO_IP=ipv6 -e CALICO_PROFILE=web");
    let disabled = |link: &str| h1.sh(&format!("cat /proc/sys/net/ipv6/conf/{link}/disable_ipv6"));
    assert_eq!((disabled(&ann.link()).trim(), disabled(&bob.link()).trim()), ("1", "0"));
    assert_eq!(h1.sh(&format!("ip -6 address show dev {}", ann.link())).trim(), "");
    // Even one that switches it on by itself is heard by nobody.
    let own = "fd80:24e2:f998:72d6::77";
    let inside = format!(
        "sysctl -qw net.ipv6.conf.eth1.disable_ipv6=0; ip -6 address add {own}/128 dev eth1 nodad; \
         ip -6 route replace default via {NEXT_HOP} dev eth1"
    );
    within(&ann.space(), &["sh", "-c", &inside]).run().ok();
    assert!(!pings(&ann.space(), bob.ip6()) && !pings(&h1.space, own.parse().unwrap()));
    // The host hears the other no further than its policy says.
    assert!(!pings(&bob.space(), h1.ip6), "a container reaches its host");
    let gateway = within(&bob.space(), &["ping", "-6", "-c1", "-W1", &format!("{NEXT_HOP}%eth1")]).run();
    assert_ne!(gateway.code, Some(0), "a container reaches its next hop");
    assert!(reaches(&h1.space, bob.ip6()), "the host reaches its containers");
}

#[test]
fn a_masquerade_pool_of_ipv6_reaches_the_outside_under_its_hosts_address() {
    let lab = running(2);
    let (h1, h2) = (lab.host(1), lab.host(2));
    h1.calicoctl("pool add fd77::/64 --nat-outgoing").ok();
    let ann = h1.run("ann", "-e CALICO_IP=fd77::/64 -e CALICO_PROFILE=web");
    let bob = h1.run("bob", "-e CALICO_IP=fd80:24e2:f998:72d6::/64 -e CALICO_PROFILE=web");
    let cat = h2.run("cat", "-e CALICO_IP=fd77::1:1 -e CALICO_PROFILE=web");
    // The outside knows no way to any container.
    comes_to_reach(&ann, OUTSIDE6);
    comes_to_reach(&ann, cat.ip6());
    for container in [&ann, &bob] {
        assert_eq!(pings(&container.space(), OUTSIDE6), container.name == "ann");
    }
    assert!(h1.rules6().iter().any(|rule| rule.contains("MASQUERADE")));
    h1.calicoctl("pool add fd77::/64").ok();
    wait_until("nothing is masqueraded any more", SOON, || !h1.rules6().iter().any(|rule| rule.contains("MASQUERADE")));
}

#[test]
fn the_first_instruction_of_a_container_has_ipv6() {
    let lab = running(1);
    let h1 = lab.host(1);
    let bob = h1.run("bob", "-e CALICO_IP=auto,ipv6 -e CALICO_PROFILE=web");
    let to = bob.ip6().to_string();
    for wish in ["ipv6", "auto,ipv6"] {
        let wish = format!("CALICO_IP={wish}");
        for _ in 0..10 {
            let run = ["run", "--rm", "-e", &wish, "-e", "CALICO_PROFILE=web", "busybox", "ping6", "-c1", "-W5", &to];
            h1.docker_run(&run).run().ok();
        }
    }
    lab.assert_consistent();
}

#[test]
fn a_host_goes_on_hearing_its_routers_and_is_left_alone_where_it_forwards_already() {
    let lab = Lab::hosts(1);
    let h1 = lab.host(1);
    let setting = |name: &str| h1.sh(&format!("cat /proc/sys/net/ipv6/conf/{name}")).trim().to_owned();
    h1.sh("ip link add lan1 type bridge; sysctl -qw net.ipv6.conf.lan1.accept_ra=0; ip link set lan1 up");
    send(&lab.outside(), "br0", "fe80::5", ALL_NODES, &advertisement());
    wait_until("the host has a router", SOON, || h1.sh("ip -6 route show default").contains("fe80::5"));
    start(h1);
    h1.await_ready();
    assert_eq!((setting("all/forwarding").as_str(), setting("eth0/accept_ra").as_str()), ("1", "2"));
    assert_eq!(setting("lan1/accept_ra"), "0");
    assert!(h1.sh("ip -6 route show default").contains("fe80::5"), "the host has lost its router");
    h1.stop_node();
    h1.sh("sysctl -qw net.ipv6.conf.eth0.accept_ra=1");
    start(h1);
    h1.await_ready();
    assert_eq!(setting("eth0/accept_ra"), "1", "where the host forwards already, somebody has decided");
}

#[test]
fn a_host_whose_ip6tables_does_not_work_gives_ipv4_and_refuses_ipv6() {
    let lab = Lab::hosts(1);
    let h1 = lab.host(1);
    let broken = h1.scratch();
    let tool = broken.join("ip6tables-save");
    std::fs::write(&tool, "#!/bin/sh\necho 'no IPv6 here' >&2\nexit 3\n").unwrap();
    std::fs::set_permissions(&tool, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let path = format!("{}:{}", broken.display(), crate::lab::setting("PATH").unwrap());
    let command = h1.node_command(&["--listen", &format!("unix://{}", h1.proxy_socket().display())]);
    h1.keep_node(crate::lab::spawn_logged(command.env("PATH", path), &h1.node_log()));
    h1.await_ready();
    assert_eq!(h1.node_log_text().matches("no IPv6 for containers on this host").count(), 1);
    let reply = h1.create("six", &["CALICO_IP=auto,ipv6"]);
    assert_eq!(reply.status, 400);
    assert!(reply.message().contains("gives no IPv6"), "{}", reply.message());
    assert_eq!(h1.etcd().keys("/calico/v1/ipam/v6/"), [""; 0]);
    let ann = h1.run("ann", "-e CALICO_IP=auto -e CALICO_PROFILE=web");
    let bob = h1.run("bob", "-e CALICO_IP=auto -e CALICO_PROFILE=web");
    assert!(ann.reaches(bob.ip()) && !ann.reaches(OUTSIDE));
}
