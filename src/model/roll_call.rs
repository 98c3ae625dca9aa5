//! Roll call: somebody asks every host whether its kernel holds what the datastore says (docs/data-model.md).
//!
//! A call is newer than what was written before it, so a host that has programmed the revision of the call has programmed
//! that too.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

/// What is asked of every host.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct RollCall {
    /// The objects that it is about, as a node calls them among its faults.
    #[serde(default)]
    pub(crate) objects: BTreeSet<String>,
}

/// What a host answers when its kernel has come so far.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct RollAnswer {
    /// Those of the objects that are not as they should be, and why.
    #[serde(default)]
    pub(crate) faults: BTreeMap<String, String>,
}
