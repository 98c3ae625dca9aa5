//! What a node needs before it starts, all of it looked at, everything that is missing reported together.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use nix::fcntl::{Flock, FlockArg};

use crate::config::{self, Flags};
use crate::edge::iptables;
use crate::model::fault::Fault;
use crate::model::pool::Family;

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
    for sysctl in ["net/ipv4/ip_forward", "net/ipv4/conf/all/rp_filter"] {
        let path = format!("/proc/sys/{sysctl}");
        if let Err(error) = std::fs::OpenOptions::new().write(true).open(&path) {
            missing.push(format!("a writable {path}: {error}"));
        }
    }
    // Strict reverse path filtering is what keeps containers from sending with a foreign source, and the kernel takes
    // the larger of `all` and the interface's own (linux Documentation/networking/ip-sysctl.rst).
    if std::fs::read_to_string("/proc/sys/net/ipv4/conf/all/rp_filter").is_ok_and(|value| value.trim() == "2") {
        missing.push(
            "net.ipv4.conf.all.rp_filter of 0 or 1: it is 2, so containers could send with any source".to_owned(),
        );
    }
    if missing.is_empty()
        && let Some(chain) = iptables::rival(Family::V4).await?
    {
        missing.push(format!("a host without another Calico: chain {chain} is there; remove that Calico first"));
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

/// Makes sure that no second node uses this run folder, for as long as the answer is held.
pub(super) fn be_the_only_one(run_dir: &Path) -> Result<Flock<std::fs::File>, Fault> {
    let path = run_dir.join("lock");
    let fault = |cause: String| Fault::World(format!("lock {}: {cause}", path.display()));
    let file = std::fs::File::create(&path).map_err(|error| fault(error.to_string()))?;
    Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|(_, error)| match error {
        nix::errno::Errno::EWOULDBLOCK => {
            fault("another calico-node runs with this run folder; give this one its own with --run-dir".to_owned())
        }
        other => fault(other.to_string()),
    })
}
