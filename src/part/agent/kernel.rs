//! What the agent believes the kernel holds of one family, and the one apply that brings it to what is wanted.
//!
//! The order inside an apply is fixed here: members of sets, chains, those members that could open what the former chains
//! said, routes; then the sets go that no chain speaks of any more; then the flows are cut that policy would not let begin
//! any more. Protection comes before reachability. BIRD's configuration follows from the same snapshot beside it.
//!
//! When a tool refuses, what cannot be carried out is found ([`chains`], [`ip_sets`]), and everything else is programmed; it is
//! tried again by the agent's back-off. When a tool does not work at all, all of it waits: to try the steps one by one would
//! take the time for which the tool is waited, for each. A look at the kernel that fails is no such thing: what was left
//! there is believed until it can be seen again.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use crate::edge::ipsets;
use crate::edge::iptables::{self, Seen};
use crate::edge::kernel_routes::KernelRoutes;
use crate::edge::ruleset::RulesetEvents;
use crate::model::endpoint::Endpoint;
use crate::model::fault::Fault;
use crate::model::key::EndpointKey;
use crate::model::pool::Family;
use crate::part::metrics::Metrics;
use crate::plan::chain::ChainName;
use crate::plan::desired::{Changes, Desired, endpoint_object};
use crate::plan::diff::{FILTER, SeenTable};
use crate::plan::filter::{self, Way};
use crate::plan::routes::{self, Route, RouteStep, Routes};
use crate::plan::sets::{Extent, SetName, Sets};

mod chains;
mod flows;
mod ip_sets;

use flows::Flows;

/// The object under which it is told that the kernel cannot be seen at all.
pub(crate) const WHOLE: &str = "kernel state";

/// The object under which it is told that the kernel could not be looked at; what was left there is believed meanwhile.
pub(crate) const LOOK: &str = "kernel state, which cannot be looked at";

/// Why the kernel is looked at in whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Why {
    Start,
    /// What was done is not known.
    Failed,
    /// The kernel took some objects as they are wanted and others not: which, is known, and they are tried again in their own
    /// time. What does not concern them goes on.
    Refused,
    Clock,
    Links,
    Ruleset,
    Sizes,
}

impl Why {
    /// Whether steps that are found must have been caused by somebody else, and so what was left there is likely there still.
    fn is_drift(self) -> bool {
        matches!(self, Why::Clock | Why::Links | Why::Ruleset | Why::Sizes)
    }
}

/// The ear for changes of the ruleset, one for both families: nftables tells of a change, not whose table it was in.
pub(super) struct Ear {
    events: RulesetEvents,
    strangers: bool,
}

impl Ear {
    pub(super) fn new(events: RulesetEvents) -> Self {
        Ear { events, strangers: false }
    }

    /// Waits until somebody else changes the ruleset. Must not run beside an apply.
    ///
    /// # Cancel safety
    /// No change is lost.
    pub(super) async fn changed(&mut self) -> Result<(), Fault> {
        self.events.changed().await
    }

    /// Whether somebody else was at work during the applies since this was last asked.
    pub(super) fn take_strangers(&mut self) -> bool {
        std::mem::take(&mut self.strangers)
    }
}

/// What is there of a table that has not been looked at.
static UNSEEN: SeenTable = SeenTable { chains: BTreeMap::new(), jumps: BTreeMap::new() };

pub(super) struct Kernel {
    family: Family,
    hand: Arc<KernelRoutes>,
    metrics: Arc<Metrics>,
    sets: Sets,
    tables: Seen,
    routes: BTreeSet<Route>,
    /// What is above may not be so: look before the next apply.
    doubt: Option<Why>,
    /// The last apply looked at everything.
    looked: bool,
    faults: BTreeMap<String, String>,
    /// By address: the endpoint, and why it has no route.
    unrouted: BTreeMap<IpAddr, (String, String)>,
    /// Chains that could not be written.
    failed: BTreeSet<ChainName>,
    /// Sets that could not be made what they should be.
    spoiled: BTreeSet<SetName>,
    /// Endpoints whose routes the last apply looked at.
    rerouted: BTreeSet<EndpointKey>,
    flows: Flows,
    /// Addresses whose routes somebody else has changed.
    tampered: BTreeSet<IpAddr>,
}

impl Kernel {
    pub(super) fn new(family: Family, hand: Arc<KernelRoutes>, metrics: Arc<Metrics>) -> Self {
        Kernel {
            family,
            hand,
            metrics,
            sets: Sets::new(),
            tables: Seen::default(),
            routes: BTreeSet::new(),
            doubt: Some(Why::Start),
            looked: false,
            faults: BTreeMap::new(),
            unrouted: BTreeMap::new(),
            failed: BTreeSet::new(),
            spoiled: BTreeSet::new(),
            rerouted: BTreeSet::new(),
            flows: Flows::default(),
            tampered: BTreeSet::new(),
        }
    }

    /// The next apply looks at the kernel first. The gravest reason counts.
    pub(super) fn doubt(&mut self, why: Why) {
        if !self.doubts() || why == Why::Failed && !self.is_lost() {
            self.doubt = Some(why);
        }
    }

    /// Whether the next apply looks at the kernel, whatever comes.
    pub(super) fn doubts(&self) -> bool {
        self.doubt.is_some_and(|why| why != Why::Refused)
    }

    /// Whether nothing can be done before a look.
    pub(super) fn is_lost(&self) -> bool {
        self.doubt.is_some_and(|why| matches!(why, Why::Start | Why::Failed))
    }

    /// Whether some changes are of what the kernel has refused, and may be what it lacked. Members, which may come and go all the
    /// time, are not.
    pub(super) fn has_refused(&self, changes: &Changes) -> bool {
        let mut whole = changes.sets.iter().filter(|(_, extent)| **extent == Extent::Whole);
        changes.filter.iter().any(|chain| self.failed.contains(chain))
            || whole.any(|(set, _)| self.spoiled.contains(set))
    }

    fn seen(&self, table: &str) -> &SeenTable {
        self.tables.get(table).unwrap_or(&UNSEEN)
    }

    fn blame(&mut self, object: impl Into<String>, why: String) {
        self.faults.insert(object.into(), why);
    }

    /// Whether the last apply looked at everything.
    pub(super) fn looked_at_all(&self) -> bool {
        self.looked
    }

    /// Whether what is believed of the kernel is known to be so.
    pub(super) fn is_known(&self) -> bool {
        !self.faults.contains_key(WHOLE)
    }

    pub(super) fn rerouted(&self) -> &BTreeSet<EndpointKey> {
        &self.rerouted
    }

    pub(super) fn faults(&self) -> impl Iterator<Item = (&String, &String)> {
        self.faults.iter().chain(self.unrouted.values().map(|(object, why)| (object, why)))
    }

    /// Whether the chains of an endpoint stand, with the way to them, as far as it is of this family.
    pub(super) fn holds(&self, endpoint: &Endpoint) -> bool {
        if !endpoint.is_of(self.family) {
            return true;
        }
        let Some(suffix) = filter::suffix(&endpoint.interface) else { return false };
        Way::BOTH.iter().all(|way| {
            let on_the_way = (0..=suffix.len()).map(|length| way.dispatch_chain(&suffix[..length]));
            let own = way.endpoint_chain(suffix);
            self.seen(FILTER).chains.contains_key(&own)
                && on_the_way.chain([own]).all(|chain| !self.failed.contains(&chain))
        })
    }

    /// Whether all addresses of an endpoint are routed to it, as far as they are of this family.
    pub(super) fn routes_to(&self, endpoint: &Endpoint, wanted: &Routes) -> bool {
        let own = endpoint.addresses.iter().filter(|address| Family::of(**address) == self.family);
        own.into_iter().all(|address| {
            let right = Route::to(*address, endpoint.interface.clone());
            wanted.get(address) == Some(&endpoint.interface) && self.routes.contains(&right)
        })
    }

    /// Something happened to the interface of an endpoint: its routes may be gone.
    pub(super) fn forget_routes(&mut self, endpoint: &Endpoint) {
        for address in &endpoint.addresses {
            self.forget_route(*address, |route| route.interface.as_ref() == Some(&endpoint.interface));
        }
    }

    /// Somebody else has taken away the route to an address, or has put another in its place.
    pub(super) fn doubt_route(&mut self, address: IpAddr) {
        self.forget_route(address, |_| true);
        self.tampered.insert(address);
    }

    fn forget_route(&mut self, address: IpAddr, is_it: impl Fn(&Route) -> bool) {
        let to_it = routes::to(&self.routes, address).filter(|route| is_it(route));
        for route in to_it.cloned().collect::<Vec<_>>() {
            self.routes.remove(&route);
        }
    }

    /// Doubts everything if the sizes of sets are not what was left; answers whether that is so.
    pub(super) fn compare_sizes(&mut self, wanted: &Sets, sizes: &BTreeMap<SetName, usize>) -> bool {
        let differs =
            |name: &SetName| self.sets.get(name).is_some_and(|set| sizes.get(name) != Some(&set.members.len()));
        let differs = wanted.keys().any(differs);
        if differs {
            self.doubt(Why::Sizes);
        }
        differs
    }

    /// Brings the kernel to what is wanted. Answers whether all of it went well; if not, call again after a while. `again`: what
    /// has failed is tried once more; else, while [`Kernel::is_lost`] says no, what has changed is brought there and nothing else.
    pub(super) async fn apply(&mut self, desired: &Desired, changes: &Changes, again: bool, ear: &mut Ear) -> bool {
        let mut look = self.doubt.take_if(|_| again);
        self.rerouted.clear();
        self.flows.learn(desired, changes, look);
        let seen = if look.is_some() { self.observe().await } else { Ok(()) };
        self.looked = look.is_some() && seen.is_ok();
        if let Err(fault) = &seen {
            self.doubt = look.take();
            if self.is_lost() {
                self.blame(WHOLE, fault.to_string());
                self.failed.extend(changes.filter.iter().cloned());
                return false;
            }
            self.blame(LOOK, fault.to_string());
        } else if self.looked {
            self.faults.clear();
            self.failed.clear();
        }
        let refused = if self.looked { std::mem::take(&mut self.spoiled) } else { self.spoiled.clone() };
        let scope = Scope { changes, look, metrics: Arc::clone(&self.metrics) };
        let (before, behind) = self.set_steps(desired, &scope, &refused);
        let filled = self.carry_out_sets(before).await;
        let mut well = match &filled {
            Ok(well) => well & self.apply_chains(desired, &scope, ear).await,
            Err(fault) => self.keep_chains(desired, &scope, fault),
        };
        self.flows.heed_written(well);
        if self.is_known() && !self.open_sets(behind, &scope).await {
            well = false;
            // What chains say of one that was refused is closed. Where it is not known what was done they stay.
            if self.is_known() {
                self.apply_chains(desired, &scope, ear).await;
            }
        }
        let routed = self.apply_routes(desired, &scope).await;
        if self.is_known() {
            well &= self.remove_sets(desired, &scope).await;
        }
        self.cut_flows(desired).await;
        if !well {
            self.doubt(if self.is_known() { Why::Refused } else { Why::Failed });
        }
        well && routed && seen.is_ok()
    }

    async fn observe(&mut self) -> Result<(), Fault> {
        let (sets, tables, routes) = tokio::try_join!(
            ipsets::observe(self.family),
            iptables::observe(self.family),
            self.hand.observe(self.family)
        )?;
        (self.sets, self.tables, self.routes) = (sets, tables, routes);
        Ok(())
    }

    async fn apply_routes(&mut self, desired: &Desired, scope: &Scope<'_>) -> bool {
        let steps: Vec<RouteStep> = if scope.look.is_some() {
            self.unrouted.clear();
            routes::steps(&desired.routes, &self.routes, |route| desired.may_stay(route))
        } else {
            let mut addresses = scope.changes.routes.clone();
            addresses.extend(std::mem::take(&mut self.unrouted).into_keys());
            addresses
                .into_iter()
                .flat_map(|address| {
                    routes::steps_for(address, &desired.routes, &self.routes, |route| desired.may_stay(route))
                })
                .collect()
        };
        scope.tell_drift(steps.iter().map(|step| format!("route to {}", step.address())));
        let done = self.hand.apply(&steps).await;
        for (step, done) in steps.iter().zip(done) {
            let address = step.address();
            let owner = desired.routes.get(&address).and_then(|name| desired.owner(name.as_str()));
            self.rerouted.extend(owner.cloned());
            match done {
                Ok(()) => {
                    // An interface that goes takes its routes along, which is nobody's doing and cannot be put right.
                    if self.tampered.contains(&address) {
                        scope.metrics.count_drift(&format!("route to {address}"));
                    }
                    routes::carried_out(&mut self.routes, step);
                }
                Err(fault) => {
                    let object =
                        owner.map_or_else(|| format!("route to {address}"), |key| endpoint_object(&key.endpoint));
                    self.unrouted.insert(address, (object, fault.to_string()));
                }
            }
        }
        self.tampered.clear();
        self.unrouted.is_empty()
    }
}

/// What an apply looks at.
struct Scope<'c> {
    changes: &'c Changes,
    /// `Some`: everything.
    look: Option<Why>,
    metrics: Arc<Metrics>,
}

impl Scope<'_> {
    fn tell_drift(&self, objects: impl Iterator<Item = String>) {
        if self.look.is_some_and(Why::is_drift) {
            objects.for_each(|object| self.metrics.count_drift(&object));
        }
    }
}
