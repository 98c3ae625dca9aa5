//! Questions to the kernel's netfilter over netlink, and its answers: what connection tracking and IP sets have in common.
//!
//! Of the crates for it none knows what these ask, and the tools cost a process for each question.

use bytes::BytesMut;
use netlink_sys::protocols::NETLINK_NETFILTER;
use netlink_sys::{AsyncSocket, AsyncSocketExt, SocketAddr, TokioSocket};
use nix::errno::Errno;

use super::multicast::{HEADER, number};
use crate::model::fault::Fault;

/// linux/netlink.h.
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const NLM_F_REQUEST: u16 = 1;
pub(super) const NLM_F_ACK: u16 = 4;
pub(super) const NLM_F_DUMP: u16 = 0x300;
pub(super) const NLA_F_NET_BYTEORDER: u16 = 1 << 14;

/// The length of `struct nfgenmsg`, linux/netfilter/nfnetlink.h.
const FAMILY_HEADER: usize = 4;

/// Of an attribute's type, what is no flag: `NLA_TYPE_MASK`, linux/netlink.h.
const TYPE_MASK: u16 = 0x3fff;

/// More than the kernel puts into one datagram of a dump.
const DATAGRAM_BYTES: usize = 1 << 17;

/// A socket for questions, one at a time.
pub(super) struct Netfilter {
    socket: TokioSocket,
}

/// Why a question was not answered.
#[derive(Debug)]
pub(super) enum Refused {
    /// The kernel's own word.
    Errno(Errno),
    Broken(String),
}

impl Refused {
    /// As the fault of what was being done.
    pub(super) fn during(self, doing: &str) -> Fault {
        match self {
            Refused::Errno(error) => Fault::World(format!("{doing}: {error}")),
            Refused::Broken(cause) => Fault::World(format!("{doing}: {cause}")),
        }
    }
}

impl From<std::io::Error> for Refused {
    fn from(error: std::io::Error) -> Self {
        Refused::Broken(error.to_string())
    }
}

impl Netfilter {
    /// A socket in the network namespace of the calling thread.
    pub(super) fn open() -> Result<Self, Refused> {
        let mut socket = TokioSocket::new(NETLINK_NETFILTER)?;
        socket.socket_mut().bind_auto()?;
        socket.socket_mut().connect(&SocketAddr::new(0, 0))?;
        Ok(Netfilter { socket })
    }

    /// Asks, and hears the answers to their end: the type of each and its attributes.
    pub(super) async fn ask(&mut self, question: &[u8], mut hear: impl FnMut(u16, &[u8])) -> Result<(), Refused> {
        self.socket.send(question).await?;
        loop {
            let mut datagram = BytesMut::with_capacity(DATAGRAM_BYTES);
            self.socket.recv(&mut datagram).await?;
            let mut rest = &datagram[..];
            while let Some(length) =
                number(rest, 0).map(u32::from_ne_bytes).and_then(|length| usize::try_from(length).ok())
            {
                let (Some(body), Some(kind)) = (rest.get(HEADER..length), number(rest, 4).map(u16::from_ne_bytes))
                else {
                    return Err(Refused::Broken("the kernel's answer is cut short".to_owned()));
                };
                match (kind, number(body, 0).map(i32::from_ne_bytes)) {
                    (NLMSG_ERROR, Some(0)) | (NLMSG_DONE, _) => return Ok(()),
                    (NLMSG_ERROR, code) => return Err(Refused::Errno(Errno::from_raw(-code.unwrap_or_default()))),
                    _ => hear(kind, body.get(FAMILY_HEADER..).unwrap_or_default()),
                }
                rest = rest.get(length.div_ceil(4) * 4..).unwrap_or_default();
            }
            // There is always more to read at once, and to go through a large table takes tens of milliseconds.
            tokio::task::yield_now().await;
        }
    }
}

/// A question of a kind, about a family.
pub(super) fn message(kind: u16, flags: u16, family: u8, attributes: &[u8]) -> Vec<u8> {
    let length = HEADER + FAMILY_HEADER + attributes.len();
    let mut message = Vec::with_capacity(length);
    message.extend(u32::try_from(length).unwrap_or(u32::MAX).to_ne_bytes());
    message.extend(kind.to_ne_bytes());
    message.extend((NLM_F_REQUEST | flags).to_ne_bytes());
    // Neither number nor sender: one request is under way at a time.
    message.extend([0; 8]);
    message.extend([family, 0, 0, 0]);
    message.extend(attributes);
    message
}

/// Adds an attribute.
pub(super) fn put(attributes: &mut Vec<u8>, kind: u16, value: &[u8]) {
    // Of the header.
    let length = u16::try_from(4 + value.len()).unwrap_or(u16::MAX);
    attributes.extend(length.to_ne_bytes());
    attributes.extend(kind.to_ne_bytes());
    attributes.extend(value);
    attributes.resize(attributes.len().next_multiple_of(4), 0);
}

/// Attributes: type, value, and the whole with its header.
pub(super) fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8], &[u8])> {
    std::iter::from_fn(move || {
        let length = usize::from(u16::from_ne_bytes(number(bytes, 0)?));
        let kind = u16::from_ne_bytes(number(bytes, 2)?) & TYPE_MASK;
        let (whole, value) = (bytes.get(..length)?, bytes.get(4..length)?);
        bytes = bytes.get(length.div_ceil(4) * 4..).unwrap_or_default();
        Some((kind, value, whole))
    })
}

pub(super) fn attribute(bytes: &[u8], kind: u16) -> Option<&[u8]> {
    attributes(bytes).find(|(found, ..)| *found == kind).map(|(_, value, _)| value)
}
