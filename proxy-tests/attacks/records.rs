//! Names that mean more than a name, and records that nobody should have written (attacks 11 and 12 of the catalogue).

use serde_json::{Value, json};
use std::time::Duration;

use super::allow_all;
use crate::lab::Lab;
use crate::lab::wait::wait_until;

/// What no name of ours may hold, each with a mark that would be seen where it took effect.
const NAMES: [&str; 10] = [
    "a\n-A FORWARD -m comment --comment INJECTED -j ACCEPT",
    "a\" -m comment --comment INJECTED",
    "a; touch INJECTED",
    "$(touch INJECTED)",
    "`touch INJECTED`",
    "..",
    "a b",
    "ünïcode-INJECTED",
    "%2e%2e%2fINJECTED",
    "--INJECTED",
];

/// How much a node may take for whatever stands in the datastore.
const MEMORY_MOST: usize = 400 << 20;

#[test]
#[expect(clippy::too_many_lines, reason = "a table of records reads best in one piece")]
fn records_that_nobody_should_have_written_harm_nothing_but_themselves() {
    let lab = Lab::hosts(1);
    allow_all(&lab, "open");
    let (h1, etcd) = (lab.host(1), lab.etcd());
    h1.start_node();
    let open = "-e CALICO_IP=auto -e CALICO_PROFILE=open";
    let (ann, bob) = (h1.run("ann", open), h1.run("bob", open));
    assert!(ann.reaches(bob.ip()));
    let (anns_link, claims) = (ann.link(), etcd.entries("/calico/v1/ipam/"));
    let put = |key: &str, value: &[u8]| {
        // Larger than an argument may be. What is empty is no input to etcdctl.
        let (args, input): (&[&str], &[u8]) =
            if value.is_empty() { (&["put", key, ""], &[]) } else { (&["put", key], value) };
        etcd.ctl(args).input(input).run().ok();
    };
    let endpoint = |workload: char, id: &str| {
        let workload = workload.to_string().repeat(64);
        format!("/calico/v1/host/h1/workload/docker/{workload}/endpoint/{id}")
    };

    // Names, wherever one can stand.
    for (number, name) in NAMES.iter().enumerate() {
        let rules = json!({ "id": name, "inbound_rules": [{ "action": "allow", "src_tag": name, "log_prefix": name }], "outbound_rules": [] });
        put(&format!("/calico/v1/policy/profile/{name}/rules"), rules.to_string().as_bytes());
        put(&format!("/calico/v1/policy/profile/{name}/tags"), json!([name]).to_string().as_bytes());
        put(&format!("/calico/v1/policy/profile/tags{number}/tags"), json!([name]).to_string().as_bytes());
        put(&format!("/calico/v1/policy/profile/tags{number}/rules"), rules.to_string().as_bytes());
        put(&format!("/calico/v1/config/{name}"), name.as_bytes());
        put(&format!("/calico/v1/ipam/v4/pool/{name}"), json!({ "cidr": name }).to_string().as_bytes());
        put(&format!("/calico/bgp/v1/host/{name}/ip_addr_v4"), b"172.25.0.66");
        put(&format!("/calico/bgp/v1/host/{name}/as_num"), name.as_bytes());
        put(
            &format!("/calico/bgp/v1/global/peer_v4/{name}"),
            json!({ "ip": name, "as_num": name }).to_string().as_bytes(),
        );
        let record = json!({ "state": "active", "name": "cali00000000000", "mac": name, "profile_ids": [name], "ipv4_nets": [name] });
        put(&endpoint('a', name), record.to_string().as_bytes());
    }
    // Endpoints with what is others': the host's interfaces, another's, all addresses, another's address.
    let id = |digit: char| digit.to_string().repeat(32);
    let record = |interface: &str, net: &str| json!({ "state": "active", "name": interface, "mac": "ee:ee:ee:ee:ee:01", "profile_ids": ["open"], "ipv4_nets": [net] });
    let anns = format!("{}/32", ann.ip());
    let anns_id = ann.endpoint_id();
    let alike = format!("{}{}", &anns_id[..11], "0".repeat(21));
    let poison: [(String, Value); 9] = [
        (endpoint('b', &id('1')), record("eth0", "192.168.9.1/32")),
        (endpoint('b', &id('2')), record("lo", "192.168.9.2/32")),
        (endpoint('b', &id('3')), record(&anns_link, "192.168.9.3/32")),
        (endpoint('b', &id('4')), record("cali44444444444", "0.0.0.0/0")),
        (endpoint('b', &id('5')), record("cali55555555555", &anns)),
        (endpoint('b', &id('6')), record("../../../tmp/x", "192.168.9.6/32")),
        (endpoint('b', &id('7')), record("cali", "192.168.9.7/32")),
        (endpoint('b', &alike), record(&anns_link, "192.168.9.8/32")),
        (format!("/calico/v1/host/h1/workload/other/w/endpoint/{}", id('8')), record("eth0", "192.168.9.9/32")),
    ];
    for (key, value) in &poison {
        put(key, value.to_string().as_bytes());
    }
    // Values without measure.
    let many: Vec<Value> =
        (0..20_000).map(|port| json!({ "action": "allow", "protocol": "tcp", "dst_ports": [port] })).collect();
    let big = |inbound: Value| json!({ "id": "x", "inbound_rules": inbound, "outbound_rules": [] }).to_string();
    let hundred_thousand = format!("{{\"inbound_rules\":[{}]}}", vec!["{}"; 100_000].join(","));
    // One rule that says of two million pairs of ports that they are allowed.
    let ports: Vec<u16> = (1..=15_000).collect();
    for (profile, value) in [
        ("many", big(json!(many))),
        ("hundredthousand", hundred_thousand),
        ("product", big(json!([{ "action": "allow", "src_ports": ports, "dst_ports": ports }]))),
        ("long", big(json!([{ "action": "allow", "src_tag": "x".repeat(1_400_000) }]))),
        ("deep", format!("{}1{}", "[".repeat(600_000), "]".repeat(600_000))),
        ("deeper", big(json!([])).replace("[]", &format!("{}{}", "[".repeat(300_000), "]".repeat(300_000)))),
        ("number", big(json!([{ "action": "allow", "protocol": 1e300 }]))),
        ("port", big(json!([{ "action": "allow", "protocol": "tcp", "dst_ports": [65536, -1, "NaN"] }]))),
        ("unknown", big(json!([{ "action": "maybe" }]))),
        ("half", "{\"id\":".to_owned()),
        ("nothing", String::new()),
        ("zero", "\u{0}".to_owned()),
    ] {
        put(&format!("/calico/v1/policy/profile/{profile}/rules"), value.as_bytes());
        put(&format!("/calico/v1/policy/profile/{profile}/tags"), b"[]");
    }
    // Somebody uses the worst of them.
    let closed = ["hundredthousand", "product", "long", "deep", "number", "port", "unknown", "half", "zero"];
    let victims: Vec<_> = closed.iter().map(|profile| (profile, h1.run(profile, "-e CALICO_IP=auto"))).collect();
    for (profile, victim) in &victims {
        let (key, mut record) = victim.try_record().unwrap();
        record["profile_ids"] = json!([profile]);
        etcd.put(&key, &record.to_string());
    }

    // Everything else goes on, and follows.
    for (action, open) in [("deny", false), ("allow", true)] {
        let all = json!([{ "action": action }]);
        let rules = json!({ "id": "open", "inbound_rules": all, "outbound_rules": all });
        etcd.put("/calico/v1/policy/profile/open/rules", &rules.to_string());
        wait_until(&format!("{action} is in force"), Duration::from_secs(20), || ann.reaches(bob.ip()) == open);
    }
    let late = h1.run("late", open);
    assert!(late.reaches(bob.ip()), "a start beside them");
    wait_until("the closed profiles are told of", Duration::from_secs(20), || {
        let status = h1.calicoctl("status").out();
        closed.iter().all(|profile| status.contains(&format!("profile {profile}")))
    });
    for (profile, victim) in &victims {
        ann.never_reaches(victim.ip());
        assert!(!victim.reaches(bob.ip()), "{profile} lets out");
    }
    // A profile of twenty thousand rules is a profile.
    let (key, mut record) = late.try_record().unwrap();
    record["profile_ids"] = json!(["many"]);
    etcd.put(&key, &record.to_string());
    let served = late.serve(&[19_000, 21_000]);
    let tcp = |to| crate::lab::netns::Probe::Tcp { from: None, to };
    wait_until("the last of the rules is in force", Duration::from_mins(1), || {
        !ann.gets_through(late.ip(), tcp(21_000)) && ann.gets_through(late.ip(), tcp(19_000))
    });
    drop(served);

    // The host has what it had.
    let links = h1.sh("ip -o link show");
    assert!(links.contains(": eth0") && links.contains(": lo") && links.contains(&anns_link), "{links}");
    assert!(h1.space.pings(crate::lab::OUTSIDE) && h1.space.pings(ann.ip()) && ann.reaches(bob.ip()));
    let saved = h1.sh("iptables-save; ip6tables-save; nft list ruleset; ipset save");
    assert!(!saved.lines().any(|line| line.contains("INJECTED") && !line.contains("comment")), "{saved}");
    assert!(!saved.contains("--comment INJECTED") && !saved.contains("192.168.9."));
    assert!(!h1.birdc("show protocols").contains("INJECTED"));
    for folder in [h1.run_dir(), h1.state_dir(), std::env::current_dir().unwrap()] {
        assert!(!folder.join("INJECTED").exists() && !folder.join("../INJECTED").exists());
    }
    for (key, claim) in claims {
        assert_eq!(etcd.get(&key), Some(claim.value), "{key}");
    }
    let memory = h1.node_memory();
    assert!(memory < MEMORY_MOST, "the node takes {} MiB", memory >> 20);
    assert!(!h1.has_ended());
}

/// A record that names the host's own interface made its host remove it: with its container gone, or to wire it anew.
#[test]
fn a_record_never_makes_its_host_remove_an_interface_that_is_not_the_endpoints_own() {
    let lab = Lab::running(1);
    let (h1, etcd) = (lab.host(1), lab.etcd());
    let ann = h1.run("ann", "-e CALICO_IP=auto -e CALICO_PROFILE=web");
    let bob = h1.run("bob", "-e CALICO_IP=auto -e CALICO_PROFILE=web");
    let (anns, bobs) = (ann.link(), bob.link());
    h1.sh("ip link add bridge9 type bridge");
    let (key, right) = ann.try_record().unwrap();
    let links = || h1.sh("ip -o link show");
    for wrong in ["bridge9", &bobs] {
        let mut record = right.clone();
        record["name"] = json!(wrong);
        etcd.put(&key, &record.to_string());
        // A restart wires anew, with the record as it is.
        h1.raw_docker("restart -t 0 ann");
        wait_until("it is told of", Duration::from_secs(15), || h1.calicoctl("status").out().contains(wrong));
        for link in ["bridge9", &bobs, "eth0"] {
            assert!(links().contains(&format!(": {link}")), "{link} has gone: {}", links());
        }
        etcd.put(&key, &right.to_string());
        wait_until("the right record is heeded", Duration::from_secs(20), || {
            h1.raw_docker("start ann");
            links().contains(&anns) && bob.reaches(ann.ip())
        });
    }
    let mut record = right.clone();
    record["name"] = json!("bridge9");
    etcd.put(&key, &record.to_string());
    h1.raw_docker("rm -f ann").ok();
    wait_until("what is left of ann is removed", Duration::from_secs(15), || etcd.get(&key).is_none());
    assert!(links().contains(": bridge9"), "{}", links());
    lab.remove_everything();
}
