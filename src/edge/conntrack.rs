//! The hand on connection tracking: looks at all flows, and forgets those that policy would not let begin any more.
//!
//! ctnetlink itself, not the tool `conntrack`: the tool goes through the whole table for each flow that it is to delete, the
//! kernel takes the tuple by which it finds the flow. What is deleted is named by the very bytes that the kernel showed
//! (its first tuple, its zone and its id), so whatever has come in its place meanwhile stays. Of the crates for it,
//! netlink-packet-netfilter knows neither zone nor id.
//!
//! Limits: an established flow that is cut is as good as one that never was. What TCP sends on it is part of no connection
//! that began, which the base chains drop.

use std::net::IpAddr;

use bytes::BytesMut;
use netlink_sys::protocols::NETLINK_NETFILTER;
use netlink_sys::{AsyncSocket, AsyncSocketExt, SocketAddr, TokioSocket};
use nix::errno::Errno;

use crate::model::fault::Fault;
use crate::model::pool::Family;
use crate::plan::flow::Flow;

/// Message types: subsystem `NFNL_SUBSYS_CTNETLINK` (1) with `IPCTNL_MSG_CT_NEW`, `_GET` and `_DELETE`,
/// linux/netfilter/nfnetlink_conntrack.h.
const NEW: u16 = 1 << 8;
const GET: u16 = 1 << 8 | 1;
const DELETE: u16 = 1 << 8 | 2;

/// linux/netlink.h.
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const NLM_F_REQUEST: u16 = 1;
const NLM_F_ACK: u16 = 4;
const NLM_F_DUMP: u16 = 0x300;
const HEADER: usize = 16;

/// The length of `struct nfgenmsg`, linux/netfilter/nfnetlink.h.
const FAMILY_HEADER: usize = 4;

/// Of an attribute's type, what is no flag: `NLA_TYPE_MASK`, linux/netlink.h.
const TYPE_MASK: u16 = 0x3fff;

/// Attributes: `enum ctattr_type`, `ctattr_tuple`, `ctattr_ip` and `ctattr_l4proto`, linux/netfilter/nfnetlink_conntrack.h.
const TUPLE_ORIGINAL: u16 = 1;
const TUPLE_REPLY: u16 = 2;
const ID: u16 = 12;
const ZONE: u16 = 18;
const TUPLE_IP: u16 = 1;
const TUPLE_PROTOCOL: u16 = 2;
const PROTOCOL_NUMBER: u16 = 1;
const PORTS: (u16, u16) = (2, 3);
const ICMP: (u16, u16) = (5, 6);
const ICMPV6: (u16, u16) = (8, 9);

/// More than the kernel puts into one datagram of a dump.
const DATAGRAM_BYTES: usize = 1 << 17;

/// A flow that was picked, by the attributes that name it to the kernel.
struct Named(Vec<u8>);

fn fault(doing: &str, cause: &dyn std::fmt::Display) -> Fault {
    Fault::World(format!("{doing}: {cause}"))
}

/// Cuts all flows of a family that are picked; answers how many those were.
///
/// # Errors
/// The table could not be read, or a flow that is in it could not be deleted; some may have been.
pub(crate) async fn cut(family: Family, mut picks: impl FnMut(&Flow) -> bool) -> Result<usize, Fault> {
    let doing = "look at all flows";
    let mut socket = TokioSocket::new(NETLINK_NETFILTER).map_err(|error| fault(doing, &error))?;
    socket.socket_mut().bind_auto().map_err(|error| fault(doing, &error))?;
    socket.socket_mut().connect(&SocketAddr::new(0, 0)).map_err(|error| fault(doing, &error))?;
    let mut picked = Vec::new();
    ask(&mut socket, &message(GET, NLM_F_DUMP, family, &[]), doing, |kind, body| {
        if kind == NEW
            && let Some((flow, named)) = read(family, body)
            && picks(&flow)
        {
            picked.push(named);
        }
    })
    .await?;
    for Named(attributes) in &picked {
        let request = message(DELETE, NLM_F_ACK, family, attributes);
        match ask(&mut socket, &request, "cut a flow", |_, _| {}).await {
            // It has ended meanwhile.
            Err(Answer::Errno(Errno::ENOENT)) | Ok(()) => {}
            Err(Answer::Fault(fault)) => return Err(fault),
            Err(Answer::Errno(error)) => return Err(fault("cut a flow", &error)),
        }
    }
    Ok(picked.len())
}

/// How the kernel refuses.
enum Answer {
    Errno(Errno),
    Fault(Fault),
}

impl From<Answer> for Fault {
    fn from(answer: Answer) -> Self {
        match answer {
            Answer::Errno(error) => fault("look at all flows", &error),
            Answer::Fault(fault) => fault,
        }
    }
}

/// Sends a request, and hears the answers to their end.
async fn ask(
    socket: &mut TokioSocket,
    request: &[u8],
    doing: &str,
    mut hear: impl FnMut(u16, &[u8]),
) -> Result<(), Answer> {
    let broken = |error: std::io::Error| Answer::Fault(fault(doing, &error));
    socket.send(request).await.map_err(broken)?;
    loop {
        let mut datagram = BytesMut::with_capacity(DATAGRAM_BYTES);
        socket.recv(&mut datagram).await.map_err(broken)?;
        let mut rest = &datagram[..];
        while let Some(length) = number(rest, 0).map(u32::from_ne_bytes).and_then(|length| usize::try_from(length).ok())
        {
            let (Some(body), Some(kind)) = (rest.get(HEADER..length), number(rest, 4).map(u16::from_ne_bytes)) else {
                return Err(Answer::Fault(fault(doing, &"the kernel's answer is cut short")));
            };
            match (kind, number(body, 0).map(i32::from_ne_bytes)) {
                (NLMSG_ERROR, Some(0)) | (NLMSG_DONE, _) => return Ok(()),
                (NLMSG_ERROR, code) => return Err(Answer::Errno(Errno::from_raw(-code.unwrap_or_default()))),
                _ => hear(kind, body),
            }
            rest = rest.get(length.div_ceil(4) * 4..).unwrap_or_default();
        }
    }
}

fn message(kind: u16, flags: u16, family: Family, attributes: &[u8]) -> Vec<u8> {
    let family = match family {
        Family::V4 => nix::libc::AF_INET,
        Family::V6 => nix::libc::AF_INET6,
    };
    let length = HEADER + FAMILY_HEADER + attributes.len();
    let mut message = Vec::with_capacity(length);
    message.extend(u32::try_from(length).unwrap_or(u32::MAX).to_ne_bytes());
    message.extend(kind.to_ne_bytes());
    message.extend((NLM_F_REQUEST | flags).to_ne_bytes());
    // Neither number nor sender: one request is under way at a time.
    message.extend([0; 8]);
    message.extend([u8::try_from(family).unwrap_or_default(), 0, 0, 0]);
    message.extend(attributes);
    message
}

fn number<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..at + N)?.try_into().ok()
}

/// Attributes: type, value, and the whole with its header.
fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8], &[u8])> {
    std::iter::from_fn(move || {
        let length = usize::from(u16::from_ne_bytes(number(bytes, 0)?));
        let kind = u16::from_ne_bytes(number(bytes, 2)?) & TYPE_MASK;
        let (whole, value) = (bytes.get(..length)?, bytes.get(4..length)?);
        bytes = bytes.get(length.div_ceil(4) * 4..).unwrap_or_default();
        Some((kind, value, whole))
    })
}

fn attribute(bytes: &[u8], kind: u16) -> Option<&[u8]> {
    attributes(bytes).find(|(found, ..)| *found == kind).map(|(_, value, _)| value)
}

/// One direction of a flow.
struct Tuple {
    src: IpAddr,
    dst: IpAddr,
    protocol: u8,
    ports: (u16, u16),
    icmp: (u8, u8),
}

fn tuple(family: Family, bytes: &[u8]) -> Option<Tuple> {
    let (ip, protocol) = (attribute(bytes, TUPLE_IP)?, attribute(bytes, TUPLE_PROTOCOL)?);
    let address = |kind| match family {
        Family::V4 => number::<4>(attribute(ip, kind)?, 0).map(IpAddr::from),
        Family::V6 => number::<16>(attribute(ip, kind + 2)?, 0).map(IpAddr::from),
    };
    let port = |kind| attribute(protocol, kind).and_then(|value| number(value, 0)).map(u16::from_be_bytes);
    let byte = |kind| attribute(protocol, kind)?.first().copied();
    let icmp = if family == Family::V4 { ICMP } else { ICMPV6 };
    Some(Tuple {
        src: address(1)?,
        dst: address(2)?,
        protocol: byte(PROTOCOL_NUMBER)?,
        ports: (port(PORTS.0).unwrap_or_default(), port(PORTS.1).unwrap_or_default()),
        icmp: (byte(icmp.0).unwrap_or_default(), byte(icmp.1).unwrap_or_default()),
    })
}

/// A flow of the kernel's table; `None` if it is none that we understand.
fn read(family: Family, body: &[u8]) -> Option<(Flow, Named)> {
    let body = body.get(FAMILY_HEADER..)?;
    let original = tuple(family, attribute(body, TUPLE_ORIGINAL)?)?;
    let reply = tuple(family, attribute(body, TUPLE_REPLY)?)?;
    let mut named = Vec::new();
    for (_, _, whole) in attributes(body).filter(|(kind, ..)| matches!(*kind, TUPLE_ORIGINAL | ZONE | ID)) {
        named.extend_from_slice(whole);
        named.resize(named.len().div_ceil(4) * 4, 0);
    }
    let flow = Flow {
        protocol: original.protocol,
        src: original.src,
        // Who answers is who was reached.
        dst: reply.src,
        ports: (original.ports.0, reply.ports.0),
        icmp: original.icmp,
        outer: (original.dst, reply.dst),
    };
    Some((flow, Named(named)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::edge::testnet::{in_own_network, sh};

    /// A table with flows of every kind, and entries in zones of their own.
    const FLOWS: &str = "
        conntrack -I -p tcp -s 10.0.0.1 -d 10.0.0.2 --sport 1000 --dport 80 --state ESTABLISHED -t 600 &&
        conntrack -I -p tcp -s 10.0.0.1 -d 10.0.0.9 -r 10.0.0.2 -q 172.25.0.1 --sport 1001 --dport 80 --reply-port-src 8080 --reply-port-dst 1001 --state ESTABLISHED -t 600 &&
        conntrack -I -p udp -s 10.0.0.3 -d 10.0.0.2 --sport 53 --dport 5353 -t 600 -w 7 &&
        conntrack -I -p icmp -s 10.0.0.1 -d 10.0.0.2 --icmp-type 8 --icmp-code 0 --icmp-id 5 -t 600 &&
        conntrack -I -p tcp -s fd00::1 -d fd00::2 --sport 1000 --dport 80 --state ESTABLISHED -t 600";

    #[test]
    fn every_flow_is_understood_and_those_that_are_picked_go_and_no_other() {
        in_own_network(|| async {
            sh(FLOWS).await;
            let mut flows = Vec::new();
            let mut look = |flow: &Flow| {
                flows.push(*flow);
                false
            };
            assert_eq!(cut(Family::V4, &mut look).await, Ok(0));
            assert_eq!(cut(Family::V6, &mut look).await, Ok(0));
            flows.sort_by_key(|flow| (flow.src.is_ipv6(), flow.protocol, flow.ports));
            let [src, dst, asked, host]: [IpAddr; 4] =
                ["10.0.0.1", "10.0.0.2", "10.0.0.9", "172.25.0.1"].map(|text| text.parse().unwrap());
            let tcp = Flow { protocol: 6, src, dst, ports: (1000, 80), icmp: (0, 0), outer: (dst, src) };
            assert_eq!(flows.len(), 5, "{flows:?}");
            assert_eq!((flows[0].protocol, flows[0].icmp), (1, (8, 0)));
            assert_eq!(flows[1], tcp);
            // What policy sees of it is the destination after its translation.
            assert_eq!(flows[2], Flow { ports: (1001, 8080), outer: (asked, host), ..tcp });
            assert_eq!((flows[3].protocol, flows[3].ports), (17, (53, 5353)));
            assert_eq!((flows[4].src, flows[4].dst), ("fd00::1".parse().unwrap(), "fd00::2".parse().unwrap()));

            assert_eq!(cut(Family::V4, |flow| flow.protocol == 17 || flow.touches(host)).await, Ok(2));
            let mut left = 0;
            cut(Family::V4, |_| {
                left += 1;
                false
            })
            .await
            .unwrap();
            assert_eq!(left, 2);
            assert_eq!(cut(Family::V6, |_| true).await, Ok(1));
        });
    }

    #[test]
    fn what_is_no_flow_is_passed_over() {
        for bytes in [&b""[..], &[0; 40], &[255; 64], &[4, 0, 1, 0, 4, 0, 2, 0]] {
            assert!(read(Family::V4, bytes).is_none());
        }
    }
}
