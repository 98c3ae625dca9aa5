//! Members: the addresses that tags stand for.
//!
//! A tag's set holds the addresses of all endpoints of all hosts whose profiles carry the tag, but there is a set only
//! while a profile in use here speaks of the tag. So addresses are counted by profile, of which every endpoint names one
//! or two, and by tag only where there is a set: what one endpoint, or the tags of one profile, change costs just that,
//! however many endpoints there are. To count by tag alone would need all endpoints again whenever the tags of a profile
//! change; to ask every profile that carries a tag costs too much where all of them do.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use super::{Changes, count, discount};
use crate::model::endpoint::Remote;
use crate::model::name::{ProfileName, TagName};
use crate::model::pool::Family;
use crate::plan::sets::{self, Extent, SetName, Sets};

/// How many endpoints, or profiles, bring an address.
type Counted = BTreeMap<IpAddr, u32>;

/// A tag that has a set.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Spoken {
    /// How many profiles in use speak of it.
    by: usize,
    /// How many profiles that carry it bring an address.
    members: Counted,
}

/// See the module.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Members {
    family: Family,
    /// The most members that a set may have.
    most: u32,
    /// By profile: how many endpoints bring an address.
    addresses: BTreeMap<ProfileName, Counted>,
    /// The tags of profiles, and the profiles of tags.
    carried: BTreeMap<ProfileName, BTreeSet<TagName>>,
    carriers: BTreeMap<TagName, BTreeSet<ProfileName>>,
    spoken: BTreeMap<TagName, Spoken>,
}

impl Members {
    pub(super) fn new(family: Family, most: u32) -> Self {
        let (addresses, carried) = (BTreeMap::new(), BTreeMap::new());
        Members { family, most, addresses, carried, carriers: BTreeMap::new(), spoken: BTreeMap::new() }
    }

    /// The profiles that carry tags.
    pub(super) fn profiles(&self) -> impl Iterator<Item = &ProfileName> {
        self.carried.keys()
    }

    /// Brings the addresses of an endpoint to its profiles.
    pub(super) fn bring(&mut self, one: &Remote, sets: &mut Sets, changes: &mut Changes) {
        let family = self.family;
        for profile in &one.profiles {
            for address in one.addresses.iter().filter(|address| Family::of(**address) == family) {
                if count(self.addresses.entry(profile.clone()).or_default(), address) {
                    for tag in self.carried.get(profile).into_iter().flatten() {
                        join(family, &mut self.spoken, tag, *address, sets, changes);
                    }
                }
            }
        }
    }

    /// Takes the addresses of an endpoint away from its profiles.
    pub(super) fn take(&mut self, one: &Remote, sets: &mut Sets, changes: &mut Changes) {
        let family = self.family;
        for profile in &one.profiles {
            let Some(counted) = self.addresses.get_mut(profile) else { continue };
            for address in one.addresses.iter().filter(|address| Family::of(**address) == family) {
                if discount(counted, address) {
                    for tag in self.carried.get(profile).into_iter().flatten() {
                        leave(family, &mut self.spoken, tag, *address, sets, changes);
                    }
                }
            }
            if counted.is_empty() {
                self.addresses.remove(profile);
            }
        }
    }

    /// The tags of a profile are these from now on.
    pub(super) fn retag(
        &mut self,
        profile: &ProfileName,
        tags: BTreeSet<TagName>,
        sets: &mut Sets,
        changes: &mut Changes,
    ) {
        let old = self.carried.remove(profile).unwrap_or_default();
        let addresses = || self.addresses.get(profile).into_iter().flat_map(Counted::keys).copied();
        for tag in old.difference(&tags) {
            if let Some(profiles) = self.carriers.get_mut(tag) {
                profiles.remove(profile);
                if profiles.is_empty() {
                    self.carriers.remove(tag);
                }
            }
            addresses().for_each(|address| leave(self.family, &mut self.spoken, tag, address, sets, changes));
        }
        for tag in tags.difference(&old) {
            self.carriers.entry(tag.clone()).or_default().insert(profile.clone());
            addresses().for_each(|address| join(self.family, &mut self.spoken, tag, address, sets, changes));
        }
        if !tags.is_empty() {
            self.carried.insert(profile.clone(), tags);
        }
    }

    /// One more profile speaks of a tag.
    pub(super) fn speak(&mut self, tag: &TagName, sets: &mut Sets, changes: &mut Changes) {
        if let Some(spoken) = self.spoken.get_mut(tag) {
            spoken.by += 1;
            return;
        }
        let carriers = self.carriers.get(tag).into_iter().flatten();
        let mut brought = carriers.filter_map(|profile| self.addresses.get(profile)).map(Counted::keys);
        // Those of the first are taken as a whole: mostly there is no other.
        let mut members: Counted = brought.next().into_iter().flatten().map(|address| (*address, 1)).collect();
        brought.flatten().for_each(|address| {
            count(&mut members, address);
        });
        let name = SetName::tag(self.family, tag);
        sets.insert(name.clone(), sets::addresses(self.family, self.most, members.keys().copied()));
        changes.sets.insert(name, Extent::Whole);
        self.spoken.insert(tag.clone(), Spoken { by: 1, members });
    }

    /// One profile less speaks of a tag.
    pub(super) fn hush(&mut self, tag: &TagName, sets: &mut Sets, changes: &mut Changes) {
        let Some(spoken) = self.spoken.get_mut(tag) else { return };
        spoken.by -= 1;
        if spoken.by == 0 {
            self.spoken.remove(tag);
            let name = SetName::tag(self.family, tag);
            sets.remove(&name);
            changes.sets.insert(name, Extent::Whole);
        }
    }
}

fn join(
    family: Family,
    spoken: &mut BTreeMap<TagName, Spoken>,
    tag: &TagName,
    address: IpAddr,
    sets: &mut Sets,
    changes: &mut Changes,
) {
    if spoken.get_mut(tag).is_some_and(|spoken| count(&mut spoken.members, &address)) {
        let name = SetName::tag(family, tag);
        if let Some(set) = sets.get_mut(&name) {
            set.members.insert(address.into());
        }
        changes.member(name, address.into());
    }
}

fn leave(
    family: Family,
    spoken: &mut BTreeMap<TagName, Spoken>,
    tag: &TagName,
    address: IpAddr,
    sets: &mut Sets,
    changes: &mut Changes,
) {
    if spoken.get_mut(tag).is_some_and(|spoken| discount(&mut spoken.members, &address)) {
        let name = SetName::tag(family, tag);
        if let Some(set) = sets.get_mut(&name) {
            set.members.remove(&address.into());
        }
        changes.member(name, address.into());
    }
}
