//! The rules of a profile as entries of the kernel's chains.
//!
//! One rule becomes one entry, or several that exclude each other: one for each protocol and each list of ports that the
//! kernel's multiport match holds. What is negated must hold of every list at once, so negated lists stand together in
//! each entry and multiply nothing.
//!
//! Invariant: a match that a family cannot carry never vanishes from a rule: the rule is left out of that family.

use crate::model::name::TagName;
use crate::model::pool::Family;
use crate::model::profile::Rules;
use crate::model::rule::{Action, Matches, Ports, Rule, Side};

use super::chain::{ChainName, End, Entry, LogPrefix, Match, PORTS_MOST, Target};
use super::sets::SetName;

/// The tags that rules speak of, as far as they are rules of this family.
pub(crate) fn tags_of(family: Family, rules: &[Rule]) -> impl Iterator<Item = &TagName> {
    let rules = rules.iter().filter(move |rule| is_of(family, rule));
    rules.flat_map(|rule| [&rule.is, &rule.not]).flat_map(Matches::sides).filter_map(|side| side.tag.as_ref())
}

fn is_of(family: Family, rule: &Rule) -> bool {
    rule.family().is_none_or(|only| only == family)
}

/// The entries that one rule becomes; none in a family that it does not speak of. `allow` is where an allowed packet goes.
pub(crate) fn entries(family: Family, rule: &Rule, allow: &ChainName) -> Vec<Entry> {
    if !is_of(family, rule) {
        return Vec::new();
    }
    let target = match &rule.action {
        Action::Allow => Target::Goto(allow.clone()),
        Action::Deny => Target::Drop,
        Action::Log(prefix) => Target::Log(LogPrefix::new(prefix.as_deref().unwrap_or_default())),
    };
    let words = rule.to_string();
    let mut entries = Vec::new();
    for protocol in rule.protocols() {
        for sources in port_lists(&rule.is.src.ports) {
            for destinations in port_lists(&rule.is.dst.ports) {
                let mut matches = Vec::new();
                match (protocol, rule.not.protocol) {
                    (Some(protocol), _) => matches.push(Match::Protocol(protocol)),
                    (None, not) => matches.extend(not.map(Match::NotProtocol)),
                }
                matches.extend(rule.is.icmp.map(|icmp| Match::Icmp(family, icmp.kind, icmp.code)));
                matches.extend(rule.not.icmp.map(|icmp| Match::NotIcmp(family, icmp.kind, icmp.code)));
                side(family, End::Source, [&rule.is.src, &rule.not.src], &sources, &mut matches);
                side(family, End::Destination, [&rule.is.dst, &rule.not.dst], &destinations, &mut matches);
                if matches!(target, Target::Log(_)) {
                    // The last one, so that only what matches the rest counts.
                    matches.push(Match::NotTooOften);
                }
                entries.push(Entry::new(matches, target.clone(), words.clone()));
            }
        }
    }
    entries
}

/// How many entries the rules of a profile may become, of either way. The tool that shows what stands in the kernel takes a
/// time that grows with the square of their number: two seconds at this one, half a minute at four times as many, and nothing
/// else can be put right meanwhile.
const ENTRIES_MOST: usize = 25_000;

/// Why rules are more than a node takes, in words that go on from "its rules".
pub(crate) fn too_many(family: Family, rules: &Rules) -> Option<String> {
    let most = [&rules.inbound, &rules.outbound].map(|list| count(family, list)).into_iter().max();
    let count = most.filter(|count| *count > ENTRIES_MOST)?;
    Some(format!("come to {count} entries of the firewall's: it must be at most {ENTRIES_MOST} for either way"))
}

/// How many entries rules become. One rule with long lists of ports may come to millions.
fn count(family: Family, rules: &[Rule]) -> usize {
    let of_rule = |rule: &Rule| {
        let lists = [&rule.is.src, &rule.is.dst].map(|side| port_lists(&side.ports).len());
        lists.into_iter().fold(rule.protocols().len(), usize::saturating_mul)
    };
    rules.iter().filter(|rule| is_of(family, rule)).map(of_rule).fold(0, usize::saturating_add)
}

fn side(family: Family, end: End, [is, not]: [&Side; 2], ports: &[Ports], matches: &mut Vec<Match>) {
    matches.extend(is.net.map(|net| Match::Net(end, net)));
    match (is.net, not.net) {
        // One entry has room for one net. One that is not a part of the first says nothing.
        (Some(is), Some(not)) if is.contains(&not) => matches.push(Match::OutsideRange(end, not)),
        (None, Some(not)) => matches.push(Match::NotNet(end, not)),
        _ => {}
    }
    matches.extend(is.tag.as_ref().map(|tag| Match::InSet(end, SetName::tag(family, tag))));
    matches.extend(not.tag.as_ref().map(|tag| Match::NotInSet(end, SetName::tag(family, tag))));
    if !ports.is_empty() {
        matches.push(Match::Ports(end, ports.to_vec()));
    }
    let lists = port_lists(&not.ports).into_iter().filter(|list| !list.is_empty());
    matches.extend(lists.map(|list| Match::NotPorts(end, list)));
}

/// A list of ports, cut into lists that one multiport match holds. No ports: one empty list.
fn port_lists(ports: &[Ports]) -> Vec<Vec<Ports>> {
    let mut lists = vec![Vec::new()];
    let mut weight = 0;
    for one in ports {
        let own = if one.first == one.last { 1 } else { 2 };
        if weight + own > PORTS_MOST {
            lists.push(Vec::new());
            weight = 0;
        }
        weight += own;
        if let Some(list) = lists.last_mut() {
            list.push(*one);
        }
    }
    lists
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_rules_come_to_is_counted_without_making_it() {
        let rules = |json: &str| -> Vec<Rule> { serde_json::from_str(json).unwrap() };
        let ports = |number: u16| (1..=number).map(|port| port.to_string()).collect::<Vec<_>>().join(",");
        for json in [
            "[]".to_owned(),
            r#"[{}, {"protocol": "icmp"}, {"src_net": "fd00::/8"}, {"action": "deny", "src_net": "10.0.0.0/8"}]"#
                .to_owned(),
            format!(r#"[{{"src_ports": [{}], "dst_ports": [{}]}}]"#, ports(31), ports(16)),
            format!(r#"[{{"protocol": "tcp", "!src_ports": [{}], "dst_ports": ["1:2", "4:5"]}}]"#, ports(31)),
        ] {
            for family in Family::BOTH {
                let rules = rules(&json);
                let made: usize = rules.iter().map(|rule| entries(family, rule, &ChainName::fixed("x")).len()).sum();
                assert_eq!(count(family, &rules), made, "{json}");
            }
        }
        let bomb = rules(&format!(r#"[{{"src_ports": [{0}], "dst_ports": [{0}]}}]"#, ports(15_000)));
        assert_eq!(count(Family::V4, &bomb), 2_000_000);
    }
}
