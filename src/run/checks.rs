//! What a node needs before it starts, all of it looked at, everything that is missing reported together.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use nix::fcntl::{Flock, FlockArg};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tokio::sync::Semaphore;

use crate::config::{self, Flags};
use crate::edge::iptables;
use crate::edge::network_lock::NetworkLock;
use crate::model::fault::Fault;
use crate::model::pool::Family;
use crate::plan::sysctl::FORWARD_IPV4;

/// # Errors
/// `World` with everything that is missing.
pub(super) async fn run(flags: &Flags, embedded_etcd: bool) -> Result<(), Fault> {
    let mut missing = Vec::new();
    if !nix::unistd::geteuid().is_root() {
        missing.push("root: interfaces, routes and firewall rules are to be changed".to_owned());
    }
    let mut tools = vec![
        ("iptables-save", "iptables"),
        ("iptables-restore", "iptables"),
        ("ip6tables-restore", "iptables"),
        ("ipset", "ipset"),
        ("nft", "nftables"),
    ];
    if flags.runs_bird() {
        tools.push(("bird", "bird2"));
    }
    if embedded_etcd {
        tools.push(("etcd", "etcd-server"));
    }
    for (tool, package) in tools {
        if !is_in_path(tool) {
            missing.push(format!("{tool} (Debian package {package})"));
        }
    }
    let path = format!("/proc/sys/{FORWARD_IPV4}");
    if let Err(error) = std::fs::OpenOptions::new().write(true).open(&path) {
        missing.push(format!("a writable {path}: {error}"));
    }
    if missing.is_empty() {
        let (rival, mix, mix6) =
            tokio::join!(iptables::rival(Family::V4), iptables::mix(Family::V4), iptables::mix(Family::V6));
        if let Some(chain) = rival? {
            missing.push(format!("a host without another Calico: chain {chain} is there; remove that Calico first"));
        } else if let Some(mix) = mix?.or(mix6?) {
            missing.push(format!("a firewall of one kind: {mix}"));
        }
    }
    if missing.is_empty() {
        return Ok(());
    }
    Err(Fault::World(format!("start: this host lacks {}", missing.join("; "))))
}

fn is_in_path(tool: &str) -> bool {
    let path = config::variable("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|folder| {
        std::fs::metadata(folder.join(tool))
            .is_ok_and(|found| found.is_file() && found.permissions().mode() & 0o111 != 0)
    })
}

/// How many descriptors are kept for everything but the proxy's connections: etcd, dockerd, netlink, children, logs.
const OWN_DESCRIPTORS: u64 = 256;

/// Raises the limit on open files as far as it goes and answers how many connections the proxy may hold under it, each
/// with a descriptor for either side: what comes beyond waits in the kernel's queue, and the rest of the node goes on.
///
/// # Errors
/// `World`: the kernel refused.
pub(super) fn most_connections() -> Result<usize, Fault> {
    let fault = |error| Fault::World(format!("raise the limit on open files: {error}"));
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE).map_err(fault)?;
    setrlimit(Resource::RLIMIT_NOFILE, most, most).map_err(fault)?;
    let connections = (most - OWN_DESCRIPTORS.min(most / 2)) / 2;
    Ok(usize::try_from(connections).unwrap_or(usize::MAX).clamp(1, Semaphore::MAX_PERMITS))
}

/// What only one node may have, for as long as this value is held.
pub(super) struct Only {
    _run_dir: Flock<std::fs::File>,
    _network: NetworkLock,
}

/// Makes sure that no second node, and no `clean`, works in this run folder or in this network namespace, whose rules
/// they would undo.
pub(super) async fn be_the_only_one(run_dir: &Path) -> Result<Only, Fault> {
    let path = run_dir.join("lock");
    let fault = |cause: String| Fault::World(format!("lock {}: {cause}", path.display()));
    let file = std::fs::File::create(&path).map_err(|error| fault(error.to_string()))?;
    let run_dir = Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|(_, error)| match error {
        nix::errno::Errno::EWOULDBLOCK => {
            fault("another calico-node runs with this run folder; stop it first".to_owned())
        }
        other => fault(other.to_string()),
    })?;
    let network = NetworkLock::take().await?;
    Ok(Only { _run_dir: run_dir, _network: network })
}
