//! Containers whose root is another user of the machine (`userns-remap`): their network belongs to another user namespace,
//! their files to other ids, and they live as any others.

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json;

use crate::lab::Lab;
use crate::lab::container::{Container, SOON, reach_each_other};
use crate::lab::wait::wait_until;

/// Whom root in a container is outside.
const FIRST: u32 = 231_072;

/// Prints what there is of a network at once, then idles.
const LOOK: &str = "ip -o addr show eth1; ip route; ip -6 route; grep eve /etc/hosts; exec sleep 3600";

/// The first line of the map of a container's users: whom its root is outside.
fn root_of(container: &Container<'_>) -> u32 {
    let map = std::fs::read_to_string(format!("/proc/{}/uid_map", container.pid())).unwrap();
    map.split_whitespace().nth(1).unwrap().parse().unwrap()
}

fn lives_as_any_other(lab: &Lab) {
    let h1 = lab.host(1);
    h1.remap_users(FIRST);
    h1.spawn_node(&["--ip6", &h1.ip6.to_string()]);
    h1.await_ready();
    let by_runtime = h1.runtime("calico") != json!(null);

    let ann = h1.run("ann", "-e CALICO_IP=192.168.1.1,ipv6 -e CALICO_PROFILE=web");
    let bob = h1.run("bob", "--userns=host -e CALICO_IP=192.168.1.2,ipv6 -e CALICO_PROFILE=web");
    let eve = {
        let body = json!({
            "Image": "busybox", "Hostname": "eve", "Cmd": ["sh", "-c", LOOK],
            "Env": ["CALICO_IP=192.168.1.3,ipv6", "CALICO_PROFILE=web"], "HostConfig": {"RestartPolicy": {"Name": "always"}},
        });
        let reply = h1.api("POST", "/v1.41/containers/create?name=eve", Some(&body));
        assert_eq!(reply.status, 201, "{}", reply.message());
        h1.docker("start eve").ok();
        h1.container("eve")
    };
    let all = [&ann, &bob, &eve];
    assert_eq!(all.map(root_of), [FIRST, 0, FIRST]);
    let six = |one: &Container<'_>| one.record()["ipv6_nets"][0].as_str().unwrap().trim_end_matches("/128").to_owned();
    // Everything that is to be there after every start.
    let is_whole = || {
        reach_each_other(&all);
        for one in all {
            assert!(h1.space.pings(one.ip()), "the host does not reach {}", one.name);
            let line = format!("{}\t{}", one.ip(), one.exec(&["hostname"]).ok());
            // As dockerd made it: the root of those whose users are remapped owns it, and everybody may read it.
            let owner = one.exec(&["stat", "-c", "%u %g %a", "/etc/hosts"]).ok();
            let root = FIRST - root_of(one);
            assert_eq!(owner, format!("{root} {root} 644"), "{}", one.name);
            let read = h1.docker(&format!("exec -u 1000:1000 {} cat /etc/hosts", one.name)).ok();
            assert_eq!(read.lines().filter(|found| **found == line).count(), 1, "{line:?} in {read}");
            let by = if by_runtime { "runtime" } else { "node" };
            assert_eq!(one.record()["wired_by"], by, "{}", one.name);
            for other in all {
                one.exec(&["ping", "-6", "-c", "1", "-W", "2", &six(other)]).ok();
            }
        }
        lab.assert_consistent();
    };
    is_whole();
    let starts = |times: usize| {
        let said = || h1.raw_docker("logs eve").ok();
        wait_until("eve has looked at her network", SOON, || said().matches("default via 172.25.0.1").count() >= times);
        let (said, six) = (said(), six(&eve));
        for found in [
            "inet 192.168.1.3/32",
            "default via 172.25.0.1 dev eth1",
            "default via fe80::",
            "192.168.1.3\teve",
            &format!("inet6 {six}/128"),
        ] {
            assert_eq!(said.matches(found).count(), times, "{found:?} in {said}");
        }
    };
    if by_runtime {
        starts(1);
    }
    h1.docker("restart -t 0 ann").ok();
    h1.docker("restart -t 0 bob").ok();
    h1.raw_docker("restart -t 0 eve").ok();
    is_whole();
    kill(Pid::from_raw(eve.pid()), Signal::SIGKILL).unwrap();
    wait_until("eve runs again", SOON, || eve.raw_inspect()["RestartCount"] == 1 && eve.pid() != 0);
    is_whole();
    if by_runtime {
        // By what is kept on this host's disk.
        h1.kill_node();
        h1.raw_docker("restart -t 0 eve").ok();
        starts(4);
        h1.spawn_node(&["--ip6", &h1.ip6.to_string()]);
        h1.await_ready();
        is_whole();
    }
    h1.docker("stop -t 0 ann").ok();
    lab.assert_consistent();
    h1.docker("rm ann").ok();
    h1.run("next", "--userns=host -e CALICO_IP=192.168.1.1 -e CALICO_PROFILE=web");
    lab.assert_consistent();
    lab.remove_everything();
}

#[test]
fn with_the_runtime_a_container_whose_users_are_remapped_lives_as_any_other() {
    lives_as_any_other(&Lab::hosts(1));
}

#[test]
fn without_the_runtime_a_container_whose_users_are_remapped_lives_as_any_other() {
    lives_as_any_other(&Lab::without_runtime(1));
}
