//! A configuration file of another program: read whole, and replaced whole or not at all.
//!
//! The new text is written beside the old file, given its owner and mode, brought to the disk, and only then put in its
//! place, so nobody ever reads half of it, not even after the machine has lost its power. A symbolic link stays: the
//! file that it leads to is replaced.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _, fchown};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};

use crate::edge::files::if_there;
use crate::model::fault::Fault;

/// The mode of a file that was not there before: others may read it, as packages install such files.
const NEW_MODE: u32 = 0o644;

/// Where a configuration file is, with all links followed.
#[derive(Debug)]
pub(crate) struct ConfigFile {
    path: PathBuf,
    folder: PathBuf,
}

impl ConfigFile {
    /// # Errors
    /// `Refusal`: what is there is no file, or a link to nothing. `World`: it cannot be reached.
    pub(crate) fn at(path: &Path) -> Result<Self, Fault> {
        let doing = format!("find the file {}", path.display());
        let world = |error: io::Error| Fault::World(format!("{doing}: {error}"));
        let path = match if_there(fs::canonicalize(path)).map_err(world)? {
            Some(found) => {
                if !fs::metadata(&found).map_err(world)?.is_file() {
                    return Err(Fault::Refusal(format!("{doing}: what is there is no file")));
                }
                found
            }
            None => {
                if fs::symlink_metadata(path).is_ok() {
                    return Err(Fault::Refusal(format!("{doing}: it is a symbolic link to a file that is not there")));
                }
                std::path::absolute(path).map_err(world)?
            }
        };
        let folder = path.parent().ok_or_else(|| Fault::Refusal(format!("{doing}: it is no file")))?.to_owned();
        Ok(ConfigFile { path, folder })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// What is in it; `None`: there is no such file.
    ///
    /// # Errors
    /// `World`: it cannot be read.
    pub(crate) fn read(&self) -> Result<Option<Vec<u8>>, Fault> {
        if_there(fs::read(&self.path)).map_err(|error| Fault::World(format!("read {}: {error}", self.path.display())))
    }

    /// Puts the text `new` in the place of `old`; `None` stands for no file.
    ///
    /// # Errors
    /// `Conflict`: it no longer holds `old`, or another process replaces it now. `World`: it cannot be written. Either way
    /// it is as it was.
    pub(crate) fn replace(&self, old: Option<&[u8]>, new: Option<&[u8]>) -> Result<(), Fault> {
        let doing = format!("write {}", self.path.display());
        let world = |error: io::Error| Fault::World(format!("{doing}: {error}"));
        if new.is_some() && !self.folder.exists() {
            fs::create_dir(&self.folder).map_err(world)?;
        }
        // Among processes of ours what is read is what is replaced, and the file aside is of one of them.
        let _lock = Flock::lock(File::open(&self.folder).map_err(world)?, FlockArg::LockExclusiveNonblock).map_err(
            |(_, errno)| match errno {
                Errno::EWOULDBLOCK => Fault::Conflict(format!(
                    "{doing}: another process holds its folder locked, as one that changes it too does; try again"
                )),
                other => world(other.into()),
            },
        )?;
        if self.read()?.as_deref() != old {
            return Err(Fault::Conflict(format!("{doing}: somebody else has changed it meanwhile; try again")));
        }
        let replaced = match new {
            Some(text) => self.put(text),
            None => fs::remove_file(&self.path),
        };
        // A rename is on the disk when its folder is.
        replaced.and_then(|()| File::open(&self.folder)?.sync_all()).map_err(world)
    }

    fn put(&self, text: &[u8]) -> io::Result<()> {
        let before = if_there(fs::metadata(&self.path))?;
        let mut name = std::ffi::OsString::from(".");
        name.push(self.path.file_name().unwrap_or_default());
        name.push(".calico-new");
        let aside = self.folder.join(name);
        // That of an attempt that was cut short.
        if_there(fs::remove_file(&aside))?;
        let written = (|| {
            // For root alone until it has the owner that it is to have.
            let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&aside)?;
            file.write_all(text)?;
            if let Some(before) = &before {
                fchown(&file, Some(before.uid()), Some(before.gid()))?;
            }
            file.set_permissions(Permissions::from_mode(before.map_or(NEW_MODE, |before| before.mode() & 0o7777)))?;
            file.sync_all()?;
            fs::rename(&aside, &self.path)
        })();
        if written.is_err() {
            // The first error is the one to tell.
            let _ = fs::remove_file(&aside);
        }
        written
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(folder: &Path) -> Vec<String> {
        let mut names: Vec<String> =
            fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn a_file_keeps_its_mode_and_a_link_stays_a_link() {
        let folder = tempfile::tempdir().unwrap();
        let (real, link) = (folder.path().join("real"), folder.path().join("link"));
        fs::write(&real, "old").unwrap();
        fs::set_permissions(&real, Permissions::from_mode(0o640)).unwrap();
        std::os::unix::fs::symlink("real", &link).unwrap();
        fs::write(folder.path().join(".real.calico-new"), "left by one that was cut short").unwrap();

        let file = ConfigFile::at(&link).unwrap();
        assert_eq!(file.read().unwrap().as_deref(), Some(b"old".as_slice()));
        file.replace(Some(b"old"), Some(b"new")).unwrap();
        assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
        assert_eq!(fs::read(&real).unwrap(), b"new");
        assert_eq!(fs::metadata(&real).unwrap().mode() & 0o7777, 0o640);
        assert_eq!(names(folder.path()), ["link", "real"]);
    }

    #[test]
    fn a_file_that_is_not_there_is_made_and_taken_away_again() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("docker/daemon.json");
        let file = ConfigFile::at(&path).unwrap();
        assert_eq!(file.read().unwrap(), None);
        file.replace(None, Some(b"new")).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o7777, NEW_MODE);
        file.replace(Some(b"new"), None).unwrap();
        assert!(!path.exists());
    }

    #[test]
    fn what_somebody_else_wrote_meanwhile_stays() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("daemon.json");
        fs::write(&path, "theirs").unwrap();
        let file = ConfigFile::at(&path).unwrap();
        for (old, new) in
            [(Some(b"old".as_slice()), Some(b"new".as_slice())), (None, Some(b"new")), (Some(b"old"), None)]
        {
            assert!(matches!(file.replace(old, new), Err(Fault::Conflict(_))));
        }
        assert_eq!(fs::read(&path).unwrap(), b"theirs");
        assert_eq!(names(folder.path()), ["daemon.json"]);
    }

    #[test]
    fn a_file_that_another_process_replaces_now_stays() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("daemon.json");
        let file = ConfigFile::at(&path).unwrap();
        let other = Flock::lock(File::open(folder.path()).unwrap(), FlockArg::LockExclusive).unwrap();
        let Err(Fault::Conflict(said)) = file.replace(None, Some(b"new")) else { panic!("it was replaced") };
        assert!(said.contains("try again"), "{said}");
        assert!(names(folder.path()).is_empty());
        drop(other);
        file.replace(None, Some(b"new")).unwrap();
    }

    #[test]
    fn what_is_no_file_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let dangling = folder.path().join("dangling");
        std::os::unix::fs::symlink("nowhere", &dangling).unwrap();
        for path in [folder.path(), &dangling] {
            assert!(matches!(ConfigFile::at(path), Err(Fault::Refusal(_))), "{}", path.display());
        }
        let under_a_file = folder.path().join("file/daemon.json");
        fs::write(folder.path().join("file"), "").unwrap();
        assert!(ConfigFile::at(&under_a_file).is_err());
    }
}
