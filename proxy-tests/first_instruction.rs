//! What the first instruction of a container's process finds of its network, whoever started it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use serde_json::{Value, json};

use crate::lab::command::Run;
use crate::lab::container::Container;
use crate::lab::host::Host;
use crate::lab::netns::Servers;
use crate::lab::wait::wait_for;
use crate::lab::{Lab, START, counts, tell};

const PORT: u16 = 7000;

/// The program that looks, compiled once: `first_instruction/init.rs`.
fn program() -> &'static Path {
    static PROGRAM: OnceLock<(tempfile::TempDir, PathBuf)> = OnceLock::new();
    let (_, program) = PROGRAM.get_or_init(|| {
        let folder = tempfile::tempdir().unwrap();
        let (source, program) = (folder.path().join("init.rs"), folder.path().join("init"));
        std::fs::write(&source, include_str!("first_instruction/init.rs")).unwrap();
        let compile = Run::new("rustc")
            .args(["--edition=2024", "-O", "-Cpanic=abort", "-Cstrip=symbols", "-Ctarget-feature=+crt-static"])
            .args(["-Dwarnings", "-o"])
            .arg(&program)
            .arg(&source);
        compile.run().ok();
        (folder, program)
    });
    program
}

/// What many first instructions saw.
#[derive(Debug, Default)]
struct Seen {
    starts: usize,
    no_address: usize,
    no_route: usize,
    no_peer: usize,
}

impl Seen {
    fn misses(&self) -> usize {
        self.no_address + self.no_route + self.no_peer
    }
}

struct Watch<'h> {
    host: &'h Host,
    peer: String,
    /// How many lines of each container have been read.
    read: BTreeMap<String, usize>,
    seen: BTreeMap<&'static str, Seen>,
}

impl<'h> Watch<'h> {
    /// Creates as many containers that look and then do what the mode says.
    fn create(&self, begin: &str, count: usize, mode: &str, policy: &Value) -> Vec<Container<'h>> {
        let names = (0..count).map(|number| format!("{begin}{number}"));
        let create = |name: String| {
            let body = json!({
                "Image": "busybox", "Cmd": ["/init", self.peer, PORT.to_string(), mode],
                "Env": ["CALICO_IP=auto", "CALICO_PROFILE=web"],
                "HostConfig": {"Binds": [format!("{}:/init:ro", program().display())], "RestartPolicy": policy},
            });
            let reply = self.host.api("POST", &format!("/v1.41/containers/create?name={name}"), Some(&body));
            assert_eq!(reply.status, 201, "{}", reply.message());
            self.host.container(&name)
        };
        names.map(create).collect()
    }

    /// Reads what this many starts of each container have said, and counts what they missed.
    fn read(&mut self, way: &'static str, containers: &[Container<'_>], starts: usize) {
        for container in containers {
            let before = self.read.get(&container.id).copied().unwrap_or_default();
            let log = self.host.container_log(&container.id);
            let what = format!("{} has started {} times", container.name, before + starts);
            let lines: Vec<String> = wait_for(&what, START, || {
                let text = std::fs::read_to_string(&log).unwrap_or_default();
                let lines = text
                    .lines()
                    .map(|line| serde_json::from_str::<Value>(line).ok()?["log"].as_str().map(str::to_owned));
                lines.collect::<Option<Vec<String>>>().filter(|lines| lines.len() >= before + starts)
            });
            assert_eq!(lines.len(), before + starts, "{} says one line a start: {lines:?}", container.name);
            let address = format!("address={}", container.ip());
            let seen = self.seen.entry(way).or_default();
            for line in &lines[before..] {
                let words: Vec<&str> = line.split_whitespace().collect();
                assert_eq!(words.len(), 4, "{line}");
                seen.starts += 1;
                seen.no_address += usize::from(words[0] != address);
                seen.no_route += usize::from(words[1] != "route=true");
                seen.no_peer += usize::from(words[2] != "peer=true");
            }
            self.read.insert(container.id.clone(), lines.len());
        }
    }

    /// Calls the API for each of them, four at once.
    fn call(&self, containers: &[Container<'_>], path: &str, around_us: bool) {
        let next = AtomicUsize::new(0);
        thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    while let Some(container) = containers.get(next.fetch_add(1, Ordering::Relaxed)) {
                        let path = format!("/containers/{}/{path}", container.id);
                        let reply = if around_us {
                            self.host.try_raw_api("POST", &path, None)
                        } else {
                            self.host.try_api("POST", &path, None)
                        };
                        let reply = reply.expect("an answer");
                        assert_eq!(reply.status, 204, "{path}: {:?}", String::from_utf8_lossy(&reply.body));
                    }
                });
            }
        });
    }

    fn remove(&self, containers: &[Container<'_>]) {
        let args: Vec<&str> = ["rm", "-f"].into_iter().chain(containers.iter().map(|one| one.id.as_str())).collect();
        self.host.docker_run(&args).run().ok();
    }
}

/// A machine beside the host that serves, and its address.
fn neighbour(lab: &Lab) -> (Servers, String) {
    let (h1, space) = (lab.host(1), lab.namespace("lan"));
    h1.sh(&format!("ip link add lan type veth peer name eth0 netns {}-lan", lab.name()));
    h1.sh("ip address add 10.99.0.1/30 dev lan; ip link set lan up");
    let inside =
        |line: &str| Run::new("nsenter").arg(format!("--net={}", space.path())).args(["sh", "-c", line]).run().ok();
    inside("ip address add 10.99.0.2/30 dev eth0; ip link set eth0 up; ip route add default via 10.99.0.1");
    (Servers::start(&space, &[PORT]), "10.99.0.2".to_owned())
}

/// Starts containers in every way there is; answers what they saw, by way.
fn watch(lab: &Lab) -> BTreeMap<&'static str, Seen> {
    let h1 = lab.host(1);
    let each = counts(20, 200);
    let peer = h1.run("peer", "--restart=always -e CALICO_IP=auto -e CALICO_PROFILE=web");
    let servers = peer.serve(&[PORT]);
    let mut watch = Watch { host: h1, peer: peer.ip().to_string(), read: BTreeMap::new(), seen: BTreeMap::new() };

    let stay = watch.create("stay", each, "stay", &json!({}));
    watch.call(&stay, "start", false);
    watch.read("start", &stay, 1);
    // What the program can see it does see, once the network is there for certain.
    for container in &stay {
        let said = container.exec(&["/init", &watch.peer, &PORT.to_string(), "exit"]).fails_with(1);
        let all = format!("address={} route=true peer=true micros=", container.ip());
        assert!(said.starts_with(&all), "{said}");
    }
    watch.call(&stay, "restart?t=1", false);
    watch.read("restart", &stay, 1);
    lab.assert_consistent();
    watch.call(&stay, "stop?t=1", true);
    watch.call(&stay, "start", true);
    watch.read("start at dockerd itself", &stay, 1);
    lab.assert_consistent();
    watch.remove(&stay);

    let crash = watch.create("crash", each / 4, "exit", &json!({"Name": "on-failure", "MaximumRetryCount": 4}));
    // The first of the five is a start by hand.
    watch.call(&crash, "start", false);
    watch.read("restart policy, and the start before", &crash, 5);
    watch.remove(&crash);
    drop(servers);
    h1.docker("rm -f peer").ok();

    // dockerd starts its containers in whatever order, so the peer is none of them but a machine on another of the host's networks.
    let (servers, address) = neighbour(lab);
    watch.peer = address;
    let rounds = counts(2, 10);
    let always = watch.create("always", each / rounds, "stay", &json!({"Name": "always"}));
    watch.call(&always, "start", false);
    watch.read("start", &always, 1);
    for round in 0..rounds {
        let end = if round % 2 == 0 { Host::stop_dockerd } else { Host::kill_dockerd };
        end(h1);
        h1.spawn_dockerd();
        h1.await_dockerd();
        watch.read("start of dockerd", &always, 1);
        h1.await_ready();
        lab.assert_consistent();
    }
    drop(servers);
    lab.remove_everything();
    watch.seen
}

#[test]
fn without_the_runtime_the_network_may_come_after_the_first_instruction_and_always_comes() {
    let lab = Lab::running(1);
    let seen = watch(&lab);
    let rows = seen.iter().map(|(way, seen)| {
        let counts = [seen.starts, seen.no_address, seen.no_route, seen.no_peer];
        std::iter::once((*way).to_owned()).chain(counts.map(|count| count.to_string())).collect()
    });
    tell(&["way, without the runtime", "starts", "no address", "no route", "the peer does not answer"], rows);
    let all: usize = seen.values().map(|one| one.starts).sum();
    assert!(all >= counts(100, 1000), "{all} starts in all ways: {seen:?}");
    let misses: usize = seen.values().map(Seen::misses).sum();
    println!("{misses} misses");
}
