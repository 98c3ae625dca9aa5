//! Chains: written together; if the tool refuses, the steps are split in halves until the ones that cannot be carried out
//! stand alone, and a chain among them is closed instead.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::sync::Arc;

use super::{Ear, Kernel, LOOK, Scope, UNSEEN, WHOLE};
use crate::edge::iptables::{self, Steps};
use crate::model::fault::Fault;
use crate::plan::chain::{ChainName, ChainText, Line};
use crate::plan::desired::{Desired, base_table};
use crate::plan::diff::{self, ChainStep, FILTER, NAT, RAW, Table};
use crate::plan::filter;
use crate::plan::sets::SetName;
use crate::plan::settings::Settings;

/// Why a chain is closed that speaks of a set which is not what it should be.
const CLOSED_FOR_SETS: &str = "a set that it speaks of could not be made";

/// The chains that speak of any of some sets.
fn speaking_of<'t>(table: &'t Table, sets: &BTreeSet<SetName>) -> Vec<&'t ChainName> {
    if sets.is_empty() {
        return Vec::new();
    }
    let sets: BTreeSet<String> = sets.iter().map(SetName::to_string).collect();
    let speaks = |line: &Line| line.spec.split(' ').any(|word| sets.contains(word));
    let chains = table.chains.iter().filter(|(_, text)| text.lines.iter().any(speaks));
    chains.map(|(name, _)| name).collect()
}

impl Kernel {
    /// Leaves the chains as they are, because it is not known what the sets hold. A rule that denies by a set which is but
    /// half filled lets the rest pass. What policy said last goes on in whole: of some chains as they are to be and some as
    /// they were, the sum is what no policy has ever said; and to close those that speak of a set would cut traffic
    /// for every hiccup of the tool.
    pub(super) fn keep_chains(&mut self, desired: &Desired, scope: &Scope<'_>, fault: &Fault) -> bool {
        self.blame(WHOLE, fault.to_string());
        let only = scope.look.is_none().then_some(&scope.changes.filter);
        let steps = diff::steps(&desired.filter, self.seen(FILTER), only);
        // A dispatch that is only to get or to lose entries leads where it led.
        let is_other = |step: &&ChainStep| !matches!(step, ChainStep::Append(..) | ChainStep::Delete(..));
        self.failed.extend(steps.iter().filter(is_other).filter_map(ChainStep::chain).cloned());
        false
    }

    pub(super) async fn apply_chains(&mut self, desired: &Desired, scope: &Scope<'_>, ear: &mut Ear) -> bool {
        let only = scope.look.is_none().then_some(&scope.changes.filter);
        let (filter, nat) = (self.filter_without_spoiled(&desired.filter), self.nat_without_spoiled(&desired.nat));
        let mut steps = Steps::from([(FILTER, diff::steps(&filter, self.seen(FILTER), only))]);
        if scope.look.is_some() || scope.changes.nat {
            steps.insert(NAT, diff::steps(&nat, self.seen(NAT), None));
        }
        if scope.look.is_some() {
            steps.insert(RAW, diff::steps(&desired.raw, self.seen(RAW), None));
        }
        for object in desired.objects_of(&speaking_of(&desired.filter, &self.spoiled).into_iter().collect()) {
            self.blame(object, CLOSED_FOR_SETS.to_owned());
        }
        if steps.values().all(Vec::is_empty) {
            return true;
        }
        scope.tell_drift(steps.values().flatten().map(ChainStep::object));
        let done = match self.carry_out(&steps, ear).await {
            Ok(()) => return true,
            Err(fault @ Fault::Away(_)) => Err(fault),
            Err(fault) => {
                tracing::warn!(%fault, "chains could not be written together: writing them apart");
                match iptables::observe(self.family).await {
                    Ok(tables) => {
                        self.tables = tables;
                        self.apply_apart(desired, ear).await
                    }
                    // They are as they were.
                    Err(unseen) => {
                        self.blame(LOOK, unseen.to_string());
                        self.failed
                            .extend(steps.get(FILTER).into_iter().flatten().filter_map(ChainStep::chain).cloned());
                        return false;
                    }
                }
            }
        };
        if let Err(fault) = done {
            self.blame(WHOLE, fault.to_string());
            // What they say now is not known before the next look.
            let chains = steps.get(FILTER).into_iter().flatten().filter_map(ChainStep::chain);
            self.failed.extend(chains.cloned());
        }
        false
    }

    /// The filter table as long as some sets are not what they should be: what a chain would say of them is not what policy
    /// says, so it is closed. A set of another type can be replaced only once no chain speaks of it.
    fn filter_without_spoiled<'t>(&self, wanted: &'t Table) -> Cow<'t, Table> {
        self.without_spoiled(wanted, |name| filter::closed(name.clone(), CLOSED_FOR_SETS).render())
    }

    /// The same of the nat table, in which nothing can be dropped: nothing is masqueraded.
    fn nat_without_spoiled<'t>(&self, wanted: &'t Table) -> Cow<'t, Table> {
        self.without_spoiled(wanted, |_| ChainText { ordered: true, lines: Vec::new() })
    }

    fn without_spoiled<'t>(&self, wanted: &'t Table, instead: impl Fn(&ChainName) -> ChainText) -> Cow<'t, Table> {
        let mut table = Cow::Borrowed(wanted);
        for name in speaking_of(wanted, &self.spoiled) {
            table.to_mut().chains.insert(name.clone(), Arc::new(instead(name)));
        }
        table
    }

    /// Writes chains, and remembers what they are then. If the kernel tells of more changes than that makes, somebody else
    /// was at work.
    async fn carry_out(&mut self, steps: &Steps, ear: &mut Ear) -> Result<(), Fault> {
        self.flows.heed_chains(steps, self.tables.get(FILTER).unwrap_or(&UNSEEN));
        let before = ear.events.take();
        let tables = iptables::apply(self.family, steps).await?;
        ear.strangers |= before > 0 || ear.events.take() > tables;
        for (table, steps) in steps {
            diff::carried_out(self.tables.entry(table).or_default(), steps);
        }
        Ok(())
    }

    /// Carries out what can be carried out, and closes the chains that cannot be written.
    async fn apply_apart(&mut self, desired: &Desired, ear: &mut Ear) -> Result<(), Fault> {
        // Every chain is made first, so that no step fails for another's fault. An empty chain accepts nothing; that of a
        // profile would let the endpoint's next profile decide.
        let fresh = |step: ChainStep| match step {
            ChainStep::Write(name, text) => {
                let empty = || ChainText { ordered: text.ordered, lines: Vec::new() };
                let closed = || filter::closed(name.clone(), "its rules are being written").render();
                let first = if filter::is_profile(&name) { closed() } else { empty() };
                (!self.seen(FILTER).chains.contains_key(&name)).then(|| ChainStep::Write(name, Arc::new(first)))
            }
            _ => None,
        };
        let (filter, nat) = (self.filter_without_spoiled(&desired.filter), self.nat_without_spoiled(&desired.nat));
        let all = diff::steps(&filter, self.seen(FILTER), None);
        let made = Steps::from([(FILTER, all.into_iter().filter_map(fresh).collect())]);
        self.carry_out(&made, ear).await?;

        let apart = |(table, wanted): (&'static str, &Table)| (table, diff::steps(wanted, self.seen(table), None));
        let mut waiting: Vec<(&str, Vec<ChainStep>)> =
            [(NAT, &*nat), (FILTER, &*filter), (RAW, &desired.raw)].map(apart).into();
        while let Some((table, mut steps)) = waiting.pop() {
            let whole = Steps::from([(table, steps.clone())]);
            let Err(fault) = self.carry_out(&whole, ear).await else { continue };
            if matches!(fault, Fault::Away(_)) {
                return Err(fault);
            }
            if steps.len() > 1 {
                let rest = steps.split_off(steps.len().div_ceil(2));
                waiting.extend([(table, rest), (table, steps)]);
            } else if let Some(step) = steps.pop() {
                self.give_up(desired, table, &step, &fault, ear).await;
            }
        }
        Ok(())
    }

    /// Closes a chain of policy that cannot be written. The base chains are not: they are few and fixed, and closed they would cut
    /// off every container.
    async fn give_up(&mut self, desired: &Desired, table: &str, step: &ChainStep, fault: &Fault, ear: &mut Ear) {
        let Some(name) = step.chain() else { return self.blame(step.object(), fault.to_string()) };
        let its = desired.objects_of(&BTreeSet::from([name])).pop_first().filter(|_| table == FILTER);
        let object = its.unwrap_or_else(|| step.object());
        let why = format!("{} could not be written: {fault}", step.object());
        // A profile, or an endpoint, has two.
        let before = self.faults.get(&object).map(|before| format!("{before}; ")).unwrap_or_default();
        self.blame(&object, before + &why);
        self.failed.insert(name.clone());
        if table != FILTER
            || !matches!(step, ChainStep::Write(..))
            || base_table(self.family, &Settings::default()).chains.contains_key(name)
        {
            return;
        }
        let closed = filter::closed(name.clone(), "its rules could not be written");
        let write = ChainStep::Write(name.clone(), Arc::new(closed.render()));
        let steps = Steps::from([(FILTER, vec![write])]);
        if let Err(fault) = self.carry_out(&steps, ear).await {
            self.blame(format!("{object} (closing it)"), fault.to_string());
        }
    }
}
