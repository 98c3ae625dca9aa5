//! Reports: what nodes say of themselves and of their endpoints under `/calico/felix/v1/` (docs/data-model.md).

use serde::{Deserialize, Serialize};

/// How an endpoint is, from good to bad.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Health {
    /// Its container runs, and interface, policy and routes stand.
    Up,
    /// Its container does not run, or what it needs is not there yet.
    Down,
    /// Something keeps it from working, or closes it.
    Error,
}

/// What the node of an endpoint says of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct EndpointReport {
    pub(crate) status: Health,
    /// Of an error: what is wrong. The original had no such field.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) reason: Option<String>,
    /// The networks of Docker's that its container is on too. Policy does not see what goes over them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) beside: Option<String>,
}

/// A container of ours that is on networks of Docker's too.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Beside {
    /// Its name.
    pub(crate) container: String,
    /// Their names, in words.
    pub(crate) networks: String,
}

impl std::fmt::Display for Beside {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "container {} is on Docker's network {} beside Calico's: what goes over that escapes policy; \
             docker network disconnect ends it, or a restart of the container",
            self.container, self.networks
        )
    }
}

/// What a node says of itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct HostReport {
    /// RFC 3339, UTC.
    pub(crate) time: String,
    /// For how many seconds it has been running.
    pub(crate) uptime: u64,
    /// Whether it is the first that this node says.
    pub(crate) first_update: bool,
}

impl EndpointReport {
    pub(crate) fn error(reason: impl Into<String>) -> Self {
        EndpointReport { status: Health::Error, reason: Some(reason.into()), beside: None }
    }

    pub(crate) fn plain(status: Health) -> Self {
        EndpointReport { status, reason: None, beside: None }
    }
}
