//! Which dockerd this host's containers are in, kept on its disk by what is the dockerd's own.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use crate::model::fault::Fault;

/// The file.
#[derive(Debug, Clone)]
pub(crate) struct KnownEngine {
    path: PathBuf,
}

impl KnownEngine {
    pub(crate) fn in_state_dir(state_dir: &Path) -> Self {
        KnownEngine { path: state_dir.join("engine") }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// `None` if none was ever kept.
    ///
    /// # Errors
    /// `World`: it cannot be read.
    pub(crate) fn read(&self) -> Result<Option<String>, Fault> {
        match std::fs::read_to_string(&self.path) {
            Ok(text) => Ok(Some(text.trim().to_owned()).filter(|text| !text.is_empty())),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(Fault::World(format!("read {}: {error}", self.path.display()))),
        }
    }

    /// # Errors
    /// `World`: it cannot be written, and is as it was.
    pub(crate) fn keep(&self, identity: &str) -> Result<(), Fault> {
        let aside = self.path.with_extension("new");
        let written =
            std::fs::write(&aside, format!("{identity}\n")).and_then(|()| std::fs::rename(&aside, &self.path));
        written.map_err(|error| Fault::World(format!("write {}: {error}", self.path.display())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_kept_is_read_again_and_what_cannot_be_read_is_told() {
        let folder = tempfile::tempdir().unwrap();
        let known = KnownEngine::in_state_dir(folder.path());
        assert_eq!(known.read(), Ok(None));
        for identity in ["a1", "b2"] {
            known.keep(identity).unwrap();
            assert_eq!(known.read(), Ok(Some(identity.to_owned())));
        }
        std::fs::write(known.path(), "").unwrap();
        assert_eq!(known.read(), Ok(None));
        std::fs::remove_file(known.path()).unwrap();
        std::fs::create_dir(known.path()).unwrap();
        assert!(known.read().is_err() && known.keep("c3").is_err());
    }
}
