//! An address passes over from a container to the one that was made to take its place, whatever the order in which a tool stops,
//! creates, starts and removes them, and whatever dies in between.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use serde_json::{Value, json};

use crate::lab::Lab;
use crate::lab::container::{Container, SOON};
use crate::lab::host::{Host, IDLE};
use crate::lab::http::Reply;
use crate::lab::wait::{pause, wait_until};

const ADDRESS: &str = "192.168.1.1";

/// The claim of the address.
fn claim(host: &Host) -> Value {
    host.etcd().json(&format!("/calico/v1/ipam/v4/assignment/192.168.0.0-16/{ADDRESS}"))
}

/// The labels that compose gives a container of a service.
fn place(number: u8) -> Value {
    json!({
        "com.docker.compose.project": "shop",
        "com.docker.compose.service": "web",
        "com.docker.compose.container-number": number.to_string(),
        "com.docker.compose.oneoff": "False",
    })
}

fn with(mut labels: Value, name: &str, value: &str) -> Value {
    labels[name] = json!(value);
    labels
}

/// Creates a container with labels that wants the address.
fn create(host: &Host, name: &str, labels: &Value) -> Reply {
    let body = json!({
        "Image": "busybox", "Cmd": ["sh", "-c", IDLE], "Labels": labels,
        "Env": [format!("CALICO_IP={ADDRESS}"), "CALICO_PROFILE=web"],
    });
    let reply = host.api("POST", &format!("/v1.41/containers/create?name={name}"), Some(&body));
    if reply.status == 201 {
        host.promised.lock().unwrap().insert(reply.json()["Id"].as_str().unwrap().to_owned());
    }
    reply
}

#[track_caller]
fn created<'h>(host: &'h Host, name: &str, labels: &Value) -> Container<'h> {
    let reply = create(host, name, labels);
    assert_eq!(reply.status, 201, "create {name}: {}", String::from_utf8_lossy(&reply.body));
    host.container(name)
}

#[track_caller]
fn call(host: &Host, method: &str, path: &str) {
    let reply = host.api(method, path, None);
    assert_eq!(reply.status, 204, "{method} {path}: {}", String::from_utf8_lossy(&reply.body));
}

#[track_caller]
fn start(container: &Container<'_>) {
    call(container.host, "POST", &format!("/containers/{}/start", container.id));
}

#[track_caller]
fn stop(container: &Container<'_>) {
    call(container.host, "POST", &format!("/containers/{}/stop?t=1", container.id));
}

#[track_caller]
fn remove(container: &Container<'_>) {
    call(container.host, "DELETE", &format!("/containers/{}", container.id));
}

/// A start that is refused because of what the other container has, and changes nothing.
#[track_caller]
fn is_not_started(container: &Container<'_>, because_of: &Container<'_>) {
    let reply = container.host.api("POST", &format!("/containers/{}/start", container.id), None);
    assert_eq!(reply.status, 409, "{}", String::from_utf8_lossy(&reply.body));
    for word in [ADDRESS, &because_of.id[..12]] {
        assert!(reply.message().contains(word), "no {word} in {}", reply.message());
    }
    assert_eq!(container.pid(), 0);
}

#[track_caller]
fn is_held_by(container: &Container<'_>) {
    let claim = claim(container.host);
    assert_eq!(claim["owner"]["workload"], container.id.as_str(), "{claim}");
    assert_eq!(claim["state"], "bound");
    assert_eq!(claim["successor"], Value::Null, "{claim}");
}

#[track_caller]
fn is_awaited(holder: &Container<'_>, successor: &Container<'_>) {
    let claim = claim(holder.host);
    assert_eq!(claim["owner"]["workload"], holder.id.as_str(), "{claim}");
    assert_eq!(claim["successor"]["owner"]["workload"], successor.id.as_str(), "{claim}");
    assert_eq!(claim["successor"]["owner"]["endpoint"], successor.endpoint_id(), "{claim}");
}

/// Compose 2: create, stop, remove, rename, start. Its label names the old container by its id in earlier versions, and in later ones by
/// the service and its number.
#[test]
fn what_compose_2_recreates_gets_the_address_of_the_removed_one() {
    let lab = Lab::running(1);
    let h1 = lab.host(1);
    let peer = h1.run("peer", "-e CALICO_IP=192.168.1.9 -e CALICO_PROFILE=web");
    let mut old = created(h1, "shop-web-1", &place(1));
    start(&old);
    peer.comes_to_reach(old.ip());
    for replaced in [old.id.clone(), "web-1".to_owned()] {
        let temporary = format!("{}_shop-web-1", &old.id[..12]);
        let new = created(h1, &temporary, &with(place(1), "com.docker.compose.replace", &replaced));
        is_awaited(&old, &new);
        assert_eq!(new.inspect()["NetworkSettings"]["Networks"]["none"]["IPAddress"], ADDRESS);
        lab.assert_consistent();
        // Until then it is the old one's alone.
        is_not_started(&new, &old);
        assert!(old.pid() != 0 && peer.reaches(old.ip()));
        lab.assert_consistent();
        stop(&old);
        lab.assert_consistent();
        remove(&old);
        is_held_by(&new);
        h1.api("POST", &format!("/containers/{}/rename?name=shop-web-1", new.id), None);
        start(&new);
        peer.comes_to_reach(new.ip());
        assert_eq!(new.ip().to_string(), ADDRESS);
        lab.assert_consistent();
        old = h1.container("shop-web-1");
        assert_eq!(old.id, new.id);
    }
    lab.remove_everything();
}

/// Compose 1: stop, rename, create, start, remove.
#[test]
fn what_compose_1_recreates_gets_the_address_of_the_stopped_one() {
    let lab = Lab::running(1);
    let h1 = lab.host(1);
    let peer = h1.run("peer", "-e CALICO_IP=192.168.1.9 -e CALICO_PROFILE=web");
    let old = created(h1, "shop_web_1", &place(1));
    start(&old);
    stop(&old);
    h1.api("POST", &format!("/containers/{}/rename?name=old_shop_web_1", old.id), None);
    let new = created(h1, "shop_web_1", &place(1));
    is_awaited(&old, &new);
    // The old one is still the holder, so it may run.
    start(&old);
    is_not_started(&new, &old);
    lab.assert_consistent();
    stop(&old);
    start(&new);
    is_held_by(&new);
    peer.comes_to_reach(new.ip());
    // What was handed over does not come back.
    assert_eq!(old.record()["ipv4_nets"], json!([]));
    is_not_started(&old, &new);
    lab.assert_consistent();
    let reply = h1.api("POST", &format!("/containers/{}/restart", old.id), None);
    assert_eq!(reply.status, 409, "{}", String::from_utf8_lossy(&reply.body));
    // Not even when dockerd itself starts it.
    let refused = h1.raw_docker(&format!("start {}", old.id));
    assert!(!refused.succeeded() && refused.err().contains("has passed over"), "{}", refused.err());
    lab.assert_consistent();
    assert!(peer.reaches(new.ip()), "the new one is not disturbed");
    h1.docker(&format!("rm -f {}", old.id)).ok();
    is_held_by(&new);
    lab.assert_consistent();
    assert!(peer.reaches(new.ip()));
    // Stops and starts of the new one go on as those of any other.
    stop(&new);
    start(&new);
    peer.comes_to_reach(new.ip());
    lab.assert_consistent();
    lab.remove_everything();
}

#[test]
fn a_successor_that_is_removed_leaves_the_address_with_its_holder() {
    let lab = Lab::running(1);
    let h1 = lab.host(1);
    let old = created(h1, "old", &place(1));
    start(&old);
    for through in [true, false] {
        let new = created(h1, "new", &place(1));
        is_awaited(&old, &new);
        if through {
            remove(&new);
            is_held_by(&old);
        } else {
            // The node hears of it by itself; a next one may ask at once.
            h1.raw_docker("rm -f new").ok();
        }
        assert_eq!(old.ip().to_string(), ADDRESS);
    }
    let new = created(h1, "new", &place(1));
    is_awaited(&old, &new);
    lab.assert_consistent();
    // A third one does not get in between.
    let reply = create(h1, "third", &place(1));
    assert_eq!(reply.status, 409);
    for word in [&old.id[..12], &new.id[..12]] {
        assert!(reply.message().contains(word), "no {word} in {}", reply.message());
    }
    assert!(!h1.has_container("third"));
    // Both at once, in one call.
    h1.docker("rm -f old new").ok();
    lab.assert_consistent();
    lab.remove_everything();
}

#[test]
fn only_the_container_that_the_labels_name_hands_its_address_over() {
    let lab = Lab::running(2);
    let h1 = lab.host(1);
    let holder = created(h1, "holder", &place(1));
    for labels in [
        json!({}),
        place(2),
        with(place(1), "com.docker.compose.service", "db"),
        with(place(1), "com.docker.compose.oneoff", "True"),
        json!({"com.docker.compose.replace": "holder"}),
        json!({"com.docker.compose.replace": &holder.id[..11]}),
        json!({"calico.replace": "hold"}),
    ] {
        let reply = create(h1, "other", &labels);
        assert_eq!(reply.status, 409, "{labels}");
        for word in [ADDRESS, "holder", &holder.id[..12], "h1"] {
            assert!(reply.message().contains(word), "no {word} in {}", reply.message());
        }
        assert!(!h1.has_container("other"));
        is_held_by(&holder);
    }
    // Another host has other containers.
    assert_eq!(create(lab.host(2), "other", &place(1)).status, 409);
    // dockerd says no, and nobody waits any more.
    assert_eq!(create(h1, "holder", &place(1)).status, 409);
    is_held_by(&holder);
    lab.assert_consistent();

    // Who recreates in another way says it by our own label: rename, create, stop, start, remove.
    h1.docker("rename holder holder-old").ok();
    let new = created(h1, "holder", &json!({"calico.replace": "holder"}));
    start(&holder);
    is_awaited(&holder, &new);
    stop(&holder);
    start(&new);
    remove(&holder);
    is_held_by(&new);
    lab.assert_consistent();
    lab.remove_everything();
}

#[test]
fn of_several_addresses_each_comes_from_where_it_was() {
    let lab = Lab::running(1);
    let h1 = lab.host(1);
    let create = |name: &str, wish: &str, labels: Value| {
        let body = json!({"Image": "busybox", "Cmd": ["sh", "-c", IDLE], "Env": [format!("CALICO_IP={wish}")], "Labels": labels});
        let reply = h1.api("POST", &format!("/containers/create?name={name}"), Some(&body));
        assert_eq!(reply.status, 201, "{}", String::from_utf8_lossy(&reply.body));
        h1.container(name)
    };
    let one = create("one", "192.168.1.1,192.168.1.2", place(1));
    let two = create("two", "192.168.1.3", json!({}));
    start(&one);
    start(&two);
    // One of the first's, the second's, and a free one.
    let labels = with(place(1), "calico.replace", "two");
    let new = create("new", "192.168.1.1,192.168.1.3,192.168.1.4", labels);
    lab.assert_consistent();
    is_not_started(&new, &one);
    stop(&one);
    is_not_started_because_of(&new, &two);
    lab.assert_consistent();
    stop(&two);
    start(&new);
    assert_eq!(new.record()["ipv4_nets"], json!(["192.168.1.1/32", "192.168.1.3/32", "192.168.1.4/32"]));
    // What the first still has goes with it.
    assert_eq!(one.record()["ipv4_nets"], json!(["192.168.1.2/32"]));
    is_not_started(&one, &new);
    lab.assert_consistent();
    remove(&one);
    let again = create("again", "192.168.1.2", json!({}));
    start(&again);
    lab.assert_consistent();
    lab.remove_everything();
}

#[track_caller]
fn is_not_started_because_of(container: &Container<'_>, other: &Container<'_>) {
    let reply = container.host.api("POST", &format!("/containers/{}/start", container.id), None);
    assert_eq!(reply.status, 409, "{}", String::from_utf8_lossy(&reply.body));
    assert!(reply.message().contains(&other.id[..12]), "{}", reply.message());
}

#[test]
fn what_happens_while_no_node_runs_is_made_up_for() {
    // With our runtime dockerd does not start who waits, as long as no node runs.
    let lab = Lab::running_without_runtime(1);
    let h1 = lab.host(1);
    let peer = h1.run("peer", "-e CALICO_IP=192.168.1.9 -e CALICO_PROFILE=web");
    let raw = |line: &str| h1.raw_docker(line).ok();
    let waiting = || {
        let old = created(h1, "old", &place(1));
        start(&old);
        let new = created(h1, "new", &place(1));
        is_awaited(&old, &new);
        h1.kill_node();
        (old, new)
    };

    // The old one is removed.
    let (_, new) = waiting();
    raw("rm -f old");
    h1.start_node();
    lab.assert_consistent();
    is_held_by(&new);
    start(&new);
    peer.comes_to_reach(new.ip());
    remove_all(h1, &["new"]);

    // The new one is started after the old one was stopped.
    let (old, new) = waiting();
    raw("stop -t 1 old");
    raw("start new");
    h1.start_node();
    lab.assert_consistent();
    is_held_by(&new);
    peer.comes_to_reach(new.ip());
    is_not_started(&old, &new);
    remove_all(h1, &["old", "new"]);

    // Both run: the holder keeps it until it stops.
    let (old, new) = waiting();
    raw("start new");
    h1.start_node();
    lab.assert_consistent();
    is_awaited(&old, &new);
    peer.comes_to_reach(old.ip());
    stop(&old);
    wait_until("the new one has it", Duration::from_secs(20), || claim(h1)["successor"].is_null());
    is_held_by(&new);
    peer.comes_to_reach(new.ip());
    lab.assert_consistent();
    remove_all(h1, &["old", "new"]);

    // The new one is removed, and both.
    let (old, _) = waiting();
    raw("rm -f new");
    h1.start_node();
    lab.assert_consistent();
    is_held_by(&old);
    let new = created(h1, "new", &place(1));
    is_awaited(&old, &new);
    h1.kill_node();
    raw("rm -f old new");
    h1.start_node();
    lab.assert_consistent();
    assert_eq!(h1.etcd().keys("/calico/v1/ipam/v4/assignment/").len(), 1, "the peer's");
    lab.remove_everything();
}

fn remove_all(host: &Host, names: &[&str]) {
    for name in names {
        host.docker(&format!("rm -f {name}")).ok();
    }
}

/// A node that dies in a create leaves a successor without a container; so does one that etcd answered too late.
#[test]
fn a_successor_without_a_create_is_forgotten() {
    let lab = Lab::running(1);
    let h1 = lab.host(1);
    let old = created(h1, "old", &place(1));
    let key = format!("/calico/v1/ipam/v4/assignment/192.168.0.0-16/{ADDRESS}");
    let awaited = || {
        let mut claim = claim(h1);
        claim["successor"] = json!({"owner": claim["owner"], "request": "feed"});
        claim["successor"]["owner"]["workload"] = Value::Null;
        claim["successor"]["owner"]["endpoint"] = json!("f".repeat(32));
        h1.etcd().put(&key, &claim.to_string());
    };
    awaited();
    wait_until("nobody waits", Duration::from_secs(20), || claim(h1)["successor"].is_null());
    is_held_by(&old);
    lab.assert_consistent();
    // Its holder goes before that is found out.
    awaited();
    h1.docker("rm -f old").ok();
    wait_until("the address is free", Duration::from_secs(20), || h1.etcd().get(&key).is_none());
    let again = created(h1, "again", &place(1));
    is_held_by(&again);
    lab.assert_consistent();
    lab.remove_everything();
}

/// Recreates one container without end, by turns as compose 1 and compose 2 do it. Calls that fail are what this is about.
fn recreate(host: &Host, worker: usize, over: &AtomicBool) {
    let env = [format!("CALICO_IP=192.168.2.{worker}"), "CALICO_PROFILE=web".to_owned()];
    let mut labels = place(1);
    labels["com.docker.compose.service"] = json!(format!("service{worker}"));
    let mut old: Option<String> = None;
    for number in 0.. {
        let name = format!("service{worker}-{number}");
        let mut calls = Vec::new();
        let create = ("POST", format!("/containers/create?name={name}"));
        let begin = ("POST", format!("/containers/{name}/start"));
        if let Some(old) = &old {
            let stop = ("POST", format!("/containers/{old}/stop?t=0"));
            let delete = ("DELETE", format!("/containers/{old}?force=1"));
            calls.extend(if number % 2 == 0 { [stop, create, begin, delete] } else { [create, stop, delete, begin] });
        } else {
            calls.extend([create, begin]);
        }
        for (method, path) in calls {
            if over.load(Ordering::Relaxed) {
                return;
            }
            let body = json!({"Image": "busybox", "Cmd": ["sh", "-c", IDLE], "Env": env, "Labels": labels});
            let body = path.contains("/create").then_some(&body);
            if let Some(reply) = host.try_api(method, &path, body) {
                assert!(reply.status < 300 || over.load(Ordering::Relaxed), "{method} {path}: {}", reply.message());
            }
        }
        old = Some(name);
    }
}

#[test]
fn a_node_killed_at_any_moment_of_a_recreation_loses_no_address_and_gives_none_twice() {
    let lab = Lab::running(1);
    let h1 = lab.host(1);
    for round in 0..8 {
        let over = AtomicBool::new(false);
        thread::scope(|scope| {
            for worker in 1..=2 {
                let over = &over;
                scope.spawn(move || recreate(h1, worker, over));
            }
            // Not a wait for anything: the moment at which it is killed is what varies.
            pause(Duration::from_millis(700 + round * 137));
            over.store(true, Ordering::Relaxed);
            h1.kill_node();
        });
        h1.start_node();
        lab.assert_consistent_but_for_pending_claims();
        // Whoever is there can be started, by and by: those that wait when those that hold are gone.
        let ids = h1.container_ids();
        for id in ids.iter().rev() {
            let started = h1.api("POST", &format!("/containers/{id}/start"), None);
            assert!(matches!(started.status, 204 | 304 | 409), "{}: {}", started.status, started.message());
        }
        lab.assert_consistent_but_for_pending_claims();
        let mut args = vec!["rm", "-f"];
        args.extend(ids.iter().map(String::as_str));
        h1.docker_run(&args).run().ok();
        // A create that was cut off is finished or given up before the next one. One that dockerd never heard of holds its
        // claim as long as its lease lasts, or, where the claim came to it from a holder that has gone since, for the two
        // minutes in which dockerd may still finish it.
        wait_until("the addresses are free", Duration::from_mins(3), || {
            h1.docker_run(&["container", "prune", "-f"]).run().ok();
            h1.etcd().keys("/calico/v1/ipam/v4/assignment/").is_empty()
        });
    }
    lab.assert_consistent_once_leases_ended();
    lab.remove_everything();
}

/// Whenever the holder goes, the one that takes its place has the address: before, while or after that one is created.
#[test]
fn a_holder_may_be_removed_at_any_moment_of_its_successor_s_create() {
    let lab = Lab::running(1);
    let h1 = lab.host(1);
    let mut old = created(h1, "holder0", &place(1));
    start(&old);
    for round in 1..=20 {
        let name = format!("holder{round}");
        let new = thread::scope(|scope| {
            let removal = scope.spawn(|| {
                // What varies is the moment.
                pause(Duration::from_millis(round * 3 % 40));
                // By turns through the node and at dockerd.
                let line = format!("/containers/{}?force=1", old.id);
                let reply = if round % 2 == 0 {
                    h1.try_raw_api("DELETE", &line, None)
                } else {
                    h1.try_api("DELETE", &line, None)
                };
                assert_eq!(reply.expect("an answer").status, 204);
            });
            let new = created(h1, &name, &place(1));
            removal.join().unwrap();
            new
        });
        start(&new);
        is_held_by(&new);
        assert_eq!(new.ip().to_string(), ADDRESS);
        old = new;
    }
    lab.assert_consistent();
    lab.remove_everything();
}

/// What is kept on disk for the time without a node is no way around it.
#[test]
fn while_no_node_runs_neither_who_waits_for_an_address_nor_who_has_handed_it_over_starts() {
    let lab = Lab::running(1);
    let h1 = lab.host(1);
    let old = created(h1, "shop_web_1", &place(1));
    start(&old);
    stop(&old);
    h1.api("POST", &format!("/containers/{}/rename?name=old_shop_web_1", old.id), None);
    let new = created(h1, "shop_web_1", &place(1));
    is_awaited(&old, &new);
    lab.assert_consistent();
    h1.kill_node();
    h1.raw_docker(&format!("start {}", old.id)).ok();
    let refused = h1.raw_docker(&format!("start {}", new.id));
    assert!(!refused.succeeded() && refused.err().contains(ADDRESS), "{refused}");
    h1.start_node();
    lab.assert_consistent();
    stop(&old);
    start(&new);
    is_held_by(&new);
    lab.assert_consistent();
    h1.kill_node();
    let refused = h1.raw_docker(&format!("start {}", old.id));
    assert!(!refused.succeeded() && refused.err().contains("has passed over"), "{refused}");
    h1.start_node();
    lab.assert_consistent();
    lab.remove_everything();
}

/// Who was recorded again first had the address: the one that waits for it, by chance, and its holder, which ran, went dark.
#[test]
fn a_datastore_that_has_lost_both_gets_the_holder_back_before_who_waits_for_its_address() {
    let lab = Lab::running(1);
    let h1 = lab.host(1);
    let old = created(h1, "shop_web_1", &place(1));
    start(&old);
    h1.api("POST", &format!("/containers/{}/rename?name=old_shop_web_1", old.id), None);
    let new = created(h1, "shop_web_1", &place(1));
    is_awaited(&old, &new);
    let lost = "/calico/v1/ipam/v4/assignment/";
    for prefix in [lost, "/calico/v1/host/h1/workload/"] {
        h1.etcd().ctl(&["del", "--prefix", prefix]).run().ok();
    }
    wait_until("both are recorded again", Duration::from_secs(40), || {
        old.try_record().is_some() && new.try_record().is_some() && !h1.etcd().keys(lost).is_empty()
    });
    is_awaited(&old, &new);
    lab.assert_consistent();
    assert!(h1.space.pings(old.ip()));
    lab.remove_everything();
}

/// Nobody could write down that the address had passed over, so both ran with it.
#[test]
fn while_etcd_is_away_who_waits_for_an_address_does_not_start_and_its_holder_does() {
    let lab = Lab::running(1);
    let h1 = lab.host(1);
    let old = created(h1, "shop_web_1", &place(1));
    start(&old);
    stop(&old);
    h1.api("POST", &format!("/containers/{}/rename?name=old_shop_web_1", old.id), None);
    let new = created(h1, "shop_web_1", &place(1));
    is_awaited(&old, &new);
    lab.kill_etcd();
    wait_until("the node knows that etcd is away", Duration::from_secs(8), || !h1.is_ready());
    let refused = h1.raw_docker(&format!("start {}", new.id));
    assert!(!refused.succeeded() && refused.err().contains("is away, and it waits for its address"), "{refused}");
    h1.raw_docker(&format!("start {}", old.id)).ok();
    assert_eq!(new.pid(), 0);
    lab.start_etcd();
    h1.await_ready();
    is_awaited(&old, &new);
    lab.assert_consistent();
    lab.remove_everything();
}

/// A refusal that stood was tried again every ten seconds, and who had been stopped by hand saw his successor start unasked.
#[test]
fn who_was_refused_an_address_that_is_in_use_is_not_started_when_its_holder_is_stopped() {
    let lab = Lab::running(1);
    let h1 = lab.host(1);
    let old = created(h1, "shop_web_1", &place(1));
    start(&old);
    h1.api("POST", &format!("/containers/{}/rename?name=old_shop_web_1", old.id), None);
    let new = created(h1, "shop_web_1", &place(1));
    h1.docker(&format!("update --restart always {}", new.id)).ok();
    let refused = h1.raw_docker(&format!("start {}", new.id));
    assert!(!refused.succeeded() && refused.err().contains("is still held by container"), "{refused}");
    let marked = h1.run_dir().join("refused").join(&new.id);
    assert!(!marked.exists(), "the node would start it later");
    // What is missing and may come is another matter.
    stop(&old);
    lab.kill_etcd();
    wait_until("the node knows that etcd is away", Duration::from_secs(8), || !h1.is_ready());
    assert!(!h1.raw_docker(&format!("start {}", new.id)).succeeded());
    assert!(marked.exists());
    lab.start_etcd();
    // Nobody waits for this start as a client would, for whom the address has passed over by the time he has his answer.
    wait_until("it is started", Duration::from_secs(40), || new.pid() != 0 && !marked.exists());
    wait_until("the address has passed over", SOON, || claim(h1)["owner"]["workload"] == new.id.as_str());
    is_held_by(&new);
    lab.assert_consistent();
    lab.remove_everything();
}

/// compose renames what it is about to replace, and who asked for the address was told of a container that was not there.
#[test]
fn the_holder_of_an_address_is_named_as_it_is_called_now() {
    let lab = Lab::running(1);
    let h1 = lab.host(1);
    let old = created(h1, "shop", &json!({}));
    let taken = || {
        let refused = create(h1, "other", &json!({}));
        assert_eq!(refused.status, 409);
        refused.json()["message"].as_str().unwrap().to_owned()
    };
    let by = |name: &str| format!("already held by container {name} ({}", &old.id[..12]);
    assert!(taken().contains(&by("shop")), "{}", taken());
    call(h1, "POST", "/containers/shop/rename?name=former");
    wait_until("the claim follows", Duration::from_secs(20), || taken().contains(&by("former")));
    let claim = claim(h1);
    assert_eq!((&claim["owner"]["workload"], &claim["state"]), (&json!(old.id), &json!("bound")), "{claim}");
    lab.assert_consistent();
    lab.remove_everything();
}
