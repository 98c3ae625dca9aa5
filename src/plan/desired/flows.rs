//! Which flows of this host's endpoints policy would still let begin.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use super::{Desired, Placed};
use crate::model::name::{Orchestrator, ProfileName};
use crate::model::rule::Ports;
use crate::model::snapshot::Record;
use crate::plan::chain::Chain;
use crate::plan::filter::{self, Way};
use crate::plan::flow::{Flow, Word, judge, shutting};
use crate::plan::sets::SetName;
use crate::plan::settings::{OWN_PORTS, ToHost};

/// Judges flows by the policy of one moment.
pub(crate) struct Judge<'d> {
    desired: &'d Desired,
    /// This host's own addresses: policy does not stand between the host and its containers.
    own: BTreeSet<IpAddr>,
    /// Endpoints of Docker's containers that are not active, by their addresses: they may run before their records say so.
    waiting: BTreeMap<IpAddr, &'d Placed>,
    /// The chains of profiles that were asked for; `None`: the profile is closed.
    chains: BTreeMap<(Way, &'d ProfileName), Option<Chain>>,
}

impl Desired {
    pub(crate) fn judge(&self, own: BTreeSet<IpAddr>) -> Judge<'_> {
        let of_docker = |placed: &&Placed| placed.key.orchestrator == Orchestrator::docker();
        let waiting = self.placed.values().filter(of_docker).filter(|placed| !placed.record.is_active());
        let waiting = waiting.flat_map(|placed| placed.record.addresses.iter().map(move |address| (*address, placed)));
        Judge { desired: self, own, waiting: waiting.collect(), chains: BTreeMap::new() }
    }

    /// The chain of a profile that is in use, as it is in the kernel; `None` if the profile is closed.
    fn chain_of(&self, way: Way, name: &ProfileName) -> Option<Chain> {
        let profile = self.profiles.get(name).filter(|profile| profile.tags.is_ok())?;
        let rules = profile.rules.as_ref().and_then(Record::readable)?;
        if self.too_much(rules, &profile.speaks_of).is_some() {
            return None;
        }
        let list = if way == Way::From { &rules.outbound } else { &rules.inbound };
        Some(filter::profile(self.family, way, name, list))
    }

    /// The sets whose growing can forbid what was allowed.
    pub(crate) fn shutting_sets(&self) -> BTreeSet<SetName> {
        let all = self.profiles.keys().flat_map(|name| Way::BOTH.map(|way| self.chain_of(way, name)));
        all.flatten().flat_map(|chain| shutting(&chain)).collect()
    }
}

impl<'d> Judge<'d> {
    /// Whether policy would let a flow begin now. One that no endpoint of this host has a part in is none of ours, so it is
    /// allowed; the addresses of endpoints that are not active are nobody's, but those of Docker's containers, which run before
    /// their records say so.
    pub(crate) fn allows(&mut self, flow: &Flow) -> bool {
        let (from, to) = (self.at(flow.src), self.at(flow.dst));
        if from.is_none() && self.own.contains(&flow.src) {
            return true;
        }
        let to_host = from.is_some() && self.own.contains(&flow.dst);
        if self.desired.settings.drop.accept {
            return true;
        }
        if to_host && !self.is_open(flow) {
            return false;
        }
        from.is_none_or(|endpoint| self.passes(Way::From, endpoint, flow))
            && to.is_none_or(|endpoint| self.passes(Way::To, endpoint, flow))
    }

    /// Whether the host is open to a flow, if the container's policy is.
    fn is_open(&self, flow: &Flow) -> bool {
        let settings = &self.desired.settings;
        let names = |ports: Ports| (ports.first..=ports.last).contains(&flow.ports.1);
        match settings.to_host {
            ToHost::Drop => {
                settings.open.iter().any(|open| open.protocol.0 == flow.protocol && open.ports.is_none_or(names))
            }
            ToHost::Return | ToHost::Accept => flow.protocol != 6 || !OWN_PORTS.contains(&flow.ports.1),
        }
    }

    fn at(&self, address: IpAddr) -> Option<&'d Placed> {
        match self.desired.routes.get(&address) {
            Some(interface) => self.desired.placed.get(filter::suffix(interface)?),
            None => self.waiting.get(&address).copied(),
        }
    }

    fn passes(&mut self, way: Way, endpoint: &'d Placed, flow: &Flow) -> bool {
        for name in endpoint.profiles() {
            let desired = self.desired;
            let chain = self.chains.entry((way, name)).or_insert_with(|| desired.chain_of(way, name));
            match chain.as_ref().map_or(Word::Denied, |chain| judge(chain, flow, &desired.sets)) {
                Word::Allowed => return true,
                Word::Denied => return false,
                Word::Silent => {}
            }
        }
        false
    }
}
