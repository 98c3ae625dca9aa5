//! Errors of ICMP about flows of others (attack 14 of the catalogue): whoever is no part of a flow has nothing to tell of
//! it, however well he knows it; and those who have are heard.

use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::Duration;

use nix::sys::socket::SockProtocol;

use super::frames::{Listener, Mac, Packet, Port, frame, words};
use super::{DUAL, dual};
use crate::lab::command::Run;
use crate::lab::container::{Container, SOON};
use crate::lab::netns::Netns;
use crate::lab::wait::wait_until;
use crate::lab::{OUTSIDE, OUTSIDE6};

/// What errors of a family say: port and host unreachable, too big, too old, ill made.
fn errors(of: IpAddr) -> [((u8, u8), u32); 5] {
    if of.is_ipv4() {
        [((3, 3), 0), ((3, 1), 0), ((3, 4), 68), ((11, 0), 0), ((12, 0), 0)]
    } else {
        [((1, 4), 0), ((1, 0), 0), ((2, 0), 1280), ((3, 0), 0), ((4, 0), 0)]
    }
}

/// An error from somebody to the sender of a packet, which it quotes.
fn error((kind, word): ((u8, u8), u32), from: IpAddr, quoted: &Packet, words: &[u8]) -> Packet {
    let quoted_too = [&quoted.bytes(), words].concat();
    Packet::icmp(from, quoted.from, kind, word, &quoted_too)
}

fn addresses(container: &Container<'_>) -> [IpAddr; 2] {
    [container.ip().into(), container.ip6().into()]
}

/// A datagram to a server that sends it back.
fn echoes(from: &Netns, own: u16, to: SocketAddr) -> bool {
    let socket = from.enter(|| UdpSocket::bind((unspecified(to.ip()), own)).unwrap());
    socket.set_read_timeout(Some(Duration::from_millis(400))).unwrap();
    socket.connect(to).and_then(|()| socket.send(b"?")).is_ok() && socket.recv(&mut [0; 4]).is_ok()
}

fn unspecified(like: IpAddr) -> IpAddr {
    if like.is_ipv4() { [0; 4].into() } else { [0; 16].into() }
}

/// Sends datagrams back until it is dropped.
struct Echo(std::sync::Arc<std::sync::atomic::AtomicBool>, Option<std::thread::JoinHandle<()>>);

impl Echo {
    fn at(space: &Netns, port: u16) -> Self {
        // Of both families.
        let socket = space.enter(|| UdpSocket::bind((IpAddr::from([0; 16]), port)).unwrap());
        socket.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
        let over = std::sync::Arc::default();
        let stop = std::sync::Arc::clone(&over);
        let thread = std::thread::spawn(move || {
            while !std::sync::atomic::AtomicBool::load(&stop, std::sync::atomic::Ordering::Relaxed) {
                if let Ok((length, from)) = socket.recv_from(&mut [0; 64]) {
                    let _ = socket.send_to(&[b'!'; 64][..length], from);
                }
            }
        });
        Echo(over, Some(thread))
    }
}

impl Drop for Echo {
    fn drop(&mut self) {
        self.0.store(true, std::sync::atomic::Ordering::Relaxed);
        if let Some(thread) = self.1.take() {
            let _ = thread.join();
        }
    }
}

#[test]
fn an_error_about_a_flow_passes_from_its_ends_and_from_routers_and_from_no_other_container() {
    let lab = dual(2);
    let (h1, h2) = (lab.host(1), lab.host(2));
    let profiled = |profile: &str| format!("{DUAL} -e CALICO_PROFILE={profile}");
    let (ann, bob) = (h1.run("ann", &profiled("web")), h1.run("bob", &profiled("web")));
    let cat = h2.run("cat", &profiled("web"));
    // Policy lets eve speak to nobody of them, and dan receive from all.
    let (eve, dan) = (h1.run("eve", &profiled("open")), h1.run("dan", &profiled("open")));
    let outside: [IpAddr; 2] = [OUTSIDE.into(), OUTSIDE6.into()];
    let hosts: [IpAddr; 2] = [h1.ip.into(), h1.ip6.into()];
    let eve_port = Port::of(&eve);
    let at_h1 = [Listener::let_in(&h1.space, SockProtocol::Icmp), Listener::let_in6(&h1.space, SockProtocol::IcmpV6)];
    let (at_ann, at_bob, at_cat, at_dan) = (
        Listener::at(&ann.space()),
        Listener::at(&bob.space()),
        Listener::at(&cat.space()),
        Listener::at(&dan.space()),
    );
    let servers = [&bob, &cat, &dan].map(|one| Echo::at(&one.space(), 7000));
    // Answers to what is sent to the host would be errors of its own.
    let asked = Echo::at(&lab.outside(), 7000);

    for family in 0..2 {
        let [a, b, c, d, e] = [&ann, &bob, &cat, &dan, &eve].map(|one| addresses(one)[family]);
        let (host, out) = (hosts[family], outside[family]);
        for (space, to) in [(ann.space(), b), (ann.space(), c), (h1.space.clone(), out), (h1.space.clone(), d)] {
            wait_until(&format!("a flow to {to}"), SOON, || echoes(&space, 5000, (to, 7000).into()));
        }
        let quoted = |from: IpAddr, to: IpAddr| Packet::udp((from, 5000), (to, 7000), b"?");
        let answered = |from: IpAddr, to: IpAddr| Packet::udp((from, 7000), (to, 5000), b"?");
        // Whose flow, the packet of it that is spoken of, and who hears of it.
        let flows = [
            ("ann to bob", quoted(a, b), &at_ann),
            ("ann to bob", answered(b, a), &at_bob),
            ("ann to cat", quoted(a, c), &at_ann),
            ("ann to cat", answered(c, a), &at_cat),
            ("its host to the outside", quoted(host, out), &at_h1[family]),
            ("its host to dan", quoted(host, d), &at_h1[family]),
            ("its host to dan", answered(d, host), &at_dan),
        ];
        let forged: Vec<_> = flows
            .iter()
            .flat_map(|(whose, quoted, ear)| errors(e).map(|kind| (whose, quoted, ear, kind, words())))
            .collect();
        for (_, quoted, _, kind, words) in &forged {
            eve_port.send(&error(*kind, e, quoted, words));
        }

        // The counterpart: the same of those who are its ends.
        for kind in errors(e) {
            let true_ones = [
                (&bob, b, quoted(a, b), &at_ann),
                (&ann, a, answered(b, a), &at_bob),
                (&cat, c, quoted(a, c), &at_ann),
                (&ann, a, answered(c, a), &at_cat),
                (&dan, d, quoted(host, d), &at_h1[family]),
            ];
            for (from, address, quoted, ear) in true_ones {
                let words = words();
                Port::of(from).send(&error(kind, address, &quoted, &words));
                ear.comes_to_hear(&format!("error {kind:?} of {} to {}", from.name, quoted.from), &words);
            }
            // And of a router on the way, whose address is no end's.
            let words = words();
            let switch = Port::open(&lab.outside(), "br0");
            let told = error(kind, out, &quoted(a, c), &words);
            switch.send_frame(&frame(mac_of(&h1.space), switch.mac, told.kind(), &told.bytes()));
            at_ann.comes_to_hear(&format!("error {kind:?} of a router"), &words);
        }
        for (whose, quoted, ear, kind, words) in &forged {
            assert!(!ear.heard(words), "eve's error {kind:?} to {} about the flow of {whose} arrives", quoted.from);
        }
    }
    drop((servers, asked));
    lab.assert_consistent();
}

/// That of a namespace's `eth0`.
fn mac_of(space: &Netns) -> Mac {
    Port::open(space, "eth0").mac
}

/// Whether somebody is told that nobody listens at a port.
fn is_refused(space: &Netns, to: SocketAddr) -> bool {
    let socket = space.enter(|| UdpSocket::bind((unspecified(to.ip()), 0)).unwrap());
    socket.set_read_timeout(Some(Duration::from_millis(400))).unwrap();
    let sent = socket.connect(to).and_then(|()| socket.send(b"?"));
    let heard = sent.and_then(|_| socket.recv(&mut [0; 4]));
    heard.is_err_and(|error| error.kind() == ErrorKind::ConnectionRefused)
}

#[test]
fn true_errors_come_to_whom_they_concern() {
    let lab = dual(2);
    let (h1, h2) = (lab.host(1), lab.host(2));
    // Without rules for what leaves it, and so allowed nothing but answers.
    let rules = r#"{"id":"deaf","inbound_rules":[{"action":"allow"}],"outbound_rules":[]}"#;
    lab.etcd().put("/calico/v1/policy/profile/deaf/rules", rules);
    lab.etcd().put("/calico/v1/policy/profile/deaf/tags", "[]");
    let ann = h1.run("ann", &format!("{DUAL} -e CALICO_PROFILE=open"));
    let (bob, cat) = (
        h1.run("bob", &format!("{DUAL} -e CALICO_PROFILE=deaf")),
        h2.run("cat", &format!("{DUAL} -e CALICO_PROFILE=deaf")),
    );
    ann.comes_to_reach(cat.ip());
    for to in [addresses(&bob), addresses(&cat)].concat() {
        wait_until(&format!("ann is refused at {to}"), SOON, || is_refused(&ann.space(), (to, 7999).into()));
    }
    for to in addresses(&bob) {
        wait_until(&format!("its host is refused at {to}"), SOON, || is_refused(&h1.space, (to, 7999).into()));
    }
    // By a translated address.
    h1.sh(&format!("iptables -t nat -I PREROUTING -p udp --dport 8053 -d {} -j DNAT --to {}:7999", h1.ip, bob.ip()));
    wait_until("the outside is refused", SOON, || is_refused(&lab.outside(), (IpAddr::from(h1.ip), 8053).into()));

    // A narrow link on the far side: what the other host says of it is heard here.
    for (to, option) in addresses(&cat).into_iter().zip(["-4", "-6"]) {
        h2.sh(&format!("ip link set {} mtu 1300", cat.link()));
        let within = |args: &[&str]| Run::new("nsenter").arg(format!("--net={}", ann.space().path())).args(args).run();
        let text = to.to_string();
        wait_until(&format!("ann knows how narrow the way to {to} is"), SOON, || {
            within(&["ping", option, "-n", "-c1", "-W1", "-M", "do", "-s", "1400", &text]);
            within(&["ip", option, "route", "get", &text]).out().contains("mtu 1300")
        });
    }
    lab.assert_consistent();
}
