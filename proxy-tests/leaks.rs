//! Nothing is left behind: by many short lives, by crash loops, by hours of whatever clients think of while everything is killed.
//!
//! The counts are small in `make test` and those of the requirement in `make soak`.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use nix::sys::signal::Signal;
use serde_json::json;

use crate::lab::container::SOON;
use crate::lab::host::{Host, IDLE};
use crate::lab::traces::Traces;
use crate::lab::wait::{pause, wait_until};
use crate::lab::{Lab, START, counts, setting, tell};

/// A host with all that its first container brings for good: a profile, its sets, the connections to dockerd.
fn begin() -> (Lab, Traces) {
    let lab = Lab::running(1);
    let h1 = lab.host(1);
    h1.calicoctl("pool add 10.70.0.0/26").ok();
    for name in ["first", "second"] {
        h1.run(name, "-e CALICO_IP=10.70.0.0/26 -e CALICO_PROFILE=web");
    }
    lab.remove_everything();
    h1.calicoctl("status").ok();
    let before = Traces::of(h1);
    (lab, before)
}

/// Does something this many times, several at once.
fn several_at_once(times: usize, work: impl Fn(usize) + Sync) {
    let next = AtomicUsize::new(0);
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                while let Some(number) = Some(next.fetch_add(1, Ordering::Relaxed)).filter(|number| *number < times) {
                    work(number);
                }
            });
        }
    });
}

#[test]
fn many_short_lives_in_a_small_pool_leave_nothing() {
    let (lab, before) = begin();
    let h1 = lab.host(1);
    let times = counts(200, 2000);
    several_at_once(times, |number| {
        let code = i32::try_from(number % 3).unwrap();
        // With the runtime it has its address from its first instruction on.
        let line = format!("ip -4 -o address show eth1 | grep -q 10.70.0. || exit 9; exit {code}");
        let run =
            ["run", "--rm", "-e", "CALICO_IP=10.70.0.0/26", "-e", "CALICO_PROFILE=web", "busybox", "sh", "-c", &line];
        let ran = h1.docker_run(&run).run();
        assert_eq!(ran.code, Some(code), "run {number}: {ran}");
    });
    lab.assert_consistent();
    assert!(h1.container_ids().is_empty());
    let after = before.assert_back(h1);
    before.tell("`docker run --rm` in a /26, four at once", times, &after);
}

#[test]
fn crash_loops_leave_nothing_but_the_containers_as_they_were() {
    let (lab, before) = begin();
    let h1 = lab.host(1);
    let containers = counts(20, 200);
    let name = |number: usize| format!("loop{number}");
    // dockerd doubles its wait at every restart and begins anew at every start by hand, so ten crashes are two starts.
    several_at_once(containers, |number| {
        let asked = json!({"RestartPolicy": {"Name": "on-failure", "MaximumRetryCount": 4}});
        let body = json!({
            "Image": "busybox", "Cmd": ["sh", "-c", "exit 1"], "Env": ["CALICO_IP=auto", "CALICO_PROFILE=web"],
            "HostConfig": asked,
        });
        let reply = h1.api("POST", &format!("/containers/create?name={}", name(number)), Some(&body));
        assert_eq!(reply.status, 201, "{}", reply.message());
    });
    lab.assert_consistent();
    for _ in 0..2 {
        several_at_once(containers, |number| {
            let path = format!("/containers/{}/start", name(number));
            assert_eq!(h1.api("POST", &path, None).status, 204);
        });
        let patience = Duration::from_secs(u64::try_from(60 + containers * 3).unwrap());
        for number in 0..containers {
            let container = h1.container(&name(number));
            wait_until(&format!("{} has crashed five times", name(number)), patience, || {
                let seen = container.raw_inspect();
                seen["RestartCount"] == 4 && seen["State"]["Status"] == "exited"
            });
        }
        lab.assert_consistent();
    }
    lab.remove_everything();
    let after = before.assert_back(h1);
    before.tell("crashes under a restart policy", containers * 10, &after);
}

/// Pseudo-random numbers (xorshift64*, Vigna 2016): the same seed gives the same walk.
struct Dice(u64);

impl Dice {
    fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        let drawn = self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33;
        usize::try_from(drawn).unwrap() % bound
    }

    fn one_of<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[self.below(choices.len())]
    }
}

/// What all clients of a walk share.
struct Walk<'h> {
    host: &'h Host,
    left: AtomicUsize,
    /// What was answered, by call and status.
    answers: Mutex<BTreeMap<(&'static str, u16), usize>>,
}

/// How many names the clients share: few, so that they meet.
const NAMES: usize = 14;

impl Walk<'_> {
    /// One step of one client. Whether it was one: it is none that finds no container, nor while the one or the other is killed.
    fn step(&self, dice: &mut Dice) -> bool {
        let name = format!("walk{}", dice.below(NAMES));
        let calls: [(&str, usize); 13] = [
            ("create", 24),
            ("start", 20),
            ("stop", 6),
            ("restart", 6),
            ("kill", 4),
            ("kill -s HUP", 3),
            ("pause, unpause", 3),
            ("rename", 4),
            ("rm -f", 8),
            ("prune", 1),
            ("start at dockerd", 4),
            ("stop at dockerd", 3),
            ("rm -f at dockerd", 2),
        ];
        let all: usize = calls.iter().map(|(_, weight)| weight).sum();
        let mut drawn = dice.below(all);
        let call = calls.iter().find(|(_, weight)| {
            let found = drawn < *weight;
            drawn = drawn.saturating_sub(*weight);
            found
        });
        let call = call.expect("the weights add up").0;
        let path = |rest: &str| format!("/containers/{name}{rest}");
        let reply = match call {
            "create" => {
                let address = format!("CALICO_IP=10.70.0.{}", 1 + dice.below(20));
                let wish = dice.one_of(&["CALICO_IP=auto", "CALICO_IP=10.70.0.0/26", &address]).to_owned();
                let policy = dice.one_of(&["no", "no", "always", "on-failure"]);
                let (script, remove) = (dice.one_of(&[IDLE, IDLE, "exit 3"]), dice.below(5) == 0 && policy == "no");
                let body = json!({
                    "Image": "busybox", "Cmd": ["sh", "-c", script], "Env": [wish, "CALICO_PROFILE=web"],
                    "HostConfig": {"RestartPolicy": {"Name": policy}, "AutoRemove": remove},
                });
                self.host.try_api("POST", &format!("/v1.41/containers/create?name={name}"), Some(&body))
            }
            "start" => self.host.try_api("POST", &path("/start"), None),
            "stop" => self.host.try_api("POST", &path("/stop?t=0"), None),
            "restart" => self.host.try_api("POST", &path("/restart?t=0"), None),
            "kill" => self.host.try_api("POST", &path("/kill"), None),
            "kill -s HUP" => self.host.try_api("POST", &path("/kill?signal=HUP"), None),
            "pause, unpause" => {
                self.host.try_api("POST", &path("/pause"), None);
                self.host.try_api("POST", &path("/unpause"), None)
            }
            "rename" => self.host.try_api("POST", &path(&format!("/rename?name=walk{}", dice.below(NAMES))), None),
            "rm -f" => self.host.try_api("DELETE", &path("?force=1"), None),
            "prune" => self.host.try_api("POST", "/containers/prune", None),
            "start at dockerd" => self.host.try_raw_api("POST", &path("/start"), None),
            "stop at dockerd" => self.host.try_raw_api("POST", &path("/stop?t=0"), None),
            _ => self.host.try_raw_api("DELETE", &path("?force=1"), None),
        };
        let Some(reply) = reply else { return false };
        if call == "create" && reply.status == 201 {
            let id = reply.json()["Id"].as_str().unwrap().to_owned();
            self.host.promised.lock().unwrap().insert(id);
        }
        *self.answers.lock().unwrap().entry((call, reply.status)).or_default() += 1;
        !matches!(reply.status, 404 | 502 | 503)
    }

    fn client(&self, mut dice: Dice) {
        while self.left.load(Ordering::Relaxed) > 0 {
            if self.step(&mut dice) {
                let take_one = |left: usize| left.checked_sub(1);
                let _ = self.left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take_one);
            } else {
                // What is away comes back in its own time.
                pause(Duration::from_millis(2));
            }
        }
    }

    fn await_left(&self, left: usize) -> bool {
        let began = Instant::now();
        while self.left.load(Ordering::Relaxed) > left {
            assert!(
                began.elapsed() < Duration::from_mins(5),
                "the walk stands still: {:?}",
                self.answers.lock().unwrap()
            );
            pause(Duration::from_millis(5));
        }
        left > 0
    }
}

/// Ends a walk, also where what disturbs it fails: its clients would go on for ever.
struct End<'w>(&'w AtomicUsize);

impl Drop for End<'_> {
    fn drop(&mut self) {
        self.0.store(0, Ordering::Relaxed);
    }
}

/// Kills the one or the other and has it back.
fn disturb(lab: &Lab, round: usize) {
    let h1 = lab.host(1);
    match round % 7 {
        0 | 4 => {
            h1.kill_node();
            h1.start_node();
        }
        1 => {
            lab.kill_etcd();
            pause(Duration::from_millis(300));
            lab.start_etcd();
            wait_until("etcd is healthy", START, || lab.etcd().healthy());
        }
        2 => {
            h1.kill_dockerd();
            h1.spawn_dockerd();
            h1.await_dockerd();
        }
        3 => {
            h1.stop_node();
            h1.start_node();
        }
        5 => {
            h1.stop_dockerd();
            h1.spawn_dockerd();
            h1.await_dockerd();
        }
        _ => {
            h1.signal_node(Signal::SIGSTOP);
            pause(Duration::from_millis(700));
            h1.signal_node(Signal::SIGCONT);
        }
    }
    h1.await_ready();
}

/// Whether dockerd's own words say that containerd still has the task of a container which dockerd itself knows as ended. A
/// dockerd 20.10 that is killed in the middle of a start comes to that by itself, and no start of that container succeeds again.
fn is_left_at_containerd(message: &str) -> bool {
    message.starts_with("task ") && message.ends_with(": already exists")
}

#[test]
fn a_random_walk_of_many_clients_with_everything_killed_in_turns_leaves_nothing() {
    let seed = setting("CALICO_LAB_SEED").map_or_else(
        || u64::from(SystemTime::now().duration_since(UNIX_EPOCH).unwrap().subsec_nanos()) | 1,
        |text| text.parse().unwrap(),
    );
    println!("CALICO_LAB_SEED={seed} makes every client choose as it did");
    let (lab, before) = begin();
    let h1 = lab.host(1);
    let (steps, every) = (counts(500, 10_000), counts(80, 100));
    let walk = Walk { host: h1, left: AtomicUsize::new(steps), answers: Mutex::default() };
    thread::scope(|scope| {
        let _end = End(&walk.left);
        for client in 1..=8 {
            let walk = &walk;
            scope.spawn(move || walk.client(Dice(seed.wrapping_mul(client).wrapping_add(client) | 1)));
        }
        let mut left = steps;
        for round in 0.. {
            left = left.saturating_sub(every);
            if !walk.await_left(left) {
                break;
            }
            disturb(&lab, round);
        }
    });
    let answers = walk.answers.lock().unwrap();
    let mut calls: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    for ((call, status), times) in answers.iter() {
        calls.entry(call).or_default().push(format!("{status} × {times}"));
    }
    tell(&["call", "answers"], calls.iter().map(|(call, answers)| vec![(*call).to_owned(), answers.join(", ")]));
    for (call, status) in [("create", 201), ("start", 204), ("restart", 204), ("rm -f", 204)] {
        assert!(answers.contains_key(&(call, status)), "no {call} was answered with {status}: {answers:?}");
    }
    // What was cut off in the middle of a create waits for its lease.
    lab.assert_consistent_once_leases_ended();
    // Whoever is there can be started, and is wired then.
    for id in h1.container_ids() {
        let container = h1.container(&id);
        if container.try_record().is_some() && container.raw_inspect()["Args"][1] == IDLE {
            let reply = h1.api("POST", &format!("/containers/{id}/start"), None);
            if reply.status == 500 && is_left_at_containerd(&reply.message()) {
                continue;
            }
            assert!(matches!(reply.status, 204 | 304), "start {id}: {} {}", reply.status, reply.message());
            let address = container.ip();
            wait_until("it answers the host", SOON, || h1.space.pings(address));
        }
    }
    lab.assert_consistent();
    lab.remove_everything();
    let after = before.assert_back(h1);
    before.tell("steps of a random walk of eight clients, with kills", steps, &after);
}
