//! Rules: what a profile allows, denies and logs. Every match that is given must hold, and of those that are negated none;
//! the first rule that matches and does not log decides.
//!
//! A rule that names a net, an IP version, icmp or icmpv6 is a rule for that family alone, also where the net is negated:
//! what is not in 10.0.0.0/8 says nothing of IPv6. A rule that no packet can match is not read: whoever wrote it meant
//! something else.

use std::fmt;
use std::str::FromStr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::name::TagName;
use super::pool::Family;

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub(crate) enum Action {
    /// What a rule without an action does, as in the original.
    #[default]
    Allow,
    Deny,
    /// Writes to the kernel's log, with this before each line, and goes on to the next rule.
    Log(Option<String>),
}

impl Action {
    fn as_str(&self) -> &'static str {
        match self {
            Action::Allow => "allow",
            Action::Deny => "deny",
            Action::Log(_) => "log",
        }
    }
}

/// An IP protocol by its number. Source of the numbers: IANA protocol numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Protocol(pub(crate) u8);

impl Protocol {
    pub(crate) const ICMP: Protocol = Protocol(1);
    pub(crate) const TCP: Protocol = Protocol(6);
    pub(crate) const UDP: Protocol = Protocol(17);
    pub(crate) const ICMPV6: Protocol = Protocol(58);

    /// The names that rules may use.
    const NAMES: [(&'static str, u8); 6] =
        [("tcp", 6), ("udp", 17), ("icmp", 1), ("icmpv6", 58), ("sctp", 132), ("udplite", 136)];

    /// Whether its packets carry ports that the kernel's multiport match reads (linux net/netfilter/xt_multiport.c).
    pub(crate) fn has_ports(self) -> bool {
        matches!(self.0, 6 | 17 | 33 | 132 | 136)
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match Protocol::NAMES.iter().find(|(_, number)| *number == self.0) {
            Some((name, _)) => f.write_str(name),
            None => write!(f, "{}", self.0),
        }
    }
}

impl FromStr for Protocol {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        if let Some((_, number)) = Protocol::NAMES.iter().find(|(name, _)| *name == text) {
            return Ok(Protocol(*number));
        }
        match text.parse::<u8>() {
            Ok(number) if number > 0 => Ok(Protocol(number)),
            _ => Err(format!(
                "protocol {text:?} is not known: it must be tcp, udp, icmp, icmpv6, sctp, udplite or a number from 1 to 255"
            )),
        }
    }
}

/// Ports from `first` to `last`, both included.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Ports {
    pub(crate) first: u16,
    pub(crate) last: u16,
}

impl fmt::Display for Ports {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.first == self.last { write!(f, "{}", self.first) } else { write!(f, "{}:{}", self.first, self.last) }
    }
}

impl FromStr for Ports {
    type Err = String;
    /// `80`, `80:90` or `80-90`.
    fn from_str(text: &str) -> Result<Self, String> {
        let port = |part: &str| {
            part.parse::<u16>()
                .map_err(|_| format!("port {part:?} in {text:?} is not right: it must be a number from 0 to 65535"))
        };
        let (first, last) = match text.split_once([':', '-']) {
            Some((first, last)) => (port(first)?, port(last)?),
            None => (port(text)?, port(text)?),
        };
        if first > last {
            return Err(format!("port range {text:?} ends before it begins: the lower port comes first"));
        }
        Ok(Ports { first, last })
    }
}

/// One end of a connection, as far as a rule cares.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub(crate) struct Side {
    pub(crate) tag: Option<TagName>,
    pub(crate) net: Option<IpNet>,
    /// Empty: nothing is said of ports.
    pub(crate) ports: Vec<Ports>,
}

/// A type of ICMP or ICMPv6, and perhaps one code of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Icmp {
    pub(crate) kind: u8,
    pub(crate) code: Option<u8>,
}

/// What a packet is compared with.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub(crate) struct Matches {
    pub(crate) protocol: Option<Protocol>,
    pub(crate) icmp: Option<Icmp>,
    pub(crate) src: Side,
    pub(crate) dst: Side,
}

impl Matches {
    pub(crate) fn sides(&self) -> [&Side; 2] {
        [&self.src, &self.dst]
    }

    fn has_ports(&self) -> bool {
        self.sides().into_iter().any(|side| !side.ports.is_empty())
    }
}

/// A rule that has passed its checks. Its JSON has the keys of the original's (docs/data-model.md).
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(try_from = "Map<String, Value>", into = "Map<String, Value>")]
pub(crate) struct Rule {
    pub(crate) action: Action,
    pub(crate) ip_version: Option<Family>,
    /// All of this holds.
    pub(crate) is: Matches,
    /// None of this holds.
    pub(crate) not: Matches,
}

impl Rule {
    /// The one family that the rule speaks of, if its matches leave only one.
    pub(crate) fn family(&self) -> Option<Family> {
        self.families().next().map(|(_, family)| family)
    }

    /// What ties the rule to a family, and to which.
    fn families(&self) -> impl Iterator<Item = (String, Family)> + '_ {
        let by_version = self.ip_version.map(|family| (format!("ip_version {}", version(family)), family));
        let by_protocol = match self.is.protocol {
            Some(Protocol::ICMP) => Some(("protocol icmp".to_owned(), Family::V4)),
            Some(Protocol::ICMPV6) => Some(("protocol icmpv6".to_owned(), Family::V6)),
            _ => None,
        };
        let nets = [("", &self.is), ("!", &self.not)].into_iter().flat_map(|(not, matches)| {
            [("src_net", &matches.src), ("dst_net", &matches.dst)]
                .into_iter()
                .filter_map(move |(key, side)| Some((format!("{not}{key} {}", side.net?), Family::of_net(side.net?))))
        });
        by_version.into_iter().chain(by_protocol).chain(nets)
    }

    /// The protocols whose packets the rule can match; `None` stands for all. Ports without a protocol mean both of the
    /// protocols that everybody means by ports.
    pub(crate) fn protocols(&self) -> Vec<Option<Protocol>> {
        match self.is.protocol {
            None if self.is.has_ports() || self.not.has_ports() => {
                let both = [Protocol::TCP, Protocol::UDP].into_iter();
                both.filter(|protocol| self.not.protocol != Some(*protocol)).map(Some).collect()
            }
            protocol => vec![protocol],
        }
    }

    fn check(self) -> Result<Self, String> {
        self.check_icmp()?;
        let ports = self.is.has_ports() || self.not.has_ports();
        if let Some(protocol) = self.is.protocol.filter(|protocol| ports && !protocol.has_ports()) {
            return Err(format!(
                "ports do not go with protocol {protocol}: it must be tcp, udp, sctp or udplite, or none"
            ));
        }
        if let (Some(protocol), true) = (self.is.protocol, self.is.protocol == self.not.protocol) {
            return Err(format!("protocol and !protocol are both {protocol}: no packet matches"));
        }
        let mut families = self.families();
        if let Some((first, family)) = families.next()
            && let Some((other, _)) = families.find(|(_, other)| *other != family)
        {
            return Err(format!("{first} and {other} are not of one IP version: no packet has both"));
        }
        drop(families);
        for (key, is, not) in [("src", &self.is.src, &self.not.src), ("dst", &self.is.dst, &self.not.dst)] {
            check_side(key, is, not)?;
        }
        Ok(self)
    }

    fn check_icmp(&self) -> Result<(), String> {
        let icmp = matches!(self.is.protocol, Some(Protocol::ICMP | Protocol::ICMPV6));
        if (self.is.icmp.is_some() || self.not.icmp.is_some()) && !icmp {
            return Err("icmp_type needs \"protocol\": \"icmp\" or \"icmpv6\"".to_owned());
        }
        let (Some(is), Some(not)) = (self.is.icmp, self.not.icmp) else { return Ok(()) };
        if is.kind == not.kind && (not.code.is_none() || is.code == not.code) {
            return Err(format!("icmp_type and !icmp_type are both {}: no packet matches", is.kind));
        }
        Ok(())
    }
}

/// What is said of one end, and what is denied of it, leave something.
fn check_side(end: &str, is: &Side, not: &Side) -> Result<(), String> {
    if let (Some(tag), true) = (&is.tag, is.tag == not.tag) {
        return Err(format!("{end}_tag and !{end}_tag are both {tag}: no packet matches"));
    }
    if let Some(not) = not.net {
        if not.prefix_len() == 0 {
            return Err(format!("!{end}_net {not} is every address: no packet matches"));
        }
        if let Some(is) = is.net.filter(|is| not.contains(is)) {
            return Err(format!("{end}_net {is} lies in !{end}_net {not}: no packet matches"));
        }
    }
    let any = [Ports { first: 0, last: u16::MAX }];
    let wanted = if is.ports.is_empty() { &any[..] } else { &is.ports };
    if wanted.iter().all(|ports| covers(&not.ports, *ports)) {
        return Err(format!("!{end}_ports leaves no port: no packet matches"));
    }
    Ok(())
}

/// Whether every port of `one` is in one of `all`.
fn covers(all: &[Ports], one: Ports) -> bool {
    let mut sorted = all.to_vec();
    sorted.sort_unstable();
    let mut next = u32::from(one.first);
    for ports in sorted {
        if u32::from(ports.first) <= next {
            next = next.max(u32::from(ports.last) + 1);
        }
    }
    next > u32::from(one.last)
}

fn version(family: Family) -> u8 {
    match family {
        Family::V4 => 4,
        Family::V6 => 6,
    }
}

/// The words of the original's command line: `allow tcp from tag WEB to ports 80,443`. What it has no words for is
/// told in the same manner: `log ipv4 !tcp from !tag WEB prefix web`.
impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.action.as_str())?;
        if let Some(family) = self.ip_version {
            write!(f, " ipv{}", version(family))?;
        }
        let both = [("", &self.is), ("!", &self.not)];
        for (not, protocol) in both.iter().filter_map(|(not, matches)| Some((not, matches.protocol?))) {
            write!(f, " {not}{protocol}")?;
        }
        for (not, icmp) in both.iter().filter_map(|(not, matches)| Some((not, matches.icmp?))) {
            write!(f, " {not}type {}", icmp.kind)?;
            if let Some(code) = icmp.code {
                write!(f, " code {code}")?;
            }
        }
        for (word, is, not) in [("from", &self.is.src, &self.not.src), ("to", &self.is.dst, &self.not.dst)] {
            let words: Vec<String> =
                [("", is), ("!", not)].into_iter().flat_map(|(not, side)| side.words(not)).collect();
            if !words.is_empty() {
                write!(f, " {word} {}", words.join(" "))?;
            }
        }
        match &self.action {
            Action::Log(Some(prefix)) => write!(f, " prefix {prefix}"),
            _ => Ok(()),
        }
    }
}

impl Side {
    fn words(&self, not: &str) -> Vec<String> {
        let list: Vec<String> = self.ports.iter().map(Ports::to_string).collect();
        let ports = (!list.is_empty()).then(|| format!("{not}ports {}", list.join(",")));
        let tag = self.tag.as_ref().map(|tag| format!("{not}tag {tag}"));
        let net = self.net.map(|net| format!("{not}cidr {net}"));
        ports.into_iter().chain(tag).chain(net).collect()
    }
}

/// A CIDR with host bits cleared; a bare address is a net of one.
pub(crate) fn parse_net(text: &str) -> Result<IpNet, String> {
    if let Ok(net) = text.parse::<IpNet>() {
        return Ok(net.trunc());
    }
    text.parse::<std::net::IpAddr>()
        .map(IpNet::from)
        .map_err(|_| format!("net {text:?} is not right: it must be a CIDR, such as 10.0.0.0/8"))
}

/// A net that a rule speaks of. IPv4 in the spelling of IPv6 would be a net of which there is no packet.
fn parse_matched_net(text: &str) -> Result<IpNet, String> {
    let net = parse_net(text)?;
    let four = match net {
        IpNet::V6(net) => net.prefix_len().checked_sub(96).zip(net.network().to_ipv4_mapped()),
        IpNet::V4(_) => None,
    };
    match four {
        Some((length, four)) => {
            Err(format!("net {text:?} is of IPv4 in the spelling of IPv6: it must be {four}/{length}"))
        }
        None => Ok(net),
    }
}

// --- JSON: a key after `!` is the same match, negated ---

/// A whole number that stands as a number or as its text.
fn number(key: &str, value: &Value, most: u64) -> Result<u64, String> {
    let found = match value {
        Value::Number(number) => number.as_u64(),
        Value::String(text) => text.parse().ok(),
        _ => None,
    };
    found
        .filter(|number| *number <= most)
        .ok_or_else(|| format!("{key} {value} is not right: it must be a whole number from 0 to {most}"))
}

fn text<'v>(key: &str, value: &'v Value) -> Result<&'v str, String> {
    value.as_str().ok_or_else(|| format!("{key} {value} is not right: it must be a string"))
}

fn ports(key: &str, value: &Value) -> Result<Vec<Ports>, String> {
    let list = value.as_array().ok_or_else(|| format!("{key} {value} is not right: it must be a list of ports"))?;
    list.iter()
        .map(|port| match port {
            Value::String(text) => text.parse().map_err(|error| format!("{key}: {error}")),
            other => {
                let port = number(key, other, u64::from(u16::MAX))?;
                let port = u16::try_from(port).map_err(|error| format!("{key}: {error}"))?;
                Ok(Ports { first: port, last: port })
            }
        })
        .collect()
}

/// Reads one of the keys that can be negated, its `!` taken off.
fn read_match(matches: &mut Matches, codes: &mut Option<u8>, key: &str, value: &Value) -> Result<(), String> {
    match key {
        "protocol" => {
            matches.protocol = Some(match value {
                Value::Number(number) => number.to_string().parse()?,
                other => text(key, other)?.parse()?,
            });
        }
        // 255 stands for "any type" in iptables (extensions/libxt_icmp.h), so it cannot be matched.
        "icmp_type" => {
            let kind = u8::try_from(number(key, value, 254)?).ok();
            matches.icmp = kind.map(|kind| Icmp { kind, code: None });
        }
        "icmp_code" => *codes = u8::try_from(number(key, value, 255)?).ok(),
        "src_tag" => matches.src.tag = Some(text(key, value)?.parse().map_err(|error| format!("{error}"))?),
        "dst_tag" => matches.dst.tag = Some(text(key, value)?.parse().map_err(|error| format!("{error}"))?),
        "src_net" => matches.src.net = Some(parse_matched_net(text(key, value)?)?),
        "dst_net" => matches.dst.net = Some(parse_matched_net(text(key, value)?)?),
        "src_ports" => matches.src.ports = ports(key, value)?,
        "dst_ports" => matches.dst.ports = ports(key, value)?,
        other => return Err(format!("key {other:?} is not known here")),
    }
    Ok(())
}

impl TryFrom<Map<String, Value>> for Rule {
    type Error = String;
    fn try_from(map: Map<String, Value>) -> Result<Self, String> {
        let mut rule = Rule::default();
        let mut prefix = None;
        let mut codes = [None, None];
        for (key, value) in &map {
            if value.is_null() {
                continue;
            }
            match key.as_str() {
                "action" => {
                    rule.action = match text(key, value)? {
                        "allow" => Action::Allow,
                        "deny" => Action::Deny,
                        "log" => Action::Log(None),
                        other => return Err(format!("action {other:?} is not known: it must be allow, deny or log")),
                    }
                }
                "log_prefix" => prefix = Some(text(key, value)?.to_owned()),
                "ip_version" => {
                    rule.ip_version = Some(match number(key, value, 6) {
                        Ok(4) => Family::V4,
                        Ok(6) => Family::V6,
                        _ => return Err(format!("ip_version {value} is not right: it must be 4 or 6")),
                    });
                }
                positive => match positive.strip_prefix('!') {
                    Some(negated) => read_match(&mut rule.not, &mut codes[1], negated, value)
                        .map_err(|error| format!("{positive}: {error}"))?,
                    None => read_match(&mut rule.is, &mut codes[0], positive, value)?,
                },
            }
        }
        for (not, matches, code) in [("", &mut rule.is, codes[0]), ("!", &mut rule.not, codes[1])] {
            match (&mut matches.icmp, code) {
                (Some(icmp), code) => icmp.code = code,
                (None, Some(_)) => return Err(format!("{not}icmp_code needs an {not}icmp_type")),
                (None, None) => {}
            }
        }
        if let Some(prefix) = prefix {
            rule.action = match rule.action {
                Action::Log(_) => Action::Log(Some(prefix)),
                other => return Err(format!("log_prefix goes with the action log, not with {}", other.as_str())),
            };
        }
        rule.check()
    }
}

impl From<Rule> for Map<String, Value> {
    fn from(rule: Rule) -> Self {
        let mut map = Map::new();
        map.insert("action".to_owned(), rule.action.as_str().into());
        if let Action::Log(Some(prefix)) = rule.action {
            map.insert("log_prefix".to_owned(), prefix.into());
        }
        if let Some(family) = rule.ip_version {
            map.insert("ip_version".to_owned(), version(family).into());
        }
        write_matches(&mut map, "", rule.is);
        write_matches(&mut map, "!", rule.not);
        map
    }
}

fn write_matches(map: &mut Map<String, Value>, not: &str, matches: Matches) {
    let mut put = |key: &str, value: Option<Value>| {
        if let Some(value) = value {
            map.insert(format!("{not}{key}"), value);
        }
    };
    put(
        "protocol",
        matches.protocol.map(|protocol| {
            let named = Protocol::NAMES.iter().any(|(_, number)| *number == protocol.0);
            if named { protocol.to_string().into() } else { protocol.0.into() }
        }),
    );
    put("icmp_type", matches.icmp.map(|icmp| icmp.kind.into()));
    put("icmp_code", matches.icmp.and_then(|icmp| icmp.code).map(Value::from));
    for (end, Side { tag, net, ports }) in [("src", matches.src), ("dst", matches.dst)] {
        put(&format!("{end}_tag"), tag.map(|tag| String::from(tag).into()));
        put(&format!("{end}_net"), net.map(|net| net.to_string().into()));
        let list = ports
            .iter()
            .map(|ports| if ports.first == ports.last { ports.first.into() } else { Value::from(ports.to_string()) });
        let list: Vec<Value> = list.collect();
        put(&format!("{end}_ports"), (!list.is_empty()).then_some(Value::Array(list)));
    }
}

#[cfg(test)]
mod tests;
