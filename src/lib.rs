//! Calico for plain Docker.
#![deny(unsafe_op_in_unsafe_fn)]

mod config;
mod edge;
mod log;
mod model;
mod part;
mod plan;
