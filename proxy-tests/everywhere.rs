//! `calicoctl --wait`: what a command has changed holds on all hosts when it returns, or it says where it does not.

use std::time::Duration;

use nix::sys::signal::Signal;
use serde_json::json;

use crate::lab::Lab;
use crate::lab::command::Run;
use crate::lab::container::SOON;
use crate::lab::host::Host;
use crate::lab::wait::{pause, wait_until};

/// Where somebody asks all hosts, and where they answer.
const CALLS: [&str; 2] = ["/calico/v1/roll_call/", "/calico/felix/v1/roll_call/"];

fn update(host: &Host, inbound: &str, wait: &str) -> Run {
    let rules =
        json!({ "id": "web", "inbound_rules": [{ "action": inbound }], "outbound_rules": [{ "action": "allow" }] });
    host.calicoctl_run(&["profile", "web", "rule", "update", wait]).input(rules.to_string())
}

#[test]
fn a_command_that_waits_returns_when_its_change_holds_on_every_host_or_says_where_it_does_not() {
    let lab = Lab::running(2);
    let (h1, h2) = (lab.host(1), lab.host(2));
    let ann = h1.run("ann", "-e CALICO_IP=auto -e CALICO_PROFILE=web");
    let bob = h2.run("bob", "-e CALICO_IP=auto -e CALICO_PROFILE=web");
    ann.comes_to_reach(bob.ip());

    // No waiting in between: what is seen at once is what was written.
    for _ in 0..5 {
        update(h1, "deny", "--wait").run().ok();
        assert!(!ann.reaches(bob.ip()), "policy of the other host is as it was");
        update(h1, "allow", "--wait=30").run().ok();
        assert!(ann.reaches(bob.ip()), "policy of the other host is as it was");
    }
    // One that is held up is waited for.
    h2.signal_node(Signal::SIGSTOP);
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| update(h1, "deny", "--wait=30").run());
        wait_until("the hosts are asked", SOON, || !lab.etcd().keys(CALLS[0]).is_empty());
        wait_until("the first host has answered", SOON, || !lab.etcd().keys(CALLS[1]).is_empty());
        pause(Duration::from_millis(300));
        assert!(!waiting.is_finished() && ann.reaches(bob.ip()), "nobody waited for the host that is held up");
        h2.signal_node(Signal::SIGCONT);
        waiting.join().unwrap().ok();
    });
    assert!(!ann.reaches(bob.ip()), "policy of the host that was held up is as it was");
    for path in CALLS {
        assert_eq!(lab.etcd().keys(path), Vec::<String>::new(), "what was asked is left behind");
    }

    // A host that has something otherwise than the datastore says.
    let rules = "/calico/v1/policy/profile/web/rules";
    let good = lab.etcd().get(rules).expect("the profile has rules");
    lab.etcd().put(rules, "{");
    let told = h1.calicoctl("container ann profile set web --wait").fails_with(3);
    for host in [h1, h2] {
        assert!(told.contains(&format!("host {}: profile web: ", host.name)), "{told}");
    }
    lab.etcd().put(rules, &good);
    h1.calicoctl("container ann profile set web --wait").ok();

    // A host whose node is away.
    h2.kill_node();
    let told = update(h1, "deny", "--wait=1").run().fails_with(3);
    assert!(told.contains(&format!("host {}: not within 1 s", h2.name)), "{told}");
    assert!(!told.contains(&format!("host {}:", h1.name)), "{told}");
    assert!(lab.etcd().get(rules).expect("the profile has rules").contains("deny"), "it was done all the same");
    // Without the word nobody waits.
    update(h1, "allow", "--output=table").run().ok();
    update(h1, "deny", "--output=table").run().ok();
    h2.start_node();
    h1.calicoctl("profile web rule show --wait=30").ok();
    assert!(!ann.reaches(bob.ip()));
    lab.assert_consistent();
    lab.remove_everything();
}
