//! The network of a container through its life: claim before create, wire at start, free at destroy.

use std::net::IpAddr;

use crate::model::endpoint::Requested;
use crate::model::fault::Fault;
use crate::model::name::{ContainerId, Mac};
use crate::model::wish::Wish;

/// What a create request asks, once it has been read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Ask {
    pub(crate) wish: Wish,
    /// The name given by `?name=`; empty where Docker chooses one.
    pub(crate) name: String,
    pub(crate) requested: Requested,
    /// What the user should know of the request itself (ports without effect, …).
    pub(crate) warnings: Vec<String>,
}

/// Addresses that are claimed for a create that is under way.
#[derive(Debug)]
pub(crate) struct Prepared {}

/// How a container of ours looks to Docker's clients.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Appearance {
    pub(crate) addresses: Vec<IpAddr>,
    pub(crate) mac: Option<Mac>,
    pub(crate) ipv4_gateway: Option<IpAddr>,
    pub(crate) requested: Requested,
}

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
