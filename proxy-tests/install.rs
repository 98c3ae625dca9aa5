//! `calico-node install-runtime` and `uninstall-runtime`: dockerd comes to know our OCI runtime, and forgets it again.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};
use std::path::Path;

use serde_json::{Value, json};

use crate::lab::Lab;
use crate::lab::container::SOON;
use crate::lab::host::{Host, IDLE};
use crate::lab::wait::wait_until;

/// A configuration as an operator may have it.
const THEIRS: &str = "{\n\t\"max-concurrent-uploads\" : 7,\n\t\"runtimes\": { \"spare\": {\"path\":\"runc\"} },\n\t\"labels\":[ \"a=b\" ]\n}\n\n";

/// What tells one state of a file from another, also where the same was written again.
fn state(path: &Path) -> (Vec<u8>, u64, i64, i64, u32, u32, u32) {
    let (text, found) = (fs::read(path).unwrap(), fs::metadata(path).unwrap());
    (text, found.ino(), found.mtime(), found.mtime_nsec(), found.mode(), found.uid(), found.gid())
}

fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// Makes a container for the runtime, which is not started.
fn make(host: &Host, name: &str) -> String {
    let body = json!({
        "Image": "busybox", "Cmd": ["sh", "-c", IDLE], "HostConfig": { "NetworkMode": "none", "Runtime": "calico" },
    });
    let reply = host.try_raw_api("POST", &format!("/containers/create?name={name}"), Some(&body)).unwrap();
    assert_eq!(reply.status, 201, "{}", reply.message());
    reply.json()["Id"].as_str().unwrap().to_owned()
}

#[test]
fn dockerd_knows_the_runtime_once_it_is_installed_and_has_not_been_restarted_nor_its_file_changed_otherwise() {
    let lab = Lab::without_runtime(1);
    let h1 = lab.host(1);
    let real = h1.scratch().join("kept-elsewhere.json");
    fs::write(&real, THEIRS).unwrap();
    fs::set_permissions(&real, fs::Permissions::from_mode(0o640)).unwrap();
    chown(&real, Some(12), Some(34)).unwrap();
    fs::remove_file(h1.daemon_json()).unwrap();
    symlink(&real, h1.daemon_json()).unwrap();
    h1.raw_docker_run(&["run", "-d", "--net=none", "--name", "old", "busybox", "sh", "-c", IDLE]).run().ok();
    let (dockerd, old) = (h1.dockerd_pid(), h1.container("old").pid());

    let said = h1.install_runtime();
    let program = h1.programs().join("calico-runtime");
    let args = json!(["--run-dir", h1.run_dir(), "--state-dir", h1.state_dir()]);
    let entry = json!({ "path": program, "runtimeArgs": args });
    assert!(said.contains("was put into") && said.contains(&format!("dockerd (process {dockerd}) has it")), "{said}");
    assert_eq!(h1.runtime("calico"), entry);
    assert_eq!(h1.runtime("spare"), json!({ "path": "runc" }), "what else is in the file was read, too");
    assert!(h1.raw_docker("info").ok().contains("a=b"));
    assert_eq!((h1.dockerd_pid(), h1.container("old").pid()), (dockerd, old));
    let now = state(&real);
    assert_eq!((now.4 & 0o7777, now.5, now.6), (0o640, 12, 34));
    assert!(fs::symlink_metadata(h1.daemon_json()).unwrap().is_symlink());
    let text = String::from_utf8(now.0.clone()).unwrap();
    let (before, after) = THEIRS.split_once(" },\n\t\"labels").unwrap();
    assert!(text.starts_with(before) && text.ends_with(after), "{text}");
    let mut want: Value = serde_json::from_str(THEIRS).unwrap();
    want["runtimes"]["calico"] = entry;
    assert_eq!(serde_json::from_str::<Value>(&text).unwrap(), want);
    h1.raw_docker("run --rm --net=none --runtime=calico busybox true").ok();

    // Once more: nothing is written.
    let said = h1.install_runtime();
    assert!(said.contains("already"), "{said}");
    assert_eq!(state(&real), now);

    let said = h1.calico_node_in(&h1.programs(), &["uninstall-runtime"]).run().ok();
    assert!(said.contains("was taken out of"), "{said}");
    assert_eq!(fs::read_to_string(&real).unwrap(), THEIRS);
    let without = state(&real);
    assert_eq!((without.4, without.5, without.6), (now.4, now.5, now.6));
    assert_eq!((h1.runtime("calico"), h1.runtime("spare")), (Value::Null, json!({ "path": "runc" })));
    assert_eq!((h1.dockerd_pid(), h1.container("old").pid()), (dockerd, old));
    let said = h1.calico_node_in(&h1.programs(), &["uninstall-runtime"]).run().ok();
    assert!(said.contains("has no runtime calico"), "{said}");
    assert_eq!(state(&real), without);
    assert_eq!(names(&h1.scratch()), ["kept-elsewhere.json", "programs"]);
    h1.raw_docker("rm -f old").ok();
}

#[test]
fn another_runtime_of_the_name_gives_way_and_a_file_without_runtimes_loses_nothing() {
    let lab = Lab::without_runtime(1);
    let h1 = lab.host(1);
    h1.install_runtime();
    let text = fs::read_to_string(h1.daemon_json()).unwrap();
    let moved = h1.scratch().join("moved");
    fs::rename(h1.programs(), &moved).unwrap();
    let said = h1.calico_node_in(&moved, &["install-runtime"]).run().ok();
    assert!(said.contains("took the place of") && said.contains("/programs/calico-runtime"), "{said}");
    assert_eq!(h1.runtime("calico")["path"], json!(moved.join("calico-runtime")));
    let mut entry: Value = serde_json::from_str(&text).unwrap();
    entry["runtimes"]["calico"]["path"] = json!(moved.join("calico-runtime"));
    assert_eq!(serde_json::from_slice::<Value>(&fs::read(h1.daemon_json()).unwrap()).unwrap(), entry);

    // dockerd forgets it though the file then names no runtimes at all.
    h1.calico_node_in(&moved, &["uninstall-runtime"]).run().ok();
    assert_eq!(fs::read_to_string(h1.daemon_json()).unwrap(), "{}");
    assert_eq!(h1.runtime("calico"), Value::Null);

    // The entry is there, but dockerd has not read it.
    fs::write(h1.daemon_json(), &text).unwrap();
    let before = state(&h1.daemon_json());
    fs::rename(&moved, h1.scratch().join("programs")).unwrap();
    let said = h1.install_runtime();
    assert!(said.contains("already"), "{said}");
    assert_ne!(h1.runtime("calico"), Value::Null);
    assert_eq!(state(&h1.daemon_json()), before);

    // A file that has gone since dockerd read it is made.
    fs::remove_file(h1.daemon_json()).unwrap();
    h1.install_runtime();
    assert_eq!(
        serde_json::from_slice::<Value>(&fs::read(h1.daemon_json()).unwrap()).unwrap()["runtimes"],
        json!({
            "calico": h1.runtime("calico")
        })
    );
}

#[test]
fn a_node_that_runs_goes_by_what_dockerd_knows_as_soon_as_it_does() {
    let lab = Lab::running_without_runtime(1);
    let h1 = lab.host(1);
    let is_made_for = |name: &str, runtime: &str| {
        let reply = h1.create(name, &["CALICO_IP=auto", "CALICO_PROFILE=web"]);
        if reply.status != 201 {
            // dockerd has forgotten the runtime, and the node is about to hear of it.
            assert!(reply.status == 400 && reply.message().contains("runtime"), "{}", reply.message());
            return false;
        }
        h1.container(name).raw_inspect()["HostConfig"]["Runtime"] == runtime
    };
    assert!(is_made_for("before", "runc"));

    h1.install_runtime();
    let mut made = 0;
    wait_until("containers are made for the runtime", SOON, || {
        made += 1;
        is_made_for(&format!("with-{made}"), "calico")
    });
    let with = h1.container(&format!("with-{made}"));
    for name in ["before", &with.name] {
        h1.docker(&format!("start {name}")).ok();
    }
    let before = h1.container("before");
    assert_eq!(
        (before.record()["wired_by"].clone(), with.record()["wired_by"].clone()),
        (json!("node"), json!("runtime"))
    );
    with.comes_to_reach(before.ip());

    // What was made for it is in its way.
    let said = h1.calico_node_in(&h1.programs(), &["uninstall-runtime"]).run().fails_with(1);
    assert!(
        said.contains(&format!("1 container is made for it and cannot start without it: {} (", with.name)),
        "{said}"
    );
    with.remove();
    h1.calico_node_in(&h1.programs(), &["uninstall-runtime"]).run().ok();
    wait_until("containers are made for runc again", SOON, || {
        made += 1;
        is_made_for(&format!("without-{made}"), "runc")
    });
    lab.remove_everything();
}

#[test]
fn containers_that_need_the_runtime_are_named_before_it_goes_unless_it_is_forced() {
    let lab = Lab::without_runtime(1);
    let h1 = lab.host(1);
    h1.install_runtime();
    h1.raw_docker("create --name other --net=none busybox").ok();
    let (ann, bob) = (make(h1, "ann"), make(h1, "bob"));
    let before = state(&h1.daemon_json());

    let said = h1.calico_node_in(&h1.programs(), &["uninstall-runtime"]).run().fails_with(1);
    assert!(said.contains("2 containers are made for it"), "{said}");
    assert!(
        said.contains(&format!("ann ({})", &ann[..12])) && said.contains(&format!("bob ({})", &bob[..12])),
        "{said}"
    );
    assert!(said.contains("--force") && !said.contains("other"), "{said}");
    assert_eq!(state(&h1.daemon_json()), before);
    assert_ne!(h1.runtime("calico"), Value::Null);

    h1.raw_docker("rm ann").ok();
    let said = h1.calico_node_in(&h1.programs(), &["uninstall-runtime", "--force"]).run().ok();
    assert!(
        said.contains(&format!("1 container is made for it and cannot start without it: bob ({})", &bob[..12])),
        "{said}"
    );
    assert_eq!(h1.runtime("calico"), Value::Null);
    let said = h1.raw_docker("start bob").fails_with(1);
    assert!(said.contains("calico"), "{said}");

    h1.install_runtime();
    h1.raw_docker("start bob").ok();
    h1.raw_docker("rm -f bob other").ok();
}

#[test]
fn a_file_that_dockerd_does_not_take_up_is_put_back_as_it_was() {
    let lab = Lab::without_runtime(1);
    let h1 = lab.host(1);
    // It came into the file after dockerd had read it.
    let wrong = "{ \"no-such-option\": 1 }";
    fs::write(h1.daemon_json(), wrong).unwrap();
    fs::set_permissions(h1.daemon_json(), fs::Permissions::from_mode(0o600)).unwrap();
    let beside = names(h1.daemon_json().parent().unwrap());
    let pid = h1.dockerd_pid();
    let said = h1.calico_node_in(&h1.programs(), &["install-runtime"]).run().fails_with(1);
    assert!(said.contains("did not take up") && said.contains("is as it was before"), "{said}");
    assert_eq!(fs::read_to_string(h1.daemon_json()).unwrap(), wrong);
    assert_eq!(state(&h1.daemon_json()).4 & 0o7777, 0o600);
    assert_eq!((h1.runtime("calico"), h1.dockerd_pid()), (Value::Null, pid));
    assert!(names(h1.daemon_json().parent().unwrap()).iter().all(|name| beside.contains(name) || name == "scratch"));
}

#[test]
fn while_dockerd_is_down_its_file_is_changed_and_it_reads_it_at_its_start() {
    let lab = Lab::without_runtime(1);
    let h1 = lab.host(1);
    h1.kill_dockerd();
    let said = h1.install_runtime();
    assert!(said.contains("was put into") && said.contains("it reads its file when it starts"), "{said}");
    h1.spawn_dockerd();
    h1.await_dockerd();
    assert_ne!(h1.runtime("calico"), Value::Null);
    let said = h1.install_runtime();
    assert!(said.contains("already"), "{said}");

    h1.kill_dockerd();
    let said = h1.calico_node_in(&h1.programs(), &["uninstall-runtime"]).run().ok();
    assert!(said.contains("was taken out of") && said.contains("it reads its file when it starts"), "{said}");
    assert_eq!(fs::read_to_string(h1.daemon_json()).unwrap(), "{}");
    h1.spawn_dockerd();
    h1.await_dockerd();
    assert_eq!(h1.runtime("calico"), Value::Null);
}

#[test]
fn nothing_is_touched_where_the_runtime_is_missing_or_dockerd_is_not_the_one_that_is_meant() {
    let lab = Lab::without_runtime(1);
    let h1 = lab.host(1);
    let (programs, before) = (h1.programs(), state(&h1.daemon_json()));
    let refused = |options: &[&str], reason: &str| {
        let said = h1.calico_node_in(&programs, &[options, &["install-runtime"]].concat()).run().fails_with(1);
        assert!(said.contains(reason), "{options:?}: {said}");
        assert_eq!(state(&h1.daemon_json()), before, "{options:?}");
        assert_eq!(h1.runtime("calico"), Value::Null, "{options:?}");
    };
    // Another file than the one that dockerd reads is not the one that is meant, whether it is there or not.
    let other = h1.scratch().join("other.json");
    let other = other.to_str().unwrap();
    refused(&["--docker-config", other], "name its file by --docker-config");
    assert!(!Path::new(other).exists());
    fs::write(other, "{}").unwrap();
    refused(&["--docker-config", other], "name its file by --docker-config");
    assert_eq!(fs::read_to_string(other).unwrap(), "{}");
    refused(&["--state-dir", "/var/lib/my calico"], "' ' means something there");

    // At the proxy it is the node that listens, which a hangup is not meant for.
    h1.start_node();
    let proxy = format!("unix://{}", h1.proxy_socket().display());
    refused(
        &["--docker-host", &proxy],
        "is \"calico-node\" and not dockerd; nothing was changed. By hand: put \"calico\":",
    );
    h1.stop_node();

    // As from a container that has programs and tools of its own.
    let elsewhere = "mount -t tmpfs none /mnt && cp \"$0\"/* /mnt && exec /mnt/calico-node --docker-host \"$1\" --docker-config \"$2\" install-runtime";
    let (engine, config) = (format!("unix://{}", h1.raw_socket().display()), h1.daemon_json());
    let run = h1.command("unshare").args(["-m", "sh", "-c", elsewhere]).arg(&programs).arg(engine).arg(config).run();
    let said = run.fails_with(1);
    assert!(said.contains("does not find /mnt/calico-runtime"), "{said}");
    assert_eq!(state(&h1.daemon_json()), before);

    // One that was started with runtimes by flag would forget those.
    h1.kill_dockerd();
    h1.spawn_dockerd_with(&["--add-runtime", "spare=/bin/false"]);
    h1.await_dockerd();
    refused(&[], "was started with --add-runtime");
    assert_eq!(h1.runtime("spare"), json!({ "path": "/bin/false" }));

    let runtime = programs.join("calico-runtime");
    fs::set_permissions(&runtime, fs::Permissions::from_mode(0o644)).unwrap();
    refused(&[], "it is no program");
    fs::remove_file(&runtime).unwrap();
    refused(&[], "it belongs beside calico-node");

    for command in ["install-runtime", "uninstall-runtime"] {
        let nobody = ["--reuid=54321", "--regid=54321", "--clear-groups"];
        let ran = h1.command("setpriv").args(nobody).arg(programs.join("calico-node")).arg(command).run();
        let said = ran.fails_with(2);
        assert!(said.contains("must be run as root"), "{said}");
    }
}

/// dockerd ended with the hangup, or started those containers no more.
#[test]
fn a_runtime_that_dockerd_would_forget_is_refused_where_somebody_needs_it() {
    let lab = Lab::without_runtime(1);
    let h1 = lab.host(1);
    let programs = h1.programs();
    let refused = |command: &str, who: &str| {
        let before = state(&h1.daemon_json());
        let said = h1.calico_node_in(&programs, &[command]).run().fails_with(1);
        assert!(said.contains("io.containerd.runc.v2") && said.contains(who), "{said}");
        assert_eq!(state(&h1.daemon_json()), before);
    };
    h1.raw_docker("create --name pol --runtime io.containerd.runc.v2 busybox true").ok();
    refused("install-runtime", "pol");
    h1.raw_docker("start pol").ok();
    h1.raw_docker("rm -f pol").ok();
    // As it comes after dockerd was stopped for the change.
    h1.stop_dockerd();
    h1.calico_node_in(&programs, &["install-runtime"]).run().ok();
    h1.configure_dockerd("default-runtime", json!("io.containerd.runc.v2"));
    h1.spawn_dockerd();
    h1.await_dockerd();
    h1.raw_docker("run --rm --runtime io.containerd.runc.v2 busybox true").ok();
    refused("uninstall-runtime", "dockerd itself");
    assert!(!h1.runtime("calico").is_null());
}
