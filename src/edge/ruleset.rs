//! The ruleset: the kernel's word that somebody has changed firewall rules.
//!
//! nftables tells every change on a multicast group before the process that made it goes on. So who counts the changes
//! told while a tool of ours ran, and finds more than that tool made, knows that somebody else was at work. The process
//! that the kernel names with a change would be a shorter way, but it is named as the outermost namespace counts, which a
//! node in a container cannot know. Legacy iptables tells nothing; there the clock must do.

use bytes::BytesMut;
use netlink_sys::protocols::NETLINK_NETFILTER;
use netlink_sys::{AsyncSocket, AsyncSocketExt, SocketAddr, TokioSocket};
use nix::errno::Errno;

use crate::model::fault::Fault;

/// The multicast group of nftables: `NFNLGRP_NFTABLES`, linux/netfilter/nfnetlink.h.
const GROUP: u32 = 7;

/// The message that ends a change: subsystem `NFNL_SUBSYS_NFTABLES` (10), type `NFT_MSG_NEWGEN` (15).
const NEW_GENERATION: u16 = 10 << 8 | 15;

/// More than the kernel puts into one datagram (linux include/linux/netlink.h, `NLMSG_GOODSIZE` and its use).
const DATAGRAM_BYTES: usize = 1 << 16;

/// The length of `struct nlmsghdr`.
const HEADER: usize = 16;

/// See the module.
pub(crate) struct RulesetEvents {
    socket: TokioSocket,
}

fn fault(error: &std::io::Error) -> Fault {
    Fault::World(format!("listen to the firewall's changes: {error}"))
}

/// More happened than the socket holds.
fn is_overrun(error: &std::io::Error) -> bool {
    error.raw_os_error() == Some(Errno::ENOBUFS as i32)
}

/// Listens. The listener is there before this returns: nothing that happens after it is missed.
pub(crate) fn listen() -> Result<RulesetEvents, Fault> {
    let mut socket = TokioSocket::new(NETLINK_NETFILTER).map_err(|error| fault(&error))?;
    socket.socket_mut().bind(&SocketAddr::new(0, 0)).map_err(|error| fault(&error))?;
    socket.socket_mut().add_membership(GROUP).map_err(|error| fault(&error))?;
    Ok(RulesetEvents { socket })
}

impl RulesetEvents {
    /// Waits for a change.
    ///
    /// # Cancel safety
    /// No change is lost.
    pub(crate) async fn changed(&mut self) -> Result<(), Fault> {
        loop {
            let mut datagram = BytesMut::with_capacity(DATAGRAM_BYTES);
            match self.socket.recv(&mut datagram).await {
                Ok(()) if changes(&datagram) > 0 => return Ok(()),
                Ok(()) => {}
                Err(error) if is_overrun(&error) => return Ok(()),
                Err(error) => return Err(fault(&error)),
            }
        }
    }

    /// Takes the changes that have been told by now; answers how many.
    pub(crate) fn take(&mut self) -> usize {
        let mut count = 0;
        loop {
            let mut datagram = BytesMut::with_capacity(DATAGRAM_BYTES);
            // Asked without regard to readiness, of which the runtime may not have heard yet.
            match self.socket.socket_ref().recv(&mut datagram, nix::libc::MSG_DONTWAIT) {
                Ok(_) => count += changes(&datagram),
                // Nobody knows how many: more than anybody expects.
                Err(error) if is_overrun(&error) => count = usize::MAX / 2,
                Err(_) => return count,
            }
        }
    }
}

fn number<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..at + N)?.try_into().ok()
}

/// How many changes end in a datagram.
fn changes(datagram: &[u8]) -> usize {
    let (mut rest, mut count) = (datagram, 0);
    while let Some(length) = number(rest, 0).map(u32::from_ne_bytes).and_then(|length| usize::try_from(length).ok()) {
        if !(HEADER..=rest.len()).contains(&length) {
            break;
        }
        if number(rest, 4).map(u16::from_ne_bytes) == Some(NEW_GENERATION) {
            count += 1;
        }
        // Messages begin at multiples of four bytes.
        rest = rest.get(length.div_ceil(4) * 4..).unwrap_or_default();
    }
    count
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::edge::exec::run;
    use crate::edge::testnet::in_own_network;

    #[test]
    fn each_table_that_a_tool_changes_is_told_once_before_the_tool_ends() {
        in_own_network(|| async {
            let mut events = listen().unwrap();
            let filter = "*filter\n:mine - [0:0]\n-A mine -j ACCEPT\nCOMMIT\n";
            run("iptables-restore", &["--noflush"], filter).await.unwrap();
            assert_eq!(events.take(), 1);
            assert_eq!(events.take(), 0);
            run("iptables-restore", &["--noflush"], &format!("{filter}*nat\n:mine - [0:0]\nCOMMIT\n")).await.unwrap();
            assert_eq!(events.take(), 2);
            run("iptables-save", &[], "").await.unwrap();
            assert_eq!(events.take(), 0);
            run("iptables", &["-A", "mine", "-j", "DROP"], "").await.unwrap();
            assert_eq!(events.changed().await, Ok(()));
        });
    }

    #[test]
    fn what_is_no_change_is_passed_over() {
        for bytes in [&b""[..], &[0; 3], &[255; 64], &[16, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]] {
            assert_eq!(changes(bytes), 0);
        }
    }
}
