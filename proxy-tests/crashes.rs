//! A node that is killed leaves the containers as they are, and the next one puts everything in order.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use serde_json::json;

use crate::lab::Lab;
use crate::lab::container::SOON;
use crate::lab::host::Host;
use crate::lab::netns::Pinger;
use crate::lab::wait::{pause, wait_until};

/// Creates, starts, stops and removes containers until it is told to stop. Calls that fail are what this is about.
fn busy(host: &Host, worker: usize, round: u64, over: &AtomicBool) {
    for number in 0.. {
        let name = format!("busy{worker}-{round}-{number}");
        let env = ["CALICO_IP=auto", "CALICO_PROFILE=web"];
        host.try_create(&name, &env, &json!({}));
        for (method, path) in [("POST", "/start"), ("POST", "/restart?t=0"), ("DELETE", "?force=1")] {
            if over.load(Ordering::Relaxed) {
                return;
            }
            // Every third one stays.
            if method == "DELETE" && number % 3 == 2 {
                continue;
            }
            host.try_api(method, &format!("/containers/{name}{path}"), None);
        }
    }
}

#[test]
fn a_node_killed_at_any_moment_is_consistent_again_after_its_restart() {
    let lab = Lab::running(1);
    let h1 = lab.host(1);
    let ann = h1.run("ann", "-e CALICO_IP=192.168.1.1 -e CALICO_PROFILE=web");
    let bob = h1.run("bob", "-e CALICO_IP=192.168.1.2 -e CALICO_PROFILE=web");
    let pinger = Pinger::start(&ann.space(), bob.ip(), true);
    for round in 0..10 {
        let over = AtomicBool::new(false);
        thread::scope(|scope| {
            for worker in 0..2 {
                let over = &over;
                scope.spawn(move || busy(h1, worker, round, over));
            }
            // Not a wait for anything: the moment at which it is killed is what varies.
            pause(Duration::from_millis(120 + round * 83));
            h1.kill_node();
            over.store(true, Ordering::Relaxed);
        });
        h1.start_node();
        lab.assert_consistent_but_for_pending_claims();
        // The killed one's is gone; a second one is one that checks a configuration and ends.
        wait_until("one bird runs", SOON, || h1.processes("bird") == 1);
        // Half of what is left is removed at dockerd while no node sees it.
        if round % 3 == 1 {
            h1.kill_node();
            let left = h1.container_ids();
            for id in left.iter().filter(|id| **id != ann.id && **id != bob.id).step_by(2) {
                h1.raw_docker(&format!("rm -f {id}")).ok();
            }
            h1.start_node();
            lab.assert_consistent_but_for_pending_claims();
        }
    }
    let outcome = pinger.stop();
    assert!(outcome.answered > 100 && outcome.lost.is_empty(), "{outcome:?}");
    // A create that the client never heard the end of may have left a container without a network; it goes like any other.
    lab.assert_consistent_once_leases_ended();
    lab.remove_everything();
    assert_eq!(h1.etcd().keys("/calico/v1/ipam/v4/assignment/"), [""; 0]);
}
