//! The errors that cross floors, told apart by who must act on them.

/// Why a thing was not done.
///
/// Grammar of every message: what we were doing, to which named object, `: `, the cause, with the wrong value and what
/// would have been right.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Fault {
    /// The caller asked for what cannot be: the request must change.
    #[error("{0}")]
    Refusal(String),
    /// Somebody else holds or changed the object.
    #[error("{0}")]
    Conflict(String),
    /// What we need (etcd, the agent, a tool) does not answer, or cannot be had now: try again later.
    #[error("{0}")]
    Away(String),
    /// dockerd does not answer.
    #[error("{0}")]
    DockerAway(String),
    /// The world did not do what it should: kernel, tool or file.
    #[error("{0}")]
    World(String),
}

impl Fault {
    /// The HTTP status that tells this error to a Docker client. Never 404: the docker command line answers a 404 at
    /// create by pulling the image.
    pub(crate) fn status(&self) -> u16 {
        match self {
            Fault::Refusal(_) => 400,
            Fault::Conflict(_) => 409,
            Fault::Away(_) => 503,
            Fault::DockerAway(_) => 502,
            Fault::World(_) => 500,
        }
    }

    /// The same fault with the words of what we were doing before its own.
    #[must_use]
    pub(crate) fn during(self, doing: &str) -> Self {
        match self {
            Fault::Refusal(text) => Fault::Refusal(format!("{doing}: {text}")),
            Fault::Conflict(text) => Fault::Conflict(format!("{doing}: {text}")),
            Fault::Away(text) => Fault::Away(format!("{doing}: {text}")),
            Fault::DockerAway(text) => Fault::DockerAway(format!("{doing}: {text}")),
            Fault::World(text) => Fault::World(format!("{doing}: {text}")),
        }
    }
}
