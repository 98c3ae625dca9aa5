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
use crate::model::name::{EndpointId, HostName, Orchestrator, ProfileName};
use crate::model::pool::{Family, Pool};
use crate::model::snapshot::{News, Record, Remotes, Snapshot};

use super::chain::{Chain, ChainName, ChainText};
use super::diff::{self, ChainStep, SeenTable, Table};
use super::filter::{self, Way};
use super::nat;
use super::raw;
use super::routes::{Route, Routes};
use super::sets::{Extent, SetName, Sets};
use super::settings::{Settings, ToHost};

mod flows;
mod members;
mod places;
mod profiles;
mod tree;

use members::Members;
use places::Placed;
use profiles::Profile;
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
    /// Profiles whose tags are there and cannot be read, in use or not.
    unread_tags: BTreeSet<ProfileName>,
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
/// the dispatch with all that hangs on it, and the chain of packets to the host in any of its forms, with what it opens.
pub(crate) fn first_steps(family: Family, seen: &SeenTable) -> Vec<ChainStep> {
    let closed = base_table(family, &Settings::default());
    let to_host = seen.chains.get(&ChainName::fixed("INPUT"));
    let open = filter::said_open(to_host.into_iter().flatten().map(|line| &*line.spec));
    let forms = [ToHost::Drop, ToHost::Return, ToHost::Accept]
        .map(|to_host| base_table(family, &Settings { to_host, open: open.clone(), ..Settings::default() }));
    let is_kept = |name: &ChainName| {
        let dispatch = Way::BOTH.iter().any(|way| *name == way.dispatch_chain(""));
        let known = || forms.iter().any(|form| diff::holds(form, seen, name));
        seen.chains.contains_key(name) && (dispatch || known())
    };
    let mut steps = diff::steps(&closed, seen, None);
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
            raw: raw::desired_raw(family, &BTreeSet::new()),
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
            unread_tags: BTreeSet::new(),
        };
        desired.filter = base_table(family, &desired.settings);
        desired
    }

    /// The same, on a host with these services of its own.
    pub(crate) fn with_services(mut self, services: &BTreeSet<u16>) -> Self {
        self.raw = raw::desired_raw(self.family, services);
        self
    }

    /// The revision and the record of an endpoint of this host; `None` if it is not programmed in any family.
    pub(crate) fn endpoint(&self, key: &EndpointKey) -> Option<(i64, &Endpoint)> {
        let record = self.endpoints.get(key)?;
        let endpoint = record.readable()?;
        let placed = self.placed.get(filter::suffix(&endpoint.interface)?)?;
        (placed.key == *key).then_some((record.revision, endpoint))
    }

    /// The profiles and endpoints that have chains of the filter table, as objects of faults.
    pub(crate) fn objects_of(&self, chains: &BTreeSet<&ChainName>) -> BTreeSet<String> {
        if chains.is_empty() {
            return BTreeSet::new();
        }
        let has = |chain: &dyn Fn(Way) -> ChainName| Way::BOTH.iter().any(|way| chains.contains(&chain(*way)));
        let profiles = self.profiles.keys().filter(|name| has(&|way| way.profile_chain(name)));
        let endpoints = self.placed.iter().filter(|(suffix, _)| has(&|way| way.endpoint_chain(suffix)));
        let endpoints = endpoints.map(|(_, placed)| endpoint_object(&placed.key.endpoint));
        profiles.map(|name| format!("profile {name}")).chain(endpoints).collect()
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
        let mut touched = self.update_tags(snapshot, &differing.profiles, &mut changes);
        self.update_remote(snapshot, news, std::mem::take(&mut differing.remote), &mut changes);
        touched.extend(self.update_endpoints(snapshot, &differing.endpoints, &mut changes));
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
                let known = self.profiles.keys().chain(self.members.profiles()).chain(&self.unread_tags);
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

    /// Takes in which tags profiles carry. Answers the interfaces of this host behind which it is not known any more, or
    /// known again, what the endpoint carries.
    fn update_tags(
        &mut self,
        snapshot: &Snapshot,
        differing: &BTreeSet<ProfileName>,
        changes: &mut Changes,
    ) -> BTreeSet<String> {
        let mut turned = BTreeSet::new();
        for profile in differing {
            let record = snapshot.tags.get(profile);
            let tags = record.and_then(Record::readable);
            let tags = tags.map(|tags| tags.iter().cloned().collect()).unwrap_or_default();
            self.members.retag(profile, tags, &mut self.sets, changes);
            let is_unread = record.is_some_and(|record| record.value.is_err());
            let turns =
                if is_unread { self.unread_tags.insert(profile.clone()) } else { self.unread_tags.remove(profile) };
            turned.extend(turns.then_some(profile));
        }
        if turned.is_empty() {
            return BTreeSet::new();
        }
        let is_touched = |placed: &Placed| placed.record.profiles.iter().any(|profile| turned.contains(profile));
        self.placed.iter().filter(|(_, placed)| is_touched(placed)).map(|(suffix, _)| suffix.clone()).collect()
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

    /// Takes the settings in. Where one of them touches everything, all is made anew; answers whether that is so.
    fn update_settings(&mut self, snapshot: &Snapshot, changes: &mut Changes) -> bool {
        let settings = Settings::of(snapshot, &self.host);
        if (settings.drop, settings.set_most) != (self.settings.drop, self.settings.set_most) {
            // What keeps containers from this host's services does not hang on settings.
            let raw = std::mem::take(&mut self.raw);
            let fresh = Desired { raw, ..Desired::with(self.host.clone(), self.family, settings) };
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

#[cfg(test)]
mod golden;
#[cfg(test)]
mod law;
#[cfg(test)]
pub(crate) mod tests;
