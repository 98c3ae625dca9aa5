//! Hand-over: the listening sockets of a node go to the one that takes its place, so that no client is refused meanwhile.
//!
//! A node waits at a socket in its run folder that only root may use. Who connects there gets all its listening sockets in
//! one message (SCM_RIGHTS, unix(7)). When the new node has found everything else in order it sends one byte: then the old
//! one gives up all but its open streams, and says that it has by closing the connection. A new node that finds
//! something wrong before that leaves again, and nothing has happened.

use std::io::{self, IoSlice, IoSliceMut, Read as _, Write as _};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, recvmsg, sendmsg};
use serde::{Deserialize, Serialize};
use tokio::io::AsyncReadExt as _;
use tokio::net::UnixListener;

use super::activation::{Passed, listening};

/// How long either side waits for the other's word.
const PATIENCE: Duration = Duration::from_secs(30);

/// How many sockets can be in one message (`SCM_MAX_FD`, net/scm.h).
const MOST_SOCKETS: usize = 253;

/// How long the text beside them may be.
const LONGEST_TEXT: usize = 64 * 1024;

/// What is told of a socket.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Told {
    /// As systemd would name it: see [`Passed`].
    pub(crate) name: String,
    pub(crate) by_systemd: bool,
}

/// The other node, from its word until this value is dropped.
#[derive(Debug)]
pub(crate) struct Successor {
    _connection: tokio::net::UnixStream,
}

/// Waits until another node wants to take the place of this one, and gives it the listening sockets.
///
/// # Errors
/// The connection broke, or the other node left: nothing has happened.
pub(crate) async fn give(door: &UnixListener, sockets: &[(Told, BorrowedFd<'_>)]) -> io::Result<Successor> {
    let (mut connection, _) = door.accept().await?;
    let told: Vec<&Told> = sockets.iter().map(|(told, _)| told).collect();
    let text = serde_json::to_vec(&told)?;
    let descriptors: Vec<RawFd> = sockets.iter().map(|(_, socket)| socket.as_raw_fd()).collect();
    let rights = [ControlMessage::ScmRights(&descriptors)];
    connection.writable().await?;
    sendmsg::<()>(connection.as_raw_fd(), &[IoSlice::new(&text)], &rights, MsgFlags::empty(), None)?;
    let mut word = [0];
    tokio::time::timeout(PATIENCE, connection.read_exact(&mut word)).await??;
    Ok(Successor { _connection: connection })
}

/// The node whose place is taken, until it has given up all that two nodes cannot have.
#[derive(Debug)]
pub(crate) struct Predecessor(UnixStream);

/// Asks the node that waits at a path for its listening sockets.
///
/// # Errors
/// Nobody waits there, or what came is no such message.
pub(crate) fn ask(path: &Path) -> io::Result<(Predecessor, Vec<Passed>)> {
    let connection = UnixStream::connect(path)?;
    connection.set_read_timeout(Some(PATIENCE))?;
    let mut text = vec![0; LONGEST_TEXT];
    let mut rights = nix::cmsg_space!([RawFd; MOST_SOCKETS]);
    let (count, descriptors) = {
        let mut parts = [IoSliceMut::new(&mut text)];
        let flags = MsgFlags::MSG_CMSG_CLOEXEC;
        let message = recvmsg::<()>(connection.as_raw_fd(), &mut parts, Some(&mut rights), flags)?;
        let mut descriptors = Vec::new();
        for part in message.cmsgs()? {
            if let ControlMessageOwned::ScmRights(numbers) = part {
                // SAFETY: the kernel has just opened them for this message, and nobody else knows them.
                descriptors.extend(numbers.into_iter().map(|number| unsafe { OwnedFd::from_raw_fd(number) }));
            }
        }
        (message.bytes, descriptors)
    };
    let told: Vec<Told> = serde_json::from_slice(&text[..count])?;
    if told.len() != descriptors.len() {
        let cause = format!("{} sockets were told of and {} came", told.len(), descriptors.len());
        return Err(io::Error::new(io::ErrorKind::InvalidData, cause));
    }
    let adopt = |(told, descriptor): (Told, OwnedFd)| {
        let socket = listening(descriptor).map_err(|cause| io::Error::new(io::ErrorKind::InvalidData, cause))?;
        Ok(Passed { name: told.name, socket, by_systemd: told.by_systemd })
    };
    let passed: io::Result<Vec<Passed>> = told.into_iter().zip(descriptors).map(adopt).collect();
    Ok((Predecessor(connection), passed?))
}

impl Predecessor {
    /// Has it give up everything but its open streams, and waits until it has: it ends whatever happens here, so to give up
    /// would leave the host without a node. Blocks meanwhile.
    ///
    /// # Errors
    /// The connection broke, or it says something else.
    pub(crate) fn replace(mut self) -> io::Result<()> {
        self.0.write_all(b"!")?;
        loop {
            // It says nothing, but closes.
            match self.0.read(&mut [0]) {
                Ok(0) => return Ok(()),
                Ok(_) => {
                    return Err(io::Error::new(io::ErrorKind::InvalidData, "it says something where it should close"));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    tracing::warn!("the node whose place is taken still finishes what is under way");
                }
                Err(error) => return Err(error),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;
    use std::os::fd::AsFd as _;

    use super::super::activation::PassedSocket;
    use super::*;

    #[tokio::test]
    async fn sockets_go_to_the_next_node_and_stay_if_it_leaves() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("handover.sock");
        let door = UnixListener::bind(&path).unwrap();
        let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = tcp.local_addr().unwrap();
        let told = Told { name: "tls".to_owned(), by_systemd: false };

        // One that leaves without a word.
        let leaving = path.clone();
        let asking = tokio::task::spawn_blocking(move || drop(ask(&leaving).unwrap()));
        give(&door, &[(told.clone(), tcp.as_fd())]).await.unwrap_err();
        asking.await.unwrap();

        let asking = tokio::task::spawn_blocking(move || {
            let (before, passed) = ask(&path).unwrap();
            before.replace().unwrap();
            passed
        });
        let after = give(&door, &[(told, tcp.as_fd())]).await.unwrap();
        drop(tcp);
        assert!(!asking.is_finished(), "it does not wait for the old node");
        drop(after);
        let passed = asking.await.unwrap();
        let [Passed { name, socket: PassedSocket::Tcp(socket, heard), .. }] = passed.as_slice() else {
            panic!("{passed:?}")
        };
        assert_eq!((name.as_str(), *heard), ("tls", address));
        std::net::TcpStream::connect(address).unwrap();
        socket.set_nonblocking(false).unwrap();
        socket.accept().unwrap();
    }
}
