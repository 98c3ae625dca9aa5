//! IP sets: which there should be, and the steps from what is there to them.
//!
//! A set of a tag holds the addresses of all endpoints of all hosts that carry the tag, but exists only on hosts where a
//! rule speaks of it. Members are changed one by one in place, so a set is never empty for a moment; a set of the wrong
//! type is built beside and swapped.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::fmt::Write as _;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use crate::model::name::TagName;
use crate::model::pool::Family;

use super::short::shortened;

/// What sets of ours begin with, by family.
pub(crate) const SET_PREFIXES: [&str; 2] = ["calico4-", "calico6-"];

/// Source: `IPSET_MAXNAMELEN` (32 with the closing NUL), linux/netfilter/ipset/ip_set.h.
const SET_NAME_LONGEST: usize = 31;

/// The most members of a set, unless `MaxIpsetSize` says otherwise for those of tags (the original's default).
pub(crate) const MEMBERS_MOST: u32 = 1_048_576;

/// How many buckets a set has if nothing is said. Source: `IPSET_DEFAULT_HASHSIZE`, net/netfilter/ipset/ip_set_hash_gen.h.
const BUCKETS_DEFAULT: usize = 1024;

/// How many members a bucket is to have; the kernel takes twelve into one before it makes more (`AHASH_MAX_SIZE` there).
const MEMBERS_IN_BUCKET: usize = 2;

/// What the set is called that a set of the wrong type is rebuilt in. It holds nothing of a tag, whose sets are `…-t-…`.
const TEMPORARY: &str = "tmp";

fn prefix(family: Family) -> &'static str {
    match family {
        Family::V4 => SET_PREFIXES[0],
        Family::V6 => SET_PREFIXES[1],
    }
}

/// The name of a set of ours.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct SetName(String);

impl SetName {
    pub(crate) fn tag(family: Family, tag: &TagName) -> Self {
        let head = format!("{}t-", prefix(family));
        let tag = shortened(tag.as_str(), SET_NAME_LONGEST - head.len());
        SetName(format!("{head}{tag}"))
    }

    /// All pools.
    pub(crate) fn pools(family: Family) -> Self {
        SetName(format!("{}pools", prefix(family)))
    }

    /// The pools whose containers are masqueraded when they leave all pools.
    pub(crate) fn masquerade(family: Family) -> Self {
        SetName(format!("{}masq", prefix(family)))
    }

    fn temporary(&self) -> Self {
        SetName(format!("{}{TEMPORARY}", &self.0[..SET_PREFIXES[0].len()]))
    }

    /// A set that the kernel shows; `None` if it is not one of ours.
    pub(crate) fn seen(name: &str) -> Option<Self> {
        SET_PREFIXES.iter().any(|prefix| name.starts_with(prefix)).then(|| SetName(name.to_owned()))
    }

    /// The same of one family only.
    pub(crate) fn seen_of(family: Family, name: &str) -> Option<Self> {
        name.starts_with(prefix(family)).then(|| SetName(name.to_owned()))
    }

    #[cfg(test)]
    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for SetName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What a set holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Addresses,
    Nets,
}

/// The type of a set, as the kernel shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct SetType {
    /// `hash:ip`, …
    pub(crate) kind: String,
    /// `inet` or `inet6`.
    pub(crate) family: String,
    pub(crate) most: u32,
}

impl SetType {
    pub(crate) fn new(kind: Kind, family: Family, most: u32) -> Self {
        let kind = match kind {
            Kind::Addresses => "hash:ip",
            Kind::Nets => "hash:net",
        };
        let family = match family {
            Family::V4 => "inet",
            Family::V6 => "inet6",
        };
        SetType { kind: kind.to_owned(), family: family.to_owned(), most }
    }
}

/// A set with its members. An address stands as the net of one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct IpSet {
    pub(crate) kind: SetType,
    pub(crate) members: BTreeSet<IpNet>,
}

/// How much of a set may have changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Extent {
    Whole,
    /// These may have come or gone.
    Members(BTreeSet<IpNet>),
}

/// Sets by their names.
pub(crate) type Sets = BTreeMap<SetName, IpSet>;

/// A set of addresses, of one family.
pub(crate) fn addresses(family: Family, most: u32, members: impl Iterator<Item = IpAddr>) -> IpSet {
    let members = members.filter(|address| Family::of(*address) == family).map(IpNet::from).collect();
    IpSet { kind: SetType::new(Kind::Addresses, family, most), members }
}

/// A set of nets. The net of everything is no member of a `hash:net` (ipset(8): "prefix 0 is not accepted"), so its two
/// halves stand for it.
pub(crate) fn nets(family: Family, members: impl Iterator<Item = IpNet>) -> IpSet {
    let members = members.filter(|net| Family::of_net(*net) == family).flat_map(|net| match (net.prefix_len(), net) {
        (0, IpNet::V4(_)) => halves(
            Ipv4Net::new(Ipv4Addr::UNSPECIFIED, 1).map(IpNet::from),
            Ipv4Net::new(Ipv4Addr::new(128, 0, 0, 0), 1).map(IpNet::from),
        ),
        (0, IpNet::V6(_)) => halves(
            Ipv6Net::new(Ipv6Addr::UNSPECIFIED, 1).map(IpNet::from),
            Ipv6Net::new(Ipv6Addr::new(0x8000, 0, 0, 0, 0, 0, 0, 0), 1).map(IpNet::from),
        ),
        _ => vec![net],
    });
    IpSet { kind: SetType::new(Kind::Nets, family, MEMBERS_MOST), members: members.collect() }
}

fn halves<E>(low: Result<IpNet, E>, high: Result<IpNet, E>) -> Vec<IpNet> {
    low.into_iter().chain(high).collect()
}

/// One change of the kernel's sets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum SetStep {
    /// With room for so many members.
    Create(SetName, SetType, usize),
    /// In ascending order: a set of ten thousand is one step, and is taken in as a whole.
    Add(SetName, Vec<IpNet>),
    Remove(SetName, Vec<IpNet>),
    /// Exchanges the contents and types of two sets.
    Swap(SetName, SetName),
    Destroy(SetName),
}

impl SetStep {
    /// The set that the step is about.
    pub(crate) fn set(&self) -> &SetName {
        match self {
            SetStep::Create(set, ..) | SetStep::Add(set, _) | SetStep::Remove(set, _) | SetStep::Destroy(set) => set,
            SetStep::Swap(_, set) => set,
        }
    }
}

/// The steps of each set by itself, in their order: what is done to another one that is filled beside it, exchanged with it
/// and taken away is its own.
pub(crate) fn apart(steps: Vec<SetStep>) -> BTreeMap<SetName, Vec<SetStep>> {
    let mut each: BTreeMap<SetName, Vec<SetStep>> = BTreeMap::new();
    let mut beside = Vec::new();
    let mut exchanged: Option<(SetName, SetName)> = None;
    for step in steps {
        match &step {
            SetStep::Swap(other, name) => {
                let its = each.entry(name.clone()).or_default();
                its.append(&mut beside);
                exchanged = Some((other.clone(), name.clone()));
                its.push(step);
            }
            SetStep::Destroy(other) if exchanged.as_ref().is_some_and(|(last, _)| last == other) => {
                let name = exchanged.take().map_or_else(|| other.clone(), |(_, name)| name);
                each.entry(name).or_default().push(step);
            }
            _ if step.set().temporary() == *step.set() => beside.push(step),
            _ => each.entry(step.set().clone()).or_default().push(step),
        }
    }
    for step in beside {
        each.entry(step.set().clone()).or_default().push(step);
    }
    each
}

/// Parts steps into those that go before the chains which are written with them and those that go behind.
///
/// Chains and members that change at once may be of several changes of the datastore, of which each state was closed. Members
/// that come before the chains could open what the chains still say, and the other way round. So what cannot open goes
/// before, and what can goes behind: an address that comes to a set, unless chains deny by it (`shuts`), and one that goes from
/// a set by which they did or do deny (`shut_or_shuts`). All steps of a set that is made, exchanged or taken away go before, in
/// their order, and those of one of which the kernel has `refused` some: what chains say of it is closed then.
pub(crate) fn around_chains(
    steps: Vec<SetStep>,
    refused: &BTreeSet<SetName>,
    shuts: impl Fn(&SetName) -> bool,
    shut_or_shuts: impl Fn(&SetName) -> bool,
) -> (Vec<SetStep>, Vec<SetStep>) {
    let is_made = |step: &&SetStep| !matches!(step, SetStep::Add(..) | SetStep::Remove(..));
    let made: BTreeSet<SetName> = steps.iter().filter(is_made).map(|step| step.set().clone()).collect();
    let goes_whole = |name: &SetName| made.contains(name) || refused.contains(name) || name.temporary() == *name;
    steps.into_iter().partition(|step| match step {
        SetStep::Add(name, _) => goes_whole(name) || shuts(name),
        SetStep::Remove(name, _) => goes_whole(name) || !shut_or_shuts(name),
        SetStep::Create(..) | SetStep::Swap(..) | SetStep::Destroy(_) => true,
    })
}

impl IpSet {
    /// Whether it has more members than the kernel's set may have. No chain that is written speaks of it then, and it is left as
    /// it is.
    pub(crate) fn is_overfull(&self) -> bool {
        usize::try_from(self.kind.most).is_ok_and(|most| self.members.len() > most)
    }
}

/// The steps that make one wanted set true.
pub(crate) fn steps_for(name: &SetName, wanted: &IpSet, seen: Option<&IpSet>, steps: &mut Vec<SetStep>) {
    match seen {
        _ if wanted.is_overfull() => {}
        Some(seen) if seen.kind == wanted.kind => {
            let come = wanted.members.difference(&seen.members).copied().collect();
            let gone = seen.members.difference(&wanted.members).copied().collect();
            push_members(name, come, gone, steps);
        }
        // The kernel swaps only sets of one type and family (net/netfilter/ipset/ip_set_core.c, ip_set_swap).
        Some(seen) if (&seen.kind.kind, &seen.kind.family) != (&wanted.kind.kind, &wanted.kind.family) => {
            steps.push(SetStep::Destroy(name.clone()));
            steps_for(name, wanted, None, steps);
        }
        Some(_) => {
            let other = name.temporary();
            steps.push(SetStep::Create(other.clone(), wanted.kind.clone(), wanted.members.len()));
            push_members(&other, wanted.members.iter().copied().collect(), Vec::new(), steps);
            steps.push(SetStep::Swap(other.clone(), name.clone()));
            steps.push(SetStep::Destroy(other));
        }
        None => {
            steps.push(SetStep::Create(name.clone(), wanted.kind.clone(), wanted.members.len()));
            push_members(name, wanted.members.iter().copied().collect(), Vec::new(), steps);
        }
    }
}

fn push_members(name: &SetName, come: Vec<IpNet>, gone: Vec<IpNet>, steps: &mut Vec<SetStep>) {
    steps.extend((!come.is_empty()).then(|| SetStep::Add(name.clone(), come)));
    steps.extend((!gone.is_empty()).then(|| SetStep::Remove(name.clone(), gone)));
}

/// The steps that make one wanted set true where no more of it may have changed.
pub(crate) fn steps_within(
    name: &SetName,
    wanted: &IpSet,
    seen: Option<&IpSet>,
    extent: &Extent,
    steps: &mut Vec<SetStep>,
) {
    match (seen, extent) {
        (Some(seen), Extent::Members(members)) if seen.kind == wanted.kind && !wanted.is_overfull() => {
            let only_in = |one: &IpSet, other: &IpSet| {
                let is_told = |net: &&IpNet| one.members.contains(net) && !other.members.contains(net);
                members.iter().filter(is_told).copied().collect()
            };
            push_members(name, only_in(wanted, seen), only_in(seen, wanted), steps);
        }
        _ => steps_for(name, wanted, seen, steps),
    }
}

/// The steps that make all wanted sets true, without taking any away.
pub(crate) fn steps(wanted: &Sets, seen: &Sets) -> Vec<SetStep> {
    let mut steps = Vec::new();
    for name in seen.keys().filter(|name| name.temporary() == **name) {
        // Left by a node that died between two steps.
        steps.push(SetStep::Destroy(name.clone()));
    }
    for (name, set) in wanted {
        steps_for(name, set, seen.get(name), &mut steps);
    }
    steps
}

/// What is there once the steps are carried out.
pub(crate) fn carried_out(seen: &mut Sets, steps: &[SetStep]) {
    for step in steps {
        match step {
            SetStep::Create(name, kind, _) => {
                seen.insert(name.clone(), IpSet { kind: kind.clone(), members: BTreeSet::new() });
            }
            SetStep::Add(name, nets) => {
                if let Some(set) = seen.get_mut(name) {
                    // Built at once from what is in order, which a fresh set's members are all.
                    if set.members.is_empty() {
                        set.members = nets.iter().copied().collect();
                    } else {
                        set.members.extend(nets);
                    }
                }
            }
            SetStep::Remove(name, nets) => {
                if let Some(set) = seen.get_mut(name) {
                    for net in nets {
                        set.members.remove(net);
                    }
                }
            }
            SetStep::Swap(one, other) => {
                if let (Some(first), Some(second)) = (seen.remove(one), seen.remove(other)) {
                    seen.insert(one.clone(), second);
                    seen.insert(other.clone(), first);
                }
            }
            SetStep::Destroy(name) => {
                seen.remove(name);
            }
        }
    }
}

/// The steps that take away sets that are no longer wanted. Only once no chain speaks of them.
pub(crate) fn removals(wanted: &Sets, seen: &Sets) -> Vec<SetStep> {
    let stale = seen.keys().filter(|name| !wanted.contains_key(name));
    stale.cloned().map(SetStep::Destroy).collect()
}

/// The text that `ipset restore` reads.
pub(crate) fn render(steps: &[SetStep]) -> String {
    let mut text = String::new();
    for step in steps {
        let _ = match step {
            SetStep::Create(name, kind, members) => writeln!(
                text,
                "create {name} {} family {}{} maxelem {}",
                kind.kind,
                kind.family,
                room_for(*members),
                kind.most
            ),
            SetStep::Add(name, nets) => render_members(&mut text, &format!("add {name} "), nets),
            SetStep::Remove(name, nets) => render_members(&mut text, &format!("del {name} "), nets),
            SetStep::Swap(one, other) => writeln!(text, "swap {one} {other}"),
            SetStep::Destroy(name) => writeln!(text, "destroy {name}"),
        };
    }
    text
}

/// Says how many buckets a set is to have from the beginning, where the kernel's own number is too small. It would make a
/// larger table a few times while members come, and move all of them: half of the time that a set of 10,000 takes.
fn room_for(members: usize) -> String {
    let buckets = (members / MEMBERS_IN_BUCKET).next_power_of_two();
    if buckets > BUCKETS_DEFAULT { format!(" hashsize {buckets}") } else { String::new() }
}

fn render_members(text: &mut String, head: &str, nets: &[IpNet]) -> fmt::Result {
    for net in nets {
        text.push_str(head);
        if net.prefix_len() == net.max_prefix_len() {
            writeln!(text, "{}", net.addr())?;
        } else {
            writeln!(text, "{net}")?;
        }
    }
    Ok(())
}

/// Reads what `ipset save` writes, as far as it is ours and of a family.
pub(crate) fn parse(family: Family, text: &str) -> Sets {
    let mut sets = Sets::new();
    for line in text.lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        match words.as_slice() {
            ["create", name, kind, options @ ..] => {
                let Some(name) = SetName::seen_of(family, name) else { continue };
                let option = |key: &str| options.iter().skip_while(|word| **word != key).nth(1).copied();
                let kind = SetType {
                    kind: (*kind).to_owned(),
                    family: option("family").unwrap_or_default().to_owned(),
                    most: option("maxelem").and_then(|most| most.parse().ok()).unwrap_or_default(),
                };
                sets.insert(name, IpSet { kind, members: BTreeSet::new() });
            }
            ["add", name, member, ..] => {
                let Some(set) = SetName::seen_of(family, name).and_then(|name| sets.get_mut(&name)) else { continue };
                let net = member.parse::<IpNet>().ok().or_else(|| member.parse::<IpAddr>().ok().map(IpNet::from));
                match net {
                    Some(net) => {
                        set.members.insert(net);
                    }
                    // A member that no set of ours can hold: this is not our type, whatever its name, so rebuild it.
                    None => set.kind.most = 0,
                }
            }
            _ => {}
        }
    }
    sets
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(members: &[&str]) -> IpSet {
        addresses(Family::V4, MEMBERS_MOST, members.iter().map(|text| text.parse().unwrap()))
    }

    fn name(tag: &str) -> SetName {
        SetName::tag(Family::V4, &tag.parse().unwrap())
    }

    /// An address got a tag a moment after a rule that allowed the tag was taken away, and was let in until the chain was written.
    #[test]
    fn what_could_open_by_the_chains_that_stand_goes_behind_those_that_are_written_and_the_rest_before_them() {
        let net = || vec!["10.0.0.1/32".parse().unwrap()];
        let add = |tag: &str| SetStep::Add(name(tag), net());
        let remove = |tag: &str| SetStep::Remove(name(tag), net());
        let create = SetStep::Create(name("new"), SetType::new(Kind::Addresses, Family::V4, MEMBERS_MOST), 1);
        let steps = [
            vec![create.clone()],
            ["new", "allows", "denies", "denied"].map(add).to_vec(),
            ["allows", "denies", "denied"].map(remove).to_vec(),
        ]
        .concat();
        let shuts = |set: &SetName| *set == name("denies");
        let shut_or_shuts = |set: &SetName| shuts(set) || *set == name("denied");
        let (before, behind) = around_chains(steps, &BTreeSet::new(), shuts, shut_or_shuts);
        assert_eq!(before, [create, add("new"), add("denies"), remove("allows")]);
        assert_eq!(behind, [add("allows"), add("denied"), remove("denies"), remove("denied")]);
        let refused = BTreeSet::from([name("allows")]);
        assert_eq!(
            around_chains(vec![add("allows"), add("denied")], &refused, shuts, shut_or_shuts).1,
            [add("denied")]
        );

        // One that is exchanged with another, which was left by a try before, stays in one piece: it was made empty.
        let (wanted, mut seen) = (set(&["10.0.0.1"]), Sets::new());
        let other = IpSet { kind: SetType::new(Kind::Addresses, Family::V4, 8), members: BTreeSet::new() };
        for name in [name("a"), name("a").temporary()] {
            seen.insert(name, other.clone());
        }
        let exchange = super::steps(&Sets::from([(name("a"), wanted)]), &seen);
        assert!(exchange.iter().any(|step| matches!(step, SetStep::Swap(..))), "{exchange:?}");
        let parts = around_chains(exchange.clone(), &BTreeSet::new(), |_| false, |_| true);
        assert_eq!(parts, (exchange, Vec::new()));
    }

    #[test]
    fn only_the_difference_is_carried_out() {
        let wanted = Sets::from([(name("a"), set(&["10.0.0.1", "10.0.0.2"])), (name("b"), set(&["10.0.0.1"]))]);
        let seen = Sets::from([(name("a"), set(&["10.0.0.2", "10.0.0.3"])), (name("c"), set(&[]))]);
        let text = render(&steps(&wanted, &seen));
        assert_eq!(
            text,
            "add calico4-t-a 10.0.0.1\ndel calico4-t-a 10.0.0.3\ncreate calico4-t-b hash:ip family inet maxelem 1048576\nadd calico4-t-b 10.0.0.1\n"
        );
        assert_eq!(render(&removals(&wanted, &seen)), "destroy calico4-t-c\n");
    }

    /// All that was filled beside was taken for the last one's: the others failed by themselves.
    #[test]
    fn each_set_that_is_exchanged_is_made_by_itself_too() {
        let mut less = set(&["10.0.0.1"]);
        less.kind.most = 7;
        let all = |set: &IpSet| Sets::from(["a", "b"].map(|tag| (name(tag), set.clone())));
        let mut wanted = all(&set(&["10.0.0.1", "10.0.0.2"]));
        wanted.insert(name("c"), set(&[]));
        let mut seen = all(&less);
        seen.insert(name("a").temporary(), less);
        let each = apart(steps(&wanted, &seen));
        assert_eq!(each.keys().collect::<Vec<_>>(), [&name("a"), &name("b"), &name("c")]);
        for steps in each.values() {
            carried_out(&mut seen, steps);
        }
        assert_eq!(seen, wanted);
        assert_eq!(each[&name("b")].len(), 4, "{:?}", each[&name("b")]);
    }

    #[test]
    fn a_set_that_cannot_hold_all_is_left_alone() {
        let mut full = set(&["10.0.0.1", "10.0.0.2"]);
        full.kind.most = 1;
        let wanted = Sets::from([(name("a"), full.clone())]);
        let mut seen = Sets::from([(name("a"), set(&["10.0.0.9"]))]);
        assert_eq!(steps(&wanted, &Sets::new()), []);
        assert_eq!(steps(&wanted, &seen), []);
        seen.get_mut(&name("a")).unwrap().kind = full.kind.clone();
        let mut within = Vec::new();
        let news = Extent::Members(["10.0.0.1/32".parse().unwrap()].into());
        steps_within(&name("a"), &full, seen.get(&name("a")), &news, &mut within);
        assert_eq!(within, []);
    }

    #[test]
    fn a_set_of_the_wrong_size_is_built_beside_and_swapped() {
        let wanted = Sets::from([(name("a"), set(&["10.0.0.1"]))]);
        let seen = parse(
            Family::V4,
            "create calico4-t-a hash:ip family inet hashsize 1024 maxelem 65536\nadd calico4-t-a 10.0.0.9\n",
        );
        assert_eq!(
            render(&steps(&wanted, &seen)),
            "create calico4-tmp hash:ip family inet maxelem 1048576\nadd calico4-tmp 10.0.0.1\nswap calico4-tmp calico4-t-a\ndestroy calico4-tmp\n"
        );
    }

    #[test]
    fn a_set_of_many_is_made_with_room_for_them() {
        let created = |count: u32| {
            let members = (0..count).map(|number| IpAddr::from(Ipv4Addr::from(0x0a00_0000 + number)));
            let wanted = Sets::from([(name("a"), addresses(Family::V4, MEMBERS_MOST, members))]);
            render(&steps(&wanted, &Sets::new())).lines().next().unwrap().to_owned()
        };
        assert_eq!(created(2048), "create calico4-t-a hash:ip family inet maxelem 1048576");
        assert_eq!(created(2050), "create calico4-t-a hash:ip family inet hashsize 2048 maxelem 1048576");
        assert_eq!(created(10_000), "create calico4-t-a hash:ip family inet hashsize 8192 maxelem 1048576");
    }

    #[test]
    fn the_net_of_everything_is_its_two_halves() {
        let set = nets(Family::V4, ["0.0.0.0/0".parse().unwrap()].into_iter());
        let members: Vec<String> = set.members.iter().map(ToString::to_string).collect();
        assert_eq!(members, ["0.0.0.0/1", "128.0.0.0/1"]);
    }

    #[test]
    fn names_fit_and_strangers_are_not_ours() {
        assert!(name(&"t".repeat(200)).as_str().len() <= SET_NAME_LONGEST);
        assert!(parse(Family::V4, "create web hash:ip family inet maxelem 65536\nadd web 10.0.0.1\n").is_empty());
    }
}
