//! Marks: in the run folder, which a reboot empties, which endpoints' policy the kernel holds, and which starts the OCI hook
//! has refused; in the state folder, which containers were let go. Each is a file named by an id.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use crate::edge::files::if_there;
use crate::model::fault::Fault;

/// A folder of marks.
#[derive(Debug, Clone)]
pub(crate) struct Marks {
    folder: PathBuf,
}

impl Marks {
    /// The endpoints whose chains and sets stand in the kernel, by their ids. The agent sets them, and they outlive it, as
    /// the chains do.
    pub(crate) fn programmed(run_dir: &Path) -> Self {
        Marks { folder: run_dir.join("programmed") }
    }

    /// The containers whose start the hook has refused, by their ids; the reason is the content.
    pub(crate) fn refused(run_dir: &Path) -> Self {
        Marks { folder: run_dir.join("refused") }
    }

    /// The containers that were made for Calico and were taken out of it since, by their ids.
    pub(crate) fn released(state_dir: &Path) -> Self {
        Marks { folder: state_dir.join("released") }
    }

    pub(crate) fn is_set(&self, id: &str) -> bool {
        self.folder.join(id).exists()
    }

    pub(crate) fn set(&self, id: &str, content: &str) -> Result<(), Fault> {
        let path = self.folder.join(id);
        let set = || match if_there(std::fs::write(&path, content))? {
            Some(()) => Ok(()),
            None => std::fs::create_dir_all(&self.folder).and_then(|()| std::fs::write(&path, content)),
        };
        set().map_err(|error| Fault::World(format!("write {}: {error}", path.display())))
    }

    /// Takes a mark away; one that is not there is no error.
    pub(crate) fn clear(&self, id: &str) -> Result<(), Fault> {
        let path = self.folder.join(id);
        let cleared = if_there(std::fs::remove_file(&path)).map(drop);
        cleared.map_err(|error| Fault::World(format!("remove {}: {error}", path.display())))
    }

    /// The ids that are marked.
    pub(crate) fn all(&self) -> BTreeSet<String> {
        let Ok(entries) = std::fs::read_dir(&self.folder) else { return BTreeSet::new() };
        entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_stands_until_it_is_cleared() {
        let folder = tempfile::tempdir().unwrap();
        let marks = Marks::programmed(folder.path());
        assert!(marks.all().is_empty() && !marks.is_set("a"));
        marks.set("a", "").unwrap();
        marks.set("a", "").unwrap();
        assert!(marks.is_set("a") && marks.all() == ["a".to_owned()].into());
        marks.clear("a").unwrap();
        marks.clear("a").unwrap();
        assert!(!marks.is_set("a"));
    }
}
