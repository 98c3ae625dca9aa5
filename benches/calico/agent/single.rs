//! One change that touches many: a rule of a profile that a thousand have, a tag of ten thousand members.

use std::time::Duration;

use serde_json::json;

use super::{Plan, populate, prepare, start_with};
use crate::Outcome;
use crate::datastore::{Fake, Store};
use crate::figures::{Samples, ms, signed, table};
use crate::hand::{Floor, Recorder, Script, Sight, Sign};
use crate::lab::{Lab, Share, pause};

/// Longer than the node takes to finish what belongs to one change.
const SETTLED: Duration = Duration::from_secs(1);
const RULES: &str = "/calico/v1/policy/profile/bench/rules";
/// The chain of what members of the profile may receive.
const CHAIN: &str = "calico-pi-bench";

/// A record that changes to and fro.
struct Change {
    key: String,
    there: String,
    /// `None`: it is not there.
    back: Option<String>,
    sign: Sign,
}

impl Change {
    fn go(&self, store: &mut Store) -> Outcome<std::time::Instant> {
        store.put(&self.key, &self.there)
    }

    fn undo(&self, store: &mut Store) -> Outcome<()> {
        match &self.back {
            Some(value) => store.put(&self.key, value).map(drop),
            None => store.delete(&self.key),
        }
    }
}

fn row(what: &str, change: &Change, samples: usize, lab: &mut Lab, store: &mut Store) -> Outcome<Vec<String>> {
    eprintln!("bench: agent: {what}");
    let recorder = Recorder::new(&lab.folder)?;
    lab.stop_node()?;
    lab.start_node(&[&recorder.tools])?;
    pause(SETTLED);
    recorder.take()?;
    change.go(store)?;
    pause(SETTLED * 2);
    let add = recorder.take()?;
    change.undo(store)?;
    pause(SETTLED * 2);
    let remove = recorder.take()?;
    if add.is_empty() {
        return Err(format!("{what}: no call of a tool was recorded: there is nothing to compare with").into());
    }
    let calls: Vec<String> = add.iter().map(|call| format!("{} ({} bytes)", call.program, call.input.len())).collect();
    lab.stop_node()?;
    lab.start_node(&[])?;
    pause(SETTLED);
    let floor = Floor::new(Script { add, remove }, change.sign.clone())?;
    let sight = Sight::of(&change.sign)?;
    let (mut node, mut hand, mut own) = (Samples::default(), Samples::default(), Samples::default());
    for _ in 0..samples {
        let share = Share::begin(lab)?;
        sight.forget();
        let acknowledged = change.go(store)?;
        let came = sight.came()?;
        let late = came.saturating_duration_since(acknowledged).as_secs_f64();
        let early = acknowledged.saturating_duration_since(came).as_secs_f64();
        node.push_ms((late - early) * 1e3);
        own.push(share.end()?);
        change.undo(store)?;
        // The way back is over before the next begins.
        pause(Duration::from_millis(100));
        hand.push(floor.sample()?);
    }
    Ok(vec![
        what.to_owned(),
        node.len().to_string(),
        ms(node.median()),
        ms(hand.median()),
        signed(node.median() - hand.median()),
        ms(node.quantile(990)),
        ms(hand.quantile(990)),
        signed(node.quantile(990) - hand.quantile(990)),
        ms(own.median()),
        calls.join(", "),
    ])
}

const HEAD: [&str; 10] = [
    "change",
    "n",
    "node p50 ms",
    "by hand p50 ms",
    "difference",
    "node p99 ms",
    "by hand p99 ms",
    "difference",
    "own share p50 ms",
    "by hand",
];
const AIM: &str = "(to be reached: difference ≤ 5 ms p50, ≤ 30 ms p99)";

fn rules(inbound: &serde_json::Value) -> String {
    json!({ "inbound_rules": [inbound], "outbound_rules": [{ "action": "allow" }] }).to_string()
}

/// One rule of a profile.
pub(super) fn rule(lab: &mut Lab, store: &mut Store, plan: &Plan) -> Outcome<()> {
    let mut rows = Vec::new();
    prepare(store, "bench")?;
    let fakes = populate(store, 1_000, "inactive", "bench")?;
    start_with(lab, &fakes)?;
    let port = |port: u16| rules(&json!({ "action": "allow", "protocol": "tcp", "dst_ports": [port] }));
    store.put(RULES, &port(80))?;
    let sign = Sign::Chain(CHAIN.to_owned());
    let change = Change { key: RULES.to_owned(), there: port(8080), back: Some(port(80)), sign };
    rows.push(row("one rule of a profile that 1,000 endpoints have", &change, plan.samples, lab, store)?);
    table(&format!("A rule changed → in the kernel {AIM}"), &HEAD, &rows);
    Ok(())
}

/// A tag of many members.
pub(super) fn tag(lab: &mut Lab, store: &mut Store, plan: &Plan) -> Outcome<()> {
    const MEMBERS: usize = 10_000;
    let mut rows = Vec::new();
    prepare(store, "bench")?;
    prepare(store, "many")?;
    let far = |number: usize| Fake::of(&format!("far{}", number % 100), 1_000_000 + number, "active", "many");
    store.fill((0..MEMBERS).map(far).map(|one| (one.key, one.value)))?;
    let fakes = populate(store, 10, "inactive", "bench")?;
    let (with, without) = (
        rules(&json!({ "action": "allow", "src_tag": "many" })),
        rules(&json!({ "action": "allow", "src_tag": "bench" })),
    );
    store.put(RULES, &without)?;
    start_with(lab, &fakes)?;
    let sign = Sign::Chain(CHAIN.to_owned());
    let load = Change { key: RULES.to_owned(), there: with.clone(), back: Some(without), sign };
    let loads = plan.samples.div_ceil(5);
    rows.push(row("a tag of 10,000 members comes into use", &load, loads, lab, store)?);
    store.put(RULES, &with)?;
    let more = far(MEMBERS);
    let sign = Sign::Member("calico4-t-many".to_owned(), more.address.clone());
    let one = Change { key: more.key, there: more.value, back: None, sign };
    rows.push(row("one member more", &one, plan.samples, lab, store)?);
    table(&format!("A tag changed → in the kernel {AIM}"), &HEAD, &rows);
    Ok(())
}
