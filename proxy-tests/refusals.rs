//! What cannot be is refused before anything exists, with what was wrong and what would be right.

use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::lab::container::SOON;
use crate::lab::host::Host;
use crate::lab::wait::wait_until;
use crate::lab::{Lab, ip};

/// The addresses that creates hold whose containers are not recorded yet.
fn pending(host: &Host) -> usize {
    let claims = host.etcd().entries("/calico/v1/ipam/v4/assignment/");
    claims.values().filter(|claim| claim.json()["state"] == "pending").count()
}

/// What a refused request must leave as it was.
#[derive(Debug, PartialEq)]
struct Everything {
    containers: Vec<String>,
    keys: Vec<String>,
    links: std::collections::BTreeSet<String>,
}

fn everything(host: &Host) -> Everything {
    let kept = |key: &String| key.contains("/assignment/") || key.contains("/workload/") || key.contains("/policy/");
    Everything {
        containers: host.container_ids(),
        keys: host.etcd().keys("/calico/v1/").into_iter().filter(kept).collect(),
        links: host.cali_links(),
    }
}

#[test]
fn a_wish_that_cannot_be_met_is_refused_and_leaves_nothing() {
    let lab = Lab::hosts(1);
    let h1 = lab.host(1);
    // A network of the host's own inside the default pool.
    let space = h1.space.path();
    let space = space.rsplit('/').next().unwrap();
    ip(&["-n", space, "link", "add", "lan0", "type", "bridge"]);
    ip(&["-n", space, "address", "add", "192.168.77.1/24", "dev", "lan0"]);
    ip(&["-n", space, "address", "add", "10.50.0.1/29", "dev", "lan0"]);
    ip(&["-n", space, "address", "add", "fd80:24e2:f998:72d6:77::1/112", "dev", "lan0", "nodad"]);
    ip(&["-n", space, "link", "set", "lan0", "up"]);
    h1.start_node();
    h1.run("holder", "-e CALICO_IP=192.168.1.1");
    for pool in ["10.40.0.0/30", "10.50.0.0/28"] {
        h1.calicoctl(&format!("pool add {pool}")).ok();
    }
    for name in ["full1", "full2"] {
        assert_eq!(h1.create(name, &["CALICO_IP=10.40.0.0/30"]).status, 201);
    }
    let before = everything(h1);

    let long = format!("CALICO_PROFILE={}", "x".repeat(41));
    let refused: [(u16, &[&str], Value, &[&str]); 28] = [
        (400, &["CALICO_IP=192.168.1"], json!({}), &["192.168.1"]),
        (400, &["CALICO_IP=banana"], json!({}), &["banana"]),
        (400, &["CALICO_IP=192.168.1.0/24"], json!({}), &["192.168.1.0/24", "pool"]),
        (400, &["CALICO_IP=8.8.8.8"], json!({}), &["8.8.8.8", "pool"]),
        (400, &["CALICO_IP="], json!({}), &["CALICO_IP"]),
        (400, &["CALICO_IP=auto,"], json!({}), &["CALICO_IP"]),
        (400, &["CALICO_IP=192.168.2.1", "CALICO_IP=192.168.2.2"], json!({}), &["CALICO_IP"]),
        (400, &["CALICO_IP=fd99::1"], json!({}), &["fd99::1", "in no pool", "fd80:24e2:f998:72d6::/64"]),
        (400, &["CALICO_IP=fd99::/64"], json!({}), &["fd99::/64", "fd80:24e2:f998:72d6::/64"]),
        (400, &["CALICO_IP=::ffff:192.168.2.2"], json!({}), &["::ffff:192.168.2.2", "192.168.2.2"]),
        (400, &["CALICO_IP=auto,fe80::ecee:eeff:feee:eeee"], json!({}), &["link-local"]),
        (400, &["CALICO_IP=ff02::1,::1,::"], json!({}), &["multicast", "loopback", "unspecified"]),
        (400, &["CALICO_IP=fd80:24e2:f998:72d6:77::1"], json!({}), &["own address", "lan0"]),
        (400, &["CALICO_IP=fd80:24e2:f998:72d6:77::9"], json!({}), &["fd80:24e2:f998:72d6:77::/112", "lan0"]),
        (409, &["CALICO_IP=ipv6,192.168.1.1"], json!({}), &["192.168.1.1", "holder"]),
        (409, &["CALICO_IP=192.168.1.1"], json!({}), &["192.168.1.1", "holder"]),
        (409, &["CALICO_IP=192.168.9.9,192.168.1.1"], json!({}), &["192.168.1.1", "holder"]),
        (409, &["CALICO_IP=10.40.0.0/30"], json!({}), &["10.40.0.0/30"]),
        (400, &["CALICO_IP=auto"], json!({"NetworkMode": "host"}), &["host", "CALICO_IP"]),
        (400, &["CALICO_IP=auto"], json!({"NetworkMode": "container:holder"}), &["container", "CALICO_IP"]),
        (400, &["CALICO_IP=auto", "CALICO_PROFILE=a/b"], json!({}), &["a/b"]),
        (400, &["CALICO_IP=auto", "CALICO_PROFILE=web,a b"], json!({}), &["a b"]),
        (400, &["CALICO_IP=auto", "CALICO_PROFILE="], json!({}), &["CALICO_PROFILE"]),
        (400, &["CALICO_IP=auto", &long], json!({}), &["xxxxxxxx"]),
        (400, &["CALICO_IP=192.168.77.1"], json!({}), &["192.168.77.1", "lan0"]),
        (400, &["CALICO_IP=192.168.77.5"], json!({}), &["192.168.77.0/24", "lan0"]),
        (400, &["CALICO_IP=banana", "CALICO_PROFILE=a/b"], json!({}), &["banana", "a/b"]),
        (400, &["CALICO_IP=192.168.77.5,192.168.2.2"], json!({}), &["192.168.77.0/24"]),
    ];
    let mut count = 0;
    for (status, env, host_config, words) in &refused {
        let reply = h1.try_create("never", env, host_config).expect("an answer");
        assert_eq!(reply.status, *status, "{env:?}: {}", reply.message());
        for word in *words {
            assert!(reply.message().contains(word), "{word} for {env:?} in {}", reply.message());
        }
        assert_eq!(everything(h1), before, "after {env:?}");

        // The command line prints the reason. Of two entries with one name it sends the last only.
        if env.iter().filter(|entry| entry.starts_with("CALICO_IP=")).count() > 1 {
            continue;
        }
        let mut args = vec!["run", "-d", "--name", "never"];
        env.iter().for_each(|entry| args.extend(["-e", entry]));
        let mode = host_config["NetworkMode"].as_str().map(|mode| format!("--net={mode}"));
        args.extend(mode.as_deref());
        args.push("busybox");
        let said = h1.docker_run(&args).run().fails_with(125);
        for word in *words {
            assert!(said.contains(word), "{word} for {env:?} in {said}");
        }
        assert_eq!(everything(h1), before, "after docker run of {env:?}");
        count += 1;
    }
    let metrics = h1.sh("curl -s http://127.0.0.1:9091/metrics");
    let told = format!("calico_creates_refused_total {}\n", refused.len() + count);
    assert!(metrics.contains(&told), "{told} is not in {metrics}");

    // What dockerd refuses leaves nothing either.
    for (options, code) in [("-e CALICO_IP=auto --name holder", 125), ("-e CALICO_IP=auto --memory=1m", 125)] {
        h1.docker(&format!("run -d {options} busybox")).fails_with(code);
    }
    let missing = json!({"Image": "no-such-image", "Env": ["CALICO_IP=192.168.3.3", "CALICO_PROFILE=new"]});
    assert_eq!(h1.api("POST", "/containers/create", Some(&missing)).status, 404);
    assert_eq!(everything(h1), before);

    // Automatic choice goes round the host's own network, and the overlap is told.
    assert_eq!(h1.create("beyond", &["CALICO_IP=10.50.0.0/28"]).status, 201);
    assert!(h1.container("beyond").ip().octets()[3] >= 8, "{}", h1.container("beyond").ip());
    assert!(h1.calicoctl("status").ok().contains("lan0"));
    // A name without a value is no wish.
    let reply = h1.create("plain", &["CALICO_IP"]);
    assert_eq!(reply.status, 201);
    assert!(h1.container("plain").try_record().is_none());
    lab.assert_consistent();
    lab.remove_everything();
}

#[test]
fn without_etcd_a_wish_is_refused_quickly_or_undone_and_everything_else_goes_on() {
    let lab = Lab::running(1);
    let h1 = lab.host(1);
    let ann = h1.run("ann", "-e CALICO_IP=auto -e CALICO_PROFILE=web");
    let bob = h1.run("bob", "-e CALICO_IP=auto -e CALICO_PROFILE=web");
    let (anns, bobs) = (ann.ip(), bob.space());
    let before = everything(h1);

    // Once it hears nothing, once it is refused.
    for (silent, net) in [(true, "192.168.4"), (false, "192.168.6")] {
        if silent {
            lab.signal_etcd(Signal::SIGSTOP);
        } else {
            lab.kill_etcd();
        }
        let h1 = lab.host(1);
        let asked = Instant::now();
        // Several at once: what etcd has heard of a request when the time is up, it does later.
        std::thread::scope(|scope| {
            for number in 1..=6 {
                scope.spawn(move || {
                    let wish = format!("CALICO_IP={net}.{number}");
                    let reply = h1.create(&format!("never{number}"), &[&wish, "CALICO_PROFILE=new"]);
                    assert_eq!(reply.status, 503, "{}", reply.message());
                    assert!(reply.message().contains("etcd"), "{}", reply.message());
                });
            }
        });
        assert!(asked.elapsed() < Duration::from_secs(9), "took {:?}", asked.elapsed());
        let said = h1.docker(&format!("run -d --name never -e CALICO_IP={net}.9 busybox")).fails_with(125);
        assert!(said.contains("etcd"), "{said}");
        assert_eq!(h1.container_ids(), before.containers);
        assert_eq!(h1.docker("run --rm busybox echo through").ok(), "through");
        assert!(bobs.pings(anns), "a lost etcd cuts nobody off");
        if silent {
            lab.signal_etcd(Signal::SIGCONT);
        } else {
            lab.start_etcd();
        }
        wait_until("etcd is healthy", SOON, || lab.etcd().healthy());
        let h1 = lab.host(1);
        wait_until("the node serves wishes again", Duration::from_secs(20), || {
            h1.create("after", &["CALICO_IP=192.168.5.5"]).status == 201
        });
        h1.container("after").remove();
    }
    // It goes when dockerd has made the containers and they are to be recorded, one of them with a profile to be made.
    let h1 = lab.host(1);
    h1.signal_dockerd(Signal::SIGSTOP);
    std::thread::scope(|scope| {
        let creates = [&["CALICO_IP=192.168.7.1"][..], &["CALICO_IP=192.168.7.2", "CALICO_PROFILE=new"]];
        let creates = creates.map(|env| scope.spawn(move || h1.create(&format!("never-{}", env.len()), env)));
        wait_until("both have their claims", SOON, || pending(h1) == 2);
        lab.signal_etcd(Signal::SIGSTOP);
        h1.signal_dockerd(Signal::SIGCONT);
        for create in creates {
            let reply = create.join().unwrap();
            assert!(reply.status == 503 && reply.message().starts_with("calico: record container "), "{reply:?}");
        }
    });
    assert_eq!(h1.container_ids(), before.containers);
    lab.signal_etcd(Signal::SIGCONT);
    wait_until("etcd is healthy", SOON, || lab.etcd().healthy());
    // A claim that etcd made when nobody waited for it any more may last as long as a lease, and no longer.
    lab.assert_consistent_once_leases_ended();
    assert_eq!(everything(lab.host(1)), before);
    lab.remove_everything();
}

#[test]
fn container_add_refuses_what_it_cannot_do() {
    let lab = Lab::running(1);
    let h1 = lab.host(1);
    let holder = h1.run("holder", "-e CALICO_IP=192.168.1.1");
    h1.raw_docker("run --net=none --name plain -tid busybox").ok();
    h1.raw_docker("run --net=host --name hosty -tid busybox").ok();
    h1.raw_docker("create --net=none --name idle busybox").ok();
    let before = everything(h1);
    for (line, words) in [
        ("container add nobody 192.168.1.2", ["nobody", ""]),
        ("container add idle 192.168.1.2", ["idle", "running"]),
        ("container add hosty 192.168.1.2", ["hosty", "host"]),
        ("container add plain 192.168.1", ["192.168.1", ""]),
        ("container add plain 8.8.8.8", ["8.8.8.8", "pool"]),
        ("container add plain 192.168.1.1", ["192.168.1.1", "holder"]),
        ("container add holder 192.168.1.2", ["holder", ""]),
        ("container remove plain", ["plain", ""]),
        ("container plain profile set web", ["plain", ""]),
    ] {
        let said = h1.calicoctl(line).fails_with(1);
        assert!(words.iter().all(|word| said.contains(word)), "{words:?} for {line} in {said}");
        assert_eq!(everything(h1), before, "after {line}");
    }
    assert_eq!(holder.ip().to_string(), "192.168.1.1");
    lab.assert_consistent();
}
