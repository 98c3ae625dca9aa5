//! Docker's SDK for Python, from PyPI, through the node: another client than the docker command, with another HTTP library.

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use crate::lab::Lab;
use crate::lab::between::Recorder;
use crate::lab::command::Run;
use crate::lab::container::SOON;
use crate::lab::host::Host;
use crate::lab::wait::wait_until;

/// A Python that has the SDK and what its web sockets need, at fixed versions. It is made once for all test runs.
fn python() -> &'static Path {
    static PYTHON: OnceLock<PathBuf> = OnceLock::new();
    PYTHON.get_or_init(|| {
        let requirements = include_str!("sdk/requirements.txt");
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("sdk");
        let (python, complete) = (folder.join("bin/python"), folder.join("complete"));
        if std::fs::read_to_string(&complete).is_ok_and(|text| text == requirements) {
            return python;
        }
        let _ = std::fs::remove_dir_all(&folder);
        Run::new("/usr/bin/python3").args(["-m", "venv"]).arg(&folder).run().ok();
        let pip = Run::new(&python).args(["-m", "pip", "--disable-pip-version-check", "install", "--no-deps", "-r"]);
        pip.arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("proxy-tests/sdk/requirements.txt")).run().ok();
        std::fs::write(complete, requirements).unwrap();
        python
    })
}

/// A script in the host's network, at one of the ways to its dockerd.
fn script(host: &Host, name: &str, docker_host: &str) -> Run {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("proxy-tests/sdk").join(name);
    let command = host.command(&python().display().to_string()).arg("-u").arg(script).arg(docker_host);
    command
        .env("DOCKER_CONFIG", host.scratch())
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .lasting(std::time::Duration::from_mins(3))
}

fn ways(host: &Host) -> [String; 3] {
    let proxy = host.proxy_socket();
    let raw = proxy.with_file_name("docker.sock");
    [format!("unix://{}", raw.display()), format!("unix://{}", proxy.display()), "tcp://localhost:2377".to_owned()]
}

/// Ends the test where two transcripts part.
#[track_caller]
fn same(raw: &str, through: &str, way: &str) {
    let mut section = "";
    for (number, (one, other)) in raw.lines().zip(through.lines()).enumerate() {
        section = if one.starts_with("## ") { one } else { section };
        assert_eq!(one, other, "line {number} by {way}, in {section}");
    }
    assert_eq!(raw.lines().count(), through.lines().count(), "by {way}");
}

#[test]
fn the_python_sdk_sees_the_same_through_the_node_as_at_dockerd() {
    let lab = Lab::bridged();
    lab.start_nodes();
    let h1 = lab.host(1);
    let keys = h1.etcd().keys("/calico/v1/");
    let [raw, unix, tcp] = ways(h1);
    let transcript = |way: &str| script(h1, "transcript.py", way).run().ok();
    let expected = transcript(&raw);
    assert!(expected.lines().count() > 100, "{expected}");
    for way in [unix, tcp] {
        same(&expected, &transcript(&way), &way);
    }
    assert_eq!(h1.etcd().keys("/calico/v1/"), keys);
    lab.assert_consistent();
}

#[test]
fn what_the_python_sdk_says_comes_to_dockerd_byte_for_byte_on_a_connection_for_each_of_its_own() {
    let lab = Lab::bridged();
    let h1 = lab.host(1);
    let before_dockerd = Recorder::before(h1, "dockerd.sock", h1.raw_socket());
    h1.spawn_node(&["--docker-host", &before_dockerd.docker_host()]);
    h1.await_ready();
    let before_node = Recorder::before(h1, "node.sock", h1.proxy_socket());
    script(h1, "transcript.py", &before_node.docker_host()).run().ok();
    let said = before_node.said();
    assert!(said.len() > 10 && said.concat().len() > 20_000, "{} bytes on {}", said.concat().len(), said.len());
    // What the node itself asks of dockerd is on connections of its own.
    let missing = || {
        let mut heard = before_dockerd.said();
        let is_missing = |words: &&Vec<u8>| match heard.binary_search(words) {
            Ok(at) => {
                heard.remove(at);
                false
            }
            Err(_) => true,
        };
        said.iter().filter(is_missing).map(|words| words.escape_ascii().to_string()).collect::<Vec<_>>()
    };
    wait_until("all of it has come", SOON, || missing().is_empty());
    lab.assert_consistent();
}

#[test]
fn the_python_sdk_shows_addresses_and_says_why_a_wish_is_refused() {
    let lab = Lab::bridged();
    lab.start_nodes();
    let h1 = lab.host(1);
    let [_, unix, tcp] = ways(h1);
    for way in [unix, tcp] {
        script(h1, "addresses.py", &way).run().ok();
        lab.assert_consistent();
        assert_eq!(h1.etcd().keys("/calico/v1/ipam/v4/assignment/"), [""; 0]);
    }
    lab.remove_everything();
}
