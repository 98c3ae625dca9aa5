//! Places: which endpoint an interface of this host belongs to, with its chains, the dispatch to them, and its routes.
//!
//! An interface that several endpoints name belongs to the one whose id it is made from; the others are closed.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use super::{Changes, Desired, count, discount, endpoint_object, text};
use crate::model::endpoint::Endpoint;
use crate::model::key::EndpointKey;
use crate::model::name::{EndpointId, ProfileName};
use crate::model::pool::Family;
use crate::model::snapshot::Record;
use crate::plan::filter::{self, Way};

/// An endpoint of this host that has its interface to itself. It is programmed in the families that it is of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Placed {
    pub(super) key: EndpointKey,
    pub(super) record: Arc<Endpoint>,
    /// A profile of it whose tags cannot be read.
    ///
    /// Then it is not known which rules of *other* profiles, here and on other hosts, speak of this endpoint, and those
    /// that deny by a tag, or allow all who do not carry it, would let it pass. So nothing of its own passes, whichever
    /// of its profiles comes first.
    pub(super) unread_tags: Option<ProfileName>,
}

impl Placed {
    /// The profiles by which something may pass.
    pub(super) fn profiles(&self) -> &[ProfileName] {
        if self.unread_tags.is_some() { &[] } else { &self.record.profiles }
    }
}

impl Desired {
    /// Notes which endpoint names which interface.
    pub(super) fn claim(
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
    pub(super) fn place(
        &mut self,
        touched: &BTreeSet<String>,
        used: &mut BTreeSet<ProfileName>,
        changes: &mut Changes,
    ) {
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
        for chain in filter::endpoint(self.family, &new.key, &new.record, suffix, new.unread_tags.as_ref()) {
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
        let placed = winner.as_ref().and_then(|key| {
            let record = Arc::clone(record(key)?);
            let unread_tags = record.profiles.iter().find(|profile| self.unread_tags.contains(*profile)).cloned();
            Some(Placed { key: key.clone(), record, unread_tags })
        });
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
}
