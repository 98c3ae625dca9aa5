//! Packets as no kernel would make them: built byte by byte, sent and heard below everything that has a say in them.
//!
//! Every packet carries words of its own, and whoever listens looks for those words; so a packet counts as arrived
//! whatever became of its headers.

use std::net::Ipv4Addr;
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

/// An IPv4 packet.
#[derive(Debug, Clone)]
pub(crate) struct Packet {
    pub(crate) from: Ipv4Addr,
    pub(crate) to: Ipv4Addr,
    pub(crate) protocol: u8,
    /// A multiple of four bytes.
    pub(crate) options: Vec<u8>,
    /// The identification, and flags and offset in one as in the header.
    pub(crate) fragment: (u16, u16),
    pub(crate) payload: Vec<u8>,
}

impl Packet {
    pub(crate) fn new(from: Ipv4Addr, to: Ipv4Addr, protocol: u8, payload: Vec<u8>) -> Self {
        Packet { from, to, protocol, options: Vec::new(), fragment: (0, 0), payload }
    }

    pub(crate) fn udp(from: (Ipv4Addr, u16), to: (Ipv4Addr, u16), data: &[u8]) -> Self {
        let length = u16::try_from(8 + data.len()).unwrap();
        // Without a checksum, which IPv4 allows (RFC 768).
        let head = [from.1, to.1, length, 0].map(u16::to_be_bytes).concat();
        Packet::new(from.0, to.0, 17, [&head[..], data].concat())
    }

    pub(crate) fn tcp(
        from: (Ipv4Addr, u16),
        to: (Ipv4Addr, u16),
        (number, acknowledged): (u32, u32),
        flags: u8,
        data: &[u8],
    ) -> Self {
        let mut segment = [from.1, to.1].map(u16::to_be_bytes).concat();
        segment.extend([number, acknowledged].map(u32::to_be_bytes).concat());
        segment.extend([5 << 4, flags, 0x20, 0, 0, 0, 0, 0]);
        segment.extend(data);
        let length = u16::try_from(segment.len()).unwrap();
        let pseudo = [&from.0.octets()[..], &to.0.octets(), &[0, 6], &length.to_be_bytes(), &segment].concat();
        segment[16..18].copy_from_slice(&checksum(&pseudo).to_be_bytes());
        Packet::new(from.0, to.0, 6, segment)
    }

    /// An ICMP message: type, code, the second word of its header, and what follows.
    pub(crate) fn icmp(from: Ipv4Addr, to: Ipv4Addr, (kind, code): (u8, u8), word: u32, data: &[u8]) -> Self {
        let mut message = [&[kind, code, 0, 0][..], &word.to_be_bytes(), data].concat();
        let sum = checksum(&message);
        message[2..4].copy_from_slice(&sum.to_be_bytes());
        Packet::new(from, to, 1, message)
    }

    pub(crate) fn bytes(&self) -> Vec<u8> {
        assert!(self.options.len().is_multiple_of(4));
        let head = 20 + self.options.len();
        let mut bytes = vec![0x40 | u8::try_from(head / 4).unwrap(), 0];
        bytes.extend(u16::try_from(head + self.payload.len()).unwrap().to_be_bytes());
        bytes.extend(self.fragment.0.to_be_bytes());
        bytes.extend(self.fragment.1.to_be_bytes());
        bytes.extend([64, self.protocol, 0, 0]);
        bytes.extend(self.from.octets());
        bytes.extend(self.to.octets());
        bytes.extend(&self.options);
        let sum = checksum(&bytes);
        bytes[10..12].copy_from_slice(&sum.to_be_bytes());
        bytes.extend(&self.payload);
        bytes
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
        self.send_frame(&frame(HOST_MAC, self.mac, IPV4, &packet.bytes()));
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

    /// What of a protocol the namespace's firewall lets in.
    pub(crate) fn let_in(space: &Netns, protocol: SockProtocol) -> Self {
        Listener::on(space, SockType::Raw, AddressFamily::Inet, protocol)
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
