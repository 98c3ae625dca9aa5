//! A dockerd that fails at some of what the node asks of it, or breaks off: the rest goes on.

use std::time::Duration;

use serde_json::{Value, json};

use crate::lab::Lab;
use crate::lab::between::Between;
use crate::lab::container::SOON;
use crate::lab::host::Host;
use crate::lab::wait::wait_until;

const WEB: &str = "-e CALICO_IP=auto -e CALICO_PROFILE=web";

/// How long until the next comparison has surely been made.
const COMPARED: Duration = Duration::from_secs(15);

/// What stands between the node of a host and its dockerd; the node is ready.
fn between(host: &Host) -> Between {
    let between = Between::before(host);
    host.spawn_node(&["--docker-host", &between.docker_host()]);
    host.await_ready();
    between
}

/// The node listened to dockerd for some milliseconds four times a second then, and dealt with nothing that it heard.
#[test]
fn while_dockerd_does_not_list_its_containers_what_happens_to_them_is_heeded_and_told_once() {
    let lab = Lab::hosts(1);
    let h1 = lab.host(1);
    let between = between(h1);
    let (ann, bob) = (h1.run("ann", WEB), h1.run("bob", WEB));
    let links = [ann.link(), bob.link()];
    between.answer("GET /containers/json?all=1", 500);
    wait_until("the node says that dockerd is not there for it", COMPARED, || !h1.is_ready());
    h1.raw_docker("stop -t 0 ann").ok();
    wait_until("the interface of who was stopped is gone", SOON, || !h1.cali_links().contains(&links[0]));
    h1.raw_docker("start ann").ok();
    ann.comes_to_reach(bob.ip());
    h1.raw_docker("rm -f bob").ok();
    wait_until("the interface of who is gone is gone", SOON, || !h1.cali_links().contains(&links[1]));
    wait_until("its address is free", SOON, || h1.workload_keys().len() == 1);
    let log = h1.node_log_text();
    let told = log.lines().filter(|line| line.contains("WARN") || line.contains("ERROR"));
    let told: Vec<&str> = told.filter(|line| line.contains("list containers")).collect();
    assert!(told.len() == 1 && told[0].contains("not today"), "{told:?}");
    between.pass();
    wait_until("the node is ready again", COMPARED, || h1.is_ready());
    lab.assert_consistent();
    lab.remove_everything();
}

/// That it had been refused was forgotten before dockerd was asked about it.
#[test]
fn a_start_that_was_refused_is_made_up_for_although_dockerd_does_not_tell_of_the_container_at_first() {
    let lab = Lab::running(1);
    let h1 = lab.host(1);
    let bob = h1.run("bob", &format!("--restart always {WEB}"));
    h1.kill_node();
    h1.raw_docker("kill bob").ok();
    h1.sh("iptables -F FORWARD");
    assert!(h1.raw_docker("start bob").err().contains("calico: wire container"));
    let between = Between::before(h1);
    between.answer(&format!("GET /containers/{}/json", bob.id), 500);
    h1.spawn_node(&["--docker-host", &between.docker_host()]);
    h1.await_ready();
    wait_until("the node has tried in vain", COMPARED, || {
        h1.node_log_text().contains("its start was refused, and it is not started yet")
    });
    between.pass();
    wait_until("bob runs", COMPARED * 2, || bob.raw_inspect()["State"]["Running"] == true);
    wait_until("bob is recorded", SOON, || bob.record()["state"] == "active");
    lab.assert_consistent();
    lab.remove_everything();
}

#[test]
fn a_create_that_was_cut_off_and_cannot_be_finished_holds_up_no_other() {
    let lab = Lab::hosts(1);
    let h1 = lab.host(1);
    let between = Between::before(h1);
    let start = || {
        h1.spawn_node(&["--docker-host", &between.docker_host()]);
        h1.await_ready();
    };
    let cut_off = |name: &str| {
        std::fs::write(h1.run_dir().join("fail-point"), "create: dockerd has made the container").unwrap();
        assert!(h1.try_create(name, &["CALICO_IP=auto", "CALICO_PROFILE=web"], &json!({})).is_none());
        wait_until("the node has died", SOON, || h1.has_ended());
        h1.kill_node();
    };
    start();
    cut_off("ann");
    let ann = h1.container("ann");
    between.answer(&format!("GET /containers/{}/json", ann.id), 500);
    for name in ["bob", "cat", "dan"] {
        start();
        cut_off(name);
    }
    start();
    wait_until("the others are recorded", COMPARED, || h1.workload_keys().len() == 3);
    assert!(ann.try_record().is_none());
    between.pass();
    wait_until("all are", COMPARED, || h1.workload_keys().len() == 4);
    for name in ["ann", "bob", "cat", "dan"] {
        h1.docker(&format!("start {name}")).ok();
    }
    lab.assert_consistent();
    lab.remove_everything();
}

/// Its address was held for the two minutes in which a dockerd that lives may finish it.
#[test]
fn the_address_of_a_create_that_dockerd_broke_off_is_free_once_dockerd_has_said_that_it_made_nothing() {
    let lab = Lab::hosts(1);
    let h1 = lab.host(1);
    let between = between(h1);
    between.break_off("POST /v1.41/containers/create");
    let wish = ["CALICO_IP=192.168.1.1", "CALICO_PROFILE=web"];
    assert_eq!(h1.create("ann", &wish).status, 502);
    let refused = h1.create("bob", &wish);
    assert_eq!(refused.status, 409, "dockerd may have made it: {}", refused.message());
    between.pass();
    wait_until("the address is free", COMPARED * 2, || h1.claims().is_empty());
    assert_eq!(h1.create("bob", &wish).status, 201);
    h1.docker("start bob").ok();
    lab.assert_consistent();
    lab.remove_everything();
}

/// Whoever else was to have the address had to wait for dockerd.
#[test]
fn a_claim_that_nobody_is_to_have_any_more_is_released_though_dockerd_is_away() {
    let lab = Lab::hosts(1);
    let h1 = lab.host(1);
    let between = between(h1);
    between.break_off("POST /v1.41/containers/create");
    assert_eq!(h1.create("ann", &["CALICO_IP=192.168.1.1"]).status, 502);
    h1.stop_dockerd();
    wait_until("dockerd is away", SOON, || !h1.is_ready());
    assert_eq!(h1.claims().len(), 1);
    let notes = h1.state_dir().join("creating");
    let note = std::fs::read_dir(&notes).unwrap().next().unwrap().unwrap().path();
    let mut text: Value = serde_json::from_slice(&std::fs::read(&note).unwrap()).unwrap();
    text["since_s"] = json!(1);
    std::fs::write(&note, text.to_string()).unwrap();
    wait_until("the address is free", COMPARED, || h1.claims().is_empty());
    assert!(note.exists(), "what dockerd has made of it is not known yet");
    between.pass();
    h1.spawn_dockerd();
    h1.await_dockerd();
    wait_until("nothing is kept of it", COMPARED, || !note.exists());
    lab.assert_consistent();
    lab.remove_everything();
}

/// Where dockerd does not know our runtime it was started, with an answer of success and without a network.
#[test]
fn a_container_whose_create_was_cut_off_does_not_start_before_it_has_its_network() {
    let lab = Lab::running_without_runtime(1);
    let h1 = lab.host(1);
    std::fs::write(h1.run_dir().join("fail-point"), "create: dockerd has made the container").unwrap();
    assert!(h1.try_create("ann", &["CALICO_IP=192.168.1.1", "CALICO_PROFILE=web"], &json!({})).is_none());
    wait_until("the node has died", SOON, || h1.has_ended());
    h1.kill_node();
    let ann = h1.container("ann");
    let in_the_way = h1.state_dir().join("reservations").join(format!("{}.new", ann.id));
    std::fs::create_dir_all(&in_the_way).unwrap();
    h1.start_node();
    wait_until("it was tried", SOON, || h1.node_log_text().contains("is not finished yet"));
    for name in ["ann", &ann.id] {
        let refused = h1.api("POST", &format!("/containers/{name}/start"), None);
        assert!(refused.status == 409 && refused.message().contains("made for Calico"), "{}", refused.message());
    }
    std::fs::remove_dir(&in_the_way).unwrap();
    wait_until("ann is recorded", COMPARED, || ann.try_record().is_some());
    h1.docker("start ann").ok();
    assert!(h1.space.pings(ann.ip()));
    lab.assert_consistent();
    lab.remove_everything();
}

/// A pool was called full although dockerd had said to whoever asked that the last one of it was gone.
#[test]
fn the_address_of_a_container_that_is_gone_is_given_out_though_its_end_was_not_heard_of() {
    let lab = Lab::hosts(1);
    let h1 = lab.host(1);
    let between = Between::before(h1);
    between.break_off("GET /events");
    h1.spawn_node(&["--docker-host", &between.docker_host()]);
    let create = |name: &str| h1.try_create(name, &["CALICO_IP=10.70.0.0/30", "CALICO_PROFILE=web"], &json!({}));
    let made = |name: &str| create(name).is_some_and(|reply| reply.status == 201);
    wait_until("the node lets addresses be given", SOON, || h1.calicoctl("pool add 10.70.0.0/30").succeeded());
    wait_until("ann is created", SOON, || made("ann"));
    assert!(made("bob"));
    assert!(!h1.is_ready(), "it hears no events");
    let full = create("cat").unwrap();
    assert!(full.status == 409 && full.message().contains("every address"), "{}", full.message());
    h1.raw_docker("rm -f bob").ok();
    assert!(made("cat"));
    between.pass();
    h1.await_ready();
    lab.assert_consistent();
    lab.remove_everything();
}
