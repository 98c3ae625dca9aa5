//! A container's life: what it keeps until it is removed, and what goes with each stop.

use std::io::Write as _;
use std::os::unix::net::UnixStream;
use std::thread;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::lab::Lab;
use crate::lab::between::BetweenEtcd;
use crate::lab::command::Run;
use crate::lab::container::{Container, SOON};
use crate::lab::host::IDLE;
use crate::lab::wait::{wait_for, wait_until};

/// What does not change in a whole life.
fn identity(container: &Container<'_>) -> (String, Value, Value, Value) {
    let (key, record) = container.try_record().expect("a record");
    (key, record["mac"].clone(), record["ipv4_nets"].clone(), record["name"].clone())
}

#[test]
fn a_container_keeps_its_address_mac_and_endpoint_through_every_stop_and_start() {
    let lab = Lab::running(1);
    let h1 = lab.host(1);
    let bob = h1.run("bob", "-e CALICO_IP=auto -e CALICO_PROFILE=web");
    let ann = h1.run("ann", "-e CALICO_IP=192.168.1.1 -e CALICO_PROFILE=web");
    let (address, before) = (ann.ip(), identity(&ann));
    assert!(bob.reaches(address));

    for (down, up) in [("stop", "start"), ("kill", "start"), ("stop -t 0", "restart")] {
        h1.docker(&format!("{down} ann")).ok();
        wait_until("ann is dark", SOON, || ann.record()["state"] == "inactive" && h1.cali_links().len() == 1);
        assert!(!h1.has_route(&address.to_string()));
        bob.never_reaches(address);
        // The address stays hers.
        let taken = h1.create("thief", &["CALICO_IP=192.168.1.1"]);
        assert_eq!(taken.status, 409);
        assert!(taken.message().contains("ann"), "{}", taken.message());
        lab.assert_consistent();

        h1.docker(&format!("{up} ann")).ok();
        assert!(bob.reaches(address) && ann.reaches(bob.ip()), "not there when docker {up} returned");
        assert_eq!(identity(&ann), before);
        lab.assert_consistent();
    }
    // Nobody else has changed anything.
    let log = h1.node_log_text();
    let drift: Vec<&str> = log.lines().filter(|line| line.contains("drift:")).collect();
    assert!(drift.is_empty(), "{drift:#?}");

    // Running all the while: restart, and a start that is not needed.
    for line in ["restart ann", "restart -t 0 ann", "start ann"] {
        h1.docker(line).ok();
        assert!(bob.reaches(address), "not there when docker {line} returned");
        assert_eq!(identity(&ann), before);
    }
    // Beside us, at dockerd itself.
    h1.raw_docker("restart ann").ok();
    bob.comes_to_reach(address);
    h1.raw_docker("stop ann").ok();
    h1.raw_docker("start ann").ok();
    bob.comes_to_reach(address);
    // A signal is no end, nor is a pause, nor a new name.
    for line in ["kill -s USR1 ann", "pause ann", "unpause ann", "rename ann anna"] {
        h1.docker(line).ok();
    }
    lab.assert_consistent();
    assert!(bob.reaches(address));
    assert_eq!(identity(&ann), before);
    h1.docker("rename anna ann").ok();
    lab.remove_everything();
}

#[test]
fn a_container_that_crashes_and_is_restarted_by_dockerd_is_the_same_again() {
    let lab = Lab::running(1);
    let h1 = lab.host(1);
    let bob = h1.run("bob", "-e CALICO_IP=auto -e CALICO_PROFILE=web");
    let ann = h1.run("ann", "--restart=always -e CALICO_IP=auto -e CALICO_PROFILE=web");
    let (address, before) = (ann.ip(), identity(&ann));
    assert!(bob.reaches(address));
    for _ in 0..3 {
        let crashed = ann.pid();
        kill(Pid::from_raw(crashed), Signal::SIGKILL).unwrap();
        wait_for("ann has a new process", SOON, || Some(ann.pid()).filter(|pid| *pid != 0 && *pid != crashed));
        bob.comes_to_reach(address);
        assert_eq!(identity(&ann), before);
        lab.assert_consistent();
    }
    // The whole of dockerd crashes; the next one starts her again.
    h1.kill_dockerd();
    let refused = h1.api("GET", "/version", None);
    assert_eq!(refused.status, 502, "{}", refused.message());
    h1.spawn_dockerd();
    h1.await_dockerd();
    wait_until("ann runs", SOON, || ann.pid() != 0);
    h1.docker("start bob").ok();
    bob.comes_to_reach(address);
    assert_eq!(identity(&ann), before);
    lab.assert_consistent();
    lab.remove_everything();
}

#[test]
fn short_lives_leave_nothing_behind() {
    let lab = Lab::running(1);
    let h1 = lab.host(1);
    for code in [0, 7] {
        let line = format!("exit {code}");
        let run = ["run", "--rm", "-e", "CALICO_IP=auto", "-e", "CALICO_PROFILE=web", "busybox", "sh", "-c", &line];
        for _ in 0..5 {
            assert_eq!(h1.docker_run(&run).run().code, Some(code));
        }
    }
    // A process that cannot be started at all.
    let ran = h1.docker("run --rm -e CALICO_IP=192.168.1.1 busybox /no/such/program");
    ran.fails_with(127);
    lab.assert_consistent();
    assert_eq!(h1.etcd().keys("/calico/v1/ipam/v4/assignment/"), [""; 0]);
    assert!(h1.container_ids().is_empty());
}

#[test]
fn a_container_that_goes_with_its_stop_has_no_interface_when_the_stop_is_over() {
    let lab = Lab::running(1);
    let h1 = lab.host(1);
    for stop in ["stop?t=0", "kill"].repeat(3) {
        h1.run("ann", "--rm -e CALICO_IP=auto -e CALICO_PROFILE=web");
        assert_eq!(h1.api("POST", &format!("/containers/ann/{stop}"), None).status, 204);
        assert!(h1.cali_links().is_empty(), "{stop}: {:?}", h1.cali_links());
        wait_until("her name is free", SOON, || !h1.has_container("ann"));
    }
    lab.assert_consistent();
    assert_eq!(h1.etcd().keys("/calico/v1/ipam/v4/assignment/"), [""; 0]);
}

/// Freeing once more what is free changes nothing, and etcd answers with the revision of what was written last by whomever: the
/// node waited for a watch of its own keys to tell it of that, and did so for ever in a datastore that was quiet from then on.
#[test]
fn a_container_that_is_removed_while_no_events_are_heard_is_cleared_away_whoever_wrote_to_etcd_last() {
    let lab = Lab::running(1);
    let h1 = lab.host(1);
    for _ in 0..5 {
        h1.run("ann", "--restart=always -e CALICO_IP=auto -e CALICO_PROFILE=web");
        h1.kill_dockerd();
        h1.spawn_dockerd();
        h1.await_dockerd();
        wait_until("ann runs", SOON, || h1.container("ann").pid() != 0);
        // Her addresses are free with the answer. That her interface goes is left to what is heard of dockerd, later.
        h1.docker("rm -f ann").ok();
        lab.etcd().put("/another/root", "its value");
        lab.assert_consistent();
    }
}

/// A record that could not be read was taken for none: the start succeeded, with a dead interface.
#[test]
fn a_container_whose_record_cannot_be_read_does_not_start_and_is_freed_all_the_same() {
    let lab = Lab::running_without_runtime(1);
    let h1 = lab.host(1);
    h1.run("ann", "-e CALICO_IP=192.168.1.1 -e CALICO_PROFILE=web");
    h1.docker("stop -t 0 ann").ok();
    let keys = h1.etcd().keys("/calico/v1/host/h1/workload/");
    assert_eq!(keys.len(), 1);
    h1.etcd().put(&keys[0], r#"{"state": "perhaps"}"#);
    wait_until("the node has seen it", SOON, || h1.calicoctl("status").out().contains("perhaps"));
    let said = h1.docker("start ann").fails_with(1);
    assert!(said.contains("read the record"), "{said}");
    assert_eq!(h1.container("ann").pid(), 0);

    // Started behind our back she runs, dark. What is tried again and again does not keep the node from ending.
    h1.raw_docker("start ann").ok();
    wait_until("the node says so", SOON, || {
        h1.node_log_text().contains("the container's network is not as it should be")
    });
    assert_ne!(h1.container("ann").pid(), 0);
    assert!(h1.cali_links().is_empty());
    let reports = || h1.etcd().entries("/calico/felix/v1/host/h1/workload/").into_values().collect::<Vec<_>>();
    wait_until("it is reported as an error", SOON, || {
        reports().iter().any(|report| report.json()["status"] == "error" && report.value.contains("perhaps"))
    });
    let shown = h1.calicoctl("container ann endpoint show").out();
    assert!(shown.contains("does not work") && shown.contains("perhaps"), "{shown}");
    h1.stop_node();
    h1.start_node();
    h1.docker("rm -f ann").ok();
    assert_eq!(h1.etcd().keys("/calico/v1/host/h1/workload/"), [""; 0]);
    assert_eq!(h1.etcd().keys("/calico/v1/ipam/v4/assignment/"), [""; 0]);
}

/// What was kept of the container on disk was overwritten with the nothing that could be read: with the bad record taken
/// away it never started again, and its address stayed taken when it was removed.
#[test]
fn a_container_whose_record_could_not_be_read_is_itself_again_once_the_record_is_taken_away() {
    let lab = Lab::running(1);
    let h1 = lab.host(1);
    let ann = h1.run("ann", "-e CALICO_IP=192.168.1.1 -e CALICO_PROFILE=web");
    let before = identity(&ann);
    h1.etcd().put(&before.0, r#"{"state": "perhaps"}"#);
    wait_until("the node has seen it", SOON, || h1.calicoctl("status").out().contains("perhaps"));
    // A look at her, which her end leads to.
    h1.raw_docker("kill ann").ok();
    wait_until("the node has looked", SOON, || h1.cali_links().is_empty());
    h1.docker("start ann").fails_with(1);
    h1.etcd().ctl(&["del", &before.0]).run().ok();
    wait_until("she is recorded again", SOON * 2, || ann.try_record().is_some());
    h1.docker("start ann").ok();
    assert_eq!(identity(&ann), before);
    lab.assert_consistent();
    lab.remove_everything();
}

#[test]
fn a_wiring_that_was_cut_short_is_completed() {
    let lab = Lab::running(1);
    let h1 = lab.host(1);
    let ann = h1.run("ann", "-e CALICO_IP=192.168.1.1 -e CALICO_PROFILE=web");
    let bob = h1.run("bob", "-e CALICO_IP=192.168.1.2 -e CALICO_PROFILE=web");
    // As a node leaves it that is killed between the pair and what belongs on it.
    h1.kill_node();
    Run::new("nsenter")
        .arg(format!("--net={}", ann.space().path()))
        .args(["ip", "address", "flush", "eth1"])
        .run()
        .ok();
    assert!(!bob.reaches(ann.ip()));
    h1.start_node();
    bob.comes_to_reach(ann.ip());
    ann.comes_to_reach(bob.ip());
    lab.assert_consistent();
    lab.remove_everything();
}

/// Text that was none darkened a container for good, and a line of ours came back each minute into a file of its own.
/// The client got its 500, and the container went on running in the dark.
#[test]
fn a_start_that_cannot_be_kept_on_the_hosts_disk_is_undone() {
    let lab = Lab::running_without_runtime(1);
    let h1 = lab.host(1);
    assert_eq!(h1.create("ann", &["CALICO_IP=auto", "CALICO_PROFILE=web"]).status, 201);
    let ann = h1.container("ann");
    let in_the_way = h1.state_dir().join("reservations").join(format!("{}.new", ann.id));
    std::fs::create_dir_all(&in_the_way).unwrap();
    let reply = h1.api("POST", "/containers/ann/start", None);
    assert!(reply.status == 500 && reply.message().contains("reservation"), "{} {}", reply.status, reply.message());
    assert_eq!(ann.raw_inspect()["State"]["Running"], false);
    std::fs::remove_dir(&in_the_way).unwrap();
    h1.docker("start ann").ok();
    lab.assert_consistent();
    lab.remove_everything();
}

#[test]
fn what_a_container_makes_of_its_hosts_file_is_its_own_business() {
    let lab = Lab::running(1);
    let h1 = lab.host(1);
    let ann = h1.run("ann", "-e CALICO_IP=192.168.1.1 -e CALICO_PROFILE=web");
    let bob = h1.run("bob", "-e CALICO_IP=192.168.1.2 -e CALICO_PROFILE=web");
    let link = ann.link();
    for hosts in ["127.0.0.1 localhost\\n", "\\377\\n"] {
        ann.exec(&["sh", "-c", &format!("printf '{hosts}' >/etc/hosts")]).ok();
        let written = ann.exec(&["od", "-c", "/etc/hosts"]).ok();
        // She runs, so dockerd does nothing, and the node looks at her.
        h1.docker("start ann").ok();
        assert_eq!(ann.exec(&["od", "-c", "/etc/hosts"]).ok(), written);
        assert!(bob.reaches(ann.ip()));
    }
    lab.assert_consistent();
    assert_eq!(ann.link(), link);
    lab.remove_everything();
}

/// Who asked and went away left an address that nobody could have, until the node was started anew.
#[test]
fn a_container_is_added_and_removed_though_nobody_waits_for_the_answer() {
    let lab = Lab::running(1);
    let h1 = lab.host(1);
    h1.raw_docker("run -d --name ann --network none busybox sleep 600").ok();
    let ann = h1.container("ann");
    // The node has begun when the connection is there no more.
    let ask = |path: &str, body: &str, has_begun: &dyn Fn() -> bool| {
        let mut control = UnixStream::connect(h1.run_dir().join("control.sock")).unwrap();
        let length = body.len();
        let request = format!("POST {path} HTTP/1.1\r\nHost: node\r\nContent-Length: {length}\r\n\r\n{body}");
        control.write_all(request.as_bytes()).unwrap();
        wait_until("the node has begun", SOON, has_begun);
    };
    let is_noted = || std::fs::read_dir(h1.state_dir().join("creating")).is_ok_and(|notes| notes.count() > 0);
    ask("/v1/containers/add", r#"{"container":"ann","ip":"192.168.1.1","interface":"eth1"}"#, &|| {
        is_noted() || ann.try_record().is_some()
    });
    wait_until("ann has her network", SOON, || ann.try_record().is_some_and(|(_, record)| record["state"] == "active"));
    lab.assert_consistent();
    let released = h1.state_dir().join("released").join(&ann.id);
    ask("/v1/containers/remove", r#"{"container":"ann"}"#, &|| released.exists());
    wait_until("ann is let go", SOON, || ann.try_record().is_none());
    lab.assert_consistent();
    lab.remove_everything();
}

/// What was still kept of it brought it back, if the node loaded its view just then.
#[test]
fn a_container_that_was_taken_out_stays_out_though_the_node_dies_right_after_that() {
    let lab = Lab::running(1);
    let h1 = lab.host(1);
    h1.raw_docker("run -d --name ann --network none busybox sleep 600").ok();
    h1.calicoctl("container add ann 192.168.1.1").ok();
    std::fs::write(h1.run_dir().join("fail-point"), "destroy: the addresses are free").unwrap();
    h1.calicoctl("container remove ann").fails_with(1);
    wait_until("the node has died", SOON, || h1.has_ended());
    h1.kill_node();
    h1.start_node();
    lab.assert_consistent();
    assert!(h1.container("ann").try_record().is_none());
    lab.remove_everything();
}

/// Its way out by Docker's network was gone with ours until it was started anew.
#[test]
fn a_container_of_dockers_that_was_added_has_its_own_way_out_again_when_it_is_removed() {
    let lab = Lab::bridged();
    let h1 = lab.host(1);
    h1.start_node();
    h1.raw_docker_run(&["run", "-d", "--name=ann", "busybox", "sh", "-c", IDLE]).run().ok();
    let ann = h1.container("ann");
    let routes = || {
        let told = Run::new("nsenter").arg(format!("--net={}", ann.space().path())).args(["ip", "route"]).run().ok();
        told.lines().map(|line| line.trim_end().to_owned()).collect::<Vec<_>>()
    };
    let before = routes();
    assert!(before.iter().any(|route| route.starts_with("default via 172.17.")), "{before:?}");
    h1.calicoctl("container add ann 192.168.1.1").ok();
    assert!(routes().iter().any(|route| route.starts_with("default via 172.25.")), "{:?}", routes());
    h1.calicoctl("container remove ann").ok();
    assert_eq!(routes(), before);
    lab.assert_consistent();
    lab.remove_everything();
}

/// It was said not to be added, and was given its network seconds later.
#[test]
fn a_container_of_which_it_is_said_that_it_could_not_be_added_is_not_added() {
    let lab = Lab::hosts(1);
    let h1 = lab.host(1);
    let between = BetweenEtcd::before(h1);
    h1.spawn_node(&["--etcd-endpoints", &between.endpoint]);
    h1.await_ready();
    h1.raw_docker_run(&["run", "-d", "--network=none", "--name=ann", "busybox", "sh", "-c", IDLE]).run().ok();
    let id = h1.container("ann").id.clone();
    between.break_off_after(&format!("/workload/docker/{id}/endpoint/"));
    let failed = h1.calicoctl("container add ann 192.168.1.1").fails_with(1);
    assert!(failed.contains("bind the claim"), "{failed}");
    assert!(h1.workload_keys().is_empty() && h1.claims().is_empty(), "{failed}");
    h1.calicoctl("container add ann 192.168.1.1").ok();
    assert!(h1.space.pings(h1.container("ann").ip()));
    lab.assert_consistent();
    lab.remove_everything();
}

#[test]
fn two_who_add_one_container_at_once_do_not_both_add_it() {
    let lab = Lab::running(1);
    let h1 = lab.host(1);
    h1.raw_docker("run -d --name ann --network none busybox sleep 600").ok();
    let added: Vec<bool> = thread::scope(|scope| {
        let adding = [1, 2, 3]
            .map(|last| scope.spawn(move || h1.calicoctl(&format!("container add ann 192.168.1.{last}")).succeeded()));
        adding.into_iter().map(|one| one.join().unwrap()).collect()
    });
    assert_eq!(added.iter().filter(|added| **added).count(), 1, "{added:?}");
    assert_eq!(h1.etcd().keys("/calico/v1/ipam/v4/assignment/").len(), 1);
    assert_eq!(h1.workload_keys().len(), 1);
    lab.assert_consistent();
    lab.remove_everything();
}
