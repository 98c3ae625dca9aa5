//! That the datastore has gone back to an older state, as whoever noticed has told it in the datastore itself.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use super::name::HostName;

/// The last time that it did.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct GoneBack {
    /// How many times it had then. A datastore that has gone back again may hold a lower number than hosts remember.
    pub(crate) number: u64,
    /// The hosts that were to say what they hold. Who is not awaited any more has, or is no more.
    pub(crate) hosts: BTreeSet<HostName>,
}
