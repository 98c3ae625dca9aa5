//! Listening: the sockets at which the proxy is reached.
//!
//! A unix socket is as open as the engine's own, and nobody connects before it is: it gets its owner and mode between
//! `bind` and `listen`. Its file is replaced only if nobody listens at it any more, which two nodes cannot find at the
//! same time because each holds a lock on the folder meanwhile; and it is taken away at the end if it is still ours.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use nix::fcntl::{Flock, FlockArg};
use tokio::net::{TcpListener, TcpSocket, UnixListener, UnixSocket, UnixStream};
use tokio::time::sleep;

use crate::edge::tls::Certificates;
use crate::edge::wire::{SocketIdentity, Wire, set_up_tcp};
use crate::model::fault::Fault;

/// How many connections may wait to be accepted.
const BACKLOG: u32 = 1024;

/// The mode of a unix socket where the engine has none, as dockerd makes its own.
const SOCKET_MODE: u32 = 0o660;

/// Whose it is then, besides root's. Source: dockerd's default for `--group`.
const DOCKER_GROUP: &str = "docker";

/// How often a folder that somebody else has locked is tried again, and how long is waited each time.
const LOCK_TRIES: u32 = 40;
const LOCK_PAUSE: Duration = Duration::from_millis(50);

/// Where to listen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Listen {
    Tcp(SocketAddr),
    /// TCP with TLS over it.
    Tls(SocketAddr),
    Unix(PathBuf),
}

impl FromStr for Listen {
    type Err = Fault;
    /// `tcp://ADDRESS:PORT`, `tls://ADDRESS:PORT` or `unix://PATH`.
    fn from_str(text: &str) -> Result<Self, Fault> {
        let listen = match text.split_once("://") {
            Some(("tcp", address)) => address.parse().ok().map(Listen::Tcp),
            Some(("tls", address)) => address.parse().ok().map(Listen::Tls),
            Some(("unix", path)) if path.starts_with('/') => Some(Listen::Unix(path.into())),
            _ => None,
        };
        listen.ok_or_else(|| {
            Fault::Refusal(format!(
                "{text:?} is no place to listen: it must be tcp://ADDRESS:PORT, tls://ADDRESS:PORT or unix:///PATH, \
                 as in tcp://127.0.0.1:2377"
            ))
        })
    }
}

impl fmt::Display for Listen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Listen::Tcp(address) => write!(f, "tcp://{address}"),
            Listen::Tls(address) => write!(f, "tls://{address}"),
            Listen::Unix(path) => write!(f, "unix://{}", path.display()),
        }
    }
}

/// A socket that is listened at, which does not block and is in the hands of no event loop.
#[derive(Debug)]
pub(crate) enum Listener {
    Tcp(std::net::TcpListener),
    Tls(std::net::TcpListener, Arc<Certificates>),
    Unix(std::os::unix::net::UnixListener),
}

impl Listener {
    /// A TCP socket; with certificates, TLS is spoken there.
    pub(crate) fn tcp(socket: std::net::TcpListener, certificates: Option<&Arc<Certificates>>) -> io::Result<Self> {
        set_up_tcp(&socket)?;
        Ok(match certificates {
            Some(certificates) => Listener::Tls(socket, Arc::clone(certificates)),
            None => Listener::Tcp(socket),
        })
    }

    /// The same socket for the event loop of this thread: whichever thread is idle takes the next connection.
    pub(crate) fn door(&self) -> io::Result<Door> {
        Ok(match self {
            Listener::Tcp(listener) => Door::Tcp(TcpListener::from_std(listener.try_clone()?)?),
            Listener::Tls(listener, certificates) => {
                Door::Tls(TcpListener::from_std(listener.try_clone()?)?, Arc::clone(certificates))
            }
            Listener::Unix(listener) => Door::Unix(UnixListener::from_std(listener.try_clone()?)?),
        })
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Listener::Tcp(socket) | Listener::Tls(socket, _) => socket.as_fd(),
            Listener::Unix(socket) => socket.as_fd(),
        }
    }
}

/// A [`Listener`] as one thread sees it.
#[derive(Debug)]
pub(crate) enum Door {
    Tcp(TcpListener),
    Tls(TcpListener, Arc<Certificates>),
    Unix(UnixListener),
}

impl Door {
    /// The next connection. One over TLS has its handshake still before it, so nobody waits for a slow client's.
    ///
    /// # Cancel safety
    /// No connection is lost when the future is dropped before it is ready.
    pub(crate) async fn accept(&self) -> io::Result<Wire> {
        match self {
            Door::Tcp(listener) => Ok(Wire::Tcp(listener.accept().await?.0)),
            Door::Tls(listener, certificates) => Wire::accepted_tls(listener.accept().await?.0, certificates),
            Door::Unix(listener) => Ok(Wire::Unix(listener.accept().await?.0)),
        }
    }
}

/// The file of a unix socket of ours. Dropping it takes the file away, unless another one lies there by now.
#[derive(Debug)]
pub(crate) struct SocketFile {
    path: PathBuf,
    /// `None`: it is not ours any more.
    seen: Option<SocketIdentity>,
}

impl SocketFile {
    /// The file that lies at a path now.
    pub(crate) fn new(path: &Path) -> io::Result<Self> {
        Ok(SocketFile { path: path.to_owned(), seen: Some(identity(path)?) })
    }

    /// Leaves the file where it is, for another node.
    pub(crate) fn leave(mut self) {
        self.seen = None;
    }
}

/// What lies at a path itself.
fn identity(path: &Path) -> io::Result<SocketIdentity> {
    Ok(std::fs::symlink_metadata(path)?.into())
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if self.seen.is_some_and(|ours| identity(&self.path).is_ok_and(|seen| seen == ours))
            && let Err(error) = std::fs::remove_file(&self.path)
        {
            tracing::warn!(%error, path = %self.path.display(), "our socket's file stays behind");
        }
    }
}

/// Listens at a TCP address.
///
/// # Errors
/// `Conflict`: somebody listens there already; 2377 is Swarm's default, and the message says so. `World`: the address
/// cannot be used.
pub(crate) fn bind_tcp(address: SocketAddr) -> Result<std::net::TcpListener, Fault> {
    let bound = || {
        let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
        // Connections of the process before us may still be in TIME_WAIT.
        socket.set_reuseaddr(true)?;
        socket.bind(address)?;
        socket.listen(BACKLOG)?.into_std()
    };
    bound().map_err(|error: io::Error| {
        if error.kind() != io::ErrorKind::AddrInUse {
            return Fault::World(format!("listen at {address}: {error}"));
        }
        let is_swarms = address.port() == 2377;
        let hint = if is_swarms { " (2377 is also the default of docker swarm: give one of them another)" } else { "" };
        Fault::Conflict(format!("listen at {address}: {error}{hint}"))
    })
}

/// Listens at a path, with the owner and the mode of the engine's socket, or if there is none, with those that dockerd
/// gives its own.
///
/// # Errors
/// `Conflict`: somebody listens there already, or it is no socket. `World`: the path cannot be used.
pub(crate) async fn bind_unix(
    path: &Path,
    engine: Option<&Path>,
) -> Result<(std::os::unix::net::UnixListener, SocketFile), Fault> {
    let text = |cause: &dyn fmt::Display| format!("listen at unix://{}: {cause}", path.display());
    let world = |error: io::Error| Fault::World(text(&error));
    let _locked = lock_folder(path).await.map_err(|cause| Fault::World(text(&cause)))?;
    remove_stale(path).await.map_err(world)?;
    let bound = || {
        // Whatever the process's umask is, nobody can connect before `listen`.
        let socket = UnixSocket::new_stream()?;
        socket.bind(path)?;
        let file = SocketFile::new(path)?;
        let like = engine.and_then(|engine| std::fs::metadata(engine).ok());
        let (owner, group, mode) = match like.filter(|found| found.file_type().is_socket()) {
            Some(found) => (found.uid(), Some(found.gid()), found.permissions().mode() & 0o777),
            None => (0, docker_group(), SOCKET_MODE),
        };
        chown(path, Some(owner), group)?;
        std::fs::set_permissions(path, PermissionsExt::from_mode(mode))?;
        Ok((socket.listen(BACKLOG)?.into_std()?, file))
    };
    bound().map_err(|error: io::Error| match error.kind() {
        io::ErrorKind::AddrInUse => Fault::Conflict(text(&"somebody listens there already, or it is no socket")),
        _ => world(error),
    })
}

/// The number of the group that may use Docker; `None` where there is none.
pub(crate) fn docker_group() -> Option<u32> {
    nix::unistd::Group::from_name(DOCKER_GROUP).ok().flatten().map(|group| group.gid.as_raw())
}

/// Keeps another node from looking at the same path meanwhile. A lock on the folder itself leaves no file behind.
async fn lock_folder(path: &Path) -> Result<Flock<std::fs::File>, String> {
    let folder = path.parent().unwrap_or(Path::new("/"));
    let failed = |cause: &dyn fmt::Display| format!("lock the folder {}: {cause}", folder.display());
    let mut file = std::fs::File::open(folder).map_err(|error| failed(&error))?;
    for _ in 0..LOCK_TRIES {
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(locked) => return Ok(locked),
            Err((again, nix::errno::Errno::EWOULDBLOCK)) => file = again,
            Err((_, error)) => return Err(failed(&error.desc())),
        }
        sleep(LOCK_PAUSE).await;
    }
    Err(failed(&"another process holds a lock on it"))
}

/// Removes a socket at which nobody listens any more. What is no socket stays, and the bind fails over it.
async fn remove_stale(path: &Path) -> io::Result<()> {
    let Ok(found) = std::fs::symlink_metadata(path) else { return Ok(()) };
    if found.file_type().is_socket()
        && let Err(error) = UnixStream::connect(path).await
        && error.kind() == io::ErrorKind::ConnectionRefused
    {
        return std::fs::remove_file(path);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_to_listen_survives_printing_and_reading() {
        for text in ["tcp://127.0.0.1:2377", "tcp://[::1]:2377", "tls://0.0.0.0:2376", "unix:///run/calico/docker.sock"]
        {
            assert_eq!(text.parse::<Listen>().unwrap().to_string(), text);
        }
        for bad in [
            "",
            "127.0.0.1:2377",
            "tcp://localhost:2377",
            "tcp://127.0.0.1",
            "tls://x",
            "unix://x",
            "http://127.0.0.1:1",
        ] {
            assert!(bad.parse::<Listen>().is_err(), "{bad}");
        }
    }

    #[tokio::test]
    async fn a_unix_socket_is_as_open_as_the_engines_and_replaces_only_a_dead_one() {
        let folder = tempfile::tempdir().unwrap();
        let (path, docker) = (folder.path().join("a"), folder.path().join("docker"));
        let seen = || std::fs::metadata(&path).map(|found| (found.permissions().mode() & 0o777, found.gid()));
        let bind = async || bind_unix(&path, Some(&docker)).await;
        let (first, file) = bind().await.unwrap();
        assert_eq!(seen().unwrap(), (SOCKET_MODE, docker_group().unwrap_or(0)));
        let refused = bind().await.unwrap_err().to_string();
        assert!(refused.contains("somebody listens") && refused.contains(path.to_str().unwrap()), "{refused}");
        assert!(seen().is_ok(), "who was refused took the socket of the first away");
        drop(first);
        // Another node takes over what the first one left; when the first one goes, it leaves that alone.
        let _engine = std::os::unix::net::UnixListener::bind(&docker).unwrap();
        std::fs::set_permissions(&docker, PermissionsExt::from_mode(0o600)).unwrap();
        chown(&docker, None, Some(7)).unwrap();
        let (second, second_file) = bind().await.unwrap();
        assert_eq!(seen().unwrap(), (0o600, 7));
        drop(file);
        assert!(UnixStream::connect(&path).await.is_ok());
        drop((second, second_file));
        assert!(seen().is_err(), "the file stayed behind");
        std::fs::write(folder.path().join("file"), "kept").unwrap();
        assert!(bind_unix(&folder.path().join("file"), Some(&docker)).await.is_err());
        assert_eq!(std::fs::read(folder.path().join("file")).unwrap(), b"kept");
    }

    #[tokio::test]
    async fn of_many_nodes_that_find_a_stale_socket_one_gets_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a");
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        let tries = (0..8).map(|_| {
            let path = path.clone();
            tokio::spawn(async move { bind_unix(&path, None).await })
        });
        let mut bound = Vec::new();
        for one in tries.collect::<Vec<_>>() {
            bound.extend(one.await.unwrap());
        }
        assert_eq!(bound.len(), 1);
        assert!(UnixStream::connect(&path).await.is_ok());
    }
}
