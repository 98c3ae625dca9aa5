//! Calico for plain Docker.
#![deny(unsafe_op_in_unsafe_fn)]

mod edge;
mod model;
mod part;
mod plan;

pub use part::ctl::calicoctl_main;
