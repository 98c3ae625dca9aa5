//! A dockerd that fails at some of what the node asks of it: the rest goes on.

use std::time::Duration;

use serde_json::json;

use crate::lab::Lab;
use crate::lab::between::Between;
use crate::lab::container::SOON;
use crate::lab::wait::wait_until;

const WEB: &str = "-e CALICO_IP=auto -e CALICO_PROFILE=web";

/// How long until the next comparison has surely been made.
const COMPARED: Duration = Duration::from_secs(15);

/// The node listened to dockerd for some milliseconds four times a second then, and dealt with nothing that it heard.
#[test]
fn while_dockerd_does_not_list_its_containers_what_happens_to_them_is_heeded_and_told_once() {
    let lab = Lab::hosts(1);
    let h1 = lab.host(1);
    let between = Between::before(h1);
    h1.spawn_node(&["--docker-host", &between.docker_host()]);
    h1.await_ready();
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
