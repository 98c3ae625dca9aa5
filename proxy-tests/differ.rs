//! The differ: raw requests to dockerd's own socket and through the node, and every byte that comes back compared.
//!
//! Equal but for what cannot be: dates, ids, times and counters ([`normal`]). Compared are the lines of each head in
//! their order, the body, the bounds of its chunks, and whether the connection goes on. What changes something is told in
//! [`scene`]s that are played once for each way.

mod edited;
pub(crate) mod normal;
mod requests;
pub(crate) mod scene;
pub(crate) mod wire;

use std::fmt::Write;

use scene::{Things, play, scenes};
use serde_json::json;
use wire::{Then, Way, exchange, first_difference};

use crate::lab::Lab;
use crate::lab::host::Host;

const SLEEPER: &str = r#"{"Image":"busybox","Cmd":["sleep","1000"],"StopSignal":"SIGKILL"}"#;
const OURS: &str = r#"{"Image":"busybox","Cmd":["sleep","1000"],"StopSignal":"SIGKILL","Env":["CALICO_IP=auto"]}"#;
const HELLO: &str = r#"{"Image":"busybox","Cmd":["echo","hello"]}"#;

/// What every request finds: a container that runs, one that has ended and said something, some that are called like
/// verbs, a network and a volume.
const WORLD: &str = r#"
- POST /containers/create?name=box $sleeper
- POST /containers/box/start
- POST /containers/create?name=done {"Image":"busybox","Cmd":["sh","-c","for n in 1 2 3 4; do echo line $n; done; echo last >&2"]}
- POST /containers/done/start
- POST /containers/done/wait
- POST /containers/create?name=create $sleeper
- POST /containers/create?name=json $sleeper
- POST /containers/create?name=start $sleeper
- POST /containers/create?name=prune $sleeper
- POST /networks/create {"Name":"net1","IPAM":{"Config":[{"Subnet":"172.31.8.0/24"}]}}
- POST /volumes/create {"Name":"vol1"}
"#;

/// One entry of a tar.
fn entry(name: &str, content: &str) -> Vec<u8> {
    let mut block = [0; 512];
    block[..name.len()].copy_from_slice(name.as_bytes());
    let octal = format!("{:011o}\0", content.len());
    for (at, text) in [(100, "0000644\0"), (108, "0000000\0"), (116, "0000000\0"), (124, octal.as_str())] {
        block[at..at + text.len()].copy_from_slice(text.as_bytes());
    }
    block[136..148].copy_from_slice(b"00000000000\0");
    block[148..156].copy_from_slice(b"        ");
    block[156] = b'0';
    block[257..265].copy_from_slice(b"ustar\x0000");
    let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    let mut entry = block.to_vec();
    entry.extend_from_slice(content.as_bytes());
    entry.resize(entry.len().next_multiple_of(512), 0);
    entry
}

fn tar(entries: &[(&str, &str)]) -> Vec<u8> {
    let mut tar: Vec<u8> = entries.iter().flat_map(|(name, content)| entry(name, content)).collect();
    tar.extend([0; 1024]);
    tar
}

fn things(host: &Host) -> Things {
    let dockerfile = "FROM busybox\nRUN echo made >/made\nCMD cat /made\n";
    let other = "FROM busybox\nARG A\nENV A=$A\nRUN echo $A; false\n";
    let saved = exchange(host, Way::Raw, b"GET /images/busybox/get HTTP/1.0\r\n\r\n", &[false], Then::Fin).bytes;
    let at = saved.windows(4).position(|four| four == b"\r\n\r\n").unwrap() + 4;
    let mut things = Things::new([
        ("@tar", tar(&[("hello", "hello\n")])),
        ("@context", tar(&[("Dockerfile", dockerfile), ("other", other)])),
        ("@junk", b"this is no archive".to_vec()),
        ("@image", saved[at..].to_vec()),
    ]);
    things.set("sleeper", SLEEPER);
    things.set("ours", OURS);
    things.set("hello", HELLO);
    for scene in scenes(WORLD) {
        play(host, Way::Raw, &scene, &mut things);
    }
    things
}

/// What was found to differ, with all that came back.
#[derive(Default)]
struct Differences {
    text: String,
    count: usize,
    compared: usize,
}

impl Differences {
    fn compare(&mut self, what: &str, ways: &[(Way, String, String)]) {
        let (_, raw, raw_whole) = &ways[0];
        for (way, other, whole) in &ways[1..] {
            self.compared += 1;
            if other != raw {
                self.count += 1;
                let difference = first_difference(raw, other);
                writeln!(self.text, "==== {what}\n{difference}\n---- dockerd\n  {raw_whole}\n---- {way:?}\n  {whole}")
                    .unwrap();
            }
        }
    }

    #[track_caller]
    fn assert_none(&self, at_least: usize) {
        assert!(self.count == 0, "{} of {} comparisons differ\n{}", self.count, self.compared, self.text);
        assert!(self.compared >= at_least, "only {} comparisons were made", self.compared);
    }
}

/// A container of ours beside those of others. Lists of containers may show its address, so what asks for one comes before.
fn add_ours(host: &Host) {
    host.docker("create --name ours -e CALICO_IP=auto busybox sleep 1000").ok();
}

fn lists(call: &str) -> bool {
    call.contains("/containers/json?")
}

fn compare_requests(host: &Host, requests: &[requests::Request], found: &mut Differences) {
    for request in requests {
        let mut ways = Vec::new();
        for way in [Way::Raw, Way::Unix, Way::Tcp] {
            if way == Way::Tcp && request.on_unix_alone {
                continue;
            }
            let exchange = exchange(host, way, &request.bytes, &request.heads, request.then);
            ways.push((way, exchange.compared(false), exchange.to_string()));
        }
        found.compare(&request.name, &ways);
    }
}

fn compare_scenes(host: &Host, things: &mut Things, scenes: &[Vec<&str>], found: &mut Differences) {
    for scene in scenes {
        let mut played = Vec::new();
        for way in [Way::Raw, Way::Unix, Way::Tcp] {
            // Of dockerd nobody wishes for an address.
            things.set("wish", if way == Way::Raw { "NO_WISH=auto" } else { "CALICO_IP=auto" });
            played.push((way, play(host, way, scene, things)));
        }
        for number in 0..played[0].1.len() {
            let ways: Vec<_> = played
                .iter()
                .map(|(way, shown)| (*way, shown[number].compared.clone(), shown[number].whole.clone()))
                .collect();
            found.compare(&played[0].1[number].line, &ways);
        }
    }
}

fn lines(text: &'static str) -> impl Iterator<Item = &'static str> {
    text.lines().filter(|line| !line.is_empty() && !line.starts_with('#'))
}

/// Each line as a scene of its own.
fn compare_lines(host: &Host, things: &mut Things, lines: impl IntoIterator<Item = String>, found: &mut Differences) {
    let marked = |line: String| match line.strip_prefix("~ ") {
        Some(line) => format!(">~ {line}"),
        None => format!("> {line}"),
    };
    let lines: Vec<String> = lines.into_iter().map(marked).collect();
    let scenes: Vec<Vec<&str>> = lines.iter().map(|line| vec![line.as_str()]).collect();
    compare_scenes(host, things, &scenes, found);
}

#[test]
fn every_call_that_changes_nothing_is_answered_with_the_same_bytes_in_every_version() {
    let lab = Lab::running(1);
    let (mut things, mut found) = (things(lab.host(1)), Differences::default());
    for version in ["", "/v1.41", "/v1.24", "/v1.23", "/v1.12"] {
        let reads = lines(include_str!("differ/reads.txt")).map(|line| line.replacen(" /", &format!(" {version}/"), 1));
        let (lists, others): (Vec<String>, Vec<String>) = reads.partition(|line| lists(line));
        compare_lines(lab.host(1), &mut things, lists, &mut found);
        add_ours(lab.host(1));
        compare_lines(lab.host(1), &mut things, others, &mut found);
        lab.host(1).docker("rm ours").ok();
    }
    found.assert_none(2_000);
    lab.assert_consistent();
}

#[test]
fn every_spelling_of_a_path_is_answered_with_the_same_bytes() {
    let lab = Lab::running(1);
    let (mut things, mut found) = (things(lab.host(1)), Differences::default());
    let paths = lines(include_str!("differ/paths.txt")).map(str::to_owned);
    let (lists, others): (Vec<String>, Vec<String>) = paths.partition(|line| lists(line));
    compare_lines(lab.host(1), &mut things, lists, &mut found);
    add_ours(lab.host(1));
    compare_lines(lab.host(1), &mut things, others, &mut found);
    found.assert_none(180);
}

#[test]
fn odd_heads_framings_bodies_and_pipelines_are_answered_with_the_same_bytes() {
    let lab = Lab::running(1);
    let mut found = Differences::default();
    things(lab.host(1));
    let requests = [
        requests::heads(),
        requests::framings(),
        requests::create_bodies(),
        requests::pipelines(),
        requests::smuggled(),
    ];
    let (listing, others): (Vec<_>, Vec<_>) =
        requests.into_iter().flatten().partition(|request| lists(&String::from_utf8_lossy(&request.bytes)));
    compare_requests(lab.host(1), &listing, &mut found);
    add_ours(lab.host(1));
    compare_requests(lab.host(1), &others, &mut found);
    found.assert_none(800);
}

/// A name, a request, the ways on which it is refused, with which status, and a word of the reason.
type Refused<'a> = (&'a str, Vec<u8>, &'a [Way], u16, &'a str);

#[test]
fn what_is_refused_that_dockerd_accepts_is_told_in_dockers_own_shape() {
    let lab = Lab::running(1);
    let h1 = lab.host(1);
    let things = things(h1);
    add_ours(h1);
    let containers = h1.container_ids();
    let get = |fields: &str| format!("GET /_ping HTTP/1.1\r\n{fields}\r\n").into_bytes();
    let body = |call: &str, body: &str| things.request(&format!("POST {call} {body}"), false);
    let framed = |path: &str, fields: &str, sent: &str| {
        format!("POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n{fields}\r\n{sent}")
            .into_bytes()
    };
    let (create, chunked) = ("/v1.41/containers/create?name=never", "Transfer-Encoding: chunked\r\n");
    let long = format!(r#"{{"Image":"busybox","Labels":{{"long":"{}"}}}}"#, "x".repeat(16 << 20));
    let in_chunks = format!("{:x}\r\n{long}\r\n0\r\n\r\n", long.len());
    let (both, on_tcp) = ([Way::Unix, Way::Tcp].as_slice(), [Way::Tcp].as_slice());
    let refused: Vec<Refused> = vec![
        ("HTTP/2", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0".to_vec(), both, 400, "HTTP/2"),
        ("a foreign host", get("Host: evil.example\r\n"), on_tcp, 403, "evil.example"),
        ("a foreign host with a port", get("Host: evil.example:2377\r\n"), on_tcp, 403, "evil.example"),
        ("a second host", get("Host: localhost\r\nHost: evil.example\r\n"), on_tcp, 403, "evil.example"),
        ("a foreign origin", get("Host: localhost\r\nOrigin: http://evil.example\r\n"), on_tcp, 403, "evil.example"),
        ("a sandboxed page", get("Host: localhost\r\nOrigin: null\r\n"), on_tcp, 403, "null"),
        ("another site", get("Host: localhost\r\nSec-Fetch-Site: cross-site\r\n"), on_tcp, 403, "cross-site"),
        ("a create that is too long", body(create, &long), both, 413, "16777216"),
        ("a create that is too long, in chunks", framed(create, chunked, &in_chunks), both, 413, "16777216"),
        ("a create without an end", framed(create, "Content-Length: 50\r\n", "{}"), both, 400, "not whole"),
        ("a create with a bad chunk", framed(create, chunked, "x\r\n"), both, 400, "not whole"),
        (
            "a start of ours without an end",
            framed("/v1.41/containers/ours/start", "Content-Length: 2\r\n", "{"),
            both,
            400,
            "breaks off",
        ),
        (
            "a restart of ours with a bad chunk",
            framed("/containers/ours/restart", chunked, "zz\r\n"),
            both,
            400,
            "breaks off",
        ),
        (
            "an old start without an end",
            framed("/v1.23/containers/box/start", chunked, "2\r\n{}\r\n"),
            both,
            400,
            "not whole",
        ),
        (
            "two different addresses",
            body(create, r#"{"Image":"busybox","Env":["CALICO_IP=192.168.1.1"],"env":["CALICO_IP=192.168.1.2"]}"#),
            both,
            400,
            "CALICO_IP",
        ),
        (
            "two different modes",
            body(
                create,
                r#"{"Image":"busybox","Env":["CALICO_IP=auto"],"HostConfig":{"NetworkMode":"none","networkmode":"bridge"}}"#,
            ),
            both,
            400,
            "NetworkMode",
        ),
    ];
    for (name, bytes, ways, status, word) in &refused {
        for way in *ways {
            let then = if matches!(*word, "not whole" | "breaks off") { Then::Fin } else { Then::Ping(1) };
            let exchange = exchange(h1, *way, bytes, &[false], then);
            assert_eq!(exchange.status(), *status, "{name}, {way:?}: {exchange}");
            let text = String::from_utf8_lossy(&exchange.bytes).into_owned();
            // Errors were plain text before API 1.24.
            let shape = if name.contains("old") { "\r\n\r\ncalico: " } else { "\r\n\r\n{\"message\":\"calico: " };
            let kind = if name.contains("old") { "text/plain; charset=utf-8" } else { "application/json" };
            assert!(text.contains(&format!("\r\nContent-Type: {kind}\r\n")), "{name}, {way:?}: {exchange}");
            assert!(text.contains(shape) && text.contains(word), "{name}, {way:?}: {exchange}");
        }
    }
    // On a unix socket no page is behind a request.
    let named = get("Host: evil.example\r\nOrigin: http://evil.example\r\n");
    assert_eq!(exchange(h1, Way::Unix, &named, &[false], Then::Ping(1)).status(), 200);
    assert_eq!(h1.container_ids(), containers);
    assert_eq!(h1.container("ours").raw_inspect()["State"]["Running"], false);
    lab.assert_consistent();
}

#[test]
fn what_changes_something_is_answered_with_the_same_bytes() {
    let lab = Lab::running(1);
    let (mut things, mut found) = (things(lab.host(1)), Differences::default());
    add_ours(lab.host(1));
    compare_scenes(lab.host(1), &mut things, &scenes(include_str!("differ/changes.txt")), &mut found);
    found.assert_none(250);
    lab.assert_consistent();
}

#[test]
fn what_dockerd_says_of_a_container_of_ours_comes_as_it_is_but_for_its_network() {
    let lab = Lab::running(1);
    let h1 = lab.host(1);
    let (mut things, mut found) = (things(h1), Differences::default());
    compare_scenes(h1, &mut things, &scenes(include_str!("differ/ours.txt")), &mut found);
    found.assert_none(200);
    let versions = ["", "/v1.41", "/v1.24", "/v1.22", "/v1.20", "/v1.12"];
    for version in versions {
        add_ours(h1);
        let id = h1.container("ours").id;
        for path in ["containers/ours/json", "containers/ours/json?size=1", "containers/json?all=1&size=1"] {
            edited::compare_look(h1, &format!("{version}/{path}"), &id);
        }
        h1.docker("start ours").ok();
        for path in ["containers/ours/json", "containers/json"] {
            edited::compare_look(h1, &format!("{version}/{path}"), &id);
        }
        h1.docker("rm -f ours").ok();
    }
    // A list of some megabytes, in the middle of which it stands.
    let long = "x".repeat(128 << 10);
    for number in 0..40 {
        if number == 20 {
            add_ours(h1);
        }
        let body = json!({"Image": "busybox", "Labels": {"long": &long}});
        let path = format!("/containers/create?name=long{number}");
        assert_eq!(Host::try_exchange(&h1.raw_socket(), "POST", &path, Some(&body)).unwrap().status, 201);
    }
    edited::compare_look(h1, "/containers/json?all=1", &h1.container("ours").id);
    for version in versions {
        edited::compare_create(h1, version);
    }
    edited::create_in_every_framing(h1);
    assert!(!h1.node_log_text().contains(edited::SECRET), "the log tells what was sent");
    lab.assert_consistent();
    lab.remove_everything();
}
