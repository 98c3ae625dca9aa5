//! A host for itself, with the node's own etcd.

use std::time::Duration;

use crate::lab::Lab;
use crate::lab::container::SOON;
use crate::lab::wait::wait_until;

#[test]
fn a_single_host_needs_no_etcd_beside_it() {
    let lab = Lab::without_etcd();
    let h1 = lab.host(1);
    h1.start_node();
    // A second bird is one that checks a configuration and ends.
    wait_until("one of each runs", SOON, || (h1.processes("etcd"), h1.processes("bird")) == (1, 1));
    let ann = h1.run("ann", "-e CALICO_IP=auto -e CALICO_PROFILE=web");
    let bob = h1.run("bob", "-e CALICO_IP=auto -e CALICO_PROFILE=web");
    let (address, endpoint) = (bob.ip(), bob.endpoint_id());
    assert!(ann.reaches(address));
    // calicoctl finds it by itself.
    assert!(h1.calicoctl("profile show").ok().contains("web"));
    lab.assert_consistent();

    let inside = ann.space();
    h1.stop_node();
    assert_eq!((h1.processes("etcd"), h1.processes("bird")), (0, 0));
    assert!(inside.pings(address));
    h1.start_node();
    assert_eq!((bob.ip(), bob.endpoint_id()), (address, endpoint.clone()));
    lab.assert_consistent();

    // Killed, it takes its children with it, and what was acknowledged is there afterwards.
    let cat = h1.run("cat", "-e CALICO_IP=auto -e CALICO_PROFILE=web");
    h1.kill_node();
    wait_until("no orphan is left", SOON, || h1.processes("etcd") + h1.processes("bird") == 0);
    assert!(inside.pings(address));
    h1.start_node();
    lab.assert_consistent();
    assert!(cat.reaches(address));
    lab.remove_everything();
}

#[test]
fn a_node_comes_up_before_dockerd_and_serves_once_it_is_there() {
    let lab = Lab::without_etcd();
    let h1 = lab.host(1);
    h1.kill_dockerd();
    h1.spawn_node(&[]);
    wait_until("the node answers", Duration::from_secs(30), || {
        h1.try_api("GET", "/version", None).is_some_and(|reply| reply.status == 502)
    });
    h1.spawn_dockerd();
    h1.await_dockerd();
    h1.await_ready();
    let ann = h1.run("ann", "-e CALICO_IP=auto");
    assert!(h1.space.pings(ann.ip()));
    lab.assert_consistent();
}
