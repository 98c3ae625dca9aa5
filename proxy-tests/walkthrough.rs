//! The walk-through that this software was made from, on two hosts, command by command: after every step the datastore, both hosts' routes and
//! rules, the BGP session and the connectivity are what the text says. Then once more with `CALICO_IP` through port 2377.
//!
//! Source: "Lifecycle of a Calico Networked Docker Container" (projectcalico/calico-docker), section by section.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use serde_json::{Value, json};

use crate::lab::Lab;
use crate::lab::container::{Container, SOON, reach_each_other};
use crate::lab::etcd::Entry;
use crate::lab::host::Host;
use crate::lab::netns::Probe;
use crate::lab::wait::wait_until;

const A: Ipv4Addr = Ipv4Addr::new(192, 168, 1, 1);
const B: Ipv4Addr = Ipv4Addr::new(192, 168, 1, 2);

/// All that one step may change and the next must not have.
fn kernel(lab: &Lab) -> Vec<(Vec<String>, Vec<String>)> {
    lab.all_hosts().iter().map(|host| (host.routes(), host.rules())).collect()
}

fn datastore(lab: &Lab) -> BTreeMap<String, Entry> {
    let mut entries = lab.etcd().entries("/calico/");
    // What nodes say of themselves goes on all the time.
    entries.retain(|key, _| !key.starts_with("/calico/felix/"));
    entries
}

/// "Start the calico/node instance on your container hosts."
fn start_on_both_hosts(lab: &Lab) {
    lab.start_nodes();
    let etcd = lab.etcd();
    let text = |key: &str| etcd.get(key).unwrap_or_else(|| panic!("nothing at {key}"));
    assert_eq!(text("/calico/v1/Ready"), "true");
    assert_eq!(text("/calico/bgp/v1/global/as_num"), "64511");
    assert_eq!(etcd.json("/calico/bgp/v1/global/node_mesh"), json!({"enabled": true}));
    assert_eq!(etcd.json("/calico/v1/ipam/v4/pool/192.168.0.0-16")["cidr"], "192.168.0.0/16");
    assert_eq!(etcd.json("/calico/v1/ipam/v6/pool/fd80:24e2:f998:72d6::-64")["cidr"], "fd80:24e2:f998:72d6::/64");
    for host in lab.all_hosts() {
        assert_eq!(text(&format!("/calico/v1/host/{}/bird_ip", host.name)), host.ip.to_string());
        assert_eq!(text(&format!("/calico/bgp/v1/host/{}/ip_addr_v4", host.name)), host.ip.to_string());
        assert!(host.calicoctl("pool show").ok().contains("192.168.0.0/16"));
        wait_until("BIRD peers with the other host", SOON * 2, || host.established_sessions() == 1);
        assert!(host.birdc("show protocols all").contains("64511"));
        assert_eq!(host.workload_keys(), [""; 0]);
        assert!(host.cali_links().is_empty());
    }
}

/// The record and the claim of a container that has just been added.
fn is_recorded(container: &Container<'_>, address: Ipv4Addr, profiles: &[&str]) {
    let host = container.host;
    let (key, record) = container.try_record().unwrap_or_else(|| panic!("no record of {}", container.name));
    let endpoint = key.rsplit('/').next().unwrap();
    let prefix = format!("/calico/v1/host/{}/workload/docker/{}/endpoint/", host.name, container.id);
    assert_eq!(key, format!("{prefix}{endpoint}"));
    let expected = json!({
        "state": "active",
        "name": format!("cali{}", &endpoint[..11]),
        "container:if_name": "eth1",
        "mac": inside_mac(container),
        "profile_ids": profiles,
        "ipv4_nets": [format!("{address}/32")],
        "ipv6_nets": [],
        "ipv4_gateway": host.ip.to_string(),
        "ipv6_gateway": null,
    });
    let mut seen = record.clone();
    let members = seen.as_object_mut().unwrap();
    members.remove("requested");
    let wired_by = members.remove("wired_by").expect("who has wired it");
    assert!(wired_by == "node" || wired_by == "runtime", "{wired_by}");
    assert_eq!(seen, expected);
    let claim = host.etcd().json(&format!("/calico/v1/ipam/v4/assignment/192.168.0.0-16/{address}"));
    assert_eq!((&claim["state"], &claim["owner"]["workload"]), (&json!("bound"), &json!(container.id)));
    let shown = host.calicoctl("endpoint show --detailed").ok();
    assert!(shown.contains(&address.to_string()) && shown.contains(endpoint), "{shown}");
}

fn inside(container: &Container<'_>, args: &[&str]) -> Vec<Value> {
    let ran = crate::lab::command::Run::new("nsenter")
        .arg(format!("--net={}", container.space().path()))
        .args(["ip", "-json"])
        .args(args)
        .run();
    serde_json::from_str(&ran.ok()).unwrap()
}

fn inside_mac(container: &Container<'_>) -> Value {
    inside(container, &["link", "show", "eth1"])[0]["address"].clone()
}

/// "Felix programs routes to the container's address via the host's veth", and "BIRD distributes these routes to all of its peers".
fn is_routed(container: &Container<'_>, address: Ipv4Addr, other: &Host) {
    let host = container.host;
    let local = format!("{address} dev {}", container.link());
    wait_until("the host has a route to its container", SOON, || host.has_route(&local));
    let remote = format!("{address} via {}", host.ip);
    wait_until(&format!("{} has learnt the route {remote}", other.name), SOON * 2, || other.has_route(&remote));
    let learnt = other.routes().into_iter().find(|route| route.starts_with(&remote)).unwrap();
    assert!(learnt.contains("proto bird"), "{learnt}");
    let way_out = &inside(container, &["-4", "route", "show", "default"])[0];
    assert_eq!((&way_out["gateway"], &way_out["dev"]), (&json!(host.ip.to_string()), &json!("eth1")));
}

/// "ACLs that drop all traffic to the container": it has rules of its own by now.
fn is_guarded(container: &Container<'_>) {
    let (link, endpoint) = (container.link(), container.endpoint_id());
    let mark = &endpoint[..11];
    let seen = || {
        let rules = container.host.rules();
        let sets = container.host.sets();
        rules.iter().any(|rule| rule.contains(&link) || rule.contains(mark))
            || sets.values().flatten().any(|member| member.contains(&link))
    };
    wait_until(&format!("{} has rules on its host", container.name), SOON, seen);
}

fn nobody_reaches_anybody(a: &Container<'_>, b: &Container<'_>) {
    a.never_reaches(B);
    b.never_reaches(A);
}

fn everything_goes(a: &Container<'_>, b: &Container<'_>) {
    reach_each_other(&[a, b]);
    let (_at_a, _at_b) = (a.serve(&[80]), b.serve(&[80]));
    for probe in [Probe::Tcp { from: None, to: 80 }, Probe::Udp { from: None, to: 80 }] {
        assert!(a.gets_through(B, probe) && b.gets_through(A, probe), "{probe:?}");
    }
    a.exec(&["ping", "-c1", "-W1", &B.to_string()]).ok();
    b.exec(&["ping", "-c1", "-W1", &A.to_string()]).ok();
}

/// "Create a Profile": the datastore has it, and nothing else has changed.
fn add_profile(lab: &Lab) {
    let (h1, h2) = (lab.host(1), lab.host(2));
    let (kernel_before, mut store_before) = (kernel(lab), datastore(lab));
    h1.calicoctl("profile add PROF_A_B").ok();
    let rules = json!({
        "id": "PROF_A_B",
        "inbound_rules": [{"action": "allow", "src_tag": "PROF_A_B"}],
        "outbound_rules": [{"action": "allow"}],
    });
    assert_eq!(lab.etcd().json("/calico/v1/policy/profile/PROF_A_B/rules"), rules);
    assert_eq!(lab.etcd().json("/calico/v1/policy/profile/PROF_A_B/tags"), json!(["PROF_A_B"]));
    let shown = "Inbound rules:\n   1 allow from tag PROF_A_B\nOutbound rules:\n   1 allow";
    assert_eq!(h2.calicoctl("profile PROF_A_B rule show").ok(), shown);
    let text = h2.calicoctl("profile PROF_A_B rule json").ok();
    assert_eq!(serde_json::from_str::<Value>(&text).unwrap(), rules);
    assert!(h2.calicoctl("profile show").ok().contains("PROF_A_B"));
    let mut store = datastore(lab);
    store.retain(|key, _| !key.contains("/policy/profile/PROF_A_B/"));
    store_before.retain(|key, _| !key.contains("/policy/profile/PROF_A_B/"));
    assert_eq!(store, store_before);
    assert_eq!(kernel(lab), kernel_before);
}

#[test]
fn the_walk_through_of_the_seeds_on_two_hosts() {
    let lab = Lab::hosts(2);
    let (h1, h2) = (lab.host(1), lab.host(2));
    start_on_both_hosts(&lab);

    // "Create containers on host."
    let (kernel_before, store_before) = (kernel(&lab), datastore(&lab));
    h1.raw_docker("run --net=none --name workload_A -tid busybox").ok();
    h2.raw_docker("run --net=none --name workload_B -tid busybox").ok();
    let (a, b) = (h1.container("workload_A"), h2.container("workload_B"));
    assert_eq!(datastore(&lab), store_before, "none of the processes has performed any new action");
    assert_eq!(kernel(&lab), kernel_before);
    nobody_reaches_anybody(&a, &b);
    h1.calicoctl("container workload_A profile set PROF_A_B").fails_with(1);

    // "Add containers to Calico networking."
    h1.calicoctl("container add workload_A 192.168.1.1").ok();
    is_recorded(&a, A, &[]);
    is_routed(&a, A, h2);
    h2.calicoctl("container add workload_B 192.168.1.2").ok();
    is_recorded(&b, B, &[]);
    is_routed(&b, B, h1);
    is_guarded(&a);
    is_guarded(&b);
    nobody_reaches_anybody(&a, &b);
    assert!(h1.space.pings(A) && h2.space.pings(B), "each host reaches its own");
    lab.assert_consistent();

    add_profile(&lab);
    nobody_reaches_anybody(&a, &b);

    // "Update containers to use the profile."
    h1.calicoctl("container workload_A profile set PROF_A_B").ok();
    assert_eq!(a.record()["profile_ids"], json!(["PROF_A_B"]));
    nobody_reaches_anybody(&a, &b);
    h2.calicoctl("container workload_B profile set PROF_A_B").ok();
    assert_eq!(b.record()["profile_ids"], json!(["PROF_A_B"]));
    everything_goes(&a, &b);
    is_recorded(&a, A, &["PROF_A_B"]);
    lab.assert_consistent();

    // Whoever has not the profile is left out, on either host.
    h2.raw_docker("run --net=none --name workload_C -tid busybox").ok();
    h2.calicoctl("container add workload_C 192.168.1.3").ok();
    let c = h2.container("workload_C");
    for member in [A, B] {
        c.never_reaches(member);
    }
    b.never_reaches("192.168.1.3".parse().unwrap());
    h2.calicoctl("container workload_C profile append PROF_A_B").ok();
    reach_each_other(&[&a, &b, &c]);
    h2.calicoctl("container workload_C profile remove PROF_A_B").ok();
    c.ceases_to_reach(A);
    b.ceases_to_reach("192.168.1.3".parse().unwrap());

    // And back again.
    for (host, name) in [(h1, "workload_A"), (h2, "workload_B"), (h2, "workload_C")] {
        host.calicoctl(&format!("container remove {name}")).ok();
        assert!(host.container(name).pid() != 0, "the container itself goes on");
        assert!(host.container(name).try_record().is_none());
    }
    assert_eq!(lab.etcd().keys("/calico/v1/ipam/v4/assignment/"), [""; 0]);
    for (host, address) in [(h1, B), (h2, A)] {
        wait_until("the route is withdrawn", SOON, || !host.has_route(&address.to_string()));
    }
    h1.calicoctl("profile remove PROF_A_B").ok();
    assert_eq!(lab.etcd().keys("/calico/v1/policy/"), [""; 0]);
    lab.assert_consistent();
    lab.remove_everything();
}

#[test]
fn the_walk_through_once_more_with_calico_ip_through_the_proxy() {
    let lab = Lab::hosts(2);
    let (h1, h2) = (lab.host(1), lab.host(2));
    start_on_both_hosts(&lab);

    let wish = |host: &Host, name: &str, address: Ipv4Addr| {
        let wish = format!("CALICO_IP={address}");
        host.docker_over_tcp(&["run", "-e", &wish, "--name", name, "-tid", "busybox"]).run().ok();
    };
    wish(h1, "workload_A", A);
    wish(h2, "workload_B", B);
    let (a, b) = (h1.container("workload_A"), h2.container("workload_B"));
    is_recorded(&a, A, &[]);
    is_recorded(&b, B, &[]);
    assert!(h1.has_route(&format!("{A} dev {}", a.link())), "the route was not there when docker run returned");
    is_routed(&a, A, h2);
    is_routed(&b, B, h1);
    is_guarded(&a);
    is_guarded(&b);
    nobody_reaches_anybody(&a, &b);
    lab.assert_consistent();

    add_profile(&lab);
    nobody_reaches_anybody(&a, &b);
    h1.calicoctl("container workload_A profile set PROF_A_B").ok();
    nobody_reaches_anybody(&a, &b);
    h2.calicoctl("container workload_B profile set PROF_A_B").ok();
    everything_goes(&a, &b);
    is_recorded(&b, B, &["PROF_A_B"]);

    // The address moves to the other host with the next container that asks for it.
    a.remove();
    wait_until("the route is withdrawn", SOON, || !h2.has_route(&format!("{A} via 172.25.0.1")));
    let moved = h2.run("workload_A", "-e CALICO_IP=192.168.1.1 -e CALICO_PROFILE=PROF_A_B");
    is_routed(&moved, A, h1);
    reach_each_other(&[&moved, &b]);
    lab.assert_consistent();
    lab.remove_everything();
}
