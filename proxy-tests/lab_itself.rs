//! The lab keeps its own promises.

use std::io::{BufRead, BufReader};
use std::process::Stdio;
use std::time::Duration;

use crate::lab::command::Run;
use crate::lab::host::IDLE;
use crate::lab::netns::{Pinger, Probe, Servers};
use crate::lab::wait::wait_until;
use crate::lab::{Lab, OUTSIDE, START, setting};

/// Set for a child of the test below: build a lab, say its name, wait for the end.
const HOLD: &str = "CALICO_LAB_HOLD";

/// All that a lab of this name has on the machine.
fn traces(name: &str) -> Vec<String> {
    let mut found = Vec::new();
    let namespaces = Run::new("ip").args(["netns", "list"]).run().ok();
    found.extend(namespaces.lines().filter(|line| line.contains(name)).map(str::to_owned));
    let mounts = std::fs::read_to_string("/proc/mounts").unwrap();
    found.extend(mounts.lines().filter(|line| line.contains(name)).map(str::to_owned));
    if std::env::temp_dir().join(name).exists() {
        found.push(format!("the folder {name}"));
    }
    for process in std::fs::read_dir("/proc").unwrap().flatten() {
        let command = std::fs::read(process.path().join("cmdline")).unwrap_or_default();
        let command = String::from_utf8_lossy(&command).replace('\0', " ");
        if command.contains(name) {
            found.push(format!("process {}: {command}", process.path().display()));
        }
    }
    found
}

fn cgroup_exists(container: &str) -> bool {
    let found = Run::new("find").args(["/sys/fs/cgroup", "-type", "d", "-name"]).arg(format!("*{container}*")).run();
    !found.out().is_empty()
}

#[test]
fn hosts_reach_each_other_and_a_lab_vanishes_without_a_trace() {
    let lab = Lab::hosts(2);
    let (h1, h2) = (lab.host(1), lab.host(2));
    assert!(h1.space.pings(h2.ip) && h2.space.pings(OUTSIDE) && lab.outside().pings(h1.ip));
    let servers = Servers::start(&h2.space, &[7000]);
    for probe in [
        Probe::Tcp { from: None, to: 7000 },
        Probe::Tcp { from: Some(6000), to: 7000 },
        Probe::Udp { from: Some(6001), to: 7000 },
        Probe::Icmp { kind: 13, code: 0 },
        Probe::Icmp { kind: 8, code: 1 },
    ] {
        assert!(h1.space.answered(h2.ip, probe), "{probe:?}");
    }
    assert!(!h1.space.answered(h2.ip, Probe::Tcp { from: None, to: 7001 }), "nobody listens there");
    assert!(!h1.space.answered(h2.ip, Probe::Udp { from: None, to: 7001 }), "nobody listens there");
    assert!(!h1.space.pings("172.25.0.99".parse().unwrap()), "there is no such host");
    drop(servers);

    lab.etcd().put("/calico/v1/x", "two\nlines and ü");
    assert_eq!(lab.etcd().get("/calico/v1/x").as_deref(), Some("two\nlines and ü"));

    let run = ["run", "-d", "--name", "ann", "--restart=always", "busybox", "sh", "-c", IDLE];
    let container = h1.raw_docker_run(&run).run().ok();
    assert!(h1.has_container("ann") && !h2.has_container("ann"));
    assert!(cgroup_exists(&container));
    h1.kill_dockerd();
    h1.spawn_dockerd();
    h1.await_dockerd();

    let name = lab.name().to_owned();
    assert!(traces(&name).len() > 5, "the search for traces finds nothing even now");
    drop(lab);
    assert_eq!(traces(&name), [""; 0]);
    assert!(!cgroup_exists(&container));
}

#[test]
fn a_lab_vanishes_also_when_its_process_is_killed() {
    if setting(HOLD).is_some() {
        let lab = Lab::hosts(1);
        lab.host(1).raw_docker("run -d --name ann busybox sleep 1000").ok();
        println!("\nheld: {}", lab.name());
        loop {
            std::thread::park();
        }
    }
    let mut child = Run::new(std::env::current_exe().unwrap())
        .args(["--exact", "lab_itself::a_lab_vanishes_also_when_its_process_is_killed", "--nocapture"])
        .env(HOLD, "1")
        .background()
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let name = lines.map_while(Result::ok).find_map(|line| line.strip_prefix("held: ").map(str::to_owned));
    let name = name.expect("the child tells the name of its lab");
    assert!(traces(&name).len() > 5, "the search for traces finds nothing even now");
    child.kill().unwrap();
    child.wait().unwrap();
    wait_until("nothing of the lab is left", Duration::from_secs(20), || traces(&name).is_empty());
}

#[test]
fn a_pinger_tells_which_packets_were_lost() {
    let lab = Lab::hosts(2);
    let (h1, h2) = (lab.host(1), lab.host(2));
    for fresh in [false, true] {
        let pinger = Pinger::start(&h1.space, h2.ip, fresh);
        wait_until("some packets are answered", START, || pinger.answered_so_far() > 10);
        h2.sh("iptables -A INPUT -p icmp -j DROP");
        let before = pinger.answered_so_far();
        // Nothing comes back; what has been sent tells the time.
        let clock = Pinger::start(&h2.space, h2.ip, false);
        h2.sh("iptables -I INPUT -i lo -j ACCEPT");
        wait_until("time passes", START, || clock.answered_so_far() > 15);
        assert!(pinger.answered_so_far() <= before + 1);
        h2.sh("iptables -F INPUT");
        wait_until("packets are answered again", START, || pinger.answered_so_far() > before + 10);
        let outcome = pinger.stop();
        assert!(
            outcome.lost.len() >= 10 && outcome.lost.len() + outcome.answered == usize::from(outcome.sent),
            "{outcome:?}"
        );
        let few = Pinger::start(&h2.space, h1.ip, fresh);
        wait_until("some packets are answered", START, || few.answered_so_far() > 10);
        let outcome = few.stop();
        assert!(outcome.lost.is_empty(), "{outcome:?}");
    }
}
