//! What is not ours goes through as it came: everything is done at dockerd and through the node, and compared.

use std::io::{BufRead, BufReader};
use std::process::Stdio;

use serde_json::json;

use crate::lab::command::{Ran, Run};
use crate::lab::host::{Host, IDLE};
use crate::lab::wait::wait_until;
use crate::lab::{Lab, OUTSIDE, image};

/// The ways to dockerd: straight, through the node's unix socket, through port 2377.
fn three_ways(host: &Host, args: &[&str], input: &[u8]) -> [Ran; 3] {
    let ways: [Run; 3] = [host.raw_docker_run(args), host.docker_run(args), host.docker_over_tcp(args)];
    ways.map(|way| way.input(input).run())
}

/// The same output, byte for byte, on both streams, and the same exit code.
#[track_caller]
fn same(host: &Host, args: &[&str], input: &[u8]) -> Ran {
    let [raw, unix, tcp] = three_ways(host, args, input);
    for way in [&unix, &tcp] {
        assert_eq!(way.code, raw.code, "docker {args:?}\n{raw}\n{way}");
        assert!(way.stdout == raw.stdout, "docker {args:?}: other output\n{raw}\n{way}");
        assert!(way.stderr == raw.stderr, "docker {args:?}: other messages\n{raw}\n{way}");
    }
    raw
}

#[test]
fn the_docker_command_line_works_as_without_us() {
    let lab = Lab::running(1);
    let h1 = lab.host(1);
    let sh = |script: &'static str| ["run", "--rm", "busybox", "sh", "-c", script];
    let talks = |script: &'static str| ["run", "--rm", "-i", "busybox", "sh", "-c", script];

    // Runs: output, messages, exit codes; what comes late; input that ends before the output does.
    assert_eq!(same(h1, &sh("echo out; echo err >&2; exit 42"), b"").code, Some(42));
    assert_eq!(same(h1, &sh("sleep 0.7; echo late"), b"").out(), "late");
    assert_eq!(same(h1, &sh("seq 100000"), b"").out().lines().count(), 100_000);
    assert_eq!(same(h1, &talks("cat; sleep 0.7; echo late"), b"ok\n").out(), "ok\nlate");
    let noise: Vec<u8> =
        (0..3_000_000u32).map(|n| u8::try_from(n.wrapping_mul(2_654_435_761) >> 24).unwrap()).collect();
    assert!(same(h1, &talks("cat"), &noise).stdout == noise);
    assert_eq!(same(h1, &["run", "--rm", "busybox", "/no/such"], b"").code, Some(127));
    assert_eq!(same(h1, &["run", "--rm", "--memory=1m", "busybox"], b"").code, Some(125));

    // A terminal.
    let terminal = |run: Run| Run::new("script").args(["-qec", &run.line(), "/dev/null"]).run();
    let args = ["run", "--rm", "-t", "busybox", "sh", "-c", "tty; stty size >/dev/null && echo sized"];
    let [raw, through] = [h1.raw_docker_run(&args), h1.docker_run(&args)].map(terminal);
    assert!(raw.succeeded() && raw.out().contains("/dev/"), "{raw}");
    assert_eq!((through.code, through.out()), (raw.code, raw.out()));

    // In a container that is there.
    h1.raw_docker_run(&["run", "-d", "--name", "box", "busybox", "sh", "-c", IDLE]).run().ok();
    assert_eq!(same(h1, &["exec", "box", "sh", "-c", "echo out; echo err >&2; exit 3"], b"").code, Some(3));
    assert_eq!(same(h1, &["exec", "box", "sh", "-c", "sleep 0.7; echo late"], b"").out(), "late");
    assert_eq!(same(h1, &["exec", "-i", "box", "sh", "-c", "cat; sleep 0.7; echo late"], b"in\n").out(), "in\nlate");
    assert!(same(h1, &["exec", "-i", "box", "cat"], &noise).stdout == noise);
    assert!(same(h1, &["cp", "box:/bin/busybox", "-"], b"").stdout.len() > 500_000);
    let into = ["cp", "-", "box:/tmp"];
    for way in [h1.raw_docker_run(&into), h1.docker_run(&into), h1.docker_over_tcp(&into)] {
        way.input(image()).run().ok();
        h1.raw_docker("exec box cmp /bin/busybox /tmp/bin/busybox").ok();
        h1.raw_docker("exec box rm -r /tmp/bin").ok();
    }
    for line in [
        "inspect box",
        "port box",
        "images -q",
        "version",
        "network ls",
        "volume ls",
        "info -f {{.ID}}",
        "ps -a --format {{.ID}}{{.Names}}{{.Image}}",
        "top box -o pid,args",
        "wait no-such-box",
    ] {
        same(h1, &line.split(' ').collect::<Vec<_>>(), b"");
    }

    // Logs as they come, to their end.
    let talker = [
        "run",
        "-d",
        "--name",
        "talker",
        "busybox",
        "sh",
        "-c",
        "for n in 1 2 3 4 5; do echo line $n; sleep 0.1; done",
    ];
    h1.raw_docker_run(&talker).run().ok();
    assert_eq!(same(h1, &["logs", "-f", "talker"], b"").out().lines().count(), 5);

    // Builds.
    let file = "FROM busybox\nRUN echo made > /made && sleep 0.5\nCMD cat /made\n";
    for (number, way) in [h1.raw_docker_run(&[]), h1.docker_run(&[]), h1.docker_over_tcp(&[])].into_iter().enumerate() {
        let tag = format!("built{number}");
        let built = way.args(["build", "--no-cache", "-t", &tag, "-"]).input(file).run();
        assert!(built.ok().contains("Successfully built"), "{built}");
        assert_eq!(h1.raw_docker(&format!("run --rm {tag}")).ok(), "made");
    }

    // Bare calls, on paths with and without a version.
    for path in ["/_ping", "/version", "/v1.41/containers/box/json", "/containers/box/json", "/images/json", "/nowhere"]
    {
        let (raw, through) = (h1.raw_api("GET", path), h1.api("GET", path, None));
        assert_eq!(through.status, raw.status, "{path}");
        assert!(through.body == raw.body, "{path}: {:?}", String::from_utf8_lossy(&through.body));
    }
    lab.assert_consistent();
}

#[test]
fn events_come_through_as_they_happen() {
    let lab = Lab::running(1);
    let h1 = lab.host(1);
    let watch = ["events", "--filter", "container=seen", "--format", "{{.Action}}"];
    let mut child = h1.docker_run(&watch).background().stdout(Stdio::piped()).spawn().unwrap();
    let (send, receive) = std::sync::mpsc::channel();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let reader = std::thread::spawn(move || lines.map_while(Result::ok).for_each(|line| send.send(line).unwrap()));
    // The stream is open when an event of another container of that name has been seen on it.
    let mut seen = Vec::new();
    wait_until("the stream is open", crate::lab::START, || {
        h1.raw_docker("create --name seen busybox").ok();
        h1.raw_docker("rm seen").ok();
        seen.extend(receive.try_iter());
        !seen.is_empty()
    });
    h1.raw_docker("run --name seen busybox true").ok();
    wait_until("start and end were seen", crate::lab::container::SOON, || {
        seen.extend(receive.try_iter());
        let place = |action: &str| seen.iter().position(|line| line == action);
        place("start").is_some() && place("start") < place("die")
    });
    child.kill().unwrap();
    child.wait().unwrap();
    reader.join().unwrap();
}

#[test]
fn a_container_that_does_not_ask_for_us_is_not_touched() {
    let lab = Lab::bridged();
    lab.start_nodes();
    let h1 = lab.host(1);
    let keys = h1.etcd().keys("/calico/v1/");
    let run = |through: bool, name: &str, more: &[&str]| {
        let mut args = vec!["run", "-d", "--name", name];
        args.extend(more);
        args.extend(["busybox", "sh", "-c", IDLE]);
        let run = if through { h1.docker_run(&args) } else { h1.raw_docker_run(&args) };
        run.run().ok();
        let container = h1.container(name);
        // What we show of it is dockerd's own reply.
        assert_eq!(container.inspect(), container.raw_inspect());
        container.raw_inspect()
    };
    h1.raw_docker("network create net1").ok();
    for (number, more) in [&[][..], &["--net=net1"], &["--net=host"], &["-p", "8080:80", "-e", "NOT_CALICO_IP=auto"]]
        .into_iter()
        .enumerate()
    {
        let raw = run(false, &format!("raw{number}"), more);
        h1.raw_docker(&format!("rm -f raw{number}")).ok();
        let through = run(true, &format!("through{number}"), more);
        for part in ["HostConfig", "Path", "Args", "Image", "Driver", "Platform"] {
            assert_eq!(through[part], raw[part], "{more:?}");
        }
        assert_eq!(through["Config"]["Env"], raw["Config"]["Env"]);
        let networks = |inspected: &serde_json::Value| -> Vec<String> {
            inspected["NetworkSettings"]["Networks"].as_object().unwrap().keys().cloned().collect()
        };
        assert_eq!(networks(&through), networks(&raw));
    }
    // They reach each other over Docker's own bridge.
    let address = h1.container("through0").raw_inspect()["NetworkSettings"]["IPAddress"].as_str().unwrap().to_owned();
    let from = h1.container("through3");
    from.comes_to_reach(address.parse().unwrap());
    assert_eq!(h1.etcd().keys("/calico/v1/"), keys);
    lab.assert_consistent();
}

#[test]
fn what_a_wish_overrides_is_told_and_docker_s_own_firewall_does_not_stand_in_the_way() {
    let lab = Lab::bridged();
    lab.start_nodes();
    let h1 = lab.host(1);
    h1.raw_docker("network create net1").ok();
    let ran = h1.try_run("ann", "--net=net1 --net-alias=annie -p 8080:80 -e CALICO_IP=auto -e CALICO_PROFILE=web");
    ran.ok();
    for word in ["net1", "port", "web"] {
        assert!(ran.err().to_lowercase().contains(word), "no warning of {word} in {}", ran.err());
    }
    let ran = h1.try_run("loner", "-e CALICO_IP=auto");
    ran.ok();
    assert!(ran.err().contains("profile"), "no warning of the missing profile in {}", ran.err());
    let (ann, loner) = (h1.container("ann"), h1.container("loner"));

    // The profile that did not exist has the default rules.
    let rules = h1.etcd().json("/calico/v1/policy/profile/web/rules");
    let expected = json!({
        "id": "web", "inbound_rules": [{"action": "allow", "src_tag": "web"}], "outbound_rules": [{"action": "allow"}],
    });
    assert_eq!(rules, expected);
    assert_eq!(h1.etcd().json("/calico/v1/policy/profile/web/tags"), json!(["web"]));

    // To Docker's users she is in the network that was asked for, and dockerd put her in none.
    let address = ann.ip().to_string();
    let networks = ann.inspect()["NetworkSettings"]["Networks"].clone();
    assert_eq!(networks["net1"]["IPAddress"], address, "{networks}");
    let aliases = networks["net1"]["Aliases"].as_array().unwrap();
    assert!(aliases.contains(&json!("annie")) && aliases.contains(&json!(ann.id[..12])), "{networks}");
    assert_eq!(ann.raw_inspect()["HostConfig"]["NetworkMode"], "none");
    assert_eq!(ann.record()["requested"]["network_mode"], "net1");
    // Compose takes a container out of its network and puts it in again; of this one nothing is to be done.
    for call in ["disconnect", "connect"] {
        let reply = h1.api("POST", &format!("/networks/net1/{call}"), Some(&json!({"Container": "ann"})));
        assert_eq!(reply.status, 200, "{call}: {:?}", String::from_utf8_lossy(&reply.body));
        let reply = h1.api("POST", &format!("/networks/bridge/{call}"), Some(&json!({"Container": "ann"})));
        assert_eq!(reply.status, 403, "{call}");
        assert!(!reply.message().is_empty());
    }

    // Docker sets the policy of FORWARD to DROP; ours are let through all the same, and nobody else.
    assert!(h1.rules().iter().any(|rule| rule.starts_with(":FORWARD DROP")), "{:?}", h1.rules());
    let bob = h1.run("bob", "-e CALICO_IP=auto -e CALICO_PROFILE=web");
    assert!(ann.reaches(bob.ip()) && bob.reaches(ann.ip()));
    bob.never_reaches(loner.ip());
    loner.never_reaches(bob.ip());
    // Nor does Docker's bridge reach them.
    h1.run("plain", "");
    let plain = h1.container("plain");
    plain.comes_to_reach(OUTSIDE);
    plain.never_reaches(ann.ip());
    lab.assert_consistent();
    lab.remove_everything();
}

/// dockerd reads some values whatever their case, and keeps them as the client spelled them.
#[test]
fn a_container_starts_whatever_spellings_dockerd_has_kept_of_it() {
    let lab = Lab::running(1);
    let h1 = lab.host(1);
    let ann = h1.run("ann", "-e CALICO_IP=auto -e CALICO_PROFILE=web");
    let body = |env: &[&str]| {
        let host = json!({"Isolation": "Default", "NetworkMode": "none"});
        json!({"Image": "busybox", "Cmd": ["sh", "-c", IDLE], "Env": env, "HostConfig": host})
    };
    let other = h1.api("POST", "/containers/create?name=other", Some(&body(&[])));
    assert_eq!(other.status, 201, "{}", other.message());
    let wish = body(&["CALICO_IP=auto", "CALICO_PROFILE=web"]);
    let bob = h1.api("POST", "/containers/create?name=bob", Some(&wish));
    assert_eq!(bob.status, 201, "{}", bob.message());
    for name in ["other", "bob"] {
        for verb in ["start", "restart?t=0", "stop?t=0", "start"] {
            let reply = h1.api("POST", &format!("/containers/{name}/{verb}"), None);
            assert_eq!(reply.status, 204, "{verb} {name}: {}", reply.message());
        }
    }
    assert_eq!(h1.container("other").raw_inspect()["HostConfig"]["Isolation"], "Default", "dockerd keeps no spelling");
    let bob = h1.container("bob");
    ann.comes_to_reach(bob.ip());
    // Nor does a name that is none become a question of ours.
    let nobody = json!({"Container": ""});
    let [raw, through] = [h1.raw_socket(), h1.proxy_socket()]
        .map(|socket| Host::try_exchange(&socket, "POST", "/networks/none/connect", Some(&nobody)).unwrap());
    assert_eq!((through.status, through.message()), (raw.status, raw.message()));
    lab.assert_consistent();
    lab.remove_everything();
}

#[test]
fn a_name_means_the_container_that_dockerd_means_by_it() {
    let lab = Lab::running(1);
    let h1 = lab.host(1);
    let ann = h1.run("ann", "-e CALICO_IP=auto -e CALICO_PROFILE=web");
    // Containers that are called like calls.
    for name in ["create", "json", "start", "prune", "stop"] {
        let container = h1.run(name, "-e CALICO_IP=auto -e CALICO_PROFILE=web");
        let address = container.ip();
        let shown = h1.api("GET", &format!("/containers/{name}/json"), None).json();
        assert_eq!(shown["NetworkSettings"]["IPAddress"], address.to_string(), "{name}");
        for (verb, answers) in [("restart?t=0", true), ("stop?t=0", false), ("start", true)] {
            let reply = h1.api("POST", &format!("/containers/{name}/{verb}"), None);
            assert_eq!(reply.status, 204, "{verb} {name}: {}", reply.message());
            assert_eq!(ann.reaches(address), answers, "after {verb} of {name}");
        }
        assert_eq!(h1.api("DELETE", &format!("/containers/{name}?force=1"), None).status, 204);
        assert!(container.try_record().is_none(), "{name} is still recorded");
    }
    // A name goes before the beginning of an id.
    let bob = h1.run("bob", "-e CALICO_IP=192.168.1.2 -e CALICO_PROFILE=web");
    let short = &bob.id[..12];
    h1.docker(&format!("create --name {short} busybox")).ok();
    let delete = || h1.api("DELETE", &format!("/containers/{short}?force=1"), None).status;
    assert_eq!(delete(), 204);
    assert!(ann.reaches(bob.ip()), "the other one was meant");
    lab.assert_consistent();
    assert_eq!(delete(), 204);
    assert!(bob.try_record().is_none() && h1.cali_links() == [ann.link()].into());
    assert_eq!(
        h1.create("cid", &["CALICO_IP=192.168.1.2"]).status,
        201,
        "the address is free when the delete is answered"
    );
    lab.assert_consistent();
    lab.remove_everything();
}
