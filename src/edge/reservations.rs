//! The folder of reservations: one file for each container of ours on this host.
//!
//! A file is whole or not there, also after a loss of power: it is written aside, brought to the disk, then renamed. It goes
//! when the addresses of its container are free in the datastore and its interfaces are gone, and not before, so what is
//! still to be done can be read from the folder. What a node that was killed had written aside belongs to its container
//! too, and goes with the next look at that one.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::edge::fail_point::fail_point;
use crate::edge::files::if_there;
use crate::model::fault::Fault;
use crate::model::name::ContainerId;
use crate::model::reservation::Reservation;

/// What follows the container's id in the name of a reservation, and of one that is being written.
const WHOLE: &str = ".json";
const ASIDE: &str = ".new";

/// See the module. One at a time writes for a container, since all write aside under one name; clones know of each other.
#[derive(Debug, Clone)]
pub(crate) struct Reservations {
    folder: PathBuf,
    /// By the first byte of a container's id: whom they keep waiting besides is left to chance.
    turns: Arc<[Mutex<()>; 256]>,
}

/// A reservation that is on the disk and not in its place yet.
#[derive(Debug)]
pub(crate) struct Aside {
    reservation: Reservation,
}

impl Aside {
    pub(crate) fn is(&self, reservation: &Reservation) -> bool {
        self.reservation == *reservation
    }
}

impl Reservations {
    pub(crate) fn in_state_dir(state_dir: &Path) -> Self {
        Reservations {
            folder: state_dir.join("reservations"),
            turns: Arc::new(std::array::from_fn(|_| Mutex::default())),
        }
    }

    fn turn(&self, container: &ContainerId) -> MutexGuard<'_, ()> {
        let first = u8::from_str_radix(&container.as_str()[..2], 16).unwrap_or_default();
        self.turns[usize::from(first)].lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn path(&self, container: &ContainerId) -> PathBuf {
        self.folder.join(format!("{}{WHOLE}", container.as_str()))
    }

    /// Where a reservation is written before it takes its name.
    fn aside(&self, container: &ContainerId) -> PathBuf {
        self.folder.join(format!("{}{ASIDE}", container.as_str()))
    }

    /// The reservation of a container; `None` if there is none.
    ///
    /// # Errors
    /// One that cannot be read is not none: its container must not start without its network.
    pub(crate) fn read(&self, container: &ContainerId) -> Result<Option<Reservation>, Fault> {
        let path = self.path(container);
        let fault = |cause: String| Fault::World(format!("read reservation {}: {cause}", path.display()));
        let read = if_there(std::fs::read(&path)).map_err(|error| fault(error.to_string()))?;
        let Some(text) = read else { return Ok(None) };
        let reservation: Reservation = serde_json::from_slice(&text).map_err(|error| fault(error.to_string()))?;
        if reservation.v != 1 || reservation.container != *container {
            return Err(fault(format!(
                "it is of version {} and of container {}",
                reservation.v,
                reservation.container.short()
            )));
        }
        if reservation.endpoints.is_empty() {
            return Err(fault(
                "it names no endpoint; take it away, and what the datastore has of the container is kept there"
                    .to_owned(),
            ));
        }
        Ok(Some(reservation))
    }

    /// Writes a reservation, unless it stands there already.
    pub(crate) fn write(&self, reservation: &Reservation) -> Result<(), Fault> {
        let text = self.text(reservation)?;
        if std::fs::read(self.path(&reservation.container)).is_ok_and(|there| there == text) {
            return Ok(());
        }
        let _turn = self.turn(&reservation.container);
        self.write_text(&reservation.container, &text)
            .and_then(|()| self.rename(&reservation.container))
            .map_err(|error| self.fault(reservation, &error))
    }

    /// The same in two steps, of which this is the one that takes its time: brings it to the disk.
    pub(crate) fn write_aside(&self, reservation: Reservation) -> Result<Aside, Fault> {
        let text = self.text(&reservation)?;
        let _turn = self.turn(&reservation.container);
        self.write_text(&reservation.container, &text).map_err(|error| self.fault(&reservation, &error))?;
        Ok(Aside { reservation })
    }

    /// Puts what was written aside into its place.
    pub(crate) fn put(&self, aside: &Aside) -> Result<(), Fault> {
        let container = &aside.reservation.container;
        let turn = self.turn(container);
        match if_there(self.rename(container)).map_err(|error| self.fault(&aside.reservation, &error))? {
            Some(()) => Ok(()),
            // Somebody else has put theirs there meanwhile.
            None => {
                drop(turn);
                self.write(&aside.reservation)
            }
        }
    }

    fn write_text(&self, container: &ContainerId, text: &[u8]) -> std::io::Result<()> {
        std::fs::create_dir_all(&self.folder)?;
        let mut file = std::fs::File::create(self.aside(container))?;
        file.write_all(text)?;
        file.sync_data()?;
        fail_point("reserve: the reservation is written aside");
        Ok(())
    }

    fn rename(&self, container: &ContainerId) -> std::io::Result<()> {
        std::fs::rename(self.aside(container), self.path(container))
    }

    fn text(&self, reservation: &Reservation) -> Result<Vec<u8>, Fault> {
        serde_json::to_vec(reservation).map_err(|error| self.fault(reservation, &error))
    }

    fn fault(&self, reservation: &Reservation, cause: &dyn std::fmt::Display) -> Fault {
        Fault::World(format!("write reservation {}: {cause}", self.path(&reservation.container).display()))
    }

    /// Removes a reservation; one that is not there is no error.
    pub(crate) fn remove(&self, container: &ContainerId) -> Result<(), Fault> {
        self.tidy(container)?;
        remove(&self.path(container))
    }

    /// Removes what somebody who was killed had written aside.
    pub(crate) fn tidy(&self, container: &ContainerId) -> Result<(), Fault> {
        let _turn = self.turn(container);
        remove(&self.aside(container))
    }

    /// The containers of which anything is there.
    pub(crate) fn containers(&self) -> Result<Vec<ContainerId>, Fault> {
        let fault =
            |error: std::io::Error| Fault::World(format!("list reservations in {}: {error}", self.folder.display()));
        let mut containers = Vec::new();
        for entry in if_there(std::fs::read_dir(&self.folder)).map_err(fault)?.into_iter().flatten() {
            let name = entry.map_err(fault)?.file_name();
            let id = name.to_str().and_then(|name| name.strip_suffix(WHOLE).or_else(|| name.strip_suffix(ASIDE)));
            containers.extend(id.and_then(|id| id.parse::<ContainerId>().ok()));
        }
        Ok(containers)
    }
}

fn remove(path: &Path) -> Result<(), Fault> {
    let removed = if_there(std::fs::remove_file(path)).map(drop);
    removed.map_err(|error| Fault::World(format!("remove reservation {}: {error}", path.display())))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn reservation(container: &ContainerId) -> Reservation {
        let endpoint = r#"{"state":"inactive","name":"caliaaaa1111aaa","profile_ids":[],"ipv4_nets":["10.0.0.1/32"]}"#;
        let endpoints = BTreeMap::from([(
            "aaaa1111aaaa1111aaaa1111aaaa1111".parse().unwrap(),
            serde_json::from_str(endpoint).unwrap(),
        )]);
        let gateway = "172.25.0.1".parse().unwrap();
        Reservation { v: 1, container: container.clone(), gateway, endpoints, withheld: None }
    }

    #[test]
    fn a_reservation_is_read_as_it_was_written_until_it_is_removed() {
        let folder = tempfile::tempdir().unwrap();
        let reservations = Reservations::in_state_dir(folder.path());
        let container: ContainerId = "a".repeat(64).parse().unwrap();
        assert_eq!((reservations.read(&container), reservations.containers()), (Ok(None), Ok(vec![])));
        let written = reservation(&container);
        reservations.write(&written).unwrap();
        assert_eq!(reservations.read(&container), Ok(Some(written)));
        assert_eq!(reservations.containers(), Ok(vec![container.clone()]));
        // The second was taken for one of a container that the datastore had lost, and was recorded again for ever.
        let empty = format!(r#"{{"v":1,"container":"{container}","gateway":"172.25.0.1","endpoints":{{}}}}"#);
        for text in ["{", &empty] {
            std::fs::write(reservations.path(&container), text).unwrap();
            let fault = reservations.read(&container).unwrap_err().to_string();
            assert!(fault.contains(&reservations.path(&container).display().to_string()), "{fault}");
        }
        reservations.remove(&container).unwrap();
        reservations.remove(&container).unwrap();
        assert_eq!(reservations.read(&container), Ok(None));
    }

    #[test]
    fn what_was_written_aside_is_there_once_it_is_put_in_its_place() {
        let folder = tempfile::tempdir().unwrap();
        let reservations = Reservations::in_state_dir(folder.path());
        let container: ContainerId = "a".repeat(64).parse().unwrap();
        let likely = reservation(&container);
        let other = Reservation { withheld: Some("it waits".to_owned()), ..likely.clone() };
        let aside = reservations.write_aside(likely.clone()).unwrap();
        assert_eq!(reservations.read(&container), Ok(None));
        assert!(aside.is(&likely) && !aside.is(&other));
        reservations.put(&aside).unwrap();
        assert_eq!(reservations.read(&container), Ok(Some(likely.clone())));
        // Somebody else was quicker and wrote something else: what was written aside is written once more.
        let aside = reservations.write_aside(likely.clone()).unwrap();
        reservations.write(&other).unwrap();
        reservations.put(&aside).unwrap();
        assert_eq!(reservations.read(&container), Ok(Some(likely.clone())));
        // Over what was written aside in vain.
        reservations.write_aside(likely).unwrap();
        reservations.write(&other).unwrap();
        assert_eq!(reservations.read(&container), Ok(Some(other)));
        assert_eq!(reservations.containers(), Ok(vec![container]));
    }

    #[test]
    fn what_was_written_aside_belongs_to_its_container_and_goes_with_it() {
        let folder = tempfile::tempdir().unwrap();
        let reservations = Reservations::in_state_dir(folder.path());
        let container: ContainerId = "a".repeat(64).parse().unwrap();
        std::fs::create_dir_all(&reservations.folder).unwrap();
        for clear in [Reservations::tidy, Reservations::remove] {
            std::fs::write(reservations.aside(&container), "{").unwrap();
            assert_eq!(
                (reservations.read(&container), reservations.containers()),
                (Ok(None), Ok(vec![container.clone()]))
            );
            clear(&reservations, &container).unwrap();
            assert_eq!(reservations.containers(), Ok(vec![]));
        }
    }
}
