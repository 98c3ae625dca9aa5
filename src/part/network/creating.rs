//! The journal of creates: what is needed to finish one that this process did not live to see the end of.
//!
//! Between dockerd's word that a container exists and the transaction that binds its claims, a crash leaves a container
//! that nobody knows to be ours. So a note is written before the create is forwarded and removed when it is settled;
//! at start a container that fits a note is bound as it would have been.

use std::path::{Path, PathBuf};
use std::sync::PoisonError;
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

use super::Network;
use super::claims::with_undo;
use crate::edge::docker::{Container, Listed};
use crate::edge::fail_point::fail_point;
use crate::model::claim::Claim;
use crate::model::endpoint::Requested;
use crate::model::fault::Fault;
use crate::model::name::{ContainerId, ProfileName};
use crate::model::recreation::RecreationLabels;
use crate::model::wish::{AddressWish, Wish};
use crate::plan::body::Ask;

/// The folder of the notes, in the state folder.
const NOTES: &str = "creating";

/// How long a note waits for its container: dockerd may finish a create whose node is gone.
const WAIT: Duration = Duration::from_mins(2);

/// See the module.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Note {
    request: String,
    /// Seconds since 1970 at which the create was about to be forwarded.
    since_s: u64,
    /// Seconds since 1970 at which dockerd broke off the connection that it was to answer on. It does that when it ends, so
    /// what it does not list after that it does not make either.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    ended_s: Option<u64>,
    name: String,
    /// What `CALICO_IP` said, and what came of it.
    wished: Vec<AddressWish>,
    addresses: Vec<std::net::IpAddr>,
    profiles: Vec<ProfileName>,
    requested: Requested,
    #[serde(default)]
    labels: RecreationLabels,
}

/// Seconds since 1970.
pub(super) fn now_s() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |time| time.as_secs())
}

impl Network {
    fn note_path(&self, request: &str) -> PathBuf {
        self.ground.state_dir.join(NOTES).join(format!("{request}.json"))
    }

    /// Writes the note of a create that is about to be forwarded. It is whole or not there, also if the node is killed; a loss
    /// of power may take it, and its claims with their lease.
    pub(super) fn note(&self, request: &str, ask: &Ask, addresses: Vec<std::net::IpAddr>) -> Result<(), Fault> {
        let note = Note {
            request: request.to_owned(),
            since_s: now_s(),
            ended_s: None,
            name: ask.name.clone(),
            wished: ask.wish.addresses.clone(),
            addresses,
            profiles: ask.wish.profiles.clone(),
            requested: ask.requested.clone(),
            labels: ask.labels.clone(),
        };
        self.write_note(&note)?;
        fail_point("create: the note is written");
        Ok(())
    }

    /// Notes that dockerd has broken off the connection that it was to answer on.
    pub(super) fn note_end(&self, request: &str) -> Result<(), Fault> {
        let Some(note) = read_note(&self.note_path(request))? else { return Ok(()) };
        self.write_note(&Note { ended_s: Some(now_s()), ..note })
    }

    fn write_note(&self, note: &Note) -> Result<(), Fault> {
        let path = self.note_path(&note.request);
        let fault = |error: std::io::Error| Fault::World(format!("note the create in {}: {error}", path.display()));
        let text = crate::edge::etcd::to_json(note)?;
        let aside = path.with_extension("new");
        std::fs::create_dir_all(self.ground.state_dir.join(NOTES)).map_err(fault)?;
        std::fs::write(&aside, text).map_err(fault)?;
        std::fs::rename(&aside, &path).map_err(fault)
    }

    /// A create is under way from here on.
    pub(super) fn begin(&self, request: &str) {
        self.creating.lock().unwrap_or_else(PoisonError::into_inner).insert(request.to_owned());
    }

    fn is_under_way(&self, request: &str) -> bool {
        self.creating.lock().unwrap_or_else(PoisonError::into_inner).contains(request)
    }

    /// Releases pending claims, and claims to succeed, of this host that belong to no create: a transaction whose answer was lost, an earlier
    /// run that died before it wrote its note, or a note whose time is over. Renewed with the others, their lease would never end.
    pub(super) async fn release_orphans(&self) -> Result<(), Fault> {
        let requests: Vec<String> = self.store.read(|snapshot| {
            let pending = snapshot.parts().flat_map(|(_, _, claim)| claim.pending());
            let ours = pending.filter(|(owner, _)| owner.host == self.ground.host.name);
            ours.map(|(_, request)| request.to_owned()).collect()
        });
        for request in requests {
            let is_noted =
                || Ok::<_, Fault>(read_note(&self.note_path(&request))?.is_some_and(|note| !note.is_overdue()));
            if !self.is_under_way(&request) && !is_noted()? {
                tracing::info!(request, "releasing a claim that no create is under way for");
                self.release_request(&request).await?;
            }
        }
        Ok(())
    }

    /// Whether there are notes, of which each may be a container's that is to be ours, or that cannot be told.
    pub(super) fn has_notes(&self) -> bool {
        read_notes(&self.ground.state_dir.join(NOTES)).map_or(true, |notes| !notes.is_empty())
    }

    /// Whether a container may be that of a create that has not come to its end.
    pub(super) fn is_noted(&self, container: &Container) -> Result<bool, Fault> {
        let notes = read_notes(&self.ground.state_dir.join(NOTES))?;
        Ok(notes.iter().any(|note| note.names(&container.name) && note.is_of(&container.env)))
    }

    /// Lets go of a create whose end nobody knows: dockerd may or may not have made the container. Its note stays, for
    /// the next comparison to finish it or to let it expire.
    pub(super) fn lose_sight(&self, request: &str) {
        self.creating.lock().unwrap_or_else(PoisonError::into_inner).remove(request);
    }

    /// Removes a note; one that is not there is no error.
    pub(super) fn forget(&self, request: &str) {
        self.lose_sight(request);
        let path = self.note_path(request);
        if let Err(error) = std::fs::remove_file(&path)
            && error.kind() != std::io::ErrorKind::NotFound
        {
            tracing::warn!(%error, path = %path.display(), "a settled create's note was not removed");
        }
    }

    /// Finishes the creates of notes whose container is there, those of an earlier run and those that were lost sight of;
    /// keeps the notes that may still get one. The list was asked for at `listed_s`, seconds since 1970.
    ///
    /// # Errors
    /// What keeps each of them from being finished.
    pub(super) async fn finish_creates(&self, listed: &[Listed], listed_s: u64) -> Result<(), Vec<Fault>> {
        // A create of whose container the list tells has a note until it is recorded: so they are read in this order.
        let notes = read_notes(&self.ground.state_dir.join(NOTES)).map_err(|fault| vec![fault])?;
        let (under_way, mut left): (Vec<Note>, Vec<Note>) =
            notes.into_iter().partition(|note| self.is_under_way(&note.request));
        // Who was told no profiles may have an image's: he takes what is left.
        left.sort_by_key(|note| note.profiles.is_empty());
        let (mut known, mut faults) = (self.containers(), Vec::new());
        for note in left {
            if self.is_done(&note) {
                self.forget(&note.request);
                continue;
            }
            // It may look just like one that another create has made this moment.
            if under_way.iter().any(|other| note.may_be_taken_for(other)) {
                continue;
            }
            // What cannot be finished yet holds up no other.
            faults.extend(self.finish_left(note, listed, listed_s, &mut known).await.err());
        }
        if faults.is_empty() { Ok(()) } else { Err(faults) }
    }

    /// Whether the container of a note is recorded: the node ended before it took the note away.
    fn is_done(&self, note: &Note) -> bool {
        let is_its = |claim: &Claim| claim.request == note.request && claim.owner.workload.is_some();
        let has = |address| self.claim_of(address).is_ok_and(|(_, held)| held.is_some_and(|held| is_its(&held.claim)));
        !note.addresses.is_empty() && note.addresses.iter().all(|address| has(*address))
    }

    /// Finishes the create of one note if its container is there and nobody's yet, or gives it up.
    async fn finish_left(
        &self,
        note: Note,
        listed: &[Listed],
        listed_s: u64,
        known: &mut Vec<ContainerId>,
    ) -> Result<(), Fault> {
        for one in listed.iter().filter(|one| note.fits(one)) {
            if known.contains(&one.id) {
                continue;
            }
            let Some(container) = self.docker.inspect(one.id.as_str()).await? else { continue };
            if container.network_mode == "none" && note.is_of(&container.env) {
                let id = container.id;
                tracing::info!(container = id.short(), "finishing a create that was cut off");
                self.finish(note, &id).await?;
                known.push(id);
                return Ok(());
            }
        }
        if note.is_overdue() || note.ended_s.is_some_and(|ended_s| ended_s < listed_s) {
            self.release_request(&note.request).await?;
            self.forget(&note.request);
        }
        Ok(())
    }

    /// Binds the container of a note. As long as that cannot be, the note stays, and by that the container does not start.
    async fn finish(&self, note: Note, id: &ContainerId) -> Result<(), Fault> {
        let (request, is_overdue) = (note.request.clone(), note.is_overdue());
        let ask = Ask {
            wish: Wish {
                addresses: note.addresses.into_iter().map(AddressWish::Exactly).collect(),
                profiles: note.profiles,
            },
            name: note.name,
            requested: note.requested,
            labels: note.labels,
            warnings: Vec::new(),
        };
        if let Err(fault) = self.bind_again(ask, &request, id).await {
            let fault = fault.during(&format!("finish the create of container {}", id.short()));
            // It may yet be somebody else's, so it is not removed. What it was to have is not kept from others for ever.
            let released = if is_overdue { self.release_request(&request).await } else { Ok(()) };
            return Err(with_undo(fault, released));
        }
        self.forget(&request);
        Ok(())
    }
}

impl Note {
    /// Whether a container's environment holds the wish of this create.
    fn is_of(&self, env: &[String]) -> bool {
        let profiles = env.iter().find_map(|entry| entry.strip_prefix("CALICO_PROFILE="));
        let wishes = env.iter().filter_map(|entry| entry.strip_prefix("CALICO_IP="));
        let mut wishes = wishes.filter_map(|text| Wish::parse(text, profiles).ok());
        wishes.any(|wish| wish.addresses == self.wished && (self.profiles.is_empty() || wish.profiles == self.profiles))
    }

    /// Whether it has waited for long enough.
    fn is_overdue(&self) -> bool {
        now_s() > self.since_s + WAIT.as_secs()
    }

    /// Whether the container of another create can fit this note.
    fn may_be_taken_for(&self, other: &Note) -> bool {
        self.name.is_empty() || self.name.trim_start_matches('/') == other.name.trim_start_matches('/')
    }

    /// Whether a container can be the one that this create was to make. dockerd's clock is ours.
    fn fits(&self, listed: &Listed) -> bool {
        let since = i64::try_from(self.since_s).unwrap_or(i64::MAX);
        listed.created_s + 1 >= since && self.names(&listed.name)
    }

    /// Whether a container of a name can be the one.
    fn names(&self, container: &str) -> bool {
        self.name.is_empty() || self.name.trim_start_matches('/') == container
    }
}

/// The notes that lie in a folder, which need not be there. Nobody can finish the create of one that cannot be understood, so its
/// claim is to be released like any that has no note.
fn read_notes(folder: &Path) -> Result<Vec<Note>, Fault> {
    let fault = |error: std::io::Error| {
        Fault::World(format!("read what was noted of creates in {}: {error}", folder.display()))
    };
    let entries = match std::fs::read_dir(folder) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(fault)?,
    };
    let mut notes = Vec::new();
    for entry in entries {
        let path = entry.map_err(fault)?.path();
        if path.extension().is_none_or(|extension| extension != "json") {
            continue;
        }
        // One that is not there: its create has ended meanwhile.
        notes.extend(read_note(&path)?);
    }
    Ok(notes)
}

/// One note; `None` if it is not there or cannot be understood: then it is told of and put aside.
fn read_note(path: &Path) -> Result<Option<Note>, Fault> {
    let fault =
        |error: std::io::Error| Fault::World(format!("read what was noted of a create in {}: {error}", path.display()));
    let text = match std::fs::read(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        text => text.map_err(fault)?,
    };
    match serde_json::from_slice(&text) {
        Ok(note) => Ok(Some(note)),
        Err(error) => {
            let aside = path.with_extension("unreadable");
            std::fs::rename(path, &aside).map_err(fault)?;
            let path = aside.display();
            tracing::warn!(%error, %path, "a note of a create was put aside, since it cannot be understood");
            Ok(None)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_note_that_cannot_be_understood_is_put_aside_and_holds_up_no_other() {
        let state = tempfile::tempdir().unwrap();
        let folder = state.path().join(NOTES);
        assert!(read_notes(&folder).unwrap().is_empty());
        std::fs::create_dir(&folder).unwrap();
        let good = r#"{"request":"a","since_s":1,"name":"","wished":[],"addresses":[],"profiles":[],"requested":{}}"#;
        for (name, text) in [("a.json", good), ("b.json", "{"), ("c.new", "{")] {
            std::fs::write(folder.join(name), text).unwrap();
        }
        for _ in 0..2 {
            let read = read_notes(&folder).unwrap();
            assert_eq!(read.iter().map(|note| note.request.as_str()).collect::<Vec<_>>(), ["a"]);
        }
        assert!(!folder.join("b.json").exists() && folder.join("b.unreadable").exists());
        std::fs::create_dir(folder.join("d.json")).unwrap();
        let told = read_notes(&folder).unwrap_err().to_string();
        assert!(told.contains("d.json"), "{told}");
    }

    #[test]
    fn a_note_waits_while_a_create_is_under_way_whose_container_it_would_fit() {
        let note = |name: &str| Note {
            request: "r".to_owned(),
            since_s: 1000,
            ended_s: None,
            name: name.to_owned(),
            wished: Vec::new(),
            addresses: Vec::new(),
            profiles: Vec::new(),
            requested: Requested::default(),
            labels: RecreationLabels::default(),
        };
        for (left, under_way, waits) in
            [("ann", "ann", true), ("/ann", "ann", true), ("ann", "bob", false), ("ann", "", false), ("", "ann", true)]
        {
            assert_eq!(note(left).may_be_taken_for(&note(under_way)), waits, "{left:?} {under_way:?}");
        }
    }

    #[test]
    fn a_note_fits_only_a_later_container_with_its_very_wish() {
        let note = Note {
            request: "r".to_owned(),
            since_s: 1000,
            ended_s: None,
            name: String::new(),
            wished: vec![AddressWish::Exactly("10.0.0.1".parse().unwrap())],
            addresses: vec!["10.0.0.1".parse().unwrap()],
            profiles: Vec::new(),
            requested: Requested::default(),
            labels: RecreationLabels::default(),
        };
        let listed = |created_s| {
            let (id, name) = ("a".repeat(64).parse().unwrap(), "x".to_owned());
            Listed { id, name, running: false, created_s, networks: Vec::new() }
        };
        assert!(note.fits(&listed(1000)) && !note.fits(&listed(998)));
        let env = |text: &str| vec!["A=b".to_owned(), text.to_owned()];
        assert!(note.is_of(&env("CALICO_IP=10.0.0.1")));
        for other in ["CALICO_IP=auto", "CALICO_IP=10.0.0.2", "CALICO_IP", "XCALICO_IP=10.0.0.1"] {
            assert!(!note.is_of(&env(other)), "{other}");
        }
        // Of two unnamed creates that were cut off, each was finished with the other's profiles.
        let with = ["CALICO_PROFILE=web".to_owned(), "CALICO_IP=10.0.0.1".to_owned()];
        assert!(note.is_of(&with), "it may be the image that brings it");
        assert!(!Note { profiles: vec!["db".parse().unwrap()], ..note.clone() }.is_of(&with));
        assert!(Note { profiles: vec!["web".parse().unwrap()], ..note }.is_of(&with));
    }
}
