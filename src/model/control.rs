//! The node's control socket: the paths and bodies that `calicoctl` and the OCI hook exchange with a running node.
//!
//! Both sides use these types, so a body that one writes is a body that the other reads. The socket is
//! `<run-dir>/control.sock` and speaks HTTP/1.1 with JSON.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use super::name::{ContainerId, HostName, IfName};
use super::reservation::Reservation;

/// The socket's name in the run folder.
pub(crate) const SOCKET: &str = "control.sock";

/// `POST` [`ContainerAdd`], answered by [`ContainerAdded`].
pub(crate) const ADD: &str = "/v1/containers/add";
/// `POST` [`ContainerCalled`], answered by [`ContainerNamed`]: takes a container out of Calico.
pub(crate) const REMOVE: &str = "/v1/containers/remove";
/// `POST` [`ContainerCalled`], answered by [`ContainerNamed`].
pub(crate) const RESOLVE: &str = "/v1/containers/resolve";
/// `POST` [`ContainerStarting`], answered by [`ContainerWiring`]: the OCI hook asks before it wires.
pub(crate) const STARTING: &str = "/v1/containers/starting";
/// `POST` [`ContainerWired`], answered by [`ContainerNamed`]: the OCI hook has wired.
pub(crate) const WIRED: &str = "/v1/containers/wired";
/// `POST` [`ContainerRefused`], answered by [`ContainerNamed`]: the OCI hook does not let a container start.
pub(crate) const REFUSED: &str = "/v1/containers/refused";
/// `GET`, answered by [`Status`].
pub(crate) const STATUS: &str = "/v1/status";

/// Gives a running container an address, and an interface for it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ContainerAdd {
    /// Its name, id or part of the id.
    pub(crate) container: String,
    /// One wish, as the user typed it.
    pub(crate) ip: String,
    /// What the interface is called inside.
    pub(crate) interface: IfName,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ContainerAdded {
    pub(crate) container: ContainerId,
    pub(crate) addresses: Vec<IpAddr>,
}

/// The container that somebody means.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ContainerCalled {
    /// Its name, id or part of the id.
    pub(crate) container: String,
}

/// A container whose process is about to run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ContainerStarting {
    pub(crate) container: ContainerId,
    /// Whether its environment, which may be the image's, speaks of Calico.
    #[serde(default)]
    pub(crate) wishes: bool,
}

/// What the OCI hook has done.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct ContainerWired {
    pub(crate) container: ContainerId,
    /// How long it took, in seconds, the node's answer included.
    pub(crate) took_s: f64,
}

/// What the OCI hook has not done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ContainerRefused {
    pub(crate) container: ContainerId,
    pub(crate) why: String,
}

/// What a starting container is to be wired with. An answer of success says that its policy stands in the kernel.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum ContainerWiring {
    /// The container is none of ours.
    NotOurs,
    Wire(Reservation),
    /// The node has not heard of its datastore yet: what it left in the kernel before may stand.
    Unknown,
}

/// The container that a name stands for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ContainerNamed {
    pub(crate) container: ContainerId,
}

/// The body of every answer that is not a success.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Failed {
    pub(crate) message: String,
}

/// How a node is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Status {
    pub(crate) host: HostName,
    pub(crate) version: String,
    /// The host's IPv4 address towards other hosts; `None` until it is known.
    pub(crate) ip: Option<IpAddr>,
    /// The same of IPv6; `None` if it was given none.
    #[serde(default)]
    pub(crate) ip6: Option<IpAddr>,
    #[serde(rename = "as")]
    pub(crate) as_number: u32,
    pub(crate) ready: bool,
    /// What it waits for before it is ready.
    pub(crate) waiting_for: Vec<String>,
    pub(crate) etcd: String,
    pub(crate) etcd_connected: bool,
    pub(crate) docker: String,
    pub(crate) docker_connected: bool,
    pub(crate) listeners: Vec<String>,
    pub(crate) endpoints: EndpointCount,
    /// `None`: this node runs no BGP.
    pub(crate) bird: Option<BirdStatus>,
    pub(crate) faults: Vec<ReportedFault>,
    pub(crate) warnings: Vec<String>,
}

/// The endpoints of the host.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct EndpointCount {
    pub(crate) active: usize,
    pub(crate) inactive: usize,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct BirdStatus {
    /// Whether it answers on its socket.
    pub(crate) up: bool,
    pub(crate) sessions: Vec<BgpSession>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct BgpSession {
    /// BIRD's name of the protocol.
    pub(crate) name: String,
    pub(crate) peer: IpAddr,
    #[serde(rename = "type")]
    pub(crate) kind: PeerKind,
    /// BIRD's own words, as are the next two: `up`, `start`, `down`.
    pub(crate) state: String,
    pub(crate) since: String,
    /// `Established`, or what keeps it from that.
    pub(crate) info: String,
}

impl BgpSession {
    /// Whether routes pass: BIRD tells so in these words (`show protocols`).
    pub(crate) fn is_up(&self) -> bool {
        self.info == "Established"
    }
}

/// Why a host has a peer, in the original's words.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) enum PeerKind {
    #[serde(rename = "node-to-node mesh")]
    Mesh,
    #[serde(rename = "global")]
    Global,
    #[serde(rename = "node specific")]
    Node,
}

impl std::fmt::Display for PeerKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            PeerKind::Mesh => "node-to-node mesh",
            PeerKind::Global => "global",
            PeerKind::Node => "node specific",
        })
    }
}

/// An object that is not as it should be, and why.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ReportedFault {
    pub(crate) object: String,
    pub(crate) why: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_is_read_as_it_is_documented() {
        let text = r#"{"host":"h1","version":"0.1.0","ip":"172.25.0.1","ip6":"fd00::1","as":64511,"ready":true,"waiting_for":[],
            "etcd":"http://127.0.0.1:2379","etcd_connected":true,"docker":"unix:///var/run/docker.sock",
            "docker_connected":true,"listeners":["tcp://127.0.0.1:2377"],"endpoints":{"active":1,"inactive":0},
            "bird":{"up":true,"sessions":[{"name":"Mesh_172_25_0_2","peer":"172.25.0.2","type":"node-to-node mesh",
            "state":"up","since":"12:00:00","info":"Established"}]},
            "faults":[{"object":"profile web","why":"unreadable"}],"warnings":["a pool overlaps"]}"#;
        let status: Status = serde_json::from_str(text).unwrap();
        let again: serde_json::Value = serde_json::from_str(text).unwrap();
        assert_eq!(serde_json::to_value(&status).unwrap(), again);
    }
}
