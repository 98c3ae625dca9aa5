//! Which changes of the kernel can forbid flows that stand, and the cutting of those that are forbidden.
//!
//! All flows are looked at only when policy may have become tighter: at the start, when a chain that decides about an
//! endpoint is written anew, and when an address leaves an endpoint. What tags do, which in a large cluster happens all
//! the time, is gathered for a second.

use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnet::IpNet;

use super::{Kernel, Why};
use crate::edge::conntrack;
use crate::edge::iptables::Steps;
use crate::edge::links::Netlink;
use crate::model::fault::Fault;
use crate::plan::chain::ChainName;
use crate::plan::desired::{Changes, Desired};
use crate::plan::diff::{ChainStep, FILTER, SeenTable};
use crate::plan::filter;
use crate::plan::sets::{SetName, SetStep};

/// The object under which it is told that flows could not be cut.
const OBJECT: &str = "flows";

/// What is known of the flows that stand.
#[derive(Default)]
pub(super) struct Flows {
    /// Those that policy forbids are to be cut now.
    forbidden: bool,
    /// The same, within a second.
    soon: bool,
    /// The same of flows of these addresses: they have come to sets or gone from them, which says nothing of others.
    moved: BTreeSet<IpAddr>,
    /// Those of these addresses are to be cut now, whatever policy says.
    left: BTreeSet<IpAddr>,
    /// Whether the kernel was looked at: what is missing there now may have been missing for a while, and let flows begin.
    has_looked: bool,
    /// The sets whose growing can forbid what was allowed.
    shutting: BTreeSet<SetName>,
    /// Those that were, by chains that may stand as long as an apply has not written others.
    shut: BTreeSet<SetName>,
    /// Whether it is not known yet which were.
    may_be_any: bool,
}

impl Flows {
    /// Notes what an apply is about to do.
    pub(super) fn learn(&mut self, desired: &Desired, changes: &Changes, look: Option<Why>) {
        self.left.extend(&changes.left);
        self.forbidden |= look == Some(Why::Start);
        self.has_looked = look.is_some();
        self.shut.extend(self.shutting.iter().cloned());
        self.may_be_any |= look == Some(Why::Start);
        if look.is_some() || changes.filter.iter().any(filter::is_profile) {
            self.shutting = desired.shutting_sets();
        }
    }

    /// Whether chains that are wanted deny by a set.
    pub(super) fn shuts(&self, set: &SetName) -> bool {
        self.shutting.contains(set)
    }

    /// Whether chains may have done so before this apply.
    pub(super) fn shut(&self, set: &SetName) -> bool {
        self.may_be_any || self.shut.contains(set)
    }

    /// Notes whether all chains that were to be written are.
    pub(super) fn heed_written(&mut self, well: bool) {
        if well {
            self.shut.clear();
            self.may_be_any = false;
        }
    }

    /// Notes members that come and go.
    pub(super) fn heed_sets(&mut self, steps: &[SetStep]) {
        for step in steps {
            match step {
                SetStep::Add(set, nets) if self.shutting.contains(set) => self.move_all(nets),
                SetStep::Remove(_, nets) => self.move_all(nets),
                SetStep::Swap(..) => self.soon = true,
                SetStep::Add(..) | SetStep::Create(..) | SetStep::Destroy(_) => {}
            }
        }
    }

    fn move_all(&mut self, nets: &[IpNet]) {
        let is_address = |net: &IpNet| net.prefix_len() == net.max_prefix_len();
        self.soon |= !nets.iter().all(is_address);
        self.moved.extend(nets.iter().filter(|net| is_address(net)).map(IpNet::addr));
    }

    /// Notes chains that are written in the place of others.
    pub(super) fn heed_chains(&mut self, steps: &Steps, seen: &SeenTable) {
        let stood = |name: &ChainName| self.has_looked || seen.chains.contains_key(name);
        let tightens =
            |step: &ChainStep| matches!(step, ChainStep::Write(name, _) if stood(name) && filter::decides(name));
        let tighter = steps.get(FILTER).into_iter().flatten().any(tightens);
        self.forbidden |= tighter;
    }
}

impl Kernel {
    /// Cuts what is to be cut now.
    pub(super) async fn cut_flows(&mut self, desired: &Desired) {
        self.cut_now(desired, BTreeSet::new()).await;
    }

    /// The same, and what is forbidden of the flows of some addresses.
    async fn cut_now(&mut self, desired: &Desired, moved: BTreeSet<IpAddr>) {
        if !self.flows.forbidden && self.flows.left.is_empty() && moved.is_empty() {
            return;
        }
        let left = std::mem::take(&mut self.flows.left);
        let forbidden = std::mem::take(&mut self.flows.forbidden);
        if forbidden {
            self.flows.soon = false;
            self.flows.moved.clear();
        }
        match self.cut(desired, forbidden, &moved, &left).await {
            Ok(count) => {
                self.faults.remove(OBJECT);
                if count > 0 {
                    self.metrics.flows_cut.inc_by(u64::try_from(count).unwrap_or(u64::MAX));
                    tracing::info!(count, ?left, "flows that policy does not allow any more were cut");
                }
            }
            Err(fault) => {
                self.blame(OBJECT, fault.to_string());
                self.flows.left.extend(left);
                self.flows.soon |= forbidden;
                self.flows.moved.extend(moved);
            }
        }
    }

    /// Cuts what was gathered; called once a second.
    pub(in crate::part::agent) async fn recheck_flows(&mut self, desired: &Desired) {
        self.flows.forbidden |= std::mem::take(&mut self.flows.soon);
        let moved = std::mem::take(&mut self.flows.moved);
        self.cut_now(desired, moved).await;
    }

    /// Cuts the flows of the addresses that have `left`, and of all flows, or of those of the addresses that have `moved`, what
    /// policy forbids.
    async fn cut(
        &self,
        desired: &Desired,
        all: bool,
        moved: &BTreeSet<IpAddr>,
        left: &BTreeSet<IpAddr>,
    ) -> Result<usize, Fault> {
        let judges = all || !moved.is_empty();
        let own = if judges { Netlink::open()?.own_addresses(self.family).await? } else { BTreeSet::new() };
        let mut judge = desired.judge(own);
        conntrack::cut(self.family, |flow| flow.touches(left) || (all || flow.touches(moved)) && !judge.allows(flow))
            .await
    }
}
