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

use nix::errno::Errno;

use super::multicast::number;
use super::nfnetlink::{NLM_F_ACK, NLM_F_DUMP, Netfilter, Refused, attribute, attributes, message};
use crate::model::fault::Fault;
use crate::model::pool::Family;
use crate::plan::flow::Flow;

/// Message types: subsystem `NFNL_SUBSYS_CTNETLINK` (1) with `IPCTNL_MSG_CT_NEW`, `_GET` and `_DELETE`,
/// linux/netfilter/nfnetlink_conntrack.h.
const NEW: u16 = 1 << 8;
const GET: u16 = 1 << 8 | 1;
const DELETE: u16 = 1 << 8 | 2;

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

/// What is done when the flows cannot be seen.
const LOOKING: &str = "look at all flows";

/// A flow that was picked, by the attributes that name it to the kernel.
struct Named(Vec<u8>);

/// Cuts all flows of a family that are picked; answers how many those were.
///
/// # Errors
/// The table could not be read, or a flow that is in it could not be deleted; some may have been.
pub(crate) async fn cut(family: Family, mut picks: impl FnMut(&Flow) -> bool) -> Result<usize, Fault> {
    let mut kernel = Netfilter::open().map_err(|error| error.during(LOOKING))?;
    let mut picked = Vec::new();
    let hear = |kind, body: &[u8]| {
        if kind == NEW
            && let Some(flow) = read(family, body)
            && picks(&flow)
        {
            picked.push(name(body));
        }
    };
    kernel.ask(&message(GET, NLM_F_DUMP, number_of(family), &[]), hear).await.map_err(|error| error.during(LOOKING))?;
    let mut failed = None;
    for Named(attributes) in &picked {
        match kernel.ask(&message(DELETE, NLM_F_ACK, number_of(family), attributes), |_, _| {}).await {
            // It has ended meanwhile.
            Err(Refused::Errno(Errno::ENOENT)) | Ok(()) => {}
            // One that the kernel keeps, as it may one that hardware forwards, keeps no other.
            Err(error) => failed = Some(error.during("cut a flow")),
        }
    }
    failed.map_or(Ok(picked.len()), Err)
}

fn number_of(family: Family) -> u8 {
    u8::try_from(match family {
        Family::V4 => nix::libc::AF_INET,
        Family::V6 => nix::libc::AF_INET6,
    })
    .unwrap_or_default()
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

/// What names a flow to the kernel.
fn name(body: &[u8]) -> Named {
    let mut named = Vec::new();
    for (_, _, whole) in attributes(body).filter(|(kind, ..)| matches!(*kind, TUPLE_ORIGINAL | ZONE | ID)) {
        named.extend_from_slice(whole);
        named.resize(named.len().div_ceil(4) * 4, 0);
    }
    Named(named)
}

/// A flow of the kernel's table; `None` if it is none that we understand.
fn read(family: Family, body: &[u8]) -> Option<Flow> {
    let original = tuple(family, attribute(body, TUPLE_ORIGINAL)?)?;
    let reply = tuple(family, attribute(body, TUPLE_REPLY)?)?;
    Some(Flow {
        protocol: original.protocol,
        src: original.src,
        // Who answers is who was reached.
        dst: reply.src,
        ports: (original.ports.0, reply.ports.0),
        icmp: original.icmp,
        outer: (original.dst, reply.dst),
    })
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

            assert_eq!(cut(Family::V4, |flow| flow.protocol == 17 || flow.touches(&[host].into())).await, Ok(2));
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
