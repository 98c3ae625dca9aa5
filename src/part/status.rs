//! Status: how this node is, gathered from its parts for `/readyz`, `calicoctl status` and the log.

use std::net::IpAddr;
use std::sync::Arc;

use tokio::sync::watch;

use crate::edge::bird::session_status;
use crate::model::control::{BirdStatus, EndpointCount, ReportedFault, Status};
use crate::model::host::Host;
use crate::model::key::Key;
use crate::model::snapshot::Snapshot;
use crate::part::agent::{LOOK, Programmed, WHOLE};
use crate::part::metrics::Now;
use crate::part::network::Network;
use crate::part::store::Store;

/// BIRD, as an object that has a fault.
const BIRD: &str = "BIRD";

/// What a status is gathered from.
pub(crate) struct Gauge {
    pub(crate) host: Host,
    pub(crate) etcd: String,
    pub(crate) docker: String,
    pub(crate) listeners: Vec<String>,
    /// `None`: this node runs no BGP.
    pub(crate) bird_socket: Option<std::path::PathBuf>,
    pub(crate) store: Arc<Store>,
    pub(crate) network: Arc<Network>,
    pub(crate) programmed: watch::Receiver<Programmed>,
}

impl Gauge {
    /// What is missing until this node does all of its work; empty when it does.
    pub(crate) fn waiting_for(&self) -> Vec<String> {
        let mut missing = Vec::new();
        if !self.store.is_connected() {
            let doubt = self.store.doubt().map(|why| format!(", which is not believed: {why}"));
            missing.push(format!("etcd at {}{}", self.etcd, doubt.unwrap_or_default()));
        }
        // What this node writes at its start, as far as nobody has written it before, comes after the view is complete.
        if self.store.is_connected() && !self.store.read(Snapshot::is_ready) {
            missing.push(format!("the defaults in the datastore: {} is not true", Key::Ready.path()));
        }
        missing.extend(self.store.withheld().map(|why| format!("the other hosts: {why}")));
        if !self.network.is_docker_up() {
            missing.push(format!("dockerd at {}", self.docker));
        }
        missing.extend(
            self.network.engine_doubt().map(|why| format!("dockerd at {}, which is not believed: {why}", self.docker)),
        );
        let programmed = self.programmed.borrow();
        if !programmed.in_sync {
            let why = programmed.faults.get(WHOLE).map(|why| format!(": {why}")).unwrap_or_default();
            missing.push(format!("the agent: the kernel does not hold what the datastore says yet{why}"));
        }
        if let Some(why) = programmed.faults.get(LOOK) {
            missing.push(format!("the agent: whether the kernel holds what was left there cannot be seen: {why}"));
        }
        if programmed.faults.contains_key("guard") {
            missing.push("the guard".to_owned());
        }
        missing.extend(self.without_bird(&programmed).map(|why| format!("{BIRD}: {why}")));
        missing
    }

    /// How this node is right now, for the metrics.
    pub(crate) async fn now(&self) -> Now {
        let count = self.count();
        let mut faults = self.faults();
        let sessions = self.bird(&mut faults).await.map(|bird| bird.sessions).unwrap_or_default();
        let up = sessions.iter().filter(|session| session.is_up()).count();
        Now {
            endpoints: [count.active, count.inactive],
            faults: faults.into_iter().map(|fault| fault.object).collect(),
            etcd: self.store.is_connected(),
            docker: self.network.is_docker_up(),
            sessions: [up, sessions.len() - up],
            in_sync: self.programmed.borrow().in_sync,
            ready: self.waiting_for().is_empty(),
        }
    }

    fn count(&self) -> EndpointCount {
        self.store.read(|snapshot| {
            let mut count = EndpointCount::default();
            for endpoint in snapshot.endpoints_of(&self.host.name).filter_map(|(_, record)| record.readable()) {
                if endpoint.is_active() {
                    count.active += 1;
                } else {
                    count.inactive += 1;
                }
            }
            count
        })
    }

    /// Why BIRD does not run here where it should.
    fn without_bird<'p>(&self, programmed: &'p Programmed) -> Option<&'p str> {
        self.bird_socket.as_ref().and_then(|_| programmed.bird.missing())
    }

    /// What cannot be read, of any host, and what is not in this host's kernel as it should be.
    fn faults(&self) -> Vec<ReportedFault> {
        let mut faults = self.store.read(Snapshot::unreadable);
        faults.extend(self.store.doubt().map(|why| (format!("etcd at {}", self.etcd), why)));
        faults.extend(self.store.withheld().map(|why| ("addresses".to_owned(), why)));
        faults.extend(self.network.engine_doubt().map(|why| (format!("dockerd at {}", self.docker), why)));
        let programmed = self.programmed.borrow().clone();
        faults.extend(self.without_bird(&programmed).map(|why| (BIRD.to_owned(), why.to_owned())));
        faults.extend(programmed.faults);
        let short = |id: &str| format!("container {}", id.get(..12).unwrap_or(id));
        faults.extend(self.network.failing().borrow().iter().map(|(id, why)| (short(id), why.clone())));
        faults.into_iter().map(|(object, why)| ReportedFault { object, why }).collect()
    }

    /// How BIRD is, if this node runs one. One that does not answer is a fault, unless that is among them already.
    async fn bird(&self, faults: &mut Vec<ReportedFault>) -> Option<BirdStatus> {
        Some(match session_status(self.bird_socket.as_ref()?).await {
            Ok(sessions) => BirdStatus { up: true, sessions },
            Err(fault) => {
                if !faults.iter().any(|fault| fault.object == BIRD) {
                    faults.push(ReportedFault { object: BIRD.to_owned(), why: fault.to_string() });
                }
                BirdStatus { up: false, sessions: Vec::new() }
            }
        })
    }

    pub(crate) async fn status(&self) -> Status {
        let as_number = self.store.read(|snapshot| snapshot.as_of(&self.host.name).0);
        let (endpoints, mut faults) = (self.count(), self.faults());
        let bird = self.bird(&mut faults).await;
        let mut warnings = self.network.warnings().await.unwrap_or_else(|fault| vec![fault.to_string()]);
        warnings.extend(self.network.beside().borrow().values().map(ToString::to_string));
        let waiting_for = self.waiting_for();
        Status {
            host: self.host.name.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            ip: Some(IpAddr::V4(self.host.ip)),
            ip6: self.host.ip6.map(IpAddr::V6),
            as_number,
            ready: waiting_for.is_empty(),
            waiting_for,
            etcd: self.etcd.clone(),
            etcd_connected: self.store.is_connected(),
            docker: self.docker.clone(),
            docker_connected: self.network.is_docker_up(),
            listeners: self.listeners.clone(),
            endpoints,
            bird,
            faults,
            warnings,
        }
    }
}
