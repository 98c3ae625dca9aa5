//! Whether a set of the kernel has a member: the question that `ipset test` asks, without its process.

use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, send, socket,
};

use crate::Outcome;
use crate::lab::pause;

// linux/netfilter/nfnetlink.h and linux/netfilter/ipset/ip_set.h.
const NFNL_SUBSYS_IPSET: u8 = 6;
const IPSET_CMD_TEST: u8 = 11;
const PROTOCOL: u8 = 6;
/// linux/socket.h.
const AF_INET: u8 = 2;
const ATTR_PROTOCOL: u16 = 1;
const ATTR_SETNAME: u16 = 2;
const ATTR_DATA: u16 = 7;
const ATTR_IP: u16 = 1;
const ATTR_IPADDR_IPV4: u16 = 1;
const NESTED: u16 = 1 << 15;
const NET_BYTEORDER: u16 = 1 << 14;
/// `NLM_F_REQUEST | NLM_F_ACK` (linux/netlink.h).
const FLAGS: u16 = 1 | 4;
/// `IPSET_ERR_EXIST`, with the sign of an error: not a member.
const IS_NO_MEMBER: i32 = -4103;

/// How often it is asked while it is waited for.
const ASK_EVERY: Duration = Duration::from_micros(200);

/// Asks in the network namespace of the thread that made it.
pub(crate) struct Probe {
    socket: OwnedFd,
    set: String,
    address: Ipv4Addr,
}

/// Everything here is a few bytes long.
fn short(length: usize) -> u16 {
    u16::try_from(length).unwrap_or(u16::MAX)
}

fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    bytes.extend(short(value.len() + 4).to_ne_bytes());
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(value);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

impl Probe {
    pub(crate) fn new(set: &str, address: &str) -> Outcome<Probe> {
        let socket =
            socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::NetlinkNetFilter)?;
        bind(socket.as_raw_fd(), &NetlinkAddr::new(0, 0))?;
        Ok(Probe { socket, set: set.to_owned(), address: address.parse()? })
    }

    pub(crate) fn is_member(&self) -> Outcome<bool> {
        let ip = attribute(ATTR_IPADDR_IPV4 | NET_BYTEORDER, &self.address.octets());
        let mut body = vec![AF_INET, 0, 0, 0];
        body.extend(attribute(ATTR_PROTOCOL, &[PROTOCOL]));
        body.extend(attribute(ATTR_SETNAME, format!("{}\0", self.set).as_bytes()));
        body.extend(attribute(ATTR_DATA | NESTED, &attribute(ATTR_IP | NESTED, &ip)));
        let mut message = Vec::new();
        message.extend(u32::from(short(body.len() + 16)).to_ne_bytes());
        message.extend((u16::from(NFNL_SUBSYS_IPSET) << 8 | u16::from(IPSET_CMD_TEST)).to_ne_bytes());
        message.extend(FLAGS.to_ne_bytes());
        message.extend([0; 8]);
        message.extend(body);
        send(self.socket.as_raw_fd(), &message, MsgFlags::empty())?;
        let mut reply = [0; 512];
        let length = recv(self.socket.as_raw_fd(), &mut reply, MsgFlags::empty())?;
        let code = reply[..length].get(16..20).ok_or("a reply of ipset without a code")?;
        match i32::from_ne_bytes([code[0], code[1], code[2], code[3]]) {
            0 => Ok(true),
            IS_NO_MEMBER => Ok(false),
            other => Err(format!("ask for {} in set {}: error {other}", self.address, self.set).into()),
        }
    }

    /// Waits until it is a member, or none; answers when that was seen.
    pub(crate) fn until(&self, member: bool, limit: Duration) -> Outcome<Instant> {
        let begun = Instant::now();
        while begun.elapsed() < limit {
            if self.is_member().unwrap_or(false) == member {
                return Ok(Instant::now());
            }
            pause(ASK_EVERY);
        }
        Err(format!("{} in set {}: not {member} within {limit:?}", self.address, self.set).into())
    }
}
