//! Kept files: what this host remembers beside its containers, a line for each thing, in its state folder.
//!
//! It counts most after the power was lost, so a file is whole or as it was: the new text is written aside and brought to
//! the disk before it takes the place of the old one.

use std::fs::File;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use crate::edge::files::if_there;
use crate::model::fault::Fault;

/// One of them.
#[derive(Debug, Clone)]
pub(crate) struct KeptFile {
    path: PathBuf,
    /// One at a time writes it, since all write aside under one name; clones know of each other.
    turn: Arc<Mutex<()>>,
}

impl KeptFile {
    /// What was last seen of the datastore.
    pub(crate) fn datastore(state_dir: &Path) -> Self {
        KeptFile { path: state_dir.join("datastore.json"), turn: Arc::default() }
    }

    /// Which dockerd this host's containers are in.
    pub(crate) fn engine(state_dir: &Path) -> Self {
        KeptFile { path: state_dir.join("engine"), turn: Arc::default() }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// The line; `None` if nothing was ever kept.
    ///
    /// # Errors
    /// `World`: it cannot be read.
    pub(crate) fn read(&self) -> Result<Option<String>, Fault> {
        let read = if_there(std::fs::read_to_string(&self.path));
        let text = read.map_err(|error| Fault::World(format!("read {}: {error}", self.path.display())))?;
        Ok(text.map(|text| text.trim_end().to_owned()))
    }

    /// Keeps a line, unless it is kept already. Blocks until it is on the disk.
    ///
    /// # Errors
    /// `World`: it cannot be written, and is as it was.
    pub(crate) fn keep(&self, line: &str) -> Result<(), Fault> {
        let _turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        if self.read().ok().flatten().as_deref() == Some(line) {
            return Ok(());
        }
        self.replace(line).map_err(|error| Fault::World(format!("write {}: {error}", self.path.display())))
    }

    fn replace(&self, line: &str) -> io::Result<()> {
        let aside = self.path.with_extension("new");
        let mut file = File::create(&aside)?;
        writeln!(file, "{line}")?;
        file.sync_data()?;
        std::fs::rename(&aside, &self.path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_kept_is_read_again_and_what_cannot_be_read_is_told() {
        let folder = tempfile::tempdir().unwrap();
        let kept = KeptFile::engine(folder.path());
        assert_eq!(kept.read(), Ok(None));
        for line in ["a1", "b2", "b2"] {
            kept.keep(line).unwrap();
            assert_eq!(kept.read(), Ok(Some(line.to_owned())));
        }
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
        std::fs::remove_file(kept.path()).unwrap();
        std::fs::create_dir(kept.path()).unwrap();
        let told = kept.read().unwrap_err().to_string();
        assert!(told.contains(&kept.path().display().to_string()), "{told}");
        assert!(kept.keep("c3").is_err());
    }
}
