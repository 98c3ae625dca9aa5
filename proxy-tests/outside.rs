//! The world beyond the hosts.

use crate::lab::netns::{Probe, Servers};
use crate::lab::{Lab, OUTSIDE};

#[test]
fn only_a_pool_with_outgoing_nat_reaches_a_world_that_knows_no_way_back() {
    let lab = Lab::running(2);
    let (h1, h2) = (lab.host(1), lab.host(2));
    h1.calicoctl("pool add 10.77.0.0/24 --nat-outgoing").ok();
    h1.calicoctl("pool add 10.78.0.0/24").ok();
    let ann = h1.run("ann", "-e CALICO_IP=10.77.0.0/24 -e CALICO_PROFILE=web");
    let bob = h1.run("bob", "-e CALICO_IP=10.78.0.0/24 -e CALICO_PROFILE=web");
    let far = h2.run("far", "-e CALICO_IP=10.77.0.0/24 -e CALICO_PROFILE=web");
    let outside = Servers::start(&lab.outside(), &[7000]);
    let udp = Probe::Udp { from: None, to: 7000 };

    ann.comes_to_reach(OUTSIDE);
    assert!(ann.gets_through(OUTSIDE, Probe::Tcp { from: None, to: 7000 }));
    assert!(ann.gets_through(OUTSIDE, udp));
    assert!(outside.heard_from(h1.ip) && !outside.heard_from(ann.ip()), "it goes under the host's address");
    bob.never_reaches(OUTSIDE);
    assert!(!bob.gets_through(OUTSIDE, udp));
    assert!(outside.heard_from(bob.ip()), "it goes under its own address, to where nobody knows it");

    // Between pools, and between hosts, addresses stay what they are: policy goes by them.
    let servers = far.serve(&[7001]);
    for from in [&ann, &bob] {
        from.comes_to_reach(far.ip());
        assert!(from.gets_through(far.ip(), Probe::Udp { from: None, to: 7001 }));
        assert!(servers.heard_from(from.ip()), "{} comes under another address", from.name);
    }
    drop(servers);
    lab.assert_consistent();
    lab.remove_everything();
}
