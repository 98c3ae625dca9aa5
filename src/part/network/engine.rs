//! Engine: whether what answers as dockerd is the one that this host's containers are in.
//!
//! A dockerd whose disk is not mounted, that keeps its things elsewhere since its options were changed, or at which a node
//! was pointed by mistake, knows none of them, and looks like one in which all of them have been destroyed. To believe it
//! would free the addresses of containers that will be there again, or that run all the while. So it is doubted, as an etcd
//! is that was emptied (see [`crate::plan::standing`]): nothing is freed on its word, and no address is given out.
//!
//! It is known by the id of its network `none`, which it makes when it begins with nothing and keeps where it keeps its
//! containers (moby `daemon/daemon_unix.go`, `initNetworkController`); unlike the id that it tells of itself, which 20.10
//! keeps in `/etc/docker`. One that knows any of the containers is not doubted, whatever its network is called. Of those in
//! another storage driver than it has now a dockerd says nothing until it has that one again (moby `daemon/daemon.go`,
//! `restore`), so the driver is kept too, and with another one it has to know all of them.

use std::collections::HashSet;
use std::sync::{MutexGuard, PoisonError};
use std::time::Duration;

use super::Network;
use crate::edge::docker::Container;
use crate::model::fault::Fault;
use crate::model::name::ContainerId;
use crate::part::under_way::outcome;

/// How long dockerd may take to say which one it is, for who does not wait for it anyhow.
const PATIENCE: Duration = Duration::from_secs(30);

/// What is known of the dockerd that answers.
#[derive(Debug, Default)]
pub(super) struct Standing {
    /// How often dockerd has been away: what was asked before says nothing of the one that answers now.
    times_away: u64,
    /// Whether it is the one that this host's containers are in, or why it is not believed; `None`: that is to be asked.
    is_ours: Option<Result<(), String>>,
}

impl Network {
    /// Why what answers as dockerd is not believed, as far as is known.
    pub(crate) fn engine_doubt(&self) -> Option<String> {
        self.engine().is_ours.clone()?.err()
    }

    fn engine(&self) -> MutexGuard<'_, Standing> {
        self.engine.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Another dockerd may answer from now on. One that was doubted stays so until it is asked.
    pub(super) fn forget_engine(&self) {
        let mut engine = self.engine();
        engine.times_away += 1;
        engine.is_ours.take_if(|is_ours| is_ours.is_ok());
    }

    /// The same as [`Network::await_engine`], for at most half a minute.
    pub(super) async fn check_engine(&self) -> Result<(), Fault> {
        let late = |_| Fault::DockerAway(format!("ask dockerd which one it is: no answer within {PATIENCE:?}"));
        tokio::time::timeout(PATIENCE, self.await_engine()).await.map_err(late)?
    }

    /// Asks whether dockerd is the one that this host's containers are in, unless that is known since it was last away. For
    /// who waits for dockerd anyhow: everybody asks for himself, so nobody waits for another's question.
    ///
    /// # Errors
    /// `Away`: it is another one. `DockerAway`, `World`: it cannot be told.
    pub(super) async fn await_engine(&self) -> Result<(), Fault> {
        let times_away = {
            let engine = self.engine();
            if engine.is_ours == Some(Ok(())) {
                return Ok(());
            }
            engine.times_away
        };
        let doubt = self.doubt_engine().await?;
        let is_ours = doubt.map_or(Ok(()), Err);
        let mut engine = self.engine();
        if engine.times_away == times_away {
            let before = engine.is_ours.replace(is_ours.clone());
            match (before, &is_ours) {
                (Some(Err(_)), Ok(())) => tracing::info!("dockerd is believed again"),
                (before, Err(why)) if before.as_ref() != Some(&is_ours) => {
                    tracing::error!(why, "dockerd is not believed: no address is freed or given out");
                }
                _ => {}
            }
        }
        is_ours.map_err(Fault::Away)
    }

    /// A container as dockerd has it; `None`: it is gone, on the word of one that is believed and that was asked for both.
    ///
    /// # Errors
    /// `Away`: dockerd does not know the container, and is not believed. Else as those of inspect.
    pub(super) async fn inspect_or_bury(&self, id: &ContainerId) -> Result<Option<Container>, Fault> {
        let times_away = self.engine().times_away;
        // One that is called as this one's id is another one.
        let found = self.docker.inspect(id.as_str()).await?.filter(|found| found.id == *id);
        if found.is_none() {
            let doing = format!("free the addresses of container {}", id.short());
            self.check_engine().await.map_err(|fault| fault.during(&doing))?;
            if self.engine().times_away != times_away {
                return Err(Fault::DockerAway(format!("{doing}: dockerd has been away since it was asked for it")));
            }
        }
        Ok(found)
    }

    async fn keep_engine(&self, found: Option<String>) -> Result<(), Fault> {
        let (Some(found), file) = (found, self.known_engine.clone()) else { return Ok(()) };
        outcome(tokio::task::spawn_blocking(move || file.keep(&found))).await
    }

    async fn doubt_engine(&self) -> Result<Option<String>, Fault> {
        // What speaks Docker's API and has no such network cannot be told from another of that kind.
        let (found, known) = (self.docker.identity().await?, self.known_engine.read()?);
        let (network, driver) = words(found.as_deref());
        let (network_before, driver_before) = words(known.as_deref());
        let same_network = known.is_none() || network == network_before;
        // A node before this one may have kept none.
        let same_driver = driver_before.is_none() || driver == driver_before;
        if same_network && same_driver {
            return self.keep_engine(found).await.map(|()| None);
        }
        let mut ours: HashSet<ContainerId> = self.reservations.containers()?.into_iter().collect();
        ours.extend(self.containers());
        let listed: HashSet<ContainerId> = self.docker.list().await?.into_iter().map(|one| one.id).collect();
        let unknown = ours.difference(&listed).count();
        let knows_enough = if same_driver { unknown < ours.len() } else { unknown == 0 };
        if ours.is_empty() || knows_enough {
            return self.keep_engine(found).await.map(|()| None);
        }
        let none = if unknown == ours.len() { "none".to_owned() } else { format!("not {unknown}") };
        Ok(Some(format!(
            "it knows {none} of the {} containers of this host, and is another one than they were made in (its network none is {}, and was {}; \
             its storage driver is {}, and was {}): is its disk mounted, and is it the right one? Their addresses stay theirs; if they are gone \
             for good, remove {}",
            ours.len(),
            called(network),
            called(network_before),
            driver.unwrap_or("unknown"),
            driver_before.unwrap_or("unknown"),
            self.known_engine.path().display()
        )))
    }
}

/// The id of a dockerd's network `none` and the name of its storage driver.
fn words(identity: Option<&str>) -> (Option<&str>, Option<&str>) {
    let mut words = identity.into_iter().flat_map(str::split_whitespace);
    (words.next(), words.next())
}

fn called(id: Option<&str>) -> &str {
    id.map_or("missing", |id| id.get(..12).unwrap_or(id))
}
