//! A dockerd that knows none of this host's containers is not taken for one in which all have been destroyed.

use crate::lab::Lab;
use crate::lab::container::SOON;
use crate::lab::wait::wait_until;

const CLAIMS: &str = "/calico/v1/ipam/v4/assignment/";

/// Its disk was not mounted when it began: every address was free, and the containers that were there again had none.
#[test]
fn a_dockerd_that_has_lost_all_containers_frees_none_of_their_addresses_until_an_operator_says_so() {
    let lab = Lab::running(1);
    let h1 = lab.host(1);
    let ann = h1.run("ann", "-e CALICO_IP=192.168.1.1 -e CALICO_PROFILE=web");
    h1.run("bob", "-e CALICO_IP=auto -e CALICO_PROFILE=web");
    let claims = lab.etcd().keys(CLAIMS);
    assert_eq!(claims.len(), 2);
    let empty = h1.scratch().join("empty").display().to_string();
    let readyz = || h1.sh("curl -s http://127.0.0.1:9091/readyz || true");
    let lose_all = || {
        h1.stop_dockerd();
        h1.spawn_dockerd_with(&["--data-root", &empty]);
        h1.await_dockerd();
        wait_until("the node doubts it", SOON * 2, || readyz().contains("it knows none of the 2 containers"));
    };
    lose_all();
    let refused = h1.create("thief", &["CALICO_IP=auto"]);
    assert!(refused.status == 503 && refused.message().contains("knows none"), "{}", refused.message());
    let status = h1.calicoctl("status").ok();
    assert!(status.contains("Faults:") && status.contains("is its disk mounted"), "{status}");
    // A node that begins now does not believe it either.
    h1.stop_node();
    h1.spawn_node(&[]);
    wait_until("the new node doubts it", SOON * 2, || readyz().contains("it knows none of the 2 containers"));
    assert_eq!(h1.create("thief", &["CALICO_IP=192.168.1.1"]).status, 503);
    assert_eq!(lab.etcd().keys(CLAIMS), claims);

    // Mounted.
    h1.stop_dockerd();
    h1.spawn_dockerd();
    h1.await_dockerd();
    h1.await_ready();
    h1.docker("start ann bob").ok();
    assert_eq!(ann.ip().to_string(), "192.168.1.1");
    assert_eq!(lab.etcd().keys(CLAIMS), claims);
    lab.assert_consistent();

    // Gone for good.
    lose_all();
    std::fs::remove_file(h1.state_dir().join("engine")).unwrap();
    wait_until("their addresses are free", SOON * 2, || lab.etcd().keys(CLAIMS).is_empty());
    h1.await_ready();
    // Another one may come, where this host has nothing to lose.
    h1.stop_dockerd();
    h1.spawn_dockerd();
    h1.await_dockerd();
    h1.await_ready();
    h1.docker("rm -f ann bob").ok();
    h1.run("cid", "-e CALICO_IP=192.168.1.1 -e CALICO_PROFILE=web");
    lab.assert_consistent();
    lab.remove_everything();
}
