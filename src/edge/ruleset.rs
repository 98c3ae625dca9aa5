//! The ruleset: the kernel's word that somebody has changed firewall rules.
//!
//! nftables tells every change on a multicast group, with the process that made it. Legacy iptables tells nothing; there
//! the clock must do. The messages of a change are not read for what changed: who was not us may have changed anything.

use std::os::fd::{AsRawFd, OwnedFd};

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, socket,
};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::model::fault::Fault;

/// The multicast group of nftables: `NFNLGRP_NFTABLES`, linux/netfilter/nfnetlink.h.
const GROUP: u32 = 7;

/// The message that ends a change: subsystem `NFNL_SUBSYS_NFTABLES` (10), type `NFT_MSG_NEWGEN` (15).
const NEW_GENERATION: u16 = 10 << 8 | 15;

/// Its attribute with the process: `NFTA_GEN_PROC_PID`, linux/netfilter/nf_tables.h.
const PROCESS: u16 = 2;

/// The lengths of `struct nlmsghdr`, of it with `struct nfgenmsg` behind it, and of `struct nlattr`.
const HEADER: usize = 16;
const HEADERS: usize = 20;
const ATTRIBUTE: usize = 4;

/// See the module.
#[derive(Debug)]
pub(crate) struct RulesetEvents {
    socket: AsyncFd<OwnedFd>,
}

/// Listens. The listener is there before this returns: nothing that happens after it is missed.
pub(crate) fn listen() -> Result<RulesetEvents, Fault> {
    let fault = |cause: String| Fault::World(format!("listen to the firewall's changes: {cause}"));
    let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
    let socket = socket(AddressFamily::Netlink, SockType::Raw, flags, SockProtocol::NetlinkNetFilter)
        .map_err(|error| fault(error.to_string()))?;
    bind(socket.as_raw_fd(), &NetlinkAddr::new(0, 1 << (GROUP - 1))).map_err(|error| fault(error.to_string()))?;
    let socket = AsyncFd::with_interest(socket, Interest::READABLE).map_err(|error| fault(error.to_string()))?;
    Ok(RulesetEvents { socket })
}

impl RulesetEvents {
    /// Who changed the ruleset; `None` where the kernel could not tell.
    ///
    /// # Cancel safety
    /// No change is lost.
    pub(crate) async fn next(&mut self) -> Result<Option<u32>, Fault> {
        let mut buffer = vec![0; 1 << 16];
        loop {
            let mut ready = self
                .socket
                .readable()
                .await
                .map_err(|error| Fault::World(format!("listen to the firewall's changes: {error}")))?;
            match recv(self.socket.get_ref().as_raw_fd(), &mut buffer, MsgFlags::empty()) {
                Ok(length) => {
                    if let Some(process) = changed_by(buffer.get(..length).unwrap_or_default()) {
                        return Ok(Some(process));
                    }
                }
                Err(Errno::EAGAIN) => ready.clear_ready(),
                Err(Errno::EINTR) => {}
                // More happened than the socket holds.
                Err(Errno::ENOBUFS) => return Ok(None),
                Err(error) => return Err(Fault::World(format!("listen to the firewall's changes: {error}"))),
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
