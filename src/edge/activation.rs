//! Socket activation: the listening sockets that systemd passes to the node.
//!
//! systemd listens before it starts us and holds the sockets while we restart, so that no client is ever refused. It
//! passes them from descriptor 3 on, and tells of them in the environment. Source: sd_listen_fds(3).

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixListener;
use std::path::PathBuf;

use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::sys::socket::{AddressFamily, SockType, SockaddrLike, SockaddrStorage, getsockname, getsockopt, sockopt};

/// The first descriptor that is passed. Source: `SD_LISTEN_FDS_START`, sd-daemon.h.
const FIRST: RawFd = 3;

/// The variables that tell of passed sockets and of the socket that wants to be told how far we are. They are for this
/// process: no child of ours gets them.
pub(crate) const VARIABLES: [&str; 4] = ["LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES", "NOTIFY_SOCKET"];

/// A listening socket that was passed.
#[derive(Debug)]
pub(crate) struct Passed {
    /// What its unit calls it (`FileDescriptorName=`), or else the name of that unit.
    pub(crate) name: String,
    pub(crate) socket: PassedSocket,
    /// Whether systemd holds it, and takes away the file of a unix socket; else another node made it.
    pub(crate) by_systemd: bool,
}

#[derive(Debug)]
pub(crate) enum PassedSocket {
    Tcp(TcpListener, SocketAddr),
    /// Where it lies in the file system; `None` if nowhere.
    Unix(UnixListener, Option<PathBuf>),
}

/// Takes over the sockets that were passed to this process. `variable` reads the environment.
///
/// To be called once, before anything else opens a descriptor or starts a child.
///
/// # Errors
/// Everything that is wrong, each with the name of its socket.
pub(crate) fn take(variable: impl Fn(&str) -> Option<String>) -> Result<Vec<Passed>, Vec<String>> {
    let names = names_of(&variable, std::process::id()).map_err(|fault| vec![fault])?;
    let (mut passed, mut faults) = (Vec::new(), Vec::new());
    for (fd, name) in (FIRST..).zip(names) {
        match adopt(fd) {
            Ok(socket) => passed.push(Passed { name, socket, by_systemd: true }),
            Err(cause) => faults.push(format!("take over descriptor {fd}, which was passed as {name:?}: {cause}")),
        }
    }
    if faults.is_empty() { Ok(passed) } else { Err(faults) }
}

/// The names of what was passed to the process with this id; none if nothing was.
fn names_of(variable: impl Fn(&str) -> Option<String>, own_pid: u32) -> Result<Vec<String>, String> {
    let (Some(pid), Some(count)) = (variable("LISTEN_PID"), variable("LISTEN_FDS")) else { return Ok(Vec::new()) };
    let bad = |name: &str, value: &str| format!("read {name} of the environment: {value:?} is no number");
    if pid.parse() != Ok(own_pid) {
        // They were for a process before us, or it is no number and for nobody.
        return pid.parse::<u32>().map(|_| Vec::new()).map_err(|_| bad("LISTEN_PID", &pid));
    }
    let count: u16 = count.parse().map_err(|_| bad("LISTEN_FDS", &count))?;
    let names = variable("LISTEN_FDNAMES").unwrap_or_default();
    // One that is empty is that of its socket all the same.
    let mut names = names.split(':').map(|name| if name.is_empty() { "unknown" } else { name });
    Ok((0..count).map(|_| names.next().unwrap_or("unknown").to_owned()).collect())
}

fn adopt(fd: RawFd) -> Result<PassedSocket, String> {
    // SAFETY: the number is only asked about, and what is not open answers EBADF.
    let borrowed = unsafe { BorrowedFd::borrow_raw(fd) };
    fcntl(borrowed, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC)).map_err(|error| error.desc().to_owned())?;
    // SAFETY: systemd passed this descriptor to us and nobody else has taken it, as `take` demands of its caller.
    listening(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// The listening socket that a descriptor is, set not to block.
///
/// # Errors
/// What it is instead.
pub(super) fn listening(fd: OwnedFd) -> Result<PassedSocket, String> {
    let text = |error: nix::errno::Errno| error.desc().to_owned();
    let is_stream = getsockopt(&fd, sockopt::SockType).map_err(text)? == SockType::Stream;
    if !is_stream || !getsockopt(&fd, sockopt::AcceptConn).map_err(text)? {
        return Err("it is no listening stream socket: its unit must have ListenStream= and Accept=no".to_owned());
    }
    let family = getsockname::<SockaddrStorage>(fd.as_raw_fd()).map_err(text)?.family();
    let io = |error: io::Error| error.to_string();
    match family {
        Some(AddressFamily::Unix) => {
            let listener = UnixListener::from(fd);
            listener.set_nonblocking(true).map_err(io)?;
            let path = listener.local_addr().map_err(io)?.as_pathname().map(PathBuf::from);
            Ok(PassedSocket::Unix(listener, path))
        }
        Some(AddressFamily::Inet | AddressFamily::Inet6) => {
            let listener = TcpListener::from(fd);
            listener.set_nonblocking(true).map_err(io)?;
            let address = listener.local_addr().map_err(io)?;
            Ok(PassedSocket::Tcp(listener, address))
        }
        _ => Err("it is neither a TCP nor a unix socket".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(pid: &str, count: &str, names: &str) -> Result<Vec<String>, String> {
        let values = [("LISTEN_PID", pid), ("LISTEN_FDS", count), ("LISTEN_FDNAMES", names)];
        let variable = |name: &str| {
            let found = values.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned());
            found.filter(|value| value != "-")
        };
        names_of(variable, 7)
    }

    #[test]
    fn sockets_are_ours_only_if_they_were_passed_to_this_process() {
        assert_eq!(names("7", "2", "docker:tls").unwrap(), ["docker", "tls"]);
        assert_eq!(names("7", "2", "docker").unwrap(), ["docker", "unknown"]);
        assert_eq!(names("7", "1", "-").unwrap(), ["unknown"]);
        assert_eq!(names("7", "2", ":tls").unwrap(), ["unknown", "tls"], "a name stays with its socket");
        assert_eq!(names("7", "0", "-").unwrap(), [""; 0]);
        for (pid, count) in [("8", "2"), ("-", "2"), ("7", "-")] {
            assert_eq!(names(pid, count, "docker").unwrap(), [""; 0], "{pid} {count}");
        }
        for (pid, count) in [("me", "1"), ("7", "many"), ("7", "-1")] {
            assert!(names(pid, count, "docker").is_err(), "{pid} {count}");
        }
    }
}
