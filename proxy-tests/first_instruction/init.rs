//! The first process of a container, which looks at its network before it does anything else.
//!
//! `init ADDRESS PORT stay|exit`: one line to standard output, then it stays until SIGTERM, or exits with 1.
//!
//! Compiled by the test as a static program without Rust's own start, so that nothing comes before its first system call but what
//! the C library does for itself. It is no part of the crate.
#![no_main]

use std::ffi::{CStr, c_char, c_int, c_long, c_short, c_ulong, c_void};

const AF_INET: u16 = 2;
const SOCK_STREAM: c_int = 1;
const SOCK_DGRAM: c_int = 2;
const SOCK_NONBLOCK: c_int = 0o4000;
const SIOCGIFADDR: c_ulong = 0x8915;
const POLLOUT: c_short = 4;
const SOL_SOCKET: c_int = 1;
const SO_ERROR: c_int = 4;
const SIGTERM: c_int = 15;
const CLOCK_MONOTONIC: c_int = 1;

/// How long the peer may take: far less than the second after which a lost SYN, or a lost ARP request, is sent again.
const BOUND_MS: c_int = 300;

#[repr(C)]
struct Address {
    family: u16,
    port: [u8; 2],
    address: [u8; 4],
    zero: [u8; 8],
}

/// `struct ifreq` with its union read as an address.
#[repr(C)]
struct InterfaceRequest {
    name: [u8; 16],
    address: Address,
    rest: [u8; 8],
}

#[repr(C)]
struct PollFd {
    fd: c_int,
    events: c_short,
    revents: c_short,
}

#[repr(C)]
struct Time {
    seconds: c_long,
    nanoseconds: c_long,
}

unsafe extern "C" {
    fn socket(domain: c_int, kind: c_int, protocol: c_int) -> c_int;
    fn ioctl(fd: c_int, request: c_ulong, argument: *mut c_void) -> c_int;
    fn connect(fd: c_int, address: *const c_void, length: u32) -> c_int;
    fn poll(fds: *mut PollFd, count: c_ulong, timeout: c_int) -> c_int;
    fn getsockopt(fd: c_int, level: c_int, name: c_int, value: *mut c_void, length: *mut u32) -> c_int;
    fn open(path: *const c_char, flags: c_int) -> c_int;
    fn read(fd: c_int, into: *mut c_void, length: usize) -> isize;
    fn write(fd: c_int, from: *const c_void, length: usize) -> isize;
    fn signal(number: c_int, handler: extern "C" fn(c_int)) -> usize;
    fn clock_gettime(clock: c_int, time: *mut Time) -> c_int;
    fn close(fd: c_int) -> c_int;
    fn pause() -> c_int;
    fn _exit(code: c_int) -> !;
}

extern "C" fn end(_signal: c_int) {
    // SAFETY: allowed in a signal handler (signal-safety(7)).
    unsafe { _exit(0) }
}

fn micros() -> i64 {
    let mut time = Time { seconds: 0, nanoseconds: 0 };
    // SAFETY: the kernel writes one timespec into it.
    unsafe { clock_gettime(CLOCK_MONOTONIC, &raw mut time) };
    time.seconds * 1_000_000 + time.nanoseconds / 1000
}

/// The address of `eth1`.
fn own_address() -> Option<[u8; 4]> {
    let none = Address { family: AF_INET, port: [0; 2], address: [0; 4], zero: [0; 8] };
    let mut request = InterfaceRequest { name: [0; 16], address: none, rest: [0; 8] };
    request.name[..4].copy_from_slice(b"eth1");
    // SAFETY: the request is as long as the kernel's, and lives through the call.
    let code = unsafe { ioctl(socket(c_int::from(AF_INET), SOCK_DGRAM, 0), SIOCGIFADDR, (&raw mut request).cast()) };
    (code == 0).then_some(request.address.address)
}

/// Whether a route to everywhere leads through `eth1`.
fn has_default_route() -> bool {
    let mut text = [0u8; 4096];
    // SAFETY: the path ends with a zero, and the kernel writes no more than there is room for.
    let length = unsafe { read(open(c"/proc/self/net/route".as_ptr(), 0), text.as_mut_ptr().cast(), text.len()) };
    let text = &text[..usize::try_from(length).unwrap_or(0)];
    text.split(|byte| *byte == b'\n').any(|line| line.starts_with(b"eth1\t00000000\t"))
}

/// Whether a connection to the peer is accepted in time.
fn peer_answers(address: [u8; 4], port: u16) -> bool {
    let to = Address { family: AF_INET, port: port.to_be_bytes(), address, zero: [0; 8] };
    // SAFETY: all that is handed over lives through its call, with the lengths that are named.
    unsafe {
        let fd = socket(c_int::from(AF_INET), SOCK_STREAM | SOCK_NONBLOCK, 0);
        // It is under way, or fails at once: SO_ERROR tells neither apart, poll(2) does.
        connect(fd, (&raw const to).cast(), 16);
        let mut one = PollFd { fd, events: POLLOUT, revents: 0 };
        if poll(&raw mut one, 1, BOUND_MS) != 1 || one.revents != POLLOUT {
            return false;
        }
        let (mut error, mut length): (c_int, u32) = (1, 4);
        getsockopt(fd, SOL_SOCKET, SO_ERROR, (&raw mut error).cast(), &raw mut length);
        // The peer keeps no more than a few hundred that nobody has taken.
        close(fd);
        error == 0
    }
}

#[unsafe(no_mangle)]
pub extern "C" fn main(count: c_int, words: *const *const c_char) -> c_int {
    let began = micros();
    let address = own_address();
    let route = has_default_route();
    // SAFETY: the kernel hands over this many words, each of which ends with a zero.
    let word = |number: usize| unsafe { CStr::from_ptr(*words.add(number)) }.to_str().unwrap_or_default();
    if count != 4 {
        return 2;
    }
    let mut to = [0; 4];
    for (byte, text) in to.iter_mut().zip(word(1).split('.')) {
        *byte = text.parse().unwrap_or_default();
    }
    let peer = peer_answers(to, word(2).parse().unwrap_or_default());
    let took = micros() - began;
    let address = address.map_or("none".to_owned(), |bytes| bytes.map(|byte| byte.to_string()).join("."));
    let line = format!("address={address} route={route} peer={peer} micros={took}\n");
    // SAFETY: the line is as long as it says; the handler has the signature that the C library asks for.
    unsafe {
        signal(SIGTERM, end);
        write(1, line.as_ptr().cast(), line.len());
        while word(3) == "stay" {
            pause();
        }
    }
    1
}
