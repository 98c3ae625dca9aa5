//! All that may happen to a container between its create and its destroy: by a call, and without one.
//!
//! Each scenario ends with the invariants, which hold it to the same address, MAC and endpoint id for its whole life.

use std::io::Write;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

use crate::lab::container::{Container, SOON, reach_each_other};
use crate::lab::host::{Host, IDLE};
use crate::lab::invariants::Pending;
use crate::lab::netns::Pinger;
use crate::lab::wait::{pause, wait_for, wait_until};
use crate::lab::{Lab, START};

const WEB: &str = "-e CALICO_IP=auto -e CALICO_PROFILE=web";

/// Takes all the memory that there is.
const GREEDY: &str = "x=xxxxxxxxxxxxxxxx; while :; do x=$x$x; done";

/// `docker run -d` through the node of a container of ours that does this.
#[track_caller]
fn run_doing<'h>(host: &'h Host, name: &str, options: &[&str], script: &str) -> Container<'h> {
    let mut args = vec!["run", "-d", "--name", name, "-e", "CALICO_IP=auto", "-e", "CALICO_PROFILE=web"];
    args.extend(options);
    args.extend(["busybox", "sh", "-c", script]);
    host.docker_run(&args).run().ok();
    let container = host.container(name);
    host.promised.lock().unwrap().insert(container.id.clone());
    container
}

fn flows_on(pinger: &Pinger) {
    let before = pinger.answered_so_far();
    wait_until("packets flow", SOON, || pinger.answered_so_far() > before + 20);
}

/// Scenarios that are played twice: where dockerd knows our runtime, and where the node wires what runs.
macro_rules! both_ways {
    ($($scenario:ident)*) => {
        mod with_the_runtime {
            $(#[test] fn $scenario() { super::$scenario(&crate::lab::Lab::running(1)) })*
        }
        mod without_the_runtime {
            $(#[test] fn $scenario() { super::$scenario(&crate::lab::Lab::running_without_runtime(1)) })*
        }
    };
}

both_ways! {
    what_is_no_death_loses_no_packet
    who_is_killed_by_whatever_way_is_wired_again_by_its_next_start
    whatever_end_dockerd_comes_to_containers_are_the_same_after_it
    events_that_are_lost_are_made_up_for
    after_a_loss_of_power_whom_dockerd_starts_is_wired_and_the_others_keep_their_addresses
    what_is_taken_away_by_hand_is_put_back
    a_client_that_goes_away_leaves_its_container_whole_or_none
}

#[track_caller]
fn lost_nothing(pinger: Pinger) {
    let pinged = pinger.stop();
    assert!(pinged.sent > 20 && pinged.lost.is_empty(), "{pinged:?}");
}

fn what_is_no_death_loses_no_packet(lab: &Lab) {
    let h1 = lab.host(1);
    let bob = h1.run("bob", WEB);
    let script = "trap 'echo again' HUP; trap 'exit 0' TERM; while :; do sleep 3600 & wait $!; done";
    let ann = run_doing(h1, "ann", &[], script);
    lab.assert_consistent();
    let (pid, record) = (ann.pid(), ann.record());
    let pinger = Pinger::start(&bob.space(), ann.ip(), true);
    h1.docker("kill -s HUP ann").ok();
    wait_until("she has heard it", SOON, || h1.docker("logs ann").out() == "again");
    for line in [
        "pause ann",
        "unpause ann",
        "rename ann anna",
        "exec anna true",
        "exec -d anna sleep 1000",
        "update --memory=64m --memory-swap=64m anna",
        "update --restart=always anna",
        "commit anna made",
        "commit --pause=false anna made",
        "top anna",
        "cp anna:/etc/hosts -",
        "start anna",
        "rename anna ann",
    ] {
        h1.docker(line).ok();
    }
    assert_eq!(ann.exec(&["sh", "-c", "kill -9 $$"]).code, Some(137));
    h1.docker("network disconnect -f none ann").ok();
    flows_on(&pinger);
    lost_nothing(pinger);
    assert_eq!((ann.pid(), ann.record()), (pid, record));
    lab.assert_consistent();
    // dockerd's own word on its networks does not take ours away either.
    h1.raw_docker("network disconnect -f none ann").ok();
    reach_each_other(&[&ann, &bob]);
    lab.assert_consistent();
    h1.raw_docker("network connect none ann").ok();
    h1.docker("restart -t 0 ann").ok();
    assert!(bob.reaches(ann.ip()), "not there when docker restart returned");
    lab.assert_consistent();
    lab.remove_everything();
}

#[test]
fn a_container_that_runs_out_of_memory_is_dark_until_its_next_start() {
    let lab = Lab::running(1);
    let h1 = lab.host(1);
    let bob = h1.run("bob", WEB);
    let memory = ["--memory=6m", "--memory-swap=6m"];
    // Whose child was killed has not died, whatever the event is called.
    let ann = run_doing(h1, "ann", &memory, IDLE);
    let pid = ann.pid();
    assert_eq!(ann.exec(&["sh", "-c", GREEDY]).code, Some(137));
    assert_eq!(ann.pid(), pid);
    assert!(bob.reaches(ann.ip()));
    lab.assert_consistent();

    let eve = run_doing(h1, "eve", &[&memory[..], &["--restart=on-failure:2"]].concat(), GREEDY);
    for _ in 0..2 {
        wait_until("she has run out of memory three times", START, || {
            let seen = eve.raw_inspect();
            // What dies as quickly as this, dockerd does not always call out of memory.
            seen["RestartCount"] == 2 && seen["State"]["Status"] == "exited" && seen["State"]["ExitCode"] == 137
        });
        lab.assert_consistent();
        assert_eq!(eve.record()["state"], "inactive");
        h1.docker("start eve").ok();
    }
    lab.remove_everything();
}

fn who_is_killed_by_whatever_way_is_wired_again_by_its_next_start(lab: &Lab) {
    let h1 = lab.host(1);
    let bob = h1.run("bob", WEB);
    let ann = h1.run("ann", WEB);
    let shim_of = |pid: i32| {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let parent = status.lines().find_map(|line| line.strip_prefix("PPid:")).unwrap();
        let parent = Pid::from_raw(parent.trim().parse().unwrap());
        assert!(h1.shims().contains(&parent), "the parent of a container is its shim");
        parent
    };
    let ways: [(&str, &dyn Fn()); 4] = [
        ("its process is killed", &|| kill(Pid::from_raw(ann.pid()), Signal::SIGKILL).unwrap()),
        ("its shim is killed", &|| kill(shim_of(ann.pid()), Signal::SIGKILL).unwrap()),
        ("docker kill", &|| drop(h1.docker("kill ann").ok())),
        ("a signal that ends it", &|| drop(h1.docker("kill -s TERM ann").ok())),
    ];
    for (what, end) in ways {
        end();
        wait_until(&format!("dockerd knows that {what}"), START, || ann.pid() == 0);
        lab.assert_consistent();
        h1.docker("start ann").ok();
        assert!(bob.reaches(ann.ip()), "not there when docker start returned: {what}");
        lab.assert_consistent();
    }
    lab.remove_everything();
}

#[test]
fn whatever_removes_a_container_frees_its_address_and_its_name_at_once() {
    let lab = Lab::running(1);
    let h1 = lab.host(1);
    let free = |what: &str| {
        let run = h1.try_run("next", "--rm -e CALICO_IP=192.168.1.1 -e CALICO_PROFILE=web");
        assert!(run.succeeded(), "after {what}: {run}");
        h1.docker("rm -f next").ok();
    };
    let run = |options: &str| {
        h1.try_run("ann", &format!("{options} -e CALICO_IP=192.168.1.1 -e CALICO_PROFILE=web")).ok();
    };
    let mut endpoints = Vec::new();
    for _ in 0..5 {
        run("");
        endpoints.push(h1.container("ann").endpoint_id());
        h1.docker("rm -f ann").ok();
    }
    endpoints.sort_unstable();
    endpoints.dedup();
    assert_eq!(endpoints.len(), 5, "another container is another endpoint, also under the same name");
    free("rm -f");

    run("");
    let refused = h1.docker("rm ann").fails_with(1);
    assert!(refused.contains("running"), "{refused}");
    assert_eq!(h1.create("thief", &["CALICO_IP=192.168.1.1"]).status, 409, "freed while she runs");
    assert!(h1.space.pings(h1.container("ann").ip()));
    h1.docker("stop -t 0 ann").ok();
    h1.docker("rm -v ann").ok();
    free("rm of a stopped one");

    for prune in ["container prune -f", "system prune -f"] {
        run("");
        h1.run("bob", WEB);
        h1.docker("stop -t 0 ann").ok();
        h1.docker(prune).ok();
        assert!(!h1.has_container("ann") && h1.container("bob").pid() != 0);
        free(prune);
        h1.docker("rm -f bob").ok();
    }
    // dockerd removes it by itself, after the answer: the address follows.
    for end in ["stop -t 0 ann", "kill ann", "exec ann kill 1"] {
        run("--rm");
        h1.docker(end);
        wait_until(&format!("she is removed after {end}"), SOON, || !h1.has_container("ann"));
        lab.assert_consistent();
        free(end);
    }
    run("--rm");
    h1.raw_docker("rm -f ann").ok();
    lab.assert_consistent();
    free("rm at dockerd itself");
    // A create that dockerd refuses holds nothing.
    let body = json!({"Image": "no-such-image", "Env": ["CALICO_IP=192.168.1.1"]});
    assert_eq!(h1.api("POST", "/containers/create?name=ann", Some(&body)).status, 404);
    free("a create that failed");
    lab.remove_everything();
}

#[test]
fn a_prune_waits_for_no_more_than_what_it_deletes_and_not_for_ever() {
    let lab = Lab::running(1);
    let h1 = lab.host(1);
    let names: Vec<String> = (0..20).map(|number| format!("box{number}")).collect();
    for name in &names {
        assert_eq!(h1.create(name, &["CALICO_IP=auto"]).status, 201);
    }
    // Each of them would wait for etcd as long as the start of one does.
    lab.signal_etcd(Signal::SIGSTOP);
    let pruned = h1.docker("container prune -f").ok();
    lab.signal_etcd(Signal::SIGCONT);
    assert_eq!(pruned.lines().filter(|line| line.len() == 64).count(), names.len(), "{pruned}");
    let claims = || h1.etcd().keys("/calico/v1/ipam/v4/assignment/");
    wait_until("their addresses are free", Duration::from_secs(30), || claims().is_empty());
    lab.assert_consistent();
}

#[test]
fn a_container_whose_name_looks_like_an_id_is_known_by_it() {
    let lab = Lab::running_without_runtime(1);
    let h1 = lab.host(1);
    let name = "a".repeat(64);
    assert_eq!(h1.create(&name, &["CALICO_IP=192.168.1.1", "CALICO_PROFILE=web"]).status, 201);
    assert_eq!(h1.api("POST", &format!("/containers/{name}/start"), None).status, 204);
    assert!(h1.space.pings("192.168.1.1".parse().unwrap()), "the start was answered before its network stood");
    let joined = h1.api("POST", "/networks/bridge/connect", Some(&json!({"Container": name})));
    assert_eq!(joined.status, 403);
    assert_eq!(h1.api("DELETE", &format!("/containers/{name}?force=1"), None).status, 204);
    assert_eq!(h1.etcd().keys("/calico/v1/ipam/v4/assignment/"), [""; 0]);
    lab.remove_everything();
}

#[test]
fn a_wish_is_read_from_the_create_alone_and_never_from_an_image_or_around_the_node() {
    let lab = Lab::bridged();
    lab.start_nodes();
    let h1 = lab.host(1);
    let ann = h1.run("ann", "-e CALICO_IP=192.168.1.1 -e CALICO_PROFILE=web");
    // The image has her wish in its environment, and nothing else of us.
    h1.docker("commit ann made").ok();
    let image = h1.raw_api("GET", "/images/made/json").json();
    let env = image["Config"]["Env"].as_array().unwrap();
    assert!(env.contains(&json!("CALICO_IP=192.168.1.1")), "{image}");
    assert_eq!(image["Config"]["Cmd"], json!(["sh", "-c", IDLE]));
    assert_eq!(image["Config"]["Labels"].as_object().map_or(0, serde_json::Map::len), 0);

    h1.docker("run -d --name copy made").ok();
    h1.docker("run -d --name lonely --net=none made").ok();
    h1.raw_docker(&format!("run -d --name around {WEB} busybox sleep 1000")).ok();
    h1.raw_docker(&format!("create --name dark --net=none {WEB} busybox sleep 1000")).ok();
    h1.docker("start dark").ok();
    h1.docker("restart -t 0 around").ok();
    for (name, network) in [("copy", "bridge"), ("lonely", "none"), ("around", "bridge"), ("dark", "none")] {
        let container = h1.container(name);
        assert!(container.try_record().is_none(), "{name}");
        assert_eq!(container.inspect(), container.raw_inspect(), "{name}");
        let networks = container.raw_inspect()["NetworkSettings"]["Networks"].clone();
        assert_eq!(networks.as_object().unwrap().keys().collect::<Vec<_>>(), [network], "{name}");
    }
    lab.assert_consistent();
    // Who asks has it, of the same image too.
    let ran = h1.docker_run(&["run", "-d", "--name", "own", "-e", "CALICO_IP=192.168.1.2", "made"]).run();
    ran.ok();
    assert_eq!(h1.container("own").ip().to_string(), "192.168.1.2");
    assert!(h1.space.pings(h1.container("own").ip()) && h1.space.pings(ann.ip()));
    lab.assert_consistent();
    lab.remove_everything();
}

#[test]
fn a_container_that_joins_the_network_of_ours_shares_it_and_has_none_of_its_own() {
    let lab = Lab::running(1);
    let h1 = lab.host(1);
    let (ann, bob) = (h1.run("ann", WEB), h1.run("bob", WEB));
    let said = h1.try_run("guest", "--network=container:ann -e CALICO_IP=auto").fails_with(125);
    assert!(said.contains("container:") && said.contains("CALICO_IP"), "{said}");
    let asked = json!({"NetworkMode": format!("container:{}", ann.id)});
    let reply = h1.try_create("guest", &["CALICO_IP=auto"], &asked).expect("an answer");
    assert_eq!(reply.status, 400, "{}", reply.message());
    let guest = h1.run("guest", "--network=container:ann");
    assert!(guest.try_record().is_none());
    guest.comes_to_reach(bob.ip());
    assert!(guest.exec(&["ip", "address"]).ok().contains(&ann.ip().to_string()));
    lab.assert_consistent();
    // It goes, and she stays; she goes and comes back, and it is left where it was, as Docker has it.
    let pinger = Pinger::start(&bob.space(), ann.ip(), true);
    h1.docker("restart -t 0 guest").ok();
    guest.comes_to_reach(bob.ip());
    h1.docker("rm -f guest").ok();
    flows_on(&pinger);
    lost_nothing(pinger);
    let guest = h1.run("guest", "--network=container:ann");
    h1.docker("restart -t 0 ann").ok();
    reach_each_other(&[&ann, &bob]);
    guest.never_reaches(bob.ip());
    lab.assert_consistent();
    h1.docker("restart -t 0 guest").ok();
    guest.comes_to_reach(bob.ip());
    lab.assert_consistent();
    lab.remove_everything();
}

#[test]
fn a_start_with_a_host_config_does_not_lead_around_us() {
    let lab = Lab::bridged();
    lab.start_nodes();
    let h1 = lab.host(1);
    let (ann, bob) = (h1.run("ann", WEB), h1.run("bob", WEB));
    for version in ["/v1.12", "/v1.20", "/v1.23"] {
        for (member, value) in [
            ("NetworkMode", json!("bridge")),
            ("NetworkMode", json!("host")),
            ("networkmode", json!("bridge")),
            ("Runtime", json!("runc")),
            ("Memory", json!(33_554_432)),
        ] {
            h1.docker("stop -t 0 ann").ok();
            let body = json!({(member): value});
            let reply = h1.api("POST", &format!("{version}/containers/ann/start"), Some(&body));
            if reply.status == 204 {
                assert!(bob.reaches(ann.ip()), "{version} {body}");
            } else {
                assert_eq!(reply.status, 400, "{version} {body}: {:?}", String::from_utf8_lossy(&reply.body));
                assert_eq!(ann.pid(), 0);
                assert_eq!(h1.api("POST", &format!("{version}/containers/ann/start"), None).status, 204);
            }
            assert_eq!(ann.raw_inspect()["HostConfig"]["NetworkMode"], "none", "{version} {body}");
            lab.assert_consistent();
        }
    }
    lab.remove_everything();
}

fn whatever_end_dockerd_comes_to_containers_are_the_same_after_it(lab: &Lab) {
    let h1 = lab.host(1);
    let ann = h1.run("ann", &format!("--restart=always {WEB}"));
    let bob = h1.run("bob", &format!("--restart=always {WEB}"));
    let plain = h1.run("plain", WEB);
    let gone = h1.run("gone", &format!("--rm {WEB}"));
    lab.assert_consistent();
    for end in [Host::stop_dockerd, Host::kill_dockerd] {
        end(h1);
        h1.spawn_dockerd();
        h1.await_dockerd();
        wait_until("dockerd has started whom it should", START, || ann.pid() != 0 && bob.pid() != 0);
        h1.await_ready();
        assert_eq!(plain.pid(), 0);
        lab.assert_consistent();
        assert_eq!(plain.record()["state"], "inactive");
        reach_each_other(&[&ann, &bob]);
        assert!(!h1.has_container(&gone.id), "who is to be removed at its end is removed");
        h1.docker("start plain").ok();
        assert!(ann.reaches(plain.ip()), "not there when docker start returned");
        lab.assert_consistent();
    }
    lab.remove_everything();
}

#[test]
fn with_live_restore_no_end_of_dockerd_or_of_the_node_loses_a_packet() {
    let lab = Lab::running(1);
    let h1 = lab.host(1);
    h1.configure_dockerd("live-restore", json!(true));
    h1.signal_dockerd(Signal::SIGHUP);
    wait_until("dockerd keeps containers", SOON, || h1.raw_api("GET", "/info").json()["LiveRestoreEnabled"] == true);
    let (ann, bob) = (h1.run("ann", WEB), h1.run("bob", WEB));
    lab.assert_consistent();
    let (pids, address) = ((ann.pid(), bob.pid()), ann.ip());
    let pinger = Pinger::start(&bob.space(), address, true);
    for (round, end) in [Host::stop_dockerd, Host::kill_dockerd, Host::kill_dockerd].into_iter().enumerate() {
        end(h1);
        wait_until("the node has noticed", SOON, || !h1.is_ready());
        // A node that begins without dockerd knows nothing of any container, and takes nothing away.
        if round == 2 {
            h1.kill_node();
            h1.spawn_node(&[]);
            wait_until("the new node answers", START, || {
                h1.try_api("GET", "/version", None).is_some_and(|reply| reply.status == 502)
            });
        }
        flows_on(&pinger);
        h1.spawn_dockerd();
        h1.await_dockerd();
        h1.await_ready();
        assert_eq!((ann.pid(), bob.pid()), pids);
        flows_on(&pinger);
        lab.assert_consistent();
    }
    lost_nothing(pinger);
    // Who dies while there is no dockerd is dark once there is one again.
    h1.kill_dockerd();
    kill(Pid::from_raw(pids.0), Signal::SIGKILL).unwrap();
    h1.spawn_dockerd();
    h1.await_dockerd();
    wait_until("dockerd has noticed", START, || ann.pid() == 0);
    lab.assert_consistent();
    h1.docker("start ann").ok();
    assert!(bob.reaches(address));
    lab.remove_everything();
}

/// Calls that nobody on the host hears of but dockerd, more than dockerd remembers.
fn unheard(host: &Host, lines: &[&str]) {
    for line in lines {
        host.raw_docker(line).ok();
    }
    for (from, to) in [("cat", "tom"), ("tom", "cat")].into_iter().cycle().take(300) {
        let path = format!("/containers/{from}/rename?name={to}");
        assert_eq!(host.try_raw_api("POST", &path, None).expect("an answer").status, 204);
    }
}

fn events_that_are_lost_are_made_up_for(lab: &Lab) {
    let h1 = lab.host(1);
    h1.configure_dockerd("live-restore", json!(true));
    h1.signal_dockerd(Signal::SIGHUP);
    wait_until("dockerd keeps containers", SOON, || h1.raw_api("GET", "/info").json()["LiveRestoreEnabled"] == true);
    let ann = h1.run("ann", WEB);
    let bob = h1.run("bob", WEB);
    h1.run("cat", WEB);
    let idle = h1.run("idle", WEB);
    let ends = ["rm -f gone", "stop -t 0 bob"];
    let all = ["rm -f gone", "stop -t 0 bob", "restart -t 0 ann", "start idle"];
    // A node that listens to nobody; one that listens to nobody while dockerd goes; none at all.
    for (round, lines) in [&ends[..], &ends[..], &all[..]].into_iter().enumerate() {
        h1.run("gone", WEB);
        h1.docker("start bob").ok();
        h1.docker("stop -t 0 idle").ok();
        lab.assert_consistent();
        if round < 2 {
            h1.signal_node(Signal::SIGSTOP);
        } else {
            h1.kill_node();
        }
        unheard(h1, lines);
        if round == 1 {
            h1.kill_dockerd();
            h1.spawn_dockerd();
            h1.await_dockerd();
        }
        if round < 2 {
            h1.signal_node(Signal::SIGCONT);
        } else {
            h1.spawn_node(&[]);
        }
        lab.assert_consistent();
        h1.await_ready();
        assert_eq!(bob.record()["state"], "inactive");
        assert_eq!(h1.container("cat").id, h1.docker("inspect -f {{.Id}} cat").ok());
        lab.assert_consistent();
    }
    reach_each_other(&[&ann, &idle]);
    lab.remove_everything();
}

fn after_a_loss_of_power_whom_dockerd_starts_is_wired_and_the_others_keep_their_addresses(lab: &Lab) {
    let h1 = lab.host(1);
    let ann = h1.run("ann", &format!("--restart=always {WEB}"));
    let bob = h1.run("bob", &format!("--restart=unless-stopped {WEB}"));
    let plain = h1.run("plain", WEB);
    let stopped = h1.run("stopped", WEB);
    h1.docker("stop -t 0 stopped").ok();
    h1.run("gone", &format!("--rm {WEB}"));
    lab.assert_consistent();
    for node_first in [true, false] {
        h1.lose_power();
        if node_first {
            h1.spawn_node(&[]);
            wait_until("the node answers", START, || {
                h1.try_api("GET", "/version", None).is_some_and(|reply| reply.status == 502)
            });
            h1.spawn_dockerd();
        } else {
            h1.spawn_dockerd();
            h1.await_dockerd();
            h1.spawn_node(&[]);
        }
        h1.await_dockerd();
        h1.await_ready();
        wait_until("dockerd has started whom it should", START, || ann.pid() != 0 && bob.pid() != 0);
        lab.assert_consistent();
        reach_each_other(&[&ann, &bob]);
        assert!(!h1.has_container("gone"));
        for container in [&plain, &stopped] {
            assert_eq!((container.pid(), &container.record()["state"]), (0, &json!("inactive")), "{}", container.name);
        }
        assert_eq!(h1.create("thief", &[&format!("CALICO_IP={}", plain.ip())]).status, 409);
        h1.docker("start plain").ok();
        assert!(ann.reaches(plain.ip()), "not there when docker start returned");
        lab.assert_consistent();
    }
    lab.remove_everything();
}

fn what_is_taken_away_by_hand_is_put_back(lab: &Lab) {
    let h1 = lab.host(1);
    let (ann, bob) = (h1.run("ann", WEB), h1.run("bob", WEB));
    // Routes are compared on a clock of their own, which goes a minute at a time.
    h1.etcd().put("/calico/v1/config/IptablesRefreshInterval", "2");
    let inside = format!("nsenter --net={} ip", ann.space().path());
    let cuts = [
        format!("{inside} address flush dev eth1"),
        format!("ip link del {}", ann.link()),
        format!("{inside} link del eth1"),
        format!("ip route del {}", ann.ip()),
        format!("ip link set {} down", ann.link()),
        format!("{inside} link set eth1 down"),
    ];
    // By itself, within the time of the periodic comparison.
    for cut in &cuts[1..] {
        h1.sh(cut);
        wait_until(&format!("the network is there again after {cut:?}"), Duration::from_secs(15), || {
            bob.reaches(ann.ip()) && ann.reaches(bob.ip())
        });
        lab.assert_consistent();
    }
    // Who starts what runs already has it repaired when the answer comes.
    for cut in &cuts[..3] {
        h1.sh(cut);
        h1.docker("start ann").ok();
        assert!(bob.reaches(ann.ip()), "not there when docker start returned after {cut:?}");
    }
    // Around the node it is started and stopped as through it.
    for line in ["stop -t 0 ann", "start ann", "restart -t 0 ann", "kill ann", "start ann"] {
        h1.raw_docker(line).ok();
        lab.assert_consistent();
    }
    reach_each_other(&[&ann, &bob]);
    lab.remove_everything();
}

/// What is recorded of containers, here and of their addresses.
const OF_CONTAINERS: [&str; 2] = ["/calico/v1/host/h1/workload/", "/calico/v1/ipam/v4/assignment/"];

#[test]
fn a_datastore_that_is_put_back_to_an_older_state_comes_to_agree_with_what_is_there() {
    let lab = Lab::running(1);
    let h1 = lab.host(1);
    let ann = h1.run("ann", WEB);
    for node_runs in [true, false] {
        h1.run("gone", WEB);
        h1.docker("stop -t 0 ann").ok();
        lab.assert_consistent();
        let old: Vec<_> = OF_CONTAINERS.iter().flat_map(|prefix| h1.etcd().entries(prefix)).collect();
        h1.docker("rm -f gone").ok();
        h1.docker("start ann").ok();
        let new = h1.run(&format!("new{node_runs}"), WEB);
        lab.assert_consistent();
        if !node_runs {
            h1.stop_node();
        }
        for prefix in OF_CONTAINERS {
            h1.etcd().ctl(&["del", "--prefix", prefix]).run().ok();
        }
        for (key, entry) in old {
            h1.etcd().put(&key, &entry.value);
        }
        if !node_runs {
            h1.start_node();
        }
        lab.assert_consistent();
        reach_each_other(&[&ann, &new]);
    }
    lab.remove_everything();
}

#[test]
fn a_network_of_dockers_beside_ours_does_not_take_the_way_out() {
    let lab = Lab::bridged();
    lab.start_nodes();
    let h1 = lab.host(1);
    let (ann, bob) = (h1.run("ann", WEB), h1.run("bob", WEB));
    // At dockerd itself: through the node it is refused.
    assert_eq!(h1.docker("network connect bridge ann").code, Some(1));
    h1.raw_docker("network disconnect none ann").ok();
    // It finds the way out taken, and leaves an interface without one; the next start has ours alone again.
    let said = h1.raw_docker("network connect bridge ann").fails_with(1);
    assert!(said.contains("gateway"), "{said}");
    reach_each_other(&[&ann, &bob]);
    h1.docker("restart -t 0 ann").ok();
    let routes = h1.raw_docker("exec ann ip route").ok();
    let ways_out: Vec<&str> = routes.lines().filter(|route| route.starts_with("default ")).collect();
    assert_eq!(ways_out.len(), 1, "{routes}");
    reach_each_other(&[&ann, &bob]);
    lab.assert_consistent();
    lab.remove_everything();
}

fn a_client_that_goes_away_leaves_its_container_whole_or_none(lab: &Lab) {
    let h1 = lab.host(1);
    let call = |path: &str, body: &Value| {
        let body = body.to_string();
        let length = body.len();
        format!(
            "POST {path} HTTP/1.1\r\nHost: docker\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\r\n{body}"
        )
    };
    let body = json!({"Image": "busybox", "Cmd": ["sh", "-c", IDLE], "Env": ["CALICO_IP=auto", "CALICO_PROFILE=web"]});
    for round in 0..40u64 {
        let request = call(&format!("/containers/create?name=lost{round}"), &body);
        let mut client = UnixStream::connect(h1.proxy_socket()).unwrap();
        // Every fourth goes before it has said all.
        let said = if round % 4 == 0 { request.len() - 5 } else { request.len() };
        client.write_all(&request.as_bytes()[..said]).unwrap();
        // Not a wait for anything: the moment at which it goes is what varies.
        pause(Duration::from_micros(round * 400));
        drop(client);
    }
    // Whole: it has its record, and starts with its network. Thirty have said all.
    let mut names = Vec::new();
    wait_until("every create has come to its end", SOON, || {
        names = h1.container_ids();
        names.len() >= 30 && lab.violations(Pending::Wrong).is_empty()
    });
    for id in &names {
        let container = h1.container(id);
        assert!(container.try_record().is_some(), "{} has no record", container.raw_inspect()["Name"]);
    }
    lab.assert_consistent();

    // The same of starts: it runs and is wired, or does not run.
    for (round, id) in (0..).zip(names.iter().take(12)) {
        let mut client = UnixStream::connect(h1.proxy_socket()).unwrap();
        client.write_all(call(&format!("/containers/{id}/start"), &json!({})).as_bytes()).unwrap();
        pause(Duration::from_millis(round * 25));
        drop(client);
    }
    let last = h1.container(&names[11]);
    wait_for("the last of them runs", SOON, || (last.pid() != 0).then_some(()));
    lab.assert_consistent();
    lab.remove_everything();
}
