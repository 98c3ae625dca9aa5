//! Placeholder.
use crate::model::fault::Fault;
use crate::model::name::IfName;
pub(crate) fn apply_to_interface(_name: &IfName) -> Result<(), Fault> { Ok(()) }
