//! Multicast: what the kernel tells on netlink groups, message by message, as bytes.
//!
//! For groups whose messages the netlink crates do not know, or where it counts how many there were. A message is
//! `struct nlmsghdr` (linux/netlink.h) and a body.

use bytes::BytesMut;
use netlink_sys::{AsyncSocket, AsyncSocketExt, SocketAddr, TokioSocket};
use nix::errno::Errno;
use nix::sys::socket::setsockopt;
use nix::sys::socket::sockopt::RcvBufForce;

/// More than the kernel puts into one datagram (linux include/linux/netlink.h, `NLMSG_GOODSIZE` and its use).
const DATAGRAM_BYTES: usize = 1 << 16;

/// How much the kernel keeps for who does not read: some thousand messages. What the system allows by itself is a few hundred,
/// which sixteen containers that start at once go beyond.
const KEPT_BYTES: usize = 4 << 20;

/// The length of `struct nlmsghdr`.
pub(super) const HEADER: usize = 16;

/// A socket in some groups.
pub(super) struct Multicast {
    socket: TokioSocket,
}

/// What came.
pub(super) enum Told {
    Datagram(BytesMut),
    /// More than the socket holds; some of it is lost.
    Overrun,
}

fn told(received: std::io::Result<()>, datagram: BytesMut) -> std::io::Result<Told> {
    match received {
        Ok(()) => Ok(Told::Datagram(datagram)),
        Err(error) if error.raw_os_error() == Some(Errno::ENOBUFS as i32) => Ok(Told::Overrun),
        Err(error) => Err(error),
    }
}

impl Multicast {
    /// Listens. The listener is there before this returns: nothing that happens after it is missed.
    pub(super) fn join(protocol: isize, groups: &[u32]) -> std::io::Result<Self> {
        let mut socket = TokioSocket::new(protocol)?;
        socket.socket_mut().bind(&SocketAddr::new(0, 0))?;
        setsockopt(socket.socket_ref(), RcvBufForce, &KEPT_BYTES)?;
        groups.iter().try_for_each(|group| socket.socket_mut().add_membership(*group))?;
        Ok(Multicast { socket })
    }

    /// Waits for what comes next.
    ///
    /// # Cancel safety
    /// Nothing is lost.
    pub(super) async fn next(&mut self) -> std::io::Result<Told> {
        let mut datagram = BytesMut::with_capacity(DATAGRAM_BYTES);
        let received = self.socket.recv(&mut datagram).await;
        told(received, datagram)
    }

    /// What has come by now; an error if that is nothing. Asked without regard to readiness, of which the runtime may not
    /// have heard yet.
    pub(super) fn take(&self) -> std::io::Result<Told> {
        let mut datagram = BytesMut::with_capacity(DATAGRAM_BYTES);
        let received = self.socket.socket_ref().recv(&mut datagram, nix::libc::MSG_DONTWAIT);
        told(received.map(drop), datagram)
    }
}

/// The bytes of a number at a place.
pub(super) fn number<const N: usize>(all: &[u8], at: usize) -> Option<[u8; N]> {
    all.get(at..at.checked_add(N)?)?.try_into().ok()
}

/// The messages of a datagram: type and body. What is cut short, and what comes after it, is left out.
pub(super) fn messages(datagram: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    let mut rest = datagram;
    std::iter::from_fn(move || {
        let length = usize::try_from(u32::from_ne_bytes(number(rest, 0)?)).ok()?;
        let (kind, body) = (u16::from_ne_bytes(number(rest, 4)?), rest.get(HEADER..length)?);
        // Messages begin at multiples of four bytes.
        rest = rest.get(length.checked_next_multiple_of(4)?..).unwrap_or_default();
        Some((kind, body))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_told_apart_and_what_is_cut_short_is_left_out() {
        let message = |kind: u16, body: &[u8]| {
            let mut message = u32::try_from(HEADER + body.len()).unwrap().to_ne_bytes().to_vec();
            message.extend(kind.to_ne_bytes());
            message.resize(HEADER, 0);
            message.extend(body);
            message.resize(message.len().next_multiple_of(4), 0);
            message
        };
        let two = [message(1, b"abcde"), message(2, b"")].concat();
        assert_eq!(messages(&two).collect::<Vec<_>>(), [(1, &b"abcde"[..]), (2, &b""[..])]);
        assert_eq!(messages(&two[..two.len() - 1]).count(), 1);
        for bytes in [&b""[..], &[0; 3], &[255; 64], &[15; 16]] {
            assert_eq!(messages(bytes).count(), 0, "{bytes:?}");
        }
    }
}
