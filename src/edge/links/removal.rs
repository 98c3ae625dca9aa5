//! The removal of links, which keeps whoever asks for it waiting within the very call: the kernel closes an interface and frees
//! its name in a few milliseconds, and takes another dozen to be sure that nobody uses it any more (linux net/core/dev.c,
//! `netdev_run_todo`). So it is asked on threads where waiting keeps nobody else from going on, on a socket for that alone.

use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{LinkAttribute, LinkMessage};
use netlink_sys::protocols::NETLINK_ROUTE;
use netlink_sys::{Socket, SocketAddr};
use nix::errno::Errno;
use rtnetlink::LinkUnspec;
use rtnetlink::packet_core::{NLM_F_ACK, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload};

use crate::model::fault::Fault;
use crate::plan::wiring::LEAVING_GROUP;

/// More than the kernel puts into the answer to a question that is a link's number.
const ANSWER_BYTES: usize = 8 << 10;

/// A socket on which links are removed. Its functions wait for the kernel.
#[derive(Debug)]
pub(super) struct Remover {
    socket: Socket,
}

impl Remover {
    /// In the namespace of the calling thread.
    pub(super) fn open() -> std::io::Result<Self> {
        let mut socket = Socket::new(NETLINK_ROUTE)?;
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        Ok(Remover { socket })
    }

    /// Removes a link by its index; one that is not there is no error.
    pub(super) fn remove(&self, index: u32) -> Result<(), Fault> {
        match self.ask(RouteNetlinkMessage::DelLink(LinkUnspec::new_with_index(index).build())) {
            // It went with others, or with its container's namespace.
            Ok(()) | Err(Errno::ENODEV) => Ok(()),
            Err(error) => Err(Fault::World(format!("remove the link of index {index}: {error}"))),
        }
    }

    /// Removes several links at once, which takes as long as one. Whether all of them went is not told.
    pub(super) fn remove_together(&self, indexes: impl IntoIterator<Item = u32>) {
        for index in indexes {
            let marked = LinkUnspec::new_with_index(index).link_group(LEAVING_GROUP).build();
            // One that is gone already is what we want.
            let _ = self.ask(RouteNetlinkMessage::SetLink(marked));
        }
        let mut all = LinkMessage::default();
        all.attributes.push(LinkAttribute::Group(LEAVING_GROUP));
        let _ = self.ask(RouteNetlinkMessage::DelLink(all));
    }

    /// Asks the kernel for something that it answers with an acknowledgement alone.
    fn ask(&self, question: RouteNetlinkMessage) -> Result<(), Errno> {
        let broken = |error: std::io::Error| error.raw_os_error().map_or(Errno::EIO, Errno::from_raw);
        let mut message = NetlinkMessage::from(question);
        message.header.flags = NLM_F_REQUEST | NLM_F_ACK;
        message.finalize();
        let mut bytes = vec![0; message.buffer_len()];
        message.serialize(&mut bytes);
        self.socket.send(&bytes, 0).map_err(broken)?;
        let mut answer = Vec::with_capacity(ANSWER_BYTES);
        self.socket.recv(&mut answer, 0).map_err(broken)?;
        match NetlinkMessage::<RouteNetlinkMessage>::deserialize(&answer).map(|answer| answer.payload) {
            Ok(NetlinkPayload::Error(answer)) => answer.code.map_or(Ok(()), |code| Err(Errno::from_raw(-code.get()))),
            _ => Err(Errno::EBADMSG),
        }
    }
}
