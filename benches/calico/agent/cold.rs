//! From the start of a node to a kernel that holds everything.

use std::time::{Duration, Instant};

use super::{NOWHERE, Plan, clear, links, populate, prepare};
use crate::Outcome;
use crate::datastore::Store;
use crate::figures::{Samples, ms, table};
use crate::hand::{Call, Recorder};
use crate::lab::{Lab, feed, get, pause, run, until};
use crate::namespace::Namespace;

/// What the kernel holds without us.
#[derive(Clone)]
struct Bare {
    tables: [(String, String); 2],
}

impl Bare {
    fn seen() -> Outcome<Bare> {
        let of = |tool: &str| -> Outcome<(String, String)> {
            Ok((format!("{tool}-restore"), run(&format!("{tool}-save"), &[])?))
        };
        Ok(Bare { tables: [of("iptables")?, of("ip6tables")?] })
    }

    /// Everything of ours goes, in the network namespace of the calling thread.
    fn reset(&self) -> Outcome<()> {
        for (tool, text) in &self.tables {
            feed(tool, &[], text)?;
        }
        let sets = run("ipset", &["list", "-name"])?;
        feed("ipset", &["restore"], &sets.lines().map(|set| format!("destroy {set}\n")).collect::<String>())?;
        // Refused where there has not been a route yet.
        let _ = run("ip", &["route", "flush", "proto", "97"]);
        Ok(())
    }
}

fn from_nothing(lab: &mut Lab) -> Outcome<Duration> {
    let (engine, listen) = (lab.docker_socket(), format!("unix://{}", lab.proxy_socket().display()));
    let begun = Instant::now();
    lab.spawn_node(&engine, &listen, &[])?;
    loop {
        if get("/readyz").is_ok() {
            return Ok(begun.elapsed());
        }
        if begun.elapsed() > Duration::from_mins(2) {
            return Err("the node is not ready within two minutes".into());
        }
        // Asked more often it would itself be what takes the node's time.
        pause(Duration::from_millis(2));
    }
}

/// The calls that a start makes, and the routes that stand after it.
fn record(lab: &mut Lab, recorder: &Recorder) -> Outcome<(Vec<Call>, String)> {
    lab.start_node(&[&recorder.tools])?;
    pause(Duration::from_secs(1));
    let routes = run("ip", &["-4", "route", "show", "proto", "97"])?;
    let routes = routes.lines().map(|line| format!("route replace {} proto 97\n", line.trim())).collect();
    lab.stop_node()?;
    // The guard is not for nft to read from its input: the node speaks with it.
    let calls = recorder.take()?.into_iter().filter(|call| call.program != "nft").collect();
    Ok((calls, routes))
}

pub(super) fn measure(lab: &mut Lab, store: &mut Store, plan: &Plan) -> Outcome<()> {
    let recorder = Recorder::new(&lab.folder)?;
    let bare = Bare::seen()?;
    let mut rows = Vec::new();
    for &size in &plan.sizes {
        prepare(store, "bench")?;
        let fakes = populate(store, size, "active", "bench")?;
        bare.reset()?;
        let (calls, routes) = record(lab, &recorder)?;
        let bytes: usize = calls.iter().map(|call| call.input.len()).sum();
        let count = calls.len();
        let by_hand = Namespace::new()?;
        let links = links(&fakes);
        by_hand.run(move || feed("ip", &["-batch", "-"], &links))?;
        let (mut node, mut hand) = (Samples::default(), Samples::default());
        for _ in 0..plan.samples.div_ceil(10) {
            bare.reset()?;
            node.push(from_nothing(lab)?);
            lab.stop_node()?;
            let (bare, calls, routes) = (bare.clone(), calls.clone(), routes.clone());
            hand.push(by_hand.run(move || {
                bare.reset()?;
                let begun = Instant::now();
                calls.iter().try_for_each(Call::make)?;
                feed("ip", &["-batch", "-"], &routes)?;
                Ok(begun.elapsed())
            })?);
        }
        rows.push(vec![
            size.to_string(),
            node.len().to_string(),
            ms(node.median()),
            ms(hand.median()),
            format!("{:.2}", node.median() / hand.median()),
            ms(node.quantile(990)),
            ms(hand.quantile(990)),
            format!("{count} calls, {} KiB", bytes / 1024),
        ]);
        lab.stop_node()?;
        clear(store)?;
        run("ip", &["link", "delete", "group", NOWHERE])?;
        bare.reset()?;
        until("let the interfaces go", Duration::from_mins(1), || {
            if run("ip", &["-o", "link"])?.contains(": cali") { Err("some are there".into()) } else { Ok(()) }
        })?;
    }
    let head = ["endpoints", "n", "node p50 ms", "by hand p50 ms", "ratio", "node p99 ms", "by hand p99 ms", "by hand"];
    table("Start of a node → in sync, on a kernel without anything of ours (to be reached: ratio ≤ 2)", &head, &rows);
    Ok(())
}
