//! The hands: each file touches one part of the world. What stands for a whole system (etcd-client, bollard, rustls) is
//! named in one file.
//!
//! Kinds of kernel state share three verbs: `observe` the world into what is provably ours, compute the `steps` purely
//! (in `plan`), `apply` them.

pub(crate) mod activation;
pub(crate) mod bird;
pub(crate) mod clock;
pub(crate) mod config_file;
pub(crate) mod conntrack;
pub(crate) mod control;
pub(crate) mod docker;
pub(crate) mod dockerd_process;
pub(crate) mod etcd;
pub(crate) mod exec;
pub(crate) mod fail_point;
pub(crate) mod files;
pub(crate) mod guard;
pub(crate) mod handover;
pub(crate) mod http;
pub(crate) mod ipsets;
pub(crate) mod iptables;
pub(crate) mod kept_file;
pub(crate) mod kernel_routes;
pub(crate) mod links;
mod multicast;
pub(crate) mod netconf;
pub(crate) mod netns;
pub(crate) mod network_lock;
mod nfnetlink;
pub(crate) mod notes;
pub(crate) mod pipe;
pub(crate) mod random;
pub(crate) mod relay;
pub(crate) mod reservations;
pub(crate) mod ruleset;
pub(crate) mod run_dir;
pub(crate) mod sysctl;
pub(crate) mod tls;
pub(crate) mod wall_clock;
pub(crate) mod wire;
pub(crate) mod wiring;

#[cfg(test)]
pub(crate) mod testnet;
