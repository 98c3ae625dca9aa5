//! The filter table: base chains, the dispatch tree, the chains of endpoints and of profiles.
//!
//! A packet from a container goes FORWARD → `calico-FORWARD` → dispatch (`calico-from`, `calico-from-a`, `calico-from-ab`)
//! → the endpoint's chain (`calico-fw-…`) → its profiles' chains (`calico-po-…`), one after another, until one sets the
//! accept mark. Coming back to `calico-FORWARD` without the mark it is dropped; so an interface that nobody knows, an
//! endpoint without profiles and an empty chain are all closed without a rule that says so. The same on the way to a
//! container with `calico-to`, `calico-tw-…` and `calico-pi-…`.
//!
//! What belongs to a connection that was allowed passes by itself. What is only about one, an error of ICMP, passes from a
//! container that is an end of it and from what is no container of this host, since there routers are: whoever could
//! tell of others' connections could end or slow them, whatever policy says.
//!
//! The dispatch is a tree over the first two characters after `cali`, whose entries exclude each other: a packet passes
//! at most some dozens of entries among thousands of endpoints, and an endpoint is added by appending. A set of
//! interfaces or an nftables map would be faster still, but iptables has neither as a jump.

use std::collections::BTreeSet;
use std::net::IpAddr;

use crate::model::endpoint::Endpoint;
use crate::model::key::EndpointKey;
use crate::model::name::{INTERFACE_PREFIX, IfName, ProfileName};
use crate::model::pool::Family;
use crate::model::rule::{Ports, Protocol, Rule};

use super::chain::{
    CHAIN_PREFIX, Chain, ChainName, End, Entry, Interface, LINK_LOCAL, LogPrefix, Match, Target, Tracked, words_of,
};
use super::rules;
use super::settings::{DropAction, OWN_PORTS, Open, Settings, ToHost};

/// Which way a packet goes, seen from the container.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Way {
    /// Out of the container: outbound rules.
    From,
    /// To the container: inbound rules.
    To,
}

impl Way {
    pub(crate) const BOTH: [Way; 2] = [Way::From, Way::To];

    fn dispatch(self) -> &'static str {
        match self {
            Way::From => "from",
            Way::To => "to",
        }
    }

    fn on(self, interface: Interface) -> Match {
        match self {
            Way::From => Match::In(interface),
            Way::To => Match::Out(interface),
        }
    }

    /// The chain of an endpoint's interface.
    pub(crate) fn endpoint_chain(self, suffix: &str) -> ChainName {
        ChainName::of(if self == Way::From { "fw" } else { "tw" }, suffix)
    }

    pub(crate) fn profile_chain(self, profile: &ProfileName) -> ChainName {
        ChainName::of(if self == Way::From { "po" } else { "pi" }, profile.as_str())
    }

    /// The chain of the dispatch tree for interfaces that begin with `cali` and `prefix`.
    pub(crate) fn dispatch_chain(self, prefix: &str) -> ChainName {
        if prefix.is_empty() { ChainName::fixed(self.dispatch()) } else { ChainName::of(self.dispatch(), prefix) }
    }
}

fn ours() -> Interface {
    Interface::StartsWith(INTERFACE_PREFIX.to_owned())
}

fn accept() -> ChainName {
    ChainName::fixed("accept")
}

fn allow() -> ChainName {
    ChainName::fixed("allow")
}

/// The kernel's chains that ours are jumped to from, with the entry that stands first in each.
pub(crate) fn jumps() -> Vec<(&'static str, ChainName, Entry)> {
    let jump = |kernel: &'static str| {
        let chain = ChainName::fixed(kernel);
        (kernel, chain.clone(), Entry::new(Vec::new(), Target::Jump(chain), "policy of containers"))
    };
    vec![jump("FORWARD"), jump("INPUT")]
}

/// The chains that are always there. They depend on nothing but the settings.
pub(crate) fn base(family: Family, settings: &Settings) -> Vec<Chain> {
    let accept_chain = vec![
        Entry::new(Vec::new(), Target::Mark, "accepted by policy"),
        Entry::new(Vec::new(), Target::Accept, "accepted by policy"),
    ];
    let allow_chain = vec![Entry::new(Vec::new(), Target::Mark, "allowed by a rule, go back")];
    vec![
        Chain::ordered(accept(), accept_chain),
        Chain::ordered(allow(), allow_chain),
        Chain::ordered(ChainName::fixed("FORWARD"), forward(family)),
        Chain::ordered(ChainName::fixed("INPUT"), input(family, settings)),
    ]
}

/// Messages of ICMPv6 by which a neighbour moves routes: router advertisement and redirect (RFC 4861, 4.2 and 4.5).
const STEERING: [u8; 2] = [134, 137];

/// Messages of ICMPv6 by which neighbours find each other (RFC 4861, 4.3 and 4.4).
const SOLICITATION: u8 = 135;
const ADVERTISEMENT: u8 = 136;

fn icmpv6(kind: u8) -> Vec<Match> {
    vec![Match::Protocol(Protocol::ICMPV6), Match::Icmp(Family::V6, kind, None)]
}

fn forward(family: Family) -> Vec<Entry> {
    let both = |matches: &[Match], target: &Target, words: &str| {
        Way::BOTH.map(|way| {
            let matches = [way.on(ours())].into_iter().chain(matches.iter().cloned()).collect();
            Entry::new(matches, target.clone(), words)
        })
    };
    let one = |way: Way, matches: &[Match], target: Target, words: &str| {
        let matches = [way.on(ours())].into_iter().chain(matches.iter().cloned()).collect();
        Entry::new(matches, target, words)
    };
    let mut entries = Vec::new();
    if family == Family::V6 {
        let steering = STEERING.map(icmpv6);
        entries.extend(steering.map(|kind| one(Way::From, &kind, Target::Drop, "containers are no routers")));
    }
    entries.extend(both(&[], &Target::Unmark, "no other mark counts"));
    entries.extend(both(&[Match::Tracked(Tracked::Invalid)], &Target::Drop, "part of no connection"));
    entries.extend(both(&[Match::Tracked(Tracked::Established)], &Target::Goto(accept()), "of an allowed connection"));
    // Connection tracking would take it for the beginning of a connection, whichever side it comes from, and so a
    // connection that was cut would go on with the first word of the side that may begin one.
    entries.extend(both(
        &[Match::Tracked(Tracked::Midstream)],
        &Target::Drop,
        "of a connection that never began, or was cut",
    ));
    entries.push(one(Way::From, &[], Target::Jump(Way::From.dispatch_chain("")), "what the sender may send"));
    entries.push(one(Way::From, &[Match::Accepted(false)], Target::Drop, "not allowed, or unknown interface"));
    entries.push(one(Way::From, &[], Target::Unmark, "the receiver decides anew"));
    // Of containers, only the ends of a connection have come so far with an error about it; of the rest of the world
    // anybody may be a router on its way.
    entries.push(one(Way::To, &[Match::Tracked(Tracked::Related)], Target::Goto(accept()), "about a connection"));
    entries.push(one(Way::To, &[], Target::Jump(Way::To.dispatch_chain("")), "what the receiver may receive"));
    entries.push(one(Way::To, &[Match::Accepted(false)], Target::Drop, "not allowed, or unknown interface"));
    entries.extend(both(&[], &Target::Goto(accept()), "allowed on both sides"));
    entries
}

fn input(family: Family, settings: &Settings) -> Vec<Entry> {
    let from = |matches: Vec<Match>, target: Target, words: &str| {
        let matches = [Match::In(ours())].into_iter().chain(matches).collect();
        Entry::new(matches, target, words)
    };
    let judged = |matches: Vec<Match>, words: &str| from(matches, Target::Jump(Way::From.dispatch_chain("")), words);
    let mut entries = vec![from(Vec::new(), Target::Unmark, "no other mark counts")];
    if family == Family::V6 {
        entries.extend(STEERING.map(|kind| from(icmpv6(kind), Target::Drop, "containers are no routers")));
        // Whoever asks becomes a neighbour (linux net/ipv6/ndisc.c, `ndisc_recv_ns`), of which the table that all share
        // holds some hundreds. A global source has been found to be the sender's own; of the link-local ones his
        // endpoint's chain knows the one that is.
        let asked = icmpv6(SOLICITATION);
        let locally: Vec<Match> = asked.iter().cloned().chain([Match::Net(End::Source, LINK_LOCAL)]).collect();
        let foreign = locally.iter().cloned().chain([Match::Accepted(false)]).collect();
        entries.push(judged(locally, "finding the next hop"));
        entries.push(from(foreign, Target::Drop, "a foreign link-local address"));
        // What a neighbour claims counts on its own link only, for addresses that were looked for, so it harms nobody else.
        let found = [asked, icmpv6(ADVERTISEMENT)];
        entries.extend(found.map(|kind| from(kind, Target::Accept, "finding the next hop")));
    }
    entries.extend([
        from(vec![Match::Tracked(Tracked::Invalid)], Target::Drop, "part of no connection"),
        from(vec![Match::Tracked(Tracked::Established)], Target::Accept, "of an allowed connection"),
    ]);
    let last = match settings.to_host {
        ToHost::Drop => {
            entries.push(judged(vec![Match::Tracked(Tracked::Related)], "about a connection"));
            entries.extend(open(family, &settings.open).map(|(matches, item)| judged(matches, &open_words(item))));
            entries.push(from(vec![Match::Accepted(true)], Target::Accept, "allowed to the sender"));
            entries.push(from(Vec::new(), Target::Drop, "containers do not reach their host"));
            return entries;
        }
        ToHost::Return => Target::Return,
        ToHost::Accept => Target::Accept,
    };
    let own = OWN_PORTS.map(|port| Ports { first: port, last: port }).to_vec();
    let own = vec![Match::Protocol(Protocol::TCP), Match::Ports(End::Destination, own)];
    entries.extend([
        from(own, Target::Drop, "what runs this host is not for containers"),
        judged(Vec::new(), "what the sender may send"),
        from(vec![Match::Accepted(false)], Target::Drop, "not allowed, or unknown interface"),
        from(Vec::new(), last, "DefaultEndpointToHostAction"),
    ]);
    entries
}

/// What of the host is open to containers, as matches of a family.
fn open(family: Family, open: &[Open]) -> impl Iterator<Item = (Vec<Match>, Open)> {
    let other = if family == Family::V4 { Protocol::ICMPV6 } else { Protocol::ICMP };
    open.iter().filter(move |open| open.protocol != other).map(|open| {
        let ports = open.ports.map(|ports| Match::Ports(End::Destination, vec![ports]));
        ([Match::Protocol(open.protocol)].into_iter().chain(ports).collect(), *open)
    })
}

/// The words of the entry that opens something of the host.
fn open_words(item: Open) -> String {
    format!("{OPEN_WORDS}{item}")
}

const OPEN_WORDS: &str = "EndpointToHostPorts ";

/// What of the host entries say to be open, which stand in the kernel. Whether they are what they say is for the caller
/// to see, by making the chain of it and comparing.
pub(crate) fn said_open<'s>(specs: impl Iterator<Item = &'s str>) -> Vec<Open> {
    let items = specs.filter_map(|spec| words_of(spec)?.strip_prefix(OPEN_WORDS)?.parse().ok());
    items.collect()
}

/// A chain as it is with another action in place of dropping.
pub(crate) fn overridden(mut chain: Chain, action: DropAction) -> Chain {
    if action == DropAction::default() {
        return chain;
    }
    let entries = chain.entries.into_iter().flat_map(|mut entry| {
        if entry.target != Target::Drop {
            return vec![entry];
        }
        let matches = entry.matches.iter().cloned().chain([Match::NotTooOften]).collect();
        let line = Entry::new(matches, Target::Log(LogPrefix::new("calico-drop")), entry.words.clone());
        if action.accept {
            entry.words = format!("!SECURITY DISABLED! {}", entry.words);
            entry.target = Target::Goto(accept());
        }
        action.log.then_some(line).into_iter().chain([entry]).collect()
    });
    chain.entries = entries.collect();
    chain
}

/// Whether a chain is one of a profile's.
pub(crate) fn is_profile(name: &ChainName) -> bool {
    ["pi", "po"].iter().any(|kind| is_of_kind(name, kind))
}

/// Whether a chain decides which flows may begin: those of profiles and endpoints, and that of packets to the host.
pub(crate) fn decides(name: &ChainName) -> bool {
    is_profile(name) || ["fw", "tw"].iter().any(|kind| is_of_kind(name, kind)) || *name == ChainName::fixed("INPUT")
}

fn is_of_kind(name: &ChainName, kind: &str) -> bool {
    let rest = name.as_str().strip_prefix(CHAIN_PREFIX).and_then(|rest| rest.strip_prefix(kind));
    rest.is_some_and(|rest| rest.starts_with('-'))
}

/// What follows `cali` in an interface's name. `None`: it is no interface of ours.
pub(crate) fn suffix(interface: &IfName) -> Option<&str> {
    interface.as_str().strip_prefix(INTERFACE_PREFIX).filter(|suffix| !suffix.is_empty())
}

/// One chain of the dispatch tree: on to the chains of longer prefixes, and to the endpoints that end here.
pub(crate) fn dispatch(way: Way, prefix: &str, deeper: &BTreeSet<String>, leaves: &BTreeSet<String>) -> Chain {
    let mut entries = Vec::with_capacity(deeper.len() + leaves.len());
    for longer in deeper {
        let interface = Interface::StartsWith(format!("{INTERFACE_PREFIX}{longer}"));
        entries.push(Entry::new(vec![way.on(interface)], Target::Goto(way.dispatch_chain(longer)), ""));
    }
    for leaf in leaves {
        // Every suffix was taken from an interface's name.
        let Ok(interface) = format!("{INTERFACE_PREFIX}{leaf}").parse() else { continue };
        let target = Target::Goto(way.endpoint_chain(leaf));
        entries.push(Entry::new(vec![way.on(Interface::Exactly(interface))], target, ""));
    }
    Chain::unordered(way.dispatch_chain(prefix), entries)
}

/// The two chains of an endpoint. `unread_tags`: a profile of it whose tags cannot be read, for which nothing passes by any of
/// them.
pub(crate) fn endpoint(
    family: Family,
    key: &EndpointKey,
    endpoint: &Endpoint,
    suffix: &str,
    unread_tags: Option<&ProfileName>,
) -> [Chain; 2] {
    let id = &key.endpoint;
    let profiles = if unread_tags.is_some() { &[][..] } else { &endpoint.profiles };
    let last = unread_tags.map_or_else(
        || format!("no profile of {id} allows it"),
        |profile| format!("closed: the tags of {id} cannot be read in profile {profile}"),
    );
    let addresses: Vec<IpAddr> =
        endpoint.addresses.iter().copied().filter(|address| Family::of(*address) == family).collect();
    Way::BOTH.map(|way| {
        let mut entries = Vec::new();
        if let (Way::From, Some(mac)) = (way, endpoint.mac) {
            entries.push(Entry::new(vec![Match::MacIsNot(mac)], Target::Drop, format!("not the MAC of {id}")));
        }
        if let (Way::From, Family::V6, Some(mac)) = (way, family, endpoint.mac) {
            let own = Match::Net(End::Source, IpAddr::V6(mac.link_local()).into());
            let asked = icmpv6(SOLICITATION).into_iter().chain([own]).collect();
            entries.push(Entry::new(asked, Target::Goto(allow()), "finding the next hop"));
        }
        if way == Way::From {
            let related = || Match::Tracked(Tracked::Related);
            let others = [related()].into_iter().chain(addresses.iter().copied().map(Match::NoEnd)).collect();
            entries.push(Entry::new(others, Target::Drop, "about a connection of others"));
            entries.push(Entry::new(vec![related()], Target::Goto(allow()), format!("about a connection of {id}")));
        }
        for profile in profiles {
            let jump = || Target::Jump(way.profile_chain(profile));
            match way {
                // Only what bears one of the endpoint's own addresses comes to a profile at all.
                Way::From => entries.extend(addresses.iter().map(|address| {
                    Entry::new(vec![Match::Net(End::Source, (*address).into())], jump(), format!("profile {profile}"))
                })),
                Way::To => entries.push(Entry::new(Vec::new(), jump(), format!("profile {profile}"))),
            }
            let words = format!("accepted by profile {profile}");
            entries.push(Entry::new(vec![Match::Accepted(true)], Target::Return, words));
        }
        entries.push(Entry::new(Vec::new(), Target::Drop, last.clone()));
        Chain::ordered(way.endpoint_chain(suffix), entries)
    })
}

/// A chain that lets nothing through, and says why.
pub(crate) fn closed(name: ChainName, why: &str) -> Chain {
    Chain::ordered(name, vec![Entry::new(Vec::new(), Target::Drop, format!("closed: {why}"))])
}

/// The chain of a profile for one way: the first rule that matches decides; what matches none comes back.
pub(crate) fn profile(family: Family, way: Way, name: &ProfileName, rules: &[Rule]) -> Chain {
    let allow = allow();
    let entries = rules.iter().flat_map(|rule| rules::entries(family, rule, &allow)).collect();
    Chain::ordered(way.profile_chain(name), entries)
}
