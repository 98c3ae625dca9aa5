//! What this host last saw of its datastore, kept on its disk: a node that has just begun knows by it that the datastore
//! was put back to an older state, or is another one, since the node before it.
//!
//! A datastore is most likely put back when the power was lost, so the file is brought to the disk before it takes the place of
//! the one before.

use std::fs::File;
use std::io::{ErrorKind, Write as _};
use std::path::{Path, PathBuf};

use crate::model::fault::Fault;
use crate::plan::standing::Seen;

/// The file.
#[derive(Debug, Clone)]
pub(crate) struct LastSeen {
    path: PathBuf,
}

impl LastSeen {
    pub(crate) fn in_state_dir(state_dir: &Path) -> Self {
        LastSeen { path: state_dir.join("datastore.json") }
    }

    /// `None` if nothing was ever kept.
    ///
    /// # Errors
    /// `World`: it cannot be read.
    pub(crate) fn read(&self) -> Result<Option<Seen>, Fault> {
        let fault = |cause: String| Fault::World(format!("read {}: {cause}", self.path.display()));
        match std::fs::read(&self.path) {
            Ok(text) => serde_json::from_slice(&text).map(Some).map_err(|error| fault(error.to_string())),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(fault(error.to_string())),
        }
    }

    /// Keeps it, unless it is kept already.
    pub(crate) fn keep(&self, seen: &Seen) -> Result<(), Fault> {
        if self.read().ok().flatten().as_ref() == Some(seen) {
            return Ok(());
        }
        let fault = |cause: String| Fault::World(format!("write {}: {cause}", self.path.display()));
        let text = serde_json::to_vec(seen).map_err(|error| fault(error.to_string()))?;
        let aside = self.path.with_extension("new");
        let written = (|| {
            let mut file = File::create(&aside)?;
            file.write_all(&text)?;
            file.sync_data()?;
            std::fs::rename(&aside, &self.path)
        })();
        written.map_err(|error: std::io::Error| fault(error.to_string()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_seen_is_read_again_and_what_cannot_be_read_is_told() {
        let folder = tempfile::tempdir().unwrap();
        let kept = LastSeen::in_state_dir(folder.path());
        assert_eq!(kept.read(), Ok(None));
        for (revision, waits_since) in [(1, None), (i64::MAX, Some(7))] {
            let others = ["a", "b"].map(|name| name.parse().unwrap()).into();
            let seen = Seen { cluster: u64::MAX, revision, reported: 3, waits_since, others };
            kept.keep(&seen).unwrap();
            assert_eq!(kept.read(), Ok(Some(seen)));
        }
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
        std::fs::write(folder.path().join("datastore.json"), "").unwrap();
        let told = kept.read().unwrap_err().to_string();
        assert!(told.contains("datastore.json"), "{told}");
    }
}
