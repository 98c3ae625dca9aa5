//! Placeholder.
use std::collections::BTreeMap;

use crate::model::name::EndpointId;

#[derive(Debug, Clone, Default)]
pub(crate) struct Programmed {
    pub(crate) revision: i64,
    pub(crate) in_sync: bool,
    pub(crate) endpoints: BTreeMap<EndpointId, EndpointProgrammed>,
    pub(crate) faults: BTreeMap<String, String>,
    pub(crate) bird: crate::edge::bird::BirdState,
}
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct EndpointProgrammed {
    pub(crate) revision: i64,
    pub(crate) active: bool,
}
