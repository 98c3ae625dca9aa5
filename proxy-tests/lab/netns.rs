//! Network namespaces and what is sent from inside them: pings and probes whose answers say whether a packet came through.
//!
//! A thread enters the namespace, opens its sockets there and ends; no process is started for a probe, so a check of a
//! whole table of rules takes as long as its packets do.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddrV4, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU16, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use nix::sched::{CloneFlags, setns};
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrIn, bind, connect, recv, sendto, setsockopt,
    socket, sockopt,
};
use nix::sys::time::TimeVal;

#[derive(Debug, Clone)]
pub(crate) struct Netns(PathBuf);

/// What is sent, and what must come back for it to count as answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Probe {
    /// An echo request.
    Ping,
    /// A request of a type that the kernel answers: 8 (echo) or 13 (timestamp), with any code.
    Icmp { kind: u8, code: u8 },
    /// A connection over which a byte comes back.
    Tcp { from: Option<u16>, to: u16 },
    /// A datagram that comes back.
    Udp { from: Option<u16>, to: u16 },
}

/// How long an answer may take before it counts as absent. Everything here happens on one machine.
const PATIENCE: Duration = Duration::from_millis(400);

impl Netns {
    pub(crate) fn named(name: &str) -> Self {
        Netns(PathBuf::from("/var/run/netns").join(name))
    }

    pub(crate) fn of_process(pid: i32) -> Self {
        Netns(PathBuf::from(format!("/proc/{pid}/ns/net")))
    }

    pub(crate) fn path(&self) -> String {
        self.0.display().to_string()
    }

    /// Does something on a thread inside the namespace. Sockets that it returns stay in there.
    pub(crate) fn enter<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        thread::scope(|scope| {
            let inside = scope.spawn(|| {
                self.join();
                work()
            });
            inside.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// For a thread that ends in here.
    #[expect(clippy::disallowed_methods, reason = "the one place of the tests, as edge/netns.rs is of the product")]
    fn join(&self) {
        let space = File::open(&self.0).unwrap_or_else(|error| panic!("open the namespace {}: {error}", self.path()));
        setns(space, CloneFlags::CLONE_NEWNET)
            .unwrap_or_else(|error| panic!("enter the namespace {}: {error}", self.path()));
    }

    pub(crate) fn answered(&self, to: Ipv4Addr, probe: Probe) -> bool {
        self.answered_from(None, to, probe)
    }

    /// Whether one probe, sent from this source address, is answered.
    pub(crate) fn answered_from(&self, source: Option<Ipv4Addr>, to: Ipv4Addr, probe: Probe) -> bool {
        let source = source.unwrap_or(Ipv4Addr::UNSPECIFIED);
        self.enter(|| match probe {
            Probe::Ping => icmp(source, to, 8, 0),
            Probe::Icmp { kind, code } => icmp(source, to, kind, code),
            Probe::Tcp { from, to: port } => tcp(source, from, SocketAddrV4::new(to, port)),
            Probe::Udp { from, to: port } => udp(source, from, SocketAddrV4::new(to, port)),
        })
    }

    pub(crate) fn pings(&self, to: Ipv4Addr) -> bool {
        self.answered(to, Probe::Ping)
    }
}

pub(crate) fn checksum(bytes: &[u8]) -> u16 {
    let mut sum: u32 = bytes.chunks(2).map(|two| u32::from(two[0]) << 8 | u32::from(*two.get(1).unwrap_or(&0))).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !u16::try_from(sum).unwrap()
}

/// An ICMP request with room for the three times of a timestamp.
fn icmp_request(kind: u8, code: u8, id: u16, number: u16) -> Vec<u8> {
    let mut packet = vec![kind, code, 0, 0];
    packet.extend(id.to_be_bytes());
    packet.extend(number.to_be_bytes());
    packet.extend([0; 12]);
    let sum = checksum(&packet).to_be_bytes();
    packet[2..4].copy_from_slice(&sum);
    packet
}

/// The number of an answer to one of our requests, from the packet with its IP header.
fn icmp_answer(packet: &[u8], from: Ipv4Addr, kind: u8, id: u16) -> Option<u16> {
    let header = usize::from(packet.first()? & 0xf) * 4;
    let source = Ipv4Addr::from(<[u8; 4]>::try_from(packet.get(12..16)?).ok()?);
    let answer = packet.get(header..header + 8)?;
    let expected = if kind == 8 { 0 } else { kind + 1 };
    let ours = source == from && answer[0] == expected && answer[4..6] == id.to_be_bytes();
    ours.then(|| u16::from_be_bytes([answer[6], answer[7]]))
}

/// Every exchange has an id of its own, so that no connection tracking entry of an earlier one lets it through.
fn next_icmp_id() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let begin = u16::try_from(std::process::id() % 60_000).unwrap();
    begin.wrapping_add(NEXT.fetch_add(1, Ordering::Relaxed))
}

fn icmp_socket(source: Ipv4Addr) -> OwnedFd {
    let socket = socket(AddressFamily::Inet, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::Icmp).unwrap();
    if !source.is_unspecified() {
        bind(socket.as_raw_fd(), &SockaddrIn::from(SocketAddrV4::new(source, 0)))
            .unwrap_or_else(|error| panic!("take {source} as source: {error}"));
    }
    socket
}

fn receive_within(socket: &OwnedFd, limit: Duration) -> Option<Vec<u8>> {
    let micros = i64::try_from(limit.as_micros()).unwrap().max(1000);
    setsockopt(socket, sockopt::ReceiveTimeout, &TimeVal::new(micros / 1_000_000, micros % 1_000_000)).unwrap();
    let mut packet = vec![0; 2048];
    let length = recv(socket.as_raw_fd(), &mut packet, MsgFlags::empty()).ok()?;
    packet.truncate(length);
    Some(packet)
}

fn icmp(source: Ipv4Addr, to: Ipv4Addr, kind: u8, code: u8) -> bool {
    let socket = icmp_socket(source);
    let id = next_icmp_id();
    let address = SockaddrIn::from(SocketAddrV4::new(to, 0));
    // No route is one way of not reaching.
    if sendto(socket.as_raw_fd(), &icmp_request(kind, code, id, 1), &address, MsgFlags::empty()).is_err() {
        return false;
    }
    let end = Instant::now() + PATIENCE;
    while let Some(left) = end.checked_duration_since(Instant::now()) {
        if let Some(packet) = receive_within(&socket, left)
            && icmp_answer(&packet, to, kind, id).is_some()
        {
            return true;
        }
    }
    false
}

fn tcp(source: Ipv4Addr, port: Option<u16>, to: SocketAddrV4) -> bool {
    let socket = socket(AddressFamily::Inet, SockType::Stream, SockFlag::SOCK_CLOEXEC, None).unwrap();
    setsockopt(&socket, sockopt::ReuseAddr, &true).unwrap();
    let from = SocketAddrV4::new(source, port.unwrap_or(0));
    bind(socket.as_raw_fd(), &SockaddrIn::from(from)).unwrap_or_else(|error| panic!("take {from} as source: {error}"));
    let micros = i64::try_from(PATIENCE.as_micros()).unwrap();
    // The send time-out bounds connect(2) as well (socket(7)).
    setsockopt(&socket, sockopt::SendTimeout, &TimeVal::new(0, micros)).unwrap();
    if connect(socket.as_raw_fd(), &SockaddrIn::from(to)).is_err() {
        return false;
    }
    let mut stream = TcpStream::from(socket);
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut back = [0];
    stream.write_all(b"?").is_ok() && stream.read_exact(&mut back).is_ok() && back == *b"?"
}

fn udp(source: Ipv4Addr, port: Option<u16>, to: SocketAddrV4) -> bool {
    let socket = UdpSocket::bind(SocketAddrV4::new(source, port.unwrap_or(0))).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut back = [0; 16];
    let sent = socket.connect(to).and_then(|()| socket.send(b"?"));
    sent.is_ok() && socket.recv(&mut back).is_ok_and(|length| length == 1)
}

/// Servers inside a namespace that send back what they get, on TCP and on UDP alike.
///
/// Their sockets hold the namespace: they end with this value, before the container is expected to be gone.
pub(crate) struct Servers {
    stop: Arc<AtomicBool>,
    threads: Vec<thread::JoinHandle<()>>,
    heard: Arc<Mutex<Vec<SocketAddrV4>>>,
}

impl Servers {
    pub(crate) fn start(space: &Netns, ports: &[u16]) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let heard = Arc::new(Mutex::new(Vec::new()));
        let mut threads = Vec::new();
        for &port in ports {
            let any = SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, port);
            let (listener, datagrams) =
                space.enter(|| (TcpListener::bind(any).unwrap(), UdpSocket::bind(any).unwrap()));
            let tick = TimeVal::new(0, 20_000);
            // accept(2) honours the receive time-out (socket(7)).
            setsockopt(&listener, sockopt::ReceiveTimeout, &tick).unwrap();
            setsockopt(&datagrams, sockopt::ReceiveTimeout, &tick).unwrap();
            let over = Arc::clone(&stop);
            threads.push(thread::spawn(move || serve_tcp(&listener, &over)));
            let (over, heard) = (Arc::clone(&stop), Arc::clone(&heard));
            threads.push(thread::spawn(move || serve_udp(&datagrams, &over, &heard)));
        }
        Servers { stop, threads, heard }
    }

    /// From where datagrams have come.
    pub(crate) fn heard_from(&self, source: Ipv4Addr) -> bool {
        self.heard.lock().unwrap().iter().any(|address| *address.ip() == source)
    }
}

impl Drop for Servers {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

fn serve_tcp(listener: &TcpListener, over: &AtomicBool) {
    while !over.load(Ordering::Relaxed) {
        let Ok((mut stream, _)) = listener.accept() else { continue };
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut byte = [0];
        if stream.read_exact(&mut byte).is_ok() {
            let _ = stream.write_all(&byte);
        }
    }
}

fn serve_udp(socket: &UdpSocket, over: &AtomicBool, heard: &Mutex<Vec<SocketAddrV4>>) {
    let mut datagram = [0; 2048];
    while !over.load(Ordering::Relaxed) {
        match socket.recv_from(&mut datagram) {
            Ok((length, std::net::SocketAddr::V4(from))) => {
                heard.lock().unwrap().push(from);
                let _ = socket.send_to(&datagram[..length], from);
            }
            Ok(_) => {}
            Err(error) => assert!(
                matches!(
                    error.kind(),
                    ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted | ErrorKind::ConnectionRefused
                ),
                "serve datagrams: {error}"
            ),
        }
    }
}

/// A ping that goes on until it is stopped: one echo request every 20 ms, each with a number.
pub(crate) struct Pinger {
    stop: Arc<AtomicBool>,
    answered: Arc<Mutex<BTreeSet<u16>>>,
    thread: thread::JoinHandle<u16>,
}

/// What became of a [`Pinger`]'s packets.
#[derive(Debug)]
pub(crate) struct Pinged {
    pub(crate) sent: u16,
    pub(crate) answered: usize,
    /// The numbers of those without an answer.
    pub(crate) lost: Vec<u16>,
}

impl Pinger {
    const INTERVAL: Duration = Duration::from_millis(20);

    /// `fresh`: every packet is a flow of its own, so that no earlier one opens the way for it.
    pub(crate) fn start(space: &Netns, to: Ipv4Addr, fresh: bool) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let answered = Arc::new(Mutex::new(BTreeSet::new()));
        let socket = space.enter(|| icmp_socket(Ipv4Addr::UNSPECIFIED));
        let (over, into) = (Arc::clone(&stop), Arc::clone(&answered));
        let thread = thread::spawn(move || ping_on(&socket, to, fresh, &over, &into));
        Pinger { stop, answered, thread }
    }

    pub(crate) fn answered_so_far(&self) -> usize {
        self.answered.lock().unwrap().len()
    }

    /// Ends it, once the answers to the last packets have had their time.
    pub(crate) fn stop(self) -> Pinged {
        self.stop.store(true, Ordering::Relaxed);
        let sent = self.thread.join().unwrap();
        let answered = self.answered.lock().unwrap();
        let lost = (0..sent).filter(|number| !answered.contains(number)).collect();
        Pinged { sent, answered: answered.len(), lost }
    }
}

fn ping_on(socket: &OwnedFd, to: Ipv4Addr, fresh: bool, over: &AtomicBool, answered: &Mutex<BTreeSet<u16>>) -> u16 {
    let address = SockaddrIn::from(SocketAddrV4::new(to, 0));
    let base = next_icmp_id();
    let id_of = |number: u16| if fresh { base.wrapping_add(number) } else { base };
    let mut sent: u16 = 0;
    let mut next = Instant::now();
    let mut end = None;
    loop {
        let now = Instant::now();
        if end.is_none() && over.load(Ordering::Relaxed) {
            end = Some(now + Duration::from_secs(1));
        }
        match end {
            Some(end) if now >= end || answered.lock().unwrap().len() == usize::from(sent) => return sent,
            None if now >= next => {
                // A packet that cannot even be sent is a lost one.
                let _ = sendto(socket.as_raw_fd(), &icmp_request(8, 0, id_of(sent), sent), &address, MsgFlags::empty());
                sent += 1;
                next += Pinger::INTERVAL;
            }
            _ => {}
        }
        let left = next.saturating_duration_since(Instant::now()).min(Pinger::INTERVAL);
        let Some(packet) = receive_within(socket, left) else { continue };
        let header = packet.first().map_or(20, |first| usize::from(first & 0xf) * 4);
        let Some(number) = packet.get(header + 6..header + 8).map(|two| u16::from_be_bytes([two[0], two[1]])) else {
            continue;
        };
        if icmp_answer(&packet, to, 8, id_of(number)).is_some() {
            answered.lock().unwrap().insert(number);
        }
    }
}
