//! The kernel's own word on when a chain came and went, or was written anew: `nf_tables` tells every commit on netlink, with the names of
//! chains in it.

use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::socket::MsgFlags;
use nix::sys::socket::{
    AddressFamily, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, setsockopt, socket, sockopt,
};

use crate::Outcome;

// linux/netfilter/nfnetlink.h and nf_tables.h.
const NFNLGRP_NFTABLES: u32 = 7;
const NFNL_SUBSYS_NFTABLES: u8 = 10;
const NFT_MSG_NEWCHAIN: u8 = 3;
const NFT_MSG_DELCHAIN: u8 = 5;
const NFT_MSG_NEWRULE: u8 = 6;
/// The length of a message's header (linux/netlink.h).
const HEADER_BYTES: usize = 16;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Event {
    /// A chain, or an entry of one.
    Came,
    Went,
}

/// Chains of one network namespace whose name holds one text.
pub(crate) struct Watch {
    events: Receiver<(Event, Instant)>,
}

impl Watch {
    /// Watches the network namespace of the calling thread.
    pub(crate) fn new(name: &str) -> Outcome<Watch> {
        let socket =
            socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::NetlinkNetFilter)?;
        setsockopt(&socket, sockopt::RcvBufForce, &(64 << 20))?;
        bind(socket.as_raw_fd(), &NetlinkAddr::new(0, 1 << (NFNLGRP_NFTABLES - 1)))?;
        let (sender, events) = channel();
        let name = name.as_bytes().to_owned();
        std::thread::spawn(move || listen(&socket, &name, &sender));
        Ok(Watch { events })
    }

    /// Forgets what was told so far.
    pub(crate) fn forget(&self) {
        while self.events.try_recv().is_ok() {}
    }

    /// When the next event of a kind was told.
    pub(crate) fn next(&self, wanted: Event, limit: Duration) -> Outcome<Instant> {
        let deadline = Instant::now() + limit;
        loop {
            match self.events.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok((event, when)) if event == wanted => return Ok(when),
                Ok(_) => {}
                Err(RecvTimeoutError::Timeout) => return Err(format!("no chain {wanted:?} within {limit:?}").into()),
                Err(RecvTimeoutError::Disconnected) => return Err("the kernel's events cannot be read any more".into()),
            }
        }
    }
}

fn listen(socket: &OwnedFd, name: &[u8], sender: &Sender<(Event, Instant)>) {
    let mut buffer = vec![0; 1 << 20];
    loop {
        let length = match recv(socket.as_raw_fd(), &mut buffer, MsgFlags::empty()) {
            Ok(length) => length,
            // Events were lost: the wait for one of them ends in its time limit.
            Err(Errno::ENOBUFS | Errno::EINTR) => continue,
            Err(_) => return,
        };
        let when = Instant::now();
        for event in events(&buffer[..length], name) {
            if sender.send((event, when)).is_err() {
                return;
            }
        }
    }
}

/// The events in one datagram, which holds one message after the other.
fn events(mut datagram: &[u8], name: &[u8]) -> Vec<Event> {
    let mut found = Vec::new();
    while datagram.len() >= HEADER_BYTES {
        let length = u32::from_ne_bytes([datagram[0], datagram[1], datagram[2], datagram[3]]) as usize;
        let kind = u16::from_ne_bytes([datagram[4], datagram[5]]).to_be_bytes();
        if length < HEADER_BYTES || length > datagram.len() {
            break;
        }
        let holds = datagram[HEADER_BYTES..length].windows(name.len()).any(|window| window == name);
        match kind {
            [NFNL_SUBSYS_NFTABLES, NFT_MSG_NEWCHAIN | NFT_MSG_NEWRULE] if holds => found.push(Event::Came),
            [NFNL_SUBSYS_NFTABLES, NFT_MSG_DELCHAIN] if holds => found.push(Event::Went),
            _ => {}
        }
        datagram = &datagram[length.next_multiple_of(4).min(datagram.len())..];
    }
    found
}
