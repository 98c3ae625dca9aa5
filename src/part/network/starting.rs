//! Starting: what the OCI hook and the node tell each other about a container whose process is about to run.
//!
//! Nothing that the hook waits for takes the container's lock or asks dockerd about it: dockerd holds a lock of its own on a container that it
//! starts, and answers nobody about it until the start is over, and who settles the container at that moment holds ours
//! and waits for dockerd. What is written is compared and swapped instead.

use std::sync::PoisonError;
use std::time::Instant;

use super::settle::Waits;
use super::{Named, Network, Recorded};
use crate::edge::fail_point::fail_point;
use crate::edge::iptables;
use crate::model::control::ContainerWiring;
use crate::model::endpoint::WiredBy;
use crate::model::fault::Fault;
use crate::model::name::ContainerId;
use crate::model::pool::Family;
use crate::plan::runtime::RUNTIME;

impl Network {
    /// What a container that is being started is to be wired with, once its policy stands in the kernel.
    ///
    /// # Errors
    /// It must not start: it has lost an address, or waits for one, or its policy does not stand, or its record is lost.
    pub(crate) async fn starting(&self, id: &ContainerId, wishes: bool) -> Result<ContainerWiring, Fault> {
        if !self.is_loaded() {
            return Ok(ContainerWiring::Unknown);
        }
        if let Some((key, Some(why))) = self.keys(id).iter().find(|(_, unreadable)| unreadable.is_some()) {
            return Err(Fault::World(format!("read the record of endpoint {}: {why}", key.endpoint)));
        }
        if self.recorded(id).is_empty() {
            // Whom this runtime is asked for and who is in a network of Docker's is not dark.
            // While dockerd starts, it answers nobody: what is known here goes first.
            let may_be = wishes && !self.released.is_set(id.as_str());
            let is_ours = may_be && self.docker.network_mode(id).await?.as_deref() == Some("none");
            self.check_lost(id, is_ours)?;
            return Ok(ContainerWiring::NotOurs);
        }
        if !self.store.is_connected()
            && let Some(waits) = self.waits(id)
        {
            // Its holder would start beside it: nobody could write down who has the address.
            return Err(Fault::Away(format!("etcd at {} is away, and {waits}", self.etcd.address())));
        }
        self.make_way(id).await?;
        self.has_its_addresses(id)?;
        let recorded = self.recorded(id);
        for one in &recorded {
            self.await_policy(one).await?;
        }
        fail_point("start: the hook is about to be answered");
        Ok(ContainerWiring::Wire(self.reservation(id, &recorded)))
    }

    /// The container of ours that a client wants started under a name; `None` if it is none of ours.
    ///
    /// # Errors
    /// It must not start, as far as can be seen before. `Ok` says nothing of what happens between this look and the start.
    pub(crate) async fn to_start(&self, name: &str) -> Result<Option<ContainerId>, Fault> {
        let refused = |fault: Fault| {
            self.count_refused_start();
            fault.during(&format!("start container {name}"))
        };
        match self.named(name).await? {
            Named::Ours(id) => {
                self.check_start(&id).await.map_err(refused)?;
                Ok(Some(id))
            }
            Named::Anothers(container) => {
                self.check_anothers(&container, name).inspect_err(|_| self.count_refused_start())?;
                let is_ours = container.wishes() && (container.runtime == RUNTIME || self.is_noted(&container)?);
                self.check_lost(&container.id, is_ours).map_err(refused)?;
                Ok(None)
            }
            Named::Nothing => Ok(None),
        }
    }

    /// Refuses the start of a container without a record that would have no network: it is kept on this host's disk, or
    /// `is_ours`, as far as dockerd knows.
    fn check_lost(&self, id: &ContainerId, is_ours: bool) -> Result<(), Fault> {
        if self.is_reserved(id) {
            let why = self.failing().borrow().get(id.as_str()).cloned();
            let why = why.map(|why| format!("; what failed with it last: {why}")).unwrap_or_default();
            return Err(Fault::Away(format!("the datastore has lost its record, which is being written again{why}")));
        }
        if is_ours && !self.released.is_set(id.as_str()) {
            return Err(Fault::Conflict(
                "it was made for Calico and is not recorded: if it stays so for longer than ten seconds, remove it and create it anew".to_owned(),
            ));
        }
        Ok(())
    }

    /// A client wants a container stopped: what the hook refused is not started any more.
    pub(crate) async fn stopped(&self, id: &ContainerId) -> Result<(), Fault> {
        self.refused.clear(id.as_str())?;
        self.settle(id, Waits::All).await
    }

    /// dockerd has started a container for a client that waits; its start began at `begun`.
    ///
    /// # Errors
    /// It runs without its network, and has been stopped.
    pub(crate) async fn started(&self, id: &ContainerId, begun: Instant) -> Result<(), Fault> {
        let hooked = self.hooked.lock().unwrap_or_else(PoisonError::into_inner).get(id).copied();
        // What the hook has done in this very start need not be looked at before the client hears of it; the event of the
        // start leads to a look anyhow.
        if hooked.is_some_and(|at| at >= begun) && self.waits(id).is_none() && self.await_active(id).await {
            return Ok(());
        }
        self.settle(id, Waits::Start).await
    }

    /// Waits until the record of a container that the hook has wired says so; not for an etcd that is away.
    async fn await_active(&self, id: &ContainerId) -> bool {
        if !self.store.is_connected() {
            return false;
        }
        let mut synced = self.store.synced();
        let active = async {
            // Not with `wait_for`: its condition is asked under the lock of the watch, which a look at the view takes too.
            // With a writer waiting in between, neither would ever go on.
            while !self.recorded(id).iter().all(|one| one.endpoint.is_active()) {
                if synced.changed().await.is_err() {
                    return false;
                }
            }
            true
        };
        tokio::time::timeout(self.ground.apply_timeout, active).await.unwrap_or(false)
    }

    /// The hook has wired a container, in so many seconds.
    pub(crate) async fn wired(&self, id: &ContainerId, took_s: f64) -> Result<(), Fault> {
        self.metrics.hook.observe(took_s);
        self.hooked.lock().unwrap_or_else(PoisonError::into_inner).insert(id.clone(), Instant::now());
        self.refused.clear(id.as_str())?;
        fail_point("start: the hook has wired");
        for one in self.recorded(id) {
            self.activate(&one, Some(WiredBy::Runtime)).await?;
        }
        Ok(())
    }

    /// Waits until chains and sets of an endpoint stand, at or after the revision of its record.
    pub(super) async fn await_policy(&self, one: &Recorded) -> Result<(), Fault> {
        if one.endpoint.is_of(Family::V6) && !self.ground.host.gives_ipv6 {
            return Err(Fault::World(format!(
                "start endpoint {}: it has an IPv6 address, and this host gives none, for the reason that the node's log told at its start",
                one.key.endpoint
            )));
        }
        if self.is_loaded() {
            return self.await_programmed(&one.key, |programmed| programmed.revision >= one.revision).await;
        }
        // The agent has not heard of the datastore yet, so what an earlier one left in the kernel is what counts.
        let doing = format!("start endpoint {}: etcd at {} is away", one.key.endpoint, self.etcd.address());
        if !self.programmed_marks.is_set(one.key.endpoint.as_str()) {
            return Err(Fault::Away(format!("{doing}, and its policy does not stand in the kernel")));
        }
        for family in Family::BOTH.into_iter().filter(|family| one.endpoint.is_of(*family)) {
            iptables::has_jumps(family).await.map_err(|fault| fault.during(&doing))?;
        }
        Ok(())
    }
}
