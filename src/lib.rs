//! Calico for plain Docker: containers with real, routed addresses and a policy, without an overlay or NAT.
//!
//! The datastore says what should be. Pure functions turn one host's view of it into values that one can print, compare
//! and test. Thin hands look at the kernel and close the gap. Everything that enters (a Docker call, a key in etcd, a
//! command line) is parsed once, at the door, into a typed value; inside there are only typed values.
//!
//! ```text
//!  docker CLI, compose, SDKs          calicoctl                     other hosts
//!         │ Docker API :2377             │ etcd · control socket        ▲ BGP
//!         ▼                              ▼                              │
//!   ┌───────────┐  wires veth   ┌──────────────┐  routes, ipsets,  ┌────┴────┐
//!   │   proxy   │──────────────▶│   kernel     │◀──── chains ──────│  agent  │──▶ BIRD
//!   └─────┬─────┘               └──────▲───────┘                   └────▲────┘
//!         │ forwards             wires │   endpoint, IP claim           │ watch
//!         ▼                            │       ▼                        │
//!      dockerd ──▶ calico-runtime ──▶ hook   etcd v3 ───────────────────┘
//! ```
//!
//! # Floors
//!
//! A module uses only lower floors; a test reads the `use` lines and fails on one that goes up.
//!
//! | floor | module | what it holds |
//! | --- | --- | --- |
//! | 0 | `model` | the words of the field: names, keys, records, the snapshot of the datastore |
//! | 1 | `plan` | every decision, as pure functions: which call a request is, which address a container gets, what chains, sets, routes and BIRD's configuration should be, and the steps from what is to what should be |
//! | 2 | `edge` | the hands: etcd, dockerd, TLS, systemd's sockets, netlink, connection tracking, iptables, ipset, nft, BIRD, child processes; etcd-client, bollard and rustls are each named in one module |
//! | 3 | `part` | what runs: proxy, network (the life of a container's network), agent, control socket, metrics, reports, the OCI runtime with its hook, and `calicoctl` |
//! | 4 | `config`, `log`, `run` | the frame: reads the flags, starts the parts, joins them |
//!
//! # One container, from create to destroy
//!
//! 1. `POST /containers/create` with `CALICO_IP` in its environment: the proxy claims the address in etcd, changes the
//!    network mode to `none`, forwards, and binds the claim to the container's id in the same transaction that writes the
//!    endpoint's record as `inactive`. The agent programs chains and sets: the policy stands before the process does.
//! 2. The container is started, by whomever. Where dockerd knows our OCI runtime, the proxy has asked for it in the create,
//!    and its hook runs when the namespaces are there and the process is not: it asks the node what to wire, which the node
//!    says once the policy stands in the kernel, makes a veth pair whose peer is born in the container's namespace, and
//!    routes it. The node marks the record `active`. Without an answer the start fails; without a node the hook goes by
//!    what is kept on disk, if the policy is known to stand. Elsewhere, and as the check, the node does the same with the
//!    same function when the start came through the proxy or an event told of it; the proxy passes dockerd's reply on only
//!    then, and stops the container if it fails.
//! 3. The process ends, however: Docker's event makes `settle` look at the container; interface and route go, the record
//!    is `inactive`, the address stays.
//! 4. The container is destroyed: record and claim go in one transaction. If another container was made to take its place, as
//!    compose does it, the claim passes over to that one instead.
//!
//! The same `settle` serves the proxy, the events and the periodic comparison of all containers with all records, so what
//! passed the proxy by is mended too.
//!
//! # What protects a container
//!
//! IPv4 and IPv6 are two planes of the same: chains, sets, routes of each are wanted, seen and put right for themselves, and
//! an endpoint stands in those that it has an address of. In either, chains reached by a dispatch on the interface decide;
//! what they accept carries a mark; a last rule drops what comes from or goes to a `cali*` interface without it. Before
//! connection tracking, the raw table drops foreign source addresses and whatever is sent to the node's own services. Behind
//! all stands the guard, an nft table of which the node is the owner: it drops what has no mark even when somebody flushes
//! all of iptables.
//!
//! The kernel asks policy once, when a connection begins. So when policy becomes tighter, the flows that stand are held to it
//! again by the same rules as values, and those that it would not let begin any more are cut.
//!
//! # What is believed
//!
//! The datastore, while it is plausible: another cluster, or one without its `Ready` key while this host has containers, is
//! doubted, and what is programmed stays. What an older state of it lacks of this host's containers is put back first. The
//! kernel, while nobody tells of changes by others: then, and on a clock, it is looked at in whole, and what differs is
//! drift, put right and counted.
#![warn(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::process::ExitCode;

mod config;
mod edge;
#[cfg(test)]
mod house;
mod log;
mod model;
mod part;
mod plan;
#[cfg(test)]
mod reference;
mod run;

/// Runs `calico-node` with the arguments and the environment of this process.
#[must_use]
pub fn calico_node_main() -> ExitCode {
    run::node()
}

/// Runs `calicoctl` with the arguments and the environment of this process.
#[must_use]
pub fn calicoctl_main() -> ExitCode {
    part::ctl::calicoctl_main()
}

/// Runs `calico-runtime` with these arguments, its own name left out.
#[must_use]
pub fn calico_runtime_main(args: Vec<std::ffi::OsString>) -> ExitCode {
    part::runtime::calico_runtime_main(args)
}
