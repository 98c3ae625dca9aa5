//! Wiring: makes the pair of one endpoint, with all that belongs on it, true. The node and the OCI hook call the same.
//!
//! What is there already stays as it is, so that calling it again costs a look and disturbs nobody; what somebody who was
//! killed left half made is completed. The route to the container is made here too, not only by the agent: a hook finds no
//! agent while the node is away. Until the policy stands, an interface of ours is dark whatever leads to it.

use std::ffi::OsStr;
use std::net::IpAddr;
use std::path::Path;

use crate::edge::fail_point::fail_point;
use crate::edge::kernel_routes::KernelRoutes;
use crate::edge::links::{Link, Netlink};
use crate::edge::netns::Netns;
use crate::edge::sysctl;
use crate::model::fault::Fault;
use crate::model::name::ContainerId;
use crate::model::pool::Family;
use crate::plan::routes::RouteStep;
use crate::plan::wiring::{Wiring, lacking_hosts_lines};

/// How long a hosts file may be that is written to, in bytes: dockerd's are far below it, and a longer one is the work of
/// what runs in the container.
const LONGEST_HOSTS: u64 = 64 << 10;

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

    /// # Errors
    /// `World`: the kernel is not heard any more, and nothing can be wired by this again.
    pub(crate) fn check(&self) -> Result<(), Fault> {
        if self.links.has_ended() || self.routes.has_ended() {
            return Err(Fault::World("wire containers: the netlink socket has broken".to_owned()));
        }
        Ok(())
    }

    /// Wires one endpoint into a container's namespace; answers whether there was anything to do.
    ///
    /// # Errors
    /// What was made stays, for the caller to take away.
    pub(crate) async fn wire(&self, wiring: &Wiring, netns: &Netns) -> Result<bool, Fault> {
        let inside = Netlink::open_in(netns)?;
        match self.wired(wiring, &inside).await? {
            Some((host, index)) if host.operates && inside.is_addressed(index, wiring).await? => return Ok(false),
            // Whoever made the pair was killed before the rest, or somebody has set an end down.
            Some(_) => {}
            None => {
                // What is left of an earlier run: the namespace of a dead container goes away in its own time.
                self.links.remove(&wiring.host_interface).await?;
                // An end of ours whose other end somebody has renamed, and which goes with it.
                let stray = inside.link(&wiring.container_interface).await?;
                if let Some(stray) = stray.filter(|link| link.mac == Some(wiring.mac)) {
                    inside.remove_link(stray.index).await?;
                }
                self.links.add_pair(wiring, netns).await?;
            }
        }
        fail_point("wire: the pair is made");
        // Before the interface is up, so that nothing is ever open on it.
        let ipv6 = wiring.has(Family::V6);
        sysctl::apply_to_interface(&wiring.host_interface, ipv6)?;
        if ipv6 {
            netns.inside(|| sysctl::apply_inside(&wiring.container_interface))??;
        }
        self.links.set_up(&wiring.host_interface).await?;
        if ipv6 {
            self.links.add_next_hop(&wiring.host_interface).await?;
        }
        fail_point("wire: the host side is up");
        let put = |address: &IpAddr| RouteStep::Put(*address, wiring.host_interface.clone());
        let steps: Vec<RouteStep> = wiring.addresses.iter().map(put).collect();
        self.routes.apply(&steps).await.into_iter().collect::<Result<(), Fault>>()?;
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

/// Adds the container's own name to its hosts file, in place as Docker's bridge does it, with each address that is not there.
///
/// dockerd makes one in the folder of the container. A file that somebody has mounted over it, the host's own perhaps, is not
/// the container's. What is in it is the container's to write.
pub(crate) fn add_hosts_lines(
    path: &Path,
    container: &ContainerId,
    addresses: &[IpAddr],
    hostname: &str,
) -> Result<(), Fault> {
    use std::io::{Read as _, Write as _};
    if path.parent().and_then(Path::file_name) != Some(OsStr::new(container.as_str())) {
        return Ok(());
    }
    let fault =
        |error: std::io::Error| Fault::World(format!("add the container's name to {}: {error}", path.display()));
    let mut file = std::fs::OpenOptions::new().read(true).append(true).open(path).map_err(fault)?;
    let mut text = Vec::new();
    (&file).take(LONGEST_HOSTS + 1).read_to_end(&mut text).map_err(fault)?;
    if text.len() as u64 > LONGEST_HOSTS {
        return Ok(());
    }
    file.write_all(lacking_hosts_lines(&text, addresses, hostname).as_bytes()).map_err(fault)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::edge::testnet::{Elsewhere, in_own_network, sh, sh_succeeds};
    use crate::plan::wiring::HOST_LINK_LOCAL;

    fn wiring(addresses: &[&str]) -> Wiring {
        Wiring {
            host_interface: "cali1".parse().unwrap(),
            container_interface: "eth1".parse().unwrap(),
            mac: "02:00:00:00:00:01".parse().unwrap(),
            addresses: addresses.iter().map(|text| text.parse().unwrap()).collect(),
            gateway: "172.25.0.1".parse().unwrap(),
        }
    }

    /// It was read whole, as text, and a container that had written anything else into it was taken from the network.
    #[test]
    fn a_hosts_file_may_hold_anything_and_one_of_the_containers_own_making_is_left_alone() {
        let container: ContainerId = "a".repeat(64).parse().unwrap();
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(container.as_str()).join("hosts");
        std::fs::create_dir(path.parent().unwrap()).unwrap();
        let add = || add_hosts_lines(&path, &container, &["10.0.0.1".parse().unwrap()], "web");
        std::fs::write(&path, b"\xff").unwrap();
        for _ in 0..2 {
            add().unwrap();
            assert_eq!(std::fs::read(&path).unwrap(), b"\xff\n10.0.0.1\tweb\n");
        }
        // As long as a file can be, and nothing on the disk.
        std::fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(8 << 30).unwrap();
        add().unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().len(), 8 << 30);
    }

    /// Where Docker has made a namespace without a network: it switches IPv6 off there.
    async fn as_docker_makes_it() -> Elsewhere {
        let container = Elsewhere::new().await;
        container
            .sh("ip link set lo up; sysctl -qw net.ipv6.conf.all.disable_ipv6=1 net.ipv6.conf.default.disable_ipv6=1")
            .await;
        container
    }

    #[test]
    fn a_container_has_each_family_that_it_has_an_address_of_and_no_other() {
        in_own_network(|| async {
            sh("ip addr add 172.25.0.1/32 dev lo; sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1")
                .await;
            for (addresses, four, six) in [
                (&["10.0.0.1", "fd00::1"][..], true, true),
                (&["fd00::1"][..], false, true),
                (&["10.0.0.1"][..], true, false),
            ] {
                let container = as_docker_makes_it().await;
                let netns = Netns::of_process(container.pid());
                let (wirer, wiring) = (Wirer::open().unwrap(), wiring(addresses));
                assert_eq!(wirer.wire(&wiring, &netns).await, Ok(true), "{addresses:?}");
                // At once, without a second try: nothing is tentative, and nobody is asked for long.
                if six {
                    assert!(sh_succeeds("ping -c 1 -W 5 fd00::1").await, "{addresses:?}");
                    container.sh(&format!("ping -c 1 -W 5 {HOST_LINK_LOCAL}%eth1; ping -c 1 -W 5 fd00::1")).await;
                    assert!(!sh("ip -6 addr show dev cali1").await.contains("tentative"));
                }
                let routes = container.sh("ip -6 route show default").await;
                assert_eq!(routes.contains(&HOST_LINK_LOCAL.to_string()), six, "{addresses:?}: {routes}");
                assert_eq!(sh_succeeds("ping -c 1 -W 1 10.0.0.1").await, four, "{addresses:?}");
                assert_eq!(sh("ip -6 addr show dev cali1").await.is_empty(), !six, "{addresses:?}");
                assert_eq!(wirer.wire(&wiring, &netns).await, Ok(false), "{addresses:?}: a second time");
                if six {
                    container.sh("ip -6 route flush default").await;
                    assert_eq!(wirer.wire(&wiring, &netns).await, Ok(true), "{addresses:?}: half of it was taken away");
                    container.sh("ip -6 addr del fd00::1/128 dev eth1").await;
                    assert_eq!(wirer.wire(&wiring, &netns).await, Ok(true), "{addresses:?}: an address was taken away");
                    container.sh("ip link set eth1 down").await;
                    assert_eq!(wirer.wire(&wiring, &netns).await, Ok(true), "{addresses:?}: it was set down");
                    assert!(sh_succeeds("ping -c 1 -W 5 fd00::1").await, "{addresses:?}: it was set down");
                }
                wirer.links.remove(&wiring.host_interface).await.unwrap();
            }
        });
    }

    #[test]
    fn a_router_on_a_containers_link_gives_the_host_nothing() {
        in_own_network(|| async {
            sh("sysctl -qw net.ipv6.conf.all.forwarding=1").await;
            let container = as_docker_makes_it().await;
            let netns = Netns::of_process(container.pid());
            Wirer::open().unwrap().wire(&wiring(&["fd00::1"]), &netns).await.unwrap();
            let settings = sh("cd /proc/sys/net/ipv6/conf/cali1; cat accept_ra accept_redirects autoconf").await;
            assert_eq!(settings.split_whitespace().collect::<Vec<_>>(), ["0", "0", "0"]);
        });
    }
}
