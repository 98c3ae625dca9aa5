//! Links: the veth pair between a container and the host, and the addresses of the host's own interfaces.
//!
//! The peer is born inside the container's namespace under its final name, so nothing is ever moved or renamed and no
//! half-made interface shows up on the host. rtnetlink is named here and in `kernel_routes` only.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use futures_util::TryStreamExt;
use ipnet::IpNet;
use netlink_packet_route::AddressFamily;
use netlink_packet_route::address::{AddressAttribute, AddressHeaderFlags, AddressMessage, AddressScope};
use netlink_packet_route::link::{InfoData, InfoKind, InfoVeth, LinkAttribute, LinkMessage, State};
use netlink_packet_route::route::{RouteAttribute, RouteMessage, RouteProtocol, RouteScope, RouteType};
use nix::errno::Errno;
use nix::net::if_::if_indextoname;
use rtnetlink::{Handle, LinkMessageBuilder, LinkUnspec, RouteMessageBuilder};
use tokio::sync::Mutex;
use tokio::task::JoinHandle;

use self::removal::Remover;
use crate::edge::netns::Netns;
use crate::model::fault::Fault;
use crate::model::name::{INTERFACE_PREFIX, IfName, Mac};
use crate::model::pool::Family;
use crate::plan::address::Connected;
use crate::plan::wiring::{HOST_LINK_LOCAL, HOST_MAC, LEAVING_GROUP, LINK_GROUP, Wiring};

mod removal;

/// How long an interface may take to answer for an address that it was given, and how often that is looked at. It is a
/// matter of microseconds, unless others keep the kernel busy with links; one that takes longer answers later.
const ANSWERS_WITHIN: Duration = Duration::from_secs(1);
const LOOK_EVERY: Duration = Duration::from_micros(100);

/// How often a link that is being removed is looked for.
const LOOK_AGAIN: Duration = Duration::from_millis(1);

/// rtnetlink sockets of one namespace, and the task that serves one of them.
#[derive(Debug)]
pub(crate) struct Netlink {
    handle: Handle,
    task: JoinHandle<()>,
    /// Whether it is the namespace of this process.
    is_own: bool,
    /// The kernel serves one dump at a time on a socket and refuses a second with EBUSY (linux net/netlink/af_netlink.c,
    /// `__netlink_dump_start`).
    dumping: Mutex<()>,
    /// Links that somebody waits to see removed, by index, and what removes them.
    leaving: std::sync::Mutex<BTreeSet<u32>>,
    remover: Arc<Mutex<Remover>>,
}

impl Drop for Netlink {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// A link as the kernel shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Link {
    pub(crate) index: u32,
    /// For a veth: the index of its peer, in the peer's namespace.
    pub(crate) peer: Option<u32>,
    pub(crate) mac: Option<Mac>,
    /// Whether packets pass: it is up, and the kernel has taken notice that its other end is too.
    pub(crate) operates: bool,
}

/// Whose dockerd says that its routes in containers are. Source: moby libnetwork, which says nothing, and vishvananda/netlink, which
/// says this then.
const DOCKERS: RouteProtocol = RouteProtocol::Boot;

/// The error number of a kernel's refusal, positive; `None` for other errors.
fn errno(error: &rtnetlink::Error) -> Option<i32> {
    match error {
        rtnetlink::Error::NetlinkError(message) => message.code.map(|code| -code.get()),
        _ => None,
    }
}

fn is(error: &rtnetlink::Error, code: Errno) -> bool {
    errno(error) == Some(code as i32)
}

fn fault(doing: String) -> impl Fn(rtnetlink::Error) -> Fault {
    move |error| {
        let cause = errno(&error).map_or_else(|| error.to_string(), |code| Errno::from_raw(code).to_string());
        Fault::World(format!("{doing}: {cause}"))
    }
}

/// The name of an interface; `None` if it is gone. To ask for each that counts is far less than to look at all interfaces
/// with all that is to be told of them.
pub(super) fn name_of(index: u32) -> Option<String> {
    if_indextoname(index).ok()?.into_string().ok()
}

impl Netlink {
    /// In the namespace of this process.
    ///
    /// # Errors
    /// `Away`: there is no socket to be had.
    pub(crate) fn open() -> Result<Self, Fault> {
        let away = |error: std::io::Error| Fault::Away(format!("open a netlink socket: {error}"));
        let (connection, handle, _) = rtnetlink::new_connection().map_err(away)?;
        let remover = Arc::new(Mutex::new(Remover::open().map_err(away)?));
        let (dumping, leaving) = (Mutex::default(), std::sync::Mutex::default());
        Ok(Netlink { handle, task: tokio::spawn(connection), is_own: true, dumping, leaving, remover })
    }

    /// In another namespace.
    pub(crate) fn open_in(netns: &Netns) -> Result<Self, Fault> {
        let mut there = netns.inside(Netlink::open)??;
        there.is_own = false;
        Ok(there)
    }

    /// Whether the socket is not served any more: nothing will ever be answered.
    pub(crate) fn has_ended(&self) -> bool {
        self.task.is_finished()
    }

    /// A link by name; `None` if there is none.
    pub(crate) async fn link(&self, name: &IfName) -> Result<Option<Link>, Fault> {
        let mut found = self.handle.link().get().match_name(name.to_string()).execute();
        match found.try_next().await {
            Ok(message) => Ok(message.map(|message| read_link(&message))),
            Err(error) if is(&error, Errno::ENODEV) => Ok(None),
            Err(error) => Err(fault(format!("look for interface {name}"))(error)),
        }
    }

    /// Waits until packets pass a link both of whose ends are up: the kernel takes notice of that in its own time, and drops
    /// what comes before (linux net/core/link_watch.c, `linkwatch_do_dev`).
    ///
    /// # Errors
    /// It takes longer than a second, or the link is gone.
    pub(crate) async fn await_operating(&self, name: &IfName) -> Result<(), Fault> {
        let operates = async {
            loop {
                match self.link(name).await? {
                    Some(link) if link.operates => return Ok(()),
                    Some(_) => tokio::time::sleep(Duration::from_micros(200)).await,
                    None => return Err(Fault::World(format!("wait for interface {name}: it is gone"))),
                }
            }
        };
        let late = |_| Fault::World(format!("wait for interface {name}: it does not operate after 1 s, as it should"));
        tokio::time::timeout(Duration::from_secs(1), operates).await.map_err(late)?
    }

    /// Removes a link by name; one that is not there is no error.
    pub(crate) async fn remove(&self, name: &IfName) -> Result<(), Fault> {
        match self.link(name).await? {
            Some(link) => {
                self.remove_link(link.index).await.map_err(|fault| fault.during(&format!("interface {name}")))
            }
            None => Ok(()),
        }
    }

    /// Removes a link by its index, which is never given out again; one that is not there is no error. When this returns,
    /// nothing passes it and its name is free, though the kernel may still be tidying up.
    ///
    /// That takes as long for many as for one. So who comes while links are being removed waits, and then all that wait go
    /// together.
    pub(crate) async fn remove_link(&self, index: u32) -> Result<(), Fault> {
        let leaving = || self.leaving.lock().unwrap_or_else(PoisonError::into_inner);
        leaving().insert(index);
        let remover = Arc::clone(&self.remover).lock_owned().await;
        let together = std::mem::take(&mut *leaving());
        // It has its turn until the kernel has done with it, also when nobody waits for that any more.
        let removal = tokio::task::spawn_blocking(move || {
            if together.len() > 1 {
                remover.remove_together(together);
            }
            remover.remove(index)
        });
        tokio::select! {
            removed = removal => {
                removed.map_err(|error| Fault::World(format!("remove the link of index {index}: {error}")))?
            }
            () = is_unlisted(index), if self.is_own => Ok(()),
        }
    }

    /// Removes every link of our group whose name begins as ours do; answers how many there were.
    pub(crate) async fn remove_ours(&self) -> Result<usize, Fault> {
        let dumping = self.dumping.lock().await;
        let mut links = self.handle.link().get().execute();
        let mut ours = Vec::new();
        while let Some(message) = links.try_next().await.map_err(fault("list the host's interfaces".to_owned()))? {
            let is_in = |group| message.attributes.contains(&LinkAttribute::Group(group));
            let grouped = is_in(LINK_GROUP) || is_in(LEAVING_GROUP);
            let name = message.attributes.iter().find_map(|attribute| match attribute {
                LinkAttribute::IfName(name) => name.parse::<IfName>().ok(),
                _ => None,
            });
            ours.extend(name.filter(|name| grouped && name.as_str().starts_with(INTERFACE_PREFIX)));
        }
        drop(dumping);
        for name in &ours {
            self.remove(name).await?;
        }
        Ok(ours.len())
    }

    /// Makes the pair, the container's end inside `netns`. Both ends are down: the kernel cannot open one before it knows
    /// the other (linux drivers/net/veth.c, `veth_open`).
    pub(crate) async fn add_pair(&self, wiring: &Wiring, netns: &Netns) -> Result<(), Fault> {
        let peer = LinkMessageBuilder::<LinkUnspec>::default()
            .name(wiring.container_interface.to_string())
            .address(wiring.mac.0.to_vec())
            .setns_by_fd(netns.raw_fd())
            .build();
        let pair = LinkMessageBuilder::<LinkUnspec>::new_with_info_kind(InfoKind::Veth)
            .name(wiring.host_interface.to_string())
            .address(HOST_MAC.0.to_vec())
            .link_group(LINK_GROUP)
            .set_info_data(InfoData::Veth(InfoVeth::Peer(peer)))
            .build();
        self.handle.link().add(pair).execute().await.map_err(fault(format!(
            "make interface {} with its end {} in the container",
            wiring.host_interface, wiring.container_interface
        )))
    }

    pub(crate) async fn set_up(&self, name: &IfName) -> Result<(), Fault> {
        let message = LinkUnspec::new_with_name(name.as_str()).up().build();
        self.handle.link().set(message).execute().await.map_err(fault(format!("set interface {name} up")))
    }

    /// Sets the container's end up and gives it its addresses and routes. To be called on a socket inside the container's
    /// namespace, once the host's end is up.
    pub(crate) async fn address(&self, wiring: &Wiring) -> Result<(), Fault> {
        let name = &wiring.container_interface;
        let link = self
            .link(name)
            .await?
            .ok_or_else(|| Fault::World(format!("give {name} its addresses: there is no such interface")))?;
        self.set_up(name).await?;
        for address in &wiring.addresses {
            let net = IpNet::from(*address);
            self.add_address(link.index, net).await.map_err(fault(format!("give {name} its address {address}")))?;
        }
        if wiring.has(Family::V4) {
            let to_gateway = RouteMessageBuilder::<Ipv4Addr>::new()
                .destination_prefix(wiring.gateway, 32)
                .output_interface(link.index)
                .scope(RouteScope::Link)
                .build();
            self.route(to_gateway, format!("route {} through {name}", wiring.gateway)).await?;
            let default =
                RouteMessageBuilder::<Ipv4Addr>::new().gateway(wiring.gateway).output_interface(link.index).build();
            self.route(default, format!("route everything through {} on {name}", wiring.gateway)).await?;
        }
        if wiring.has(Family::V6) {
            let default =
                RouteMessageBuilder::<Ipv6Addr>::new().gateway(HOST_LINK_LOCAL).output_interface(link.index).build();
            self.route(default, format!("route everything through {HOST_LINK_LOCAL} on {name}")).await?;
        }
        Ok(())
    }

    /// Routes everything through one of some next hops, in each family that has no such route. To be called on a socket inside
    /// the container's namespace.
    pub(crate) async fn restore_default(&self, gateways: &[IpAddr]) -> Result<(), Fault> {
        for gateway in gateways {
            let message = match gateway {
                IpAddr::V4(gateway) => {
                    RouteMessageBuilder::<Ipv4Addr>::new().gateway(*gateway).protocol(DOCKERS).build()
                }
                IpAddr::V6(gateway) => {
                    RouteMessageBuilder::<Ipv6Addr>::new().gateway(*gateway).protocol(DOCKERS).build()
                }
            };
            match self.handle.route().add(message).execute().await {
                Err(error) if is(&error, Errno::EEXIST) => {}
                added => added.map_err(fault(format!("route everything through {gateway} again")))?,
            }
        }
        Ok(())
    }

    /// Gives an interface an address. Of IPv6 nobody else on the link is asked whether he has it already, and the interface
    /// answers for it when this is over: the kernel sees to that in its own time (linux net/ipv6/addrconf.c,
    /// `addrconf_dad_work`), and loses what comes before.
    async fn add_address(&self, index: u32, net: IpNet) -> Result<(), rtnetlink::Error> {
        let mut add = self.handle.address().add(index, net.addr(), net.prefix_len()).replace();
        let IpNet::V6(net) = net else { return add.execute().await };
        add.message_mut().header.flags |= AddressHeaderFlags::Nodad;
        add.execute().await?;
        for _ in 0..ANSWERS_WITHIN.as_micros() / LOOK_EVERY.as_micros() {
            if self.is_local(index, net.addr()).await? {
                break;
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
        Ok(())
    }

    /// Whether packets to an address are taken in on an interface.
    async fn is_local(&self, index: u32, address: Ipv6Addr) -> Result<bool, rtnetlink::Error> {
        let query =
            RouteMessageBuilder::<Ipv6Addr>::new().destination_prefix(address, 128).output_interface(index).build();
        let mut found = self.handle.route().get(query).execute();
        Ok(found.try_next().await?.is_some_and(|route| route.header.kind == RouteType::Local))
    }

    /// Gives the host's end the address that is the container's next hop. The kernel makes the same one by itself, but
    /// only once it has taken notice of the link, and after a moment in which it does not answer for it.
    pub(crate) async fn add_next_hop(&self, host: &IfName) -> Result<(), Fault> {
        let doing = || format!("give {host} its address {HOST_LINK_LOCAL}");
        let link = self.link(host).await?;
        let link = link.ok_or_else(|| Fault::World(format!("{}: there is no such interface", doing())))?;
        let net =
            IpNet::new(HOST_LINK_LOCAL.into(), 64).map_err(|error| Fault::World(format!("{}: {error}", doing())))?;
        self.add_address(link.index, net).await.map_err(fault(doing()))
    }

    /// Whether an interface has its addresses, and everything is routed over it in each family of theirs: that is the last of
    /// what [`address`](Self::address) does.
    pub(crate) async fn is_addressed(&self, index: u32, wiring: &Wiring) -> Result<bool, Fault> {
        let mut there = BTreeSet::new();
        for family in Family::BOTH.into_iter().filter(|family| wiring.has(*family)) {
            if !self.has_default(index, family).await? {
                return Ok(false);
            }
            self.addresses(family, |message| {
                there.extend(local(message).or_else(|| peer(message)).filter(|_| message.header.index == index));
            })
            .await?;
        }
        Ok(wiring.addresses.iter().all(|address| there.contains(address)))
    }

    async fn has_default(&self, index: u32, family: Family) -> Result<bool, Fault> {
        let _dumping = self.dumping.lock().await;
        let query = match family {
            Family::V4 => RouteMessageBuilder::<Ipv4Addr>::new().build(),
            Family::V6 => RouteMessageBuilder::<Ipv6Addr>::new().build(),
        };
        let mut routes = self.handle.route().get(query).execute();
        let mut found = false;
        while let Some(route) = routes.try_next().await.map_err(fault("list the container's routes".to_owned()))? {
            let goes_there =
                route.attributes.iter().any(|one| matches!(one, RouteAttribute::Oif(output) if *output == index));
            found |= goes_there && route.header.destination_prefix_length == 0;
        }
        Ok(found)
    }

    async fn route(&self, message: RouteMessage, doing: String) -> Result<(), Fault> {
        self.handle.route().add(message).replace().execute().await.map_err(fault(doing))
    }

    /// The addresses of a family of all interfaces but our own, of IPv6 without those of one link alone.
    pub(crate) async fn host_addresses(&self, family: Family) -> Result<Vec<Connected>, Fault> {
        let mut names = std::collections::HashMap::new();
        let mut addresses = Vec::new();
        self.addresses(family, |message| {
            // No pool has them, and those of all our own interfaces, which may be thousands, are among them.
            if family == Family::V6 && message.header.scope == AddressScope::Link {
                return;
            }
            let index = message.header.index;
            let interface = names.entry(index).or_insert_with(|| name_of(index).unwrap_or_default());
            if interface.starts_with(INTERFACE_PREFIX) {
                return;
            }
            for address in local(message).into_iter().chain(peer(message)) {
                if let Ok(net) = IpNet::new(address, message.header.prefix_len) {
                    let connected = Connected { interface: interface.clone(), net };
                    if !addresses.contains(&connected) {
                        addresses.push(connected);
                    }
                }
            }
        })
        .await?;
        Ok(addresses)
    }

    /// The addresses of a family that this host itself answers to.
    pub(crate) async fn own_addresses(&self, family: Family) -> Result<BTreeSet<IpAddr>, Fault> {
        let mut own = BTreeSet::new();
        self.addresses(family, |message| own.extend(local(message).or_else(|| peer(message)))).await?;
        Ok(own)
    }

    async fn addresses(&self, family: Family, mut hear: impl FnMut(&AddressMessage)) -> Result<(), Fault> {
        let _dumping = self.dumping.lock().await;
        let mut request = self.handle.address().get();
        request.message_mut().header.family = match family {
            Family::V4 => AddressFamily::Inet,
            Family::V6 => AddressFamily::Inet6,
        };
        let mut found = request.execute();
        while let Some(message) = found.try_next().await.map_err(fault("list addresses".to_owned()))? {
            hear(&message);
        }
        Ok(())
    }

    /// The address that this host would speak to the world from: that of its default route, else the first that is
    /// not of a bridge or tunnel of some other tool.
    pub(crate) async fn detect_ipv4(&self) -> Result<Option<Ipv4Addr>, Fault> {
        let addresses = self.host_addresses(Family::V4).await?;
        let by_route = default_interface();
        let usable = |address: &&Connected| {
            let name = address.interface.as_str();
            let foreign = ["lo", "docker", "cbr", "br-", "virbr", "lxcbr", "veth", "tunl", "flannel"];
            !foreign.iter().any(|prefix| name.starts_with(prefix))
        };
        let best = addresses
            .iter()
            .find(|address| Some(&address.interface) == by_route.as_ref())
            .or_else(|| addresses.iter().find(usable));
        Ok(best.and_then(|address| match address.net.addr() {
            IpAddr::V4(address) => Some(address),
            IpAddr::V6(_) => None,
        }))
    }
}

/// The interface's own address. On a point-to-point link ADDRESS is the peer's and LOCAL our own (linux/if_addr.h).
fn local(message: &AddressMessage) -> Option<IpAddr> {
    message.attributes.iter().find_map(|attribute| match attribute {
        AddressAttribute::Local(address) => Some(*address),
        _ => None,
    })
}

fn peer(message: &AddressMessage) -> Option<IpAddr> {
    message.attributes.iter().find_map(|attribute| match attribute {
        AddressAttribute::Address(address) => Some(*address),
        _ => None,
    })
}

/// The interface of the IPv4 default route. Source of the columns: linux net/ipv4/fib_trie.c, `fib_route_seq_show`.
fn default_interface() -> Option<String> {
    let table = std::fs::read_to_string("/proc/net/route").ok()?;
    table.lines().skip(1).find_map(|line| {
        let columns: Vec<&str> = line.split_whitespace().collect();
        match columns.as_slice() {
            [interface, "00000000", _, _, _, _, _, "00000000", ..] => Some((*interface).to_owned()),
            _ => None,
        }
    })
}

/// Waits until no link of this process's namespace has an index. That it has none is all that can be seen without waiting for
/// who changes links.
async fn is_unlisted(index: u32) {
    while if_indextoname(index) != Err(Errno::ENXIO) {
        tokio::time::sleep(LOOK_AGAIN).await;
    }
}

fn read_link(message: &LinkMessage) -> Link {
    let mut link = Link { index: message.header.index, peer: None, mac: None, operates: false };
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::Link(peer) => link.peer = Some(*peer),
            LinkAttribute::OperState(state) => link.operates = *state == State::Up,
            LinkAttribute::Address(bytes) => link.mac = <[u8; 6]>::try_from(bytes.as_slice()).ok().map(Mac),
            _ => {}
        }
    }
    link
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_hosts_own_addresses_are_seen() {
        let netlink = Netlink::open().unwrap();
        let addresses = netlink.host_addresses(Family::V4).await.unwrap();
        let loopback: IpNet = "127.0.0.1/8".parse().unwrap();
        assert!(addresses.iter().any(|address| address.interface == "lo" && address.net == loopback), "{addresses:?}");
    }

    #[tokio::test]
    async fn many_may_ask_for_the_hosts_addresses_at_once() {
        let netlink = Netlink::open().unwrap();
        let asked = (0..32).map(|_| netlink.host_addresses(Family::V4));
        for answer in futures_util::future::join_all(asked).await {
            assert!(answer.is_ok(), "{answer:?}");
        }
    }

    #[test]
    fn links_that_are_removed_at_once_go_and_no_others() {
        crate::edge::testnet::in_own_network(|| async {
            let netlink = Netlink::open().unwrap();
            let names: Vec<IfName> = (0..20).map(|number| format!("cali{number}").parse().unwrap()).collect();
            for name in &names {
                crate::edge::testnet::sh(&format!("ip link add {name} type veth peer name p{name}")).await;
            }
            let (kept, gone) = names.split_last().unwrap();
            for result in futures_util::future::join_all(gone.iter().map(|name| netlink.remove(name))).await {
                assert_eq!(result, Ok(()));
            }
            for name in gone {
                assert_eq!(netlink.link(name).await, Ok(None));
            }
            assert!(netlink.link(kept).await.unwrap().is_some());
            // The name of one is free as soon as it is said to be gone.
            for _ in 0..5 {
                crate::edge::testnet::sh(&format!("ip link add {} type veth peer name p", gone[0])).await;
                netlink.remove(&gone[0]).await.unwrap();
            }
        });
    }

    #[tokio::test]
    async fn an_interface_that_is_not_there_is_no_error() {
        let netlink = Netlink::open().unwrap();
        let name: IfName = "califfffffffff".parse().unwrap();
        assert_eq!(netlink.link(&name).await, Ok(None));
        assert_eq!(netlink.remove(&name).await, Ok(()));
    }
}
