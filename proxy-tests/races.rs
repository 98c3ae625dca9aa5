//! Many at once.

use std::collections::BTreeSet;
use std::sync::Barrier;
use std::thread;
use std::time::Duration;

use crate::lab::Lab;
use crate::lab::container::SOON;
use crate::lab::http::Reply;
use crate::lab::wait::{pause, wait_until};

#[test]
fn of_racing_creates_for_one_address_exactly_one_wins() {
    let lab = Lab::running(2);
    for round in 1..=8 {
        let address = format!("CALICO_IP=192.168.1.{round}");
        let begin = Barrier::new(4);
        let statuses: Vec<u16> = thread::scope(|scope| {
            let racers: Vec<_> = (0..4)
                .map(|racer| {
                    let host = lab.host(1 + racer % 2);
                    let (begin, address) = (&begin, &address);
                    scope.spawn(move || {
                        begin.wait();
                        host.create(&format!("racer{round}-{racer}"), &[address, "CALICO_PROFILE=web"]).status
                    })
                })
                .collect();
            racers.into_iter().map(|racer| racer.join().unwrap()).collect()
        });
        let mut sorted = statuses.clone();
        sorted.sort_unstable();
        assert_eq!(sorted, [201, 409, 409, 409], "round {round}");
    }
    let containers: usize = lab.all_hosts().iter().map(|host| host.container_ids().len()).sum();
    assert_eq!(containers, 8);
    lab.assert_consistent();
    lab.remove_everything();
}

/// Such a container named a profile that was no more, so nothing reached it, and no warning said so.
#[test]
fn a_profile_that_is_removed_beside_a_create_which_names_it_is_made_again_or_stays() {
    let lab = Lab::running(1);
    let h1 = lab.host(1);
    let mut removed = 0;
    for round in 0..60 {
        let profile = format!("fleeting{round}");
        h1.calicoctl(&format!("profile add {profile}")).ok();
        let begin = Barrier::new(2);
        let (created, gone) = thread::scope(|scope| {
            let remover = scope.spawn(|| {
                begin.wait();
                // So that it falls into every part of a create.
                pause(Duration::from_micros(round % 12 * 500));
                h1.calicoctl(&format!("profile remove {profile}")).succeeded()
            });
            begin.wait();
            let env = ["CALICO_IP=auto".to_owned(), format!("CALICO_PROFILE={profile}")];
            let created = h1.create(&format!("ann{round}"), &[env[0].as_str(), env[1].as_str()]);
            (created, remover.join().unwrap())
        });
        assert_eq!(created.status, 201, "{}", created.message());
        let shown = h1.calicoctl(&format!("profile {profile} rule show"));
        assert!(
            shown.succeeded(),
            "round {round}: {} is there without its profile",
            h1.container(&format!("ann{round}")).ip()
        );
        let made = created.json()["Warnings"].to_string().contains("did not exist and was made");
        assert_eq!(made, gone, "round {round}: {}", created.json());
        removed += usize::from(gone);
    }
    assert!(removed > 0, "no remove came first");
    lab.assert_consistent();
    lab.remove_everything();
}

#[test]
fn many_automatic_addresses_at_once_are_all_different() {
    let lab = Lab::running(2);
    lab.host(1).calicoctl("pool add 10.60.0.0/28").ok();
    // Fourteen addresses for sixteen.
    let begin = Barrier::new(16);
    let replies: Vec<Reply> = thread::scope(|scope| {
        let racers: Vec<_> = (0..16)
            .map(|racer| {
                let (host, begin) = (lab.host(1 + racer % 2), &begin);
                scope.spawn(move || {
                    begin.wait();
                    host.create(&format!("racer{racer}"), &["CALICO_IP=10.60.0.0/28"])
                })
            })
            .collect();
        racers.into_iter().map(|racer| racer.join().unwrap()).collect()
    });
    let count = |status: u16| replies.iter().filter(|reply| reply.status == status).count();
    let told: Vec<String> = replies.iter().filter(|reply| reply.status != 201).map(Reply::message).collect();
    assert_eq!((count(201), count(409)), (14, 2), "{told:#?}");
    let mut addresses = BTreeSet::new();
    for host in lab.all_hosts() {
        for id in host.container_ids() {
            assert!(addresses.insert(host.container(&id).ip()));
        }
    }
    assert_eq!(addresses.len(), 14);
    lab.assert_consistent();

    // Starts, stops and removals of many at once.
    thread::scope(|scope| {
        for host in lab.all_hosts() {
            for id in host.container_ids() {
                scope.spawn(move || {
                    for call in ["start", "stop?t=0", "start"] {
                        let reply = host.api("POST", &format!("/containers/{id}/{call}"), None);
                        assert_eq!(reply.status, 204, "{call}: {}", reply.message());
                    }
                });
            }
        }
    });
    lab.assert_consistent();
    lab.remove_everything();
}

#[test]
fn calls_about_one_container_at_once_leave_it_as_the_last_of_them_left_it() {
    let lab = Lab::running(1);
    let h1 = lab.host(1);
    let bob = h1.run("bob", "-e CALICO_IP=auto -e CALICO_PROFILE=web");
    let ann = h1.run("ann", "-e CALICO_IP=192.168.1.1 -e CALICO_PROFILE=web");
    let calls = ["start", "stop?t=0", "restart?t=0", "kill", "start"];
    for round in 0..4 {
        thread::scope(|scope| {
            for first in 0..calls.len() {
                scope.spawn(move || {
                    for call in calls.iter().cycle().skip(first + round).take(4) {
                        let reply = h1.api("POST", &format!("/containers/ann/{call}"), None);
                        // dockerd's own word for what is not so just then.
                        assert!(
                            matches!(reply.status, 204 | 304 | 409),
                            "{call}: {} {}",
                            reply.status,
                            reply.message()
                        );
                        let told = reply.status != 409 || !reply.message().starts_with("calico:");
                        assert!(told, "{call}: {}", reply.message());
                    }
                });
            }
        });
        lab.assert_consistent();
        assert_eq!(h1.api("POST", "/containers/ann/restart?t=0", None).status, 204);
        assert!(bob.reaches(ann.ip()) && ann.reaches(bob.ip()));
    }
    lab.remove_everything();
}

/// A stop may take its time, for which the container is locked; nothing else is.
#[test]
fn while_one_container_is_being_stopped_another_is_started() {
    let lab = Lab::running(1);
    let h1 = lab.host(1);
    let stubborn = "trap ': >/told' TERM; while :; do sleep 0.1; done";
    let wish = ["-d", "--name", "ann", "-e", "CALICO_IP=auto", "busybox", "sh", "-c", stubborn];
    h1.docker_run(&[&["run"], &wish[..]].concat()).run().ok();
    h1.docker("create --name bob -e CALICO_IP=auto busybox sleep 600").ok();
    thread::scope(|scope| {
        let stop = scope.spawn(|| h1.api("POST", "/containers/ann/stop?t=20", None).status);
        let told = || h1.raw_docker("exec ann test -e /told").succeeded();
        wait_until("ann has been told to end", SOON, told);
        assert_eq!(h1.api("POST", "/containers/bob/start", None).status, 204);
        assert!(!stop.is_finished(), "bob's start waited for ann's stop");
        assert_eq!(h1.api("POST", "/containers/ann/kill", None).status, 204);
        assert_eq!(stop.join().unwrap(), 204);
    });
    lab.assert_consistent();
    lab.remove_everything();
}

/// The view of a node follows etcd, so for some milliseconds it knew nothing of a pool, and refused its addresses.
#[test]
fn a_pool_is_there_for_the_next_create_on_every_host() {
    let lab = Lab::running(2);
    for round in 0..10 {
        let pool = format!("10.61.{round}.0/24");
        lab.host(1).calicoctl(&format!("pool add {pool}")).ok();
        for host in lab.all_hosts() {
            let reply = host.create(&format!("first{round}"), &[&format!("CALICO_IP={pool}")]);
            assert_eq!(reply.status, 201, "{}", reply.message());
        }
    }
    lab.assert_consistent();
    lab.remove_everything();
}
