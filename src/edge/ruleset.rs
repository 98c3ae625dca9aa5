//! The ruleset: the kernel's word that somebody has changed firewall rules.
//!
//! nftables tells every change on a multicast group, with the process that made it. Legacy iptables tells nothing; there
//! the clock must do. The messages of a change are not read for what changed: who was not us may have changed anything.

use bytes::BytesMut;
use netlink_sys::protocols::NETLINK_NETFILTER;
use netlink_sys::{AsyncSocket, AsyncSocketExt, SocketAddr, TokioSocket};
use nix::errno::Errno;

use crate::model::fault::Fault;

/// The multicast group of nftables: `NFNLGRP_NFTABLES`, linux/netfilter/nfnetlink.h.
const GROUP: u32 = 7;

/// The message that ends a change: subsystem `NFNL_SUBSYS_NFTABLES` (10), type `NFT_MSG_NEWGEN` (15).
const NEW_GENERATION: u16 = 10 << 8 | 15;

/// Its attribute with the process: `NFTA_GEN_PROC_PID`, linux/netfilter/nf_tables.h.
const PROCESS: u16 = 2;

/// More than the kernel puts into one datagram (linux include/linux/netlink.h, `NLMSG_GOODSIZE` and its use).
const DATAGRAM_BYTES: usize = 1 << 16;

/// The lengths of `struct nlmsghdr`, of it with `struct nfgenmsg` behind it, and of `struct nlattr`.
const HEADER: usize = 16;
const HEADERS: usize = 20;
const ATTRIBUTE: usize = 4;

/// See the module.
pub(crate) struct RulesetEvents {
    socket: TokioSocket,
}

fn fault(error: &std::io::Error) -> Fault {
    Fault::World(format!("listen to the firewall's changes: {error}"))
}

/// Listens. The listener is there before this returns: nothing that happens after it is missed.
pub(crate) fn listen() -> Result<RulesetEvents, Fault> {
    let mut socket = TokioSocket::new(NETLINK_NETFILTER).map_err(|error| fault(&error))?;
    socket.socket_mut().bind(&SocketAddr::new(0, 0)).map_err(|error| fault(&error))?;
    socket.socket_mut().add_membership(GROUP).map_err(|error| fault(&error))?;
    Ok(RulesetEvents { socket })
}

impl RulesetEvents {
    /// Who changed the ruleset; `None` where the kernel could not tell.
    ///
    /// # Cancel safety
    /// No change is lost.
    pub(crate) async fn next(&mut self) -> Result<Option<u32>, Fault> {
        loop {
            let mut datagram = BytesMut::with_capacity(DATAGRAM_BYTES);
            match self.socket.recv(&mut datagram).await {
                Ok(()) => {
                    if let Some(process) = changed_by(&datagram) {
                        return Ok(Some(process));
                    }
                }
                // More happened than the socket holds.
                Err(error) if error.raw_os_error() == Some(Errno::ENOBUFS as i32) => return Ok(None),
                Err(error) => return Err(fault(&error)),
            }
        }
    }
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<usize> {
    let number = u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?);
    usize::try_from(number).ok()
}

/// Attributes and messages begin at multiples of four bytes.
fn aligned(length: usize) -> usize {
    length.div_ceil(4) * 4
}

/// The process of the change that a datagram ends, if it ends one.
fn changed_by(datagram: &[u8]) -> Option<u32> {
    let mut rest = datagram;
    while let Some(length) = u32_at(rest, 0).filter(|length| (HEADER..=rest.len()).contains(length)) {
        let message = rest.get(..length)?;
        if u16_at(message, 4) == Some(NEW_GENERATION) {
            return process(message.get(HEADERS..)?);
        }
        rest = rest.get(aligned(length)..).unwrap_or_default();
    }
    None
}

fn process(mut attributes: &[u8]) -> Option<u32> {
    while let Some(length) = u16_at(attributes, 0).map(usize::from).filter(|length| *length >= ATTRIBUTE) {
        if u16_at(attributes, 2) == Some(PROCESS) {
            // Numbers in nftables' attributes are in network order.
            return Some(u32::from_be_bytes(attributes.get(ATTRIBUTE..ATTRIBUTE + 4)?.try_into().ok()?));
        }
        attributes = attributes.get(aligned(length)..)?;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::edge::exec::run;
    use crate::edge::testnet::in_own_network;

    #[test]
    fn a_change_of_the_firewall_is_told_with_who_made_it() {
        in_own_network(|| async {
            let mut events = listen().unwrap();
            let changed = run("iptables-restore", &["--noflush"], "*filter\n:mine - [0:0]\nCOMMIT\n").await.unwrap();
            assert_eq!(events.next().await, Ok(changed.pid));
        });
    }

    #[test]
    fn what_is_no_change_is_passed_over() {
        for bytes in [&b""[..], &[0; 3], &[255; 64], &[16, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]] {
            assert_eq!(changed_by(bytes), None);
        }
    }
}
