//! From an endpoint's record to its chains in the kernel, beside the same calls made by hand.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

use etcd_client::Client;
use serde_json::json;
use tokio::runtime::Runtime;

use crate::Outcome;
use crate::figures::{Samples, ms, signed, table};
use crate::lab::{HOST, Lab, feed, pause, run, until};
use crate::watch::{Event, Watch};

const LIMIT: Duration = Duration::from_secs(30);
/// Longer than the node takes to finish what belongs to one change.
const SETTLED: Duration = Duration::from_secs(1);
/// The tools that write rules; whatever else the node asks of them is passed on unrecorded.
const TOOLS: [&str; 4] = ["iptables-restore", "ip6tables-restore", "ipset", "nft"];

/// A record as a `docker create` leaves it: policy stands, no process yet. Its number is its address in the default pool, from the far end.
struct Fake {
    key: String,
    value: String,
    /// What all names of its chains hold.
    mark: String,
}

impl Fake {
    fn new(number: usize) -> Fake {
        let id = format!("{number:08x}be9c{:020x}", 0);
        let mark = id[..11].to_owned();
        // Not under `docker`: no container of dockerd's stands behind it, and the node must not look for one.
        let key = format!("/calico/v1/host/{HOST}/workload/bench/w{number}/endpoint/{id}");
        let value = json!({
            "state": "inactive",
            "name": format!("cali{mark}"),
            "mac": format!("02:00:00:00:{:02x}:{:02x}", number / 256, number % 256),
            "profile_ids": ["bench"],
            "ipv4_nets": [format!("192.168.{}.{}/32", 128 + number / 250, 1 + number % 250)],
            "ipv6_nets": [],
            "ipv4_gateway": "172.31.255.1",
            "ipv6_gateway": null,
        });
        Fake { key, value: value.to_string(), mark }
    }
}

/// The datastore, from the outside.
struct Store {
    runtime: Runtime,
    client: Client,
}

impl Store {
    fn connect(endpoint: &str) -> Outcome<Store> {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        let client = runtime.block_on(Client::connect([endpoint], None))?;
        Ok(Store { runtime, client })
    }

    /// Answers when the put was acknowledged.
    fn put(&mut self, key: &str, value: &str) -> Outcome<Instant> {
        self.runtime.block_on(self.client.put(key, value, None))?;
        Ok(Instant::now())
    }

    fn delete(&mut self, key: &str) -> Outcome<()> {
        self.runtime.block_on(self.client.delete(key, None))?;
        Ok(())
    }
}

/// One call that the node made of a tool, with what it fed to it.
#[derive(Clone)]
struct Call {
    program: String,
    arguments: Vec<String>,
    input: String,
}

impl Call {
    fn make(&self) -> Outcome<()> {
        let arguments: Vec<&str> = self.arguments.iter().map(String::as_str).collect();
        feed(&self.program, &arguments, &self.input).map(|_| ())
    }
}

/// A folder of stand-ins for the tools, each of which records what it is fed and then becomes the tool.
struct Recorder {
    tools: PathBuf,
    calls: PathBuf,
}

impl Recorder {
    fn new(folder: &Path) -> Outcome<Recorder> {
        let (tools, calls) = (folder.join("recorder"), folder.join("calls"));
        fs::create_dir_all(&tools)?;
        fs::create_dir_all(&calls)?;
        for tool in TOOLS {
            let real = run("sh", &["-c", &format!("command -v {tool}")])?;
            let script = format!(
                "#!/bin/sh\ncase \"{tool} $*\" in *restore*|*' -f '*) ;; *) exec {real} \"$@\" ;; esac\ncall={}/$(date +%s%N)\necho {tool} \"$@\" >$call.call\ntee $call.text | {real} \"$@\"\n",
                calls.display(),
                real = real.trim(),
            );
            let path = tools.join(tool);
            fs::write(&path, script)?;
            fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
        }
        Ok(Recorder { tools, calls })
    }

    /// The calls since the last time, in their order.
    fn take(&self) -> Outcome<Vec<Call>> {
        let mut paths: Vec<PathBuf> =
            fs::read_dir(&self.calls)?.map(|entry| Ok(entry?.path())).collect::<Outcome<_>>()?;
        paths.retain(|path| path.extension().is_some_and(|extension| extension == "call"));
        paths.sort();
        let mut calls = Vec::new();
        for path in paths {
            let line = fs::read_to_string(&path)?;
            let text = path.with_extension("text");
            let mut words = line.split_whitespace().map(str::to_owned);
            let program = words.next().ok_or("an empty call")?;
            calls.push(Call { program, arguments: words.collect(), input: fs::read_to_string(&text)? });
            fs::remove_file(&path)?;
            fs::remove_file(&text)?;
        }
        Ok(calls)
    }
}

/// The node's calls for one endpoint that comes and goes.
#[derive(Clone)]
struct Script {
    add: Vec<Call>,
    remove: Vec<Call>,
}

/// The same calls by hand, in a network namespace with a copy of the rules. Lives on a thread of its own, which is in that namespace.
struct Floor {
    ask: Sender<()>,
    took: Receiver<Outcome<Duration>>,
}

impl Floor {
    fn new(script: Script, mark: String) -> Outcome<Floor> {
        let (sets, rules) = (run("ipset", &["save"])?, run("iptables-save", &[])?);
        let (ask, asked) = channel();
        let (answer, took) = channel();
        std::thread::spawn(move || {
            let ready = (|| -> Outcome<Watch> {
                leave_namespace()?;
                feed("ipset", &["restore"], &sets)?;
                feed("iptables-restore", &[], &rules)?;
                Watch::new(&mark)
            })();
            let watch = match ready {
                Ok(watch) => watch,
                Err(error) => return drop(answer.send(Err(error))),
            };
            if answer.send(Ok(Duration::ZERO)).is_err() {
                return;
            }
            while asked.recv().is_ok() {
                if answer.send(by_hand(&script, &watch)).is_err() {
                    return;
                }
            }
        });
        let floor = Floor { ask, took };
        floor.took.recv()??;
        Ok(floor)
    }

    fn sample(&self) -> Outcome<Duration> {
        self.ask.send(())?;
        self.took.recv()?
    }
}

#[expect(clippy::disallowed_methods, reason = "the calling thread stays in its new network namespace until it ends")]
fn leave_namespace() -> Outcome<()> {
    Ok(nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET)?)
}

fn by_hand(script: &Script, watch: &Watch) -> Outcome<Duration> {
    watch.forget();
    let start = Instant::now();
    for call in &script.add {
        call.make()?;
    }
    let took = watch.next(Event::Came, LIMIT)?.saturating_duration_since(start);
    for call in &script.remove {
        call.make()?;
    }
    Ok(took)
}

/// From the acknowledged put to the chain in the kernel, in milliseconds: below zero if the kernel was first.
fn through_node(store: &mut Store, fake: &Fake, watch: &Watch) -> Outcome<f64> {
    watch.forget();
    let acknowledged = store.put(&fake.key, &fake.value)?;
    let programmed = watch.next(Event::Came, LIMIT)?;
    store.delete(&fake.key)?;
    watch.next(Event::Went, LIMIT)?;
    let late = programmed.saturating_duration_since(acknowledged).as_secs_f64();
    let early = acknowledged.saturating_duration_since(programmed).as_secs_f64();
    Ok((late - early) * 1e3)
}

/// Brings the host to a number of endpoints and learns, from a node whose tools are recorded, what one more makes it do.
fn record(lab: &mut Lab, recorder: &Recorder, fakes: std::ops::Range<usize>, extra: &Fake) -> Outcome<Script> {
    lab.stop_node()?;
    lab.start_node(&[&recorder.tools])?;
    let mut store = Store::connect(&lab.etcd_endpoint()?)?;
    let mut last = None;
    for number in fakes {
        let fake = Fake::new(number);
        store.put(&fake.key, &fake.value)?;
        last = Some(fake.mark);
    }
    if let Some(last) = last {
        until("program the endpoints", Duration::from_mins(2), || {
            if run("iptables", &["-S"])?.contains(&last) {
                Ok(())
            } else {
                Err("the last one's chain is not there".into())
            }
        })?;
    }
    pause(SETTLED);
    recorder.take()?;
    let watch = Watch::new(&extra.mark)?;
    store.put(&extra.key, &extra.value)?;
    watch.next(Event::Came, LIMIT)?;
    pause(SETTLED);
    let add = recorder.take()?;
    store.delete(&extra.key)?;
    watch.next(Event::Went, LIMIT)?;
    pause(SETTLED);
    let remove = recorder.take()?;
    if !add.iter().any(|call| call.input.contains(&extra.mark)) {
        return Err("no call of a tool was recorded that names the endpoint: there is nothing to compare with".into());
    }
    lab.stop_node()?;
    lab.start_node(&[])?;
    Ok(Script { add, remove })
}

pub(crate) fn measure(lab: &mut Lab, samples: usize, sizes: &[usize]) -> Outcome<()> {
    let recorder = Recorder::new(&lab.folder)?;
    let extra = Fake::new(0);
    let mut rows = Vec::new();
    let mut shown = 0;
    let mut calls = Vec::new();
    for &size in sizes {
        eprintln!("bench: programmed: {size} endpoints");
        let script = record(lab, &recorder, shown + 1..size + 1, &extra)?;
        shown = size;
        calls = script.add.iter().map(|call| format!("`{}` ({} bytes)", call.program, call.input.len())).collect();
        let floor = Floor::new(script, extra.mark.clone())?;
        let watch = Watch::new(&extra.mark)?;
        let mut store = Store::connect(&lab.etcd_endpoint()?)?;
        let (mut node, mut hand) = (Samples::default(), Samples::default());
        for _ in 0..samples {
            node.push_ms(through_node(&mut store, &extra, &watch)?);
            hand.push(floor.sample()?);
        }
        rows.push(vec![
            size.to_string(),
            node.len().to_string(),
            ms(node.median()),
            ms(hand.median()),
            signed(node.median() - hand.median()),
            ms(node.quantile(990)),
            ms(hand.quantile(990)),
            signed(node.quantile(990) - hand.quantile(990)),
        ]);
    }
    let head = [
        "endpoints on the host",
        "n",
        "node p50 ms",
        "by hand p50 ms",
        "difference",
        "node p99 ms",
        "by hand p99 ms",
        "difference",
    ];
    table("Put of an endpoint's record acknowledged → its chains in the kernel", &head, &rows);
    println!("\nBy hand: {}, in this order.", calls.join(", "));
    Ok(())
}
