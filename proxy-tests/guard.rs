//! Somebody empties the firewall while the node runs: nothing opens.

use std::time::Duration;

use crate::lab::Lab;
use crate::lab::netns::Pinger;
use crate::lab::wait::wait_until;

#[test]
fn a_flush_of_the_firewall_opens_nothing_while_the_node_runs() {
    let lab = Lab::hosts(1);
    let h1 = lab.host(1);
    // How often the rules are looked at; a minute, if nobody says otherwise.
    lab.etcd().put("/calico/v1/config/IptablesRefreshInterval", "3");
    h1.start_node();
    let ann = h1.run("ann", "-e CALICO_IP=auto -e CALICO_PROFILE=web");
    let bob = h1.run("bob", "-e CALICO_IP=auto -e CALICO_PROFILE=web");
    let eve = h1.run("eve", "-e CALICO_IP=auto -e CALICO_PROFILE=other");
    assert!(ann.reaches(bob.ip()));

    // Every packet is a new flow, so none profits from an earlier one.
    let foe = Pinger::start(&eve.space(), bob.ip(), true);
    let sets = "for set in $(ipset list -n); do ipset flush $set; done";
    for flush in ["iptables -F FORWARD", "iptables -F", "nft flush ruleset", "iptables -F; nft flush ruleset", sets] {
        h1.sh(flush);
        wait_until(&format!("the rules are back after {flush}"), Duration::from_secs(30), || ann.reaches(bob.ip()));
        assert_eq!(foe.answered_so_far(), 0, "{flush} let eve through");
    }
    let foe = foe.stop();
    assert!(foe.sent > 20 && foe.answered == 0, "{foe:?}");
    eve.never_reaches(bob.ip());
    lab.assert_consistent();

    // The limit, as documented, and the proof that these packets would have told: a dead node guards nothing.
    h1.kill_node();
    eve.never_reaches(bob.ip());
    h1.sh("iptables -F; nft flush ruleset");
    eve.comes_to_reach(bob.ip());
    h1.start_node();
    eve.ceases_to_reach(bob.ip());
    assert!(ann.reaches(bob.ip()));
}
