//! Doors: where the proxy and the node's measures are reached, as the flags and systemd say it.
//!
//! All that is wrong is told at once, before anything is opened. Whoever gets through a door is root on this host, as at
//! dockerd's own socket; so a TCP address that others reach is a door only if clients show a certificate, or if the
//! operator insists.

use std::collections::BTreeSet;
use std::fmt::Display;
use std::io;
use std::net::{SocketAddr, TcpListener, ToSocketAddrs as _};
use std::os::fd::{AsFd as _, BorrowedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::config::Flags;
use crate::edge::activation::{Passed, PassedSocket};
use crate::edge::handover::Told;
use crate::edge::tls::{CertificateFiles, Certificates};
use crate::edge::wire::Engine;
use crate::model::fault::Fault;
use crate::part::proxy::listen::{Listen, Listener, SocketFile, bind_tcp, bind_unix};

/// What the unit of a passed socket names it (`FileDescriptorName=`) if TLS is to be spoken there.
const TLS_NAME: &str = "tls";

/// What the socket of the measures is called where another node takes it over.
const METRICS_NAME: &str = "metrics";

/// Doors that are still to be opened.
#[derive(Debug)]
pub(super) struct Wanted {
    /// Where, and whether it may be missing.
    places: Vec<(Listen, bool)>,
    /// Open already: what systemd passed, and what another node has where a door is wanted.
    passed: Vec<(Listen, Passed)>,
    /// The files of sockets that another node has where none is wanted.
    unwanted: Vec<PathBuf>,
    metrics: Metrics,
    certificates: Option<Arc<Certificates>>,
    names: Vec<String>,
    /// The engine's own socket, whose owner and mode ours get.
    engine: Option<PathBuf>,
}

/// Where the measures are read.
#[derive(Debug)]
enum Metrics {
    At(String),
    /// Another node has it.
    Passed(TcpListener),
}

/// Doors that are open.
#[derive(Debug)]
pub(super) struct Doors {
    pub(super) listeners: Arc<[Listener]>,
    /// Where the measures are read.
    pub(super) metrics: TcpListener,
    /// For people.
    pub(super) places: Vec<String>,
    /// By which names clients may call us.
    pub(super) names: Arc<[String]>,
    pub(super) certificates: Option<Arc<Certificates>>,
    /// What another node needs to know of the listeners, in their order.
    told: Vec<Told>,
    /// To be dropped at the end.
    pub(super) files: Vec<SocketFile>,
    /// The files of sockets that another node has, as long as it has them: those that stay open, and those that are not wanted.
    inherited: Vec<PathBuf>,
    unwanted: Vec<PathBuf>,
}

/// Reads which doors are wanted. What systemd passed is one whatever the flags say; of what another node passed, what they
/// name is.
///
/// # Errors
/// `Refusal` with everything that cannot be.
pub(super) fn wanted(
    flags: &Flags,
    engine: &Engine,
    passed: Result<Vec<Passed>, Vec<String>>,
) -> Result<Wanted, Fault> {
    let mut faults = Vec::new();
    let passed = passed.unwrap_or_else(|wrong| {
        faults.extend(wrong);
        Vec::new()
    });
    let (passed, mut held): (Vec<Passed>, Vec<Passed>) = passed.into_iter().partition(|one| one.by_systemd);
    let mut passed: Vec<(Listen, Passed)> = passed.into_iter().map(|one| (place_of(&one), one)).collect();
    let metrics = metrics(&flags.metrics_listen, &mut held).map_err(|fault| faults.push(fault)).ok();
    let mut places = Vec::new();
    for (text, spare) in flags.listeners(!passed.is_empty()) {
        match text.parse::<Listen>() {
            Ok(listen) if passed.iter().any(|(taken, _)| *taken == listen) => {}
            Ok(listen) => match held.iter().position(|one| is_at(&one.socket, &listen)) {
                Some(at) => passed.push((listen, held.swap_remove(at))),
                None => places.push((listen, spare)),
            },
            Err(fault) => faults.push(fault.to_string()),
        }
    }
    let engine = match engine {
        Engine::Unix(path) => Some(path.clone()),
        Engine::Tcp(_) => None,
    };
    let certificates = certificates(flags, &mut faults);
    let all = || {
        let new = places.iter().map(|(listen, _)| (listen, false));
        new.chain(passed.iter().map(|(listen, one)| (listen, one.by_systemd)))
    };
    if flags.tlscert.is_some() && !all().any(|(listen, _)| matches!(listen, Listen::Tls(_))) {
        faults.push(
            "use --tlscert: no listener speaks TLS; where dockerd's would be tcp://, write tls://, as in \
             --listen tls://0.0.0.0:2376"
                .to_owned(),
        );
    }
    let insists = flags.insecure_root_for_anyone_who_connects;
    for (listen, is_passed) in all() {
        faults.extend(wrong_with(listen, is_passed, flags, engine.as_deref()));
        if insists && is_open_to_all(listen, flags) {
            tracing::warn!(%listen, "whoever reaches this address is root on this host, as was insisted");
        }
    }
    let names = flags.names();
    for name in names.iter().filter(|name| !is_host_name(name)) {
        faults.push(format!(
            "use --allow-host {name:?}: it must be a host name without a port, as in docker1.example.org"
        ));
    }
    let Some(metrics) = metrics.filter(|_| faults.is_empty()) else {
        return Err(Fault::Refusal(faults.join("; ")));
    };
    let file = |one: Passed| match one.socket {
        PassedSocket::Unix(_, path) => path,
        PassedSocket::Tcp(..) => None,
    };
    let unwanted = held.into_iter().filter_map(file).collect();
    Ok(Wanted { places, passed, unwanted, metrics, certificates, names, engine })
}

/// Where the measures are to be read: at a socket that another node holds, if it is the same place.
fn metrics(place: &str, held: &mut Vec<Passed>) -> Result<Metrics, String> {
    let wrong = |cause: &dyn Display| {
        format!("use --metrics-listen {place:?}: it must be ADDR:PORT, as in 127.0.0.1:9091 ({cause})")
    };
    let addresses: Vec<SocketAddr> = place.to_socket_addrs().map_err(|error| wrong(&error))?.collect();
    let is_there = |one: &Passed| matches!(&one.socket, PassedSocket::Tcp(_, at) if addresses.contains(at));
    let passed = held.iter().position(is_there).map(|at| held.swap_remove(at).socket);
    Ok(match passed {
        Some(PassedSocket::Tcp(socket, _)) => Metrics::Passed(socket),
        _ => Metrics::At(place.to_owned()),
    })
}

/// Whether a socket listens at a place, in whichever protocol.
fn is_at(socket: &PassedSocket, place: &Listen) -> bool {
    match (socket, place) {
        (PassedSocket::Tcp(_, address), Listen::Tcp(wanted) | Listen::Tls(wanted)) => address == wanted,
        (PassedSocket::Unix(_, path), Listen::Unix(wanted)) => path.as_ref() == Some(wanted),
        _ => false,
    }
}

/// Where a passed socket listens.
fn place_of(passed: &Passed) -> Listen {
    match &passed.socket {
        PassedSocket::Tcp(_, address) if passed.name == TLS_NAME => Listen::Tls(*address),
        PassedSocket::Tcp(_, address) => Listen::Tcp(*address),
        PassedSocket::Unix(_, path) => Listen::Unix(path.clone().unwrap_or_default()),
    }
}

/// The certificates that the flags name.
fn certificates(flags: &Flags, faults: &mut Vec<String>) -> Option<Arc<Certificates>> {
    let files = match (&flags.tlscert, &flags.tlskey) {
        (Some(certificate), Some(key)) => {
            CertificateFiles { certificate: certificate.clone(), key: key.clone(), clients: flags.tlscacert.clone() }
        }
        (None, None) => {
            if let Some(clients) = &flags.tlscacert {
                faults.push(format!("use --tlscacert {}: it needs --tlscert and --tlskey too", clients.display()));
            }
            return None;
        }
        _ => {
            faults.push("--tlscert and --tlskey go together: give both or neither".to_owned());
            return None;
        }
    };
    Certificates::load(files).map(Arc::new).map_err(|wrong| faults.extend(wrong)).ok()
}

/// Whether anybody gets in who reaches an address that is not this machine's alone.
fn is_open_to_all(listen: &Listen, flags: &Flags) -> bool {
    let is_public = |address: &SocketAddr| !address.ip().to_canonical().is_loopback();
    match listen {
        Listen::Tcp(address) => is_public(address),
        Listen::Tls(address) => is_public(address) && flags.tlscacert.is_none(),
        Listen::Unix(_) => false,
    }
}

/// Why there can be no such door.
fn wrong_with(listen: &Listen, is_passed: bool, flags: &Flags, engine: Option<&Path>) -> Vec<String> {
    let mut wrong = Vec::new();
    let origin = if is_passed { ", which was passed" } else { "" };
    let mut fault = |cause: &str| wrong.push(format!("listen at {listen}{origin}: {cause}"));
    if matches!(listen, Listen::Tls(_)) && flags.tlscert.is_none() && flags.tlskey.is_none() {
        fault("TLS needs a certificate: give --tlscert and --tlskey");
    }
    if is_open_to_all(listen, flags) && !flags.insecure_root_for_anyone_who_connects {
        let how = match (listen, is_passed) {
            (Listen::Tls(_), _) => "give --tlscacert, so that only clients with a certificate come in",
            (_, false) => "make it tls:// with --tlscert, --tlskey and --tlscacert",
            (_, true) => "put FileDescriptorName=tls into its unit and give --tlscert, --tlskey and --tlscacert",
        };
        fault(&format!(
            "whoever reaches this address would be root on this host; listen at a loopback address such as 127.0.0.1, \
             or {how}, or insist with --insecure-root-for-anyone-who-connects"
        ));
    }
    if let Listen::Unix(path) = listen
        && engine.is_some_and(|engine| file_of(engine) == file_of(path))
    {
        fault("this is the engine's own socket, as --docker-host has it: they must be two");
    }
    wrong
}

/// A path without links in its folder: /var/run is /run on most machines.
fn file_of(path: &Path) -> PathBuf {
    let folder = path.parent().and_then(|folder| folder.canonicalize().ok());
    match (folder, path.file_name()) {
        (Some(folder), Some(name)) => folder.join(name),
        _ => path.to_owned(),
    }
}

fn is_host_name(name: &str) -> bool {
    !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_'))
}

impl Wanted {
    /// The TCP ports among them.
    pub(super) fn ports(&self) -> BTreeSet<u16> {
        let all = self.places.iter().map(|(listen, _)| listen).chain(self.passed.iter().map(|(listen, _)| listen));
        let ports = all.filter_map(|listen| match listen {
            Listen::Tcp(address) | Listen::Tls(address) => Some(address.port()),
            Listen::Unix(_) => None,
        });
        ports.collect()
    }

    /// Opens them. Clients wait there until they are served.
    ///
    /// # Errors
    /// `World` with all that cannot be opened.
    pub(super) async fn open(self) -> Result<Doors, Fault> {
        let Wanted { places, passed, unwanted, metrics, certificates, names, engine } = self;
        let (mut listeners, mut told, mut files) = (Vec::new(), Vec::new(), Vec::new());
        let (mut open, mut inherited, mut faults) = (Vec::new(), Vec::new(), Vec::new());
        let tell = |listen: &Listen, by_systemd| {
            let name = if matches!(listen, Listen::Tls(_)) { TLS_NAME } else { "docker" };
            Told { name: name.to_owned(), by_systemd }
        };
        let over_tcp = |listen: &Listen, socket: TcpListener| {
            let certificates = certificates.as_ref().filter(|_| matches!(listen, Listen::Tls(_)));
            Listener::tcp(socket, certificates)
        };
        let fault = |listen: &Listen, from: &str, error| Fault::World(format!("listen at {listen}{from}: {error}"));
        for (listen, spare) in places {
            let opened = match &listen {
                Listen::Tcp(address) | Listen::Tls(address) => bind_tcp(*address)
                    .and_then(|socket| over_tcp(&listen, socket).map_err(|error| fault(&listen, "", error))),
                Listen::Unix(path) => bind_unix(path, engine.as_deref()).await.map(|(socket, file)| {
                    files.push(file);
                    Listener::Unix(socket)
                }),
            };
            match opened {
                Ok(listener) => {
                    listeners.push(listener);
                    told.push(tell(&listen, false));
                    open.push(listen.to_string());
                }
                // One without the address may do without; one where somebody else has it is to be told.
                Err(fault @ Fault::World(_)) if spare => tracing::debug!(%fault, "a door less"),
                Err(fault) => faults.push(fault.to_string()),
            }
        }
        for (listen, Passed { socket, by_systemd, .. }) in passed {
            let taken = match socket {
                PassedSocket::Tcp(socket, _) => over_tcp(&listen, socket),
                PassedSocket::Unix(socket, path) => {
                    inherited.extend(path.filter(|_| !by_systemd));
                    Ok(Listener::Unix(socket))
                }
            };
            match taken {
                Ok(listener) => {
                    listeners.push(listener);
                    told.push(tell(&listen, by_systemd));
                    open.push(listen.to_string());
                }
                Err(error) => faults.push(fault(&listen, ", which was passed", error).to_string()),
            }
        }
        let metrics = metrics.open().map_err(|fault| faults.push(fault)).ok();
        let Some(metrics) = metrics.filter(|_| faults.is_empty()) else {
            return Err(Fault::World(faults.join("; ")));
        };
        let (listeners, names) = (listeners.into(), names.into());
        Ok(Doors { listeners, metrics, places: open, names, certificates, told, files, inherited, unwanted })
    }
}

impl Metrics {
    fn open(self) -> Result<TcpListener, String> {
        let open = |place: &str| -> io::Result<TcpListener> {
            let socket = TcpListener::bind(place)?;
            socket.set_nonblocking(true)?;
            Ok(socket)
        };
        match self {
            Metrics::At(place) => open(&place).map_err(|error| format!("listen on {place}: {error}")),
            Metrics::Passed(socket) => Ok(socket),
        }
    }
}

impl Doors {
    /// All sockets, with what another node needs to know of them.
    pub(super) fn to_pass(&self) -> Vec<(Told, BorrowedFd<'_>)> {
        let metrics = Told { name: METRICS_NAME.to_owned(), by_systemd: false };
        let listeners = self.told.iter().cloned().zip(self.listeners.iter().map(Listener::as_fd));
        listeners.chain([(metrics, self.metrics.as_fd())]).collect()
    }

    /// The other node has given its place up: the files of its sockets are ours, to keep or to take away.
    pub(super) fn take_files(&mut self) {
        self.files.extend(self.inherited.drain(..).filter_map(|path| SocketFile::new(&path).ok()));
        self.unwanted.drain(..).for_each(|path| drop(SocketFile::new(&path)));
    }
}

#[cfg(test)]
mod tests;
