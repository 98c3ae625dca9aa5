//! A crash between any two steps of a create, a start, a stop and a destroy leaves nothing that the next node does not mend.

use std::path::Path;

use crate::lab::Lab;
use crate::lab::container::SOON;
use crate::lab::host::Host;
use crate::lab::wait::wait_until;

/// The names of all steps, as the sources have them.
fn steps(folder: &Path, found: &mut Vec<String>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            steps(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let text = std::fs::read_to_string(&path).unwrap();
            let named = text.split("fail_point(\"").skip(1).filter_map(|rest| rest.split('"').next());
            found.extend(named.map(str::to_owned));
        }
    }
}

/// How many lives a step has to be come to. The kernel takes an interface away with its container's network, and may be
/// quicker than the node: then there is none to be taken away.
const LIVES: usize = 4;

/// A whole life, of which any call may fail.
fn live(host: &Host, number: usize) {
    // Another address each time: a create that was cut off holds its own for as long as its lease lasts.
    let address = format!("CALICO_IP=192.168.1.{}", number + 1);
    host.try_create("one", &[&address, "CALICO_PROFILE=web"], &serde_json::json!({}));
    for (method, path) in [("POST", "/start"), ("POST", "/restart?t=0"), ("POST", "/stop?t=0"), ("DELETE", "?force=1")]
    {
        host.try_api(method, &format!("/containers/one{path}"), None);
    }
}

/// Kills whoever comes to each step in turn; answers the steps that nobody came to.
fn kill_at_every_step(lab: &Lab) -> Vec<String> {
    let h1 = lab.host(1);
    let armed = h1.run_dir().join("fail-point");
    let mut all = Vec::new();
    steps(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), &mut all);
    all.sort();
    all.dedup();
    assert!(all.len() > 15, "{all:?}");
    let mut unused = Vec::new();
    for (number, step) in all.into_iter().enumerate() {
        eprintln!("---- {step}");
        std::fs::write(&armed, &step).unwrap();
        for life in (0..LIVES).take_while(|_| armed.exists()) {
            live(h1, LIVES * number + life);
        }
        if armed.exists() {
            std::fs::remove_file(&armed).unwrap();
            unused.push(step);
            continue;
        }
        // A hook that is killed is not the node.
        let answers = || h1.try_api("GET", "/_ping", None).is_some_and(|reply| reply.status == 200);
        wait_until("the node has ended, or goes on", SOON, || h1.has_ended() || answers());
        if h1.has_ended() {
            h1.kill_node();
            h1.start_node();
        }
        lab.assert_consistent_but_for_pending_claims();
        // Whatever is left goes as any other.
        if h1.has_container("one") {
            h1.docker("start one").ok();
            lab.assert_consistent_but_for_pending_claims();
            h1.docker("rm -f one").ok();
        }
        wait_until("nothing is left", SOON, || h1.workload_keys().is_empty() && h1.cali_links().is_empty());
    }
    lab.assert_consistent_once_leases_ended();
    lab.remove_everything();
    assert_eq!(h1.etcd().keys("/calico/v1/ipam/v4/assignment/"), [""; 0]);
    assert_eq!(std::fs::read_dir(h1.state_dir().join("reservations")).unwrap().count(), 0);
    unused
}

#[test]
fn whoever_is_killed_at_any_step_with_the_runtime_loses_nothing() {
    let lab = Lab::running(1);
    let unused = kill_at_every_step(&lab);
    // The node wires only what the hook has not.
    assert!(unused.iter().all(|step| step == "start: the record is active"), "{unused:?}");
}

#[test]
fn whoever_is_killed_at_any_step_without_the_runtime_loses_nothing() {
    let lab = Lab::running_without_runtime(1);
    let unused = kill_at_every_step(&lab);
    assert!(unused.iter().all(|step| step.contains("hook")), "{unused:?}");
}
