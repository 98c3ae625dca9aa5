//! With our OCI runtime a container has its network before its process begins, whoever starts it, and else does not start.

use serde_json::json;

use crate::lab::Lab;
use crate::lab::container::{SOON, reach_each_other};
use crate::lab::host::Host;
use crate::lab::wait::wait_until;

/// Prints what there is of a network at once, then idles.
const LOOK: &str = "ip -4 -o addr show eth1; ip route; grep -c $(hostname) /etc/hosts; exec sleep 3600";

#[test]
fn a_process_finds_its_network_at_once_whoever_starts_it() {
    let lab = Lab::running(1);
    let h1 = lab.host(1);
    let ann = h1.run("ann", "-e CALICO_IP=192.168.1.1 -e CALICO_PROFILE=web");
    let created = h1.api(
        "POST",
        "/containers/create?name=bob",
        Some(&json!({
            "Image": "busybox", "Hostname": "bob", "Env": ["CALICO_IP=192.168.1.2", "CALICO_PROFILE=web"],
            "Cmd": ["sh", "-c", LOOK], "HostConfig": { "RestartPolicy": { "Name": "always" } },
        })),
    );
    assert_eq!(created.status, 201, "{}", created.message());
    assert_eq!(created.json()["Warnings"], json!([]), "{}", created.json());
    let bob = h1.container("bob");
    let shown = [bob.inspect(), bob.raw_inspect()].map(|one| one["HostConfig"]["Runtime"].clone());
    assert_eq!(shown, ["runc", "calico"]);
    let seen = |times: usize| {
        wait_until("bob has said what it found", SOON, || {
            h1.raw_docker("logs bob").ok().matches("inet 192.168.1.2/32").count() == times
        });
        let log = h1.raw_docker("logs bob").ok();
        assert_eq!(log.matches("default via 172.25.0.1 dev eth1").count(), times, "{log}");
        reach_each_other(&[&ann, &bob]);
        lab.assert_consistent();
    };
    h1.docker("start bob").ok();
    seen(1);
    assert_eq!(bob.record()["wired_by"], "runtime");
    h1.raw_docker("restart -t 0 bob").ok();
    seen(2);
    // Its process dies: the restart policy starts it again.
    let pid = bob.pid();
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL).unwrap();
    seen(3);
    lab.remove_everything();
}

#[test]
fn a_known_container_starts_while_node_or_etcd_is_away_and_a_new_one_is_refused() {
    let lab = Lab::running(1);
    for name in ["ann", "bob"] {
        let last = if name == "ann" { 1 } else { 2 };
        lab.host(1).run(name, &format!("-e CALICO_IP=192.168.1.{last} -e CALICO_PROFILE=web"));
    }
    // Asks nothing of etcd.
    let reach = |h1: &Host| {
        let [ann, bob] = ["ann", "bob"].map(|name| h1.container(name));
        ann.comes_to_reach("192.168.1.2".parse().unwrap());
        bob.comes_to_reach("192.168.1.1".parse().unwrap());
    };
    // The node is away.
    {
        let h1 = lab.host(1);
        h1.kill_node();
        h1.raw_docker("restart -t 0 bob").ok();
        reach(h1);
        h1.raw_docker("stop -t 0 bob").ok();
        h1.start_node();
        lab.assert_consistent();
    }
    // etcd is away.
    lab.kill_etcd();
    {
        let h1 = lab.host(1);
        wait_until("the node knows that etcd is away", SOON, || !h1.is_ready());
        h1.docker("start bob").ok();
        reach(h1);
        let refused = h1.create("cid", &["CALICO_IP=192.168.1.3"]);
        assert_eq!(refused.status, 503);
        assert!(refused.message().contains("etcd at http://172.25.0.254:2379 is away"), "{}", refused.message());
        assert!(!h1.has_container("cid"));
        // Both are away, and then the node is back without etcd.
        h1.kill_node();
        h1.raw_docker("restart -t 0 bob").ok();
        h1.spawn_node(&[]);
        wait_until("the proxy answers", SOON, || h1.docker("version").succeeded());
        h1.docker("restart -t 0 bob").ok();
        h1.docker("restart -t 0 ann").ok();
        reach(h1);
        // What goes meanwhile is released later.
        h1.docker("rm -f ann").ok();
    }
    lab.start_etcd();
    let h1 = lab.host(1);
    h1.await_ready();
    lab.assert_consistent();
    assert_eq!(h1.workload_keys().len(), 1);
    assert_eq!(h1.create("dan", &["CALICO_IP=192.168.1.1", "CALICO_PROFILE=web"]).status, 201);
    lab.assert_consistent();
    lab.remove_everything();
}

#[test]
fn a_container_whose_policy_may_not_stand_does_not_start_and_says_why() {
    let lab = Lab::running(1);
    let h1 = lab.host(1);
    let bob = h1.run("bob", "--restart always -e CALICO_IP=192.168.1.2 -e CALICO_PROFILE=web");
    let cid = h1.run("cid", "-e CALICO_IP=192.168.1.3 -e CALICO_PROFILE=web");
    let dan = h1.run("dan", "--restart always -e CALICO_IP=192.168.1.4 -e CALICO_PROFILE=web");
    h1.docker("stop -t 0 cid dan").ok();
    h1.kill_node();
    h1.raw_docker("kill bob").ok();
    // Somebody flushes the firewall while nobody is there to mend it.
    h1.sh("iptables -F FORWARD");
    for name in ["bob", "cid", "dan"] {
        let refused = h1.raw_docker(&format!("start {name}"));
        assert!(!refused.succeeded(), "{name} started without its policy");
        let why = refused.err();
        assert!(
            why.contains("calico: wire container") && why.contains("nothing in it leads to calico-FORWARD"),
            "{why}"
        );
    }
    // A record that the node cannot read is as good as none; here it is the mark that is missing.
    h1.sh("iptables -A FORWARD -j calico-FORWARD");
    std::fs::remove_file(h1.run_dir().join("programmed").join(cid.endpoint_id())).unwrap();
    let refused = h1.raw_docker("start cid");
    assert!(refused.err().contains("does not stand in the kernel"), "{}", refused.err());
    // One that has been started since, and stopped, was once refused, and no more.
    h1.raw_docker("start dan").ok();
    h1.raw_docker("stop -t 0 dan").ok();
    // The node that comes back starts what its policy wants running, and nothing else.
    h1.start_node();
    wait_until("bob runs", SOON * 2, || bob.raw_inspect()["State"]["Running"] == true);
    wait_until("bob is recorded", SOON, || bob.record()["state"] == "active");
    assert_eq!(cid.raw_inspect()["State"]["Running"], false);
    assert_eq!(dan.raw_inspect()["State"]["Running"], false);
    lab.assert_consistent();
    lab.remove_everything();
}

/// A runtime in whose containers something stands where our interface would be made.
const OCCUPYING: &str = r#"#!/bin/sh
case " $* " in *" create "*) ;; *) exec runc "$@" ;; esac
runc "$@" || exit
until [ "$1" = --pid-file ]; do shift; done
exec nsenter -t "$(cat "$2")" -n ip link add eth1 type bridge
"#;

/// Makes a further runtime known to dockerd.
fn know(host: &Host, name: &str, script: &str) {
    let program = host.scratch().join(name);
    std::fs::write(&program, script).unwrap();
    std::fs::set_permissions(&program, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    host.configure_dockerd("runtimes", json!({ (name): { "path": program } }));
    host.signal_dockerd(nix::sys::signal::Signal::SIGHUP);
    wait_until("dockerd knows of the runtime", SOON, || !host.runtime(name).is_null());
}

#[test]
fn without_our_runtime_the_node_wires_and_says_so_and_a_start_that_it_cannot_wire_is_undone() {
    let lab = Lab::running_without_runtime(1);
    let h1 = lab.host(1);
    let created = h1.create("ann", &["CALICO_IP=192.168.1.1", "CALICO_PROFILE=web"]);
    let warnings = created.json()["Warnings"].to_string();
    assert!(warnings.contains("some milliseconds after the container's first instruction"), "{warnings}");
    let ann = h1.container("ann");
    assert_eq!(ann.inspect()["HostConfig"]["Runtime"], "runc");
    h1.docker("start ann").ok();
    assert_eq!(ann.record()["wired_by"], "node");
    let shown = h1.calicoctl("endpoint show --detailed").ok();
    assert!(shown.contains("Wired by") && shown.contains(" node "), "{shown}");

    know(h1, "occupying", OCCUPYING);
    let host_config = json!({"Runtime": "occupying"});
    let created = h1.try_create("bob", &["CALICO_IP=192.168.1.2"], &host_config).expect("an answer");
    let bob = h1.container("bob");
    assert_eq!(created.status, 201, "{}", created.message());
    for verb in ["start", "restart?t=0"] {
        let reply = h1.api("POST", &format!("/containers/bob/{verb}"), None);
        let told = format!("calico: wire container {}: make interface {}", &bob.id[..12], bob.link());
        assert!(reply.status == 500 && reply.message().starts_with(&told), "{}: {}", reply.status, reply.message());
        assert_eq!((bob.pid(), bob.record()["state"].clone()), (0, json!("inactive")));
        assert_eq!(h1.cali_links(), [ann.link()].into());
        assert!(!h1.has_route("192.168.1.2"));
        lab.assert_consistent();
    }
    let wish = "-e CALICO_IP=192.168.1.3 --runtime occupying";
    let said = h1.docker(&format!("run --rm {wish} --name cid busybox sleep 600")).fails_with(125);
    assert!(said.contains("calico: wire container"), "{said}");
    wait_until("what was to be removed at its end is gone", SOON, || !h1.has_container("cid"));
    wait_until("its address is free", SOON, || h1.create("dan", &["CALICO_IP=192.168.1.3"]).status == 201);
    lab.assert_consistent();
    lab.remove_everything();
}

#[test]
fn a_runtime_that_the_user_asks_for_does_the_work_behind_ours() {
    let lab = Lab::running(1);
    let h1 = lab.host(1);
    // One that notes what it is asked and lets runc do it.
    let (program, log) = (h1.scratch().join("noting"), h1.scratch().join("noted"));
    std::fs::write(&program, format!("#!/bin/sh\necho \"$@\" >>{}\nshift\nexec runc \"$@\"\n", log.display())).unwrap();
    std::fs::set_permissions(&program, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let mut runtimes = h1.daemon_config()["runtimes"].clone();
    runtimes["noting"] = json!({ "path": program, "runtimeArgs": ["--noting"] });
    runtimes["other"] = json!({ "path": "runc" });
    h1.configure_dockerd("runtimes", runtimes);
    h1.signal_dockerd(nix::sys::signal::Signal::SIGHUP);
    wait_until("the node knows of the new runtimes", SOON, || {
        h1.docker("create --name probe --runtime noting -e CALICO_IP=auto busybox").ok();
        let is_ours = h1.container("probe").raw_inspect()["HostConfig"]["Runtime"] == "calico";
        h1.docker("rm probe").ok();
        is_ours
    });
    let ann = h1.run("ann", "--runtime noting -e CALICO_IP=192.168.1.1 -e CALICO_PROFILE=web");
    let noted = std::fs::read_to_string(&log).unwrap();
    assert!(noted.lines().any(|line| line.starts_with("--noting ") && line.contains(" create ")), "{noted}");
    assert_eq!(ann.record()["wired_by"], "runtime");
    // Whoever makes her anew from what he is shown asks for it again.
    let shown = [ann.inspect(), ann.raw_inspect()].map(|one| one["HostConfig"]["Runtime"].clone());
    assert_eq!(shown, ["noting", "calico"]);
    // Its word on how she runs is in her record alone.
    let refused = h1.calicoctl("container remove ann").fails_with(1);
    assert!(refused.contains("noting") && refused.contains("without CALICO_IP"), "{refused}");
    // One that ours cannot call stays what it is, and the user is told.
    let ran =
        h1.docker("run -d --name bob --runtime other -e CALICO_IP=192.168.1.2 -e CALICO_PROFILE=web busybox sleep 600");
    assert!(ran.err().contains("runtime other is none that calico can call"), "{}", ran.err());
    let bob = h1.container("bob");
    assert_eq!((&bob.inspect()["HostConfig"]["Runtime"], &bob.record()["wired_by"]), (&json!("other"), &json!("node")));
    reach_each_other(&[&ann, &bob]);
    lab.assert_consistent();
    h1.docker("kill ann").ok();
    let noted = std::fs::read_to_string(&log).unwrap();
    assert!(noted.lines().any(|line| line.contains(" kill ")), "{noted}");
    lab.remove_everything();
}

#[test]
fn a_hosts_file_that_somebody_mounts_is_not_written_to() {
    for lab in [Lab::running(1), Lab::running_without_runtime(1)] {
        let h1 = lab.host(1);
        let file = h1.scratch().join("hosts");
        std::fs::write(&file, "127.0.0.1 localhost\n").unwrap();
        let mount = format!("{}:/etc/hosts:ro", file.display());
        let ann = h1.run("ann", &format!("-e CALICO_IP=192.168.1.1 -e CALICO_PROFILE=web -v {mount}"));
        assert!(h1.space.pings(ann.ip()));
        assert_eq!(std::fs::read_to_string(&file).unwrap(), "127.0.0.1 localhost\n");
        lab.remove_everything();
    }
}

#[test]
fn a_second_container_with_an_address_that_the_datastore_gives_to_another_does_not_start() {
    for lab in [Lab::running(1), Lab::running_without_runtime(1)] {
        let h1 = lab.host(1);
        let ann = h1.run("ann", "-e CALICO_IP=192.168.1.1 -e CALICO_PROFILE=web");
        let bob = h1.run("bob", "-e CALICO_IP=192.168.1.2 -e CALICO_PROFILE=web");
        let cid = h1.run("cid", "-e CALICO_IP=192.168.1.3 -e CALICO_PROFILE=web");
        h1.docker("stop -t 0 bob").ok();
        // Somebody edits the record of a stopped container by hand.
        let (key, mut record) = bob.try_record().unwrap();
        record["ipv4_nets"] = json!(["192.168.1.1/32"]);
        h1.etcd().put(&key, &record.to_string());
        wait_until("the node has seen it", SOON, || {
            let said = h1.docker("start bob");
            said.err().contains("its address 192.168.1.1 is held by container ann")
        });
        assert_eq!(bob.pid(), 0);
        assert!(cid.reaches(ann.ip()), "the holder is not disturbed");
        h1.docker("rm -f bob").ok();
        lab.assert_consistent();
        lab.remove_everything();
    }
}

/// An etcd that was put back to an older state knows nothing of what was created since.
#[test]
fn containers_that_the_datastore_has_lost_are_recorded_again() {
    let lab = Lab::running(1);
    let h1 = lab.host(1);
    let ann = h1.run("ann", "-e CALICO_IP=192.168.1.1 -e CALICO_PROFILE=web");
    let bob = h1.run("bob", "-e CALICO_IP=192.168.1.2 -e CALICO_PROFILE=web");
    h1.docker("stop -t 0 bob").ok();
    let identities = [&ann, &bob].map(|one| (one.endpoint_id(), one.record()["mac"].clone()));
    // Of one that is gone meanwhile nothing is left, even if what was kept of it cannot be read.
    std::fs::write(h1.state_dir().join("reservations").join(format!("{}.json", "a".repeat(64))), "{").unwrap();
    h1.etcd().ctl(&["del", "--prefix", "/calico/v1/host/h1/workload/"]).run().ok();
    // Nobody starts as if it were not ours: it is refused, or recorded again already.
    let started = h1.raw_docker("start bob");
    assert!(started.succeeded() || started.err().contains("has lost its record"), "{}", started.err());
    h1.raw_docker("stop -t 0 bob").ok();
    h1.etcd().ctl(&["del", "--prefix", "/calico/v1/ipam/v4/assignment/"]).run().ok();
    wait_until("both are recorded again", SOON * 3, || ann.try_record().is_some() && bob.try_record().is_some());
    assert_eq!([&ann, &bob].map(|one| (one.endpoint_id(), one.record()["mac"].clone())), identities);
    lab.assert_consistent();
    assert_eq!(h1.create("thief", &["CALICO_IP=192.168.1.2"]).status, 409);
    h1.docker("start bob").ok();
    reach_each_other(&[&ann, &bob]);
    lab.assert_consistent();
    lab.remove_everything();
}

#[test]
fn a_policy_that_was_flushed_while_no_node_ran_is_not_taken_for_standing() {
    let lab = Lab::running(1);
    let h1 = lab.host(1);
    h1.run("ann", "-e CALICO_IP=192.168.1.1 -e CALICO_PROFILE=web");
    let bob = h1.run("bob", "-e CALICO_IP=192.168.1.2 -e CALICO_PROFILE=web");
    h1.docker("stop -t 0 bob").ok();
    h1.kill_node();
    lab.kill_etcd();
    h1.sh("iptables -F && iptables -X");
    // The node is back and knows nothing; its base chains and its jumps are there.
    h1.spawn_node(&[]);
    wait_until("the proxy answers", SOON, || h1.docker("version").succeeded());
    for refused in [h1.raw_docker("start bob"), h1.docker("start bob")] {
        assert!(!refused.succeeded() && refused.err().contains("does not stand in the kernel"), "{}", refused.err());
    }
    assert_eq!(bob.pid(), 0);
    lab.start_etcd();
    h1.await_ready();
    h1.docker("start bob").ok();
    reach_each_other(&[&h1.container("ann"), &bob]);
    lab.assert_consistent();
    lab.remove_everything();
}

/// Such a start succeeded, with a dead interface.
#[test]
fn a_container_that_was_made_for_calico_and_has_no_record_does_not_start_unless_an_operator_took_it_out() {
    let lab = Lab::running(1);
    let h1 = lab.host(1);
    h1.run("ann", "-e CALICO_IP=192.168.1.1 -e CALICO_PROFILE=web");
    let bob = h1.run("bob", "-e CALICO_IP=192.168.1.2 -e CALICO_PROFILE=web");
    h1.run("cid", "-e CALICO_IP=192.168.1.3 -e CALICO_PROFILE=web");
    h1.docker("stop -t 0 bob").ok();
    let key = bob.try_record().unwrap().0;
    std::fs::remove_file(h1.state_dir().join("reservations").join(format!("{}.json", bob.id))).unwrap();
    h1.etcd().ctl(&["del", &key]).run().ok();
    let said = "was made for Calico and is not recorded";
    wait_until("the node has seen it", SOON, || h1.docker("start bob").err().contains(said));
    let counted = || {
        let metrics = h1.sh("curl -s http://127.0.0.1:9091/metrics");
        let line =
            metrics.lines().find_map(|line| line.strip_prefix("calico_starts_refused_total ")).map(str::to_owned);
        line.expect("it is counted").parse::<u32>().unwrap()
    };
    let before = counted();
    assert_eq!(h1.api("POST", "/containers/bob/start", None).status, 409);
    let refused = h1.raw_docker("start bob");
    assert!(!refused.succeeded() && refused.err().contains(said), "{}", refused.err());
    // By the node and by the hook.
    assert_eq!(counted(), before + 2);
    assert!(h1.node_log_text().contains("its start was refused"));
    // Others with a wish that nobody asked of Calico: the image's, or made beside the proxy with a network of Docker's.
    for (name, options) in [("dan", "--network none"), ("eve", "--runtime calico")] {
        h1.raw_docker(&format!("create --name {name} {options} -e CALICO_IP=auto busybox sleep 600")).ok();
        h1.raw_docker(&format!("start {name}")).ok();
        h1.docker(&format!("restart -t 0 {name}")).ok();
    }
    // Taken out, it starts as it is, with a node and without one.
    h1.calicoctl("container remove cid").ok();
    let restart = || {
        for run in [h1.docker("restart -t 0 cid"), h1.raw_docker("restart -t 0 cid")] {
            run.ok();
        }
    };
    restart();
    h1.kill_node();
    h1.raw_docker("restart -t 0 cid").ok();
    h1.start_node();
    restart();
    let released = h1.state_dir().join("released");
    assert_eq!(std::fs::read_dir(&released).unwrap().count(), 1);
    for name in ["bob", "cid", "dan", "eve"] {
        h1.docker(&format!("rm -f {name}")).ok();
    }
    wait_until("nothing is kept of it", SOON * 2, || std::fs::read_dir(&released).unwrap().count() == 0);
    h1.etcd().ctl(&["del", "/calico/v1/ipam/v4/assignment/192.168.0.0-16/192.168.1.2"]).run().ok();
    lab.assert_consistent();
    lab.remove_everything();
}

/// What went wrong once was not tried again.
#[test]
fn a_create_that_was_cut_off_is_finished_when_what_stands_in_its_way_is_gone() {
    let lab = Lab::running(1);
    let h1 = lab.host(1);
    std::fs::write(h1.run_dir().join("fail-point"), "create: dockerd has made the container").unwrap();
    h1.try_create("ann", &["CALICO_IP=192.168.1.1", "CALICO_PROFILE=web"], &json!({}));
    wait_until("the node has died", SOON, || h1.has_ended());
    h1.kill_node();
    let ann = h1.container("ann");
    let reservations = h1.state_dir().join("reservations");
    let in_the_way = reservations.join(format!("{}.new", ann.id));
    std::fs::create_dir_all(&in_the_way).unwrap();
    h1.start_node();
    wait_until("it was tried", SOON, || h1.node_log_text().contains("is not finished yet"));
    assert_eq!(h1.api("POST", "/containers/ann/start", None).status, 409);
    std::fs::remove_dir(&in_the_way).unwrap();
    wait_until("ann is recorded", SOON * 2, || ann.try_record().is_some());
    h1.docker("start ann").ok();
    assert_eq!(ann.ip().to_string(), "192.168.1.1");
    lab.assert_consistent();
    lab.remove_everything();
}

/// dockerd's client was told that the runtime failed and its log could not be found.
#[test]
fn what_our_runtime_itself_finds_wrong_is_told_to_who_starts_the_container() {
    let lab = Lab::running(1);
    let h1 = lab.host(1);
    let ann = h1.run("ann", "-e CALICO_IP=192.168.1.1 -e CALICO_PROFILE=web");
    h1.docker("stop -t 0 ann").ok();
    h1.stop_node();
    let kept = h1.state_dir().join("reservations").join(format!("{}.json", ann.id));
    let text = std::fs::read(&kept).unwrap();
    std::fs::write(&kept, "{").unwrap();
    let refused = h1.raw_docker("start ann").fails_with(1);
    assert!(refused.contains("calico-runtime: read") && refused.contains(&ann.id), "{refused}");
    std::fs::write(&kept, text).unwrap();
    h1.raw_docker("start ann").ok();
    h1.start_node();
    lab.assert_consistent();
    lab.remove_everything();
}
