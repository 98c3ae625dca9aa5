//! Packets as no kernel would make them: built byte by byte, sent and heard below everything that has a say in them.
//!
//! Every packet carries words of its own, and whoever listens looks for those words; so a packet counts as arrived
//! whatever became of its headers.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use nix::ifaddrs::getifaddrs;
use nix::sys::socket::{
    AddressFamily, LinkAddr, MsgFlags, SockFlag, SockProtocol, SockType, recv, sendto, setsockopt, socket, sockopt,
};
use nix::sys::time::TimeVal;

use crate::lab::container::Container;
use crate::lab::netns::{Netns, checksum};
use crate::lab::wait::wait_until;

pub(crate) type Mac = [u8; 6];

/// What the host's end of every container's link has.
pub(crate) const HOST_MAC: Mac = [0xee; 6];
pub(crate) const EVERYBODY: Mac = [0xff; 6];
pub(crate) const IPV4: u16 = 0x0800;
pub(crate) const IPV6: u16 = 0x86dd;
pub(crate) const ARP: u16 = 0x0806;

/// Words that no other packet carries.
pub(crate) fn words() -> Vec<u8> {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    format!("siege-{}-{:06}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed)).into_bytes()
}

/// An Ethernet frame, long enough for every link.
pub(crate) fn frame(to: Mac, from: Mac, kind: u16, payload: &[u8]) -> Vec<u8> {
    let mut frame = [&to[..], &from, &kind.to_be_bytes(), payload].concat();
    frame.resize(frame.len().max(60), 0);
    frame
}

/// An ARP packet (RFC 826): 1 asks, 2 answers.
pub(crate) fn arp(verb: u16, sender: (Mac, Ipv4Addr), target: (Mac, Ipv4Addr)) -> Vec<u8> {
    [&[0, 1, 8, 0, 6, 4][..], &verb.to_be_bytes(), &sender.0, &sender.1.octets(), &target.0, &target.1.octets()]
        .concat()
}

/// A packet of either family.
#[derive(Debug, Clone)]
pub(crate) struct Packet {
    pub(crate) from: IpAddr,
    pub(crate) to: IpAddr,
    pub(crate) protocol: u8,
    /// How many hosts may forward it.
    pub(crate) hops: u8,
    /// Of IPv4; a multiple of four bytes.
    pub(crate) options: Vec<u8>,
    /// Of IPv6: the number of each header, and what follows its first byte; with that a multiple of eight bytes.
    pub(crate) extensions: Vec<(u8, Vec<u8>)>,
    /// The identification, and flags and offset in one as in the header of IPv4. Not zero, it becomes a header in IPv6.
    pub(crate) fragment: (u16, u16),
    pub(crate) payload: Vec<u8>,
}

/// Where another piece of the packet follows.
pub(crate) const MORE: u16 = 0x2000;

/// The checksum of what a packet holds: with the addresses before it, but for ICMP.
fn sum(from: IpAddr, to: IpAddr, protocol: u8, payload: &[u8]) -> [u8; 2] {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    let addresses = match (from, to) {
        (IpAddr::V4(_), IpAddr::V4(_)) if protocol == 1 => Vec::new(),
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            [from.octets(), to.octets(), [0, protocol, length[2], length[3]]].concat()
        }
        (IpAddr::V6(from), IpAddr::V6(to)) => {
            [&from.octets()[..], &to.octets(), &length, &[0, 0, 0, protocol]].concat()
        }
        _ => panic!("{from} and {to} are of two families"),
    };
    match checksum(&[&addresses, payload].concat()) {
        // Nothing is said by 0 (RFC 768).
        0 if protocol == 17 => [0xff; 2],
        sum => sum.to_be_bytes(),
    }
}

impl Packet {
    pub(crate) fn new(from: impl Into<IpAddr>, to: impl Into<IpAddr>, protocol: u8, payload: Vec<u8>) -> Self {
        let (from, to) = (from.into(), to.into());
        let (options, extensions) = (Vec::new(), Vec::new());
        Packet { from, to, protocol, hops: 64, options, extensions, fragment: (0, 0), payload }
    }

    /// With its checksum, which is at this place.
    fn summed(from: IpAddr, to: IpAddr, protocol: u8, mut payload: Vec<u8>, at: usize) -> Self {
        let sum = sum(from, to, protocol, &payload);
        payload[at..at + 2].copy_from_slice(&sum);
        Packet::new(from, to, protocol, payload)
    }

    pub(crate) fn udp(from: (impl Into<IpAddr>, u16), to: (impl Into<IpAddr>, u16), data: &[u8]) -> Self {
        let length = u16::try_from(8 + data.len()).unwrap();
        let head = [from.1, to.1, length, 0].map(u16::to_be_bytes).concat();
        Packet::summed(from.0.into(), to.0.into(), 17, [&head[..], data].concat(), 6)
    }

    pub(crate) fn tcp(
        from: (impl Into<IpAddr>, u16),
        to: (impl Into<IpAddr>, u16),
        (number, acknowledged): (u32, u32),
        flags: u8,
        data: &[u8],
    ) -> Self {
        let mut segment = [from.1, to.1].map(u16::to_be_bytes).concat();
        segment.extend([number, acknowledged].map(u32::to_be_bytes).concat());
        segment.extend([5 << 4, flags, 0x20, 0, 0, 0, 0, 0]);
        segment.extend(data);
        Packet::summed(from.0.into(), to.0.into(), 6, segment, 16)
    }

    /// A message of ICMP, or of ICMPv6 if the addresses are: type, code, the second word of its header, and what follows.
    pub(crate) fn icmp(
        from: impl Into<IpAddr>,
        to: impl Into<IpAddr>,
        (kind, code): (u8, u8),
        word: u32,
        data: &[u8],
    ) -> Self {
        let message = [&[kind, code, 0, 0][..], &word.to_be_bytes(), data].concat();
        let from = from.into();
        let packet = Packet::summed(from, to.into(), if from.is_ipv4() { 1 } else { 58 }, message, 2);
        // As many as there are, for what counts on the link only (RFC 4861, 7.1).
        Packet { hops: 255, ..packet }
    }

    pub(crate) fn bytes(&self) -> Vec<u8> {
        match (self.from, self.to) {
            (IpAddr::V4(from), IpAddr::V4(to)) => self.bytes4(from, to),
            (IpAddr::V6(from), IpAddr::V6(to)) => self.bytes6(from, to),
            (from, to) => panic!("{from} and {to} are of two families"),
        }
    }

    fn bytes4(&self, from: Ipv4Addr, to: Ipv4Addr) -> Vec<u8> {
        assert!(self.options.len().is_multiple_of(4));
        let head = 20 + self.options.len();
        let mut bytes = vec![0x40 | u8::try_from(head / 4).unwrap(), 0];
        bytes.extend(u16::try_from(head + self.payload.len()).unwrap().to_be_bytes());
        bytes.extend(self.fragment.0.to_be_bytes());
        bytes.extend(self.fragment.1.to_be_bytes());
        bytes.extend([self.hops, self.protocol, 0, 0]);
        bytes.extend(from.octets());
        bytes.extend(to.octets());
        bytes.extend(&self.options);
        let sum = checksum(&bytes);
        bytes[10..12].copy_from_slice(&sum.to_be_bytes());
        bytes.extend(&self.payload);
        bytes
    }

    fn bytes6(&self, from: Ipv6Addr, to: Ipv6Addr) -> Vec<u8> {
        let mut extensions = self.extensions.clone();
        if self.fragment != (0, 0) {
            let (number, place) = self.fragment;
            let place = (place & !MORE) << 3 | u16::from(place & MORE != 0);
            let body = [&[0][..], &place.to_be_bytes(), &u32::from(number).to_be_bytes()].concat();
            extensions.push((44, body));
        }
        let mut rest = self.payload.clone();
        let mut next = self.protocol;
        for (kind, body) in extensions.iter().rev() {
            assert!((body.len() + 1).is_multiple_of(8));
            rest = [&[next][..], body, &rest].concat();
            next = *kind;
        }
        let mut bytes = vec![0x60, 0, 0, 0];
        bytes.extend(u16::try_from(rest.len()).unwrap().to_be_bytes());
        bytes.extend([next, self.hops]);
        bytes.extend(from.octets());
        bytes.extend(to.octets());
        bytes.extend(rest);
        bytes
    }

    /// What it is to Ethernet.
    pub(crate) fn kind(&self) -> u16 {
        if self.from.is_ipv4() { IPV4 } else { IPV6 }
    }
}

/// An interface to send from, past the namespace's own IP.
pub(crate) struct Port {
    socket: OwnedFd,
    link: LinkAddr,
    pub(crate) mac: Mac,
}

impl Port {
    pub(crate) fn open(space: &Netns, interface: &str) -> Self {
        space.enter(|| {
            let kind = SockType::Raw;
            // Protocol 0 hears nothing (packet(7)).
            let socket = socket(AddressFamily::Packet, kind, SockFlag::SOCK_CLOEXEC, None).unwrap();
            let link = getifaddrs()
                .unwrap()
                .filter(|one| one.interface_name == interface)
                .find_map(|one| one.address?.as_link_addr().copied())
                .unwrap_or_else(|| panic!("no interface {interface} in {}", space.path()));
            let mac = link.addr().unwrap();
            Port { socket, link, mac }
        })
    }

    /// That of a container.
    pub(crate) fn of(container: &Container<'_>) -> Self {
        Port::open(&container.space(), "eth1")
    }

    pub(crate) fn send_frame(&self, frame: &[u8]) {
        let sent = sendto(self.socket.as_raw_fd(), frame, &self.link, MsgFlags::empty());
        assert_eq!(sent, Ok(frame.len()), "send a frame of {} bytes", frame.len());
    }

    /// Sends a packet to the host, from the interface's own Ethernet address.
    pub(crate) fn send(&self, packet: &Packet) {
        self.send_frame(&frame(HOST_MAC, self.mac, packet.kind(), &packet.bytes()));
    }
}

/// Hears every frame of a namespace, before its firewall and after.
pub(crate) struct Listener {
    over: Arc<AtomicBool>,
    heard: Arc<Mutex<Vec<Vec<u8>>>>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Listener {
    pub(crate) fn at(space: &Netns) -> Self {
        Listener::on(space, SockType::Raw, AddressFamily::Packet, SockProtocol::EthAll)
    }

    /// What of a protocol of IPv4 the namespace's firewall lets in.
    pub(crate) fn let_in(space: &Netns, protocol: SockProtocol) -> Self {
        Listener::on(space, SockType::Raw, AddressFamily::Inet, protocol)
    }

    /// The same of IPv6.
    pub(crate) fn let_in6(space: &Netns, protocol: SockProtocol) -> Self {
        Listener::on(space, SockType::Raw, AddressFamily::Inet6, protocol)
    }

    fn on(space: &Netns, kind: SockType, family: AddressFamily, protocol: SockProtocol) -> Self {
        let socket = space.enter(|| socket(family, kind, SockFlag::SOCK_CLOEXEC, protocol).unwrap());
        setsockopt(&socket, sockopt::ReceiveTimeout, &TimeVal::new(0, 20_000)).unwrap();
        let (over, heard) = (Arc::new(AtomicBool::new(false)), Arc::new(Mutex::new(Vec::new())));
        let (stop, into) = (Arc::clone(&over), Arc::clone(&heard));
        let thread = thread::spawn(move || {
            let mut frame = vec![0; 1 << 16];
            while !stop.load(Ordering::Relaxed) {
                if let Ok(length) = recv(socket.as_raw_fd(), &mut frame, MsgFlags::empty()) {
                    into.lock().unwrap().push(frame[..length].to_vec());
                }
            }
        });
        Listener { over, heard, thread: Some(thread) }
    }

    pub(crate) fn heard(&self, words: &[u8]) -> bool {
        self.heard_where(|frame| frame.windows(words.len()).any(|window| window == words))
    }

    pub(crate) fn heard_where(&self, mut holds: impl FnMut(&[u8]) -> bool) -> bool {
        self.heard.lock().unwrap().iter().any(|frame| holds(frame))
    }

    /// How many frames that something holds of have been heard.
    pub(crate) fn count(&self, holds: impl Fn(&[u8]) -> bool) -> usize {
        self.heard.lock().unwrap().iter().filter(|frame| holds(frame)).count()
    }

    #[track_caller]
    pub(crate) fn comes_to_hear(&self, what: &str, words: &[u8]) {
        wait_until(&format!("{what} arrives"), Duration::from_secs(3), || self.heard(words));
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
