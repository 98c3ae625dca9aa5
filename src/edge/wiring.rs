//! Wiring: makes the pair of one endpoint, with all that belongs on it, true. The node and the OCI hook call the same.
//!
//! What is there already stays as it is, so that calling it again costs a look and disturbs nobody; what somebody who was
//! killed left half made is completed. The route to the container is made here too, not only by the agent: a hook finds no
//! agent while the node is away. Until the policy stands, an interface of ours is dark whatever leads to it.

use std::net::IpAddr;
use std::path::Path;

use crate::edge::fail_point::fail_point;
use crate::edge::kernel_routes::KernelRoutes;
use crate::edge::links::{Link, Netlink};
use crate::edge::netns::Netns;
use crate::edge::sysctl;
use crate::model::fault::Fault;
use crate::plan::routes::RouteStep;
use crate::plan::wiring::{Wiring, hosts_line};

/// What wires on this host.
#[derive(Debug)]
pub(crate) struct Wirer {
    pub(crate) links: Netlink,
    routes: KernelRoutes,
}

impl Wirer {
    pub(crate) fn open() -> Result<Self, Fault> {
        Ok(Wirer { links: Netlink::open()?, routes: KernelRoutes::open()? })
    }

    /// Wires one endpoint into a container's namespace; answers whether there was anything to do.
    ///
    /// # Errors
    /// What was made stays, for the caller to take away.
    pub(crate) async fn wire(&self, wiring: &Wiring, netns: &Netns) -> Result<bool, Fault> {
        let inside = Netlink::open_in(netns)?;
        match self.wired(wiring, &inside).await? {
            Some((host, index)) if host.operates && inside.is_addressed(index).await? => return Ok(false),
            // Whoever made the pair was killed before the rest, or somebody has set an end down.
            Some(_) => {}
            None => {
                // What is left of an earlier run: the namespace of a dead container goes away in its own time.
                self.links.remove(&wiring.host_interface).await?;
                self.links.add_pair(wiring, netns).await?;
            }
        }
        fail_point("wire: the pair is made");
        // Before the interface is up, so that nothing is ever open on it.
        sysctl::apply_to_interface(&wiring.host_interface)?;
        self.links.set_up(&wiring.host_interface).await?;
        fail_point("wire: the host side is up");
        for address in &wiring.addresses {
            self.routes.apply(&RouteStep::Put(IpAddr::V4(*address), wiring.host_interface.clone())).await?;
        }
        fail_point("wire: the route stands");
        // The last of it is what `is_addressed` looks for.
        inside.address(wiring).await?;
        self.links.await_operating(&wiring.host_interface).await?;
        fail_point("wire: all is done");
        Ok(true)
    }

    /// The host's end and the number of the container's, if the pair is there and its ends belong to each other.
    async fn wired(&self, wiring: &Wiring, inside: &Netlink) -> Result<Option<(Link, u32)>, Fault> {
        let Some(host) = self.links.link(&wiring.host_interface).await? else { return Ok(None) };
        let container = inside.link(&wiring.container_interface).await?.filter(|container| {
            host.peer == Some(container.index)
                && container.peer == Some(host.index)
                && container.mac == Some(wiring.mac)
        });
        Ok(container.map(|container| (host, container.index)))
    }
}

/// Adds the container's own name to its hosts file, in place as Docker's bridge does it, unless it is there.
pub(crate) fn add_hosts_line(path: &Path, addresses: &[IpAddr], hostname: &str) -> Result<(), Fault> {
    use std::io::Write as _;
    let fault =
        |error: std::io::Error| Fault::World(format!("add the container's name to {}: {error}", path.display()));
    let Some(line) = hosts_line(addresses, hostname) else { return Ok(()) };
    let text = std::fs::read_to_string(path).map_err(fault)?;
    if text.lines().any(|one| one == line.trim_end()) {
        return Ok(());
    }
    let mut file = std::fs::OpenOptions::new().append(true).open(path).map_err(fault)?;
    file.write_all(line.as_bytes()).map_err(fault)
}
