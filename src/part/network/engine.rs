//! Engine: whether what answers as dockerd is the one that this host's containers are in.
//!
//! A dockerd whose disk is not mounted, that keeps its things elsewhere since its options were changed, or at which a node
//! was pointed by mistake, knows none of them, and looks like one in which all of them have been destroyed. To believe it
//! would free the addresses of containers that will be there again, or that run all the while. So it is doubted, as an etcd
//! is that was emptied (see [`crate::plan::standing`]): nothing is freed on its word, and no address is given out.
//!
//! It is known by the id of its network `none`, which it makes when it begins with nothing and keeps where it keeps its
//! containers (moby `daemon/daemon_unix.go`, `initNetworkController`); unlike the id that it tells of itself, which 20.10
//! keeps in `/etc/docker`. One that knows any of the containers is not doubted, whatever its network is called.

use std::collections::HashSet;

use super::Network;
use crate::model::fault::Fault;
use crate::model::name::ContainerId;

impl Network {
    /// Why what answers as dockerd is not believed, as far as is known.
    pub(crate) fn engine_doubt(&self) -> Option<String> {
        self.engine_doubt.borrow().clone()
    }

    /// Another dockerd may answer from now on.
    pub(super) async fn forget_engine(&self) {
        *self.is_engine_known.lock().await = false;
    }

    /// Asks whether dockerd is the one that this host's containers are in, unless that is known since it was last away.
    ///
    /// # Errors
    /// `Away`: it is another one. `DockerAway`, `World`: it cannot be told.
    pub(super) async fn check_engine(&self) -> Result<(), Fault> {
        let mut is_known = self.is_engine_known.lock().await;
        if *is_known {
            return Ok(());
        }
        let doubt = self.doubt_engine().await?;
        self.engine_doubt.send_if_modified(|before| {
            let differs = *before != doubt;
            match &doubt {
                Some(why) if differs => {
                    tracing::error!(why, "dockerd is not believed: no address is freed or given out");
                }
                None if differs => tracing::info!("dockerd is believed again"),
                _ => {}
            }
            before.clone_from(&doubt);
            differs
        });
        match doubt {
            Some(why) => Err(Fault::Away(why)),
            None => {
                *is_known = true;
                Ok(())
            }
        }
    }

    async fn doubt_engine(&self) -> Result<Option<String>, Fault> {
        // Something that speaks Docker's API and has no such network cannot be told from another.
        let Some(found) = self.docker.identity().await? else { return Ok(None) };
        let Some(known) = self.known_engine.read()? else {
            self.known_engine.keep(&found)?;
            return Ok(None);
        };
        if known == found {
            return Ok(None);
        }
        let mut ours: HashSet<ContainerId> = self.reservations.containers()?.into_iter().collect();
        ours.extend(self.containers());
        let listed = self.docker.list().await?;
        if ours.is_empty() || listed.iter().any(|one| ours.contains(&one.id)) {
            self.known_engine.keep(&found)?;
            return Ok(None);
        }
        Ok(Some(format!(
            "it knows none of the {} containers of this host, and is another one than they were made in (its network none is {}, and was {}): \
             is its disk mounted, and is it the right one? Their addresses stay theirs; if they are gone for good, remove {}",
            ours.len(),
            short(&found),
            short(&known),
            self.known_engine.path().display()
        )))
    }
}

fn short(id: &str) -> &str {
    id.get(..12).unwrap_or(id)
}
