//! The words of the field: every value that this software speaks of, as a type that cannot hold a wrong one.
//!
//! Text from outside (an etcd value, a create body, a command line) is parsed here once, at the door; inside there are
//! only these types. The module is pure: no clock, no file, no network. `key` and the records are the data model
//! of the original Calico, kept so that records written by its tools are still read.

pub(crate) mod bgp;
pub(crate) mod claim;
pub(crate) mod control;
pub(crate) mod endpoint;
pub(crate) mod fault;
pub(crate) mod gone_back;
pub(crate) mod host;
pub(crate) mod key;
pub(crate) mod name;
pub(crate) mod note;
pub(crate) mod pool;
pub(crate) mod profile;
pub(crate) mod recreation;
pub(crate) mod report;
pub(crate) mod reservation;
pub(crate) mod roll_call;
pub(crate) mod rule;
pub(crate) mod snapshot;
pub(crate) mod wish;
