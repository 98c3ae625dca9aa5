//! The rules of a profile as entries of the kernel's chains.
//!
//! One rule becomes one entry, or several that exclude each other: one for each protocol and each list of ports that the
//! kernel's multiport match holds. What is negated must hold of every list at once, so negated lists stand together in
//! each entry and multiply nothing.
//!
//! Invariant: a match that a family cannot carry never vanishes from a rule: the rule is left out of that family.

use crate::model::name::TagName;
use crate::model::pool::Family;
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
