//! Profiles in use: their chains, and the sets of the tags that their rules speak of. One that cannot be read, that would hold
//! up all others by its size, or whose tag has more members than a set may have, is closed.

use std::collections::BTreeSet;

use super::{Changes, Desired, Extent};
use crate::model::name::{ProfileName, TagName};
use crate::model::profile::Rules;
use crate::model::snapshot::{Record, Snapshot};
use crate::plan::filter::{self, Way};
use crate::plan::rules;
use crate::plan::sets::{IpSet, SetName};

/// The records that a profile's chains were made from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Profile {
    pub(super) rules: Option<Record<Rules>>,
    /// Why the tags cannot be used.
    pub(super) tags: Result<(), String>,
    /// The tags that its rules speak of.
    pub(super) speaks_of: BTreeSet<TagName>,
}

impl Desired {
    /// Makes the chains of profiles that came into use or changed, and the sets of the tags that they speak of.
    pub(super) fn update_profiles(
        &mut self,
        snapshot: &Snapshot,
        differing: BTreeSet<ProfileName>,
        changes: &mut Changes,
    ) {
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
    pub(super) fn close_overfull(&mut self, snapshot: &Snapshot, changes: &mut Changes) {
        let is_overfull = |name: &SetName| self.sets.get(name).is_some_and(IpSet::is_overfull);
        let turned: BTreeSet<SetName> =
            changes.sets.keys().filter(|name| is_overfull(name) != self.overfull.contains(*name)).cloned().collect();
        if turned.is_empty() {
            return;
        }
        // What came and went while it was left alone is not told again.
        changes.sets.extend(turned.iter().map(|name| (name.clone(), Extent::Whole)));
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

    /// Why a profile with these rules, which speak of these tags, is closed though it can be read.
    pub(super) fn too_much(&self, rules: &Rules, speaks_of: &BTreeSet<TagName>) -> Option<String> {
        let too_many = rules::too_many(self.family, rules).map(|why| format!("its rules {why}"));
        too_many.or_else(|| self.overfull_of(speaks_of))
    }

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
        let readable = readable.and_then(|rules| self.too_much(rules, &speaks_of).map_or(Ok(rules), Err));
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
}

fn tags_usable(record: Option<&Record<Vec<TagName>>>) -> Result<(), String> {
    match record.map(|record| &record.value) {
        Some(Ok(_)) => Ok(()),
        Some(Err(why)) => Err(format!("its tags cannot be read: {why}")),
        None => Err("it has no record of tags".to_owned()),
    }
}
