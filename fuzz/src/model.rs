//! The words that the modules under test use: all of them, so that a new use of one needs nothing here.

#[path = "../../src/model/bgp.rs"]
pub(crate) mod bgp;
#[path = "../../src/model/claim.rs"]
pub(crate) mod claim;
#[path = "../../src/model/control.rs"]
pub(crate) mod control;
#[path = "../../src/model/endpoint.rs"]
pub(crate) mod endpoint;
#[path = "../../src/model/fault.rs"]
pub(crate) mod fault;
#[path = "../../src/model/key.rs"]
pub(crate) mod key;
#[path = "../../src/model/name.rs"]
pub(crate) mod name;
#[path = "../../src/model/pool.rs"]
pub(crate) mod pool;
#[path = "../../src/model/profile.rs"]
pub(crate) mod profile;
#[path = "../../src/model/recreation.rs"]
pub(crate) mod recreation;
#[path = "../../src/model/rule.rs"]
pub(crate) mod rule;
#[path = "../../src/model/snapshot.rs"]
pub(crate) mod snapshot;
#[path = "../../src/model/wish.rs"]
pub(crate) mod wish;
