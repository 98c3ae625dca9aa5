//! A dockerd that knows none of this host's containers is not taken for one in which all have been destroyed.

use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::thread;

use crate::lab::Lab;
use crate::lab::container::SOON;
use crate::lab::host::Host;
use crate::lab::wait::wait_until;

const CLAIMS: &str = "/calico/v1/ipam/v4/assignment/";

/// Ends the dockerd that runs, and has the one come back that the containers were made in.
fn comes_back(host: &Host) {
    host.stop_dockerd();
    host.spawn_dockerd();
    host.await_dockerd();
    host.await_ready();
}

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
    comes_back(h1);
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
    comes_back(h1);
    h1.docker("rm -f ann bob").ok();
    h1.run("cid", "-e CALICO_IP=192.168.1.1 -e CALICO_PROFILE=web");
    lab.assert_consistent();
    lab.remove_everything();
}

/// It has the same network and says nothing of the containers that are in its other driver: all were taken for destroyed.
#[test]
fn a_dockerd_with_another_storage_driver_frees_nothing_of_the_containers_that_it_does_not_show() {
    let lab = Lab::running(1);
    let h1 = lab.host(1);
    let ann = h1.run("ann", "-e CALICO_IP=192.168.1.1 -e CALICO_PROFILE=web");
    let (claims, driver) = (lab.etcd().keys(CLAIMS), h1.raw_docker("info --format {{.Driver}}").ok());
    let other = if driver == "vfs" { "overlay2" } else { "vfs" };
    let readyz = || h1.sh("curl -s http://127.0.0.1:9091/readyz || true");
    h1.stop_dockerd();
    h1.spawn_dockerd_with(&["--storage-driver", other]);
    h1.await_dockerd();
    assert_eq!(h1.raw_docker("info --format {{.Driver}}").ok(), other);
    let why = format!("its storage driver is {other}, and was {driver}");
    wait_until("the node doubts it", SOON * 2, || readyz().contains(&why));
    assert_eq!(h1.create("thief", &["CALICO_IP=192.168.1.1"]).status, 503);
    assert_eq!(lab.etcd().keys(CLAIMS), claims);
    comes_back(h1);
    h1.docker("start ann").ok();
    assert_eq!(ann.ip().to_string(), "192.168.1.1");
    lab.assert_consistent();
    lab.remove_everything();
}

/// Listens at a path and hands on to dockerd all but questions about its networks, one request a connection.
fn without_networks(at: &Path, dockerd: PathBuf) {
    let listener = UnixListener::bind(at).unwrap();
    let serve = |mut client: UnixStream, dockerd: &Path| -> std::io::Result<()> {
        let (mut head, mut byte) = (Vec::new(), [0]);
        while !head.ends_with(b"\r\n\r\n") {
            client.read_exact(&mut byte)?;
            head.push(byte[0]);
        }
        let head = String::from_utf8(head).unwrap();
        if head.lines().next().unwrap().contains("/networks") {
            return client.write_all(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
        }
        let mut engine = UnixStream::connect(dockerd)?;
        engine.write_all(head.replacen("\r\n", "\r\nConnection: close\r\n", 1).as_bytes())?;
        let (mut from, mut to) = (client.try_clone()?, engine.try_clone()?);
        thread::spawn(move || std::io::copy(&mut from, &mut to));
        std::io::copy(&mut engine, &mut client)?;
        client.shutdown(std::net::Shutdown::Both)
    };
    thread::spawn(move || {
        for client in listener.incoming().flatten() {
            let dockerd = dockerd.clone();
            // A client that goes is no failure.
            thread::spawn(move || drop(serve(client, &dockerd)));
        }
    });
}

/// It was believed whatever it said, as a proxy that filters, or another engine, may well do.
#[test]
fn what_has_no_network_none_is_not_taken_for_the_dockerd_that_had_one() {
    let lab = Lab::running(1);
    let h1 = lab.host(1);
    h1.run("ann", "-e CALICO_IP=auto -e CALICO_PROFILE=web");
    let claims = lab.etcd().keys(CLAIMS);
    h1.stop_node();
    h1.stop_dockerd();
    h1.spawn_dockerd_with(&["--data-root", &h1.scratch().join("empty").display().to_string()]);
    h1.await_dockerd();
    let filtered = h1.scratch().join("filtered.sock");
    without_networks(&filtered, h1.raw_socket());
    h1.spawn_node(&["--docker-host", &format!("unix://{}", filtered.display())]);
    let readyz = || h1.sh("curl -s http://127.0.0.1:9091/readyz || true");
    wait_until("the node doubts it", SOON * 2, || readyz().contains("its network none is missing"));
    assert_eq!(h1.create("thief", &["CALICO_IP=auto"]).status, 503);
    assert_eq!(lab.etcd().keys(CLAIMS), claims);
}
