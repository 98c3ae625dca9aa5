//! What clients see of a container of ours, in every version of the API that is in use: dockerd's own shape, with our address in it.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use crate::lab::Lab;
use crate::lab::container::Container;
use crate::lab::host::{Host, IDLE};

/// The versions in which `NetworkSettings` looks different, and those that common clients speak.
const VERSIONS: [&str; 12] =
    ["/v1.12", "/v1.18", "/v1.20", "/v1.21", "/v1.22", "/v1.23", "/v1.24", "/v1.30", "/v1.35", "/v1.38", "/v1.41", ""];

fn create(host: &Host, version: &str, name: &str, body: &Value) {
    let reply = host.api("POST", &format!("{version}/containers/create?name={name}"), Some(body));
    assert_eq!(reply.status, 201, "{version} {name}: {}", String::from_utf8_lossy(&reply.body));
}

fn keys(value: &Value) -> BTreeSet<&str> {
    value.as_object().into_iter().flat_map(|object| object.keys().map(String::as_str)).collect()
}

/// The one of a list.
fn one_of(list: &Value, id: &str) -> Value {
    list.as_array().unwrap().iter().find(|one| one["Id"] == id).cloned().unwrap_or_else(|| panic!("{id} is not listed"))
}

/// Two looks at a container differ in the network alone, and there not in shape.
#[track_caller]
fn compare(what: &str, mut raw: Value, mut through: Value, container: &Container<'_>, network: &str) {
    let (address, mac) = (container.ip().to_string(), container.record()["mac"].clone());
    // The runtime that was asked for is shown, not the one that stands in front of it.
    if let Some(runtime) = raw.pointer_mut("/HostConfig/Runtime").filter(|runtime| **runtime == "calico") {
        *runtime = json!("runc");
    }
    let (before, after) = (raw["NetworkSettings"].take(), through["NetworkSettings"].take());
    assert_eq!(through, raw, "{what}: more than the network has changed");
    assert_eq!(keys(&after), keys(&before), "{what}");
    let shows = |settings: &Value, where_: &str| {
        for (key, value) in [
            ("IPAddress", json!(address)),
            ("IPPrefixLen", json!(32)),
            ("Gateway", json!(container.host.ip.to_string())),
            ("MacAddress", mac.clone()),
        ] {
            assert!(settings.get(key).is_none_or(|shown| *shown == value), "{what}, {where_}: {key} is {settings}");
        }
    };
    shows(&after, "at the top");
    if let Some(networks) = after.get("Networks").filter(|networks| networks.is_object()) {
        assert_eq!(keys(networks), BTreeSet::from([network]), "{what}");
        assert_eq!(keys(&networks[network]), keys(&before["Networks"]["none"]), "{what}");
        assert_eq!(networks[network]["IPAddress"], address, "{what}");
        shows(&networks[network], network);
    }
    // All else of the settings is dockerd's.
    let ours = ["IPAddress", "IPPrefixLen", "Gateway", "MacAddress", "Networks"];
    for key in keys(&before).into_iter().filter(|key| !ours.contains(key)) {
        assert_eq!(after[key], before[key], "{what}: {key}");
    }
}

#[test]
fn every_version_of_the_api_shows_our_address_in_dockerd_s_own_shape() {
    let lab = Lab::bridged();
    lab.start_nodes();
    let h1 = lab.host(1);
    h1.raw_docker("network create lane").ok();
    for (number, version) in VERSIONS.into_iter().enumerate() {
        let body = |mode: &str| {
            json!({"Image": "busybox", "Cmd": ["sh", "-c", IDLE], "Env": ["CALICO_IP=auto", "CALICO_PROFILE=web"],
                "HostConfig": {"NetworkMode": mode}})
        };
        for (mode, network) in [("default", "none"), ("lane", "lane")] {
            let name = format!("{network}{number}");
            create(h1, version, &name, &body(mode));
            let container = h1.container(&name);
            for running in [false, true] {
                if running {
                    assert_eq!(h1.api("POST", &format!("{version}/containers/{name}/start"), None).status, 204);
                }
                for asked in ["", "?size=1"] {
                    let path = format!("{version}/containers/{name}/json{asked}");
                    let (raw, through) = (h1.raw_api("GET", &path), h1.api("GET", &path, None));
                    compare(&path, raw.json(), through.json(), &container, network);
                }
                let path = format!("{version}/containers/json?all=1");
                let looks = [h1.raw_api("GET", &path), h1.api("GET", &path, None)];
                let [raw, through] = looks.map(|reply| {
                    let mut one = one_of(&reply.json(), &container.id);
                    // "Up 1 second".
                    one["Status"] = Value::Null;
                    one
                });
                compare(&path, raw, through, &container, network);
            }
            container.remove();
        }
    }
    lab.assert_consistent();
    lab.remove_everything();
}

/// Under a name of more than 21,000 bytes a container of ours was nobody's.
#[test]
fn a_container_is_ours_however_long_its_name_is() {
    let lab = Lab::running(1);
    let h1 = lab.host(1);
    for length in [21_001, 64_000, 70_000] {
        let name = "a".repeat(length);
        let created = h1.create(&name, &["CALICO_IP=auto", "CALICO_PROFILE=web"]);
        assert_eq!(created.status, 201, "{length}: {}", created.message());
        let body = json!({"Container": name, "Force": true});
        for (network, status) in [("none", 200), ("bridge", 403)] {
            let reply = h1.api("POST", &format!("/networks/{network}/connect"), Some(&body));
            assert_eq!(reply.status, status, "{length}: {network}");
        }
        assert_eq!(h1.api("DELETE", &format!("/containers/{name}?force=1"), None).status, 204);
        assert!(h1.workload_keys().is_empty(), "{length}: still recorded when the delete was answered");
    }
    lab.assert_consistent();
    lab.remove_everything();
}

#[test]
fn joining_the_network_that_is_shown_does_nothing_and_any_other_is_refused() {
    let lab = Lab::bridged();
    lab.start_nodes();
    let h1 = lab.host(1);
    let lane = h1.raw_docker("network create lane").ok();
    let other = h1.raw_docker("network create other").ok();
    let ann = h1.run("ann", "--net=lane --net-alias=annie -e CALICO_IP=auto -e CALICO_PROFILE=web");
    // By the network's id it is the same network.
    let bob = h1.run("bob", &format!("--net={lane} -e CALICO_IP=auto -e CALICO_PROFILE=web"));
    let none = h1.raw_docker("network inspect --format {{.Id}} none").ok();
    let none = none.trim();
    let idle = h1.run("idle", "-e CALICO_IP=auto -e CALICO_PROFILE=web");
    h1.run("plain", "");
    let shown = |container: &Container<'_>| container.inspect()["NetworkSettings"]["Networks"].clone();
    for container in [&ann, &bob] {
        assert_eq!(keys(&shown(container)), BTreeSet::from(["lane"]));
        assert_eq!(shown(container)["lane"]["NetworkID"], lane.as_str());
    }
    let before = [&ann, &bob, &idle].map(|container| container.inspect());
    for version in ["", "/v1.21", "/v1.41"] {
        for call in ["connect", "disconnect"] {
            let ask = |network: &str, container: &str| {
                let body = json!({"Container": container, "Force": true});
                h1.api("POST", &format!("{version}/networks/{network}/{call}"), Some(&body))
            };
            for (network, container) in [
                ("lane", "ann"),
                ("lane", "/ann"),
                (&lane, "ann"),
                (&lane[..12], &ann.id[..]),
                ("lane", &bob.id[..12]),
                ("none", "idle"),
                // As Portainer does before it makes a container anew.
                (none, "idle"),
                (&lane[..6], "ann"),
            ] {
                let reply = ask(network, container);
                assert_eq!((reply.status, reply.body.len()), (200, 0), "{version} {call} {network} {container}");
            }
            for (network, container) in [
                ("other", "ann"),
                ("other", "/ann"),
                (&other, "bob"),
                ("bridge", "ann"),
                ("none", "ann"),
                ("lane", "idle"),
            ] {
                let reply = ask(network, container);
                let said = String::from_utf8_lossy(&reply.body).into_owned();
                assert_eq!(reply.status, 403, "{version} {call} {network} {container}: {said}");
                assert!(said.contains(network) && said.contains("Calico"), "{said}");
            }
        }
        // Others' are dockerd's.
        for (call, container, members) in
            [("connect", "plain", 2), ("disconnect", "plain", 1), ("connect", "/plain", 2), ("disconnect", "/plain", 1)]
        {
            let body = json!({"Container": container});
            assert_eq!(h1.api("POST", &format!("{version}/networks/lane/{call}"), Some(&body)).status, 200);
            assert_eq!(keys(&shown(&h1.container("plain"))).len(), members);
        }
    }
    assert_eq!([&ann, &bob, &idle].map(|container| container.inspect()), before);
    assert!(ann.reaches(bob.ip()));
    lab.assert_consistent();
    lab.remove_everything();
}
