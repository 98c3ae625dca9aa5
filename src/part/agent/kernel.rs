//! What the agent believes the kernel holds, and the one apply that brings it to what is wanted.
//!
//! The order inside an apply is fixed here: members of sets, chains, routes, and last the sets that no chain speaks of any
//! more. Protection comes before reachability. (BIRD's configuration follows from the same snapshot beside it.)
//!
//! When a tool refuses, the steps are split in halves until the ones that cannot be carried out stand alone; a chain among
//! them is closed instead, and everything else is programmed.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use crate::edge::ipsets;
use crate::edge::iptables::{self, Seen, Steps};
use crate::edge::kernel_routes::KernelRoutes;
use crate::edge::ruleset::RulesetEvents;
use crate::model::endpoint::Endpoint;
use crate::model::fault::Fault;
use crate::model::key::EndpointKey;
use crate::model::name::IfName;
use crate::model::pool::Family;
use crate::plan::chain::{ChainName, ChainText};
use crate::plan::desired::{Changes, Desired, base_table, endpoint_object};
use crate::plan::diff::{self, ChainStep};
use crate::plan::filter::{self, ToHost, Way};
use crate::plan::routes::{self, Route, Routes};
use crate::plan::sets::{self, SetName, SetStep, Sets};

/// The object under which it is told that the kernel cannot be seen at all.
const WHOLE: &str = "kernel state";

/// Why the kernel is looked at in whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Why {
    Start,
    Failed,
    Clock,
    Links,
    Ruleset,
    Sizes,
}

impl Why {
    /// Whether steps that are found must have been caused by somebody else.
    fn is_drift(self) -> bool {
        matches!(self, Why::Clock | Why::Links | Why::Ruleset | Why::Sizes)
    }
}

pub(super) struct Kernel {
    family: Family,
    hand: KernelRoutes,
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
    /// Endpoints whose routes the last apply looked at.
    rerouted: BTreeSet<EndpointKey>,
    ruleset: RulesetEvents,
}

impl Kernel {
    pub(super) fn new(family: Family, hand: KernelRoutes, ruleset: RulesetEvents) -> Self {
        Kernel {
            family,
            hand,
            sets: Sets::new(),
            tables: Seen::default(),
            routes: BTreeSet::new(),
            doubt: Some(Why::Start),
            looked: false,
            faults: BTreeMap::new(),
            unrouted: BTreeMap::new(),
            failed: BTreeSet::new(),
            rerouted: BTreeSet::new(),
            ruleset,
        }
    }

    /// The next apply looks at the kernel first.
    pub(super) fn doubt(&mut self, why: Why) {
        self.doubt.get_or_insert(why);
    }

    pub(super) fn blame(&mut self, object: impl Into<String>, why: String) {
        self.faults.insert(object.into(), why);
    }

    pub(super) fn clear(&mut self, object: &str) {
        self.faults.remove(object);
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

    /// Whether the chains of an endpoint stand, with the way to them.
    pub(super) fn holds(&self, endpoint: &Endpoint) -> bool {
        let Some(suffix) = filter::suffix(&endpoint.interface) else { return false };
        Way::BOTH.iter().all(|way| {
            let on_the_way = (0..=suffix.len()).map(|length| way.dispatch_chain(&suffix[..length]));
            let own = way.endpoint_chain(suffix);
            self.tables.filter.chains.contains_key(&own)
                && on_the_way.chain([own]).all(|chain| !self.failed.contains(&chain))
        })
    }

    /// Whether all addresses of an endpoint are routed to it.
    pub(super) fn routes_to(&self, endpoint: &Endpoint, wanted: &Routes) -> bool {
        let own = endpoint.addresses.iter().filter(|address| Family::of(**address) == self.family);
        own.into_iter().all(|address| {
            let right = Route::to(*address, endpoint.interface.clone());
            wanted.get(address) == Some(&endpoint.interface) && self.routes.contains(&right)
        })
    }

    /// Something happened to an interface: its routes may be gone.
    pub(super) fn forget_routes(&mut self, interface: &IfName) {
        self.routes.retain(|route| route.interface.as_ref() != Some(interface));
    }

    /// Looks at the sizes of sets, and doubts everything if they are not what was left.
    pub(super) async fn compare_sizes(&mut self, wanted: &Sets) {
        match ipsets::sizes().await {
            Ok(sizes) => {
                let differs =
                    |name: &SetName| self.sets.get(name).is_some_and(|set| sizes.get(name) != Some(&set.members.len()));
                if wanted.keys().any(differs) {
                    self.doubt(Why::Sizes);
                }
            }
            Err(_) => self.doubt(Why::Failed),
        }
    }

    /// Brings the kernel to what is wanted. Answers whether all of it went well; if not, call again after a while.
    pub(super) async fn apply(&mut self, desired: &Desired, changes: &Changes) -> bool {
        let look = self.doubt.take();
        self.looked = look.is_some();
        self.rerouted.clear();
        if look.is_some() {
            if let Err(fault) = self.observe().await {
                self.blame(WHOLE, fault.to_string());
                self.doubt = look;
                return false;
            }
            self.faults.retain(|object, _| object == "guard");
            self.failed.clear();
        }
        let scope = Scope { changes, look };
        let mut well = self.apply_sets(desired, &scope).await;
        well &= self.apply_chains(desired, &scope).await;
        let routed = self.apply_routes(desired, &scope).await;
        well &= self.remove_sets(desired, &scope).await;
        if !well {
            self.doubt(Why::Failed);
        }
        well && routed
    }

    async fn observe(&mut self) -> Result<(), Fault> {
        let (sets, tables, routes) =
            tokio::try_join!(ipsets::observe(), iptables::observe(self.family), self.hand.observe(self.family))?;
        (self.sets, self.tables, self.routes) = (sets, tables, routes);
        Ok(())
    }

    async fn apply_sets(&mut self, desired: &Desired, scope: &Scope<'_>) -> bool {
        let mut steps = Vec::new();
        if scope.look.is_some() {
            steps = sets::steps(&desired.sets, &self.sets);
        } else {
            for (name, extent) in &scope.changes.sets {
                if let Some(set) = desired.sets.get(name) {
                    sets::steps_within(name, set, self.sets.get(name), extent, &mut steps);
                }
            }
        }
        scope.tell_drift(steps.iter().map(|step| format!("set {}", step.set())));
        self.carry_out_sets(steps).await
    }

    async fn remove_sets(&mut self, desired: &Desired, scope: &Scope<'_>) -> bool {
        let mut steps = sets::removals(&desired.sets, &self.sets);
        if scope.look.is_none() {
            steps.retain(|step| scope.changes.sets.contains_key(step.set()));
        }
        scope.tell_drift(steps.iter().map(|step| format!("set {}", step.set())));
        self.carry_out_sets(steps).await
    }

    async fn carry_out_sets(&mut self, steps: Vec<SetStep>) -> bool {
        if ipsets::apply(&steps).await.is_ok() {
            sets::carried_out(&mut self.sets, &steps);
            return true;
        }
        // The tool stopped somewhere: what was done is not known, so each set is tried for itself.
        let mut each: BTreeMap<SetName, Vec<SetStep>> = BTreeMap::new();
        for step in steps {
            each.entry(step.set().clone()).or_default().push(step);
        }
        let mut well = true;
        for (name, steps) in each {
            match ipsets::apply(&steps).await {
                Ok(()) => sets::carried_out(&mut self.sets, &steps),
                Err(fault) => {
                    self.blame(format!("set {name}"), fault.to_string());
                    well = false;
                }
            }
        }
        well
    }

    async fn apply_chains(&mut self, desired: &Desired, scope: &Scope<'_>) -> bool {
        let only = scope.look.is_none().then_some(&scope.changes.filter);
        let mut steps = Steps { filter: diff::steps(&desired.filter, &self.tables.filter, only), nat: Vec::new() };
        if scope.look.is_some() || scope.changes.nat {
            steps.nat = diff::steps(&desired.nat, &self.tables.nat, None);
        }
        if steps.is_empty() {
            return true;
        }
        scope.tell_drift(steps.filter.iter().chain(&steps.nat).map(ChainStep::object));
        match self.carry_out(&steps).await {
            Ok(()) => true,
            Err(fault) => {
                tracing::warn!(%fault, "chains could not be written together: writing them apart");
                if let Err(fault) = self.apply_apart(desired).await {
                    self.blame(WHOLE, fault.to_string());
                }
                false
            }
        }
    }

    /// Writes chains, and remembers what they are then. If the kernel tells of more changes than that makes, somebody else
    /// was at work.
    async fn carry_out(&mut self, steps: &Steps) -> Result<(), Fault> {
        let before = self.ruleset.take();
        let tables = iptables::apply(self.family, steps).await?;
        if before > 0 || self.ruleset.take() > tables {
            self.doubt(Why::Ruleset);
        }
        diff::carried_out(&mut self.tables.filter, &steps.filter);
        diff::carried_out(&mut self.tables.nat, &steps.nat);
        Ok(())
    }

    /// Waits until somebody else changes the ruleset.
    ///
    /// # Cancel safety
    /// No change is lost.
    pub(super) async fn ruleset_changed(&mut self) -> Result<(), Fault> {
        self.ruleset.changed().await
    }

    /// Carries out what can be carried out, and closes the chains that cannot be written.
    async fn apply_apart(&mut self, desired: &Desired) -> Result<(), Fault> {
        self.tables = iptables::observe(self.family).await?;
        // Every chain is made first, empty, so that no step fails for another's fault. An empty chain accepts nothing.
        let fresh = |step: ChainStep| match step {
            ChainStep::Write(name, text) => {
                let empty = ChainText { ordered: text.ordered, lines: Vec::new() };
                (!self.tables.filter.chains.contains_key(&name)).then(|| ChainStep::Write(name, Arc::new(empty)))
            }
            _ => None,
        };
        let all = diff::steps(&desired.filter, &self.tables.filter, None);
        let made = Steps { filter: all.into_iter().filter_map(fresh).collect(), nat: Vec::new() };
        self.carry_out(&made).await?;

        let filter = diff::steps(&desired.filter, &self.tables.filter, None);
        let nat = diff::steps(&desired.nat, &self.tables.nat, None);
        let mut waiting = vec![Steps { filter: Vec::new(), nat }, Steps { filter, nat: Vec::new() }];
        while let Some(mut steps) = waiting.pop() {
            let Err(fault) = self.carry_out(&steps).await else { continue };
            if steps.filter.len() + steps.nat.len() > 1 {
                let rest = Steps {
                    filter: steps.filter.split_off(steps.filter.len().div_ceil(2)),
                    nat: steps.nat.split_off(steps.nat.len().div_ceil(2)),
                };
                waiting.extend([rest, steps]);
            } else if let Some(step) = steps.filter.pop().or_else(|| steps.nat.pop()) {
                self.give_up(&step, &fault).await;
            }
        }
        Ok(())
    }

    /// Closes a chain that cannot be written. The base chains are not: they are few and fixed, and closed they would cut
    /// off every container.
    async fn give_up(&mut self, step: &ChainStep, fault: &Fault) {
        self.blame(step.object(), fault.to_string());
        let (ChainStep::Write(name, _) | ChainStep::Append(name, _) | ChainStep::Delete(name, _)) = step else {
            return;
        };
        self.failed.insert(name.clone());
        if !matches!(step, ChainStep::Write(..)) || base_table(ToHost::Drop).chains.contains_key(name) {
            return;
        }
        let closed = filter::closed(name.clone(), "its rules could not be written");
        let write = ChainStep::Write(name.clone(), Arc::new(closed.render()));
        let steps = Steps { filter: vec![write], nat: Vec::new() };
        if let Err(fault) = self.carry_out(&steps).await {
            self.blame(format!("{} (closing it)", step.object()), fault.to_string());
        }
    }

    async fn apply_routes(&mut self, desired: &Desired, scope: &Scope<'_>) -> bool {
        let steps = if scope.look.is_some() {
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
        for step in steps {
            let address = step.address();
            let owner = desired.routes.get(&address).and_then(|name| desired.owner(name.as_str()));
            self.rerouted.extend(owner.cloned());
            match self.hand.apply(&step).await {
                Ok(()) => routes::carried_out(&mut self.routes, &step),
                Err(fault) => {
                    let object =
                        owner.map_or_else(|| format!("route to {address}"), |key| endpoint_object(&key.endpoint));
                    self.unrouted.insert(address, (object, fault.to_string()));
                }
            }
        }
        self.unrouted.is_empty()
    }
}

/// What an apply looks at.
struct Scope<'c> {
    changes: &'c Changes,
    /// `Some`: everything.
    look: Option<Why>,
}

impl Scope<'_> {
    fn tell_drift(&self, objects: impl Iterator<Item = String>) {
        if self.look.is_some_and(Why::is_drift) {
            for object in objects {
                tracing::warn!(object, "drift: it was changed by somebody else and is put right");
            }
        }
    }
}
