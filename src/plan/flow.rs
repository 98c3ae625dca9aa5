//! Flows: connections as connection tracking knows them, and whether policy would still let one begin.
//!
//! The kernel asks policy once, when a flow begins; what belongs to an established flow passes. So when policy becomes
//! tighter, each flow is held to it again here, and what it would not let begin any more is cut. The alternative, to forget
//! all flows of the containers concerned and to let the kernel decide anew, also cuts flows that are allowed: the next
//! packet of a flow may be a reply, which policy would judge as if the other side had begun it.

use std::collections::BTreeSet;
use std::net::IpAddr;

use super::chain::{Chain, End, Match, Target};
use super::sets::{SetName, Sets};
use crate::model::rule::Ports;

/// The first packet of a flow as policy saw it: past the translation of its destination, before that of its source.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Flow {
    pub(crate) protocol: u8,
    pub(crate) src: IpAddr,
    pub(crate) dst: IpAddr,
    /// Source and destination; zero where the protocol has none.
    pub(crate) ports: (u16, u16),
    /// Type and code, of ICMP and ICMPv6.
    pub(crate) icmp: (u8, u8),
    /// What the sender took for the destination, and what the receiver takes for the source.
    pub(crate) outer: (IpAddr, IpAddr),
}

impl Flow {
    /// Whether one of some addresses has any part in it.
    pub(crate) fn touches(&self, addresses: &BTreeSet<IpAddr>) -> bool {
        [self.src, self.dst, self.outer.0, self.outer.1].iter().any(|address| addresses.contains(address))
    }
}

/// What a chain of a profile says of a flow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Word {
    Allowed,
    Denied,
    /// No rule speaks of it: the next profile is asked.
    Silent,
}

/// What a profile's chain says of a flow. Only entries that a profile's rules can become are understood; any other denies,
/// since what is not understood never allows.
pub(crate) fn judge(chain: &Chain, flow: &Flow, sets: &Sets) -> Word {
    for entry in &chain.entries {
        if !entry.matches.iter().all(|one| holds(one, flow, sets)) {
            continue;
        }
        match &entry.target {
            // To the chain that sets the accept mark.
            Target::Goto(_) | Target::Accept => return Word::Allowed,
            Target::Return => return Word::Silent,
            // The packet goes on.
            Target::Log(_) => {}
            Target::Drop | Target::Jump(_) | Target::Mark | Target::Unmark | Target::Masquerade => return Word::Denied,
        }
    }
    Word::Silent
}

fn holds(one: &Match, flow: &Flow, sets: &Sets) -> bool {
    let address = |end: &End| if *end == End::Source { flow.src } else { flow.dst };
    let port = |end: &End| if *end == End::Source { flow.ports.0 } else { flow.ports.1 };
    let is_in = |end, set: &SetName| sets.get(set).is_some_and(|set| set.members.contains(&address(end).into()));
    let among = |end, ports: &[Ports]| ports.iter().any(|ports| (ports.first..=ports.last).contains(&port(end)));
    let icmp = |kind: u8, code: Option<u8>| flow.icmp.0 == kind && code.is_none_or(|code| flow.icmp.1 == code);
    match one {
        Match::Net(end, net) => net.contains(&address(end)),
        Match::NotNet(end, net) | Match::OutsideRange(end, net) => !net.contains(&address(end)),
        Match::InSet(end, set) => is_in(end, set),
        Match::NotInSet(end, set) => !is_in(end, set),
        Match::Protocol(protocol) => flow.protocol == protocol.0,
        Match::NotProtocol(protocol) => flow.protocol != protocol.0,
        Match::Ports(end, ports) => among(end, ports),
        Match::NotPorts(end, ports) => !among(end, ports),
        Match::Icmp(_, kind, code) => icmp(*kind, *code),
        Match::NotIcmp(_, kind, code) => !icmp(*kind, *code),
        Match::NotTooOften => true,
        // No rule of a profile becomes any of these.
        Match::In(_)
        | Match::Out(_)
        | Match::Tracked(_)
        | Match::NoEnd(_)
        | Match::Accepted(_)
        | Match::SourceElsewhere
        | Match::ToThisHost(_)
        | Match::ToOne
        | Match::MacIsNot(_) => false,
    }
}

/// The sets whose growing can forbid what was allowed: those that an entry denies by, or whose absence one allows by.
pub(crate) fn shutting(chain: &Chain) -> BTreeSet<SetName> {
    let mut sets = BTreeSet::new();
    for entry in &chain.entries {
        sets.extend(entry.matches.iter().filter_map(|one| match one {
            Match::NotInSet(_, set) => Some(set.clone()),
            Match::InSet(_, set) if entry.target == Target::Drop => Some(set.clone()),
            _ => None,
        }));
    }
    sets
}
