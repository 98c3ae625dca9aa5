//! The journal of creates: what is needed to finish one that this process did not live to see the end of.
//!
//! Between dockerd's word that a container exists and the transaction that binds its claims, a crash leaves a container
//! that nobody knows to be ours. So a note is written before the create is forwarded and removed when it is settled;
//! at start a container that fits a note is bound as it would have been.

use std::sync::PoisonError;

use super::Network;
use super::claims::with_undo;
use crate::edge::docker::{Container, Listed};
use crate::edge::fail_point::fail_point;
use crate::edge::wall_clock::now_s;
use crate::model::claim::Claim;
use crate::model::fault::Fault;
use crate::model::name::ContainerId;
use crate::model::note::Note;
use crate::model::wish::{AddressWish, Wish};
use crate::plan::body::Ask;

impl Network {
    /// Writes the note of a create that is about to be forwarded.
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
        self.notes.write(&note)?;
        fail_point("create: the note is written");
        Ok(())
    }

    /// Notes that dockerd has broken off the connection that it was to answer on.
    pub(super) fn note_end(&self, request: &str) -> Result<(), Fault> {
        let Some(note) = self.notes.read(request)? else { return Ok(()) };
        self.notes.write(&Note { ended_s: Some(now_s()), ..note })
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
            let is_noted = || Ok::<_, Fault>(self.notes.read(&request)?.is_some_and(|note| !note.is_overdue(now_s())));
            if !self.is_under_way(&request) && !is_noted()? {
                tracing::info!(request, "releasing a claim that no create is under way for");
                self.release_request(&request).await?;
            }
        }
        Ok(())
    }

    /// Whether there are notes, of which each may be a container's that is to be ours, or that cannot be told.
    pub(super) fn has_notes(&self) -> bool {
        self.notes.all().map_or(true, |notes| !notes.is_empty())
    }

    /// Whether a container may be that of a create that has not come to its end.
    pub(super) fn is_noted(&self, container: &Container) -> Result<bool, Fault> {
        let notes = self.notes.all()?;
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
        if let Err(fault) = self.notes.remove(request) {
            tracing::warn!(%fault, "a create that is settled has a note still");
        }
    }

    /// Finishes the creates of notes whose container is there, those of an earlier run and those that were lost sight of;
    /// keeps the notes that may still get one. The list was asked for at `listed_s`, seconds since 1970.
    ///
    /// # Errors
    /// What keeps each of them from being finished.
    pub(super) async fn finish_creates(&self, listed: &[Listed], listed_s: u64) -> Result<(), Vec<Fault>> {
        // A create of whose container the list tells has a note until it is recorded: so they are read in this order.
        let notes = self.notes.all().map_err(|fault| vec![fault])?;
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
        for one in listed.iter().filter(|one| note.fits(&one.name, one.created_s)) {
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
        if note.is_overdue(now_s()) || note.ended_s.is_some_and(|ended_s| ended_s < listed_s) {
            self.release_request(&note.request).await?;
            self.forget(&note.request);
        }
        Ok(())
    }

    /// Binds the container of a note. As long as that cannot be, the note stays, and by that the container does not start.
    async fn finish(&self, note: Note, id: &ContainerId) -> Result<(), Fault> {
        let (request, is_overdue) = (note.request.clone(), note.is_overdue(now_s()));
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
