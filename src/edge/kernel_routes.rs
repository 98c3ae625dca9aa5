//! The hand on routes, over rtnetlink, and the ear for what happens to links and routes.
//!
//! A route goes when its interface goes down, without a word about the route; so who holds routes must listen to links too.

use std::collections::{BTreeMap, BTreeSet};
use std::mem::discriminant;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use futures_util::future::join_all;
use futures_util::{StreamExt as _, TryStreamExt as _};
use ipnet::IpNet;
use netlink_packet_route::AddressFamily;
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{LinkAttribute, LinkFlags, LinkMessage};
use netlink_packet_route::route::{RouteAddress, RouteAttribute, RouteMessage, RouteProtocol, RouteScope};
use netlink_sys::AsyncSocket as _;
use nix::errno::Errno;
use nix::net::if_::if_nametoindex;
use nix::sys::socket::setsockopt;
use nix::sys::socket::sockopt::RcvBufForce;
use rtnetlink::packet_core::NetlinkPayload;
use rtnetlink::{Handle, MulticastGroup, RouteMessageBuilder};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use super::links::name_of;
use super::sysctl;
use crate::model::fault::Fault;
use crate::model::name::{INTERFACE_PREFIX, IfName};
use crate::model::pool::Family;
use crate::plan::routes::{MAIN_TABLE, ROUTE_PROTOCOL, Route, RouteStep};

/// How many changes of routes the kernel is asked for at once: what it answers has to find room in the socket (208 KiB, of
/// which one answer takes less than one; socket(7), `rmem_default`).
const AT_ONCE: usize = 64;

/// How much may wait to be heard: what one host's start makes of links and routes at once, of each a thousand bytes or two, is
/// no reason to look at everything.
const HEARD_BYTES: usize = 16 << 20;

/// What happened to links and routes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum LinkEvent {
    /// An interface of ours came, changed or went; whatever routes it had may be gone.
    Changed(String),
    /// The route to one address of ours went, or somebody else's came in its place or beside it.
    Rerouted(IpAddr),
    /// More happened than the kernel could tell.
    Lost,
}

/// A netlink socket for routes.
#[derive(Debug)]
pub(crate) struct KernelRoutes {
    handle: Handle,
    serving: JoinHandle<()>,
}

/// What happens to links, as it happens.
#[derive(Debug)]
pub(crate) struct LinkEvents {
    events: mpsc::Receiver<LinkEvent>,
    serving: [JoinHandle<()>; 2],
}

impl Drop for KernelRoutes {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

impl Drop for LinkEvents {
    fn drop(&mut self) {
        self.serving.iter().for_each(JoinHandle::abort);
    }
}

fn fault(doing: &str, error: &rtnetlink::Error) -> Fault {
    let cause = errno(error).map_or_else(|| error.to_string(), |number| number.to_string());
    Fault::World(format!("{doing}: {cause}"))
}

fn errno(error: &rtnetlink::Error) -> Option<Errno> {
    match error {
        rtnetlink::Error::NetlinkError(message) => message.code.map(|code| Errno::from_raw(-code.get())),
        _ => None,
    }
}

/// Listens to links of ours, and to routes to single addresses. The listener is there before this returns: nothing that happens after it is missed.
pub(crate) fn listen() -> Result<LinkEvents, Fault> {
    let (mut connection, _, mut messages) = rtnetlink::new_multicast_connection(&[
        MulticastGroup::Link,
        MulticastGroup::Ipv4Route,
        MulticastGroup::Ipv6Route,
    ])
    .map_err(|error| Fault::World(format!("listen to links: {error}")))?;
    let socket = connection.socket_mut().socket_mut();
    if let Err(error) = setsockopt(socket, RcvBufForce, &HEARD_BYTES) {
        tracing::debug!(%error, "what happens to links is heard through a socket of the usual size");
    }
    let (sender, events) = mpsc::channel(1024);
    // Ours by their index, since one that gets another name is told of by the new one alone.
    let mut names: BTreeMap<u32, String> = BTreeMap::new();
    for name in sysctl::interfaces().unwrap_or_default().into_iter().filter(|name| is_of_ours(name)) {
        names.extend(if_nametoindex(name.as_str()).map(|index| (index, name)));
    }
    let read = async move {
        while let Some((message, _)) = messages.next().await {
            let event = match message.payload {
                NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewLink(link)) => {
                    let Some(name) = link_name(&link) else { continue };
                    let index = link.header.index;
                    let before =
                        if is_of_ours(&name) { names.insert(index, name.clone()) } else { names.remove(&index) };
                    if let Some(before) = before.filter(|before| *before != name)
                        && sender.send(LinkEvent::Changed(before)).await.is_err()
                    {
                        return;
                    }
                    if !is_of_ours(&name) {
                        continue;
                    }
                    LinkEvent::Changed(name)
                }
                NetlinkPayload::InnerMessage(RouteNetlinkMessage::DelLink(link)) => {
                    names.remove(&link.header.index);
                    match link_name(&link) {
                        Some(name) if is_of_ours(&name) => LinkEvent::Changed(name),
                        _ => continue,
                    }
                }
                NetlinkPayload::InnerMessage(RouteNetlinkMessage::DelRoute(route)) if is_ours(&route) => {
                    let Some(address) = single_address(&route) else { continue };
                    LinkEvent::Rerouted(address)
                }
                // BIRD's own, of which there may be a hundred thousand, never stand in the place of ours.
                NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewRoute(route))
                    if !is_ours(&route) && route.header.protocol != RouteProtocol::Bird =>
                {
                    let Some(address) = single_address(&route) else { continue };
                    LinkEvent::Rerouted(address)
                }
                NetlinkPayload::Overrun(_) => LinkEvent::Lost,
                _ => continue,
            };
            if sender.send(event).await.is_err() {
                return;
            }
        }
    };
    Ok(LinkEvents { events, serving: [tokio::spawn(connection), tokio::spawn(read)] })
}

impl LinkEvents {
    /// The next event; `None` once the socket is gone.
    ///
    /// # Cancel safety
    /// No event is lost.
    pub(crate) async fn next(&mut self) -> Option<LinkEvent> {
        self.events.recv().await
    }
}

fn is_ours(route: &RouteMessage) -> bool {
    route.header.protocol == RouteProtocol::Other(ROUTE_PROTOCOL)
}

/// The destination of a route of the main table, if it is no more than one address.
fn single_address(route: &RouteMessage) -> Option<IpAddr> {
    if u32::from(route.header.table) != MAIN_TABLE {
        return None;
    }
    route.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Destination(RouteAddress::Inet(address)) if route.header.destination_prefix_length == 32 => {
            Some(IpAddr::V4(*address))
        }
        RouteAttribute::Destination(RouteAddress::Inet6(address)) if route.header.destination_prefix_length == 128 => {
            Some(IpAddr::V6(*address))
        }
        _ => None,
    })
}

/// Whether an interface is called as ours are.
fn is_of_ours(name: &str) -> bool {
    name.starts_with(INTERFACE_PREFIX)
}

fn link_name(link: &LinkMessage) -> Option<String> {
    link.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::IfName(name) => Some(name.clone()),
        _ => None,
    })
}

impl KernelRoutes {
    /// A socket in the network namespace of the calling thread.
    pub(crate) fn open() -> Result<Self, Fault> {
        let (mut connection, handle, _) = rtnetlink::new_connection()
            .map_err(|error| Fault::World(format!("open a netlink socket for routes: {error}")))?;
        // The kernel then heeds whose routes are asked for (Linux 4.20): BIRD's may be a hundred thousand.
        if let Err(error) = connection.socket_mut().socket_mut().set_netlink_get_strict_chk(true) {
            tracing::debug!(%error, "all routes are looked at, and not only those of ours");
        }
        Ok(KernelRoutes { handle, serving: tokio::spawn(connection) })
    }

    /// Whether the socket is not served any more: nothing will ever be answered.
    pub(crate) fn has_ended(&self) -> bool {
        self.serving.is_finished()
    }

    /// The routes that carry our protocol number, in whatever table.
    pub(crate) async fn observe(&self, family: Family) -> Result<BTreeSet<Route>, Fault> {
        let mut found = self.handle.route().get(query(family)).execute();
        let mut routes = BTreeSet::new();
        while let Some(message) = found.try_next().await.map_err(|error| fault("look at all routes", &error))? {
            if is_ours(&message) {
                routes.extend(read(family, &message));
            }
        }
        Ok(routes)
    }

    /// Carries out steps in their order, those of a kind that follow each other at once; answers for each.
    ///
    /// # Errors
    /// Each is that of one step only. A route that is already gone is gone.
    pub(crate) async fn apply(&self, steps: &[RouteStep]) -> Vec<Result<(), Fault>> {
        let mut results = Vec::with_capacity(steps.len());
        for alike in steps.chunk_by(|one, next| discriminant(one) == discriminant(next)) {
            for some in alike.chunks(AT_ONCE) {
                results.extend(join_all(some.iter().map(|step| self.carry_out(step))).await);
            }
        }
        results
    }

    async fn carry_out(&self, step: &RouteStep) -> Result<(), Fault> {
        match step {
            RouteStep::Put(address, name) => {
                let doing = || format!("route {address} to interface {name}");
                // The kernel says itself when the interface is down.
                let index = if_nametoindex(name.as_str())
                    .map_err(|_| Fault::World(format!("{}: there is no such interface", doing())))?;
                let route = Route::to(*address, name.clone());
                let message =
                    write(&route, Some(index)).map_err(|cause| Fault::World(format!("{}: {cause}", doing())))?;
                match self.handle.route().add(message).replace().execute().await {
                    Err(error) if errno(&error) == Some(Errno::ENETDOWN) => {
                        Err(Fault::World(format!("{}: the interface is down", doing())))
                    }
                    other => other.map_err(|error| fault(&doing(), &error)),
                }
            }
            RouteStep::Remove(route) => {
                let doing = format!("remove the route to {}", route.net);
                let message = write(route, None).map_err(|cause| Fault::World(format!("{doing}: {cause}")))?;
                match self.handle.route().del(message).execute().await {
                    Err(error) if errno(&error) == Some(Errno::ESRCH) => Ok(()),
                    other => other.map_err(|error| fault(&doing, &error)),
                }
            }
        }
    }

    /// Whether there is such an interface, and it is up.
    pub(crate) async fn is_up(&self, name: &IfName) -> bool {
        let mut found = self.handle.link().get().match_name(name.to_string()).execute();
        matches!(found.try_next().await, Ok(Some(link)) if link.header.flags.contains(LinkFlags::Up))
    }
}

/// What asks for the routes of ours, in whatever table. A kernel that checks it takes nothing else in it.
fn query(family: Family) -> RouteMessage {
    let mut message = RouteMessage::default();
    message.header.address_family = match family {
        Family::V4 => AddressFamily::Inet,
        Family::V6 => AddressFamily::Inet6,
    };
    message.header.protocol = RouteProtocol::Other(ROUTE_PROTOCOL);
    message
}

/// A route of ours from the kernel's message.
fn read(family: Family, message: &RouteMessage) -> Option<Route> {
    let mut address: IpAddr = match family {
        Family::V4 => Ipv4Addr::UNSPECIFIED.into(),
        Family::V6 => Ipv6Addr::UNSPECIFIED.into(),
    };
    let (mut interface, mut table, mut metric) = (None, u32::from(message.header.table), 0);
    let mut direct = true;
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Destination(RouteAddress::Inet(found)) => address = (*found).into(),
            RouteAttribute::Destination(RouteAddress::Inet6(found)) => address = (*found).into(),
            RouteAttribute::Oif(index) => interface = name_of(*index).and_then(|name| name.parse().ok()),
            RouteAttribute::Table(found) => table = *found,
            RouteAttribute::Priority(found) => metric = *found,
            RouteAttribute::Gateway(_) | RouteAttribute::Via(_) | RouteAttribute::MultiPath(_) => direct = false,
            _ => {}
        }
    }
    let net = IpNet::new(address, message.header.destination_prefix_length).ok()?;
    // IPv6 routes that name no metric get one (linux include/net/ip6_fib.h, IP6_RT_PRIO_USER).
    let metric = if family == Family::V6 && metric == 1024 { 0 } else { metric };
    Some(Route { net, interface: interface.filter(|_| direct), table, metric })
}

/// The kernel's message for a route: to add it, with the interface's index; to remove it, with none.
fn write(route: &Route, interface: Option<u32>) -> Result<RouteMessage, String> {
    let mut builder = RouteMessageBuilder::<IpAddr>::new()
        .destination_prefix(route.net.addr(), route.net.prefix_len())
        .map_err(|error| error.to_string())?
        .protocol(RouteProtocol::Other(ROUTE_PROTOCOL))
        .table_id(route.table);
    if route.metric != 0 {
        builder = builder.priority(route.metric);
    }
    builder = match interface {
        Some(index) => builder.output_interface(index).scope(RouteScope::Link),
        // Any scope: what is removed need not be what we would have made.
        None => builder.scope(RouteScope::NoWhere),
    };
    let mut message = builder.build();
    if route.table == MAIN_TABLE {
        // The table stands in the header alone.
        message.attributes.retain(|attribute| !matches!(attribute, RouteAttribute::Table(_)));
    }
    debug_assert!(matches!(message.header.address_family, AddressFamily::Inet | AddressFamily::Inet6));
    Ok(message)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::edge::testnet::{in_own_network, sh};

    fn put(address: &str, interface: &str) -> RouteStep {
        RouteStep::Put(address.parse().unwrap(), interface.parse().unwrap())
    }

    #[test]
    fn many_routes_are_made_at_once_and_each_answers_for_itself() {
        in_own_network(|| async {
            sh("ip link add cali1 type veth peer name far1; ip link set cali1 up; ip link add cali2 type veth peer name far2").await;
            sh("ip route add 10.0.0.7/32 dev cali1 proto 97 metric 7; ip -6 route add fd00::7/128 dev cali1 proto 97")
                .await;
            let kernel = KernelRoutes::open().unwrap();
            for (family, net) in [(Family::V4, "10.0."), (Family::V6, "fd00::")] {
                let apart = if family == Family::V4 { "." } else { ":" };
                let address = |number: usize| format!("{net}{}{apart}{}", number / 200, number % 200);
                let mut steps: Vec<RouteStep> = (0..1000).map(|number| put(&address(number), "cali1")).collect();
                steps[500] = put(&address(500), "cali2");
                steps[700] = put(&address(700), "cali3");
                let gone = Route::to(address(2000).parse().unwrap(), "cali1".parse().unwrap());
                steps.push(RouteStep::Remove(gone));
                let there = kernel.observe(family).await.unwrap();
                steps.extend(there.into_iter().map(RouteStep::Remove));
                steps.push(put(&address(7), "cali1"));
                let results = kernel.apply(&steps).await;
                assert_eq!(results.len(), steps.len());
                let faults: Vec<String> =
                    results.into_iter().filter_map(|result| Some(result.err()?.to_string())).collect();
                assert_eq!(faults.len(), 2, "{faults:?}");
                let (down, absent) = (&faults[0], &faults[1]);
                assert!(down.contains(&address(500)) && down.contains("cali2: the interface is down"), "{down}");
                assert!(absent.contains(&address(700)) && absent.contains("there is no such interface"), "{absent}");
                let seen = kernel.observe(family).await.unwrap();
                let all = (0..1000).filter(|number| ![500, 700].contains(number));
                let right = all.map(|number| Route::to(address(number).parse().unwrap(), "cali1".parse().unwrap()));
                assert_eq!(seen, right.collect());
            }
        });
    }
}
