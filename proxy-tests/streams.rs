//! Streams through the node: long ones, interactive ones, those that one side ends, and what becomes of the others
//! meanwhile.

use std::io::{Read, Write};
use std::path::PathBuf;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use crate::differ::normal::digest;
use crate::differ::wire::{Stream, Then, Way, exchange};
use crate::lab::command::Run;
use crate::lab::container::SOON;
use crate::lab::host::{Host, IDLE};
use crate::lab::wait::{pause, wait_until};
use crate::lab::{Lab, counts};

const THROUGH: [Way; 2] = [Way::Unix, Way::Tcp];
const ALL: [Way; 3] = [Way::Raw, Way::Unix, Way::Tcp];

fn docker(host: &Host, way: Way, args: &[&str]) -> Run {
    match way {
        Way::Raw => host.raw_docker_run(args),
        Way::Unix => host.docker_run(args),
        Way::Tcp => host.docker_over_tcp(args),
    }
}

/// A container that idles, made without us.
fn idle(host: &Host, name: &str, command: &str) {
    host.raw_docker_run(&["run", "-d", "-i", "--name", name, "busybox", "sh", "-c", command]).run().ok();
}

/// Sends the head of a request that upgrades, and reads the head of the answer.
fn upgraded(host: &Host, way: Way, method: &str, path: &str, fields: &str, body: &str) -> (Stream, String) {
    let mut stream = Stream::open(host, way);
    let head = format!("{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\n{fields}");
    let length = format!("Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}", body.len());
    stream.write_all(format!("{head}{length}").as_bytes()).unwrap();
    let head = read_head(&mut stream);
    (stream, head)
}

fn read_head(stream: &mut Stream) -> String {
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") {
        assert_eq!(stream.read(&mut byte).unwrap(), 1, "the head ends early: {}", head.escape_ascii());
        head.push(byte[0]);
    }
    String::from_utf8(head).unwrap()
}

/// A new exec of `command` in a container.
fn exec(host: &Host, container: &str, command: &[&str], tty: bool) -> String {
    let body = serde_json::json!({
        "AttachStdin": true, "AttachStdout": true, "AttachStderr": true, "Tty": tty, "Cmd": command,
    });
    let reply = host.api("POST", &format!("/containers/{container}/exec"), Some(&body)).json();
    reply["Id"].as_str().unwrap().to_owned()
}

fn start_exec(host: &Host, way: Way, id: &str, tty: bool) -> Stream {
    let body = format!(r#"{{"Detach":false,"Tty":{tty}}}"#);
    let (stream, head) = upgraded(host, way, "POST", &format!("/exec/{id}/start"), "Upgrade: tcp\r\n", &body);
    assert!(head.starts_with("HTTP/1.1 101 UPGRADED\r\n"), "{head}");
    stream
}

/// The two streams in the frames of an attach without a terminal: the first byte names the stream, the last four of
/// eight are the length.
fn unframed(bytes: &[u8]) -> (Vec<u8>, Vec<u8>) {
    let (mut out, mut err, mut at) = (Vec::new(), Vec::new(), 0);
    while let Some(head) = bytes.get(at..at + 8) {
        let length = u32::from_be_bytes([head[4], head[5], head[6], head[7]]) as usize;
        let content = &bytes[at + 8..at + 8 + length];
        if head[0] == 1 {
            out.extend_from_slice(content);
        } else {
            err.extend_from_slice(content);
        }
        at += 8 + length;
    }
    assert_eq!(at, bytes.len(), "a frame is cut");
    (out, err)
}

/// How many connections dockerd has at its socket.
fn connections(host: &Host) -> usize {
    let path = host.raw_socket().display().to_string();
    let table = host.space.enter(|| std::fs::read_to_string("/proc/thread-self/net/unix").unwrap());
    // State 3 is that of a connected socket; the listening one is in state 1.
    table.lines().filter(|line| line.ends_with(&path) && line.split_whitespace().nth(5) == Some("03")).count()
}

#[test]
fn two_streams_that_take_turns_byte_by_byte_and_in_blocks_arrive_whole() {
    let lab = Lab::running(1);
    let h1 = lab.host(1);
    idle(h1, "box", IDLE);
    let script = "n=0; while [ $n -lt 3000 ]; do printf o; printf e >&2; n=$((n + 1)); done; \
                  for n in 1 2 3; do dd if=/bin/busybox bs=1M count=1 2>/dev/null; dd if=/bin/busybox bs=1M count=1 2>/dev/null | cat >&2; done";
    let [raw, unix, tcp] = ALL.map(|way| docker(h1, way, &["exec", "box", "sh", "-c", script]).run());
    assert!(raw.stdout.len() > 3_000_000 && raw.stderr.len() > 3_000_000, "{}", raw.stdout.len());
    for through in [unix, tcp] {
        assert_eq!(digest(&through.stdout), digest(&raw.stdout));
        assert_eq!(digest(&through.stderr), digest(&raw.stderr));
    }
    // The frames themselves are whole too.
    let id = exec(h1, "box", &["sh", "-c", script], false);
    let mut stream = start_exec(h1, Way::Tcp, &id, false);
    let mut all = Vec::new();
    stream.read_to_end(&mut all).unwrap();
    let (out, err) = unframed(&all);
    assert_eq!((digest(&out), digest(&err)), (digest(&raw.stdout), digest(&raw.stderr)));
}

#[test]
fn a_client_that_has_said_all_it_had_to_say_hears_what_comes_later() {
    let lab = Lab::running(1);
    let h1 = lab.host(1);
    let later = Duration::from_secs(counts(1, 600) as u64);
    let late = format!("cat; sleep {}; echo late", later.as_secs());
    let listen = |way: Way| {
        let listening = docker(h1, way, &["run", "--rm", "-i", "busybox", "sh", "-c", &late]).input("ok\n");
        assert_eq!(listening.lasting(later + SOON).run().ok(), "ok\nlate", "{way:?}");
        let args = ["run", "--rm", "busybox", "sh", "-c", "sleep 1; echo out"];
        assert_eq!(docker(h1, way, &args).run().ok(), "out", "{way:?}");
    };
    std::thread::scope(|scope| {
        ALL.map(|way| scope.spawn(move || listen(way))).map(|listening| listening.join().unwrap())
    });
}

#[test]
fn an_attach_without_an_upgrade_is_a_stream_both_ways() {
    let lab = Lab::running(1);
    let h1 = lab.host(1);
    for way in ALL {
        let name = format!("cat{way:?}");
        h1.raw_docker(&format!("create -i --name {name} busybox cat")).ok();
        h1.raw_docker(&format!("start {name}")).ok();
        let mut stream = Stream::open(h1, way);
        let call =
            format!("POST /containers/{name}/attach?stream=1&stdin=1&stdout=1 HTTP/1.1\r\nHost: localhost\r\n\r\n");
        stream.write_all(call.as_bytes()).unwrap();
        let head = read_head(&mut stream);
        assert!(head.starts_with("HTTP/1.1 200 OK\r\n") && !head.contains("Transfer-Encoding"), "{way:?}: {head}");
        stream.write_all(b"hello\n").unwrap();
        let mut frame = [0; 14];
        stream.read_exact(&mut frame).unwrap();
        assert_eq!(&frame, b"\x01\0\0\0\0\0\0\x06hello\n", "{way:?}");
        // The end of what is said ends the process, and that the stream.
        stream.finish();
        let mut rest = Vec::new();
        stream.read_to_end(&mut rest).unwrap();
        assert!(rest.is_empty(), "{way:?}: {}", rest.escape_ascii());
        h1.raw_docker(&format!("wait {name}")).ok();
    }
}

#[test]
fn a_slow_reader_gets_every_byte_and_then_the_end() {
    let lab = Lab::running(1);
    let h1 = lab.host(1);
    idle(h1, "box", IDLE);
    // No part of what they say is like another one.
    let count = "8000000";
    let want = h1.raw_docker_run(&["exec", "box", "seq", count]).run().stdout;
    assert!(want.len() > 60_000_000 && want.ends_with(b"\n8000000\n"), "{} bytes", want.len());
    for way in THROUGH {
        let id = exec(h1, "box", &["seq", count], false);
        let mut stream = start_exec(h1, way, &id, false);
        // Some 30 MB a second, a fraction of what dockerd says: the buffers on the way are full, and when dockerd ends
        // much of what it said is still to come.
        let (mut some, mut all) = (vec![0; 64 << 10], Vec::new());
        loop {
            let count = stream.read(&mut some).unwrap();
            if count == 0 {
                break;
            }
            all.extend_from_slice(&some[..count]);
            pause(Duration::from_millis(2));
        }
        let (out, err) = unframed(&all);
        assert!(out == want && err.is_empty(), "{} bytes of {} came, {way:?}", out.len(), want.len());
    }
}

#[test]
fn dockerd_speaks_http_2_inside_session_and_grpc() {
    let lab = Lab::running(1);
    let h1 = lab.host(1);
    for way in ALL {
        let session = format!("X-Docker-Expose-Session-Uuid: {way:?}\r\nX-Docker-Expose-Session-Name: one\r\n");
        let (mut stream, head) = upgraded(h1, way, "POST", "/session", &format!("Upgrade: h2c\r\n{session}"), "");
        assert!(head.starts_with("HTTP/1.1 101 "), "{way:?}: {head}");
        let mut preface = [0; 24];
        stream.read_exact(&mut preface).unwrap();
        assert_eq!(&preface, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "{way:?}");
        let (mut stream, head) = upgraded(h1, way, "POST", "/grpc", "Upgrade: h2c\r\n", "");
        assert!(head.starts_with("HTTP/1.1 101 "), "{way:?}: {head}");
        let mut frame = [0; 9];
        stream.read_exact(&mut frame).unwrap();
        assert_eq!(frame[3], 4, "the type of a SETTINGS frame, {way:?}: {frame:?}");
    }
}

#[test]
fn a_websocket_carries_both_directions_and_its_close() {
    let lab = Lab::running(1);
    let h1 = lab.host(1);
    h1.raw_docker_run(&["run", "-d", "-i", "--name", "echo", "busybox", "cat"]).run().ok();
    let heard = ALL.map(|way| {
        let fields = "Upgrade: websocket\r\nOrigin: http://localhost\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";
        let (mut stream, head) =
            upgraded(h1, way, "GET", "/containers/echo/attach/ws?stream=1&stdin=1&stdout=1", fields, "");
        assert!(head.contains("s3pPLMBiTxaQ9kYGzzhZRbK+xOo="), "the answer to the key, {way:?}: {head}");
        // A text frame, masked with zeros, and what comes back of it.
        stream.write_all(b"\x81\x86\0\0\0\0hello\n").unwrap();
        let mut frame = [0; 8];
        stream.read_exact(&mut frame).unwrap();
        assert_eq!(&frame[2..], b"hello\n", "{way:?}");
        stream.write_all(b"\x88\x82\0\0\0\0\x03\xe8").unwrap();
        let mut rest = Vec::new();
        stream.read_to_end(&mut rest).unwrap();
        (head, frame, rest)
    });
    assert_eq!(heard[1], heard[0]);
    assert_eq!(heard[2], heard[0]);
}

#[test]
fn a_terminal_has_the_size_that_is_asked_for_while_it_is_attached() {
    let lab = Lab::running(1);
    let h1 = lab.host(1);
    idle(h1, "box", IDLE);
    for way in THROUGH {
        let id = exec(h1, "box", &["sh", "-c", "read line; stty size"], true);
        let mut stream = start_exec(h1, way, &id, true);
        // It is there once it echoes.
        stream.write_all(b"x").unwrap();
        let mut byte = [0];
        stream.read_exact(&mut byte).unwrap();
        let resize =
            format!("POST /exec/{id}/resize?h=33&w=77 HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n");
        let reply = exchange(h1, way, resize.as_bytes(), &[false], Then::Ping(1));
        assert_eq!(reply.status(), 200, "{reply}");
        stream.write_all(b"\n").unwrap();
        let mut rest = String::new();
        stream.read_to_string(&mut rest).unwrap();
        assert!(rest.contains("33 77"), "{way:?}: {rest:?}");
    }
}

#[test]
fn detach_keys_end_the_stream_and_leave_the_container() {
    let lab = Lab::running(1);
    let h1 = lab.host(1);
    let script = "while read line; do echo got $line; done";
    h1.raw_docker_run(&["run", "-dit", "--name", "talker", "busybox", "sh", "-c", script]).run().ok();
    for way in ALL {
        let path = "/containers/talker/attach?stdin=1&stdout=1&stream=1&detachKeys=ctrl-p,x";
        let (mut stream, head) = upgraded(h1, way, "POST", path, "Upgrade: tcp\r\n", "");
        assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
        stream.write_all(b"one\n").unwrap();
        let mut said = Vec::new();
        while !said.ends_with(b"got one\r\n") {
            let mut byte = [0];
            stream.read_exact(&mut byte).unwrap();
            said.push(byte[0]);
        }
        // dockerd knows a key only if it comes alone, as from a finger.
        stream.write_all(b"\x10").unwrap();
        pause(Duration::from_millis(100));
        stream.write_all(b"x").unwrap();
        let mut rest = Vec::new();
        stream.read_to_end(&mut rest).unwrap();
        assert!(rest.is_empty(), "{way:?}: {}", rest.escape_ascii());
        assert_ne!(h1.container("talker").pid(), 0, "{way:?}");
    }
}

#[test]
fn a_hundred_interactive_streams_are_never_crossed() {
    let lab = Lab::running(1);
    let h1 = lab.host(1);
    idle(h1, "box", IDLE);
    let at_once = counts(25, 100);
    let before = h1.node_descriptors();
    for round in 0..100 / at_once {
        std::thread::scope(|scope| {
            for number in 0..at_once {
                let number = round * at_once + number;
                scope.spawn(move || {
                    let way = THROUGH[number % 2];
                    let id = exec(h1, "box", &["cat"], false);
                    let mut stream = start_exec(h1, way, &id, false);
                    let line = format!("{id}\n");
                    let mut writing = stream.again();
                    let text = line.repeat(1_000);
                    let writer = std::thread::spawn(move || {
                        for part in text.as_bytes().chunks(1 + number * 7) {
                            writing.write_all(part).unwrap();
                        }
                        writing.finish();
                    });
                    let mut all = Vec::new();
                    stream.read_to_end(&mut all).unwrap();
                    writer.join().unwrap();
                    let (out, err) = unframed(&all);
                    assert!(out == line.repeat(1_000).as_bytes() && err.is_empty(), "stream {number}");
                });
            }
        });
    }
    // Each thread of the node keeps some pipes and connections for later ones.
    wait_until("the node has no descriptor of theirs", SOON, || h1.node_descriptors() <= before + 30);
}

/// Starts a client that goes on until it is killed.
fn client(host: &Host, way: Way, args: &[&str]) -> Child {
    let mut command = docker(host, way, args).background();
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
}

#[test]
fn a_client_that_is_killed_takes_its_calls_at_dockerd_with_it() {
    let lab = Lab::running(1);
    let h1 = lab.host(1);
    // dockerd sees that an attached client is gone when it writes to it, on each of the two streams.
    idle(h1, "box", "while :; do echo tick; echo tock >&2; sleep 0.2; done");
    let scratch = h1.scratch().join("context");
    std::fs::create_dir_all(&scratch).unwrap();
    std::fs::write(scratch.join("Dockerfile"), "FROM busybox\nRUN sleep 1000\n").unwrap();
    let context = scratch.display().to_string();
    // The node keeps some connections of its own, more of them once it has looked at containers that come and go.
    let names: Vec<String> = (0..4).map(|number| format!("early{number}")).collect();
    let args: Vec<&str> = names.iter().map(String::as_str).collect();
    for name in &args {
        h1.raw_docker(&format!("run -d --name {name} busybox sleep 1000")).ok();
    }
    h1.raw_docker_run(&[&["rm", "-f"], &args[..]].concat()).run().ok();
    let mut before = 0;
    wait_until("the node has settled", SOON, || {
        pause(Duration::from_millis(300));
        let now = connections(h1);
        std::mem::replace(&mut before, now) == now
    });
    for way in THROUGH {
        for args in [&["wait", "box"][..], &["events"], &["logs", "-f", "box"], &["stats", "box"]] {
            let mut clients: Vec<Child> = (0..6).map(|_| client(h1, way, args)).collect();
            let all = before + clients.len();
            wait_until(&format!("docker {args:?} is there"), SOON, || connections(h1) >= all);
            for client in &mut clients {
                client.kill().unwrap();
                client.wait().unwrap();
            }
            // One for each of its two threads the node keeps ready for the next client.
            wait_until(&format!("the calls of docker {args:?} are gone, {way:?}"), Duration::from_secs(15), || {
                connections(h1) <= before + 2
            });
        }
    }
    // Last, because the node looks at the containers of a build. dockerd ends the one whose client is gone.
    for way in THROUGH {
        let running = || h1.raw_docker("ps -q").out().lines().count();
        let mut child = client(h1, way, &["build", "--no-cache", &context]);
        wait_until("the build runs", SOON, || running() == 2);
        child.kill().unwrap();
        child.wait().unwrap();
        wait_until("the build has ended", SOON, || running() == 1);
    }
}

/// How many descriptors the node and dockerd have open.
fn descriptors(host: &Host) -> [usize; 2] {
    let dockerd = std::fs::read_dir(format!("/proc/{}/fd", host.dockerd_pid())).unwrap().count();
    [host.node_descriptors(), dockerd]
}

#[test]
fn a_client_over_tcp_that_closes_or_dies_without_a_word_is_given_up_and_one_that_is_silent_is_not() {
    let lab = Lab::running(1);
    let h1 = lab.host(1);
    idle(h1, "box", IDLE);
    let begin = |command: &str| {
        let id = exec(h1, "box", &["sh", "-c", &format!("echo here; {command}")], false);
        let mut stream = start_exec(h1, Way::Tcp, &id, false);
        let mut here = [0; 8 + 5];
        stream.read_exact(&mut here).unwrap();
        stream
    };
    // A close looks like the end of what a client has to say. A probe tells them apart, once the client's kernel has
    // forgotten the one.
    h1.sh("sysctl -qw net.ipv4.tcp_fin_timeout=1");
    let wait = "until [ -e /go ]; do sleep 0.1; done; echo late";
    let mut half_closed = begin(wait);
    half_closed.finish();
    let before = descriptors(h1);
    let closed: Vec<Stream> = (0..20).map(|_| begin(wait)).collect();
    let [node, dockerd] = descriptors(h1);
    assert!(node >= before[0] + 40 && dockerd >= before[1] + 60, "{before:?} became {node} and {dockerd}");
    drop(closed);
    wait_until("the node is rid of those that have closed", Duration::from_mins(1), || {
        h1.node_descriptors() <= before[0] + 6
    });
    h1.raw_docker("exec box touch /go").ok();
    let mut late = Vec::new();
    half_closed.read_to_end(&mut late).unwrap();
    assert_eq!(unframed(&late).0, b"late\n");
    // The sockets of what it has hijacked dockerd closes when Go next looks for what nobody uses any more.
    wait_until("dockerd is rid of their streams", SOON, || descriptors(h1)[1] <= before[1] + 30);

    let listen = |query: &str| {
        let (mut stream, port) = Stream::open_over_tcp(h1);
        stream.write_all(format!("GET /events{query} HTTP/1.1\r\nHost: localhost\r\n\r\n").as_bytes()).unwrap();
        read_head(&mut stream);
        (stream, port.to_string())
    };
    let before = connections(h1);
    let (mut silent, _) = listen("");
    // They hear of nothing: what is under way to one who is dead the kernel sends again for a quarter of an hour, and does not probe.
    let nobodys = "?filters=%7B%22container%22%3A%5B%22nobody%22%5D%7D";
    let dead: Vec<(Stream, String)> = (0..6).map(|_| listen(nobodys)).collect();
    let all = connections(h1);
    assert!(all >= before + dead.len(), "{before} connections became {all}");
    // Nothing passes between them and the node any more, either way: no FIN, no reset.
    let ports = dead.iter().map(|(_, port)| port.as_str()).collect::<Vec<_>>().join(", ");
    h1.sh("nft 'add table inet cut; add chain inet cut in { type filter hook input priority 0; }'");
    for end in ["sport", "dport"] {
        h1.sh(&format!("nft 'add rule inet cut in tcp {end} {{ {ports} }} drop'"));
    }
    // Each of the node's two threads may have been without the connection that it keeps ready when all were counted.
    wait_until("dockerd is rid of the dead", Duration::from_mins(1), || connections(h1) + dead.len() <= all + 2);
    h1.raw_docker("create --name news busybox true").ok();
    let mut event = [0; 1];
    assert_eq!(silent.read(&mut event).unwrap(), 1, "who lives hears what happens");
}

#[test]
fn a_stop_and_a_restart_are_finished_though_the_client_has_left() {
    // Nobody but the node wires them.
    let lab = Lab::running_without_runtime(1);
    let h1 = lab.host(1);
    let stubborn = "trap ': >/told' TERM; while :; do sleep 0.1; done";
    for (name, verb) in [("stopped", "stop"), ("restarted", "restart")] {
        let wish = ["-d", "--name", name, "-e", "CALICO_IP=auto", "busybox", "sh", "-c", stubborn];
        h1.docker_run(&[&["run"], &wish[..]].concat()).run().ok();
        let before = h1.container(name).raw_inspect()["State"]["StartedAt"].clone();
        let mut stream = Stream::open(h1, Way::Tcp);
        let call =
            format!("POST /containers/{name}/{verb}?t=2 HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n");
        stream.write_all(call.as_bytes()).unwrap();
        // It has begun when the signal came that does not end the process.
        let told = || h1.raw_docker(&format!("exec {name} test -e /told")).succeeded();
        wait_until("the process has been told to end", SOON, told);
        drop(stream);
        wait_until(&format!("the {verb} is done"), SOON, || {
            let state = h1.container(name).raw_inspect()["State"].clone();
            match verb {
                "stop" => state["Running"] == false,
                _ => state["Running"] == true && state["StartedAt"] != before,
            }
        });
        let address = h1.container(name).ip();
        wait_until(&format!("its network is as after a {verb}"), SOON, || {
            h1.space.pings(address) == (verb == "restart")
        });
    }
    lab.assert_consistent();
}

#[test]
fn a_dockerd_killed_in_the_middle_of_an_export_is_an_error_to_the_client() {
    let lab = Lab::running(1);
    let h1 = lab.host(1);
    h1.raw_docker("run --name big busybox sh -c 'head -c 300000000 /dev/zero >/zeros'").ok();
    for way in THROUGH {
        let mut child = docker(h1, way, &["export", "big"])
            .background()
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut out = child.stdout.take().unwrap();
        let mut some = vec![0; 1 << 20];
        out.read_exact(&mut some).unwrap();
        h1.kill_dockerd();
        let mut rest = Vec::new();
        out.read_to_end(&mut rest).unwrap();
        let mut said = String::new();
        child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
        let status = child.wait().unwrap();
        assert!(!status.success(), "{way:?}: {status} after {} bytes", rest.len());
        assert!(said.to_lowercase().contains("eof") || said.contains("reset"), "{way:?}: {said}");
        h1.spawn_dockerd();
        h1.await_dockerd();
    }
}

#[test]
fn without_dockerd_the_answer_is_prompt_and_readable_and_a_new_socket_is_found() {
    let lab = Lab::running(1);
    let h1 = lab.host(1);
    h1.kill_dockerd();
    for way in THROUGH {
        let asked = Instant::now();
        let said = docker(h1, way, &["ps"]).run().fails_with(1);
        assert!(said.contains("calico: ") && said.contains("docker.sock"), "{way:?}: {said}");
        assert!(asked.elapsed() < Duration::from_secs(2), "{way:?}: took {:?}", asked.elapsed());
        let reply =
            exchange(h1, way, b"GET /containers/json HTTP/1.1\r\nHost: localhost\r\n\r\n", &[false], Then::Ping(1));
        assert_eq!(reply.status(), 502, "{reply}");
    }
    // Kept under another name, because the number of an inode that is gone is used again.
    std::fs::hard_link(h1.raw_socket(), h1.raw_socket().with_extension("old")).unwrap();
    let old = std::fs::metadata(h1.raw_socket()).map(|socket| std::os::unix::fs::MetadataExt::ino(&socket));
    h1.spawn_dockerd();
    h1.await_dockerd();
    let new = std::fs::metadata(h1.raw_socket()).map(|socket| std::os::unix::fs::MetadataExt::ino(&socket));
    assert_ne!(new.ok(), old.ok(), "the socket is another one");
    for way in THROUGH {
        docker(h1, way, &["ps"]).run().ok();
    }
}

#[test]
fn a_dockerd_that_is_held_up_answers_in_the_end() {
    let lab = Lab::running(1);
    let h1 = lab.host(1);
    h1.signal_dockerd(Signal::SIGSTOP);
    std::thread::scope(|scope| {
        let held = Duration::from_secs(counts(7, 90) as u64);
        let ask = move |way: &Way| docker(h1, *way, &["ps"]).lasting(held + SOON).run();
        let asked: Vec<_> = THROUGH.iter().map(|way| scope.spawn(move || ask(way))).collect();
        pause(held);
        assert!(asked.iter().all(|asked| !asked.is_finished()));
        h1.signal_dockerd(Signal::SIGCONT);
        for asked in asked {
            asked.join().unwrap().ok();
        }
    });
}

#[test]
fn an_upload_that_asks_first_to_a_container_that_is_not_there_is_never_sent() {
    let lab = Lab::running(1);
    let h1 = lab.host(1);
    let file = h1.scratch().join("large");
    std::fs::write(&file, vec![0; 64 << 20]).unwrap();
    let socket = h1.proxy_socket().display().to_string();
    for to in [
        vec!["--unix-socket", &socket, "http://localhost/containers/nobody/archive?path=/"],
        vec!["http://127.0.0.1:2377/containers/nobody/archive?path=/"],
    ] {
        let printed = h1
            .command("curl")
            .args(["-s", "-o", "/dev/null", "-T", &file.display().to_string(), "-H", "Expect: 100-continue"])
            .args(["--expect100-timeout", "30", "-w", "%{http_code} %{size_upload}"])
            .args(&to)
            .run()
            .ok();
        assert_eq!(printed, "404 0", "{to:?}");
    }
}

#[test]
fn the_head_of_events_comes_at_once_where_nothing_happens() {
    let lab = Lab::running(1);
    let h1 = lab.host(1);
    for way in THROUGH {
        let mut stream = Stream::open(h1, way);
        stream.write_all(b"GET /events HTTP/1.1\r\nHost: localhost\r\n\r\n").unwrap();
        let asked = Instant::now();
        assert!(read_head(&mut stream).starts_with("HTTP/1.1 200 OK\r\n"));
        assert!(asked.elapsed() < Duration::from_secs(1), "{way:?}: took {:?}", asked.elapsed());
    }
}

#[test]
fn a_build_whose_dockerfile_comes_last_is_built() {
    let lab = Lab::running(1);
    let h1 = lab.host(1);
    let folder = h1.scratch();
    std::fs::write(folder.join("zeros"), vec![0; 100 << 20]).unwrap();
    std::fs::write(folder.join("Dockerfile"), "FROM busybox\nCOPY zeros /zeros\nRUN wc -c /zeros\n").unwrap();
    for way in THROUGH {
        let context = Run::new("tar").arg("-C").arg(&folder).args(["-c", "zeros", "Dockerfile"]).run().stdout;
        let built = docker(h1, way, &["build", "--no-cache", "-"]).input(context).run();
        assert!(built.ok().contains("104857600 /zeros"), "{built}");
    }
}

#[test]
fn an_answer_that_comes_before_the_end_of_an_upload_is_heard() {
    let lab = Lab::running(1);
    let h1 = lab.host(1);
    idle(h1, "box", IDLE);
    let head = "PUT /containers/box/archive?path=/no/such/place HTTP/1.1\r\nHost: localhost\r\n";
    let request = [format!("{head}Content-Length: 1073741824\r\n\r\n").as_bytes(), &vec![0; 200 << 20]].concat();
    for way in THROUGH {
        let reply = exchange(h1, way, &request, &[false], Then::Ping(1));
        assert_eq!(reply.status(), 404, "{way:?}: {reply}");
    }
}

#[test]
fn readers_that_stall_cost_no_memory_and_nobody_else_any_time() {
    let lab = Lab::running(1);
    let h1 = lab.host(1);
    idle(h1, "chatty", "exec yes $(head -c 4000 /dev/zero | tr '\\0' x)");
    let ping = || {
        let mut stream = Stream::open(h1, Way::Tcp);
        let mut times: Vec<Duration> = (0..300)
            .map(|_| {
                let asked = Instant::now();
                stream.write_all(b"HEAD /_ping HTTP/1.1\r\nHost: localhost\r\n\r\n").unwrap();
                read_head(&mut stream);
                asked.elapsed()
            })
            .collect();
        times.sort_unstable();
        times[times.len() / 2]
    };
    wait_until("there is much to read", SOON, || {
        let id = &h1.container("chatty").id;
        std::fs::metadata(h1.container_log(id)).is_ok_and(|log| log.len() > 50 << 20)
    });
    h1.raw_docker("kill chatty").ok();
    let before = (h1.node_memory(), ping());
    let stalled: Vec<Stream> = (0..50)
        .map(|number| {
            let mut stream = Stream::open(h1, THROUGH[number % 2]);
            stream
                .write_all(b"GET /containers/chatty/logs?follow=1&stdout=1 HTTP/1.1\r\nHost: localhost\r\n\r\n")
                .unwrap();
            read_head(&mut stream);
            stream
        })
        .collect();
    // They are stalled when every buffer on the way is full: the node has nothing to do any more.
    wait_until("all of them are stalled", Duration::from_secs(40), || {
        let before = h1.node_ticks();
        pause(Duration::from_millis(300));
        h1.node_ticks() <= before + 1
    });
    let memory = h1.node_memory();
    assert!(memory < before.0 + ((50 * 512) << 10), "{} bytes grew to {memory}", before.0);
    // What else goes on on this machine takes its time too.
    let mut latency = Duration::MAX;
    wait_until("others are answered as quickly as before", SOON, || {
        latency = latency.min(ping());
        latency < before.1 * 2 + Duration::from_micros(200)
    });
    drop(stalled);
}

#[test]
fn trees_of_files_arrive_as_they_were() {
    let lab = Lab::running(1);
    let h1 = lab.host(1);
    idle(h1, "box", IDLE);
    let folder = h1.scratch();
    let make = "mkdir -p tree/a tree/b && cd tree && for n in $(seq 2000); do echo $n >a/$n; done \
                && ln a/1 b/hard && ln -s ../a/2 b/soft && truncate -s 50M b/sparse && chmod 640 a/3 && : >b/empty";
    h1.command("sh").args(["-c", &format!("cd {} && {make}", folder.display())]).run().ok();
    let sum = |at: &PathBuf| {
        let list = "find . -type f -exec md5sum {} + | sort; find . -exec stat -c '%n %a %h %s %F' {} + | grep -v '^\\. ' | grep -v directory | sort";
        h1.command("sh").args(["-c", &format!("cd {} && {list}", at.display())]).run().ok()
    };
    let want = sum(&folder.join("tree"));
    for (number, way) in THROUGH.into_iter().enumerate() {
        let (there, back) = (format!("box:/there{number}"), folder.join(format!("back{number}")));
        docker(h1, way, &["cp", &folder.join("tree").display().to_string(), &there]).run().ok();
        docker(h1, way, &["cp", &there, &back.display().to_string()]).run().ok();
        assert!(sum(&back) == want, "{way:?}: the tree is another one");
    }
}

#[test]
fn ten_thousand_pings_go_over_one_connection() {
    let lab = Lab::running(1);
    for way in THROUGH {
        let mut stream = Stream::open(lab.host(1), way);
        let mut some = vec![0; 4096];
        for number in 0..10_000 {
            stream.write_all(b"HEAD /_ping HTTP/1.1\r\nHost: localhost\r\n\r\n").unwrap();
            let mut end = 0;
            while !some[..end].ends_with(b"\r\n\r\n") {
                let count = stream.read(&mut some[end..]).unwrap();
                assert!(count > 0, "{way:?}: ended at ping {number}");
                end += count;
            }
            assert!(some.starts_with(b"HTTP/1.1 200 OK\r\n"));
        }
    }
}
