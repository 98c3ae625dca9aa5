//! Addresses: given, shown where Docker users look, recorded, and free again.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;

use serde_json::{Value, json};

use crate::lab::Lab;
use crate::lab::container::{Container, SOON};
use crate::lab::wait::wait_until;

/// The pool that an address is claimed in, with its dash.
fn claim_key(pool: &str, address: &str) -> String {
    format!("/calico/v1/ipam/v4/assignment/{pool}/{address}")
}

/// All that can be read about a running container's network says the same, in the decided form.
fn check_everywhere(container: &Container<'_>, pool: &str, addresses: &[&str], profiles: &[&str]) {
    let host = container.host;
    let (key, record) = container.try_record().expect("a record");
    let endpoint = key.rsplit('/').next().unwrap();
    assert!(endpoint.len() == 32 && endpoint.bytes().all(|b| b.is_ascii_hexdigit() && !b.is_ascii_uppercase()));
    assert_eq!(record["state"], "active");
    assert_eq!(record["name"], format!("cali{}", &endpoint[..11]));
    assert_eq!(record["container:if_name"], "eth1");
    let nets: Vec<String> = addresses.iter().map(|address| format!("{address}/32")).collect();
    assert_eq!(record["ipv4_nets"], json!(nets));
    assert_eq!(record["ipv6_nets"], json!([]));
    assert_eq!(record["profile_ids"], json!(profiles));
    assert_eq!(record["ipv4_gateway"], host.ip.to_string());
    assert_eq!(record["ipv6_gateway"], Value::Null);

    for address in addresses {
        let entries = host.etcd().entries(&claim_key(pool, address));
        let claim = entries.get(&claim_key(pool, address)).unwrap_or_else(|| panic!("no claim of {address}"));
        assert!(!claim.leased);
        let claim = claim.json();
        assert_eq!((&claim["v"], &claim["state"], &claim["successor"]), (&json!(1), &json!("bound"), &Value::Null));
        let request = claim["request"].as_str().unwrap();
        assert!(!request.is_empty() && request.bytes().all(|b| b.is_ascii_hexdigit()), "{claim}");
        let owner = &claim["owner"];
        let expected = json!({
            "host": host.name, "orchestrator": "docker", "workload": container.id, "endpoint": endpoint,
            "name": container.name, "since": owner["since"],
        });
        assert_eq!(*owner, expected);
        let since = owner["since"].as_str().unwrap();
        assert!(since.len() == 20 && since.ends_with('Z') && since.as_bytes()[10] == b'T', "{since}");
    }

    // Where Docker users look.
    let gateway = host.ip.to_string();
    let settings = &container.inspect()["NetworkSettings"];
    assert_eq!(settings["IPAddress"], addresses[0], "{settings}");
    assert_eq!(settings["MacAddress"], record["mac"]);
    assert_eq!(settings["Gateway"], gateway);
    let listed = host.api("GET", "/v1.41/containers/json", None).json();
    let listed = listed.as_array().unwrap().iter().find(|one| one["Id"] == container.id.as_str()).expect("is listed");
    for networks in [&settings["Networks"], &listed["NetworkSettings"]["Networks"]] {
        let network = networks.as_object().unwrap().values().next().unwrap_or_else(|| panic!("no network: {networks}"));
        assert_eq!(network["IPAddress"], addresses[0], "{networks}");
        assert_eq!(network["MacAddress"], record["mac"]);
        assert_eq!(network["Gateway"], gateway);
    }
    let format = "{{.NetworkSettings.IPAddress}}";
    assert_eq!(host.docker_over_tcp(&["inspect", "-f", format, &container.name]).run().ok(), addresses[0]);
    // dockerd itself knows nothing of it.
    let raw = container.raw_inspect();
    assert_eq!(raw["HostConfig"]["NetworkMode"], "none");
    assert_eq!(raw["NetworkSettings"]["IPAddress"], "");

    // And inside.
    let name = raw["Config"]["Hostname"].as_str().unwrap();
    let hosts = container.exec(&["cat", "/etc/hosts"]).ok();
    let line = hosts.lines().find(|line| line.split_whitespace().next() == Some(addresses[0]));
    assert!(line.is_some_and(|line| line.split_whitespace().any(|word| word == name)), "{name} in {hosts}");
}

#[test]
fn an_address_is_the_one_asked_for_and_is_shown_recorded_and_freed() {
    let lab = Lab::running(1);
    let h1 = lab.host(1);
    h1.calicoctl("pool add 10.20.0.0/24").ok();
    let chains_before = h1.chains();
    let routes_before = h1.routes();

    let ann = h1.run("ann", "-e CALICO_IP=192.168.1.1 -e CALICO_PROFILE=web");
    check_everywhere(&ann, "192.168.0.0-16", &["192.168.1.1"], &["web"]);
    let bob = h1.run("bob", "-e CALICO_IP=10.20.0.0/24 -e CALICO_PROFILE=web,db");
    check_everywhere(&bob, "10.20.0.0-24", &[&bob.ip().to_string()], &["web", "db"]);
    let edge = h1.run("edge", "-e CALICO_IP=10.20.0.255/32");
    check_everywhere(&edge, "10.20.0.0-24", &["10.20.0.255"], &[]);
    let zero = h1.run("zero", "-e CALICO_IP=10.20.0.0");
    check_everywhere(&zero, "10.20.0.0-24", &["10.20.0.0"], &[]);
    let two = h1.run("two", "-e 'CALICO_IP=10.20.0.77, 10.20.0.78'");
    check_everywhere(&two, "10.20.0.0-24", &["10.20.0.77", "10.20.0.78"], &[]);
    for wish in ["auto", "ipv4"] {
        let any = h1.run(wish, &format!("-e CALICO_IP={wish}"));
        assert!(any.inspect()["NetworkSettings"]["IPAddress"] == any.ip().to_string());
    }
    lab.assert_consistent();

    // When `docker rm` returns, the address is free.
    for again in 0..3 {
        let holder = h1.container("ann");
        let link = holder.link();
        holder.remove();
        assert_eq!(h1.etcd().get(&claim_key("192.168.0.0-16", "192.168.1.1")), None, "round {again}");
        wait_until("its interface is gone", SOON, || !h1.cali_links().contains(&link));
        h1.run("ann", "-e CALICO_IP=192.168.1.1 -e CALICO_PROFILE=web");
        lab.assert_consistent();
    }
    // What dockerd is told directly comes to the same.
    h1.raw_docker("rm -f ann").ok();
    wait_until("the claim is gone", SOON, || h1.etcd().get(&claim_key("192.168.0.0-16", "192.168.1.1")).is_none());

    lab.remove_everything();
    wait_until("the chains are those of before", SOON, || h1.chains() == chains_before);
    assert_eq!(h1.routes(), routes_before);
    assert_eq!(h1.etcd().keys("/calico/v1/ipam/v4/assignment/"), [""; 0]);
}

#[test]
fn automatic_choice_goes_on_from_the_last_and_ends_when_the_pool_does() {
    let lab = Lab::running(1);
    let h1 = lab.host(1);
    h1.calicoctl("pool add 10.30.0.0/29").ok();
    h1.calicoctl("pool add 10.31.0.0/28").ok();
    let address = |name: &str| -> Ipv4Addr { h1.container(name).ip() };

    let mut given = BTreeSet::new();
    for number in 0..6 {
        let name = format!("box{number}");
        let reply = h1.create(&name, &["CALICO_IP=10.30.0.0/29"]);
        assert_eq!(reply.status, 201, "{}", reply.message());
        given.insert(address(&name));
    }
    let all: BTreeSet<Ipv4Addr> = (1..=6).map(|last| Ipv4Addr::new(10, 30, 0, last)).collect();
    assert_eq!(given, all, "neither network nor broadcast address");
    let full = h1.create("late", &["CALICO_IP=10.30.0.0/29"]);
    assert_eq!(full.status, 409);
    assert!(full.message().contains("10.30.0.0/29"), "{}", full.message());
    assert!(!h1.has_container("late"));
    // Whoever asks for them by name gets the two others.
    for rest in ["10.30.0.0", "10.30.0.7"] {
        assert_eq!(h1.create(&rest.replace('.', "-"), &[&format!("CALICO_IP={rest}")]).status, 201);
    }
    let freed = address("box3");
    h1.container("box3").remove();
    assert_eq!(h1.create("late", &["CALICO_IP=10.30.0.0/29"]).status, 201);
    assert_eq!(address("late"), freed);

    for last in 1..=3 {
        assert_eq!(h1.create("turn", &["CALICO_IP=10.31.0.0/28"]).status, 201);
        assert_eq!(address("turn"), Ipv4Addr::new(10, 31, 0, last));
        h1.container("turn").remove();
    }
    lab.assert_consistent();
    lab.remove_everything();
}

/// The claim of the create before stood in the way, which dockerd had refused.
#[test]
fn who_asks_again_right_after_dockerd_has_refused_its_create_is_not_told_that_the_address_is_taken() {
    let lab = Lab::running(1);
    let h1 = lab.host(1);
    let create = |image: &str| {
        let body = json!({"Image": image, "Env": ["CALICO_IP=192.168.1.1", "CALICO_PROFILE=web"]});
        h1.api("POST", "/v1.41/containers/create?name=ann", Some(&body))
    };
    for _ in 0..50 {
        assert_eq!(create("no-such-image").status, 404);
        let made = create("busybox");
        assert_eq!(made.status, 201, "{}", made.message());
        assert_eq!(h1.api("DELETE", "/v1.41/containers/ann", None).status, 204);
    }
    lab.assert_consistent();
    lab.remove_everything();
}
