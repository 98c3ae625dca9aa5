//! The parts under test.

pub(crate) mod proxy;
