//! The journal of creates: what is needed to finish one that this process did not live to see the end of.
//!
//! Between dockerd's word that a container exists and the transaction that binds its claims, a crash leaves a container
//! that nobody knows to be ours. So a note is written before the create is forwarded and removed when it is settled;
//! at start a container that fits a note is bound as it would have been.

use std::path::PathBuf;
use std::sync::PoisonError;
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

use super::Network;
use crate::edge::docker::Listed;
use crate::model::endpoint::Requested;
use crate::model::fault::Fault;
use crate::model::name::ProfileName;
use crate::model::wish::{AddressWish, Wish};
use crate::plan::body::Ask;

/// How long a note waits for its container: dockerd may finish a create whose client is gone.
const WAIT: Duration = Duration::from_mins(2);

/// See the module.
#[derive(Debug, Serialize, Deserialize)]
struct Note {
    request: String,
    /// Seconds since 1970 at which the create was about to be forwarded.
    since_s: u64,
    name: String,
    addresses: Vec<std::net::IpAddr>,
    profiles: Vec<ProfileName>,
    requested: Requested,
}

fn now_s() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |time| time.as_secs())
}

impl Network {
    fn note_path(&self, request: &str) -> PathBuf {
        self.ground.state_dir.join("creating").join(format!("{request}.json"))
    }

    /// Writes the note of a create that is about to be forwarded. It is whole or not there: written aside, then renamed.
    pub(super) fn note(&self, request: &str, ask: &Ask, addresses: Vec<std::net::IpAddr>) -> Result<(), Fault> {
        let path = self.note_path(request);
        let fault = |error: std::io::Error| Fault::World(format!("note the create in {}: {error}", path.display()));
        let note = Note {
            request: request.to_owned(),
            since_s: now_s(),
            name: ask.name.clone(),
            addresses,
            profiles: ask.wish.profiles.clone(),
            requested: ask.requested.clone(),
        };
        let text = crate::edge::etcd::to_json(&note)?;
        let aside = path.with_extension("new");
        std::fs::create_dir_all(self.ground.state_dir.join("creating")).map_err(fault)?;
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

    /// Releases pending claims of this host that belong to no create: a transaction whose answer was lost, or an earlier
    /// run that died before it wrote its note. Renewed with the others, their lease would never end.
    pub(super) async fn release_orphans(&self) -> Result<(), Fault> {
        let requests: Vec<String> = self.store.read(|snapshot| {
            let claims = snapshot.claims.values().filter_map(crate::model::snapshot::Record::readable);
            let pending = claims.filter(|claim| claim.owner.workload.is_none() && claim.owner.host == self.ground.host);
            pending.map(|claim| claim.request.clone()).collect()
        });
        for request in requests {
            if !self.is_under_way(&request) && !self.note_path(&request).exists() {
                tracing::info!(request, "releasing a claim that no create is under way for");
                self.release_request(&request).await?;
            }
        }
        Ok(())
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

    /// The notes of creates that nobody has under way: those of an earlier run, and those that were lost sight of.
    fn notes(&self) -> Vec<Note> {
        let Ok(entries) = std::fs::read_dir(self.ground.state_dir.join("creating")) else { return Vec::new() };
        let paths = entries.filter_map(Result::ok).map(|entry| entry.path());
        paths
            .filter(|path| path.extension().is_some_and(|extension| extension == "json"))
            .filter_map(|path| serde_json::from_slice(&std::fs::read(path).ok()?).ok())
            .filter(|note: &Note| !self.is_under_way(&note.request))
            .collect()
    }

    /// Finishes the creates of notes whose container is there; keeps the notes that may still get one.
    pub(super) async fn finish_creates(&self, listed: &[Listed]) -> Result<(), Fault> {
        let known = self.containers();
        for note in self.notes() {
            let mut found = None;
            for one in listed.iter().filter(|one| !known.contains(&one.id) && note.fits(one)) {
                let Some(container) = self.docker.inspect(one.id.as_str()).await? else { continue };
                let asked = container.env.iter().any(|entry| entry.starts_with("CALICO_IP="));
                if asked && container.network_mode == "none" {
                    found = Some(container.id);
                    break;
                }
            }
            match found {
                Some(id) => {
                    tracing::info!(container = id.short(), "finishing a create that an earlier run began");
                    self.finish(note, &id).await?;
                }
                None if now_s() > note.since_s + WAIT.as_secs() => {
                    self.release_request(&note.request).await?;
                    self.forget(&note.request);
                }
                None => {}
            }
        }
        Ok(())
    }

    async fn finish(&self, note: Note, id: &crate::model::name::ContainerId) -> Result<(), Fault> {
        self.release_request(&note.request).await?;
        let ask = Ask {
            wish: Wish {
                addresses: note.addresses.into_iter().map(AddressWish::Exactly).collect(),
                profiles: note.profiles,
            },
            name: note.name,
            requested: note.requested,
            warnings: Vec::new(),
        };
        match self.prepare(ask).await {
            Ok(prepared) => self.bind(prepared, id).await.map(drop)?,
            Err(fault @ Fault::Away(_)) => return Err(fault),
            Err(fault) => {
                tracing::error!(container = id.short(), %fault, "its address is lost, and nobody was told of it: removing the container");
                self.docker.remove(id).await?;
            }
        }
        self.forget(&note.request);
        Ok(())
    }
}

impl Note {
    /// Whether a container can be the one that this create was to make. dockerd's clock is ours.
    fn fits(&self, listed: &Listed) -> bool {
        let since = i64::try_from(self.since_s).unwrap_or(i64::MAX);
        listed.created_s + 1 >= since && (self.name.is_empty() || self.name.trim_start_matches('/') == listed.name)
    }
}
