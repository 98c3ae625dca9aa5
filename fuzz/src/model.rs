//! The words that the modules under test use.

#[path = "../../src/model/endpoint.rs"]
pub(crate) mod endpoint;
#[path = "../../src/model/fault.rs"]
pub(crate) mod fault;
#[path = "../../src/model/name.rs"]
pub(crate) mod name;
#[path = "../../src/model/pool.rs"]
pub(crate) mod pool;
#[path = "../../src/model/wish.rs"]
pub(crate) mod wish;
