//! The law of policy: the chains, interpreted on random packets of both families, decide as a person would who reads the
//! datastore's JSON. The reader below knows nothing of the types that the chains are made from.

use std::cell::RefCell;
use std::net::IpAddr;

use proptest::prelude::*;
use serde_json::Value;

use super::tests::{Datastore, IDS, datastore, host, read};
use super::*;
use crate::model::name::Mac;
use crate::model::profile::Rules;
use crate::model::rule::{Ports, Protocol};
use crate::model::snapshot::News;
use crate::plan::chain::{ChainText, End, Interface, Match, Target, Tracked};
use crate::plan::flow::Flow;
use crate::plan::sets::IpSet;
use crate::plan::settings::Settings;

#[derive(Debug, Clone)]
struct Packet {
    from: String,
    to: String,
    src: IpAddr,
    dst: IpAddr,
    mac: Mac,
    protocol: u8,
    ports: (u16, u16),
    icmp: (u8, u8),
    tracked: Option<Tracked>,
    /// Who began the connection that it is about, and who answers there.
    ends: (IpAddr, IpAddr),
    /// Whether somebody else's mark is on it.
    marked: bool,
}

impl Packet {
    /// Whether it is one of these messages of ICMPv6.
    fn says(&self, kinds: &[u8]) -> bool {
        self.src.is_ipv6() && self.protocol == 58 && kinds.contains(&self.icmp.0)
    }

    fn is_from_link(&self) -> bool {
        self.src.to_string().starts_with("fe80:")
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    Accept,
    Drop,
    /// The chain ended: the kernel's own chain goes on.
    Passed,
}

/// The prefixes of the lines that a packet leaves in the log.
type Log = RefCell<BTreeSet<String>>;

// --- the chains, interpreted ---

struct Machine<'m> {
    family: Family,
    chains: BTreeMap<ChainName, Chain>,
    sets: &'m BTreeMap<SetName, IpSet>,
    log: Log,
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
                log @ Target::Log(_) => {
                    self.log.borrow_mut().insert(log.to_string());
                }
            }
        }
        Verdict::Passed
    }

    fn matches(&self, one: &Match, packet: &Packet) -> bool {
        let is = |interface: &Interface, name: &str| match interface {
            Interface::Exactly(exact) => exact.as_str() == name,
            Interface::StartsWith(start) => name.starts_with(start),
        };
        let address = |end: &End| if *end == End::Source { packet.src } else { packet.dst };
        let in_net = |end: &End, net: &IpNet| {
            assert_eq!(Family::of_net(*net), self.family, "a net of the other family");
            net.contains(&address(end))
        };
        let among = |end: &End, ports: &[Ports]| {
            assert!(Protocol(packet.protocol).has_ports(), "ports of a packet that has none");
            let weight: usize = ports.iter().map(|ports| if ports.first == ports.last { 1 } else { 2 }).sum();
            assert!((1..=15).contains(&weight), "no ports, or more than the kernel takes");
            let port = if *end == End::Source { packet.ports.0 } else { packet.ports.1 };
            ports.iter().any(|ports| (ports.first..=ports.last).contains(&port))
        };
        let icmp = |family: Family, kind: u8, code: Option<u8>| {
            assert_eq!((packet.protocol, family), (if family == Family::V4 { 1 } else { 58 }, self.family));
            packet.icmp.0 == kind && code.is_none_or(|code| packet.icmp.1 == code)
        };
        match one {
            Match::In(interface) => is(interface, &packet.from),
            Match::Out(interface) => is(interface, &packet.to),
            Match::Tracked(tracked) => packet.tracked == Some(*tracked),
            Match::NoEnd(address) => ![packet.ends.0, packet.ends.1].contains(address),
            Match::Accepted(yes) => packet.marked == *yes,
            Match::SourceElsewhere | Match::ToThisHost(_) | Match::ToOne => panic!("no filter chain looks for it"),
            Match::MacIsNot(mac) => packet.mac != *mac,
            Match::Net(end, net) => in_net(end, net),
            Match::NotNet(end, net) | Match::OutsideRange(end, net) => !in_net(end, net),
            Match::InSet(end, set) => self.sets[set].members.contains(&address(end).into()),
            Match::NotInSet(end, set) => !self.sets[set].members.contains(&address(end).into()),
            Match::Protocol(protocol) => packet.protocol == protocol.0,
            Match::NotProtocol(protocol) => packet.protocol != protocol.0,
            Match::Ports(end, ports) => among(end, ports),
            Match::NotPorts(end, ports) => !among(end, ports),
            Match::Icmp(family, kind, code) => icmp(*family, *kind, *code),
            Match::NotIcmp(family, kind, code) => !icmp(*family, *kind, *code),
            Match::NotTooOften => true,
        }
    }
}

/// The typed chains of a snapshot; their text is just what is wanted in the kernel.
fn typed(desired: &Desired, snapshot: &Snapshot) -> BTreeMap<ChainName, Chain> {
    let family = desired.family;
    let settings = Settings::of(snapshot, &host());
    let mut chains = filter::base(family, &settings);
    let mut prefixes = BTreeSet::from([String::new()]);
    for (suffix, placed) in desired.placed.iter().filter(|(_, placed)| placed.record.is_of(family)) {
        chains.extend(filter::endpoint(family, &placed.key, &placed.record, suffix, placed.unread_tags.as_ref()));
        prefixes.extend((1..=suffix.len().min(2)).map(|length| suffix[..length].to_owned()));
    }
    for (name, profile) in &desired.profiles {
        for way in Way::BOTH {
            let readable = profile.rules.as_ref().and_then(Record::readable);
            let open = |rules: &&Rules| profile.tags.is_ok() && desired.too_much(rules, &profile.speaks_of).is_none();
            let readable = readable.filter(open);
            chains.push(match readable {
                Some(rules) => {
                    let list = if way == Way::From { &rules.outbound } else { &rules.inbound };
                    filter::profile(family, way, name, list)
                }
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
    let chains = chains.into_iter().map(|chain| filter::overridden(chain, settings.drop));
    let chains: BTreeMap<ChainName, Chain> = chains.map(|chain| (chain.name.clone(), chain)).collect();
    let text: BTreeMap<&ChainName, ChainText> = chains.iter().map(|(name, chain)| (name, chain.render())).collect();
    let wanted: BTreeMap<&ChainName, ChainText> =
        desired.filter.chains.iter().map(|(name, text)| (name, (**text).clone())).collect();
    assert_eq!(text, wanted);
    chains
}

// --- a naive reading of the datastore ---

struct Reader<'d> {
    datastore: &'d Datastore,
    log: Log,
}

fn texts<'v>(value: &'v Value, key: &str) -> Vec<&'v str> {
    value[key].as_array().into_iter().flatten().filter_map(Value::as_str).collect()
}

fn has_address(endpoint: &Value, address: IpAddr) -> bool {
    let nets = [texts(endpoint, "ipv4_nets"), texts(endpoint, "ipv6_nets")].concat();
    nets.iter().any(|net| net.split('/').next().unwrap().parse::<IpAddr>().unwrap() == address)
}

fn protocol_number(value: &Value) -> u8 {
    match value.as_str() {
        Some("tcp") => 6,
        Some("icmp") => 1,
        Some("icmpv6") => 58,
        Some("sctp") => 132,
        Some(digits) => digits.parse().unwrap(),
        None => u8::try_from(value.as_u64().unwrap()).unwrap(),
    }
}

fn names_port(list: &Value, port: u16) -> bool {
    list.as_array().unwrap().iter().any(|one| match one.as_str() {
        None => one.as_u64() == Some(u64::from(port)),
        Some(text) => {
            let mut ends = text.split([':', '-']).map(|end| end.parse::<u16>().unwrap());
            let first = ends.next().unwrap();
            (first..=ends.next().unwrap_or(first)).contains(&port)
        }
    })
}

impl Reader<'_> {
    /// The endpoints that can be read: host, id and record.
    fn endpoints(&self) -> impl Iterator<Item = (&str, &str, &Value)> {
        self.datastore.iter().filter_map(|(path, value)| {
            let parts: Vec<&str> = path.split('/').collect();
            (parts.len() == 10 && value["state"] != "neither").then(|| (parts[4], parts[9], value))
        })
    }

    fn profile(&self, name: &str, part: &str) -> Option<&Value> {
        self.datastore.get(&format!("/calico/v1/policy/profile/{name}/{part}"))
    }

    fn has_tag(&self, address: IpAddr, tag: &str) -> bool {
        let carries = |profile: &&str| {
            let tags = self.profile(profile, "tags").and_then(Value::as_array);
            tags.into_iter().flatten().any(|one| one == tag)
        };
        self.endpoints().any(|(_, _, endpoint)| {
            has_address(endpoint, address) && texts(endpoint, "profile_ids").iter().any(carries)
        })
    }

    /// Whether all that a rule says is true of a packet.
    fn holds(&self, rule: &Value, packet: &Packet) -> bool {
        let version = if packet.src.is_ipv4() { 4 } else { 6 };
        let said = rule.as_object().unwrap().iter().filter(|(_, value)| !value.is_null());
        for (key, value) in said {
            let (negated, key) = key.strip_prefix('!').map_or((false, key.as_str()), |key| (true, key));
            let (address, port) =
                if key.starts_with("src") { (packet.src, packet.ports.0) } else { (packet.dst, packet.ports.1) };
            let holds = match key {
                "action" | "log_prefix" => continue,
                "ip_version" => *value == version,
                "protocol" => {
                    let number = protocol_number(value);
                    // ICMP is of IPv4, and ICMPv6 of IPv6.
                    if !negated && [(1, 6), (58, 4)].contains(&(number, version)) {
                        return false;
                    }
                    number == packet.protocol
                }
                "icmp_type" if negated && !rule["!icmp_code"].is_null() => {
                    *value == packet.icmp.0 && rule["!icmp_code"] == packet.icmp.1
                }
                "icmp_type" => *value == packet.icmp.0,
                "icmp_code" if negated => continue,
                "icmp_code" => *value == packet.icmp.1,
                "src_tag" | "dst_tag" => self.has_tag(address, value.as_str().unwrap()),
                "src_net" | "dst_net" => {
                    let text = value.as_str().unwrap();
                    // Of the other family it says nothing.
                    if text.contains(':') != (version == 6) {
                        return false;
                    }
                    let one = || text.parse::<IpAddr>().unwrap() == address;
                    text.parse::<IpNet>().map_or_else(|_| one(), |net| net.contains(&address))
                }
                "src_ports" | "dst_ports" => {
                    let right = match rule["protocol"] {
                        Value::Null => [6, 17].contains(&packet.protocol),
                        _ => [6, 17, 132].contains(&packet.protocol),
                    };
                    if !right {
                        return false;
                    }
                    names_port(value, port)
                }
                other => panic!("{other} is not known to the reader"),
            };
            if holds == negated {
                return false;
            }
        }
        true
    }

    /// Whether a rule of the packet's family names a tag that more addresses carry than a set may hold.
    fn names_too_many(&self, rule: &Value, packet: &Packet) -> bool {
        let v6 = packet.src.is_ipv6();
        let version = if v6 { 6 } else { 4 };
        let said = |key: &str| Some(&rule[key]).filter(|value| !value.is_null());
        let nets = ["src_net", "dst_net", "!src_net", "!dst_net"].into_iter().filter_map(said);
        let other = said("ip_version").is_some_and(|value| *value != version)
            || said("protocol").is_some_and(|value| protocol_number(value) == if v6 { 1 } else { 58 })
            || nets.into_iter().any(|net| net.as_str().unwrap().contains(':') != v6);
        let most = self.datastore.get("/calico/v1/config/MaxIpsetSize").and_then(Value::as_str);
        let Some(most) = most.map(|most| most.parse::<usize>().unwrap()).filter(|_| !other) else { return false };
        let tags = ["src_tag", "dst_tag", "!src_tag", "!dst_tag"].into_iter().filter_map(said);
        let carriers = |tag: &str| {
            let last = 0..8u8;
            let address = |last: u8| {
                if v6 {
                    IpAddr::from([0xfd00, 0, 0, 0, 0, 0, 0, u16::from(last)])
                } else {
                    IpAddr::from([10, 0, 0, last])
                }
            };
            last.filter(|last| self.has_tag(address(*last), tag)).count()
        };
        tags.into_iter().any(|tag| carriers(tag.as_str().unwrap()) > most)
    }

    fn allows(&self, endpoint: &Value, way: Way, packet: &Packet) -> bool {
        let list = if way == Way::From { "outbound_rules" } else { "inbound_rules" };
        // Who cannot be told by its tags is let through by nobody.
        let untold = |profile: &str| self.profile(profile, "tags").is_some_and(|tags| !tags.is_array());
        if texts(endpoint, "profile_ids").into_iter().any(untold) {
            return false;
        }
        for profile in texts(endpoint, "profile_ids") {
            let (Some(rules), Some(_)) = (self.profile(profile, "rules"), self.profile(profile, "tags")) else {
                return false;
            };
            let lists = ["inbound_rules", "outbound_rules"].into_iter().filter_map(|list| rules[list].as_array());
            let unreadable = rules.to_string().contains("maybe");
            if unreadable || lists.flatten().any(|rule| self.names_too_many(rule, packet)) {
                return false;
            }
            let rules = rules[list].as_array().into_iter().flatten();
            for rule in rules.filter(|rule| self.holds(rule, packet)) {
                match rule["action"].as_str() {
                    None | Some("allow") => return true,
                    Some("deny") => return false,
                    Some("log") => {
                        let line =
                            format!("-j LOG --log-prefix \"{}: \" --log-level 5", rule["log_prefix"].as_str().unwrap());
                        self.log.borrow_mut().insert(line);
                    }
                    other => panic!("{other:?}"),
                }
            }
        }
        false
    }

    /// The endpoint of an interface, if it has an address of the packet's family; one that has none at all is of IPv4.
    /// `None` where the interface is nobody's or more than one's, and the name does not tell.
    fn behind(&self, interface: &str, packet: &Packet) -> Option<&Value> {
        let endpoint = self.named(interface)?;
        let has = |key: &str| !texts(endpoint, key).is_empty();
        let (v4, v6) = (has("ipv4_nets"), has("ipv6_nets"));
        (if packet.src.is_ipv4() { v4 || !v6 } else { v6 }).then_some(endpoint)
    }

    fn named(&self, interface: &str) -> Option<&Value> {
        let named: Vec<(&str, &Value)> = self
            .endpoints()
            .filter(|(host, _, endpoint)| *host == "h1" && endpoint["name"] == interface)
            .map(|(_, id, endpoint)| (id, endpoint))
            .collect();
        match named.as_slice() {
            [(_, endpoint)] => Some(endpoint),
            several => {
                several.iter().find(|(id, _)| interface == format!("cali{}", &id[..id.len().min(11)])).map(|one| one.1)
            }
        }
    }

    fn out(&self, packet: &Packet) -> bool {
        self.behind(&packet.from, packet).is_some_and(|endpoint| {
            (endpoint["mac"].is_null() || endpoint["mac"] == packet.mac.to_string())
                && has_address(endpoint, packet.src)
                && self.allows(endpoint, Way::From, packet)
        })
    }

    /// Whether an error, or what it may be, comes from somebody whom the connection concerns.
    fn is_concerned(&self, packet: &Packet) -> bool {
        self.behind(&packet.from, packet).is_some_and(|endpoint| {
            (endpoint["mac"].is_null() || endpoint["mac"] == packet.mac.to_string())
                && (has_address(endpoint, packet.ends.0) || has_address(endpoint, packet.ends.1))
        })
    }

    /// Whether the link-local address of a packet's source is the one that goes with the endpoint's Ethernet address.
    fn asks_as_itself(&self, packet: &Packet) -> bool {
        let own = match self.behind(&packet.from, packet).map(|endpoint| &endpoint["mac"]) {
            Some(mac) if *mac == "02:00:00:00:00:01" => "fe80::ff:fe00:1",
            _ => return false,
        };
        packet.mac.to_string() == "02:00:00:00:00:01" && packet.src == own.parse::<IpAddr>().unwrap()
    }

    fn forward_by_policy(&self, packet: &Packet) -> Verdict {
        let (from_ours, to_ours) = (packet.from.starts_with("cali"), packet.to.starts_with("cali"));
        let into = || self.behind(&packet.to, packet).is_some_and(|one| self.allows(one, Way::To, packet));
        match packet.tracked {
            _ if !from_ours && !to_ours => Verdict::Passed,
            _ if from_ours && packet.says(&[134, 137]) => Verdict::Drop,
            Some(Tracked::Invalid | Tracked::Midstream) => Verdict::Drop,
            Some(Tracked::Established) => Verdict::Accept,
            Some(Tracked::Related) if !from_ours || self.is_concerned(packet) => Verdict::Accept,
            Some(Tracked::Related) => Verdict::Drop,
            None if (!from_ours || self.out(packet)) && (!to_ours || into()) => Verdict::Accept,
            None => Verdict::Drop,
        }
    }

    fn input_by_policy(&self, packet: &Packet) -> Verdict {
        let setting = self.datastore.get("/calico/v1/config/DefaultEndpointToHostAction").and_then(Value::as_str);
        let judged = matches!(setting, Some("RETURN" | "ACCEPT"));
        let own = packet.protocol == 6 && [179, 2377, 2379, 2380, 9091].contains(&packet.ports.1);
        match (packet.tracked, setting) {
            _ if !packet.from.starts_with("cali") => Verdict::Passed,
            // Containers are no routers, but they look for their next hop.
            _ if packet.says(&[134, 137]) => Verdict::Drop,
            _ if packet.says(&[135]) && packet.is_from_link() && !self.asks_as_itself(packet) => Verdict::Drop,
            _ if packet.says(&[135, 136]) => Verdict::Accept,
            (Some(Tracked::Invalid), _) => Verdict::Drop,
            (Some(Tracked::Established), _) => Verdict::Accept,
            (Some(Tracked::Related), _) if !self.is_concerned(packet) => Verdict::Drop,
            (Some(Tracked::Related), _) if !judged => Verdict::Accept,
            _ if judged && own => Verdict::Drop,
            (Some(Tracked::Related), Some("RETURN")) => Verdict::Passed,
            (Some(Tracked::Related), _) => Verdict::Accept,
            (None | Some(Tracked::Midstream), Some("RETURN")) if self.out(packet) => Verdict::Passed,
            (None | Some(Tracked::Midstream), Some("ACCEPT")) if self.out(packet) => Verdict::Accept,
            (None | Some(Tracked::Midstream), _) if !judged && self.is_open(packet) && self.out(packet) => {
                Verdict::Accept
            }
            (None | Some(Tracked::Midstream), _) => Verdict::Drop,
        }
    }

    /// Whether the host is open to a packet by name.
    fn is_open(&self, packet: &Packet) -> bool {
        let text = self.datastore.get("/calico/v1/host/h1/config/EndpointToHostPorts").and_then(Value::as_str);
        match text {
            Some("udp:7,tcp:8-12,icmp,icmpv6") => match packet.protocol {
                17 => packet.ports.1 == 7,
                6 => (8..=12).contains(&packet.ports.1),
                1 => packet.src.is_ipv4(),
                58 => packet.src.is_ipv6(),
                _ => false,
            },
            Some("tcp:1-39") => packet.protocol == 6 && (1..=39).contains(&packet.ports.1),
            _ => false,
        }
    }

    /// What becomes of a packet that policy drops.
    fn overridden(&self, verdict: Verdict) -> Verdict {
        let action = self.datastore.get("/calico/v1/config/DropActionOverride").and_then(Value::as_str);
        let (Verdict::Drop, Some(action)) = (verdict, action) else { return verdict };
        if action.starts_with("LOG") {
            self.log.borrow_mut().insert("-j LOG --log-prefix \"calico-drop: \" --log-level 5".to_owned());
        }
        if action.ends_with("ACCEPT") { Verdict::Accept } else { Verdict::Drop }
    }

    fn forward(&self, packet: &Packet) -> Verdict {
        self.overridden(self.forward_by_policy(packet))
    }

    fn input(&self, packet: &Packet) -> Verdict {
        self.overridden(self.input_by_policy(packet))
    }
}

fn packet(family: Family) -> impl Strategy<Value = Packet> {
    let interface = || prop_oneof![5 => (0..IDS.len()).prop_map(|i| format!("cali{}", IDS[i])), 1 => Just("calistray".to_owned()), 1 => Just("cali".to_owned()), 1 => Just("eth0".to_owned())];
    let address = move || {
        (1u8..7).prop_map(move |last| match family {
            Family::V4 => IpAddr::from([10, 0, 0, last]),
            Family::V6 => IpAddr::from([0xfd00, 0, 0, 0, 0, 0, 0, u16::from(last)]),
        })
    };
    let tracked = prop_oneof![10 => Just(None), 3 => prop::sample::select(vec![Tracked::Invalid, Tracked::Established, Tracked::Related, Tracked::Midstream]).prop_map(Some)];
    let protocol = prop::sample::select(vec![1u8, 6, 6, 17, 47, 58, 132]);
    let link = prop::sample::select(vec!["fe80::ff:fe00:1", "fe80::ff:fe00:2"]).prop_map(|text| text.parse().unwrap());
    let source = if family == Family::V6 { prop_oneof![8 => address(), 1 => link].boxed() } else { address().boxed() };
    let head = (interface(), interface(), source, address(), 1u8..10, protocol);
    let kind = prop_oneof![3 => 7u8..9, 1 => 133u8..138];
    let to = prop_oneof![20 => 0u16..45, 1 => Just(179u16), 1 => Just(2377u16)];
    let ends = (address(), address());
    (head, (0u16..45, to), (kind, 0u8..2), tracked, ends, any::<bool>()).prop_map(
        |((from, to, src, dst, mac, protocol), ports, icmp, tracked, ends, marked)| {
            let mac = Mac([2, 0, 0, 0, 0, if mac == 2 { 2 } else { 1 }]);
            Packet { from, to, src, dst, mac, protocol, ports, icmp, tracked, ends, marked }
        },
    )
}

fn check(family: Family, datastore: &Datastore, packets: Vec<Packet>) -> Result<(), TestCaseError> {
    let snapshot = read(datastore);
    let mut desired = Desired::new(host(), family);
    desired.update(&snapshot, &News::All);
    let machine = Machine { family, chains: typed(&desired, &snapshot), sets: &desired.sets, log: Log::default() };
    let reader = Reader { datastore, log: Log::default() };
    for packet in packets {
        // What has a link-local source never comes to FORWARD: the raw table drops it, and so would the kernel (see
        // [`crate::plan::raw`]). An endpoint's chain lets it look for its next hop, whoever jumps there.
        if !matches!(packet.src, IpAddr::V6(source) if source.is_unicast_link_local()) {
            let mut forwarded = packet.clone();
            let verdict = machine.run(&ChainName::fixed("FORWARD"), &mut forwarded);
            prop_assert_eq!(verdict, reader.forward(&packet), "{:?}", packet);
            if verdict == Verdict::Accept {
                prop_assert!(forwarded.marked, "accepted without the mark: {:?}", packet);
            }
        }
        let verdict = machine.run(&ChainName::fixed("INPUT"), &mut packet.clone());
        prop_assert_eq!(verdict, reader.input(&packet), "input: {:?}", packet);
        prop_assert_eq!(machine.log.take(), reader.log.take(), "log: {:?}", packet);
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    /// The chains decide as a person would who reads the rules, and what they accept carries the mark.
    #[test]
    fn the_chains_mean_what_the_rules_say(datastore in datastore(), packets in prop::collection::vec(packet(Family::V4), 30)) {
        check(Family::V4, &datastore, packets)?;
    }

    #[test]
    fn the_chains_mean_what_the_rules_say_in_ipv6(datastore in datastore(), packets in prop::collection::vec(packet(Family::V6), 30)) {
        check(Family::V6, &datastore, packets)?;
    }
}

/// A flow is cut just when the chains would not let its first packet pass any more.
fn check_flows(family: Family, datastore: &Datastore, packets: Vec<Packet>) -> Result<(), TestCaseError> {
    let snapshot = read(datastore);
    let mut desired = Desired::new(host(), family);
    desired.update(&snapshot, &News::All);
    let machine = Machine { family, chains: typed(&desired, &snapshot), sets: &desired.sets, log: Log::default() };
    let reader = Reader { datastore, log: Log::default() };
    let mut judge = desired.judge(BTreeSet::new());
    for mut packet in packets {
        // A container of Docker's may run before its record says so.
        let may_run = |key: &EndpointKey, endpoint: &Endpoint, address: &IpAddr| {
            key.orchestrator == Orchestrator::docker() && !endpoint.is_active() && endpoint.addresses.contains(address)
        };
        let at = |address: IpAddr| {
            let waiting = || desired.placed().filter(|(key, one)| may_run(key, one, &address)).last();
            let interface = desired.routes.get(&address).or_else(|| waiting().map(|(_, one)| &one.interface));
            interface.map_or("eth0".to_owned(), ToString::to_string)
        };
        (packet.from, packet.to, packet.tracked) = (at(packet.src), at(packet.dst), None);
        if let Some(mac) = reader.behind(&packet.from, &packet).and_then(|endpoint| endpoint["mac"].as_str()) {
            packet.mac = mac.parse().unwrap();
        }
        // What a container may not send at all, and what is no family's, never becomes a flow.
        if [134, 137].contains(&packet.icmp.0) {
            continue;
        }
        let (src, dst) = (packet.src, packet.dst);
        let flow =
            Flow { protocol: packet.protocol, src, dst, ports: packet.ports, icmp: packet.icmp, outer: (dst, src) };
        let passes = machine.run(&ChainName::fixed("FORWARD"), &mut packet.clone()) != Verdict::Drop;
        prop_assert_eq!(judge.allows(&flow), passes, "{:?}", packet);
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn a_flow_is_judged_as_the_chains_judge_its_first_packet(datastore in datastore(), packets in prop::collection::vec(packet(Family::V4), 30)) {
        check_flows(Family::V4, &datastore, packets)?;
    }

    #[test]
    fn a_flow_is_judged_as_the_chains_judge_its_first_packet_in_ipv6(datastore in datastore(), packets in prop::collection::vec(packet(Family::V6), 30)) {
        check_flows(Family::V6, &datastore, packets)?;
    }
}
