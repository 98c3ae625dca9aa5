//! What the agent costs, and what its rules cost packets.
//!
//! - **cold**: a node starts on a kernel that holds nothing of ours, until it says that it is in sync; beside it, in turns, the very calls of tools
//!   that it made for that, fed by hand, and `ip -batch` with the same routes.
//! - **add**: one more endpoint (see [`crate::programmed`]), with the processor time of the node without its children.
//! - **rule**: one rule changed of a profile that a thousand endpoints of this host have.
//! - **tag**: a tag of ten thousand members comes into use, and then changes by one.
//! - **churn**: a hundred thousand endpoints of other hosts, with two thousand profiles, and a thousand of them changed in each second: memory,
//!   processor time, and how late a change is in the kernel.
//! - **commands**: what `calicoctl` takes among as many, beside `etcdctl get` of the records that it speaks of.
//! - **restart**: a node that ends, is killed or is replaced under traffic between two of its thousand endpoints.
//! - **packets**: throughput, round trip and connecting between two endpoints, beside Docker's bridge and a bare veth.
//!
//! Options: `--only cold,add,rule,tag,churn,commands,restart,packets`, `--sizes` endpoints on this host, `--n` samples (of a cold start: a tenth),
//! `--remote` endpoints elsewhere, `--seconds` of churn and of each stream of packets.

mod churn;
mod cold;
mod commands;
mod packets;
mod restart;
mod single;

use std::time::Duration;

use crate::datastore::{Fake, Store, profile};
use crate::lab::{self, Lab, get, until};
use crate::{Arguments, Outcome, programmed};

const PARTS: [&str; 8] = ["cold", "add", "rule", "tag", "churn", "commands", "restart", "packets"];

/// What every part is told.
struct Plan {
    samples: usize,
    sizes: Vec<usize>,
    remote: usize,
    seconds: u32,
}

pub(crate) fn run(arguments: &mut Arguments) -> Outcome<()> {
    let mut plan = Plan { samples: 100, sizes: vec![10, 1_000, 5_000], remote: 100_000, seconds: 30 };
    let mut only: Vec<String> = PARTS.map(str::to_owned).into();
    while let Some(option) = arguments.next() {
        match option.as_str() {
            "--n" => plan.samples = arguments.value(&option)?.parse()?,
            "--sizes" => plan.sizes = arguments.value(&option)?.split(',').map(str::parse).collect::<Result<_, _>>()?,
            "--remote" => plan.remote = arguments.value(&option)?.parse()?,
            "--seconds" => plan.seconds = arguments.value(&option)?.parse()?,
            "--only" => only = arguments.value(&option)?.split(',').map(str::to_owned).collect(),
            other => {
                return Err(format!(
                    "unknown option {other:?}: it must be --only, --n, --sizes, --remote or --seconds"
                )
                .into());
            }
        }
    }
    if let Some(unknown) = only.iter().find(|part| !PARTS.contains(&part.as_str())) {
        return Err(format!("unknown part {unknown:?}: it must be one of {}", PARTS.join(", ")).into());
    }
    let mut lab = Lab::up(&[])?;
    let etcd = lab.start_etcd()?;
    lab.node_args.extend(["--bgp", "none"].map(str::to_owned));
    let mut store = Store::connect(&etcd)?;
    for part in PARTS.iter().filter(|part| only.iter().any(|wanted| wanted == *part)) {
        eprintln!("bench: agent: {part}");
        match *part {
            "cold" => cold::measure(&mut lab, &mut store, &plan)?,
            "add" => {
                prepare(&mut store, "bench")?;
                lab.start_node(&[])?;
                programmed::measure(&mut lab, plan.samples, &plan.sizes)?;
            }
            "rule" => single::rule(&mut lab, &mut store, &plan)?,
            "tag" => single::tag(&mut lab, &mut store, &plan)?,
            "churn" => churn::measure(&mut lab, &mut store, &plan)?,
            "commands" => commands::measure(&etcd, &mut store, &plan)?,
            "restart" => restart::measure(&mut lab, &mut store, &plan)?,
            _ => packets::measure(&mut lab, &mut store, &plan)?,
        }
        lab.stop_node()?;
        clear(&mut store)?;
        lab::run(env!("CARGO_BIN_EXE_calico-node"), &["clean"])?;
    }
    Ok(())
}

/// A profile whose members may reach each other.
fn prepare(store: &mut Store, name: &str) -> Outcome<()> {
    store.fill(profile(name).into_iter())
}

/// No endpoints, claims and profiles.
fn clear(store: &mut Store) -> Outcome<()> {
    ["/calico/v1/host/", "/calico/v1/policy/", "/calico/v1/ipam/"].iter().try_for_each(|prefix| store.clear(prefix))
}

/// Endpoints of this host, with interfaces that lead nowhere if they are active.
fn populate(store: &mut Store, count: usize, state: &str, of: &str) -> Outcome<Vec<Fake>> {
    let fakes: Vec<Fake> = (1..=count).map(|number| Fake::of(lab::HOST, number, state, of)).collect();
    if state == "active" {
        lab::feed("ip", &["-batch", "-"], &links(&fakes))?;
    }
    store.fill(fakes.iter().map(|fake| (fake.key.clone(), fake.value.clone())))?;
    Ok(fakes)
}

/// The group of interfaces that lead nowhere: the kernel takes all of a group away at once, which one by one takes minutes.
const NOWHERE: &str = "4242";

/// What `ip -batch` makes the interfaces of.
fn links(fakes: &[Fake]) -> String {
    let pair = |one: &Fake| {
        format!(
            "link add {0} group {NOWHERE} type veth peer name peer{1}\nlink set {0} up\nlink set peer{1} up\n",
            one.interface, one.mark
        )
    };
    fakes.iter().map(pair).collect()
}

/// Starts the node and waits until the kernel holds the policy of these.
fn start_with(lab: &mut Lab, fakes: &[Fake]) -> Outcome<()> {
    lab.start_node(&[])?;
    until("program the endpoints", Duration::from_mins(2), || {
        get("/readyz")?;
        let chains = lab::run("iptables", &["-S"])?;
        match fakes.iter().find(|fake| !chains.contains(&fake.mark)) {
            None => Ok(()),
            Some(missing) => Err(format!("no chain of {}", missing.mark).into()),
        }
    })
}
