//! Everything that one host's kernel should hold, as a function of the snapshot.
//!
//! The value is carried from one snapshot to the next: [`Desired::update`] is told which records may differ, compares
//! those with the ones that it was made from, and renders again only what they touch; so one change costs what it
//! touches, whatever the number of endpoints here and elsewhere. From an empty value the same function makes the whole,
//! so there is one way to compute and no second one to disagree with it; that the result does not depend on the way is a
//! property test. A pure function over the whole snapshot would be simpler and was rejected for its price at every change.
//!
//! Invariant: what cannot be read or is ambiguous ends closed, with a fault that names it.

use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

use crate::model::endpoint::{Endpoint, Remote};
use crate::model::key::{EndpointKey, Key};
use crate::model::name::{EndpointId, HostName, Orchestrator, ProfileName, TagName};
use crate::model::pool::{Family, Pool};
use crate::model::profile::Rules;
use crate::model::snapshot::{News, Record, Remotes, Snapshot};

use super::chain::{Chain, ChainName, ChainText};
use super::diff::{self, ChainStep, SeenTable, Table};
use super::filter::{self, ToHost, Way};
use super::nat;
use super::raw;
use super::routes::{Route, Routes};
use super::rules;
use super::sets::{Extent, SetName, Sets};
use super::settings::Settings;

mod flows;
mod members;
mod tree;

use members::Members;
use tree::Tree;

/// What the last update touched: everything else in the kernel is still as it should be.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Changes {
    pub(crate) filter: BTreeSet<ChainName>,
    pub(crate) nat: bool,
    pub(crate) sets: BTreeMap<SetName, Extent>,
    pub(crate) routes: BTreeSet<IpAddr>,
    /// Addresses that were routed to an endpoint of this host and are not any more, or to another.
    pub(crate) left: BTreeSet<IpAddr>,
    /// Endpoints of this host.
    pub(crate) endpoints: BTreeSet<EndpointKey>,
}

impl Changes {
    fn member(&mut self, set: SetName, member: IpNet) {
        match self.sets.entry(set).or_insert_with(|| Extent::Members(BTreeSet::new())) {
            Extent::Whole => {}
            Extent::Members(members) => {
                members.insert(member);
            }
        }
    }

    /// Whether more was touched than members of sets.
    pub(crate) fn is_pressing(&self) -> bool {
        let sets = self.sets.values().any(|extent| *extent == Extent::Whole);
        sets || self.nat || !(self.filter.is_empty() && self.routes.is_empty() && self.endpoints.is_empty())
    }

    /// Adds what another update touched.
    pub(crate) fn merge(&mut self, more: Changes) {
        self.filter.extend(more.filter);
        self.routes.extend(more.routes);
        self.left.extend(more.left);
        self.endpoints.extend(more.endpoints);
        self.nat |= more.nat;
        for (set, extent) in more.sets {
            match extent {
                Extent::Members(members) => members.into_iter().for_each(|one| self.member(set.clone(), one)),
                Extent::Whole => {
                    self.sets.insert(set, Extent::Whole);
                }
            }
        }
    }
}

/// An endpoint of this host that has its interface to itself. It is programmed in the families that it is of.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Placed {
    key: EndpointKey,
    record: Arc<Endpoint>,
}

/// The records that a profile's chains were made from.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Profile {
    rules: Option<Record<Rules>>,
    /// Why the tags cannot be used.
    tags: Result<(), String>,
    /// The tags that its rules speak of.
    speaks_of: BTreeSet<TagName>,
}

/// See the module.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Desired {
    host: HostName,
    family: Family,
    pub(crate) filter: Table,
    pub(crate) nat: Table,
    pub(crate) raw: Table,
    pub(crate) sets: Sets,
    pub(crate) routes: Routes,
    /// Objects that are closed or left out, and why.
    pub(crate) faults: BTreeMap<String, String>,
    /// The records that were taken in.
    endpoints: BTreeMap<EndpointKey, Record<Arc<Endpoint>>>,
    /// Those of other hosts, shared with the snapshot.
    remote: Remotes,
    pools: Vec<Pool>,
    settings: Settings,
    members: Members,
    /// The sets of tags that have more members than a set may have.
    overfull: BTreeSet<SetName>,
    /// The endpoints of this host that name an interface, by what follows `cali` in it.
    claimants: BTreeMap<String, BTreeSet<EndpointKey>>,
    placed: BTreeMap<String, Placed>,
    tree: Tree,
    /// The interfaces that an address is routed to; the first one has it.
    routed: BTreeMap<IpAddr, BTreeSet<String>>,
    /// How many placed endpoints have a profile.
    uses: BTreeMap<ProfileName, u32>,
    profiles: BTreeMap<ProfileName, Profile>,
}

/// The records that are to be compared.
#[derive(Default)]
struct Differing {
    endpoints: BTreeSet<EndpointKey>,
    /// By their paths.
    remote: Vec<Arc<str>>,
    /// Profiles whose tags or rules are.
    profiles: BTreeSet<ProfileName>,
}

/// The name under which the fault of an endpoint is kept: its bare id, so that who waits for it finds it.
pub(crate) fn endpoint_object(endpoint: &EndpointId) -> String {
    endpoint.to_string()
}

/// What must stand in the filter table whatever the datastore says: the base chains, the jumps to them, and an empty
/// dispatch, which drops all.
pub(crate) fn base_table(family: Family, settings: &Settings) -> Table {
    let mut chains = filter::base(family, settings);
    chains.extend(Way::BOTH.map(|way| Tree::default().chain(way, "")));
    let jumps = filter::jumps().into_iter().map(|(kernel, chain, entry)| (kernel, entry.render(&chain)));
    Table {
        chains: chains.into_iter().map(|chain| (chain.name.clone(), text(chain, settings))).collect(),
        jumps: jumps.collect(),
    }
}

fn text(chain: Chain, settings: &Settings) -> Arc<ChainText> {
    Arc::new(filter::overridden(chain, settings.drop).render())
}

/// The steps in the filter table that must be carried out before the datastore is known. What stands there from an earlier run is kept:
/// the dispatch with all that hangs on it, and the chain of packets to the host in any of its forms.
pub(crate) fn first_steps(family: Family, seen: &SeenTable) -> Vec<ChainStep> {
    let forms = [ToHost::Drop, ToHost::Return, ToHost::Accept]
        .map(|to_host| base_table(family, &Settings { to_host, ..Settings::default() }));
    let is_kept = |name: &ChainName| {
        let dispatch = Way::BOTH.iter().any(|way| *name == way.dispatch_chain(""));
        let known = || forms.iter().any(|form| diff::holds(form, seen, name));
        seen.chains.contains_key(name) && (dispatch || known())
    };
    let mut steps = diff::steps(&forms[0], seen, None);
    steps.retain(|step| match step {
        ChainStep::Write(name, _) => !is_kept(name),
        ChainStep::Jump { .. } => true,
        ChainStep::Append(..) | ChainStep::Delete(..) | ChainStep::Remove(_) => false,
    });
    steps
}

/// Answers whether it is the first.
fn count<K: Ord + Clone>(counts: &mut BTreeMap<K, u32>, key: &K) -> bool {
    let number = counts.entry(key.clone()).or_default();
    *number += 1;
    *number == 1
}

/// Answers whether it was the last.
fn discount<K: Ord>(counts: &mut BTreeMap<K, u32>, key: &K) -> bool {
    let Some(number) = counts.get_mut(key) else { return false };
    *number -= 1;
    let gone = *number == 0;
    if gone {
        counts.remove(key);
    }
    gone
}

impl Desired {
    /// What should be before anything is known of the datastore: the base chains and their jumps.
    pub(crate) fn new(host: HostName, family: Family) -> Self {
        Desired::with(host, family, Settings::default())
    }

    fn with(host: HostName, family: Family, settings: Settings) -> Self {
        let mut desired = Desired {
            host,
            family,
            filter: Table::default(),
            nat: Table::default(),
            raw: raw::desired_raw(&BTreeSet::new()),
            sets: Sets::new(),
            routes: Routes::new(),
            faults: BTreeMap::new(),
            endpoints: BTreeMap::new(),
            remote: Remotes::new(),
            pools: Vec::new(),
            members: Members::new(family, settings.set_most),
            overfull: BTreeSet::new(),
            settings,
            claimants: BTreeMap::new(),
            placed: BTreeMap::new(),
            tree: Tree::default(),
            routed: BTreeMap::new(),
            uses: BTreeMap::new(),
            profiles: BTreeMap::new(),
        };
        desired.filter = base_table(family, &desired.settings);
        desired
    }

    /// The same, on a host with these services of its own.
    pub(crate) fn with_services(mut self, services: &BTreeSet<u16>) -> Self {
        self.raw = raw::desired_raw(services);
        self
    }

    /// The revision and the record of an endpoint of this host; `None` if it is not programmed in any family.
    pub(crate) fn endpoint(&self, key: &EndpointKey) -> Option<(i64, &Endpoint)> {
        let record = self.endpoints.get(key)?;
        let endpoint = record.readable()?;
        let placed = self.placed.get(filter::suffix(&endpoint.interface)?)?;
        (placed.key == *key).then_some((record.revision, endpoint))
    }

    /// The endpoint that an interface belongs to.
    pub(crate) fn owner(&self, interface: &str) -> Option<&EndpointKey> {
        let suffix = interface.strip_prefix(crate::model::name::INTERFACE_PREFIX)?;
        self.placed.get(suffix).map(|placed| &placed.key)
    }

    /// Whether a route that nobody wants may stay: that of one of Docker's containers on its own interface. Who wires the
    /// container makes it before the record says `active`, and it goes with the interface.
    pub(crate) fn may_stay(&self, route: &Route) -> bool {
        let address = route.net.addr();
        route.interface.as_ref().is_some_and(|interface| {
            let placed = filter::suffix(interface).and_then(|suffix| self.placed.get(suffix));
            let its = placed.is_some_and(|placed| {
                placed.key.orchestrator == Orchestrator::docker() && placed.record.addresses.contains(&address)
            });
            its && *route == Route::to(address, interface.clone())
        })
    }

    /// The endpoints of this host that are programmed, in this family or the other.
    pub(crate) fn placed(&self) -> impl Iterator<Item = (&EndpointKey, &Endpoint)> {
        self.placed.values().map(|placed| (&placed.key, &*placed.record))
    }

    /// Takes a snapshot in, of which all that is not among the news is as it was when the last one was taken in.
    pub(crate) fn update(&mut self, snapshot: &Snapshot, news: &News) -> Changes {
        let mut changes = Changes::default();
        let anew = news.any(|key| matches!(key, Key::Config(_) | Key::HostConfig(..)))
            && self.update_settings(snapshot, &mut changes);
        let news = if anew { &News::All } else { news };
        let mut differing = self.differing(snapshot, news);
        for profile in &differing.profiles {
            let tags = snapshot.tags.get(profile).and_then(Record::readable);
            let tags = tags.map(|tags| tags.iter().cloned().collect()).unwrap_or_default();
            self.members.retag(profile, tags, &mut self.sets, &mut changes);
        }
        self.update_remote(snapshot, news, std::mem::take(&mut differing.remote), &mut changes);
        let touched = self.update_endpoints(snapshot, &differing.endpoints, &mut changes);
        self.place(&touched, &mut differing.profiles, &mut changes);
        self.update_profiles(snapshot, differing.profiles, &mut changes);
        self.close_overfull(snapshot, &mut changes);
        self.update_nat(snapshot, &mut changes);
        changes
    }

    fn differing(&self, snapshot: &Snapshot, news: &News) -> Differing {
        let mut differing = Differing::default();
        match news {
            News::All => {
                differing.endpoints = self.endpoints.keys().chain(snapshot.endpoints.keys()).cloned().collect();
                differing.remote = differing_keys(&self.remote, &snapshot.remote);
                let known = self.profiles.keys().chain(self.members.profiles());
                let there = snapshot.rules.keys().chain(snapshot.tags.keys());
                differing.profiles = known.chain(there).cloned().collect();
            }
            News::Of(keys) => {
                for key in keys {
                    match key {
                        Key::Endpoint(key) => {
                            differing.endpoints.insert(key.clone());
                            let path = Key::Endpoint(key.clone()).path();
                            let path = path.as_str();
                            let remote =
                                snapshot.remote.get_key_value(path).or_else(|| self.remote.get_key_value(path));
                            differing.remote.extend(remote.map(|(path, _)| Arc::clone(path)));
                        }
                        Key::ProfileTags(profile) | Key::ProfileRules(profile) => {
                            differing.profiles.insert(profile.clone());
                        }
                        _ => {}
                    }
                }
            }
        }
        differing
    }

    fn put_chain(&mut self, chain: Chain, changes: &mut Changes) {
        changes.filter.insert(chain.name.clone());
        let name = chain.name.clone();
        self.filter.chains.insert(name, text(chain, &self.settings));
    }

    fn remove_chain(&mut self, name: ChainName, changes: &mut Changes) {
        self.filter.chains.remove(&name);
        changes.filter.insert(name);
    }

    /// Takes in what other hosts' endpoints bring to tags.
    fn update_remote(&mut self, snapshot: &Snapshot, news: &News, differing: Vec<Arc<str>>, changes: &mut Changes) {
        for key in differing {
            let new = snapshot.remote.get(&key);
            let old = match new {
                Some(record) => self.remote.insert(key, Arc::clone(record)),
                None => self.remote.remove(&key),
            };
            let old = old.as_ref().and_then(|record| record.readable());
            self.rebring(old, new.and_then(|record| record.readable()), changes);
        }
        if *news == News::All {
            // Those that are equal too, so that they are shared with this snapshot and the last one's are let go.
            self.remote.clone_from(&snapshot.remote);
        }
    }

    /// Compares records of endpoints; answers the interfaces of this host that are touched.
    fn update_endpoints(
        &mut self,
        snapshot: &Snapshot,
        differing: &BTreeSet<EndpointKey>,
        changes: &mut Changes,
    ) -> BTreeSet<String> {
        let mut touched = BTreeSet::new();
        for key in differing {
            let new = snapshot.endpoints.get(key);
            let same = match (self.endpoints.get(key), new) {
                (None, None) => true,
                (Some(old), Some(new)) => old.revision == new.revision && old.value.as_deref() == new.value.as_ref(),
                _ => false,
            };
            if same {
                continue;
            }
            let new = new.map(|record| Record { revision: record.revision, value: record.value.clone().map(Arc::new) });
            let old = match &new {
                Some(record) => self.endpoints.insert(key.clone(), record.clone()),
                None => self.endpoints.remove(key),
            };
            let shown = |record: &Option<Record<Arc<Endpoint>>>| {
                record.as_ref().and_then(Record::readable).map(|endpoint| Remote::of(endpoint))
            };
            self.rebring(shown(&old).as_ref(), shown(&new).as_ref(), changes);
            if key.host == self.host {
                self.claim(key, old.as_ref(), new.as_ref(), &mut touched);
                changes.endpoints.insert(key.clone());
            }
        }
        touched
    }

    /// Brings to tags what an endpoint has now instead of what it had.
    fn rebring(&mut self, old: Option<&Remote>, new: Option<&Remote>, changes: &mut Changes) {
        fn brings(one: Option<&Remote>) -> Option<(&[IpAddr], &[ProfileName])> {
            one.map(|one| (&*one.addresses, &*one.profiles))
        }
        if brings(old) == brings(new) {
            return;
        }
        if let Some(old) = old {
            self.members.take(old, &mut self.sets, changes);
        }
        if let Some(new) = new {
            self.members.bring(new, &mut self.sets, changes);
        }
    }

    /// Notes which endpoint names which interface.
    fn claim(
        &mut self,
        key: &EndpointKey,
        old: Option<&Record<Arc<Endpoint>>>,
        new: Option<&Record<Arc<Endpoint>>>,
        touched: &mut BTreeSet<String>,
    ) {
        self.faults.remove(&endpoint_object(&key.endpoint));
        if let Some(suffix) = old.and_then(Record::readable).and_then(|endpoint| filter::suffix(&endpoint.interface)) {
            if let Some(keys) = self.claimants.get_mut(suffix) {
                keys.remove(key);
                if keys.is_empty() {
                    self.claimants.remove(suffix);
                }
            }
            touched.insert(suffix.to_owned());
        }
        match new.map(|record| &record.value) {
            None => {}
            Some(Err(why)) => {
                self.fault(&key.endpoint, format!("its record cannot be read, so it is closed: {why}"));
            }
            Some(Ok(endpoint)) => {
                if let Some(suffix) = filter::suffix(&endpoint.interface) {
                    self.claimants.entry(suffix.to_owned()).or_default().insert(key.clone());
                    touched.insert(suffix.to_owned());
                } else {
                    let name = &endpoint.interface;
                    let why =
                        format!("its interface {name} is not one of ours: it must be cali and what tells it apart");
                    self.fault(&key.endpoint, why);
                }
            }
        }
    }

    fn fault(&mut self, endpoint: &EndpointId, why: String) {
        self.faults.insert(endpoint_object(endpoint), why);
    }

    /// Programs the endpoints of touched interfaces: chains, dispatch and routes. Adds the profiles whose use begins or ends.
    fn place(&mut self, touched: &BTreeSet<String>, used: &mut BTreeSet<ProfileName>, changes: &mut Changes) {
        let mut grown = BTreeSet::new();
        let mut addresses = BTreeSet::new();
        for suffix in touched {
            let new = self.winner(suffix, changes);
            if self.placed.get(suffix) == new.as_ref() {
                continue;
            }
            let old = self.placed.remove(suffix).filter(|old| old.record.is_of(self.family));
            let programs = new.as_ref().filter(|new| new.record.is_of(self.family));
            if let Some(old) = old {
                let ended = old.record.profiles.iter().filter(|profile| discount(&mut self.uses, profile));
                used.extend(ended.cloned());
                for address in &old.record.addresses {
                    if let Some(interfaces) = self.routed.get_mut(address) {
                        interfaces.remove(suffix);
                    }
                    addresses.insert(*address);
                }
                if programs.is_none() {
                    for way in Way::BOTH {
                        self.remove_chain(way.endpoint_chain(suffix), changes);
                    }
                    self.tree.remove(suffix, &mut grown);
                }
            } else if programs.is_some() {
                self.tree.insert(suffix, &mut grown);
            }
            if let Some(new) = programs {
                let begun = new.record.profiles.iter().filter(|profile| count(&mut self.uses, profile));
                used.extend(begun.cloned());
                self.put_endpoint(suffix, new, &mut addresses, changes);
            }
            self.placed.extend(new.map(|new| (suffix.clone(), new)));
        }
        self.put_dispatch(&grown, changes);
        self.put_routes(&addresses, changes);
    }

    fn put_endpoint(&mut self, suffix: &str, new: &Placed, addresses: &mut BTreeSet<IpAddr>, changes: &mut Changes) {
        for chain in filter::endpoint(self.family, &new.key, &new.record, suffix) {
            let name = chain.name.clone();
            let text = text(chain, &self.settings);
            // A flip between active and inactive changes no chain, and then none is looked at.
            if self.filter.chains.get(&name) != Some(&text) {
                self.filter.chains.insert(name.clone(), text);
                changes.filter.insert(name);
            }
        }
        let own = new.record.addresses.iter().filter(|address| Family::of(**address) == self.family);
        for address in own.filter(|_| new.record.is_active()) {
            self.routed.entry(*address).or_default().insert(suffix.to_owned());
            addresses.insert(*address);
        }
    }

    fn put_dispatch(&mut self, grown: &BTreeSet<String>, changes: &mut Changes) {
        for prefix in grown {
            for way in Way::BOTH {
                if prefix.is_empty() || self.tree.has(prefix) {
                    self.put_chain(self.tree.chain(way, prefix), changes);
                } else {
                    self.remove_chain(way.dispatch_chain(prefix), changes);
                }
            }
        }
    }

    /// The endpoint that an interface belongs to. Of several that name it, the one whose id it is made from; the others,
    /// or all if there is no such one, are closed.
    fn winner(&mut self, suffix: &str, changes: &mut Changes) -> Option<Placed> {
        let keys: Vec<EndpointKey> = self.claimants.get(suffix).into_iter().flatten().cloned().collect();
        let record = |key: &EndpointKey| self.endpoints.get(key).and_then(Record::readable);
        let winner = match keys.as_slice() {
            [] => return None,
            [one] => Some(one.clone()),
            several => {
                let mut rightful = several.iter().filter(|key| {
                    record(key).is_some_and(|endpoint| key.endpoint.interface().as_ref() == Some(&endpoint.interface))
                });
                rightful.next().filter(|_| rightful.next().is_none()).cloned()
            }
        };
        let placed =
            winner.as_ref().and_then(|key| Some(Placed { key: key.clone(), record: Arc::clone(record(key)?) }));
        for key in &keys {
            if Some(key) == winner.as_ref() {
                self.faults.remove(&endpoint_object(&key.endpoint));
            } else {
                let others: Vec<&str> =
                    keys.iter().filter(|other| *other != key).map(|other| other.endpoint.as_str()).collect();
                let why = format!("its interface cali{suffix} is named by endpoint {} too", others.join(", "));
                self.fault(&key.endpoint, why);
            }
            changes.endpoints.insert(key.clone());
        }
        placed
    }

    fn put_routes(&mut self, addresses: &BTreeSet<IpAddr>, changes: &mut Changes) {
        for address in addresses {
            let interfaces = self.routed.get(address).cloned().unwrap_or_default();
            if interfaces.is_empty() {
                self.routed.remove(address);
            }
            let name =
                interfaces.first().and_then(|suffix| self.placed.get(suffix)).map(|p| p.record.interface.clone());
            let object = format!("route to {address}");
            match &name {
                Some(name) if interfaces.len() > 1 => {
                    let all: Vec<&str> = interfaces.iter().map(String::as_str).collect();
                    let why =
                        format!("active endpoints behind cali{} have it; {name} has the route", all.join(", cali"));
                    self.faults.insert(object, why);
                }
                _ => {
                    self.faults.remove(&object);
                }
            }
            let old = self.routes.get(address).cloned();
            if old != name {
                changes.routes.insert(*address);
                if old.is_some() {
                    changes.left.insert(*address);
                }
                let _ = match name {
                    Some(name) => self.routes.insert(*address, name),
                    None => self.routes.remove(address),
                };
            }
        }
    }

    /// Makes the chains of profiles that came into use or changed, and the sets of the tags that they speak of.
    fn update_profiles(&mut self, snapshot: &Snapshot, differing: BTreeSet<ProfileName>, changes: &mut Changes) {
        for name in differing {
            let old = self.profiles.get(&name);
            let is_used = self.uses.contains_key(&name);
            let same = match old {
                None => !is_used,
                Some(old) => {
                    let tags = tags_usable(snapshot.tags.get(&name));
                    is_used && old.rules.as_ref() == snapshot.rules.get(&name) && old.tags == tags
                }
            };
            if same {
                continue;
            }
            self.faults.remove(&format!("profile {name}"));
            let old = self.profiles.remove(&name);
            if is_used {
                self.put_profile(snapshot, &name, changes);
            } else {
                for way in Way::BOTH {
                    self.remove_chain(way.profile_chain(&name), changes);
                }
            }
            // Only now, so that the set of a tag that is still spoken of stays.
            for tag in old.iter().flat_map(|old| &old.speaks_of) {
                self.members.hush(tag, &mut self.sets, changes);
            }
        }
    }

    /// Closes the profiles that speak of a tag with more members than a set may have, and opens those that do no longer:
    /// the kernel's set would lack some, and a rule that denies by it would let them through.
    fn close_overfull(&mut self, snapshot: &Snapshot, changes: &mut Changes) {
        let is_overfull = |name: &SetName| {
            self.sets
                .get(name)
                .is_some_and(|set| u32::try_from(set.members.len()).is_ok_and(|size| size > set.kind.most))
        };
        let turned: BTreeSet<SetName> =
            changes.sets.keys().filter(|name| is_overfull(name) != self.overfull.contains(*name)).cloned().collect();
        if turned.is_empty() {
            return;
        }
        self.overfull = self.overfull.symmetric_difference(&turned).cloned().collect();
        let speaks =
            |profile: &Profile| profile.speaks_of.iter().any(|tag| turned.contains(&SetName::tag(self.family, tag)));
        let concerned: Vec<ProfileName> =
            self.profiles.iter().filter(|(_, profile)| speaks(profile)).map(|(name, _)| name.clone()).collect();
        for name in concerned {
            self.faults.remove(&format!("profile {name}"));
            let old = self.profiles.remove(&name);
            self.put_profile(snapshot, &name, changes);
            for tag in old.iter().flat_map(|old| &old.speaks_of) {
                self.members.hush(tag, &mut self.sets, changes);
            }
        }
    }

    /// Why a profile that speaks of these tags is closed for them.
    fn overfull_of(&self, speaks_of: &BTreeSet<TagName>) -> Option<String> {
        let tag = speaks_of.iter().find(|tag| self.overfull.contains(&SetName::tag(self.family, tag)))?;
        let most = self.settings.set_most;
        Some(format!("more addresses carry tag {tag}, which its rules speak of, than MaxIpsetSize allows, {most}"))
    }

    fn put_profile(&mut self, snapshot: &Snapshot, name: &ProfileName, changes: &mut Changes) {
        let rules = snapshot.rules.get(name);
        let usable = tags_usable(snapshot.tags.get(name));
        let readable = match rules.map(|record| &record.value) {
            None => Err("it has no record of rules".to_owned()),
            Some(Err(why)) => Err(format!("its rules cannot be read: {why}")),
            Some(Ok(rules)) => usable.clone().map(|()| rules),
        };
        let mut speaks_of = BTreeSet::new();
        if let Ok(rules) = readable {
            for list in [&rules.inbound, &rules.outbound] {
                speaks_of.extend(rules::tags_of(self.family, list).cloned());
            }
        }
        let readable = readable.and_then(|rules| self.overfull_of(&speaks_of).map_or(Ok(rules), Err));
        for way in Way::BOTH {
            let chain = match readable {
                Ok(rules) => {
                    let list = if way == Way::From { &rules.outbound } else { &rules.inbound };
                    filter::profile(self.family, way, name, list)
                }
                Err(ref why) => filter::closed(way.profile_chain(name), &format!("profile {name}: {why}")),
            };
            self.put_chain(chain, changes);
        }
        if let Err(why) = readable {
            self.faults.insert(format!("profile {name}"), format!("it is closed: {why}"));
        }
        for tag in &speaks_of {
            self.members.speak(tag, &mut self.sets, changes);
        }
        self.profiles.insert(name.clone(), Profile { rules: rules.cloned(), tags: usable, speaks_of });
    }

    /// Takes the settings in. Where one of them touches everything, all is made anew; answers whether that is so.
    fn update_settings(&mut self, snapshot: &Snapshot, changes: &mut Changes) -> bool {
        let settings = Settings::of(snapshot, &self.host);
        if (settings.drop, settings.set_most) != (self.settings.drop, self.settings.set_most) {
            let fresh = Desired::with(self.host.clone(), self.family, settings);
            let old = std::mem::replace(self, fresh);
            changes.filter.extend(old.filter.chains.into_keys().chain(self.filter.chains.keys().cloned()));
            changes.sets.extend(old.sets.into_keys().map(|name| (name, Extent::Whole)));
            changes.routes.extend(old.routes.into_keys());
            changes.endpoints.extend(old.endpoints.into_keys());
            changes.nat = true;
            self.faults.extend(self.settings.faults.clone());
            return true;
        }
        self.faults.retain(|object, _| !self.settings.faults.contains_key(object));
        self.faults.extend(settings.faults.clone());
        let before = std::mem::replace(&mut self.settings, settings);
        if (before.to_host, &before.open) != (self.settings.to_host, &self.settings.open) {
            for chain in filter::base(self.family, &self.settings) {
                self.put_chain(chain, changes);
            }
        }
        false
    }

    fn update_nat(&mut self, snapshot: &Snapshot, changes: &mut Changes) {
        if snapshot.pools_of(self.family).eq(&self.pools) {
            return;
        }
        self.pools = snapshot.pools_of(self.family).cloned().collect();
        self.nat = Table::default();
        changes.nat = true;
        for name in [SetName::pools(self.family), SetName::masquerade(self.family)] {
            self.sets.remove(&name);
            changes.sets.insert(name, Extent::Whole);
        }
        if let Some((chain, sets)) = nat::desired_nat(self.family, self.pools.iter()) {
            self.sets.extend(sets);
            let (kernel, name, entry) = nat::jump();
            self.nat.jumps.insert(kernel, entry.render(&name));
            self.nat.chains.insert(chain.name.clone(), Arc::new(chain.render()));
        }
    }
}

/// The keys under which two ordered maps differ. One walk through both, since most of both is equal.
fn differing_keys<K: Ord + Clone, V: PartialEq>(old: &BTreeMap<K, V>, new: &BTreeMap<K, V>) -> Vec<K> {
    let (mut old, mut new) = (old.iter().peekable(), new.iter().peekable());
    let mut keys = Vec::new();
    loop {
        let order = match (old.peek(), new.peek()) {
            (None, None) => return keys,
            (Some(_), None) => Ordering::Less,
            (None, Some(_)) => Ordering::Greater,
            (Some((left, _)), Some((right, _))) => left.cmp(right),
        };
        match order {
            Ordering::Less => keys.extend(old.next().map(|(key, _)| key.clone())),
            Ordering::Greater => keys.extend(new.next().map(|(key, _)| key.clone())),
            Ordering::Equal => {
                if let (Some((key, left)), Some((_, right))) = (old.next(), new.next())
                    && left != right
                {
                    keys.push(key.clone());
                }
            }
        }
    }
}

fn tags_usable(record: Option<&Record<Vec<TagName>>>) -> Result<(), String> {
    match record.map(|record| &record.value) {
        Some(Ok(_)) => Ok(()),
        Some(Err(why)) => Err(format!("its tags cannot be read: {why}")),
        None => Err("it has no record of tags".to_owned()),
    }
}

#[cfg(test)]
mod golden;
#[cfg(test)]
mod law;
#[cfg(test)]
pub(crate) mod tests;
