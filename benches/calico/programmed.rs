//! From an endpoint's record to its chains in the kernel, beside the same calls made by hand.

use std::time::Duration;

use crate::Outcome;
use crate::datastore::{Fake, Store};
use crate::figures::{Samples, ms, signed, table};
use crate::hand::{Floor, Recorder, Script, Sign};
use crate::lab::{Lab, Share, pause, run, until};
use crate::watch::{Event, Watch};

const LIMIT: Duration = Duration::from_secs(30);
/// Longer than the node takes to finish what belongs to one change.
const SETTLED: Duration = Duration::from_secs(1);

/// What nodes say of endpoints.
const REPORTS: &str = "/calico/felix/v1/host/bench/workload/";

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
    let last = fakes.clone().last().map(|number| Fake::new(number).mark);
    store.fill(fakes.map(Fake::new).map(|fake| (fake.key, fake.value)))?;
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
        let floor = Floor::new(script, Sign::Chain(extra.mark.clone()))?;
        let watch = Watch::new(&extra.mark)?;
        let mut store = Store::connect(&lab.etcd_endpoint()?)?;
        // What the node has to say of all of them it has said: it is no part of what one more costs.
        let most = i64::try_from(size)?;
        until("report the endpoints", Duration::from_mins(1), || {
            if store.count(REPORTS)? < most { Err("some are missing".into()) } else { Ok(()) }
        })?;
        let (mut node, mut hand) = (Samples::default(), Samples::default());
        let mut own = Samples::default();
        for _ in 0..samples {
            let share = Share::begin(lab)?;
            node.push_ms(through_node(&mut store, &extra, &watch)?);
            own.push(share.end()?);
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
            ms(own.median()),
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
        "own share p50 ms",
    ];
    table("Put of an endpoint's record acknowledged → its chains in the kernel", &head, &rows);
    println!(
        "\nBy hand: {}, in this order. Own share: processor time of the node without its children, for the endpoint to come and to go.",
        calls.join(", ")
    );
    Ok(())
}
