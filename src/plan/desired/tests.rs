//! Laws and cases of what is wanted; what the chains mean is in `law`.

use std::net::Ipv4Addr;
use std::time::Instant;

use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::model::rule::Rule;
use crate::model::snapshot::Change;
use crate::model::snapshot::tests::from_json_on_h1 as from_json;
use crate::plan::diff::{SeenTable, carried_out, steps};
use crate::plan::flow::Flow;
use crate::plan::sets::{self, SetStep, Sets};

pub(crate) fn host() -> HostName {
    "h1".parse().unwrap()
}

fn fresh(snapshot: &Snapshot) -> Desired {
    let mut desired = Desired::new(host(), Family::V4);
    desired.update(snapshot, &News::All);
    desired
}

// --- random datastores, over so few names that they meet ---

/// What a datastore holds, by path.
pub(crate) type Datastore = serde_json::Map<String, Value>;

pub(crate) fn read(datastore: &Datastore) -> Snapshot {
    from_json(&Value::Object(datastore.clone()).to_string())
}

/// What is said of one end, with the keys' middles: `tag`, `net` and `ports`. `often`: how often a net is.
fn side(v6: bool, often: f64) -> impl Strategy<Value = Value> {
    let port = prop_oneof![
        (0u16..40).prop_map(|port| json!(port)),
        (0u16..40).prop_map(|port| json!(port.to_string())),
        (0u16..20, 0u16..20).prop_map(|(a, b)| json!(format!("{a}:{}", a + b))),
        (0u16..20, 0u16..20).prop_map(|(a, b)| json!(format!("{a}-{}", a + b))),
    ];
    let nets = if v6 {
        ["fd00::/126", "fd00::1/128", "fd00::2", "::/0", "10.0.0.0/30"]
    } else {
        ["10.0.0.0/30", "10.0.0.1/32", "10.0.0.2", "0.0.0.0/0", "fd00::/8"]
    };
    let tag = prop_oneof![Just("t0"), Just("t1"), Just("none")];
    (
        prop::option::weighted(often, tag),
        prop::option::weighted(often * 0.7, prop::sample::select(nets.to_vec())),
        prop::option::weighted(often * 0.7, prop::collection::vec(port, 1..24)),
    )
        .prop_map(|(tag, net, ports)| json!({"tag": tag, "net": net, "ports": ports}))
}

fn icmp() -> impl Strategy<Value = (u8, Option<u8>)> {
    (7u8..9, prop::option::of(0u8..2))
}

/// Rules, some of which no snapshot can hold: those are left out by who asks.
fn rule() -> impl Strategy<Value = Value> {
    let protocol = || {
        prop::sample::select(vec![
            json!("tcp"),
            json!(6),
            json!("17"),
            json!("icmp"),
            json!("icmpv6"),
            json!(47),
            json!("sctp"),
        ])
    };
    let action = prop::sample::select(vec![json!("allow"), json!("deny"), json!("log"), Value::Null]);
    let heads = (
        action,
        prop::option::weighted(0.2, prop::sample::select(vec![4, 6])),
        prop::option::of(protocol()),
        prop::option::weighted(0.15, protocol()),
        prop::option::weighted(0.3, icmp()),
        prop::option::weighted(0.3, icmp()),
        0..3u8,
    );
    let sides = any::<bool>().prop_flat_map(|v6| (side(v6, 0.4), side(v6, 0.4), side(v6, 0.15), side(v6, 0.15)));
    (heads, sides).prop_map(|((action, version, protocol, not_protocol, icmp, not_icmp, number), sides)| {
        let mut rule =
            json!({"action": action, "ip_version": version, "protocol": protocol, "!protocol": not_protocol});
        for (name, side) in [("src", sides.0), ("dst", sides.1), ("!src", sides.2), ("!dst", sides.3)] {
            for (key, value) in side.as_object().unwrap() {
                rule[format!("{name}_{key}")] = value.clone();
            }
        }
        let pings = rule["protocol"] == "icmp" || rule["protocol"] == "icmpv6";
        for (not, icmp) in [("", icmp), ("!", not_icmp)] {
            if let Some((kind, code)) = icmp.filter(|_| pings) {
                rule[format!("{not}icmp_type")] = kind.into();
                rule[format!("{not}icmp_code")] = code.into();
            }
        }
        if rule["action"] == "log" {
            rule["log_prefix"] = format!("l{number}").into();
        }
        rule
    })
}

fn rules() -> impl Strategy<Value = Value> {
    let list = || {
        prop::collection::vec(rule(), 0..6).prop_map(|rules| {
            rules.into_iter().filter(|rule| serde_json::from_value::<Rule>(rule.clone()).is_ok()).collect::<Vec<_>>()
        })
    };
    prop_oneof![
        12 => (list(), list()).prop_map(|(i, o)| json!({"inbound_rules": i, "outbound_rules": o})),
        1 => Just(json!({"inbound_rules": [{"action": "maybe"}]})),
    ]
}

/// Tags, which sometimes cannot be read.
fn tags() -> impl Strategy<Value = Value> {
    let tag = (0..2).prop_map(|number| format!("t{number}"));
    prop_oneof![12 => prop::collection::vec(tag, 0..2).prop_map(|tags| json!(tags)), 1 => Just(json!("t0"))]
}

pub(super) const IDS: [&str; 5] = ["aa1", "aa2", "ab1", "b", "aa1x"];

fn endpoint() -> impl Strategy<Value = Value> {
    let profiles = prop::collection::vec(0..3, 0..3);
    // Sometimes another's interface.
    let name = prop::option::weighted(0.1, 0..IDS.len());
    let addresses = || prop::collection::btree_set(1..6, 0..3);
    (any::<bool>(), name, profiles, addresses(), addresses(), any::<bool>()).prop_map(
        |(active, name, profiles, v4, v6, mac)| {
            json!({
                "state": if active { "active" } else { "inactive" },
                "name": name.map(|index| format!("cali{}", IDS[index])),
                "mac": mac.then_some("02:00:00:00:00:01"),
                "profile_ids": profiles.iter().map(|number| format!("p{number}")).collect::<Vec<_>>(),
                "ipv4_nets": v4.iter().map(|last| format!("10.0.0.{last}/32")).collect::<Vec<_>>(),
                "ipv6_nets": v6.iter().map(|last| format!("fd00::{last}/128")).collect::<Vec<_>>(),
            })
        },
    )
}

prop_compose! {
    pub(crate) fn datastore()(
        endpoints in prop::collection::vec(prop::option::of(endpoint()), IDS.len() + 1),
        profiles in prop::collection::vec((prop::option::weighted(0.9, rules()), prop::option::weighted(0.9, tags())), 3),
        masquerade in prop::option::of(any::<bool>()),
        to_host in prop_oneof![Just(None), Just(Some("RETURN")), Just(Some("ACCEPT")), Just(Some("bad"))],
        open in prop::option::weighted(0.4, prop::sample::select(vec!["udp:7,tcp:8-12,icmp,icmpv6", "tcp:1-39", "tcp:179"])),
        drop in prop::option::weighted(0.2, prop::sample::select(vec!["ACCEPT", "LOG-and-DROP", "LOG-and-ACCEPT", "x"])),
        most in prop::option::weighted(0.1, 1..3u8),
        broken in prop::option::weighted(0.1, 0..IDS.len()),
    ) -> Datastore {
        let mut map = Datastore::new();
        for (index, endpoint) in endpoints.into_iter().enumerate() {
            let Some(mut endpoint) = endpoint else { continue };
            let (host, id) = IDS.get(index).map_or(("h2", "remote"), |id| ("h1", *id));
            if endpoint["name"].is_null() {
                endpoint["name"] = format!("cali{id}").into();
            }
            if broken == Some(index) {
                endpoint["state"] = "neither".into();
            }
            map.insert(format!("/calico/v1/host/{host}/workload/docker/w/endpoint/{id}"), endpoint);
        }
        for (number, (rules, tags)) in profiles.into_iter().enumerate() {
            let path = format!("/calico/v1/policy/profile/p{number}");
            map.extend(rules.map(|rules| (format!("{path}/rules"), rules)));
            map.extend(tags.map(|tags| (format!("{path}/tags"), tags)));
        }
        if let Some(masquerade) = masquerade {
            map.insert("/calico/v1/ipam/v4/pool/10.0.0.0-8".to_owned(), json!({"cidr": "10.0.0.0/8", "masquerade": masquerade}));
        }
        map.extend(to_host.map(|text| ("/calico/v1/config/DefaultEndpointToHostAction".to_owned(), text.into())));
        map.extend(open.map(|text| ("/calico/v1/host/h1/config/EndpointToHostPorts".to_owned(), text.into())));
        map.extend(drop.map(|text| ("/calico/v1/config/DropActionOverride".to_owned(), text.into())));
        map.extend(most.map(|number| ("/calico/v1/config/MaxIpsetSize".to_owned(), number.to_string().into())));
        map
    }
}

fn snapshot() -> impl Strategy<Value = Snapshot> {
    datastore().prop_map(|datastore| read(&datastore))
}

/// What may differ between two snapshots: all, if nobody says what more than differs indeed.
fn news(old: &Snapshot, new: &Snapshot, more: Option<&[usize]>) -> News {
    fn differing<K: Ord + Clone, V: PartialEq>(old: &BTreeMap<K, V>, new: &BTreeMap<K, V>) -> Vec<K> {
        old.keys().chain(new.keys()).filter(|key| old.get(key) != new.get(key)).cloned().collect()
    }
    let Some(more) = more else { return News::All };
    let remote = differing(&old.remote, &new.remote).into_iter().map(|path| match Key::parse(&path) {
        Some(Key::Endpoint(key)) => key,
        other => panic!("{path}: {other:?}"),
    });
    let endpoints = differing(&old.endpoints, &new.endpoints).into_iter().chain(remote).map(Key::Endpoint);
    let tags = differing(&old.tags, &new.tags).into_iter().map(Key::ProfileTags);
    let rules = differing(&old.rules, &new.rules).into_iter().map(Key::ProfileRules);
    let others = differing(&old.pools, &new.pools).into_iter().map(Key::Pool);
    let own = differing(&old.host_config, &new.host_config).into_iter().map(|(host, name)| Key::HostConfig(host, name));
    let settings = differing(&old.config, &new.config).into_iter().map(Key::Config).chain(own);
    let mut news = News::Of(endpoints.chain(tags).chain(rules).chain(others).chain(settings).collect());
    for index in more {
        news.add(Key::ProfileTags(format!("p{index}").parse().unwrap()));
        let path = format!("/calico/v1/host/h1/workload/docker/w/endpoint/{}", IDS[*index]);
        news.add(Key::parse(&path).unwrap());
    }
    news
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// Whatever snapshots came before, the last one decides; and what each update says it touched is all that differs.
    #[test]
    fn what_is_wanted_does_not_depend_on_the_way_that_led_to_it(
        snapshots in prop::collection::vec(snapshot(), 1..5),
        told in prop::collection::vec(prop::option::weighted(0.7, prop::collection::vec(0..IDS.len(), 0..3)), 5),
    ) {
        let mut desired = Desired::new(host(), Family::V4);
        let mut seen = SeenTable::default();
        let mut sets = Sets::new();
        carried_out(&mut seen, &steps(&desired.filter, &SeenTable::default(), None));
        let mut before = &Snapshot::of(host());
        for (snapshot, more) in snapshots.iter().zip(&told) {
            let changes = desired.update(snapshot, &news(before, snapshot, more.as_deref()));
            before = snapshot;
            let step = steps(&desired.filter, &seen, Some(&changes.filter));
            carried_out(&mut seen, &step);
            prop_assert_eq!(steps(&desired.filter, &seen, None), vec![]);
            let mut set_steps = Vec::new();
            for (name, extent) in &changes.sets {
                match desired.sets.get(name) {
                    Some(set) => sets::steps_within(name, set, sets.get(name), extent, &mut set_steps),
                    None => set_steps.extend(sets.contains_key(name).then(|| SetStep::Destroy(name.clone()))),
                }
            }
            sets::carried_out(&mut sets, &set_steps);
            prop_assert!(sets.keys().all(|name| desired.sets.contains_key(name)));
            // One that cannot hold all is left as it is.
            for (name, set) in desired.sets.iter().filter(|(_, set)| !set.is_overfull()) {
                prop_assert_eq!(sets.get(name), Some(set));
            }
        }
        let last = fresh(before);
        prop_assert_eq!(desired, last);
    }
}

#[test]
fn flows_with_the_host_itself_are_the_settings_business() {
    let map = ONE.replace("inactive", "active").replacen('{', "{SETTING", 1);
    let with = |setting: &str| {
        let setting = if setting.is_empty() {
            String::new()
        } else {
            format!(r#""/calico/v1/config/DefaultEndpointToHostAction": "{setting}","#)
        };
        fresh(&from_json(&map.replace("SETTING", &setting)))
    };
    let [own, container]: [IpAddr; 2] = ["172.25.0.1", "10.0.0.1"].map(|text| text.parse().unwrap());
    let flow = |src, dst| Flow { protocol: 6, src, dst, ports: (1, 2), icmp: (0, 0), outer: (dst, src) };
    for (setting, out) in [("", false), ("DROP", false), ("RETURN", true), ("ACCEPT", true)] {
        let desired = with(setting);
        let mut judge = desired.judge([own].into());
        assert!(judge.allows(&flow(own, container)));
        assert_eq!(judge.allows(&flow(container, own)), out, "{setting}");
    }
}

#[test]
fn flows_of_a_container_that_runs_before_its_record_says_so_are_judged() {
    let desired = fresh(&from_json(ONE));
    let flow = |src: &str| Flow {
        protocol: 6,
        src: src.parse().unwrap(),
        dst: "10.0.0.1".parse().unwrap(),
        ports: (1, 2),
        icmp: (0, 0),
        outer: ("10.0.0.1".parse().unwrap(), src.parse().unwrap()),
    };
    let mut judge = desired.judge(BTreeSet::new());
    assert!(!judge.allows(&flow("10.0.0.9")), "web lets only its members in");
    let foreign = fresh(&from_json(&ONE.replace("/docker/", "/other/")));
    assert!(foreign.judge(BTreeSet::new()).allows(&flow("10.0.0.9")));
}

#[test]
fn settings_leave_what_keeps_containers_from_this_hosts_services() {
    let services = BTreeSet::from([2399]);
    let mut desired = Desired::new("h1".parse().unwrap(), Family::V4).with_services(&services);
    let raw = desired.raw.clone();
    assert_ne!(raw, fresh(&from_json(ONE)).raw);
    for setting in ["MaxIpsetSize", "DropActionOverride"] {
        let value = if setting == "MaxIpsetSize" { "1000" } else { "ACCEPT" };
        let text = ONE.replacen('{', &format!(r#"{{"/calico/v1/config/{setting}": "{value}","#), 1);
        desired.update(&from_json(&text), &News::All);
        assert_eq!(desired.raw, raw, "{setting}");
    }
}

// --- named cases ---

const ONE: &str = r#"{
    "/calico/v1/policy/profile/web/tags": ["web"],
    "/calico/v1/policy/profile/web/rules": {"inbound_rules": [{"src_tag": "web"}], "outbound_rules": [{}]},
    "/calico/v1/host/h1/workload/docker/w/endpoint/aa1": {"state": "inactive", "name": "caliaa1", "mac": "02:00:00:00:00:01", "profile_ids": ["web"], "ipv4_nets": ["10.0.0.1/32"]}
}"#;

#[test]
fn a_start_touches_only_the_route() {
    let mut desired = fresh(&from_json(ONE));
    let changes = desired.update(&from_json(&ONE.replace("inactive", "active")), &News::All);
    assert_eq!((changes.filter.len(), changes.sets.len(), changes.routes.len(), changes.endpoints.len()), (0, 0, 1, 1));
}

/// `deny by tag, allow the rest` would let in whoever is not known to carry the tag.
#[test]
fn tags_that_become_unreadable_close_who_has_them_behind_another_profile_too() {
    let map = r#"{
        "/calico/v1/policy/profile/out/tags": [], "/calico/v1/policy/profile/out/rules": {"outbound_rules": [{}], "inbound_rules": [{}]},
        "/calico/v1/policy/profile/bad/tags": TAGS, "/calico/v1/policy/profile/bad/rules": {"outbound_rules": [], "inbound_rules": []},
        "/calico/v1/policy/profile/shy/tags": [], "/calico/v1/policy/profile/shy/rules": {"outbound_rules": [], "inbound_rules": [{"action": "deny", "src_tag": "bad"}, {}]},
        "/calico/v1/host/h1/workload/docker/w/endpoint/aa1": {"state": "active", "name": "caliaa1", "profile_ids": ["out", "bad"], "ipv4_nets": ["10.0.0.1/32"]},
        "/calico/v1/host/h1/workload/docker/w/endpoint/aa2": {"state": "active", "name": "caliaa2", "profile_ids": ["out"], "ipv4_nets": ["10.0.0.2/32"]},
        "/calico/v1/host/h1/workload/docker/w/endpoint/aa3": {"state": "active", "name": "caliaa3", "profile_ids": ["shy"], "ipv4_nets": ["10.0.0.3/32"]}
    }"#;
    let with = |tags: &str| from_json(&map.replace("TAGS", tags));
    let allows = |desired: &Desired, src: [u8; 4], dst: [u8; 4]| {
        let (src, dst) = (src.into(), dst.into());
        let flow = Flow { protocol: 6, src, dst, ports: (1, 2), icmp: (0, 0), outer: (dst, src) };
        desired.judge(BTreeSet::new()).allows(&flow)
    };
    let (bad, good, shy) = ([10, 0, 0, 1], [10, 0, 0, 2], [10, 0, 0, 3]);
    let mut desired = fresh(&with(r#"["bad"]"#));
    assert_eq!(
        [allows(&desired, bad, shy), allows(&desired, bad, good), allows(&desired, good, shy)],
        [false, true, true]
    );
    let tags = News::Of([Key::ProfileTags("bad".parse().unwrap())].into());
    desired.update(&with(r#""bad""#), &tags);
    assert_eq!(
        [allows(&desired, bad, shy), allows(&desired, bad, good), allows(&desired, good, shy)],
        [false, false, true]
    );
    assert_eq!(desired, fresh(&with(r#""bad""#)));
    let chain = |way: Way| {
        diff::render(
            "filter",
            &[ChainStep::Write(
                way.endpoint_chain("aa1"),
                Arc::clone(&desired.filter.chains[&way.endpoint_chain("aa1")]),
            )],
        )
    };
    for way in Way::BOTH {
        assert!(chain(way).contains("the tags of aa1 cannot be read in profile bad"), "{}", chain(way));
        assert!(!chain(way).contains("calico-po-out") && !chain(way).contains("calico-pi-out"), "{}", chain(way));
    }
    desired.update(&with("[]"), &tags);
    assert_eq!([allows(&desired, bad, shy), allows(&desired, bad, good)], [true, true]);
}

#[test]
fn an_added_endpoint_flushes_no_chain() {
    let mut desired = fresh(&from_json(ONE));
    let mut seen = SeenTable::default();
    carried_out(&mut seen, &steps(&desired.filter, &SeenTable::default(), None));
    let more = r#", "/calico/v1/host/h1/workload/docker/w/endpoint/aa2": {"state": "inactive", "name": "caliaa2", "profile_ids": ["web"], "ipv4_nets": ["10.0.0.2/32"]}}"#;
    let changes = desired
        .update(&from_json(&ONE.trim_end().strip_suffix('}').map(|text| format!("{text}{more}")).unwrap()), &News::All);
    let text = diff::render("filter", &steps(&desired.filter, &seen, Some(&changes.filter)));
    let written: Vec<&str> = text.lines().filter(|line| line.starts_with(':')).collect();
    assert_eq!(written, [":calico-fw-aa2 - [0:0]", ":calico-tw-aa2 - [0:0]"]);
    assert_eq!(
        text.lines()
            .filter(|line| line.starts_with("-A calico-from-aa ") || line.starts_with("-A calico-to-aa "))
            .count(),
        2
    );
}

#[test]
fn two_endpoints_of_one_interface_are_both_closed_unless_the_name_tells() {
    let two = ONE.replace("endpoint/aa1", "endpoint/x1").replace(
        "\"/calico/v1/host",
        r#""/calico/v1/host/h1/workload/docker/w/endpoint/x2": {"state": "active", "name": "caliaa1", "ipv4_nets": []}, "/calico/v1/host"#,
    );
    let desired = fresh(&from_json(&two));
    assert_eq!(desired.placed().count(), 0);
    assert_eq!(desired.faults.keys().collect::<Vec<_>>(), ["x1", "x2"]);
}

/// A record of an endpoint, and its path.
fn one(host: &str, index: u32, profile: &str) -> (String, Value) {
    let id = format!("{:032x}", u128::from(index).wrapping_mul(0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c835));
    let value = serde_json::json!({"state": "active", "name": format!("cali{}", &id[..11]), "mac": "02:00:00:00:00:01", "profile_ids": [profile],
        "ipv4_nets": [format!("{}/32", Ipv4Addr::from(0x0a00_0000 + index))]});
    (format!("/calico/v1/host/{host}/workload/docker/w/endpoint/{id}"), value)
}

#[test]
#[ignore = "a measurement, for a person to read"]
fn how_long_one_change_takes() {
    for (local, remote) in [(10, 0), (1_000, 0), (5_000, 0), (10, 100_000)] {
        let mut snapshot = from_json(ONE);
        let put = |snapshot: &mut Snapshot, (path, value): (String, Value)| {
            let change = Change { revision: snapshot.revision + 1, path, value: Some(value.to_string().into_bytes()) };
            News::Of(snapshot.apply(&change).into_iter().collect())
        };
        for index in 1..=local {
            put(&mut snapshot, one("h1", index * 7919, "web"));
        }
        for index in 1..=remote {
            put(
                &mut snapshot,
                one(&format!("h{}", 2 + index % 500), 0x80_0000 + index, &format!("p{}", index % 2_000)),
            );
        }
        let begun = Instant::now();
        let mut desired = fresh(&snapshot);
        println!("{local} here, {remote} elsewhere: all {:?}", begun.elapsed());
        let mut seen = SeenTable::default();
        carried_out(&mut seen, &steps(&desired.filter, &SeenTable::default(), None));
        let profile = "/calico/v1/policy/profile/web";
        let rules = serde_json::json!({"inbound_rules": [{"src_tag": "web"}], "outbound_rules": []});
        for (what, record) in [
            ("one here", one("h1", 1, "web")),
            ("one elsewhere", one("h2", 2, "web")),
            ("its profile", one("h2", 2, "p1")),
            ("rules", (format!("{profile}/rules"), rules)),
            ("tags", (format!("{profile}/tags"), serde_json::json!(["web", "more"]))),
        ] {
            let news = put(&mut snapshot, record);
            let begun = Instant::now();
            let changes = desired.update(&snapshot, &news);
            let updated = begun.elapsed();
            let steps = steps(&desired.filter, &seen, Some(&changes.filter));
            println!(
                "  {what}: {updated:?}, with {} steps of {} chains {:?}",
                steps.len(),
                changes.filter.len(),
                begun.elapsed()
            );
            carried_out(&mut seen, &steps);
        }
        let begun = Instant::now();
        desired.update(&snapshot.clone(), &News::All);
        println!("  another snapshot, equal: {:?}", begun.elapsed());
    }
}
