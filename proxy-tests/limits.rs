//! More clients than there is room for: they wait, and the rest goes on.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use nix::sys::resource::{Resource, getrlimit, setrlimit};

use crate::lab::host::Host;
use crate::lab::{Lab, spawn_logged};

/// How long a client waits for its turn.
const PATIENCE: Duration = Duration::from_secs(30);

/// So many clients of the unix socket, each with its request sent.
fn clients(host: &Host, count: usize) -> Vec<UnixStream> {
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, most, most).unwrap();
    let connect = |_| {
        let mut client = UnixStream::connect(host.proxy_socket()).unwrap();
        client.set_read_timeout(Some(PATIENCE)).unwrap();
        client.write_all(b"GET /_ping HTTP/1.1\r\nHost: docker\r\n\r\n").unwrap();
        client
    };
    (0..count).map(connect).collect()
}

/// The status with which the client is answered, before it leaves.
#[track_caller]
fn status(mut client: UnixStream) -> String {
    let mut answer = [0; 12];
    client.read_exact(&mut answer).unwrap();
    answer.escape_ascii().to_string()
}

const SERVED: &str = "HTTP/1.1 200";

#[track_caller]
fn is_served(client: UnixStream) {
    assert_eq!(status(client), SERVED);
}

#[test]
fn a_thousand_clients_at_once_are_served() {
    let lab = Lab::running(1);
    let h1 = lab.host(1);
    let before = h1.node_descriptors();
    clients(h1, 1000).into_iter().for_each(is_served);
    crate::lab::wait::wait_until("their descriptors are closed", PATIENCE, || h1.node_descriptors() <= before + 4);
}

#[test]
fn clients_beyond_the_limit_on_open_files_wait_and_the_node_keeps_descriptors_for_its_own_work() {
    let lab = Lab::hosts(1);
    let h1 = lab.host(1);
    let door = format!("unix://{}", h1.proxy_socket().display());
    let node = format!("ulimit -n 256; exec {}", h1.node_command(&["--listen", &door]).line());
    h1.keep_node(spawn_logged(h1.command("sh").args(["-c", &node]), &h1.node_log()));
    h1.await_ready();
    let waiting = clients(h1, 300);
    // Of 256 descriptors half are kept; a connection has two.
    let mut waiting = waiting.into_iter();
    let first: Vec<UnixStream> = waiting.by_ref().take(60).collect();
    for mut client in &first {
        let mut answer = [0; 12];
        client.read_exact(&mut answer).unwrap();
    }
    // etcd, dockerd, the kernel and the control socket are there for who does not come through the proxy.
    h1.raw_docker("run -d --name plain busybox sleep 1000").ok();
    h1.calicoctl("status").ok();
    assert!(h1.calicoctl("pool add 10.60.0.0/24").succeeded());
    drop(first);
    waiting.for_each(is_served);
}

#[test]
fn a_node_that_runs_out_of_descriptors_says_so_and_serves_everybody_once_there_are_some_again() {
    let lab = Lab::running(1);
    let h1 = lab.host(1);
    h1.limit_node_descriptors(h1.node_descriptors() + 20);
    let waiting = clients(h1, 300);
    crate::lab::wait::wait_until("the node says so", PATIENCE, || {
        h1.node_log_text().contains("a connection was not accepted")
    });
    let said = h1.node_log_text().matches("a connection was not accepted").count();
    assert!(said <= 8, "it is said {said} times");
    h1.limit_node_descriptors(4096);
    let answers: Vec<String> = waiting.into_iter().map(status).collect();
    // Those for whom there was a descriptor on one side only.
    let (served, refused): (Vec<_>, Vec<_>) = answers.into_iter().partition(|answer| answer == SERVED);
    assert!(served.len() > 250 && refused.iter().all(|answer| answer == "HTTP/1.1 502"), "{refused:?}");
    clients(h1, 300).into_iter().for_each(is_served);
    h1.run("ann", "-e CALICO_IP=auto");
    lab.assert_consistent();
}
