//! A large cluster that changes all the time, seen from one of its hosts.

use std::time::{Duration, Instant};

use serde_json::json;

use super::{Plan, populate, prepare, start_with};
use crate::Outcome;
use crate::datastore::{Fake, Store, profile};
use crate::figures::{Samples, ms, table, whole};
use crate::lab::{Lab, Share, childrens_time, memory, pause};
use crate::sets::Probe;

const PROFILES: usize = 2_000;
const HOSTS: usize = 500;
const A_SECOND: u32 = 1_000;
/// How many of the tags this host's rules speak of.
const SPOKEN: usize = 20;
/// Numbers of endpoints elsewhere begin here.
const FIRST: usize = 100_000;

fn far(number: usize, address: usize) -> (Fake, String) {
    let host = format!("far{}", number % HOSTS);
    let mut fake = Fake::of(&host, FIRST + number, "active", &format!("p{}", number % PROFILES));
    let other = crate::datastore::address(FIRST + address);
    fake.value = fake.value.replace(&format!("{}/32", fake.address), &format!("{other}/32"));
    (fake, host)
}

/// Changes for a time, with a probe of the delay beside them; without a rate nothing at all happens.
fn row(what: &str, rate: Option<u32>, lab: &Lab, store: &mut Store, plan: &Plan) -> Outcome<Vec<String>> {
    eprintln!("bench: agent: churn: {what}");
    let id = lab.node_id()?;
    let remote = plan.remote;
    // Each change gives an endpoint another address; what it was comes back a round later.
    let change = move |number: usize| {
        let round = number / remote + 1;
        let (fake, _) = far(number * 7919 % remote, number * 7919 % remote + remote * (round % 2));
        (fake.key, fake.value)
    };
    let time = Duration::from_secs(u64::from(plan.seconds));
    let (share, children, begun) = (Share::begin(lab)?, childrens_time(id)?, Instant::now());
    let (mut lag, mut done) = (Samples::default(), 0);
    if let Some(rate) = rate {
        let stream = store.stream(rate, time, change);
        let probe = Fake::of("far0", FIRST - 1, "active", "p0");
        let seen = Probe::new("calico4-t-p0", &probe.address)?;
        while begun.elapsed() < time {
            let acknowledged = store.put(&probe.key, &probe.value)?;
            lag.push(seen.until(true, Duration::from_secs(10))?.saturating_duration_since(acknowledged));
            store.delete(&probe.key)?;
            seen.until(false, Duration::from_secs(10))?;
            pause(Duration::from_millis(47));
        }
        done = stream.join().map_err(|_| "the stream of changes panicked")??;
    } else {
        pause(time);
    }
    let took = begun.elapsed().as_secs_f64();
    let percent = |time: Duration| format!("{:.1}", time.as_secs_f64() / took * 100.0);
    let (resident, highest) = memory(id)?;
    Ok(vec![
        what.to_owned(),
        format!("{:.0}", whole(done) / took),
        percent(share.end()?),
        percent(childrens_time(id)?.saturating_sub(children)),
        format!("{resident:.0}"),
        format!("{highest:.0}"),
        lag.len().to_string(),
        rate.map_or_else(String::new, |_| ms(lag.median())),
        rate.map_or_else(String::new, |_| ms(lag.quantile(990))),
    ])
}

fn speak(store: &mut Store, tags: &[String]) -> Outcome<()> {
    let inbound: Vec<_> = tags.iter().map(|tag| json!({ "action": "allow", "src_tag": tag })).collect();
    let rules = json!({ "inbound_rules": inbound, "outbound_rules": [] }).to_string();
    store.put("/calico/v1/policy/profile/bench/rules", &rules)?;
    Ok(())
}

/// Writes so many endpoints of other hosts, with their claims, profiles and pool.
pub(super) fn fill(store: &mut Store, remote: usize) -> Outcome<()> {
    for number in 0..PROFILES {
        let name = format!("p{number}");
        let [(path, _), rules] = profile(&name);
        store.fill([(path, json!([name, "all"]).to_string()), rules].into_iter())?;
    }
    store.fill(
        [("/calico/v1/ipam/v4/pool/10.0.0.0-8".to_owned(), json!({ "cidr": "10.0.0.0/8" }).to_string())].into_iter(),
    )?;
    let records = (0..remote).flat_map(|number| {
        let (fake, host) = far(number, number);
        [fake.claim(&host, FIRST + number), (fake.key, fake.value)]
    });
    store.fill(records)
}

pub(super) fn measure(lab: &mut Lab, store: &mut Store, plan: &Plan) -> Outcome<()> {
    prepare(store, "bench")?;
    let fakes = populate(store, 10, "inactive", "bench")?;
    start_with(lab, &fakes)?;
    pause(Duration::from_secs(2));
    let (small, _) = memory(lab.node_id()?)?;
    lab.stop_node()?;
    fill(store, plan.remote)?;
    let mut spoken: Vec<String> = (0..SPOKEN).map(|number| format!("p{number}")).collect();
    speak(store, &spoken)?;
    start_with(lab, &fakes)?;
    pause(Duration::from_secs(2));
    let mut rows = Vec::new();
    let about = format!("{SPOKEN} of {PROFILES} tags are used here");
    rows.push(row(&format!("nothing at all; {about}"), None, lab, store, plan)?);
    rows.push(row(&format!("one that comes and goes; {about}"), Some(0), lab, store, plan)?);
    rows.push(row(&format!("changes; {about}"), Some(A_SECOND), lab, store, plan)?);
    spoken.push("all".to_owned());
    speak(store, &spoken)?;
    pause(Duration::from_secs(3));
    rows.push(row("changes; each is one of a tag that is used here", Some(A_SECOND), lab, store, plan)?);
    let head =
        ["changes", "a second", "CPU %", "its children %", "RSS MiB", "at most", "n", "lag p50 ms", "lag p99 ms"];
    table(
        &format!(
            "{} endpoints of other hosts with their claims, {PROFILES} profiles (to be reached: 25 % of a core, 200 MiB, lag p99 100 ms)",
            plan.remote
        ),
        &head,
        &rows,
    );
    println!(
        "\nWithout them the node has {small:.0} MiB. Lag: from the acknowledged put of an endpoint elsewhere to its address in a set of the kernel."
    );
    Ok(())
}
