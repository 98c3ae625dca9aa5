//! Each key of a rule means in IPv6 what it says, seen by packets; what it means in IPv4 is in `policy`.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{Ipv6Addr, SocketAddrV6, TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU16, Ordering};
use std::thread;
use std::time::Duration;

use serde_json::{Value, json};

use crate::lab::Lab;
use crate::lab::command::Run;
use crate::lab::container::{Container, SOON};
use crate::lab::netns::Netns;
use crate::lab::wait::wait_until_right;

/// How long an answer may take within one machine.
const PATIENCE: Duration = Duration::from_millis(500);

#[derive(Debug, Clone, Copy)]
enum Probe {
    Ping,
    Tcp(u16),
    /// To a port, from the hundred-odd from another one on: every attempt is a new flow.
    Udp(u16, u16),
}

/// One packet's journey.
#[derive(Clone)]
struct Journey {
    who: String,
    from: Netns,
    to: Ipv6Addr,
    probe: Probe,
}

impl Journey {
    fn new(from: &Container<'_>, to: &Container<'_>, probe: Probe) -> Self {
        Journey { who: format!("{} to {}", from.name, to.name), from: from.space(), to: to.ip6(), probe }
    }

    fn arrives(&self) -> bool {
        static NEXT: AtomicU16 = AtomicU16::new(0);
        let at = |port| SocketAddrV6::new(self.to, port, 0, 0);
        match self.probe {
            Probe::Ping => {
                let space = format!("--net={}", self.from.path());
                let ping = [&space, "ping", "-6", "-n", "-c", "1", "-W", "1", &self.to.to_string()];
                Run::new("nsenter").args(ping).run().code == Some(0)
            }
            Probe::Tcp(port) => self.from.enter(|| {
                let Ok(mut stream) = TcpStream::connect_timeout(&at(port).into(), PATIENCE) else { return false };
                stream.set_read_timeout(Some(PATIENCE)).unwrap();
                stream.read(&mut [0; 1]).is_ok_and(|length| length == 1)
            }),
            Probe::Udp(from, port) => self.from.enter(|| {
                let from = from + NEXT.fetch_add(1, Ordering::Relaxed) % 900;
                let socket = UdpSocket::bind((Ipv6Addr::UNSPECIFIED, from)).unwrap();
                socket.set_read_timeout(Some(PATIENCE)).unwrap();
                socket.send_to(b"x", at(port)).is_ok() && socket.recv(&mut [0; 1]).is_ok()
            }),
        }
    }
}

/// Answers everybody at some ports until it is dropped; its sockets hold the container's namespace.
struct Servers {
    over: Arc<AtomicBool>,
    threads: Vec<thread::JoinHandle<()>>,
}

impl Servers {
    fn start(space: &Netns, ports: &[u16]) -> Self {
        let over = Arc::new(AtomicBool::new(false));
        let threads = ports.iter().map(|port| {
            let at = (Ipv6Addr::UNSPECIFIED, *port);
            let (listener, datagrams) = space.enter(|| (TcpListener::bind(at).unwrap(), UdpSocket::bind(at).unwrap()));
            listener.set_nonblocking(true).unwrap();
            datagrams.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
            let over = Arc::clone(&over);
            thread::spawn(move || {
                while !over.load(Ordering::Relaxed) {
                    match listener.accept() {
                        Ok((mut stream, _)) => drop(stream.write_all(b"x")),
                        Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock),
                    }
                    // Waits a little for a datagram, and so between two looks at the listener.
                    if let Ok((_, from)) = datagrams.recv_from(&mut [0; 1]) {
                        let _ = datagrams.send_to(b"x", from);
                    }
                }
            })
        });
        Servers { threads: threads.collect(), over }
    }
}

impl Drop for Servers {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

#[test]
fn each_key_of_a_rule_allows_and_denies_in_ipv6_what_it_says() {
    let lab = Lab::running(1);
    let h1 = lab.host(1);
    let start = |name: &str, address: &str, profiles: &str| {
        h1.run(name, &format!("-e CALICO_IP=fd80:24e2:f998:72d6::{address} -e CALICO_PROFILE={profiles}"))
    };
    let (ann, cat) = (start("ann", "1:1", "A"), start("cat", "1:3", "C"));
    let (bob, dan) = (start("bob", "1:2", "T,X"), start("dan", "1:4", "T"));
    let _servers = [&bob, &dan].map(|one| Servers::start(&one.space(), &[7000, 7001]));
    let (tcp, udp) = (Probe::Tcp(7000), Probe::Udp(9000, 7000));
    let to_bob = |probe| Journey::new(&ann, &bob, probe);
    let to_dan = |probe| Journey::new(&ann, &dan, probe);
    let cat_to_bob = |probe| Journey::new(&cat, &bob, probe);
    let (ann_net, wide) = ("fd80:24e2:f998:72d6::1:0/127", "fd80:24e2:f998:72d6::/64");

    let update = |rules: &Value| {
        let rules = json!({"id": "T", "inbound_rules": rules, "outbound_rules": []});
        h1.calicoctl_run(&["profile", "T", "rule", "update"]).input(rules.to_string()).run().ok();
    };
    // A match, a packet that it names, and one that it does not.
    let cases = [
        (json!({"protocol": "tcp"}), to_bob(tcp), to_bob(udp)),
        (json!({"!protocol": "tcp"}), to_bob(Probe::Ping), to_bob(tcp)),
        (json!({"protocol": "icmpv6"}), to_bob(Probe::Ping), to_bob(udp)),
        (json!({"protocol": 58, "icmp_type": 128, "icmp_code": 0}), to_bob(Probe::Ping), to_bob(tcp)),
        (json!({"protocol": "icmpv6", "!icmp_type": 129}), to_bob(Probe::Ping), to_bob(tcp)),
        (json!({"src_tag": "A"}), to_bob(udp), cat_to_bob(udp)),
        (json!({"!src_tag": "A"}), cat_to_bob(udp), to_bob(udp)),
        (json!({"dst_tag": "X"}), to_bob(Probe::Ping), to_dan(Probe::Ping)),
        (json!({"!dst_tag": "X"}), to_dan(tcp), to_bob(tcp)),
        (json!({"src_net": ann_net}), to_bob(tcp), cat_to_bob(tcp)),
        (json!({"!src_net": ann_net}), cat_to_bob(tcp), to_bob(tcp)),
        (json!({"src_net": wide, "!src_net": ann_net}), cat_to_bob(udp), to_bob(udp)),
        (json!({"dst_net": bob.ip6().to_string()}), to_bob(udp), to_dan(udp)),
        (json!({"!dst_net": bob.ip6().to_string()}), to_dan(udp), to_bob(udp)),
        (json!({"protocol": "udp", "src_ports": ["9000-9999"]}), to_bob(udp), to_bob(Probe::Udp(20_000, 7000))),
        (json!({"!src_ports": ["9000:9999"]}), to_bob(Probe::Udp(20_000, 7000)), to_bob(udp)),
        (json!({"dst_ports": ["7000"]}), to_bob(tcp), to_bob(Probe::Tcp(7001))),
        (json!({"protocol": "tcp", "!dst_ports": [7000]}), to_bob(Probe::Tcp(7001)), to_bob(tcp)),
        (json!({"ip_version": 6, "protocol": "udp"}), to_bob(udp), to_bob(tcp)),
    ];
    for (matches, named, other) in &cases {
        let with = |action: &str| {
            let mut rule = matches.clone();
            rule["action"] = json!(action);
            rule
        };
        // As an allowance and as a denial, so that neither a host that lets all through nor one that lets nothing passes.
        let (allow, deny) = (json!([with("allow")]), json!([with("deny"), {"action": "allow"}]));
        for (rules, through, dropped) in [(allow, named, other), (deny, other, named)] {
            update(&rules);
            wait_until_right(&rules.to_string(), SOON, || {
                let wrong =
                    [(through, true), (dropped, false)].into_iter().filter(|(one, right)| one.arrives() != *right);
                wrong.map(|(one, right)| format!("{} {:?} arrives: {}", one.who, one.probe, !right)).collect()
            });
        }
    }

    // What is said of IPv4 alone says nothing here.
    for (rules, arrives) in [
        (json!([{"action": "log", "log_prefix": "six"}, {}]), true),
        (json!([{"ip_version": 4}]), false),
        (json!([{"!src_net": "10.0.0.0/8"}]), false),
        (json!([{"action": "deny", "!src_net": "10.0.0.0/8"}, {}]), true),
        (json!([{"protocol": "icmp"}, {"src_net": "0.0.0.0/0"}]), false),
    ] {
        update(&rules);
        wait_until_right(&rules.to_string(), SOON, || {
            let wrong = [tcp, udp, Probe::Ping].map(to_bob).into_iter().filter(|one| one.arrives() != arrives);
            wrong.map(|one| format!("{:?} arrives: {}", one.probe, !arrives)).collect()
        });
    }
    lab.assert_consistent();
}
