//! Claims: who holds an address. The record of one address is the only lock that there is on it.

use serde::{Deserialize, Serialize};

use super::name::{EndpointId, HostName, Orchestrator, WorkloadId};

/// How far a claim has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum ClaimState {
    /// A create is under way; the key hangs on its node's lease and goes away with it.
    Pending,
    /// Held by the owner until its container is destroyed.
    Bound,
}

/// The holder of an address.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Owner {
    pub(crate) host: HostName,
    pub(crate) orchestrator: Orchestrator,
    /// The container id; absent while the claim is pending.
    pub(crate) workload: Option<WorkloadId>,
    pub(crate) endpoint: EndpointId,
    /// The container's name when it was created; empty where Docker chose it.
    pub(crate) name: String,
    /// When the claim was made: RFC 3339, UTC, seconds.
    pub(crate) since: String,
}

/// The value of an assignment key. An empty value, as the original wrote it, is a claim of an unknown owner.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Claim {
    /// The version of this format: 1.
    pub(crate) v: u8,
    pub(crate) state: ClaimState,
    pub(crate) owner: Owner,
    /// The create request that made it: hex digits.
    pub(crate) request: String,
    /// The container that takes the address over when the owner is destroyed.
    pub(crate) successor: Option<serde_json::Value>,
}

impl Claim {
    /// Who holds it, in words for an error message.
    pub(crate) fn holder(&self) -> String {
        let what = match (&self.owner.workload, self.owner.name.is_empty()) {
            (Some(id), true) => format!("container {}", short(id.as_str())),
            (Some(id), false) => format!("container {} ({})", self.owner.name, short(id.as_str())),
            (None, true) => "a container that is being created".to_owned(),
            (None, false) => format!("container {}, which is being created,", self.owner.name),
        };
        format!("{what} on host {} since {}", self.owner.host, self.owner.since)
    }
}

fn short(id: &str) -> &str {
    id.get(..12).unwrap_or(id)
}
