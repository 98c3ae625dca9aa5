//! The moving parts: what runs, and what it does with decisions and hands.

pub(crate) mod agent;
pub(crate) mod clean;
pub(crate) mod control;
pub(crate) mod ctl;
pub(crate) mod defaults;
pub(crate) mod metrics;
pub(crate) mod network;
pub(crate) mod proxy;
pub(crate) mod recording;
pub(crate) mod reports;
pub(crate) mod runtime;
pub(crate) mod runtime_entry;
pub(crate) mod status;
pub(crate) mod store;
pub(crate) mod under_way;
