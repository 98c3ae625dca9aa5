//! What policy does not allow any more is cut, and an address that passes on takes no flow along.

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::time::Duration;

use serde_json::json;

use crate::lab::Lab;
use crate::lab::container::{Container, SOON};
use crate::lab::host::Host;
use crate::lab::netns::{Netns, Probe};
use crate::lab::wait::{pause, wait_until};

const PORT: u16 = 7000;

/// How long a byte may take from one end to the other.
const PATIENCE: Duration = Duration::from_millis(600);

/// A TCP connection, held by both its ends.
struct Line {
    near: TcpStream,
    far: TcpStream,
}

impl Line {
    fn open(from: &Netns, to: &Container<'_>, port: u16) -> Self {
        let listener = to.space().enter(|| TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).unwrap());
        let address = to.ip();
        let near = from.enter(|| {
            TcpStream::connect_timeout(&(address, port).into(), Duration::from_secs(3))
                .unwrap_or_else(|error| panic!("connect to {address}:{port}: {error}"))
        });
        let (far, _) = listener.accept().unwrap();
        let line = Line { near, far };
        assert!(line.carries(), "a connection that was just made");
        line
    }

    fn passes(mut from: &TcpStream, mut to: &TcpStream) -> bool {
        to.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut byte = [0];
        from.write_all(b"!").is_ok() && to.read_exact(&mut byte).is_ok()
    }

    /// Whether both ends are heard at the other.
    fn carries(&self) -> bool {
        Line::passes(&self.near, &self.far) && Line::passes(&self.far, &self.near)
    }

    /// Waits until neither end is heard at the other, and makes sure that it stays so, whoever speaks first.
    fn is_cut(&self) {
        wait_until("the connection is cut", SOON, || !Line::passes(&self.near, &self.far));
        for _ in 0..2 {
            assert!(!Line::passes(&self.far, &self.near) && !Line::passes(&self.near, &self.far));
        }
    }
}

fn set_rules(host: &Host, profile: &str, inbound: &serde_json::Value) {
    let rules = json!({ "id": profile, "inbound_rules": inbound, "outbound_rules": [{ "action": "allow" }] });
    host.calicoctl_run(&["profile", profile, "rule", "update"]).input(rules.to_string()).run().ok();
}

#[test]
fn a_flow_is_cut_when_policy_allows_it_no_more_and_only_then() {
    let lab = Lab::running(2);
    let (h1, h2) = (lab.host(1), lab.host(2));
    let open = |profile: &str| format!("-e CALICO_IP=auto -e CALICO_PROFILE={profile}");
    let server = h1.run("server", &open("server"));
    let (near, far) = (h1.run("near", &open("near")), h2.run("far", &open("far")));
    let ports = |list: &[u16]| json!([{ "action": "allow", "protocol": "tcp", "dst_ports": list }]);
    let both = json!([
        { "action": "allow", "protocol": "tcp", "src_tag": "near" },
        { "action": "allow", "protocol": "tcp", "src_tag": "far" },
        { "action": "allow", "protocol": "tcp", "dst_ports": [7003] },
    ]);
    set_rules(h1, "server", &both);
    for from in [&near, &far] {
        let (space, servers) = (from.space(), server.serve(&[PORT]));
        let probe = Probe::Tcp { from: None, to: PORT };
        wait_until("the rules are in force", SOON, || space.answered(server.ip(), probe));
        drop(servers);
    }
    let outside = lab.outside();
    // The outside knows no route to any container.
    crate::lab::ip(&[
        "-n",
        &format!("{}-sw", lab.name()),
        "route",
        "add",
        &format!("{}/32", server.ip()),
        "via",
        &h1.ip.to_string(),
    ]);
    let lines = [Line::open(&near.space(), &server, PORT), Line::open(&far.space(), &server, 7001)];
    let third = Line::open(&outside, &server, 7003);
    let of_host = Line::open(&h1.space, &server, 7004);
    let outwards = h1.run("outwards", &open("server"));
    let own = Line::open(&server.space(), &near_server(h1, &near), 7005);

    // Wider, or other words for the same: nothing is cut.
    set_rules(
        h1,
        "server",
        &json!([{ "action": "deny", "protocol": "udp" }, { "action": "allow", "protocol": "tcp" }]),
    );
    set_rules(h1, "near", &json!([{ "action": "allow" }]));
    outwards.remove();
    assert!(lines.iter().chain([&third, &of_host, &own]).all(Line::carries));

    // Some ports no more. What the server began itself, and what the host began, stands.
    set_rules(h1, "server", &ports(&[PORT, 7001]));
    third.is_cut();
    assert!(lines.iter().chain([&of_host, &own]).all(Line::carries));

    // A tag loses a member, and a denial gains one.
    let tagged = json!([{ "action": "deny", "src_tag": "bad" }, { "action": "allow", "src_tag": "near" }, { "action": "allow", "src_tag": "far" }]);
    set_rules(h1, "server", &tagged);
    pause(Duration::from_secs(1));
    assert!(lines.iter().chain([&of_host, &own]).all(Line::carries));
    lab.etcd().put("/calico/v1/policy/profile/far/tags", "[]");
    lines[1].is_cut();
    assert!(lines[0].carries() && own.carries());
    lab.etcd().put("/calico/v1/policy/profile/near/tags", r#"["near", "bad"]"#);
    lines[0].is_cut();
    assert!(of_host.carries() && own.carries());

    // While no node runs policy is not applied; the next one cuts what was forbidden meanwhile.
    h1.stop_node();
    let rules = json!({ "id": "server", "inbound_rules": [], "outbound_rules": [{ "action": "deny" }] });
    lab.etcd().put("/calico/v1/policy/profile/server/rules", &rules.to_string());
    assert!(own.carries());
    h1.start_node();
    own.is_cut();
    assert!(of_host.carries());
    drop((lines, third, of_host, own));
    lab.assert_consistent();
}

/// The container as one to connect to.
fn near_server<'h>(host: &Host, near: &Container<'h>) -> Container<'h> {
    set_rules(host, "near", &json!([{ "action": "allow" }]));
    near.clone()
}

#[test]
fn an_address_that_passes_to_another_container_takes_no_flow_along() {
    let lab = Lab::running(1);
    let h1 = lab.host(1);
    let client = h1.run("client", "-e CALICO_IP=auto -e CALICO_PROFILE=web");
    let first = h1.run("first", "-e CALICO_IP=192.168.1.50 -e CALICO_PROFILE=web");
    let address = first.ip();
    client.comes_to_reach(address);
    let line = Line::open(&client.space(), &first, PORT);
    let known = || h1.sh(&format!("conntrack -L 2>/dev/null | grep -c {address} || true"));
    assert_ne!(known(), "0");
    let Line { near, far } = line;
    // Its socket goes with the namespace; nobody tells the client.
    drop(far);
    first.remove();
    wait_until("no flow of the address is known", SOON, || known() == "0");
    let second = h1.run("second", "-e CALICO_IP=192.168.1.50 -e CALICO_PROFILE=other");
    client.never_reaches(second.ip());
    // What the client still says is part of no connection that the new one has.
    (&near).write_all(b"!").ok();
    pause(Duration::from_millis(300));
    assert!(
        !h1.sh("conntrack -L 2>/dev/null || true")
            .lines()
            .any(|line| line.contains("192.168.1.50") && line.contains("ESTABLISHED"))
    );
    lab.assert_consistent();
    lab.remove_everything();
}
