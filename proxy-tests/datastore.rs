//! Whatever becomes of etcd, the dataplane keeps standing, and is exact again afterwards.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::path::Path;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use serde_json::json;

use crate::lab::command::Run;
use crate::lab::container::{Container, SOON, reach_each_other};
use crate::lab::etcd::Etcd;
use crate::lab::host::Host;
use crate::lab::netns::{Pinged, Pinger};
use crate::lab::wait::{pause, wait_until};
use crate::lab::{Lab, client_port, send, spawn_logged};

const WEB: &str = "-e CALICO_IP=auto -e CALICO_PROFILE=web";

/// How soon a node follows etcd again once it can.
const BACK: Duration = Duration::from_secs(5);

/// How long a node may take to notice that its peer is gone without a word.
const NOTICED: Duration = Duration::from_secs(15);

fn lost_nothing(pinger: Pinger) {
    let pinged: Pinged = pinger.stop();
    assert!(pinged.sent > 20 && pinged.lost.is_empty(), "{pinged:?}");
}

/// What the node says that it waits for.
fn waits_for(host: &Host) -> String {
    // Nothing while it starts.
    host.sh("curl -s http://127.0.0.1:9091/readyz || true")
}

/// Checks that the node hardly works: under 2 % of a core, in a build without optimisation.
fn hardly_works(host: &Host) {
    let (began, before) = (Instant::now(), host.node_ticks());
    pause(Duration::from_secs(5));
    let (ticks, hundredths) = (host.node_ticks() - before, began.elapsed().as_millis() / 10);
    assert!(u128::from(ticks) * 50 <= hundredths, "{ticks} of {hundredths} hundredths of a second without etcd");
}

fn comes_back(host: &Host) {
    wait_until("the node follows etcd again", BACK, || host.is_ready());
}

/// Changes the policy of a profile around the node, as another host would.
fn let_in(lab: &Lab, profile: &str, tags: &[&str]) {
    let inbound: Vec<_> = tags.iter().map(|tag| json!({ "action": "allow", "src_tag": tag })).collect();
    let rules = json!({ "id": profile, "inbound_rules": inbound, "outbound_rules": [{ "action": "allow" }] });
    lab.etcd().put(&format!("/calico/v1/policy/profile/{profile}/rules"), &rules.to_string());
}

/// Waits until each reaches each. Their addresses are told, since etcd may not know them.
fn all_reach_all(containers: &[(&Container<'_>, Ipv4Addr)]) {
    for (from, _) in containers {
        for (_, to) in containers {
            from.comes_to_reach(*to);
        }
    }
}

/// A rule that lets packets of this host's node to a member of etcd and back disappear.
fn hole(host: &Host, verb: &str, member: u8) {
    let port = client_port(member);
    for (chain, end) in [("OUTPUT", "-d 172.25.0.254 -p tcp --dport"), ("PREROUTING", "-s 172.25.0.254 -p tcp --sport")]
    {
        host.sh(&format!("iptables -w -t raw {verb} {chain} {end} {port} -j DROP"));
    }
}

#[test]
fn while_etcd_stands_still_or_is_gone_or_unreachable_all_goes_on_and_its_news_are_taken_in_afterwards() {
    let lab = Lab::running(1);
    let h1 = lab.host(1);
    let (ann, bob) = (h1.run("ann", WEB), h1.run("bob", WEB));
    let eve = h1.run("eve", "-e CALICO_IP=auto -e CALICO_PROFILE=other");
    reach_each_other(&[&ann, &bob]);
    type Way = (&'static str, fn(&Lab), fn(&Lab));
    let ways: [Way; 3] = [
        ("stands still", |lab| lab.signal_etcd(Signal::SIGSTOP), |lab| lab.signal_etcd(Signal::SIGCONT)),
        ("is gone", Lab::kill_etcd, Lab::start_etcd),
        ("is unreachable", |lab| hole(lab.host(1), "-I", 1), |lab| hole(lab.host(1), "-D", 1)),
    ];
    for (how, go, come) in ways {
        let pinger = Pinger::start(&ann.space(), bob.ip(), true);
        let cat = h1.run("cat", WEB);
        let cats = cat.link();
        go(&lab);
        wait_until(&format!("the node notices that etcd {how}"), NOTICED, || !h1.is_ready());
        assert!(waits_for(h1).contains("etcd at"), "{}", waits_for(h1));
        let refused = h1.try_run("dan", WEB).fails_with(125);
        assert!(refused.contains("etcd"), "{refused}");
        assert!(!h1.has_container("dan"));
        // What is stopped goes dark all the same.
        h1.raw_docker("stop -t 0 cat").ok();
        wait_until("the interface of who was stopped is gone", SOON, || !h1.cali_links().contains(&cats));
        hardly_works(h1);
        if how == "is unreachable" {
            // Everybody else goes on, and forgets what was.
            let_in(&lab, "web", &["web", "other"]);
            compact(&lab);
        }
        come(&lab);
        comes_back(h1);
        lost_nothing(pinger);
        h1.docker("rm -f cat").ok();
        if how == "is unreachable" {
            eve.comes_to_reach(bob.ip());
        }
        lab.assert_consistent();
    }
    let loads = h1.node_log_text().matches("the view of the datastore is complete").count();
    assert!(loads <= 8, "{loads} loads for three faults");
    lab.remove_everything();
}

/// Creates, starts and removes a container.
fn one_life(host: &Host) -> bool {
    let lived = host.try_run("bob", WEB).succeeded();
    host.docker_run(&["rm", "-f", "bob"]).run();
    lived
}

#[test]
fn any_member_of_a_cluster_may_die_stand_still_or_be_unreachable_and_the_others_serve_node_and_commands() {
    let lab = Lab::with_cluster(1);
    lab.start_nodes();
    let h1 = lab.host(1);
    let ann = h1.run("ann", WEB);
    type Way = (&'static str, fn(&Lab, u8), fn(&Lab, u8));
    let ways: [Way; 3] = [
        ("is gone", Lab::kill_member, Lab::start_member),
        (
            "is unreachable",
            |lab, member| hole(lab.host(1), "-I", member),
            |lab, member| hole(lab.host(1), "-D", member),
        ),
        (
            "stands still",
            |lab, member| lab.signal_member(member, Signal::SIGSTOP),
            |lab, member| lab.signal_member(member, Signal::SIGCONT),
        ),
    ];
    for (how, go, come) in ways {
        for member in 1..=3 {
            go(&lab, member);
            // If it led the others, they have to agree on a new leader first.
            wait_until(&format!("a container lives while member {member} {how}"), NOTICED, || one_life(h1));
            wait_until("the node is ready", NOTICED, || h1.is_ready());
            for turn in 1..=4 {
                assert!(h1.run("cat", WEB).reaches(ann.ip()));
                h1.docker("rm -f cat").ok();
                // Each of these begins anew, with any of the three.
                h1.calicoctl(&format!("profile add of{member}-{turn}")).ok();
                h1.calicoctl(&format!("profile remove of{member}-{turn}")).ok();
            }
            if member == 1 {
                h1.kill_node();
                h1.start_node();
            }
            come(&lab, member);
            wait_until(&format!("member {member} is back"), NOTICED, || lab.etcd().healthy());
        }
    }
    assert!(h1.node_log_text().contains("another member of etcd is asked from now on"));
    lab.assert_consistent();
    lab.remove_everything();
}

#[test]
fn a_node_under_the_name_of_another_that_lives_takes_nothing_away_from_it() {
    let lab = Lab::hosts(2);
    let (h1, h2) = (lab.host(1), lab.host(2));
    h1.start_node();
    let ann = h1.run("ann", WEB);
    let reports = || lab.etcd().keys("/calico/felix/v1/host/h1/status").len();
    wait_until("h1 reports itself", SOON, || reports() == 1);
    let keys = lab.etcd().keys("/calico/v1/");
    h2.spawn_node(&["--hostname", "h1"]);
    let said = || h2.node_log_text().contains("a node that is called h1 too reports itself from 172.25.0.1");
    wait_until("it tells why it does not go on", SOON, said);
    assert!(!h2.is_ready());
    let refused = h2.try_run("bob", WEB).fails_with(125);
    assert!(refused.contains("--hostname"), "{refused}");
    assert_eq!(lab.etcd().keys("/calico/v1/"), keys);
    assert!(h1.space.pings(ann.ip()));
    // A last word that has run out keeps nobody away: the name is another's then, as that of a host that has moved.
    h2.stop_node();
    h1.docker("rm -f ann").ok();
    h1.stop_node();
    lab.etcd().ctl(&["del", "/calico/felix/v1/host/h1/status"]).run().ok();
    h2.spawn_node(&["--hostname", "h1"]);
    h2.await_ready();
    h2.run("bob", WEB);
}

/// Makes etcd forget all but the newest revision.
fn compact(lab: &Lab) {
    let said = lab.etcd().ctl(&["endpoint", "status", "-w", "json"]).run().ok();
    let status: serde_json::Value = serde_json::from_str(&said).unwrap();
    let revision = status[0]["Status"]["header"]["revision"].as_i64().unwrap();
    lab.etcd().ctl(&["compact", &revision.to_string()]).run().ok();
}

fn copy(from: &Path, to: &Path) {
    let _ = std::fs::remove_dir_all(to);
    Run::new("cp").arg("-a").arg(from).arg(to).run().ok();
}

/// Runs something with etcd's data while no etcd runs.
fn with_data(lab: &Lab, work: impl FnOnce(&Path)) {
    lab.kill_etcd();
    work(&lab.etcd_folder());
    lab.start_etcd();
    wait_until("etcd is healthy", SOON, || lab.etcd().healthy());
}

fn is_doubted(host: &Host, why: &str) {
    wait_until(&format!("the node says that the datastore {why}"), SOON, || waits_for(host).contains(why));
    let status = host.calicoctl("status").ok();
    assert!(status.contains("Faults:") && status.contains(why), "{status}");
}

#[test]
fn a_datastore_that_was_restored_emptied_or_exchanged_cuts_nobody_off() {
    let lab = Lab::running(2);
    let (h1, h2) = (lab.host(1), lab.host(2));
    let ann = h1.run("ann", WEB);
    let far = h2.run("far", WEB);
    let backup = lab.etcd_folder().with_extension("old");
    with_data(&lab, |data| copy(data, &backup));
    lab.all_hosts().iter().for_each(comes_back);
    // The backup knows neither of these, nor their profile.
    let (bob, cat) = (h1.run("bob", "-e CALICO_IP=auto -e CALICO_PROFILE=web,late"), h1.run("cat", WEB));
    reach_each_other(&[&ann, &bob, &far]);
    let all = [&ann, &bob, &far].map(|one| (one, one.ip()));
    let ping = |from: &Container<'_>, to: &Container<'_>| Pinger::start(&from.space(), to.ip(), true);
    let pingers = [ping(&ann, &bob), ping(&bob, &far), ping(&far, &bob)];

    // Restored from an older backup.
    with_data(&lab, |data| copy(&backup, data));
    lab.all_hosts().iter().for_each(|host| wait_until("the node follows etcd", BACK * 2, || host.is_ready()));
    lab.assert_consistent();
    cat.remove();
    all_reach_all(&all);

    // Emptied, and filled again from a newer backup.
    let newer = lab.etcd_folder().with_extension("new");
    with_data(&lab, |data| {
        copy(data, &newer);
        std::fs::remove_dir_all(data).unwrap();
    });
    is_doubted(h1, "/calico/v1/Ready");
    all_reach_all(&all);
    // A node that starts now does not believe it either.
    h2.stop_node();
    h2.spawn_node(&[]);
    is_doubted(h2, "/calico/v1/Ready");
    all_reach_all(&all);
    hardly_works(h1);
    with_data(&lab, |data| copy(&newer, data));
    lab.all_hosts().iter().for_each(|host| wait_until("the node follows etcd", BACK * 2, || host.is_ready()));
    lab.assert_consistent();

    // Emptied for good: the hosts put back what they hold once an operator says so.
    with_data(&lab, |data| std::fs::remove_dir_all(data).unwrap());
    lab.all_hosts().iter().for_each(|host| is_doubted(host, "/calico/v1/Ready"));
    lab.etcd().put("/calico/v1/Ready", "true");
    lab.all_hosts().iter().for_each(|host| wait_until("the node follows etcd", BACK * 2, || host.is_ready()));
    all_reach_all(&all);
    lab.assert_consistent();

    // Another cluster answers in its place, one that is in use elsewhere.
    with_data(&lab, |data| copy(data, &newer));
    lab.all_hosts().iter().for_each(comes_back);
    lab.kill_etcd();
    std::fs::remove_dir_all(lab.etcd_folder()).unwrap();
    lab.start_etcd_of("foreign", &[]);
    wait_until("etcd is healthy", SOON, || lab.etcd().healthy());
    lab.etcd().put("/calico/v1/Ready", "true");
    lab.all_hosts().iter().for_each(|host| is_doubted(host, "cluster"));
    all_reach_all(&all);
    with_data(&lab, |data| copy(&newer, data));
    lab.all_hosts().iter().for_each(|host| wait_until("the node follows etcd", BACK * 2, || host.is_ready()));
    lab.assert_consistent();

    pingers.into_iter().for_each(lost_nothing);
    lab.remove_everything();
}

#[test]
fn a_wipe_by_hand_is_seen_before_any_part_of_it_is_acted_on() {
    let lab = Lab::running(1);
    let h1 = lab.host(1);
    let (ann, bob) = (h1.run("ann", WEB), h1.run("bob", WEB));
    let pinger = Pinger::start(&ann.space(), bob.ip(), true);
    lab.etcd().ctl(&["del", "--prefix", "/calico/"]).run().ok();
    is_doubted(h1, "/calico/v1/Ready");
    lab.etcd().put("/calico/v1/Ready", "true");
    wait_until("the node follows etcd", BACK * 2, || h1.is_ready());
    lab.assert_consistent();
    lost_nothing(pinger);
    lab.remove_everything();
}

/// The node took its own report for that of another host of its name, and followed etcd for a moment every 90 s.
#[test]
fn an_address_of_a_host_that_somebody_else_has_written_is_put_right_when_all_is_read_again() {
    let lab = Lab::running(1);
    let h1 = lab.host(1);
    let ann = h1.run("ann", WEB);
    let path = "/calico/v1/host/h1/bird_ip";
    wait_until("h1 reports itself", SOON, || lab.etcd().keys("/calico/felix/v1/host/h1/status").len() == 1);
    lab.etcd().put(path, "172.25.0.99");
    lab.kill_etcd();
    lab.start_etcd();
    comes_back(h1);
    assert_eq!(lab.etcd().get(path).as_deref(), Some("172.25.0.1"));
    let bob = h1.run("bob", WEB);
    reach_each_other(&[&ann, &bob]);
    lab.assert_consistent();
    lab.remove_everything();
}

/// A node that began after a restore gave out what the backup did not know: addresses of containers that ran on other hosts.
#[test]
fn in_a_datastore_that_was_restored_no_address_is_given_out_before_every_host_has_said_what_it_holds() {
    const H2_AWAITED: &str = "/calico/v1/awaited/h2";
    let lab = Lab::hosts(3);
    let (h1, h2, h3) = (lab.host(1), lab.host(2), lab.host(3));
    h1.start_node();
    let ann = h1.run("ann", WEB);
    // It does not even know that there is an h2.
    let backup = lab.etcd_folder().with_extension("old");
    with_data(&lab, |data| copy(data, &backup));
    comes_back(h1);
    h2.start_node();
    let bob = h2.run("bob", WEB);
    let address = bob.ip();
    wait_until("h1 has seen it", SOON, || ann.reaches(address));
    h1.stop_node();
    h2.kill_node();
    with_data(&lab, |data| copy(&backup, data));

    h1.spawn_node(&[]);
    wait_until("h1 says whom it waits for", SOON, || waits_for(h1).contains("what h2 held meanwhile is not known yet"));
    for wish in ["auto".to_owned(), address.to_string()] {
        let refused = h1.create("thief", &[&format!("CALICO_IP={wish}")]);
        assert_eq!(refused.status, 503, "{wish}: {}", refused.message());
        assert!(refused.message().contains(H2_AWAITED), "{}", refused.message());
    }
    // A host that is new has no memory of it, and waits all the same.
    h3.spawn_node(&[]);
    wait_until("h3 says whom it waits for", SOON, || waits_for(h3).contains("what h2 held meanwhile is not known yet"));
    let refused = h3.create("thief", &[&format!("CALICO_IP={address}")]);
    assert_eq!(refused.status, 503, "{}", refused.message());
    // What is known goes on, and that somebody is waited for is not forgotten with the process.
    h1.docker("restart -t 0 ann").ok();
    h1.kill_node();
    h1.spawn_node(&[]);
    wait_until("h1 says it again", SOON, || waits_for(h1).contains("what h2 held meanwhile is not known yet"));
    assert_eq!(h1.create("thief", &["CALICO_IP=auto"]).status, 503);
    h2.spawn_node(&[]);
    lab.all_hosts().iter().for_each(|host| wait_until("the node follows etcd", BACK * 4, || host.is_ready()));
    assert_eq!(bob.ip(), address);
    assert_eq!(h1.create("thief", &[&format!("CALICO_IP={address}")]).status, 409);
    let cat = h3.run("cat", WEB);
    reach_each_other(&[&ann, &bob, &cat]);
    lab.assert_consistent();
    assert_eq!(lab.etcd().keys("/calico/v1/awaited/"), [""; 0]);

    // Of a host that is no more nobody waits for a word.
    with_data(&lab, |data| copy(data, &backup));
    lab.all_hosts().iter().for_each(comes_back);
    bob.remove();
    h1.run("dan", WEB).remove();
    h1.stop_node();
    h2.stop_node();
    with_data(&lab, |data| copy(&backup, data));
    h1.spawn_node(&[]);
    wait_until("h1 waits", SOON, || waits_for(h1).contains("what h2 held"));
    lab.etcd().ctl(&["del", H2_AWAITED]).run().ok();
    for host in [h1, h3] {
        wait_until("nobody waits any more", BACK * 2, || host.is_ready());
    }
    h1.run("eve", WEB);
}

/// Its host had said that the datastore has what it holds before it had, and the address was free as soon as the other host had
/// found its container gone.
#[test]
fn who_has_an_address_that_the_backup_gives_to_another_hosts_destroyed_container_keeps_it() {
    let lab = Lab::running(2);
    let (h1, h2) = (lab.host(1), lab.host(2));
    let (ann, old) = (h1.run("ann", WEB), h1.run("old", WEB));
    let address = old.ip();
    let backup = lab.etcd_folder().with_extension("old");
    with_data(&lab, |data| copy(data, &backup));
    lab.all_hosts().iter().for_each(comes_back);
    old.remove();
    let wish = format!("CALICO_IP={address}");
    let bob = h2.run("bob", &format!("-e {wish} -e CALICO_PROFILE=web"));
    ann.comes_to_reach(address);
    lab.all_hosts().iter().for_each(Host::stop_node);
    with_data(&lab, |data| copy(&backup, data));

    lab.all_hosts().iter().for_each(|host| host.spawn_node(&[]));
    let (mut tries, mut refusals) = (0, BTreeSet::new());
    wait_until("both follow etcd", SOON * 2, || {
        // Nobody answers while it starts.
        if let Some(answer) = h1.try_create("thief", &[&wish], &json!({})) {
            tries += 1;
            assert_ne!(answer.status, 201, "the address was given to somebody else");
            refusals.insert(answer.status);
        }
        lab.all_hosts().iter().all(Host::is_ready)
    });
    assert!(tries > 10 && refusals.contains(&503), "{tries} tries, refused with {refusals:?}");
    assert_eq!(bob.ip(), address);
    assert_eq!(h1.create("thief", &[&wish]).status, 409);
    ann.comes_to_reach(address);
    assert_eq!(lab.etcd().keys("/calico/v1/awaited/"), [""; 0]);
    lab.assert_consistent();
    lab.remove_everything();
}

/// It had two endpoints then, and was dark until somebody removed one.
#[test]
fn a_container_that_was_taken_out_and_added_again_since_the_backup_keeps_its_new_network() {
    let lab = Lab::running(1);
    let h1 = lab.host(1);
    let (ann, bob, cat) = (h1.run("ann", WEB), h1.run("bob", WEB), h1.run("cat", WEB));
    let backup = lab.etcd_folder().with_extension("old");
    with_data(&lab, |data| copy(data, &backup));
    comes_back(h1);
    // One gets another address, the other the same again.
    for (container, address) in [(&ann, "192.168.7.7".to_owned()), (&bob, bob.ip().to_string())] {
        h1.calicoctl(&format!("container remove {}", container.name)).ok();
        h1.calicoctl(&format!("container add {} {address}", container.name)).ok();
        container.set_profiles("web");
    }
    reach_each_other(&[&ann, &bob, &cat]);
    // No event of Docker's tells of the profiles that they were given.
    for container in [&ann, &bob] {
        let kept = h1.state_dir().join(format!("reservations/{}.json", container.id));
        wait_until("its profile is kept", SOON * 2, || std::fs::read_to_string(&kept).unwrap().contains(r#"["web"]"#));
    }
    let before = h1.workload_keys();
    for stops in [true, false] {
        if stops {
            h1.stop_node();
        }
        with_data(&lab, |data| copy(&backup, data));
        if stops {
            h1.spawn_node(&[]);
        }
        wait_until("the node follows etcd", BACK * 4, || h1.is_ready());
        assert_eq!(h1.workload_keys(), before);
        assert_eq!(ann.ip(), Ipv4Addr::new(192, 168, 7, 7));
        reach_each_other(&[&ann, &bob, &cat]);
        lab.assert_consistent();
    }
    lab.remove_everything();
}

/// Each host that noticed late had all others speak again, and one that was off by then kept the cluster without addresses.
#[test]
fn a_host_that_notices_a_restore_late_awaits_nobody_who_was_awaited_before() {
    let lab = Lab::running(3);
    let (h1, h2, h3) = (lab.host(1), lab.host(2), lab.host(3));
    let ann = h1.run("ann", WEB);
    let backup = lab.etcd_folder().with_extension("old");
    with_data(&lab, |data| copy(data, &backup));
    lab.all_hosts().iter().for_each(comes_back);
    let late = h3.run("late", WEB);
    h3.stop_node();
    with_data(&lab, |data| copy(&backup, data));
    wait_until("h1 waits for h3", SOON, || waits_for(h1).contains("what h3 held"));
    // It will take long, and an operator does not wait for it.
    lab.etcd().ctl(&["del", "/calico/v1/awaited/h3"]).run().ok();
    for host in [h1, h2] {
        wait_until("nobody waits any more", BACK * 2, || host.is_ready());
    }
    h2.stop_node();
    h3.spawn_node(&[]);
    wait_until("h3 follows etcd", BACK * 4, || h3.is_ready());
    assert!(h3.node_log_text().contains("the datastore has gone back"), "it did not notice");
    assert_eq!(lab.etcd().keys("/calico/v1/awaited/"), [""; 0]);
    let bob = h1.run("bob", WEB);
    h2.start_node();
    // BIRD at h3 hears out its peers, for half a minute where one is off.
    wait_until("late reaches bob", Duration::from_secs(50), || late.reaches(bob.ip()));
    assert!(late.reaches(ann.ip()));
    lab.assert_consistent();
    lab.remove_everything();
}

/// The addresses of a host that is no more were held for ever.
#[test]
fn a_host_that_is_no_more_is_taken_out_and_its_addresses_are_free() {
    let lab = Lab::running(3);
    let (h1, h2, h3) = (lab.host(1), lab.host(2), lab.host(3));
    lab.etcd().put("/calico/v1/config/ReportingIntervalSecs", "1");
    lab.etcd().put("/calico/v1/config/ReportingTTLSecs", "3");
    let (ann, far, bob) = (h1.run("ann", WEB), h2.run("far", WEB), h2.run("bob", WEB));
    ann.comes_to_reach(far.ip());
    let address = far.ip();
    let told = h1.calicoctl("node show").ok();
    assert!(told.contains("172.25.0.1") && told.contains("172.25.0.2") && !told.contains("silent"), "{told}");
    let refused = h1.calicoctl("node remove --hostname=h2 --remove-endpoints").fails_with(1);
    assert!(refused.contains("a node runs there"), "{refused}");
    let unknown = h1.calicoctl("node remove --hostname=h7").fails_with(1);
    assert!(unknown.contains("there is no such node"), "{unknown}");

    let refused = h1.calicoctl("node remove --remove-endpoints").fails_with(1);
    assert!(refused.contains("it runs on this host"), "{refused}");

    h2.stop_node();
    wait_until("h2 is silent", SOON, || h1.calicoctl("node show").ok().contains("silent since"));
    let refused = h1.calicoctl("node remove --hostname=h2").fails_with(1);
    assert!(refused.contains("container far") && refused.contains(&address.to_string()), "{refused}");
    let told = h1.create("eve", &[&format!("CALICO_IP={address}")]);
    assert_eq!(told.status, 409);
    assert!(told.message().contains("calicoctl node remove --hostname=h2"), "{}", told.message());
    assert_eq!(h1.calicoctl("node remove --hostname=h2 --remove-endpoints").ok().trim(), "Node configuration removed");
    assert_eq!(lab.etcd().keys("/calico/").iter().filter(|key| key.contains("/host/h2/")).count(), 0);
    assert!(!h1.calicoctl("node show").ok().contains("h2"));
    let eve = h1.run("eve", &format!("-e CALICO_IP={address} -e CALICO_PROFILE=web"));
    assert_eq!(eve.ip(), address);
    ann.comes_to_reach(address);

    // It comes back: who has lost its address to another is dark, and the other is recorded again. It does not take that for
    // a restore, after which all would wait for a host that is off.
    h3.stop_node();
    h2.spawn_node(&[]);
    wait_until("h2 says so", SOON, || h2.calicoctl("status").out().contains(&address.to_string()));
    wait_until("bob is recorded again", SOON, || h1.calicoctl("endpoint show --detailed").ok().contains(&bob.id));
    // BIRD at h2 hears out its peers, for half a minute where one is off.
    wait_until("ann reaches bob", Duration::from_secs(50), || ann.reaches(bob.ip()));
    assert!(!far.reaches(bob.ip()) && eve.reaches(ann.ip()));
    assert!(h2.node_log_text().contains("or this host was taken out of it"), "it came back unnoticed");
    h1.run("gus", WEB);
    assert_eq!(lab.etcd().keys("/calico/v1/awaited/"), [""; 0]);
    h3.start_node();
    h2.docker("rm -f far").ok();
    assert_eq!(h1.create("thief", &[&format!("CALICO_IP={address}")]).status, 409);
    lab.assert_consistent();
    lab.remove_everything();
}

/// Claims that were taken away by themselves were not written again, and the addresses given out a second time. Later they
/// were, and for two seconds the nodes refused whatever needs the datastore.
#[test]
fn claims_that_somebody_takes_away_are_there_again_and_the_addresses_nobody_elses() {
    let lab = Lab::running(2);
    let (h1, h2) = (lab.host(1), lab.host(2));
    let (ann, bob) = (h1.run("ann", WEB), h2.run("bob", WEB));
    let addresses = [ann.ip(), bob.ip()];
    let path = "/calico/v1/ipam/v4/assignment/";
    let claims = lab.etcd().keys(path);
    assert_eq!(claims.len(), 2);
    lab.etcd().ctl(&["del", "--prefix", path]).run().ok();
    wait_until("they are there again", SOON, || {
        lab.all_hosts().iter().for_each(|host| assert!(host.is_ready(), "{}", waits_for(host)));
        lab.etcd().keys(path) == claims
    });
    // It goes on, while what came of it is read.
    for _ in 0..20 {
        lab.all_hosts().iter().for_each(|host| assert!(host.is_ready(), "{}", waits_for(host)));
        pause(Duration::from_millis(100));
    }
    for address in addresses {
        assert_eq!(h1.create("thief", &[&format!("CALICO_IP={address}")]).status, 409);
    }
    // A profile that an operator takes away while the nodes hear of nothing stays away.
    lab.all_hosts().iter().for_each(|host| host.signal_node(Signal::SIGSTOP));
    lab.etcd().ctl(&["del", "--prefix", "/calico/v1/policy/profile/web/"]).run().ok();
    lab.kill_etcd();
    lab.start_etcd();
    lab.all_hosts().iter().for_each(|host| host.signal_node(Signal::SIGCONT));
    ann.ceases_to_reach(bob.ip());
    lab.all_hosts().iter().for_each(comes_back);
    assert_eq!(lab.etcd().keys("/calico/v1/policy/profile/web/"), [""; 0]);
    h1.calicoctl("profile add web").ok();
    reach_each_other(&[&ann, &bob]);
    lab.assert_consistent();
    lab.remove_everything();
}

#[test]
fn a_node_is_not_ready_before_its_defaults_are_recorded_in_an_etcd_that_takes_nothing_at_first() {
    let lab = Lab::hosts(1);
    let h1 = lab.host(1);
    lab.kill_etcd();
    lab.start_etcd_of("calico", &["--quota-backend-bytes", &(8 << 20).to_string()]);
    wait_until("etcd is healthy", SOON, || lab.etcd().healthy());
    // Full: it is read as before, and takes nothing new.
    let filled = (0..100).find(|number| {
        let put = lab.etcd().ctl(&["put", &format!("/fill/{number}")]).input("x".repeat(1 << 20)).run();
        !put.succeeded() && put.err().contains("space exceeded")
    });
    assert!(filled.is_some());
    h1.spawn_node(&[]);
    wait_until("the node waits for its defaults", SOON, || {
        let waits = waits_for(h1);
        waits.contains("the defaults in the datastore: /calico/v1/Ready is not true") && !waits.contains("etcd at")
    });
    let status = h1.calicoctl("status").ok();
    assert!(status.contains("the defaults in the datastore"), "{status}");
    wait_until("it is logged", SOON, || h1.node_log_text().contains("the defaults are not recorded yet"));
    // Without pools there is no address, and a create says so.
    let refused = h1.try_run("ann", WEB).fails_with(125);
    assert!(!h1.has_container("ann"), "{refused}");

    lab.etcd().ctl(&["del", "--prefix", "/fill/"]).run().ok();
    compact(&lab);
    lab.etcd().ctl(&["defrag"]).run().ok();
    lab.etcd().ctl(&["alarm", "disarm"]).run().ok();
    h1.await_ready();
    for key in ["/calico/v1/Ready", "/calico/v1/host/h1/bird_ip", "/calico/bgp/v1/global/as_num"] {
        assert!(lab.etcd().get(key).is_some(), "{key}");
    }
    assert_eq!(lab.etcd().keys("/calico/v1/ipam/").len(), 2);
    let (ann, bob) = (h1.run("ann", WEB), h1.run("bob", WEB));
    reach_each_other(&[&ann, &bob]);
    lab.assert_consistent();
    lab.remove_everything();
}

/// What its node kept of it was written back while its end waited for the view: its address was held for some seconds more.
#[test]
fn a_container_that_ends_while_the_datastore_is_read_again_is_not_put_back() {
    let lab = Lab::running(1);
    let h1 = lab.host(1);
    let names: Vec<String> = (1..=6).map(|number| format!("c{number}")).collect();
    for name in &names {
        h1.run(name, WEB);
    }
    for name in &names {
        lab.kill_etcd();
        wait_until("the node notices that etcd is gone", NOTICED, || !h1.is_ready());
        // That its address is to be freed is tried again and again, and may come through before the load does.
        h1.raw_docker(&format!("rm -f {name}")).ok();
        lab.start_etcd();
        comes_back(h1);
    }
    wait_until("nothing is left of them", NOTICED, || h1.workload_keys().is_empty());
    let log = h1.node_log_text();
    assert!(!log.contains("put back"), "{log}");
    lab.assert_consistent();
}

/// The watch ended as the load began, and what was written meanwhile was seen when all had been read: a create that came
/// then waited for that, and failed if it took 5 s.
#[test]
fn while_the_datastore_is_read_again_on_the_clock_its_news_are_taken_in() {
    let lab = Lab::running(1);
    let h1 = lab.host(1);
    let ann = h1.run("ann", WEB);
    let record = h1.workload_keys().pop().unwrap();
    let loads = || h1.node_log_text().matches("the view of the datastore is complete").count();
    let put_back = || h1.node_log_text().matches("the datastore had lost what this host needs").count();
    lab.etcd().put("/calico/v1/config/PeriodicResyncInterval", "1");
    // A load that has put something back waits 2 s for other hosts to do the same, and so is long enough to be met. The
    // comparison with dockerd may be quicker to write the record again, and a machine that has much to do may be slower.
    wait_until("a container was created in the midst of a load", Duration::from_mins(1), || {
        let before = put_back();
        lab.etcd().ctl(&["del", &record]).run().ok();
        wait_until("the record is back", NOTICED, || lab.etcd().get(&record).is_some());
        if put_back() == before {
            return false;
        }
        let done = loads();
        let created = h1.create("bob", &["CALICO_IP=auto", "CALICO_PROFILE=web"]);
        let met = loads() == done;
        assert_eq!(created.status, 201, "{created:?}");
        h1.docker("rm bob").ok();
        met
    });
    let cat = h1.run("cat", WEB);
    wait_until("who was put back is in the network again", NOTICED, || ann.reaches(cat.ip()));
    lab.assert_consistent();
}

/// A command without a node on its host wrote pools and profiles into whatever etcd was at the usual port.
#[test]
fn nothing_is_written_to_an_etcd_that_nobody_has_named_and_no_node_has_filled() {
    const DEFAULT: &str = "http://127.0.0.1:2379";
    let lab = Lab::without_etcd();
    let h1 = lab.host(1);
    let folder = h1.scratch();
    let urls = ["--listen-client-urls", DEFAULT, "--advertise-client-urls", DEFAULT];
    let peers = ["--listen-peer-urls", "http://127.0.0.1:2380"];
    let etcd = h1.command("etcd").arg("--data-dir").arg(folder.join("theirs")).args(urls).args(peers);
    let mut etcd = spawn_logged(etcd, &folder.join("theirs.log"));
    let theirs = Etcd { space: h1.space.clone(), endpoint: DEFAULT.to_owned() };
    wait_until("their etcd is healthy", SOON, || theirs.healthy());
    let add = || h1.calicoctl_run(&["pool", "add", "10.9.0.0/16"]);
    let said = add().run().fails_with(1);
    assert!(said.contains("holds nothing of Calico's") && said.contains("ETCD_ENDPOINTS"), "{said}");
    assert_eq!(theirs.keys("/"), [""; 0]);
    add().env("ETCD_ENDPOINTS", DEFAULT).run().ok();
    assert_eq!(theirs.keys("/"), ["/calico/v1/ipam/v4/pool/10.9.0.0-16"]);
    h1.calicoctl("pool remove 10.9.0.0/16").fails_with(1);
    theirs.put("/calico/v1/Ready", "true");
    h1.calicoctl("pool remove 10.9.0.0/16").ok();
    send(&etcd, Signal::SIGKILL);
    etcd.wait().unwrap();
}
