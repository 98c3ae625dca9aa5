//! Listening: the sockets at which the proxy is reached.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use tokio::net::{TcpListener, TcpSocket, UnixListener, UnixSocket, UnixStream};

use crate::edge::relay::{Wire, set_up_tcp};
use crate::model::fault::Fault;

/// How many connections may wait to be accepted.
const BACKLOG: u32 = 1024;

/// Whose group and mode a unix socket of ours takes over: who may use Docker may use us, and nobody else.
const DOCKER_SOCKET: &str = "/var/run/docker.sock";

/// The mode where there is no socket of Docker's.
const SOCKET_MODE: u32 = 0o660;

/// Where to listen: `tcp://ADDRESS:PORT` or `unix://PATH`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Listen {
    Tcp(SocketAddr),
    Unix(PathBuf),
}

impl FromStr for Listen {
    type Err = Fault;
    fn from_str(text: &str) -> Result<Self, Fault> {
        let listen = match text.split_once("://") {
            Some(("tcp", address)) => address.parse().ok().map(Listen::Tcp),
            Some(("unix", path)) if path.starts_with('/') => Some(Listen::Unix(path.into())),
            _ => None,
        };
        listen.ok_or_else(|| {
            Fault::Refusal(format!(
                "{text:?} is no place to listen: it must be tcp://ADDRESS:PORT or unix:///PATH, as in tcp://127.0.0.1:2377"
            ))
        })
    }
}

impl fmt::Display for Listen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Listen::Tcp(address) => write!(f, "tcp://{address}"),
            Listen::Unix(path) => write!(f, "unix://{}", path.display()),
        }
    }
}

/// A socket that is listened at, in the hands of no event loop.
#[derive(Debug)]
pub(crate) enum Listener {
    Tcp(std::net::TcpListener),
    Unix(std::os::unix::net::UnixListener),
}

impl Listener {
    /// The same socket for the event loop of this thread: whichever thread is idle takes the next connection.
    pub(crate) fn door(&self) -> io::Result<Door> {
        Ok(match self {
            Listener::Tcp(listener) => Door::Tcp(TcpListener::from_std(listener.try_clone()?)?),
            Listener::Unix(listener) => Door::Unix(UnixListener::from_std(listener.try_clone()?)?),
        })
    }
}

/// A [`Listener`] as one thread sees it.
#[derive(Debug)]
pub(crate) enum Door {
    Tcp(TcpListener),
    Unix(UnixListener),
}

impl Door {
    /// The next connection.
    ///
    /// # Cancel safety
    /// No connection is lost when the future is dropped before it is ready.
    pub(crate) async fn accept(&self) -> io::Result<Wire> {
        match self {
            Door::Tcp(listener) => Ok(Wire::Tcp(listener.accept().await?.0)),
            Door::Unix(listener) => Ok(Wire::Unix(listener.accept().await?.0)),
        }
    }
}

/// Begins to listen.
///
/// # Errors
/// `World`: the place is taken or cannot be used. The port 2377 is Swarm's default, and the message says so.
pub(crate) async fn bind(listen: &Listen) -> Result<Listener, Fault> {
    let bound = match listen {
        Listen::Tcp(address) => bind_tcp(*address).map(Listener::Tcp),
        Listen::Unix(path) => bind_unix(path, Path::new(DOCKER_SOCKET)).await.map(Listener::Unix),
    };
    bound.map_err(|error| {
        let taken = error.kind() == io::ErrorKind::AddrInUse;
        let is_swarms = matches!(listen, Listen::Tcp(address) if address.port() == 2377);
        let hint = if taken && is_swarms {
            " (2377 is also the default of docker swarm: give one of them another)"
        } else {
            ""
        };
        Fault::World(format!("listen at {listen}: {error}{hint}"))
    })
}

fn bind_tcp(address: SocketAddr) -> io::Result<std::net::TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    // Connections of the process before us may still be in TIME_WAIT.
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    set_up_tcp(&socket)?;
    socket.listen(BACKLOG)?.into_std()
}

/// Between `bind` and `listen` nobody can connect, so the socket has its owner and mode before anybody is let in,
/// whatever the process's umask is.
async fn bind_unix(path: &Path, like: &Path) -> io::Result<std::os::unix::net::UnixListener> {
    remove_stale(path).await?;
    let socket = UnixSocket::new_stream()?;
    socket.bind(path)?;
    let mode = match std::fs::metadata(like) {
        Ok(docker) => {
            chown(path, Some(docker.uid()), Some(docker.gid()))?;
            docker.permissions().mode() & 0o777
        }
        Err(_) => SOCKET_MODE,
    };
    std::fs::set_permissions(path, PermissionsExt::from_mode(mode))?;
    socket.listen(BACKLOG)?.into_std()
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
        for text in ["tcp://127.0.0.1:2377", "tcp://[::1]:2377", "unix:///run/calico/docker.sock"] {
            assert_eq!(text.parse::<Listen>().unwrap().to_string(), text);
        }
        for bad in ["", "127.0.0.1:2377", "tcp://localhost:2377", "tcp://127.0.0.1", "unix://x", "http://127.0.0.1:1"] {
            assert!(bad.parse::<Listen>().is_err(), "{bad}");
        }
    }

    #[tokio::test]
    async fn a_unix_socket_is_as_open_as_dockers_and_replaces_only_a_dead_one() {
        let folder = tempfile::tempdir().unwrap();
        let (path, docker) = (folder.path().join("a"), folder.path().join("docker"));
        let mode = || std::fs::metadata(&path).unwrap().permissions().mode() & 0o777;
        let first = bind_unix(&path, &docker).await.unwrap();
        assert_eq!(mode(), SOCKET_MODE);
        let second = bind_unix(&path, &docker).await;
        assert_eq!(second.unwrap_err().kind(), io::ErrorKind::AddrInUse);
        drop(first);
        std::fs::write(&docker, "").unwrap();
        std::fs::set_permissions(&docker, PermissionsExt::from_mode(0o600)).unwrap();
        let _third = bind_unix(&path, &docker).await.unwrap();
        assert_eq!(mode(), 0o600);
        std::fs::write(folder.path().join("file"), "kept").unwrap();
        assert!(bind_unix(&folder.path().join("file"), &docker).await.is_err());
        assert_eq!(std::fs::read(folder.path().join("file")).unwrap(), b"kept");
    }
}
