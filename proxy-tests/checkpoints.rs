//! Checkpoints, which dockerd has where it is told to be experimental: what it refuses is its own to refuse, and a process
//! that is restored finds its network there before it goes on, as one that begins does.
//!
//! CRIU, which does the work for runc, does not run on every kernel. A stand-in for it is here: a runtime behind ours whose
//! checkpoint of a process is its end, and whose restoring begins the process anew, with the hooks and at the moment at which
//! runc has them run. So nothing is said of what CRIU makes of a process's open connections.

use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::lab::Lab;
use crate::lab::command::Ran;
use crate::lab::container::{Container, SOON, reach_each_other};
use crate::lab::host::Host;
use crate::lab::http::Reply;
use crate::lab::wait::wait_until;

/// A container's command: it tells what it finds of its network, then idles.
const LOOK: &str = "ip -o addr show eth1; ip route; exec sleep 3600";

/// The stand-in. What it was called with stands in the file behind its name. A file `broken` beside it makes a restoring fail after
/// the hooks have run.
const STAND_IN: &str = r#"#!/bin/sh
here=${0%/*}
echo "$@" >>"$here/calls"
mode= images= leave= global= log= bundle= pidfile= container=
for word; do case $word in checkpoint|restore) mode=$word ;; esac; done
[ -n "$mode" ] || exec runc "$@"
while [ $# -gt 0 ]; do
    case $1 in
        --root|--log|--log-format) global="$global $1 $2"; [ "$1" != --log ] || log=$2; shift ;;
        --systemd-cgroup) global="$global $1" ;;
        --image-path) images=$2; shift ;;
        --bundle) bundle=$2; shift ;;
        --pid-file) pidfile=$2; shift ;;
        --work-path|--criu|--manage-cgroups-mode|--empty-ns|--status-fd) shift ;;
        --leave-running) leave=yes ;;
        -*|checkpoint|restore) ;;
        *) container=$1 ;;
    esac
    shift
done
# As runc tells of an error.
fail() { echo "$1" >&2; echo "{\"level\":\"error\",\"msg\":\"$1\"}" >>"$log"; exit 1; }
[ ! -e "$here/away" ] || fail "criu binary not found: please install criu"
if [ "$mode" = checkpoint ]; then
    # Never the same twice: containerd keeps no two of the same content.
    cat /proc/sys/kernel/random/uuid >"$images/core.img"
    [ -n "$leave" ] || runc $global kill "$container" KILL
    exit
fi
[ -e "$images/core.img" ] || fail "there is no image"
runc $global create --bundle "$bundle" --pid-file "$pidfile" "$container" || exit
if [ -e "$here/broken" ]; then
    runc $global delete --force "$container"
    fail "restoring the process failed"
fi
runc $global start "$container"
"#;

/// Makes the stand-in known to dockerd as `standin`, and dockerd experimental if it is to be. Answers its folder.
fn set_up(lab: &Lab, experimental: bool) -> PathBuf {
    let h1 = lab.host(1);
    let folder = h1.scratch();
    let program = folder.join("stand-in");
    std::fs::write(&program, STAND_IN).unwrap();
    std::fs::set_permissions(&program, PermissionsExt::from_mode(0o755)).unwrap();
    h1.stop_dockerd();
    let mut runtimes = h1.daemon_config()["runtimes"].clone();
    runtimes["standin"] = json!({ "path": program });
    h1.configure_dockerd("runtimes", runtimes);
    h1.configure_dockerd("default-runtime", json!("standin"));
    h1.configure_dockerd("experimental", json!(experimental));
    h1.spawn_dockerd();
    h1.await_dockerd();
    h1.start_node();
    folder
}

/// All that is kept of containers, wherever.
fn kept(host: &Host) -> Value {
    let stored: Vec<String> =
        host.etcd().entries("/calico/v1/").into_iter().map(|(key, entry)| format!("{key} {}", entry.value)).collect();
    let mut files: Vec<String> = std::fs::read_dir(host.state_dir().join("reservations"))
        .unwrap()
        .map(|entry| std::fs::read_to_string(entry.unwrap().path()).unwrap())
        .collect();
    files.sort();
    json!([stored, files, host.cali_links(), host.routes()])
}

/// Starts a container from a checkpoint. dockerd wants to give its bytes to containerd, which has them from the making of it
/// and will not have them twice: so there is one byte more each time.
fn restore(container: &Container<'_>, checkpoint: &str, socket: &Path) -> Ran {
    let folder = container.host.container_log(&container.id).with_file_name("checkpoints").join(checkpoint);
    let mut file = std::fs::OpenOptions::new().create(true).append(true).open(folder.join("more")).unwrap();
    file.write_all(b"+").unwrap();
    let to = format!("unix://{}", socket.display());
    container.host.docker_to(&to, &["start", "--checkpoint", checkpoint, &container.name]).run()
}

/// Waits until containerd has let go of what earlier checkpoints were made of. A part of it is the same each time, and dockerd
/// fails where it is still there.
fn let_go(container: &Container<'_>) {
    let log = container.host.container_log(&container.id);
    let store = log.ancestors().nth(3).unwrap().join("containerd/daemon/io.containerd.content.v1.content");
    assert!(store.is_dir(), "{}", store.display());
    let blobs = || std::fs::read_dir(store.join("blobs/sha256")).map_or(0, Iterator::count);
    wait_until("containerd has let go of the checkpoint before", SOON, || blobs() == 0);
}

fn calls(folder: &Path) -> String {
    std::fs::read_to_string(folder.join("calls")).unwrap()
}

#[test]
fn what_dockerd_refuses_about_checkpoints_comes_as_it_is_and_changes_nothing() {
    for experimental in [false, true] {
        let lab = Lab::hosts(1);
        let folder = set_up(&lab, experimental);
        let h1 = lab.host(1);
        // As on a host without CRIU.
        std::fs::write(folder.join("away"), "").unwrap();
        let ann = h1.run("ann", "-e CALICO_IP=192.168.1.1 -e CALICO_PROFILE=web");
        let bob = h1.run("bob", "-e CALICO_IP=192.168.1.2 -e CALICO_PROFILE=web");
        h1.docker("stop -t 0 bob").ok();
        lab.assert_consistent();
        let before = kept(h1);
        for (method, path, body, refused) in [
            ("POST", "/containers/ann/checkpoints", Some(json!({"CheckpointID": "one", "Exit": true})), true),
            ("POST", "/containers/ann/checkpoints", Some(json!({"CheckpointID": "../one"})), true),
            ("POST", "/containers/bob/checkpoints", Some(json!({"CheckpointID": "one"})), true),
            ("POST", "/containers/nobody/checkpoints", Some(json!({"CheckpointID": "one"})), true),
            ("GET", "/containers/ann/checkpoints", None, !experimental),
            ("DELETE", "/containers/bob/checkpoints/one", None, true),
            ("POST", "/containers/bob/start?checkpoint=one", None, true),
            ("POST", "/v1.41/containers/bob/start?checkpoint=one&checkpoint-dir=%2Fnowhere", None, true),
            ("POST", "/containers/nobody/start?checkpoint=one", None, true),
        ] {
            let through = h1.api(method, path, body.as_ref());
            let straight = Host::try_raw_api(h1, method, path, body.as_ref()).expect("an answer");
            let told = |reply: &Reply| (reply.status, String::from_utf8_lossy(&reply.body).into_owned());
            assert_eq!(told(&through), told(&straight), "{method} {path}, experimental: {experimental}");
            assert_eq!(through.status >= 400, refused, "{method} {path}: {:?}", told(&through));
            lab.assert_consistent();
            assert_eq!(kept(h1), before, "{method} {path}");
        }
        assert!(ann.pid() != 0 && bob.pid() == 0);
        h1.docker("start bob").ok();
        reach_each_other(&[&ann, &bob]);
        lab.assert_consistent();
        lab.remove_everything();
    }
}

#[test]
fn a_process_that_is_restored_finds_its_network_as_it_was_or_is_not_restored() {
    let lab = Lab::hosts(1);
    let folder = set_up(&lab, true);
    let h1 = lab.host(1);
    let bob = h1.run("bob", "-e CALICO_IP=192.168.1.2 -e CALICO_PROFILE=web");
    let body = json!({
        "Image": "busybox", "Cmd": ["sh", "-c", LOOK], "Env": ["CALICO_IP=192.168.1.1", "CALICO_PROFILE=web"],
    });
    assert_eq!(h1.api("POST", "/containers/create?name=ann", Some(&body)).status, 201);
    h1.docker("start ann").ok();
    let ann = h1.container("ann");
    assert_eq!(ann.raw_inspect()["HostConfig"]["Runtime"], "calico");
    let looked = |times: usize| {
        wait_until("she has looked", SOON, || {
            h1.raw_docker("logs ann").ok().matches("inet 192.168.1.1/32").count() == times
        });
        assert_eq!(h1.raw_docker("logs ann").ok().matches("default via 172.25.0.1 dev eth1").count(), times);
    };
    looked(1);
    let identity = (ann.endpoint_id(), ann.record()["mac"].clone());

    // A checkpoint of one that runs on disturbs nobody.
    h1.docker("checkpoint create --leave-running ann on").ok();
    assert!(bob.reaches(ann.ip()));
    lab.assert_consistent();
    assert!(h1.docker("checkpoint ls ann").ok().contains("on"));
    h1.docker("checkpoint rm ann on").ok();
    assert!(ann.pid() != 0 && ann.record()["state"] == "active");

    // One that ends it is an end as any other.
    let_go(&ann);
    h1.docker("checkpoint create ann end").ok();
    wait_until("she has ended", SOON, || ann.pid() == 0);
    lab.assert_consistent();
    restore(&ann, "end", &h1.proxy_socket()).ok();
    assert!(bob.reaches(ann.ip()), "not there when docker start returned");
    looked(2);
    assert_eq!((ann.endpoint_id(), ann.record()["mac"].clone()), identity);
    assert_eq!(ann.record()["wired_by"], "runtime");
    lab.assert_consistent();
    let calls = calls(&folder);
    for (mode, words) in [("checkpoint", "--image-path"), ("restore", "--bundle")] {
        let line = calls.lines().find(|line| line.contains(&format!(" {mode} "))).unwrap_or_else(|| panic!("{calls}"));
        assert!(line.contains(words) && line.ends_with(&ann.id), "{line}");
        assert!(!line.contains("--run-dir"), "ours are not its: {line}");
    }

    // What restores it fails after the hook has wired it.
    let_go(&ann);
    h1.docker("checkpoint create ann again").ok();
    wait_until("she has ended", SOON, || ann.pid() == 0);
    std::fs::write(folder.join("broken"), "").unwrap();
    let said = restore(&ann, "again", &h1.proxy_socket()).fails_with(1);
    assert!(said.contains("restoring the process failed"), "{said}");
    lab.assert_consistent();
    assert_eq!((ann.pid(), ann.record()["state"].clone()), (0, json!("inactive")));
    std::fs::remove_file(folder.join("broken")).unwrap();

    // The hook refuses: its policy is not known to stand.
    h1.kill_node();
    std::fs::remove_file(h1.run_dir().join("programmed").join(ann.endpoint_id())).unwrap();
    let refused = restore(&ann, "again", &h1.raw_socket());
    assert!(!refused.succeeded() && ann.pid() == 0, "{refused}");
    assert!(refused.err().contains("does not stand in the kernel"), "{refused}");
    h1.start_node();
    lab.assert_consistent();
    // It is known to stand again, and the node is away.
    h1.kill_node();
    restore(&ann, "again", &h1.raw_socket()).ok();
    looked(3);
    assert!(bob.reaches(ann.ip()));
    h1.start_node();
    assert_eq!((ann.endpoint_id(), ann.record()["mac"].clone()), identity);
    lab.assert_consistent();
    lab.remove_everything();
}
