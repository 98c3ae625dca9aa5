//! The node is stopped or replaced: nobody notices who does not have to.

use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::process::Stdio;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::differ::wire::{Stream, Way};
use crate::lab::container::SOON;
use crate::lab::host::Host;
use crate::lab::wait::{wait_for, wait_until};
use crate::lab::{Lab, START, http, send};

/// Whether a client that connects over TCP is answered.
fn answers_over_tcp(host: &Host) -> bool {
    let stream = host.space.enter(|| TcpStream::connect(("127.0.0.1", 2377)));
    stream.is_ok_and(|stream| {
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        // This client's Host is a stranger's over TCP: it is told so, by whichever node.
        http::exchange(stream, "GET", "/_ping", None).is_ok_and(|reply| reply.status == 403)
    })
}

#[test]
fn a_new_node_takes_over_and_no_client_is_refused_and_no_stream_is_cut() {
    let lab = Lab::running(1);
    let h1 = lab.host(1);
    let ann = h1.run("ann", "-e CALICO_IP=auto -e CALICO_PROFILE=web");
    let open = h1.docker_over_tcp(&["exec", "-i", "ann", "cat"]);
    let mut stream = open.background().stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let (mut stdin, mut echo) = (stream.stdin.take().unwrap(), BufReader::new(stream.stdout.take().unwrap()));
    let mut say = |word: &str| {
        writeln!(stdin, "{word}").unwrap();
        let mut line = String::new();
        echo.read_line(&mut line).unwrap();
        assert_eq!(line.trim_end(), word);
    };
    say("before");

    let (over, answered) = (AtomicBool::new(false), AtomicUsize::new(0));
    let mut before = std::thread::scope(|scope| {
        scope.spawn(|| {
            while !over.load(Ordering::Relaxed) {
                let reply = h1.try_api("GET", "/_ping", None).map(|reply| reply.status);
                assert_eq!(reply, Some(200), "after {answered:?} answers, on the unix socket");
                assert!(answers_over_tcp(h1), "after {answered:?} answers, over TCP");
                answered.fetch_add(1, Ordering::Relaxed);
            }
        });
        let before = h1.take_over();
        wait_until("the new node has taken over", START, || h1.node_log_text().contains("another node has taken over"));
        h1.await_ready();
        let until_now = answered.load(Ordering::Relaxed);
        wait_until("clients are answered", SOON, || answered.load(Ordering::Relaxed) > until_now + 10);
        over.store(true, Ordering::Relaxed);
        before
    });

    // The old one carries its stream, the new one does the rest.
    say("after");
    assert!(before.try_wait().unwrap().is_none(), "the old node ended before its stream");
    let bob = h1.run("bob", "-e CALICO_IP=auto -e CALICO_PROFILE=web");
    assert!(ann.reaches(bob.ip()) && bob.reaches(ann.ip()));
    lab.assert_consistent();
    drop(stdin);
    assert!(stream.wait().unwrap().success());
    let status = wait_for("the old node ends", SOON, || before.try_wait().unwrap());
    assert!(status.success(), "the old node ended with {status}");
    assert!(!h1.node_log_text().contains("calls that are under way are given up"), "the new one waited for a stream");
    // It has taken nothing of the new one's with it.
    assert!(h1.try_api("GET", "/_ping", None).is_some() && answers_over_tcp(h1));
    lab.remove_everything();
}

#[test]
fn a_new_node_has_the_doors_that_its_flags_name_and_takes_no_place_if_it_cannot_open_them() {
    let lab = Lab::hosts(1);
    let h1 = lab.host(1);
    h1.spawn_node(&[]);
    h1.await_ready();
    // Where the metrics are nobody else can listen.
    let own = format!("unix://{}", h1.proxy_socket().display());
    let refused = h1.node_command(&["--take-over", "--listen", &own, "--listen", "tcp://127.0.0.1:9091"]);
    let refused = refused.run().fails_with(1);
    assert!(refused.contains("127.0.0.1:9091") && refused.contains("in use"), "{refused}");
    assert!(answers_over_tcp(h1), "the node whose place was not taken is gone");
    assert!(h1.try_api("GET", "/_ping", None).is_some(), "its socket's file is gone");
    // Nor can the measures be where another program listens.
    let another = h1.space.enter(|| TcpListener::bind("127.0.0.1:9092")).unwrap();
    let refused = h1.calico_node(&["--take-over", "--listen", &own, "--metrics-listen", "127.0.0.1:9092"]);
    let refused = refused.arg("--ip").arg(h1.ip.to_string()).run().fails_with(1);
    assert!(refused.contains("listen on 127.0.0.1:9092") && refused.contains("in use"), "{refused}");
    drop(another);
    assert!(h1.is_ready(), "the node whose place was not taken is gone");
    let mut before = h1.take_node();
    let door = h1.scratch().join("other.sock");
    h1.spawn_node_with(&["--take-over", "--listen", &format!("unix://{}", door.display())]);
    h1.await_ready();
    let status = wait_for("the old node ends", SOON, || before.try_wait().unwrap());
    assert!(status.success(), "the old node ended with {status}");
    let reply = http::exchange(UnixStream::connect(door).unwrap(), "GET", "/_ping", None).unwrap();
    assert_eq!(reply.status, 200);
    let refused = h1.space.enter(|| TcpStream::connect(("127.0.0.1", 2377))).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::ConnectionRefused, "a door that nobody named");
    assert!(!h1.proxy_socket().exists(), "the file of a socket at which nobody listens");
}

#[test]
fn a_start_that_is_under_way_at_sigterm_comes_to_its_end() {
    // Without the runtime dockerd tells that a container runs before its network stands.
    let lab = Lab::running_without_runtime(1);
    let h1 = lab.host(1);
    assert_eq!(h1.create("box", &["CALICO_IP=auto"]).status, 201);
    lab.signal_etcd(Signal::SIGSTOP);
    let reply = std::thread::scope(|scope| {
        let starting = scope.spawn(|| h1.try_api("POST", "/containers/box/start", None));
        wait_until("the container runs", SOON, || h1.container("box").raw_inspect()["State"]["Running"] == true);
        assert!(!starting.is_finished(), "the start did not wait for the record");
        let stopping = scope.spawn(|| h1.stop_node());
        wait_until("nobody is let in any more", SOON, || h1.try_api("GET", "/_ping", None).is_none());
        assert!(!starting.is_finished(), "the start did not outlast the signal");
        lab.signal_etcd(Signal::SIGCONT);
        stopping.join().unwrap();
        starting.join().unwrap()
    });
    assert_eq!(reply.expect("an answer").status, 204);
    h1.start_node();
    lab.assert_consistent();
    assert!(h1.space.pings(h1.container("box").ip()));
    lab.remove_everything();
}

/// A stream of the Docker API whose head has come.
fn open(host: &Host, way: Way, path: &str) -> Stream {
    let mut stream = Stream::open(host, way);
    stream.write_all(format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n").as_bytes()).unwrap();
    let mut head = [0; 12];
    stream.read_exact(&mut head).unwrap();
    assert_eq!(&head, b"HTTP/1.1 200", "{path}, {way:?}");
    stream
}

#[test]
fn a_client_that_had_come_before_a_take_over_creates_a_container_during_it() {
    let lab = Lab::running(1);
    let h1 = lab.host(1);
    let client = UnixStream::connect(h1.proxy_socket()).unwrap();
    client.set_read_timeout(Some(SOON)).unwrap();
    let other = h1.try_api("GET", "/_ping", None).map(|reply| reply.status);
    assert_eq!(other, Some(200), "who connected before has been accepted then");
    let stops = || h1.node_log_text().matches("stopping: containers keep").count();
    let mut before = h1.take_over();
    wait_until("the old node lets nobody in any more", START, || stops() == 1);
    let body = serde_json::json!({ "Image": "busybox", "Cmd": ["true"], "Env": ["CALICO_IP=auto"] });
    let reply = http::exchange(client, "POST", "/containers/create?name=late", Some(&body)).unwrap();
    assert_eq!(reply.status, 201, "{reply:?}");
    let status = wait_for("the old node ends", SOON, || before.try_wait().unwrap());
    assert!(status.success(), "the old node ended with {status}");
    h1.await_ready();
    lab.assert_consistent();
    h1.docker("start late").ok();
    lab.remove_everything();
}

/// Keeps the host's BIRD from ending, and with it the other parts of the node.
fn hold_bird(host: &Host) {
    let space = host.space.path().rsplit('/').next().unwrap().to_owned();
    for pid in crate::lab::ip(&["netns", "pids", &space]).lines() {
        if std::fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name.trim() == "bird") {
            kill(Pid::from_raw(pid.parse().unwrap()), Signal::SIGSTOP).unwrap();
        }
    }
}

#[test]
fn open_streams_hold_a_stop_up_until_their_time_is_over_or_a_second_signal_comes() {
    let lab = Lab::hosts(1);
    let h1 = lab.host(1);
    h1.raw_docker("run -d --name talker busybox sleep 1000").ok();
    for (patience, is_told_again) in [("600", true), ("1", false)] {
        h1.spawn_node(&["--drain-timeout", patience]);
        h1.await_ready();
        let streams: Vec<(Way, &str, Stream)> = [Way::Unix, Way::Tcp]
            .into_iter()
            .flat_map(|way| ["/events", "/containers/talker/logs?stdout=1&follow=1"].map(|path| (way, path)))
            .map(|(way, path)| (way, path, open(h1, way, path)))
            .collect();
        let mut node = h1.take_node();
        if is_told_again {
            hold_bird(h1);
        }
        send(&node, Signal::SIGTERM);
        wait_until("nobody is let in any more", SOON, || h1.try_api("GET", "/_ping", None).is_none());
        assert!(node.try_wait().unwrap().is_none(), "the open streams did not hold the node");
        if is_told_again {
            send(&node, Signal::SIGTERM);
        }
        let status = wait_for("the node ends", SOON, || node.try_wait().unwrap());
        assert!(status.success(), "the node ended with {status}");
        // A stream is nothing that the other parts are needed for.
        assert!(!h1.node_log_text().contains("calls that are under way are given up"), "it waited for streams twice");
        for (way, path, mut stream) in streams {
            let mut rest = Vec::new();
            let end = stream.read_to_end(&mut rest).map_err(|error| error.kind());
            // Over TCP a FIN would look like the end of logs that were read to it.
            let reset = Err(ErrorKind::ConnectionReset);
            assert!(end == reset || (way == Way::Unix && end.is_ok()), "{path}, {way:?}: {end:?}");
            assert!(!rest.ends_with(b"0\r\n\r\n"), "{path}, {way:?}: the cut stream looks whole");
        }
    }
}
