//! A host for itself, with the node's own etcd.

use std::time::Duration;

use crate::lab::container::SOON;
use crate::lab::wait::wait_until;
use crate::lab::{Lab, spawn_logged};

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

/// The commands that the documentation gives for it.
#[test]
fn the_embedded_etcd_is_restored_from_a_snapshot_and_moved_to_a_cluster_and_containers_keep_their_addresses() {
    let lab = Lab::without_etcd();
    let h1 = lab.host(1);
    h1.start_node();
    let wish = "-e CALICO_IP=auto -e CALICO_PROFILE=web";
    let ann = h1.run("ann", wish);
    let ctl = |words: &str| {
        let place = h1.run_dir().join("etcd-endpoint");
        h1.sh(&format!("ETCDCTL_API=3 ETCDCTL_ENDPOINTS=$(cat {}) etcdctl {words}", place.display()))
    };
    let file = h1.scratch().join("snapshot");
    ctl(&format!("snapshot save {}", file.display()));
    // The snapshot does not know it.
    let bob = h1.run("bob", wish);
    let addresses = [ann.ip(), bob.ip()];

    let section = include_str!("../docs/operations.md").split_once("### Backup and restore").unwrap().1;
    let commands: Vec<String> = section
        .lines()
        .filter_map(|line| line.strip_prefix("    "))
        .take_while(|line| !line.starts_with("systemctl start"))
        .filter(|line| !line.starts_with("systemctl"))
        .map(|line| line.replace("/var/lib/calico", &h1.state_dir().display().to_string()))
        .map(|line| line.replace("FILE", &file.display().to_string()))
        .collect();
    assert!(commands.len() == 2 && commands[1].contains("snapshot restore"), "{commands:?}");
    h1.stop_node();
    h1.sh(&commands.join(" && "));
    h1.start_node();
    assert_eq!([ann.ip(), bob.ip()], addresses);
    lab.assert_consistent();
    let cat = h1.run("cat", wish);
    let newest = cat.ip();
    assert!(!addresses.contains(&newest) && cat.reaches(addresses[0]) && cat.reaches(addresses[1]));

    let place = "http://127.0.0.1:3379";
    let data = h1.scratch().join("cluster");
    let words = ["--listen-client-urls", place, "--advertise-client-urls", place, "--listen-peer-urls"];
    let etcd = h1.command("etcd").args(words).arg("http://127.0.0.1:3380").arg("--data-dir").arg(&data);
    let mut etcd = spawn_logged(etcd, &h1.scratch().join("cluster.log"));
    let keys = |at: &str| {
        h1.sh(&format!("ETCDCTL_API=3 etcdctl --endpoints {at} get --prefix --keys-only /calico/ 2>/dev/null || true"))
    };
    wait_until("the cluster answers", SOON, || keys(place).is_empty());
    let mirror = format!("--endpoints $(cat {}/etcd-endpoint) make-mirror --prefix /calico/", h1.run_dir().display());
    let mirror = format!("ETCDCTL_API=3 exec etcdctl {mirror} 127.0.0.1:3379");
    let mut mirror = spawn_logged(h1.command("sh").args(["-c", &mirror]), &h1.scratch().join("mirror.log"));
    let own = std::fs::read_to_string(h1.run_dir().join("etcd-endpoint")).unwrap();
    wait_until("all is copied", SOON, || keys(place) == keys(own.trim()) && !keys(place).is_empty());
    mirror.kill().unwrap();
    mirror.wait().unwrap();
    h1.stop_node();
    h1.spawn_node(&["--etcd-endpoints", place]);
    h1.await_ready();
    let dan = h1.run("dan", wish);
    assert!(dan.reaches(newest) && addresses.iter().all(|address| dan.reaches(*address)));
    h1.stop_node();
    etcd.kill().unwrap();
    etcd.wait().unwrap();
}
