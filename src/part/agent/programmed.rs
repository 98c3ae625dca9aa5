//! Programmed: what the kernel holds, as those are told who wait for it: a start, `status`, the metrics, and by marks in the
//! run folder a hook that finds no node.

use std::collections::{BTreeMap, BTreeSet};

use super::{Agent, Plane};
use crate::edge::bird::BirdState;
use crate::edge::run_dir::Marks;
use crate::model::fault::Fault;
use crate::model::key::EndpointKey;
use crate::model::name::{EndpointId, Orchestrator};
use crate::plan::diff::SeenTable;
use crate::plan::filter::{self, Way};

/// What the kernel holds, for those who wait for it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Programmed {
    /// The newest revision of the datastore that is in the kernel.
    pub(crate) revision: i64,
    /// Whether the kernel holds all that the snapshot says, but for the objects in `faults`.
    pub(crate) in_sync: bool,
    /// The endpoints of this host whose policy stands.
    pub(crate) endpoints: BTreeMap<EndpointKey, EndpointProgrammed>,
    /// What is closed or missing, and why; an endpoint under its bare id.
    pub(crate) faults: BTreeMap<String, String>,
    pub(crate) bird: BirdState,
}

/// An endpoint in the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct EndpointProgrammed {
    /// The revision of its record that stands.
    pub(crate) revision: i64,
    /// Whether all its addresses are routed to it.
    pub(crate) active: bool,
}

/// Takes away the marks of endpoints whose policy does not stand any more: somebody flushed it while no node ran. Of an
/// endpoint of both families that stands in one, the other is dark for the moment.
pub(super) fn check_marks(marks: &Marks, stood: &[SeenTable]) {
    for id in marks.all() {
        let interface = id.parse::<EndpointId>().ok().and_then(|id| id.interface());
        let stands = interface.as_ref().and_then(filter::suffix).is_some_and(|suffix| {
            let chains = Way::BOTH.map(|way| [way.dispatch_chain(""), way.endpoint_chain(suffix)]).concat();
            stood.iter().any(|seen| chains.iter().all(|chain| seen.chains.contains_key(chain)))
        });
        if !stands {
            mark(marks.clear(&id));
        }
    }
}

impl Agent {
    /// Tells what came of an apply, if anything did. An endpoint stands when it does in each family that it is of.
    pub(super) fn publish(&mut self, mut keys: BTreeSet<EndpointKey>) {
        let faults = self.faults();
        let Agent { programmed, planes, known, told, marks, swept, .. } = self;
        let revision = known.unwrap_or_default();
        told.retain(|object, why| faults.get(object) == Some(why));
        for (object, why) in &faults {
            // A fault of the kernel is told when it has outlived one retry: an interface that goes with its container
            // takes its route along before anybody can say so in the datastore.
            let lasts = planes.iter().any(|plane| plane.desired.faults.contains_key(object))
                || programmed.borrow().faults.get(object) == Some(why);
            if lasts && told.insert(object.clone(), why.clone()).is_none() {
                tracing::warn!(object, why, "not as it should be");
            }
        }
        for Plane { desired, kernel, .. } in &*planes {
            keys.extend(kernel.rerouted().iter().cloned());
            if kernel.looked_at_all() {
                keys.extend(desired.placed().map(|(key, _)| key.clone()));
            }
        }
        programmed.send_if_modified(|programmed| {
            let in_sync = known.is_some() && planes.iter().all(|plane| plane.kernel.is_known());
            let same = keys.is_empty()
                && programmed.revision == revision
                && programmed.in_sync == in_sync
                && programmed.faults == faults;
            if same {
                return false;
            }
            programmed.revision = revision;
            programmed.in_sync = in_sync;
            programmed.faults = faults;
            for key in keys {
                let stands = stands(planes, &key);
                // Who asks for a mark is a hook of Docker's.
                let id = (key.orchestrator == Orchestrator::docker()).then(|| key.endpoint.clone());
                let stood = match stands {
                    Some(stands) => programmed.endpoints.insert(key, stands).is_some(),
                    None => programmed.endpoints.remove(&key).is_some(),
                };
                match (id, stands) {
                    (Some(id), Some(_)) if !stood => mark(marks.set(id.as_str(), "")),
                    (Some(id), None) => mark(marks.clear(id.as_str())),
                    _ => {}
                }
            }
            // Those of an earlier run, once everything has been looked at.
            if in_sync && !std::mem::replace(swept, true) {
                let known: BTreeSet<&str> = programmed.endpoints.keys().map(|key| key.endpoint.as_str()).collect();
                let strangers = marks.all().into_iter().filter(|id| !known.contains(id.as_str()));
                strangers.for_each(|id| mark(marks.clear(&id)));
            }
            true
        });
    }

    /// What is closed or missing in either family, and why.
    fn faults(&self) -> BTreeMap<String, String> {
        let mut faults: BTreeMap<String, String> = BTreeMap::new();
        for Plane { desired, kernel, .. } in &self.planes {
            let mut own = desired.faults.clone();
            for (object, why) in kernel.faults() {
                let why = own.get(object).map_or_else(|| why.clone(), |first| format!("{first}; {why}"));
                own.insert(object.clone(), why);
            }
            for (object, why) in own {
                match faults.get_mut(&object) {
                    Some(other) if *other != why => *other = format!("{other}; in IPv6: {why}"),
                    Some(_) => {}
                    None => {
                        faults.insert(object, why);
                    }
                }
            }
        }
        let strange = |name: &String| {
            let why = "no endpoint of this host has this interface: nothing passes it, and it is left as it is";
            (format!("interface {name}"), why.to_owned())
        };
        faults.extend(self.strangers.iter().map(strange));
        faults.extend(self.guard_lost.clone().map(|why| ("guard".to_owned(), why)));
        faults
    }
}

/// What of an endpoint is in the kernel; `None` if its policy does not stand in each family that it is of.
fn stands(planes: &[Plane], key: &EndpointKey) -> Option<EndpointProgrammed> {
    let mut all = None;
    for Plane { desired, kernel, .. } in planes {
        let (revision, endpoint) = desired.endpoint(key).filter(|(_, endpoint)| kernel.holds(endpoint))?;
        let routed = endpoint.is_active() && kernel.routes_to(endpoint, &desired.routes);
        let active = routed && all.is_none_or(|before: EndpointProgrammed| before.active);
        all = Some(EndpointProgrammed { revision, active });
    }
    all
}

/// The marks are for a hook that finds no node; without one it refuses a start.
fn mark(marked: Result<(), Fault>) {
    if let Err(fault) = marked {
        tracing::warn!(%fault, "a mark of what the kernel holds is not right");
    }
}
