//! When a tool does not work as it should, or cannot be started: nothing opens, it is told, and all goes on once it can.

use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::time::Duration;

use nix::fcntl::{Flock, FlockArg};
use serde_json::json;

use crate::lab::Lab;
use crate::lab::container::SOON;
use crate::lab::host::Host;
use crate::lab::netns::Pinger;
use crate::lab::wait::{pause, wait_until};
use crate::lab::{setting, spawn_logged};

const WEB: &str = "-e CALICO_IP=auto -e CALICO_PROFILE=web";

/// How long a node may take to try again.
const TRIED_AGAIN: Duration = Duration::from_secs(30);

/// Starts a node that finds its tools in a folder first.
fn start_with_tools(host: &Host, tools: &std::path::Path, more: &[(&str, &str)]) {
    let listen = format!("unix://{}", host.proxy_socket().display());
    let path = format!("{}:{}", tools.display(), setting("PATH").unwrap());
    let command = host.node_command(&["--listen", &listen]).env("PATH", path);
    let command = more.iter().fold(command, |command, (name, value)| command.env(name, value));
    host.keep_node(spawn_logged(command, &host.node_log()));
    host.await_ready();
}

/// Lets everybody in, as another host would.
fn open(lab: &Lab, profile: &str) {
    let all = json!([{ "action": "allow" }]);
    let rules = json!({ "id": profile, "inbound_rules": all, "outbound_rules": all });
    lab.etcd().put(&format!("/calico/v1/policy/profile/{profile}/rules"), &rules.to_string());
}

fn asked(host: &Host, path: &str) -> String {
    host.sh(&format!("curl -s http://127.0.0.1:9091/{path}"))
}

/// How often the agent has tried in vain.
fn failed(host: &Host) -> u32 {
    let metrics = asked(host, "metrics");
    let line = metrics.lines().find_map(|line| line.strip_prefix("calico_applies_total{result=\"failed\"} "));
    line.map_or(0, |count| count.parse().unwrap())
}

#[track_caller]
fn says_what_is_wrong(host: &Host, why: &str) {
    wait_until(&format!("it is told: {why}"), TRIED_AGAIN, || {
        asked(host, "readyz").contains(why) && host.calicoctl("status").ok().contains(why)
    });
    wait_until("it is logged", TRIED_AGAIN, || {
        host.node_log_text().lines().any(|line| line.contains("not as it should be") && line.contains(why))
    });
    let metrics = asked(host, "metrics");
    assert!(metrics.contains("calico_in_sync 0") && metrics.contains("calico_faults{kind=\"kernel\"} 1"), "{metrics}");
    host.sh("curl -sf http://127.0.0.1:9091/livez");
}

#[test]
fn a_tool_that_hangs_is_killed_told_of_and_tried_again() {
    let lab = Lab::hosts(1);
    let h1 = lab.host(1);
    let (tools, hangs) = (h1.scratch().join("tools"), h1.scratch().join("hangs"));
    std::fs::create_dir_all(&tools).unwrap();
    let wrapper = tools.join("iptables-restore");
    let script =
        format!("#!/bin/sh\n[ ! -e {} ] || exec sleep 120\nexec /usr/sbin/iptables-restore \"$@\"\n", hangs.display());
    std::fs::write(&wrapper, script).unwrap();
    std::fs::set_permissions(&wrapper, std::fs::Permissions::from_mode(0o755)).unwrap();
    start_with_tools(h1, &tools, &[]);
    let (ann, bob) = (h1.run("ann", WEB), h1.run("bob", "-e CALICO_IP=auto -e CALICO_PROFILE=other"));
    let pinger = Pinger::start(&ann.space(), ann.ip(), true);
    std::fs::write(&hangs, "").unwrap();
    open(&lab, "other");
    says_what_is_wrong(h1, "no end within");
    // What stood stands, and nothing is left behind.
    ann.never_reaches(bob.ip());
    std::fs::remove_file(&hangs).unwrap();
    wait_until("the change is there", Duration::from_mins(1), || ann.reaches(bob.ip()));
    wait_until("nothing is told of any more", SOON, || !h1.calicoctl("status").ok().contains("no end within"));
    assert_eq!(h1.processes("sleep"), 0);
    let pinged = pinger.stop();
    assert!(pinged.lost.is_empty(), "{pinged:?}");
    lab.assert_consistent();
}

#[test]
fn a_firewall_of_two_kinds_is_refused_with_the_way_out() {
    let lab = Lab::hosts(1);
    let h1 = lab.host(1);
    h1.sh("iptables-legacy -A FORWARD -s 10.9.9.9 -j ACCEPT");
    let refused = h1.calico_node(&["--ip", &h1.ip.to_string()]).run().fails_with(1);
    assert!(refused.contains("iptables-legacy") && refused.contains("update-alternatives"), "{refused}");
    h1.sh("iptables-legacy -F");
    h1.start_node();
    lab.assert_consistent();
}

#[test]
fn a_node_that_can_start_no_process_opens_nothing_says_so_and_goes_on_once_it_can() {
    let lab = Lab::running(1);
    let h1 = lab.host(1);
    let (ann, bob) = (h1.run("ann", WEB), h1.run("bob", WEB));
    let eve = h1.run("eve", "-e CALICO_IP=auto -e CALICO_PROFILE=other");
    let foe = Pinger::start(&eve.space(), bob.ip(), true);
    let friend = Pinger::start(&ann.space(), bob.ip(), true);
    h1.let_node_start_processes(false);
    open(&lab, "web");
    says_what_is_wrong(h1, "Resource temporarily unavailable");
    // It tries ever more seldom, and has hardly anything to do.
    let (tries, ticks) = (failed(h1), h1.node_ticks());
    pause(Duration::from_secs(5));
    let (tries, ticks) = (failed(h1) - tries, h1.node_ticks() - ticks);
    assert!(tries <= 6 && ticks <= 50, "{tries} tries and {ticks} hundredths of a second in five seconds");
    // Who is started now does not run without a policy, and whoever stops or goes is dark.
    let refused = h1.try_run("dan", WEB);
    assert!(!refused.succeeded() && refused.err().contains("Resource temporarily unavailable"), "{refused}");
    assert_eq!(h1.container("dan").pid(), 0);
    // BIRD has to be told of it, by a node whose threads that wait for work have ended long ago.
    h1.calicoctl("pool add 10.60.0.0/24").ok();
    let friend = friend.stop();
    assert!(friend.sent > 100 && friend.lost.is_empty(), "{friend:?}");
    h1.sh("iptables -F; iptables -X; nft flush ruleset");
    ann.never_reaches(bob.ip());
    eve.never_reaches(bob.ip());
    assert_eq!(foe.stop().answered, 0);

    h1.let_node_start_processes(true);
    wait_until("the node is ready again", TRIED_AGAIN, || h1.is_ready());
    ann.comes_to_reach(bob.ip());
    eve.comes_to_reach(bob.ip());
    wait_until("BIRD has heard of the pool", TRIED_AGAIN, || {
        std::fs::read_to_string(h1.run_dir().join("bird.conf")).unwrap().contains("10.60.0.0/24")
    });
    h1.docker("start dan").ok();
    h1.container("dan").comes_to_reach(bob.ip());
    lab.assert_consistent();
    lab.remove_everything();
}

#[test]
fn a_lock_of_legacy_iptables_that_somebody_holds_is_told_of_and_tried_for_again_without_end() {
    let lab = Lab::hosts(1);
    let h1 = lab.host(1);
    let tools = h1.scratch().join("tools");
    std::fs::create_dir_all(&tools).unwrap();
    for tool in ["iptables", "ip6tables"] {
        for verb in ["", "-save", "-restore"] {
            symlink("/usr/sbin/xtables-legacy-multi", tools.join(format!("{tool}{verb}"))).unwrap();
        }
    }
    // The machine has one lock for all its networks: this one is the host's own.
    let lock = h1.scratch().join("xtables.lock");
    start_with_tools(h1, &tools, &[("XTABLES_LOCKFILE", lock.to_str().unwrap())]);
    let (ann, bob) = (h1.run("ann", WEB), h1.run("bob", "-e CALICO_IP=auto -e CALICO_PROFILE=p1,p2,p3,p4"));
    let rules = || h1.sh("iptables-legacy-save -t filter");
    assert!(rules().contains("-A FORWARD -m comment") && !h1.sh("iptables-nft-save").contains("calico-FORWARD"));
    ann.never_reaches(bob.ip());
    let pinger = Pinger::start(&ann.space(), ann.ip(), true);
    let held = Flock::lock(std::fs::File::create(&lock).unwrap(), FlockArg::LockExclusive).unwrap();
    for profile in ["p1", "p2", "p3", "p4"] {
        open(&lab, profile);
    }
    says_what_is_wrong(h1, "holding the xtables lock");
    // However many chains wait for it, the lock is waited for once in each try.
    let tries = failed(h1);
    wait_until("it is tried again and again", Duration::from_mins(1), || failed(h1) >= tries + 2);
    ann.never_reaches(bob.ip());
    drop(held);
    wait_until("the change is there", TRIED_AGAIN, || ann.reaches(bob.ip()));
    wait_until("the node is ready again", TRIED_AGAIN, || h1.is_ready());
    // Nobody tells of changes of these rules; the clock does.
    lab.etcd().put("/calico/v1/config/IptablesRefreshInterval", "1");
    let right = rules();
    h1.sh(&format!("XTABLES_LOCKFILE={} iptables-legacy -F", lock.display()));
    let ours = |rules: &str| rules.lines().filter(|line| line.contains("calico")).count();
    wait_until("the rules are put right", SOON, || ours(&rules()) == ours(&right));
    let pinged = pinger.stop();
    assert!(pinged.lost.is_empty(), "{pinged:?}");
    lab.remove_everything();
}
