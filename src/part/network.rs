//! The network of a container through its life: claimed before create, wired at start, freed at destroy.
//!
//! Everything turns on [`Network::settle`]: it looks at what Docker says of a container now and makes the network fit,
//! whatever happened before. The proxy calls it when it has forwarded a call, the events call it for what passed the
//! proxy by, and a list of all containers calls it for what the events missed, so a lost event or a crash in between
//! leaves nothing that the next look does not mend. The alternative, one action for each event, goes wrong with every
//! event that is lost, doubled or out of order.
//!
//! Invariants: an address has at most one claim, made before a container exists and bound in the same transaction that
//! writes the endpoint's record; only the destruction of the container removes both, unless another was made to take its
//! place (see [`succession`]). Work on one container is serialised.

mod adopt;
mod claims;
mod creating;
mod engine;
mod reconcile;
mod reserving;
mod settle;
mod starting;
mod succession;

pub(crate) use settle::Waits;

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{Duration, Instant};

use ipnet::IpNet;
use tokio::sync::watch;

use crate::edge::docker::{Container, Docker};
use crate::edge::etcd::Etcd;
use crate::edge::kept_file::KeptFile;
use crate::edge::notes::Notes;
use crate::edge::reservations::Reservations;
use crate::edge::run_dir::Marks;
use crate::edge::wiring::Wirer;
use crate::model::endpoint::Endpoint;
use crate::model::fault::Fault;
use crate::model::host::Host;
use crate::model::key::EndpointKey;
use crate::model::name::{ContainerId, Orchestrator};
use crate::model::pool::Family;
use crate::model::report::Beside;
use crate::model::snapshot::{Record, Snapshot};
use crate::part::agent::Programmed;
use crate::part::metrics::Metrics;
use crate::part::store::Store;
use crate::plan::address::Reserved;
use crate::plan::replies::Appearance;
use crate::plan::runtime::{RUNC, Runtimes};
use crate::plan::wiring::HOST_LINK_LOCAL;

/// What the network of containers is built on.
#[derive(Debug, Clone)]
pub(crate) struct Ground {
    pub(crate) host: Host,
    pub(crate) state_dir: PathBuf,
    pub(crate) run_dir: PathBuf,
    /// How long a start waits for the agent.
    pub(crate) apply_timeout: Duration,
}

impl Ground {
    /// What is recorded as the next hops of a container with these addresses, of IPv4 and of IPv6.
    fn gateways(&self, addresses: &BTreeSet<IpAddr>) -> (Option<IpAddr>, Option<IpAddr>) {
        let has = |family| addresses.iter().any(|address| Family::of(*address) == family);
        let ipv4 = has(Family::V4).then_some(IpAddr::V4(self.host.ip));
        (ipv4, self.host.ip6.filter(|_| has(Family::V6)).map(IpAddr::V6))
    }
}

/// See the module.
pub(crate) struct Network {
    ground: Ground,
    store: Arc<Store>,
    etcd: Etcd,
    docker: Docker,
    wirer: Wirer,
    /// What each container of ours is wired with, on this host's disk.
    reservations: Reservations,
    /// The revision of each container's newest record when what is kept of it was last brought up to date.
    kept_at: Mutex<HashMap<ContainerId, i64>>,
    /// The creates that have not come to their end, there too.
    notes: Notes,
    /// The endpoints whose policy stands, as an earlier run may have left them.
    programmed_marks: Marks,
    /// The containers whose start the OCI hook has refused.
    refused: Marks,
    /// The containers that an operator has taken out of Calico.
    released: Marks,
    /// The process that each container's network was last seen to stand for.
    lit: Mutex<HashMap<ContainerId, i32>>,
    /// When the hook last wired a container.
    hooked: Mutex<HashMap<ContainerId, Instant>>,
    /// The runtimes that dockerd knows, as of its last start or reload.
    runtimes: RwLock<Runtimes>,
    metrics: Arc<Metrics>,
    programmed: watch::Receiver<Programmed>,
    /// The lease that pending claims hang on; `None` while there is none.
    lease: watch::Sender<Option<i64>>,
    /// Whether the stream of Docker's events is up.
    docker_up: watch::Sender<bool>,
    /// The dockerd that this host's containers are in, as it is kept on this host's disk, and what is known of the one that
    /// answers.
    known_engine: KeptFile,
    engine: Mutex<engine::Standing>,
    /// By container: why its network is not what Docker's word on it requires, as of the last of several tries.
    failing: watch::Sender<BTreeMap<String, String>>,
    /// The last address given out of each pool.
    cursors: Mutex<BTreeMap<IpNet, IpAddr>>,
    locks: Mutex<HashMap<ContainerId, Arc<tokio::sync::Mutex<()>>>>,
    /// Containers of ours that are on networks of Docker's too, by their ids.
    beside: watch::Sender<BTreeMap<String, Beside>>,
    /// The requests of creates that this process has under way: their claims and notes are nobody else's business.
    creating: Mutex<HashSet<String>>,
}

/// What a name stands for that a client calls a container by.
enum Named {
    Ours(ContainerId),
    Anothers(Box<Container>),
    /// Nothing, or another's: there is none of ours.
    Nothing,
}

/// An endpoint of a container, as the view has it.
#[derive(Debug, Clone)]
struct Recorded {
    key: EndpointKey,
    endpoint: Endpoint,
    revision: i64,
}

/// Whether an endpoint is one of a container's. Another orchestrator's workloads are none of ours, whatever their ids.
fn is_of(key: &EndpointKey, id: &ContainerId) -> bool {
    key.orchestrator == Orchestrator::docker() && key.workload.as_str() == id.as_str()
}

/// The record of a container's endpoint, if a hand may act on it. The interface that it names must be the one that goes with
/// the endpoint's id: what is wired and removed by it must never be the host's own, nor another container's.
fn usable<'r>(key: &EndpointKey, record: &'r Record<Endpoint>) -> Result<&'r Endpoint, String> {
    let endpoint = record.value.as_ref().map_err(Clone::clone)?;
    match key.endpoint.interface() {
        Some(own) if own != endpoint.interface => {
            Err(format!("it names interface {}: that of endpoint {} must be {own}", endpoint.interface, key.endpoint))
        }
        Some(_) => Ok(endpoint),
        None => {
            Err(format!("endpoint {} is named so that no interface is: it must be letters and digits", key.endpoint))
        }
    }
}

impl Network {
    pub(crate) fn new(
        ground: Ground,
        store: Arc<Store>,
        etcd: Etcd,
        docker: Docker,
        metrics: Arc<Metrics>,
        programmed: watch::Receiver<Programmed>,
    ) -> Result<Self, Fault> {
        Ok(Network {
            reservations: Reservations::in_state_dir(&ground.state_dir),
            kept_at: Mutex::default(),
            notes: Notes::in_state_dir(&ground.state_dir),
            programmed_marks: Marks::programmed(&ground.run_dir),
            refused: Marks::refused(&ground.run_dir),
            released: Marks::released(&ground.state_dir),
            known_engine: KeptFile::engine(&ground.state_dir),
            engine: Mutex::default(),
            lit: Mutex::default(),
            hooked: Mutex::default(),
            runtimes: RwLock::default(),
            ground,
            store,
            etcd,
            docker,
            wirer: Wirer::open()?,
            metrics,
            programmed,
            lease: watch::Sender::new(None),
            docker_up: watch::Sender::new(false),
            failing: watch::Sender::default(),
            cursors: Mutex::default(),
            locks: Mutex::default(),
            beside: watch::Sender::default(),
            creating: Mutex::default(),
        })
    }

    /// Why the networks of containers keep failing, by the container's id.
    pub(crate) fn failing(&self) -> watch::Receiver<BTreeMap<String, String>> {
        self.failing.subscribe()
    }

    /// The containers of ours whose traffic policy does not see all of, by their ids.
    pub(crate) fn beside(&self) -> watch::Receiver<BTreeMap<String, Beside>> {
        self.beside.subscribe()
    }

    /// Whether dockerd answers, as far as is known.
    pub(crate) fn is_docker_up(&self) -> bool {
        *self.docker_up.borrow()
    }

    /// Whether the datastore has been heard of since this node began.
    fn is_loaded(&self) -> bool {
        self.store.synced().borrow().revision > 0
    }

    /// The runtimes that dockerd knows.
    pub(crate) fn runtimes(&self) -> Runtimes {
        self.runtimes.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Asks dockerd anew which runtimes it knows.
    async fn learn_runtimes(&self) -> Result<(), Fault> {
        let known = self.docker.runtimes().await?.of_run_dir(&self.ground.run_dir);
        *self.runtimes.write().unwrap_or_else(PoisonError::into_inner) = known;
        Ok(())
    }

    /// What this host's disk says of a container; nothing where it cannot be read, so that nothing is wired by it.
    fn kept_here(&self, id: &ContainerId) -> Vec<Recorded> {
        self.reserved_here(id).unwrap_or_else(|fault| {
            tracing::warn!(container = id.short(), %fault, "what was kept of a container tells nothing");
            Vec::new()
        })
    }

    /// The endpoints of a container on this host. Until the datastore is heard of, this host's disk is asked.
    fn recorded(&self, id: &ContainerId) -> Vec<Recorded> {
        if !self.is_loaded() {
            return self.kept_here(id);
        }
        self.store.read(|snapshot| {
            let of_container = self.endpoints_in(snapshot, id);
            of_container
                .filter_map(|(key, record)| {
                    let endpoint = usable(key, record).ok()?.clone();
                    Some(Recorded { key: key.clone(), endpoint, revision: record.revision })
                })
                .collect()
        })
    }

    /// Where the endpoints of a container on this host are recorded, each with why it cannot be read, if it cannot.
    fn keys(&self, id: &ContainerId) -> Vec<(EndpointKey, Option<String>)> {
        if !self.is_loaded() {
            return self.recorded(id).into_iter().map(|one| (one.key, None)).collect();
        }
        self.store.read(|snapshot| {
            let of_container = self.endpoints_in(snapshot, id);
            of_container.map(|(key, record)| (key.clone(), usable(key, record).err())).collect()
        })
    }

    fn endpoints_in<'s>(
        &self,
        snapshot: &'s Snapshot,
        id: &ContainerId,
    ) -> impl Iterator<Item = (&'s EndpointKey, &'s Record<Endpoint>)> + use<'s> {
        snapshot.endpoints_of_workload(self.ground.host.name.clone(), Orchestrator::docker(), id.workload())
    }

    /// Whether this host has an endpoint of a container, readable or not.
    fn is_ours(&self, id: &ContainerId) -> bool {
        if !self.is_loaded() {
            return self.is_reserved(id);
        }
        self.store.read(|snapshot| self.endpoints_in(snapshot, id).next().is_some())
    }

    /// Whether this host has an endpoint of any container, or keeps what it has had or is to have.
    fn has_any(&self) -> bool {
        let docker = Orchestrator::docker();
        !self.is_loaded()
            || self.store.read(|snapshot| {
                snapshot.endpoints_of(&self.ground.host.name).any(|(key, _)| key.orchestrator == docker)
            })
            || self.reservations.containers().is_ok_and(|kept| !kept.is_empty())
            || self.has_notes()
    }

    /// The ids of the containers that this host has endpoints of, readable or not.
    fn containers(&self) -> Vec<ContainerId> {
        if !self.is_loaded() {
            return self.reservations.containers().unwrap_or_else(|fault| {
                tracing::warn!(%fault, "which containers are this host's is not known until etcd answers");
                Vec::new()
            });
        }
        self.store.read(|snapshot| {
            let ours = snapshot
                .endpoints_of(&self.ground.host.name)
                .filter(|(key, _)| key.orchestrator == Orchestrator::docker());
            let mut ids: Vec<ContainerId> = ours.filter_map(|(key, _)| key.workload.as_str().parse().ok()).collect();
            ids.dedup();
            ids
        })
    }

    /// A create that asked for a network of ours did not get it.
    pub(crate) fn count_refused_create(&self) {
        self.metrics.creates_refused.inc();
    }

    /// A container of ours was not let start.
    pub(crate) fn count_refused_start(&self) {
        self.metrics.starts_refused.inc();
    }

    /// The id of a container of ours that Docker knows by name, id or part of an id. `None`: no container, or not ours.
    pub(crate) async fn ours(&self, name: &str) -> Result<Option<ContainerId>, Fault> {
        match self.named(name).await? {
            Named::Ours(id) => Ok(Some(id)),
            Named::Anothers(container) => self.check_anothers(&container, name).map(|()| None),
            Named::Nothing => Ok(None),
        }
    }

    /// Whether a container that is not known to be ours is certain not to be: a start must not succeed with a dead interface.
    fn check_anothers(&self, container: &Container, name: &str) -> Result<(), Fault> {
        if self.is_loaded() || !container.wishes() || self.released.is_set(container.id.as_str()) {
            return Ok(());
        }
        Err(Fault::Away(format!(
            "look up container {name}: etcd at {} has not answered since this node began, so its network is not wired yet",
            self.etcd.address()
        )))
    }

    /// The container that Docker knows by name, id or part of an id.
    async fn named(&self, name: &str) -> Result<Named, Fault> {
        if !self.has_any() {
            return Ok(Named::Nothing);
        }
        // dockerd takes what looks like an id for one first, and for a name then.
        if let Ok(id) = name.parse::<ContainerId>()
            && self.is_loaded()
            && self.is_ours(&id)
        {
            return Ok(Named::Ours(id));
        }
        // Whoever asks waits for dockerd, and so do we.
        Ok(match self.docker.look_up(name).await? {
            Some(container) if self.is_ours(&container.id) => Named::Ours(container.id),
            Some(container) => Named::Anothers(Box::new(container)),
            None => Named::Nothing,
        })
    }

    /// How a container looks to Docker's clients; `None` if it is not one of ours.
    pub(crate) fn appearance(&self, id: &ContainerId) -> Option<Appearance> {
        let recorded = self.recorded(id);
        let first = recorded.first()?;
        let requested = first.endpoint.requested.clone().unwrap_or_default();
        let runtimes = self.runtimes.read().unwrap_or_else(PoisonError::into_inner);
        let runtime = requested.runtime.as_ref().map_or(Some(RUNC), |behind| runtimes.name_of(behind));
        Some(Appearance {
            addresses: recorded.iter().flat_map(|one| one.endpoint.addresses.iter().copied()).collect(),
            mac: first.endpoint.mac,
            ipv4_gateway: first.endpoint.ipv4_gateway,
            // What a container's routes say; the record names the host's address that stands behind it.
            ipv6_gateway: Some(IpAddr::V6(HOST_LINK_LOCAL)),
            runtime: runtime.map(str::to_owned),
            requested,
        })
    }

    /// Whether a container of ours shows a network without being in it, that is called by its name, its id or a part of that.
    pub(crate) async fn shows_network(&self, id: &ContainerId, network: &str) -> Result<bool, Fault> {
        let Some(Appearance { requested, .. }) = self.appearance(id) else { return Ok(false) };
        let shows =
            |network: &str| if requested.networks.is_empty() { network == "none" } else { requested.names(network) };
        // By whatever else it is called, dockerd knows it.
        Ok(shows(network) || self.docker.network(network).await?.is_some_and(|(name, _)| shows(&name)))
    }

    /// Whether dockerd has a container in a network, whatever it shows.
    pub(crate) async fn is_in_network(&self, id: &ContainerId, network: &str) -> Result<bool, Fault> {
        Ok(self.docker.look_up(id.as_str()).await?.is_some_and(|container| container.is_in(network)))
    }

    /// The addresses of some families that no container may have.
    async fn reserved(&self, families: impl IntoIterator<Item = Family>) -> Result<Reserved, Fault> {
        let mut connected = Vec::new();
        for family in families {
            connected.extend(self.wirer.links.host_addresses(family).await?);
        }
        Ok(self.store.read(|snapshot| Reserved::new(snapshot, connected)))
    }

    /// What an operator should know of the pools and of this host's address, in words.
    pub(crate) async fn warnings(&self) -> Result<Vec<String>, Fault> {
        let reserved = self.reserved(Family::BOTH).await?;
        let mut warnings = self.store.read(|snapshot| {
            let pools = snapshot.pools.values().filter_map(Record::readable);
            reserved.overlapping(pools)
        });
        let ip = self.ground.host.ip;
        if !reserved.is_on_an_interface(ip.into()) {
            warnings.push(format!(
                "this host's address {ip} is on no interface: other hosts do not reach its containers by it; restart the node, with --ip if it shall not find the address itself"
            ));
        }
        Ok(warnings)
    }

    /// The lock under which a container's network is changed.
    fn lock(&self, id: &ContainerId) -> Arc<tokio::sync::Mutex<()>> {
        let mut locks = self.locks.lock().unwrap_or_else(PoisonError::into_inner);
        // Who waits for a lock holds a clone of it, so one that only the map holds is nobody's.
        locks.retain(|_, lock| Arc::strong_count(lock) > 1);
        Arc::clone(locks.entry(id.clone()).or_default())
    }
}
