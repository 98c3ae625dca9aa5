//! Hundreds of containers that end at the same moment and are removed together.

use std::time::{Duration, Instant};

use serde_json::json;

use crate::lab::host::Host;
use crate::lab::traces::Traces;
use crate::lab::{Lab, counts, tell};

/// All of it is one call of `docker` each, which asks for fifty containers at once.
const PATIENCE: Duration = Duration::from_mins(20);

fn seconds(since: Instant) -> String {
    format!("{:.1}", since.elapsed().as_secs_f64())
}

/// Has this many containers running, kills them all at once and removes them all at once; answers what each of that took.
fn storm(host: &Host, count: usize, through_us: bool) -> [String; 3] {
    let docker = |call: &[&str], names: &[String]| {
        let mut args = call.to_vec();
        args.extend(names.iter().map(String::as_str));
        let run = if through_us { host.docker_run(&args) } else { host.raw_docker_run(&args) };
        run.lasting(PATIENCE).run().ok();
    };
    let names: Vec<String> = (0..count).map(|number| format!("storm{number}")).collect();
    for name in &names {
        let env = if through_us { &["CALICO_IP=auto", "CALICO_PROFILE=web"][..] } else { &[] };
        // It heeds no signal, and holds nothing up.
        let body = json!({"Image": "busybox", "Cmd": ["sleep", "100000"], "Env": env});
        let path = format!("/containers/create?name={name}");
        let reply = if through_us {
            host.try_api("POST", &path, Some(&body))
        } else {
            host.try_raw_api("POST", &path, Some(&body))
        };
        let reply = reply.expect("an answer");
        assert_eq!(reply.status, 201, "{}", reply.message());
    }
    let began = Instant::now();
    docker(&["start"], &names);
    let started = seconds(began);
    let ids = host.container_ids();
    assert_eq!(ids.len(), count);
    assert!(ids.iter().all(|id| host.container(id).pid() != 0), "all of them run");
    let began = Instant::now();
    docker(&["kill"], &names);
    let killed = seconds(began);
    assert!(ids.iter().all(|id| host.container(id).pid() == 0), "none of them runs");
    let began = Instant::now();
    docker(&["rm", "-f"], &names);
    let removed = seconds(began);
    assert!(host.container_ids().is_empty());
    [started, killed, removed]
}

#[test]
fn a_storm_of_deaths_and_removals_leaves_nothing() {
    let lab = Lab::bridged();
    lab.start_nodes();
    let h1 = lab.host(1);
    h1.run("first", "-e CALICO_IP=auto -e CALICO_PROFILE=web");
    h1.docker("rm -f first").ok();
    lab.assert_consistent();
    let before = Traces::of(h1);
    let count = counts(40, 300);
    let mut rows = Vec::new();
    for (kind, through_us) in [("Calico", true), ("Docker's bridge", false)] {
        let times = storm(h1, count, through_us);
        lab.assert_consistent();
        let mut row = vec![kind.to_owned(), count.to_string()];
        row.extend(times);
        rows.push(row);
    }
    tell(&["kind", "containers", "start of all, s", "kill of all, s", "rm -f of all, s"], rows);
    lab.remove_everything();
    let after = before.assert_back(h1);
    before.tell("containers killed at once, then removed at once", count, &after);
}
