//! Notes of creates, on this host's disk.
//!
//! A note is whole or not there, also if the node is killed; a loss of power may take it, and its claims with their lease.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::files::if_there;
use crate::model::fault::Fault;
use crate::model::note::Note;

/// The notes in a state folder.
#[derive(Debug, Clone)]
pub(crate) struct Notes {
    folder: PathBuf,
}

impl Notes {
    pub(crate) fn in_state_dir(state_dir: &Path) -> Self {
        Notes { folder: state_dir.join("creating") }
    }

    fn path(&self, request: &str) -> PathBuf {
        self.folder.join(format!("{request}.json"))
    }

    /// Writes the note of a create, in the place of the one before.
    pub(crate) fn write(&self, note: &Note) -> Result<(), Fault> {
        let path = self.path(&note.request);
        let fault = |error: io::Error| Fault::World(format!("note the create in {}: {error}", path.display()));
        let text = serde_json::to_vec(note).map_err(|error| fault(error.into()))?;
        let aside = path.with_extension("new");
        fs::create_dir_all(&self.folder).map_err(fault)?;
        fs::write(&aside, text).map_err(fault)?;
        fs::rename(&aside, &path).map_err(fault)
    }

    /// The note of a create; `None` if there is none, or it cannot be understood.
    pub(crate) fn read(&self, request: &str) -> Result<Option<Note>, Fault> {
        read(&self.path(request))
    }

    /// All that are there. Nobody can finish the create of one that cannot be understood, so its claim is to be released
    /// like any that has no note.
    pub(crate) fn all(&self) -> Result<Vec<Note>, Fault> {
        let fault = |error: io::Error| {
            Fault::World(format!("read what was noted of creates in {}: {error}", self.folder.display()))
        };
        let mut notes = Vec::new();
        for entry in if_there(fs::read_dir(&self.folder)).map_err(fault)?.into_iter().flatten() {
            let path = entry.map_err(fault)?.path();
            if path.extension().is_none_or(|extension| extension != "json") {
                continue;
            }
            // One that is not there: its create has ended meanwhile.
            notes.extend(read(&path)?);
        }
        Ok(notes)
    }

    /// Removes a note; one that is not there is no error.
    pub(crate) fn remove(&self, request: &str) -> Result<(), Fault> {
        let path = self.path(request);
        if_there(fs::remove_file(&path)).map(drop).map_err(|error| {
            Fault::World(format!("remove the note of a create that is settled, {}: {error}", path.display()))
        })
    }
}

/// One note; `None` if it is not there or cannot be understood: then it is told of and put aside.
fn read(path: &Path) -> Result<Option<Note>, Fault> {
    let fault =
        |error: io::Error| Fault::World(format!("read what was noted of a create in {}: {error}", path.display()));
    let Some(text) = if_there(fs::read(path)).map_err(fault)? else { return Ok(None) };
    match serde_json::from_slice(&text) {
        Ok(note) => Ok(Some(note)),
        Err(error) => {
            let aside = path.with_extension("unreadable");
            fs::rename(path, &aside).map_err(fault)?;
            let path = aside.display();
            tracing::warn!(%error, %path, "a note of a create was put aside, since it cannot be understood");
            Ok(None)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::note::tests::of_name;

    #[test]
    fn a_note_is_there_until_it_is_removed() {
        let state = tempfile::tempdir().unwrap();
        let notes = Notes::in_state_dir(state.path());
        let note = of_name("ann");
        assert_eq!(notes.read("r").unwrap(), None);
        notes.write(&note).unwrap();
        let ended = Note { ended_s: Some(1001), ..note };
        notes.write(&ended).unwrap();
        assert_eq!((notes.read("r").unwrap(), notes.all().unwrap()), (Some(ended.clone()), vec![ended]));
        for _ in 0..2 {
            notes.remove("r").unwrap();
            assert_eq!((notes.read("r").unwrap(), notes.all().unwrap()), (None, Vec::new()));
        }
    }

    #[test]
    fn a_note_that_cannot_be_understood_is_put_aside_and_holds_up_no_other() {
        let state = tempfile::tempdir().unwrap();
        let notes = Notes::in_state_dir(state.path());
        assert!(notes.all().unwrap().is_empty());
        fs::create_dir(&notes.folder).unwrap();
        let good = r#"{"request":"a","since_s":1,"name":"","wished":[],"addresses":[],"profiles":[],"requested":{}}"#;
        for (name, text) in [("a.json", good), ("b.json", "{"), ("c.new", "{")] {
            fs::write(notes.folder.join(name), text).unwrap();
        }
        for _ in 0..2 {
            let read = notes.all().unwrap();
            assert_eq!(read.iter().map(|note| note.request.as_str()).collect::<Vec<_>>(), ["a"]);
        }
        assert!(!notes.folder.join("b.json").exists() && notes.folder.join("b.unreadable").exists());
        fs::create_dir(notes.folder.join("d.json")).unwrap();
        let told = notes.all().unwrap_err().to_string();
        assert!(told.contains("d.json"), "{told}");
    }
}
