//! Reservations: what a container of ours is wired with, as it is kept on its host beside the datastore.
//!
//! A container that is known starts with its address though node and etcd are away, so the OCI hook must find it all on
//! this host's disk. The record in the datastore is the original; this is a copy of it.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use serde::{Deserialize, Serialize};

use super::endpoint::Endpoint;
use super::name::{ContainerId, EndpointId};

/// See the module.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Reservation {
    /// The version of this format: 1.
    pub(crate) v: u8,
    pub(crate) container: ContainerId,
    /// The next hop of the container: this host's address.
    pub(crate) gateway: Ipv4Addr,
    pub(crate) endpoints: BTreeMap<EndpointId, Endpoint>,
    /// Why it starts only with a node's word: it waits for an address, or has lost one. `None`: it holds all that it has.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) withheld: Option<String>,
}
