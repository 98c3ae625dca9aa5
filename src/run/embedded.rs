//! The embedded etcd: a single member of the distribution's own etcd, for a host that is named no cluster.
//!
//! It listens on loopback only, keeps its data in the state folder and dies with the node.

use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;

use crate::edge::etcd::EtcdAddress;
use crate::edge::exec::{Spawner, Start};
use crate::edge::files::if_there;
use crate::model::fault::Fault;
use crate::plan::backoff::Backoff;

/// The first port tried for clients; the next one is for peers.
const FIRST_PORT: u16 = 2379;

/// How many pairs are tried.
const PAIRS: u16 = 50;

/// Where, in the run folder, its address is told.
const PLACE: &str = "etcd-endpoint";

/// How long to wait before etcd is started again.
const RETRY: Backoff = Backoff::between(Duration::from_millis(500), Duration::from_secs(10));

/// How long etcd may take to end when told to.
const GRACE: Duration = Duration::from_secs(10);

/// An etcd that is to be run.
#[derive(Debug)]
pub(super) struct Server {
    spawner: Spawner,
    data: PathBuf,
    client: String,
    peer: String,
}

/// Chooses the ports and tells them in `<run-dir>/etcd-endpoint`, where calicoctl looks.
pub(super) fn prepare(spawner: Spawner, state_dir: &Path, run_dir: &Path) -> Result<(EtcdAddress, Server), Fault> {
    let port = free_pair().ok_or_else(|| {
        Fault::World(format!(
            "run an etcd for this host: no two free ports in a row from {FIRST_PORT} on 127.0.0.1; name a cluster with --etcd-endpoints"
        ))
    })?;
    let client = format!("http://127.0.0.1:{port}");
    let peer = format!("http://127.0.0.1:{}", port + 1);
    let path = run_dir.join(PLACE);
    std::fs::write(&path, format!("{client}\n"))
        .map_err(|error| Fault::World(format!("tell etcd's address in {}: {error}", path.display())))?;
    let address = EtcdAddress { endpoints: vec![client.clone()], ..EtcdAddress::default() };
    Ok((address, Server { spawner, data: state_dir.join("etcd"), client, peer }))
}

/// Takes away what an earlier node has told, which ran an etcd where this one is given another.
pub(super) fn forget(run_dir: &Path) -> Result<(), Fault> {
    let path = run_dir.join(PLACE);
    let removed = if_there(std::fs::remove_file(&path)).map(drop);
    removed.map_err(|error| Fault::World(format!("remove {}: {error}", path.display())))
}

fn free_pair() -> Option<u16> {
    let is_free = |port: u16| TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok();
    (0..PAIRS).map(|pair| FIRST_PORT + 2 * pair).find(|port| is_free(*port) && is_free(port + 1))
}

impl Server {
    /// Runs etcd, again whenever it ends, until told to stop.
    pub(super) async fn run(self, stop: &CancellationToken) -> Result<(), Fault> {
        let mut backoff = RETRY;
        while !stop.is_cancelled() {
            let start = Start { program: "etcd".to_owned(), args: self.arguments(), input: false };
            let mut etcd = self.spawner.start(start).await?;
            let began = Instant::now();
            tokio::select! {
                ended = etcd.wait() => tracing::error!(?ended, "the embedded etcd ended; starting it again"),
                () = stop.cancelled() => {
                    etcd.end(GRACE).await;
                    return Ok(());
                }
            }
            tokio::select! {
                () = stop.cancelled() => {}
                () = tokio::time::sleep(backoff.ended_after(began.elapsed())) => {}
            }
        }
        Ok(())
    }

    fn arguments(&self) -> Vec<String> {
        let pair = |flag: &str, value: &str| format!("--{flag}={value}");
        vec![
            pair("name", "calico"),
            pair("data-dir", &self.data.to_string_lossy()),
            pair("listen-client-urls", &self.client),
            pair("advertise-client-urls", &self.client),
            pair("listen-peer-urls", &self.peer),
            pair("initial-advertise-peer-urls", &self.peer),
            pair("initial-cluster", &format!("calico={}", self.peer)),
            // The history is of no use here, and without an end it fills the disk.
            pair("auto-compaction-mode", "periodic"),
            pair("auto-compaction-retention", "1h"),
            pair("log-level", "warn"),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_address_of_an_etcd_that_is_not_run_any_more_is_forgotten() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join(PLACE), "http://127.0.0.1:2379\n").unwrap();
        for _ in 0..2 {
            assert_eq!(forget(folder.path()), Ok(()));
            assert!(!folder.path().join(PLACE).exists());
        }
    }
}
