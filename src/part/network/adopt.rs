//! Adopting: a running container that did not come through the proxy is taken into Calico, and let go again.

use std::net::IpAddr;

use super::claims::with_undo;
use super::settle::Waits;
use super::{Network, Recorded};
use crate::edge::links::Netlink;
use crate::edge::netns::Netns;
use crate::model::endpoint::Requested;
use crate::model::fault::Fault;
use crate::model::name::{ContainerId, IfName};
use crate::model::recreation::RecreationLabels;
use crate::model::wish::Wish;
use crate::plan::body::Ask;

impl Network {
    /// The id of any container that Docker knows, or of one of ours that Docker knows no more.
    ///
    /// # Errors
    /// `Refusal` if there is none.
    pub(crate) async fn resolve(&self, name: &str) -> Result<ContainerId, Fault> {
        if let Some(container) = self.docker.inspect(name).await? {
            return Ok(container.id);
        }
        let matches: Vec<ContainerId> =
            self.containers().into_iter().filter(|id| name.len() >= 12 && id.as_str().starts_with(name)).collect();
        match <[ContainerId; 1]>::try_from(matches) {
            Ok([id]) => Ok(id),
            Err(_) => Err(Fault::Refusal(format!("look for container {name}: dockerd knows no such container"))),
        }
    }

    /// Gives a running container an address, an interface and a record.
    ///
    /// # Errors
    /// Nothing is left behind; the container itself is as it was.
    pub(crate) async fn adopt(
        &self,
        name: &str,
        wish: Wish,
        interface: IfName,
    ) -> Result<(ContainerId, Vec<IpAddr>), Fault> {
        let doing = format!("add container {name}");
        let refuse = |cause: &str| Fault::Refusal(format!("{doing}: {cause}"));
        let container = self.docker.inspect(name).await?.ok_or_else(|| refuse("dockerd knows no such container"))?;
        if container.pid.is_none() {
            return Err(refuse("it is not running; start it first"));
        }
        if container.network_mode == "host" || container.network_mode.starts_with("container:") {
            return Err(refuse(&format!(
                "its network is {}, which it shares with others; it must have one of its own",
                container.network_mode
            )));
        }
        if !self.recorded(&container.id).is_empty() {
            return Err(Fault::Conflict(format!("{doing}: it has been added already")));
        }
        let requested = Requested { network_mode: container.network_mode, ..Requested::default() };
        // It is there already: it takes nobody's place.
        let labels = RecreationLabels::default();
        let ask = Ask { wish, name: container.name, requested, labels, warnings: Vec::new() };
        let prepared = self.prepare(ask).await.map_err(|fault| fault.during(&doing))?;
        let prepared = prepared.with_container_interface(interface);
        let addresses: Vec<IpAddr> = prepared.addresses().collect();
        // What an operator took out before is taken in now: with that mark its record would go again.
        let was_released = self.released.is_set(container.id.as_str());
        self.released.clear(container.id.as_str())?;
        if let Err(fault) = self.bind_existing(prepared, &container.id).await {
            let marked = if was_released { self.released.set(container.id.as_str(), "") } else { Ok(()) };
            return Err(with_undo(fault.during(&doing), marked));
        }
        let settled = self.settle(&container.id, Waits::All).await;
        // A container that has exited meanwhile is settled too, but has no network to report.
        let active = self.recorded(&container.id).iter().any(|one| one.endpoint.is_active());
        let failed = match settled {
            Ok(()) if active => return Ok((container.id, addresses)),
            Ok(()) => refuse("it exited before it had its network"),
            Err(fault) => fault.during(&doing),
        };
        match self.release(container.id.as_str()).await {
            Ok(_) => Err(failed),
            Err(undo) => Err(failed.during(&format!("{undo}; before that"))),
        }
    }

    /// Takes interface, record and addresses of a container away; it need not exist any more. Where it is on a network of
    /// Docker's too, that has been the way out before, and is again.
    pub(crate) async fn release(&self, name: &str) -> Result<ContainerId, Fault> {
        let id = self.resolve(name).await?;
        let lock = self.lock(&id);
        let _serial = lock.lock().await;
        let recorded = self.recorded(&id);
        if recorded.is_empty() {
            return Err(Fault::Refusal(format!("remove container {name}: it is not in Calico")));
        }
        // Nobody but the record knows it, and the next start would be without it.
        if let Some(behind) = recorded.iter().find_map(|one| one.endpoint.requested.as_ref()?.runtime.as_ref()) {
            return Err(Fault::Refusal(format!(
                "remove container {name}: it runs by {} behind Calico's runtime, and would start without that; make it anew without CALICO_IP",
                behind.path
            )));
        }
        if !self.is_loaded() {
            let at = self.etcd.address();
            return Err(Fault::Away(format!("remove container {name}: etcd at {at} has not answered yet")));
        }
        // Without a record it starts only with an operator's word, and this is it.
        self.released.set(id.as_str(), "")?;
        // What is kept goes first: a view that is loaded just after the record has gone would put it back from there.
        let kept = self.reservations.read(&id).unwrap_or_default();
        self.reservations.remove(&id)?;
        if let Err(fault) = self.take_out(&recorded).await {
            let kept_again = kept.map_or(Ok(()), |kept| self.reservations.write(&kept));
            return Err(with_undo(fault, kept_again.and(self.released.clear(id.as_str()))));
        }
        self.forget_container(&id);
        self.give_way_out_back(&id)
            .await
            .map_err(|fault| fault.during(&format!("remove container {name}: it is out")))?;
        Ok(id)
    }

    /// Has everything leave a container by Docker's networks again, if it is on any: with our interface the route has gone
    /// that had taken the place of theirs.
    async fn give_way_out_back(&self, id: &ContainerId) -> Result<(), Fault> {
        let Some(container) = self.docker.inspect(id.as_str()).await? else { return Ok(()) };
        let Some(pid) = container.pid.filter(|_| !container.gateways.is_empty()) else { return Ok(()) };
        match Netns::of_container(id, pid)? {
            Some(netns) => Netlink::open_in(&netns)?.restore_default(&container.gateways).await,
            None => Ok(()),
        }
    }

    /// Takes out what an operator has taken out before, and is recorded still: a node ended in the midst of it, or the datastore
    /// was put back to a state before it. The lock of the container is held.
    pub(super) async fn take_out_again(&self, id: &ContainerId) -> Result<(), Fault> {
        if !self.is_loaded() {
            let at = self.etcd.address();
            return Err(Fault::Away(format!(
                "take container {} out again: etcd at {at} has not answered yet",
                id.short()
            )));
        }
        let ends = self.ends(id);
        self.reservations.remove(id)?;
        for (key, interface) in ends {
            if let Some(interface) = interface {
                self.wirer.links.remove(&interface).await?;
            }
            self.free(&key).await?;
        }
        self.forget_container(id);
        tracing::warn!(
            container = id.short(),
            "it was recorded, though it has been taken out of Calico: its record is gone"
        );
        self.give_way_out_back(id).await
    }

    async fn take_out(&self, recorded: &[Recorded]) -> Result<(), Fault> {
        for one in recorded {
            self.wirer.links.remove(&one.endpoint.interface).await?;
            self.free(&one.key).await?;
        }
        Ok(())
    }
}
