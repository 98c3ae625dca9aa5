//! The decisions: pure functions from typed values to typed values. No clock, no file, no network, no environment.

pub(crate) mod account;
pub(crate) mod address;
#[cfg(test)]
mod agreement;
pub(crate) mod backoff;
pub(crate) mod bird;
pub(crate) mod body;
pub(crate) mod bundle;
pub(crate) mod call;
pub(crate) mod chain;
pub(crate) mod daemon_config;
pub(crate) mod desired;
pub(crate) mod diff;
pub(crate) mod filter;
pub(crate) mod flow;
pub(crate) mod json;
pub(crate) mod nat;
pub(crate) mod offer;
pub(crate) mod raw;
pub(crate) mod replies;
pub(crate) mod reports;
pub(crate) mod rota;
pub(crate) mod routes;
pub(crate) mod rules;
pub(crate) mod runtime;
pub(crate) mod saved;
pub(crate) mod sets;
pub(crate) mod settings;
pub(crate) mod short;
pub(crate) mod standing;
pub(crate) mod sysctl;
pub(crate) mod wiring;
