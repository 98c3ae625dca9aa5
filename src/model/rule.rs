//! Rules: what a profile allows and denies. Every match that is given must hold; the first rule that matches decides.

use std::fmt;
use std::str::FromStr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::name::TagName;
use super::pool::Family;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub(crate) enum Action {
    /// What a rule without an action does, as in the original.
    #[default]
    Allow,
    Deny,
}

impl Action {
    fn as_str(self) -> &'static str {
        match self {
            Action::Allow => "allow",
            Action::Deny => "deny",
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
    /// Empty: any port.
    pub(crate) ports: Vec<Ports>,
}

impl Side {
    fn is_any(&self) -> bool {
        *self == Side::default()
    }
}

/// A rule that has passed its checks. Its JSON has the ten keys of the original's command line (data model 1.4).
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(try_from = "Map<String, Value>", into = "Map<String, Value>")]
pub(crate) struct Rule {
    pub(crate) action: Action,
    pub(crate) protocol: Option<Protocol>,
    pub(crate) icmp_type: Option<u8>,
    /// Only with a type.
    pub(crate) icmp_code: Option<u8>,
    pub(crate) src: Side,
    pub(crate) dst: Side,
}

impl Rule {
    /// The one family that the rule can match, if its matches leave only one.
    pub(crate) fn family(&self) -> Option<Family> {
        let by_protocol = match self.protocol {
            Some(Protocol::ICMP) => Some(Family::V4),
            Some(Protocol::ICMPV6) => Some(Family::V6),
            _ => None,
        };
        let by_net = [&self.src, &self.dst].into_iter().find_map(|side| side.net).map(Family::of_net);
        by_protocol.or(by_net)
    }

    fn check(self) -> Result<Self, String> {
        let icmp = matches!(self.protocol, Some(Protocol::ICMP | Protocol::ICMPV6));
        if self.icmp_type.is_some() && !icmp {
            return Err("icmp_type needs \"protocol\": \"icmp\" or \"icmpv6\"".to_owned());
        }
        if self.icmp_code.is_some() && self.icmp_type.is_none() {
            return Err("icmp_code needs an icmp_type".to_owned());
        }
        let ports = !self.src.ports.is_empty() || !self.dst.ports.is_empty();
        if let Some(protocol) = self.protocol.filter(|protocol| ports && !protocol.has_ports()) {
            return Err(format!(
                "ports do not go with protocol {protocol}: it must be tcp, udp, sctp or udplite, or none"
            ));
        }
        if let (Some(src), Some(dst)) = (self.src.net, self.dst.net)
            && Family::of_net(src) != Family::of_net(dst)
        {
            return Err(format!("src_net {src} and dst_net {dst} are not of one IP version: no packet has both"));
        }
        if let (Some(protocol), Some(net)) = (self.protocol.filter(|_| icmp), self.src.net.or(self.dst.net))
            && (protocol == Protocol::ICMP) != (Family::of_net(net) == Family::V4)
        {
            return Err(format!("protocol {protocol} and net {net} are not of one IP version: no packet has both"));
        }
        Ok(self)
    }
}

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

/// A CIDR with host bits cleared; a bare address is a net of one.
pub(crate) fn parse_net(text: &str) -> Result<IpNet, String> {
    if let Ok(net) = text.parse::<IpNet>() {
        return Ok(net.trunc());
    }
    text.parse::<std::net::IpAddr>()
        .map(IpNet::from)
        .map_err(|_| format!("net {text:?} is not right: it must be a CIDR, such as 10.0.0.0/8"))
}

impl TryFrom<Map<String, Value>> for Rule {
    type Error = String;
    fn try_from(map: Map<String, Value>) -> Result<Self, String> {
        let mut rule = Rule::default();
        for (key, value) in &map {
            if value.is_null() {
                continue;
            }
            match key.as_str() {
                "action" => {
                    rule.action = match text(key, value)? {
                        "allow" => Action::Allow,
                        "deny" => Action::Deny,
                        other => return Err(format!("action {other:?} is not known: it must be allow or deny")),
                    }
                }
                "protocol" => {
                    rule.protocol = Some(match value {
                        Value::Number(number) => number.to_string().parse()?,
                        other => text(key, other)?.parse()?,
                    });
                }
                // 255 stands for "any type" in iptables (extensions/libxt_icmp.h), so it cannot be matched.
                "icmp_type" => rule.icmp_type = u8::try_from(number(key, value, 254)?).ok(),
                "icmp_code" => rule.icmp_code = u8::try_from(number(key, value, 255)?).ok(),
                "src_tag" => rule.src.tag = Some(text(key, value)?.parse().map_err(|error| format!("{error}"))?),
                "dst_tag" => rule.dst.tag = Some(text(key, value)?.parse().map_err(|error| format!("{error}"))?),
                "src_net" => rule.src.net = Some(parse_net(text(key, value)?)?),
                "dst_net" => rule.dst.net = Some(parse_net(text(key, value)?)?),
                "src_ports" => rule.src.ports = ports(key, value)?,
                "dst_ports" => rule.dst.ports = ports(key, value)?,
                other => return Err(format!("key {other:?} is not known here")),
            }
        }
        rule.check()
    }
}

impl From<Rule> for Map<String, Value> {
    fn from(rule: Rule) -> Self {
        let mut map = Map::new();
        map.insert("action".to_owned(), rule.action.as_str().into());
        if let Some(protocol) = rule.protocol {
            let named = Protocol::NAMES.iter().any(|(_, number)| *number == protocol.0);
            map.insert("protocol".to_owned(), if named { protocol.to_string().into() } else { protocol.0.into() });
        }
        let mut put = |key: &str, value: Option<Value>| {
            if let Some(value) = value {
                map.insert(key.to_owned(), value);
            }
        };
        put("icmp_type", rule.icmp_type.map(Value::from));
        put("icmp_code", rule.icmp_code.map(Value::from));
        for (prefix, side) in [("src", rule.src), ("dst", rule.dst)] {
            put(&format!("{prefix}_tag"), side.tag.map(|tag| String::from(tag).into()));
            put(&format!("{prefix}_net"), side.net.map(|net| net.to_string().into()));
            let list = side.ports.iter().map(|ports| {
                if ports.first == ports.last { ports.first.into() } else { Value::from(ports.to_string()) }
            });
            let list: Vec<Value> = list.collect();
            put(&format!("{prefix}_ports"), (!list.is_empty()).then_some(Value::Array(list)));
        }
        map
    }
}

/// The words of the original's command line: `allow tcp from tag WEB to ports 80,443`.
impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.action.as_str())?;
        if let Some(protocol) = self.protocol {
            write!(f, " {protocol}")?;
        }
        if let Some(icmp_type) = self.icmp_type {
            write!(f, " type {icmp_type}")?;
        }
        if let Some(icmp_code) = self.icmp_code {
            write!(f, " code {icmp_code}")?;
        }
        for (word, side) in [("from", &self.src), ("to", &self.dst)] {
            if side.is_any() {
                continue;
            }
            write!(f, " {word}")?;
            if !side.ports.is_empty() {
                let list: Vec<String> = side.ports.iter().map(Ports::to_string).collect();
                write!(f, " ports {}", list.join(","))?;
            }
            if let Some(tag) = &side.tag {
                write!(f, " tag {tag}")?;
            }
            if let Some(net) = side.net {
                write!(f, " cidr {net}")?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(text: &str) -> Result<Rule, String> {
        serde_json::from_str(text).map_err(|error| error.to_string())
    }

    #[test]
    fn a_rule_survives_writing_and_reading() {
        for text in [
            r#"{"action":"allow"}"#,
            r#"{"action":"deny","protocol":"tcp","src_tag":"a","src_net":"10.0.0.0/8","src_ports":[1,"2:3"],"dst_tag":"b","dst_net":"10.1.0.0/16","dst_ports":[80]}"#,
            r#"{"action":"allow","protocol":"icmp","icmp_type":8,"icmp_code":0}"#,
            r#"{"action":"allow","protocol":47}"#,
        ] {
            assert_eq!(serde_json::to_string(&rule(text).unwrap()).unwrap(), text);
        }
    }

    #[test]
    fn a_rule_reads_what_the_original_wrote() {
        assert_eq!(rule("{}").unwrap().action, Action::Allow);
        assert_eq!(rule(r#"{"src_ports":["80","1-3"],"protocol":null}"#).unwrap().src.ports.len(), 2);
        assert_eq!(rule(r#"{"src_net":"10.1.2.3/8"}"#).unwrap().to_string(), "allow from cidr 10.0.0.0/8");
    }

    #[test]
    fn a_rule_with_an_unknown_or_impossible_part_is_refused() {
        for bad in [
            r#"{"action":"permit"}"#,
            r#"{"action":"log"}"#,
            r#"{"!src_net":"10.0.0.0/8"}"#,
            r#"{"ip_version":4}"#,
            r#"{"protocol":"carrier-pigeon"}"#,
            r#"{"protocol":"icmp","dst_ports":[80]}"#,
            r#"{"dst_ports":[65536]}"#,
            r#"{"dst_ports":["9:8"]}"#,
            r#"{"icmp_type":8}"#,
            r#"{"protocol":"icmp","icmp_type":255}"#,
            r#"{"protocol":"icmp","icmp_code":0}"#,
            r#"{"src_net":"10.0.0.0/8","dst_net":"fd00::/8"}"#,
            r#"{"protocol":"icmpv6","src_net":"10.0.0.0/8"}"#,
            r#"{"src_tag":"a b"}"#,
        ] {
            assert!(rule(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_rule_prints_as_the_original_did() {
        let printed = rule(r#"{"protocol":"tcp","src_tag":"WEB","dst_ports":[80,443]}"#).unwrap().to_string();
        assert_eq!(printed, "allow tcp from tag WEB to ports 80,443");
    }
}
