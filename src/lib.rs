//! Calico for plain Docker.
#![deny(unsafe_op_in_unsafe_fn)]

use std::process::ExitCode;

mod config;
mod edge;
mod log;
mod model;
mod part;
mod plan;
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
