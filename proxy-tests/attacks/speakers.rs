//! Those who speak BGP and should not be believed (attack 7 of the catalogue).

use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::process::Child;
use std::time::Duration;

use super::allow_all;
use crate::lab::command::Run;
use crate::lab::container::SOON;
use crate::lab::netns::Netns;
use crate::lab::wait::wait_until;
use crate::lab::{Lab, OUTSIDE, spawn_logged};

/// A BIRD of somebody's, with one session.
struct Rogue {
    bird: Child,
    socket: PathBuf,
    _folder: tempfile::TempDir,
}

impl Rogue {
    fn speak(space: &Netns, own: Ipv4Addr, to: Ipv4Addr, announced: &[String]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let [socket, file, log] = ["bird.ctl", "bird.conf", "log"].map(|name| folder.path().join(name));
        let routes: String = announced.iter().map(|net| format!("  route {net} blackhole;\n")).collect();
        let text = format!(
            "router id {own};\nlog stderr all;\nprotocol device {{}}\nprotocol direct {{ ipv4; }}\n\
             protocol static {{\n  ipv4;\n{routes}}}\n\
             protocol bgp evil {{\n  local {own} as 64511;\n  neighbor {to} as 64511;\n  multihop;\n  connect retry time 1;\n  \
             connect delay time 1;\n  error wait time 1, 2;\n  \
             ipv4 {{ import all; export where source = RTS_STATIC; next hop self; }};\n}}\n"
        );
        std::fs::write(&file, text).unwrap();
        let command = Run::new("nsenter")
            .arg(format!("--net={}", space.path()))
            .args(["bird", "-f", "-c"])
            .arg(&file)
            .arg("-s")
            .arg(&socket);
        Rogue { bird: spawn_logged(command, &log), socket, _folder: folder }
    }

    fn says(&self, line: &str) -> String {
        Run::new("birdc").arg("-s").arg(&self.socket).args(line.split(' ')).run().out()
    }

    #[track_caller]
    fn comes_to(&self, state: &str) {
        wait_until(&format!("the rogue's session is {state}"), Duration::from_secs(20), || {
            self.says("show protocols evil").contains(state)
        });
    }
}

impl Drop for Rogue {
    fn drop(&mut self) {
        let _ = self.bird.kill();
        let _ = self.bird.wait();
    }
}

#[test]
fn a_speaker_is_believed_what_its_place_allows_and_never_takes_a_route_that_the_host_has() {
    let lab = Lab::hosts(2);
    allow_all(&lab, "open");
    let (h1, h2) = (lab.host(1), lab.host(2));
    // A way out of its own, not preferred by its metric.
    h1.sh(&format!("ip route add default via {OUTSIDE} metric 1024"));
    h1.start_node();
    let ann = h1.run("ann", "-e CALICO_IP=192.168.1.1 -e CALICO_PROFILE=open");
    let way = |to: &str| h1.sh(&format!("ip route get {to}"));
    let before = way("198.51.100.1");
    let ours = |to: &str| way(to).contains(&ann.link());
    assert!(ours("192.168.1.1"));
    let announced = |pooled: &str| -> Vec<String> {
        let own = format!("{}/32", h1.ip);
        ["0.0.0.0/0", "198.51.100.0/24", "192.168.1.1/32", &own, pooled].map(str::to_owned).into()
    };

    // As a host of the mesh it is believed addresses of pools.
    let member = Rogue::speak(&h2.space, h2.ip, h1.ip, &announced("192.168.60.1/32"));
    lab.etcd().put("/calico/bgp/v1/host/h2/ip_addr_v4", &h2.ip.to_string());
    member.comes_to("Established");
    wait_until("its address of a pool is believed", SOON, || h1.has_route("192.168.60.1"));
    assert!(!h1.birdc("show route").contains("198.51.100.0/24"), "a host is believed what lies in no pool");
    assert_eq!(way("198.51.100.1"), before);
    assert!(ours("192.168.1.1") && h1.space.pings(ann.ip()), "a container here has lost its route");
    // Nor is the container silenced: its host goes on telling of it.
    wait_until("its host tells of ann", SOON, || {
        member.says("show route 192.168.1.1/32 protocol evil").contains(&h1.ip.to_string())
    });
    // Whom nobody has configured is refused, on the same network or not.
    let stranger = Rogue::speak(&lab.outside(), OUTSIDE, h1.ip, &announced("192.168.50.1/32"));
    stranger.comes_to("Connection closed");
    assert!(!h1.birdc("show route").contains("192.168.50.1"));
    drop(member);

    // As a configured peer it may tell of anything but what the host has.
    lab.etcd().put(
        &format!("/calico/bgp/v1/host/h1/peer_v4/{OUTSIDE}"),
        &serde_json::json!({ "ip": OUTSIDE, "as_num": "64511" }).to_string(),
    );
    stranger.comes_to("Established");
    wait_until("a configured peer is believed", SOON, || {
        h1.has_route("192.168.50.1") && h1.birdc("show route").contains("198.51.100.0/24")
    });
    assert_eq!(h1.routes().iter().filter(|route| route.starts_with("default")).count(), 1, "{:#?}", h1.routes());
    assert!(ours("192.168.1.1") && h1.space.pings(ann.ip()), "a container here has lost its route");
    assert!(way(&h1.ip.to_string()).starts_with("local"), "the host has lost itself");
    wait_until("its host tells of ann", SOON, || {
        stranger.says("show route 192.168.1.1/32 protocol evil").contains(&h1.ip.to_string())
    });

    // A container does not get to BIRD at all.
    let inside = Rogue::speak(&ann.space(), ann.ip(), h1.ip, &announced("192.168.70.1/32"));
    lab.etcd().put(
        &format!("/calico/bgp/v1/host/h1/peer_v4/{}", ann.ip()),
        &serde_json::json!({ "ip": ann.ip(), "as_num": "64511" }).to_string(),
    );
    lab.etcd().put("/calico/v1/config/DefaultEndpointToHostAction", "ACCEPT");
    ann.comes_to_reach(h1.ip);
    assert!(!inside.says("show protocols evil").contains("Established"));
    drop((inside, stranger));
    lab.etcd().ctl(&["del", &format!("/calico/bgp/v1/host/h1/peer_v4/{}", ann.ip())]).run().ok();
}
