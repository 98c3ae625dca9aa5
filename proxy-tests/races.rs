//! Many at once.

use std::collections::BTreeSet;
use std::sync::Barrier;
use std::thread;

use crate::lab::Lab;
use crate::lab::http::Reply;

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
