//! Whatever somebody else does to what the node has made in the kernel: nothing opens, and it is put right.

use std::time::Duration;

use crate::lab::Lab;
use crate::lab::container::{SOON, reach_each_other};
use crate::lab::host::Host;
use crate::lab::netns::Pinger;
use crate::lab::wait::{wait_until, wait_until_right};

const WEB: &str = "-e CALICO_IP=auto -e CALICO_PROFILE=web";

/// How soon that is put right of which the kernel tells, on a machine that has other work too.
const AT_ONCE: Duration = Duration::from_secs(3);

/// What the node counts of one kind of thing that it has put right.
fn counted(host: &Host, kind: &str) -> u32 {
    let metrics = host.sh("curl -s http://127.0.0.1:9091/metrics");
    let name = format!("calico_drift_repaired_total{{kind=\"{kind}\"}} ");
    metrics.lines().find_map(|line| line.strip_prefix(&name)).map_or(0, |count| count.parse().unwrap())
}

/// Our part of the firewall, and what leads to it, in order.
fn firewall(host: &Host) -> Vec<String> {
    let rules = host.rules();
    rules.into_iter().filter(|line| line.contains("calico") || line.contains("FORWARD")).collect()
}

#[test]
fn whatever_another_tool_does_to_the_firewall_opens_nothing_and_is_put_right() {
    let lab = Lab::running(1);
    let h1 = lab.host(1);
    let (ann, bob) = (h1.run("ann", WEB), h1.run("bob", WEB));
    let eve = h1.run("eve", "-e CALICO_IP=auto -e CALICO_PROFILE=other");
    reach_each_other(&[&ann, &bob]);
    let right = firewall(h1);
    let foe = Pinger::start(&eve.space(), bob.ip(), true);
    // Each in the way of a tool that does so: by hand, ufw, firewalld, fail2ban, dockerd.
    let deeds = [
        (
            "an entry is edited and keeps our comment",
            "iptables-save -t filter | sed '/^-A calico-pi-web/ s/-g calico-allow/-j DROP/' | iptables-restore",
            "chain",
        ),
        (
            "the source of an entry is widened",
            "iptables-save -t filter | sed '/^-A calico-fw-/ s/-s [0-9.]*.32/-s 10.9.9.9\\/32/' | iptables-restore",
            "chain",
        ),
        (
            "an entry is put before ours",
            "iptables -I calico-tw-$(iptables -S | sed -n 's/^-N calico-tw-//p' | head -n 1) -j DROP",
            "chain",
        ),
        ("our jump comes last", "iptables -I FORWARD -j ACCEPT", "jump"),
        (
            "our jump goes",
            "iptables -D FORWARD -m comment --comment \"$(iptables-save -t filter | sed -n 's/^-A FORWARD .*--comment \"\\(calico[^\"]*\\)\".*/\\1/p')\" -j calico-FORWARD",
            "jump",
        ),
        ("all entries go", "iptables -F", "chain"),
        ("all chains go", "iptables -F; iptables -X", "chain"),
        (
            "all goes and the policy is open",
            "iptables -P FORWARD ACCEPT; iptables -F; iptables -X; nft flush ruleset",
            "chain",
        ),
        (
            "a reload as ufw does it",
            "printf '*filter\\n:ufw-forward - [0:0]\\n-F FORWARD\\n-A FORWARD -j ufw-forward\\n-A ufw-forward -j ACCEPT\\nCOMMIT\\n' | iptables-restore -n",
            "jump",
        ),
        (
            "a reload as firewalld does it",
            "nft 'add table inet firewalld; flush table inet firewalld; add chain inet firewalld f { type filter hook forward priority 10; policy accept; }; add rule inet firewalld f accept'; nft delete table inet firewalld; iptables -F",
            "chain",
        ),
        (
            "a whole other ruleset is loaded",
            "printf '*filter\\n:INPUT ACCEPT [0:0]\\n:FORWARD ACCEPT [0:0]\\n:OUTPUT ACCEPT [0:0]\\nCOMMIT\\n' | iptables-restore",
            "chain",
        ),
    ];
    for (what, deed, kind) in deeds {
        let before = counted(h1, kind);
        h1.sh(deed);
        wait_until_right(what, SOON, || {
            let now = firewall(h1);
            let ours = |lines: &[String]| -> Vec<String> {
                lines.iter().filter(|line| line.contains("calico")).cloned().collect()
            };
            let (wanted, found) = (ours(&right), ours(&now));
            let missing = wanted.iter().filter(|line| !found.contains(line));
            let mut wrong: Vec<String> = missing.map(|line| format!("not there: {line}")).collect();
            wrong.extend(found.iter().filter(|line| !wanted.contains(line)).map(|line| format!("a stranger: {line}")));
            let first = now.iter().find(|line| line.starts_with("-A FORWARD"));
            if !first.is_some_and(|line| line.ends_with("-j calico-FORWARD")) {
                wrong.push(format!("first in FORWARD is {first:?}"));
            }
            wrong
        });
        assert!(counted(h1, kind) > before, "{what}: not counted as {kind}");
        assert!(ann.reaches(bob.ip()), "{what}");
        assert_eq!(foe.answered_so_far(), 0, "{what} let eve through");
        h1.sh("iptables -D FORWARD -j ACCEPT 2>/dev/null; iptables -D FORWARD -j ufw-forward 2>/dev/null; iptables -P FORWARD ACCEPT");
    }
    // A policy that drops what nobody accepts is somebody's right; what we accept is accepted.
    h1.sh("iptables -P FORWARD DROP");
    assert!(ann.reaches(bob.ip()));
    // Sets have no word of the kernel's; their sizes are looked at every second.
    for (what, deed) in [
        ("a stranger joins a set", format!("ipset add calico4-t-web {}", eve.ip())),
        ("a set is emptied", "ipset flush calico4-t-web".to_owned()),
    ] {
        let members = h1.sets()["calico4-t-web"].clone();
        h1.sh(&deed);
        wait_until(what, SOON, || h1.sets()["calico4-t-web"] == members);
    }
    assert!(ann.reaches(bob.ip()) && counted(h1, "set") >= 2);
    let foe = foe.stop();
    assert!(foe.sent > 100, "{foe:?}");
    lab.assert_consistent();
}

#[test]
fn routes_and_links_that_somebody_changes_are_put_right() {
    let lab = Lab::running(1);
    let h1 = lab.host(1);
    let (ann, bob) = (h1.run("ann", WEB), h1.run("bob", WEB));
    reach_each_other(&[&ann, &bob]);
    let (link, address) = (ann.link(), ann.ip());
    let inside = format!("nsenter --net={} ip", ann.space().path());
    let works = || bob.reaches(address) && ann.reaches(bob.ip()) && h1.has_route(&format!("{address} dev {link}"));
    let right = |what: &str, deed: &str, limit: Duration| {
        h1.sh(deed);
        wait_until(what, limit, works);
    };
    let routes = counted(h1, "route");
    right("a route that was taken away", &format!("ip route del {address}"), AT_ONCE);
    right("a route that was replaced in place", &format!("ip route replace {address} dev eth0"), AT_ONCE);
    right(
        "a route that leads to another's interface",
        &format!("ip route replace {address} dev {}", bob.link()),
        AT_ONCE,
    );
    right("all routes of ours", "ip route flush proto 97", AT_ONCE);
    assert!(counted(h1, "route") >= routes + 4, "{} routes counted", counted(h1, "route"));
    let links = counted(h1, "link");
    let deeds = [
        ("a link that was set down", format!("ip link set {link} down")),
        ("a link that was set down inside", format!("{inside} link set eth1 down")),
        (
            "a link that was renamed",
            format!("ip link set {link} down; ip link set {link} name calistolen; ip link set calistolen up"),
        ),
        ("a link that was renamed while it was up", format!("ip link set {link} name elsewhere")),
        ("a link that was deleted", format!("ip link del {link}")),
        ("a link that was deleted inside", format!("{inside} link del eth1")),
    ];
    for (number, (what, deed)) in (1..).zip(&deeds) {
        right(what, deed, AT_ONCE);
        wait_until(&format!("{what} is counted"), SOON, || counted(h1, "link") == links + number);
    }
    wait_until("the renamed ones are gone", SOON, || {
        h1.cali_links().len() == 2 && !h1.sh("ip -o link").contains("elsewhere")
    });
    // Nobody tells what happens to addresses inside a container.
    right(
        "an address that was taken away inside",
        &format!("{inside} address flush dev eth1"),
        Duration::from_secs(90),
    );

    let others = links + 7;
    wait_until("that is counted", SOON, || counted(h1, "link") == others);
    // What comes and goes with a container nobody has changed.
    h1.docker("restart -t 0 bob").ok();
    h1.raw_docker("restart -t 0 bob").ok();
    wait_until("bob is back", SOON, works);
    assert_eq!(counted(h1, "link"), others);
    lab.assert_consistent();
    lab.remove_everything();
}

#[test]
fn settings_and_next_hops_that_somebody_changes_are_put_right_at_once_where_the_kernel_tells() {
    let lab = Lab::hosts(1);
    let h1 = lab.host(1);
    h1.spawn_node(&["--ip6", &h1.ip6.to_string()]);
    h1.await_ready();
    let ann = h1.run("ann", "-e CALICO_IP=auto,ipv6 -e CALICO_PROFILE=web");
    let link = ann.link();
    let read = |name: &str| h1.sh(&format!("cat /proc/sys/{name}"));
    let put_right = |name: &str, limit: Duration| {
        let (right, before) = (read(name), counted(h1, "sysctl"));
        // A delay is counted in hundredths of a second, of which the kernel may not know a single one.
        let wrong =
            if right == "0" { "1" } else { "0" }.replace('1', if name.ends_with("_delay") { "80" } else { "1" });
        h1.sh(&format!("echo {wrong} >/proc/sys/{name}"));
        wait_until(&format!("{name} is right again"), limit, || read(name) == right);
        wait_until(&format!("{name} is counted"), SOON, || counted(h1, "sysctl") > before);
    };
    // To wire is to change settings, which nobody else has done.
    assert_eq!((counted(h1, "sysctl"), counted(h1, "interface")), (0, 0));
    let of = |setting: &str| format!("net/{}", setting.replace('*', &link));
    for name in [
        "ipv4/conf/*/rp_filter",
        "ipv4/conf/*/proxy_arp",
        "ipv4/conf/*/forwarding",
        "ipv6/conf/*/forwarding",
        "ipv6/conf/*/disable_ipv6",
        "ipv4/ip_forward",
        "ipv6/conf/all/forwarding",
    ] {
        put_right(&of(name), AT_ONCE);
    }
    let next_hop = || h1.sh(&format!("ip -6 address show dev {link}")).contains("fe80::ecee:eeff:feee:eeee/64");
    wait_until("the next hop is there", SOON, next_hop);
    let before = counted(h1, "interface");
    h1.sh(&format!("ip -6 address flush dev {link}"));
    wait_until("the next hop is there again", AT_ONCE, next_hop);
    wait_until("it is counted", SOON, || counted(h1, "interface") == before + 1);
    // Nor has anybody when a container goes and comes again.
    let by_now = [counted(h1, "sysctl"), counted(h1, "interface"), counted(h1, "link")];
    for _ in 0..3 {
        h1.raw_docker("kill ann").ok();
        h1.raw_docker("start ann").ok();
        wait_until("the next hop is there again", SOON, next_hop);
    }
    assert_eq!([counted(h1, "sysctl"), counted(h1, "interface"), counted(h1, "link")], by_now);

    // One who does not leave off is not followed at his pace.
    let (before, name) = (counted(h1, "sysctl"), of("ipv4/conf/*/rp_filter"));
    h1.sh(&format!("for i in $(seq 100); do echo 0 >/proc/sys/{name}; sleep 0.02; done"));
    wait_until("it is right in the end", AT_ONCE, || read(&name) == "1");
    let counted_by_now = counted(h1, "sysctl") - before;
    assert!((1..=12).contains(&counted_by_now), "{counted_by_now} times in two seconds");

    lab.etcd().put("/calico/v1/config/IptablesRefreshInterval", "2");
    for name in [
        "ipv4/neigh/*/proxy_delay",
        "ipv4/conf/*/accept_source_route",
        "ipv4/conf/*/accept_redirects",
        "ipv4/conf/*/route_localnet",
        "ipv6/conf/*/accept_ra",
        "ipv6/conf/*/accept_redirects",
        "ipv6/conf/*/autoconf",
        "ipv6/conf/*/addr_gen_mode",
        "ipv6/conf/*/accept_dad",
    ] {
        put_right(&of(name), SOON);
    }
    lab.assert_consistent();
    lab.remove_everything();
}

#[test]
fn a_container_whose_link_cannot_be_made_is_an_error_with_the_reason_until_it_can() {
    let lab = Lab::running(1);
    let h1 = lab.host(1);
    let (ann, bob, cat) = (h1.run("ann", WEB), h1.run("bob", WEB), h1.run("cat", WEB));
    reach_each_other(&[&ann, &bob, &cat]);
    let (link, id, address) = (ann.link(), ann.endpoint_id(), ann.ip());
    let report = format!("/calico/felix/v1/host/h1/workload/docker/{}/endpoint/{id}", ann.id);
    let says = |what: &str| lab.etcd().get(&report).is_some_and(|text| text.contains(what));
    wait_until("ann is up", SOON, || says("\"up\""));
    // The name of the container's end is somebody else's now.
    let inside = format!("nsenter --net={} ip", ann.space().path());
    h1.sh(&format!("printf 'link set eth1 name old\nlink add eth1 type bridge\n' | {inside} -batch -"));
    h1.sh(&format!("ip link del {link}"));
    wait_until("the report says so, with the reason", SOON, || says("\"error\"") && says("eth1"));
    let shown = h1.calicoctl("endpoint show --detailed").ok();
    assert!(shown.contains("does not work: wire container") && shown.contains("eth1"), "{shown}");
    let status = h1.calicoctl("status").ok();
    assert!(status.contains(&format!("container {}", &ann.id[..12])) && status.contains("eth1"), "{status}");
    assert!(h1.sh("curl -s http://127.0.0.1:9091/metrics").contains("calico_faults{kind=\"container\"} 1"));
    // It runs on, and dark, since nobody waits for its start; others are not concerned.
    assert_eq!(ann.raw_inspect()["State"]["Running"], true);
    assert!(h1.cali_links() == [bob.link(), cat.link()].into() && !h1.has_route(&address.to_string()));
    bob.comes_to_reach(cat.ip());
    // It is tried ever more seldom, and told of once.
    assert_eq!(h1.node_log_text().matches("network is not as it should be; trying again").count(), 1);
    h1.sh(&format!("{inside} link del eth1"));
    reach_each_other(&[&ann, &bob]);
    wait_until("the report says that it is well again", SOON, || says("\"up\""));
    assert!(!h1.calicoctl("status").ok().contains("eth1"));
    lab.assert_consistent();
    lab.remove_everything();
}
