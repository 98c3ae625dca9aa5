//! The network of a container through its life: claim before create, wire at start, free at destroy.

use crate::model::fault::Fault;
use crate::model::name::ContainerId;
use crate::plan::body::{Appearance, Ask};

/// Addresses that are claimed for a create that is under way.
#[derive(Debug)]
pub(crate) struct Prepared {}

/// See the module.
#[derive(Debug)]
pub(crate) struct Network {}

impl Network {
    /// Checks a wish and claims its addresses.
    ///
    /// # Errors
    /// Nothing is left claimed.
    pub(crate) async fn prepare(&self, _ask: Ask) -> Result<Prepared, Fault> {
        unimplemented!()
    }

    /// Binds the claims to the container that Docker made, with its endpoint record. Answers the warnings for the user.
    ///
    /// # Errors
    /// The container has been removed again and the claims released, as far as that went.
    pub(crate) async fn bind(&self, _prepared: Prepared, _id: &ContainerId) -> Result<Vec<String>, Fault> {
        unimplemented!()
    }

    /// Releases the claims of a create that Docker refused.
    pub(crate) async fn abandon(&self, _prepared: Prepared) {
        unimplemented!()
    }

    /// The id of a container that Docker knows by name, id or part of an id. `None`: no container, or none of ours.
    pub(crate) async fn ours(&self, _name: &str) -> Result<Option<ContainerId>, Fault> {
        unimplemented!()
    }

    /// Makes the network of a container what Docker's word on the container requires: wired and routed while it runs,
    /// dark while it does not, freed when it is gone. Safe to call at any time, any number of times.
    ///
    /// `through_us` tells that a client waits for the start: on failure the container is stopped.
    pub(crate) async fn settle(&self, _id: &ContainerId, _through_us: bool) -> Result<(), Fault> {
        unimplemented!()
    }

    /// Settles every container of ours on this host.
    pub(crate) async fn settle_all(&self) -> Result<(), Fault> {
        unimplemented!()
    }

    /// How a container looks to Docker's clients; `None` if it is not one of ours.
    pub(crate) fn appearance(&self, _id: &ContainerId) -> Option<Appearance> {
        unimplemented!()
    }

    /// Whether a network by this name or id is one that a container of ours shows without being in it.
    pub(crate) fn shows_network(&self, _id: &ContainerId, _network: &str) -> bool {
        unimplemented!()
    }
}
