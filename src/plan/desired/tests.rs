use std::net::Ipv4Addr;
use std::time::Instant;

use proptest::prelude::*;

use super::*;
use crate::model::name::{IfName, Mac};
use crate::model::rule::{Action, Ports, Protocol, Rule, Side};
use crate::model::snapshot::Change;
use crate::model::snapshot::tests::from_json_on_h1 as from_json;
use crate::plan::chain::{ChainText, End, Interface, Match, Target, Tracked};
use crate::plan::diff::{SeenTable, carried_out, steps};
use crate::plan::flow::Flow;
use crate::plan::sets::{self, IpSet, SetStep, Sets};

fn host() -> HostName {
    "h1".parse().unwrap()
}

fn fresh(snapshot: &Snapshot) -> Desired {
    let mut desired = Desired::new(host(), Family::V4);
    desired.update(snapshot, &News::All);
    desired
}

// --- random snapshots, over so few names that they meet ---

fn side() -> impl Strategy<Value = serde_json::Value> {
    let port = prop_oneof![
        (0u16..40).prop_map(|port| port.to_string()),
        (0u16..20, 0u16..20).prop_map(|(a, b)| format!("{a}:{}", a + b))
    ];
    let net = prop_oneof![Just("10.0.0.0/30"), Just("10.0.0.1/32"), Just("0.0.0.0/0"), Just("fd00::/8")];
    let tag = prop_oneof![Just("t0"), Just("t1"), Just("none")];
    (
        prop::option::of(tag),
        prop::option::weighted(0.3, net),
        prop::option::weighted(0.3, prop::collection::vec(port, 1..24)),
    )
        .prop_map(|(tag, net, ports)| serde_json::json!({"tag": tag, "net": net, "ports": ports}))
}

/// Rules, some of which no snapshot can hold: those are left out by the reader below.
fn rule() -> impl Strategy<Value = serde_json::Value> {
    let protocol = prop_oneof![
        3 => Just(serde_json::Value::Null),
        2 => Just("tcp".into()),
        1 => Just("udp".into()),
        1 => Just("icmp".into()),
        1 => Just("icmpv6".into()),
        1 => Just(47.into()),
        1 => Just("sctp".into()),
    ];
    (any::<bool>(), protocol, side(), side(), prop::option::weighted(0.3, (7u8..9, prop::option::of(0u8..2)))).prop_map(
        |(allow, protocol, src, dst, icmp)| {
            let mut rule = serde_json::json!({
                "action": if allow { "allow" } else { "deny" }, "protocol": protocol,
                "src_tag": src["tag"], "src_net": src["net"], "src_ports": src["ports"],
                "dst_tag": dst["tag"], "dst_net": dst["net"], "dst_ports": dst["ports"],
            });
            if let Some((kind, code)) = icmp.filter(|_| rule["protocol"] == "icmp") {
                rule["icmp_type"] = kind.into();
                rule["icmp_code"] = code.into();
            }
            rule
        },
    )
}

fn rules() -> impl Strategy<Value = serde_json::Value> {
    let list = || {
        prop::collection::vec(rule(), 0..4).prop_map(|rules| {
            rules.into_iter().filter(|rule| serde_json::from_value::<Rule>(rule.clone()).is_ok()).collect::<Vec<_>>()
        })
    };
    prop_oneof![
        12 => (list(), list()).prop_map(|(i, o)| serde_json::json!({"inbound_rules": i, "outbound_rules": o})),
        1 => Just(serde_json::json!({"inbound_rules": [{"action": "maybe"}]})),
    ]
}

const IDS: [&str; 5] = ["aa1", "aa2", "ab1", "b", "aa1x"];

fn endpoint() -> impl Strategy<Value = serde_json::Value> {
    let profiles = prop::collection::vec(0..3, 0..3);
    // Sometimes another's interface.
    let name = prop::option::weighted(0.1, 0..IDS.len());
    (any::<bool>(), name, profiles, prop::collection::btree_set(1..6, 0..3), any::<bool>()).prop_map(
        |(active, name, profiles, addresses, mac)| {
            serde_json::json!({
                "state": if active { "active" } else { "inactive" },
                "name": name.map(|index| format!("cali{}", IDS[index])),
                "mac": mac.then_some("02:00:00:00:00:01"),
                "profile_ids": profiles.iter().map(|number| format!("p{number}")).collect::<Vec<_>>(),
                "ipv4_nets": addresses.iter().map(|last| format!("10.0.0.{last}/32")).collect::<Vec<_>>(),
            })
        },
    )
}

prop_compose! {
    fn snapshot()(
        endpoints in prop::collection::vec(prop::option::of(endpoint()), IDS.len() + 1),
        profiles in prop::collection::vec((prop::option::weighted(0.9, rules()), prop::option::weighted(0.9, prop::collection::vec(0..2, 0..2))), 3),
        masquerade in prop::option::of(any::<bool>()),
        to_host in prop_oneof![Just(None), Just(Some("RETURN")), Just(Some("ACCEPT")), Just(Some("bad"))],
        broken in prop::option::weighted(0.1, 0..IDS.len()),
    ) -> Snapshot {
        let mut map = serde_json::Map::new();
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
            let tags = tags.map(|tags| tags.iter().map(|number| format!("t{number}")).collect::<Vec<_>>());
            map.extend(tags.map(|tags| (format!("{path}/tags"), serde_json::json!(tags))));
        }
        if let Some(masquerade) = masquerade {
            map.insert("/calico/v1/ipam/v4/pool/10.0.0.0-8".to_owned(), serde_json::json!({"cidr": "10.0.0.0/8", "masquerade": masquerade}));
        }
        map.extend(to_host.map(|text| ("/calico/v1/config/DefaultEndpointToHostAction".to_owned(), text.into())));
        from_json(&serde_json::Value::Object(map).to_string())
    }
}

/// What may differ between two snapshots: all, if nobody says what more than differs indeed.
fn news(old: &Snapshot, new: &Snapshot, more: Option<&[usize]>) -> News {
    fn differing<K: Ord + Clone, V: PartialEq>(old: &BTreeMap<K, V>, new: &BTreeMap<K, V>) -> Vec<K> {
        old.keys().chain(new.keys()).filter(|key| old.get(key) != new.get(key)).cloned().collect()
    }
    let Some(more) = more else { return News::All };
    let remote = differing(&old.remote, &new.remote).into_iter().map(|key| EndpointKey::clone(&key));
    let endpoints = differing(&old.endpoints, &new.endpoints).into_iter().chain(remote).map(Key::Endpoint);
    let tags = differing(&old.tags, &new.tags).into_iter().map(Key::ProfileTags);
    let rules = differing(&old.rules, &new.rules).into_iter().map(Key::ProfileRules);
    let others = differing(&old.pools, &new.pools).into_iter().map(Key::Pool);
    let settings = differing(&old.config, &new.config).into_iter().map(Key::Config);
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
            prop_assert_eq!(&sets, &desired.sets);
        }
        let last = fresh(before);
        prop_assert_eq!(desired, last);
    }
}

// --- the chains, interpreted ---

#[derive(Debug, Clone)]
struct Packet {
    from: String,
    to: String,
    src: Ipv4Addr,
    dst: Ipv4Addr,
    mac: Mac,
    protocol: u8,
    ports: (u16, u16),
    icmp: (u8, u8),
    tracked: Option<Tracked>,
    /// Whether somebody else's mark is on it.
    marked: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    Accept,
    Drop,
    /// The chain ended: the kernel's own chain goes on.
    Passed,
}

struct Machine<'m> {
    chains: BTreeMap<ChainName, Chain>,
    sets: &'m BTreeMap<SetName, IpSet>,
}

impl Machine<'_> {
    fn run(&self, chain: &ChainName, packet: &mut Packet) -> Verdict {
        let chain = self.chains.get(chain).unwrap_or_else(|| panic!("{chain} is spoken of and not there"));
        for entry in &chain.entries {
            if !entry.matches.iter().all(|one| self.matches(one, packet)) {
                continue;
            }
            match &entry.target {
                Target::Accept => return Verdict::Accept,
                Target::Drop => return Verdict::Drop,
                Target::Return => return Verdict::Passed,
                Target::Goto(chain) => return self.run(chain, packet),
                Target::Jump(chain) => match self.run(chain, packet) {
                    Verdict::Passed => {}
                    verdict => return verdict,
                },
                Target::Mark => packet.marked = true,
                Target::Unmark => packet.marked = false,
                Target::Masquerade => panic!("no filter chain masquerades"),
            }
        }
        Verdict::Passed
    }

    fn matches(&self, one: &Match, packet: &Packet) -> bool {
        let is = |interface: &Interface, name: &str| match interface {
            Interface::Exactly(exact) => exact.as_str() == name,
            Interface::StartsWith(start) => name.starts_with(start),
        };
        let address = |end: &End| IpAddr::V4(if *end == End::Source { packet.src } else { packet.dst });
        match one {
            Match::In(interface) => is(interface, &packet.from),
            Match::Out(interface) => is(interface, &packet.to),
            Match::Tracked(tracked) => packet.tracked == Some(*tracked),
            Match::Accepted(yes) => packet.marked == *yes,
            Match::SourceElsewhere => panic!("no filter chain looks for it"),
            Match::MacIsNot(mac) => packet.mac != *mac,
            Match::Net(end, net) => net.contains(&address(end)),
            Match::InSet(end, set) => self.sets[set].members.contains(&address(end).into()),
            Match::NotInSet(end, set) => !self.sets[set].members.contains(&address(end).into()),
            Match::Protocol(protocol) => packet.protocol == protocol.0,
            Match::Ports(end, ports) => {
                assert!(Protocol(packet.protocol).has_ports(), "ports of a packet that has none");
                let weight: usize = ports.iter().map(|ports| if ports.first == ports.last { 1 } else { 2 }).sum();
                assert!(weight <= 15, "more ports than the kernel takes");
                let port = if *end == End::Source { packet.ports.0 } else { packet.ports.1 };
                ports.iter().any(|ports| (ports.first..=ports.last).contains(&port))
            }
            Match::Icmp(_, kind, code) => {
                assert_eq!(packet.protocol, 1);
                packet.icmp.0 == *kind && code.is_none_or(|code| packet.icmp.1 == code)
            }
        }
    }
}

/// The typed chains of a snapshot; their text is just what is wanted in the kernel.
fn typed(desired: &Desired, snapshot: &Snapshot) -> BTreeMap<ChainName, Chain> {
    let setting = snapshot.setting(&host(), "DefaultEndpointToHostAction");
    let mut chains = filter::base(Family::V4, ToHost::parse(setting).0);
    let mut prefixes = BTreeSet::from([String::new()]);
    for (suffix, placed) in &desired.placed {
        chains.extend(filter::endpoint(Family::V4, &placed.key, &placed.record, suffix));
        prefixes.extend((1..=suffix.len().min(2)).map(|length| suffix[..length].to_owned()));
    }
    for (name, profile) in &desired.profiles {
        for way in Way::BOTH {
            let readable = profile.rules.as_ref().and_then(Record::readable).filter(|_| profile.tags.is_ok());
            chains.push(match readable {
                Some(rules) => filter::profile(
                    Family::V4,
                    way,
                    name,
                    if way == Way::From { &rules.outbound } else { &rules.inbound },
                ),
                None => {
                    let why = &desired.faults[&format!("profile {name}")];
                    let why = why.strip_prefix("it is closed: ").unwrap();
                    filter::closed(way.profile_chain(name), &format!("profile {name}: {why}"))
                }
            });
        }
    }
    for prefix in prefixes {
        chains.extend(Way::BOTH.map(|way| desired.tree.chain(way, &prefix)));
    }
    let chains: BTreeMap<ChainName, Chain> = chains.into_iter().map(|chain| (chain.name.clone(), chain)).collect();
    let text: BTreeMap<&ChainName, ChainText> = chains.iter().map(|(name, chain)| (name, chain.render())).collect();
    let wanted: BTreeMap<&ChainName, ChainText> =
        desired.filter.chains.iter().map(|(name, text)| (name, (**text).clone())).collect();
    assert_eq!(text, wanted);
    chains
}

// --- a naive reading of the rules ---

fn side_matches(snapshot: &Snapshot, side: &Side, address: Ipv4Addr, port: u16) -> bool {
    let tagged = |tag| {
        let own = snapshot.endpoints.values().filter_map(Record::readable).map(Remote::of);
        let others = snapshot.remote.values().filter_map(|record| record.readable().cloned());
        own.chain(others).any(|endpoint| {
            let mut profiles = endpoint.profiles.iter().filter_map(|name| snapshot.tags.get(name)?.readable());
            endpoint.addresses.contains(&IpAddr::V4(address)) && profiles.any(|tags| tags.contains(tag))
        })
    };
    side.net.is_none_or(|net| net.contains(&IpAddr::V4(address)))
        && side.tag.as_ref().is_none_or(tagged)
        && (side.ports.is_empty() || side.ports.iter().any(|Ports { first, last }| (*first..=*last).contains(&port)))
}

fn rule_matches(snapshot: &Snapshot, rule: &Rule, packet: &Packet) -> bool {
    let has_ports = !rule.src.ports.is_empty() || !rule.dst.ports.is_empty();
    let protocol = match rule.protocol {
        Some(protocol) => protocol.0 == packet.protocol && protocol != Protocol::ICMPV6,
        None => !has_ports || [6, 17].contains(&packet.protocol),
    };
    protocol
        && rule.icmp_type.is_none_or(|kind| kind == packet.icmp.0)
        && rule.icmp_code.is_none_or(|code| code == packet.icmp.1)
        && side_matches(snapshot, &rule.src, packet.src, packet.ports.0)
        && side_matches(snapshot, &rule.dst, packet.dst, packet.ports.1)
}

fn endpoint_allows(snapshot: &Snapshot, endpoint: &Endpoint, way: Way, packet: &Packet) -> bool {
    for profile in &endpoint.profiles {
        let Some(rules) = snapshot.rules.get(profile).and_then(Record::readable) else { return false };
        if snapshot.tags.get(profile).and_then(Record::readable).is_none() {
            return false;
        }
        let list = if way == Way::From { &rules.outbound } else { &rules.inbound };
        if let Some(rule) = list.iter().find(|rule| rule_matches(snapshot, rule, packet)) {
            return rule.action == Action::Allow;
        }
    }
    false
}

/// The endpoint of an interface; `None` where nobody's or more than one's, and the name does not tell.
fn behind<'s>(snapshot: &'s Snapshot, interface: &str) -> Option<&'s Endpoint> {
    let named: Vec<_> = snapshot
        .endpoints
        .iter()
        .filter(|(key, _)| key.host == host())
        .filter_map(|(key, record)| Some((key.clone(), record.readable()?)))
        .filter(|(_, endpoint)| endpoint.interface.as_str() == interface)
        .map(|(key, endpoint)| (key, endpoint.interface.clone()))
        .collect();
    let key = match named.as_slice() {
        [(key, _)] => key.clone(),
        several => {
            let own: Option<&(EndpointKey, IfName)> =
                several.iter().find(|(key, interface)| key.endpoint.interface().as_ref() == Some(interface));
            own?.0.clone()
        }
    };
    snapshot.endpoints.get(&key)?.readable()
}

fn naive_out(snapshot: &Snapshot, packet: &Packet) -> bool {
    behind(snapshot, &packet.from).is_some_and(|endpoint| {
        endpoint.mac.is_none_or(|mac| mac == packet.mac)
            && endpoint.addresses.contains(&IpAddr::V4(packet.src))
            && endpoint_allows(snapshot, endpoint, Way::From, packet)
    })
}

fn naive_forward(snapshot: &Snapshot, packet: &Packet) -> Verdict {
    let (from_ours, to_ours) = (packet.from.starts_with("cali"), packet.to.starts_with("cali"));
    let into = || behind(snapshot, &packet.to).is_some_and(|one| endpoint_allows(snapshot, one, Way::To, packet));
    match packet.tracked {
        _ if !from_ours && !to_ours => Verdict::Passed,
        Some(Tracked::Invalid | Tracked::Midstream) => Verdict::Drop,
        Some(Tracked::Established) => Verdict::Accept,
        None if (!from_ours || naive_out(snapshot, packet)) && (!to_ours || into()) => Verdict::Accept,
        None => Verdict::Drop,
    }
}

fn naive_input(snapshot: &Snapshot, packet: &Packet) -> Verdict {
    let setting = snapshot.setting(&host(), "DefaultEndpointToHostAction");
    match (packet.tracked, setting) {
        _ if !packet.from.starts_with("cali") => Verdict::Passed,
        (Some(Tracked::Invalid), _) => Verdict::Drop,
        (Some(Tracked::Established), _) => Verdict::Accept,
        (None | Some(Tracked::Midstream), Some("RETURN")) if naive_out(snapshot, packet) => Verdict::Passed,
        (None | Some(Tracked::Midstream), Some("ACCEPT")) if naive_out(snapshot, packet) => Verdict::Accept,
        (None | Some(Tracked::Midstream), _) => Verdict::Drop,
    }
}

fn packet() -> impl Strategy<Value = Packet> {
    let interface = || prop_oneof![5 => (0..IDS.len()).prop_map(|i| format!("cali{}", IDS[i])), 1 => Just("calistray".to_owned()), 1 => Just("cali".to_owned()), 1 => Just("eth0".to_owned())];
    let address = || (1u8..7).prop_map(|last| Ipv4Addr::new(10, 0, 0, last));
    let tracked = prop_oneof![10 => Just(None), 3 => prop::sample::select(vec![Tracked::Invalid, Tracked::Established, Tracked::Midstream]).prop_map(Some)];
    let protocol = prop_oneof![Just(1u8), Just(6), Just(17), Just(47), Just(58), Just(132)];
    let head = (interface(), interface(), address(), address(), 1u8..10, protocol);
    (head, (0u16..45, 0u16..45), (7u8..9, 0u8..2), tracked, any::<bool>()).prop_map(
        |((from, to, src, dst, mac, protocol), ports, icmp, tracked, marked)| {
            let mac = Mac([2, 0, 0, 0, 0, if mac == 2 { 2 } else { 1 }]);
            Packet { from, to, src, dst, mac, protocol, ports, icmp, tracked, marked }
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    /// The chains decide as a person would who reads the rules, and what they accept carries the mark.
    #[test]
    fn the_chains_mean_what_the_rules_say(snapshot in snapshot(), packets in prop::collection::vec(packet(), 30)) {
        let desired = fresh(&snapshot);
        let machine = Machine { chains: typed(&desired, &snapshot), sets: &desired.sets };
        for packet in packets {
            let mut forwarded = packet.clone();
            let verdict = machine.run(&ChainName::fixed("FORWARD"), &mut forwarded);
            prop_assert_eq!(verdict, naive_forward(&snapshot, &packet), "{:?}", packet);
            if verdict == Verdict::Accept {
                prop_assert!(forwarded.marked, "accepted without the mark: {:?}", packet);
            }
            let verdict = machine.run(&ChainName::fixed("INPUT"), &mut packet.clone());
            prop_assert_eq!(verdict, naive_input(&snapshot, &packet), "input: {:?}", packet);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    /// A flow is cut just when the chains would not let its first packet pass any more.
    #[test]
    fn a_flow_is_judged_as_the_chains_judge_its_first_packet(snapshot in snapshot(), packets in prop::collection::vec(packet(), 30)) {
        let desired = fresh(&snapshot);
        let machine = Machine { chains: typed(&desired, &snapshot), sets: &desired.sets };
        let mut judge = desired.judge(BTreeSet::new());
        for mut packet in packets {
            let at = |address: Ipv4Addr| desired.routes.get(&IpAddr::V4(address)).map_or("eth0".to_owned(), ToString::to_string);
            (packet.from, packet.to, packet.tracked) = (at(packet.src), at(packet.dst), None);
            if let Some(mac) = behind(&snapshot, &packet.from).and_then(|endpoint| endpoint.mac) {
                packet.mac = mac;
            }
            let (src, dst) = (IpAddr::V4(packet.src), IpAddr::V4(packet.dst));
            let flow = Flow { protocol: packet.protocol, src, dst, ports: packet.ports, icmp: packet.icmp, outer: (dst, src) };
            let passes = machine.run(&ChainName::fixed("FORWARD"), &mut packet.clone()) != Verdict::Drop;
            prop_assert_eq!(judge.allows(&flow), passes, "{:?}", packet);
        }
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
fn one(host: &str, index: u32, profile: &str) -> (String, serde_json::Value) {
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
        let put = |snapshot: &mut Snapshot, (path, value): (String, serde_json::Value)| {
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
