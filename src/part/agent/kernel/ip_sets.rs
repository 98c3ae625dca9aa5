//! Sets: members first, before any chain speaks of them, but for those that could open what chains still say; sets that no
//! chain speaks of any more last.

use std::collections::BTreeSet;

use super::{Kernel, Scope, WHOLE};
use crate::edge::ipsets;
use crate::model::fault::Fault;
use crate::plan::desired::Desired;
use crate::plan::sets::{self, SetName, SetStep};

impl Kernel {
    /// The steps of all sets that are wanted: those before the chains that are written with them, and those behind. `refused`: the
    /// sets of which the kernel has refused some the last time.
    pub(super) fn set_steps(
        &mut self,
        desired: &Desired,
        scope: &Scope<'_>,
        refused: &BTreeSet<SetName>,
    ) -> (Vec<SetStep>, Vec<SetStep>) {
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
        self.flows.heed_sets(&steps);
        if scope.look.is_none() && scope.changes.filter.is_empty() {
            return (steps, Vec::new());
        }
        let flows = &self.flows;
        sets::around_chains(steps, refused, |name| flows.shuts(name), |name| flows.shut(name) || flows.shuts(name))
    }

    /// Carries out what had to wait for the chains. Where it is not known how much of that was done, none of them counts as
    /// standing.
    pub(super) async fn open_sets(&mut self, steps: Vec<SetStep>, scope: &Scope<'_>) -> bool {
        let opened = self.carry_out_sets(steps).await;
        opened.unwrap_or_else(|fault| {
            self.blame(WHOLE, fault.to_string());
            self.failed.extend(scope.changes.filter.iter().cloned());
            false
        })
    }

    pub(super) async fn remove_sets(&mut self, desired: &Desired, scope: &Scope<'_>) -> bool {
        let mut steps = sets::removals(&desired.sets, &self.sets);
        if scope.look.is_none() {
            steps.retain(|step| scope.changes.sets.contains_key(step.set()));
        }
        scope.tell_drift(steps.iter().map(|step| format!("set {}", step.set())));
        let removed = self.carry_out_sets(steps).await;
        removed.unwrap_or_else(|fault| {
            self.blame(WHOLE, fault.to_string());
            false
        })
    }

    /// Answers whether all went well.
    ///
    /// # Errors
    /// `Away`: how much was done is not known.
    pub(super) async fn carry_out_sets(&mut self, steps: Vec<SetStep>) -> Result<bool, Fault> {
        match ipsets::apply(&steps).await {
            Ok(()) => {
                sets::carried_out(&mut self.sets, &steps);
                return Ok(true);
            }
            Err(fault @ Fault::Away(_)) => return Err(fault),
            Err(_) => {}
        }
        // The tool stopped somewhere: what was done is not known, so each set is tried for itself.
        let mut well = true;
        for (name, steps) in sets::apart(steps) {
            match ipsets::apply(&steps).await {
                Ok(()) => sets::carried_out(&mut self.sets, &steps),
                Err(fault @ Fault::Away(_)) => return Err(fault),
                Err(fault) => {
                    self.blame(format!("set {name}"), fault.to_string());
                    self.spoiled.insert(name);
                    well = false;
                }
            }
        }
        Ok(well)
    }
}
