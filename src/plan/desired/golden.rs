//! Golden cases: a folder under `src/plan/golden` is a snapshot of host `h1` (172.25.0.1) and all texts that follow from it.
//! One that has a folder `v6` in it keeps those of IPv6 there; the host then has an IPv6 address too (2001:db8::1).
//! `UPDATE_GOLDEN=1 cargo test golden` writes the texts anew; read the difference before you commit it.

use std::fs;
use std::path::Path;

use super::*;
use crate::model::host::Host;
use crate::model::host::tests::h1;
use crate::model::snapshot::tests::from_json_on_h1;
use crate::plan::bird::desired_bird;
use crate::plan::diff::{SeenTable, render, steps};
use crate::plan::sets;

fn texts(family: Family, snapshot: &Snapshot) -> Vec<(&'static str, String)> {
    let host: HostName = "h1".parse().unwrap();
    let mut desired = Desired::new(host.clone(), family);
    desired.update(snapshot, &News::All);
    let table = |name: &str, table: &Table| match steps(table, &SeenTable::default(), None) {
        steps if steps.is_empty() => String::new(),
        steps => render(name, &steps),
    };
    let routes: String = desired.routes.iter().map(|(address, name)| format!("{address} dev {name}\n")).collect();
    let faults: String = desired.faults.iter().map(|(object, why)| format!("{object}: {why}\n")).collect();
    vec![
        ("filter.txt", table("filter", &desired.filter)),
        ("nat.txt", table("nat", &desired.nat)),
        ("sets.txt", sets::render(&sets::steps(&desired.sets, &Sets::new()))),
        ("routes.txt", routes),
        ("faults.txt", faults),
        ("raw.txt", table("raw", &desired.raw)),
    ]
}

#[test]
#[expect(clippy::disallowed_methods, reason = "the switch that rewrites the golden files")]
fn golden_cases_render_as_they_are_kept() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/plan/golden");
    let mut cases: Vec<_> = fs::read_dir(&root).unwrap().map(|entry| entry.unwrap().path()).collect();
    cases.sort();
    assert!(!cases.is_empty());
    let mut differing = Vec::new();
    for case in cases {
        let snapshot = from_json_on_h1(&fs::read_to_string(case.join("snapshot.json")).unwrap());
        let six = case.join("v6");
        let ip6 = six.exists().then(|| "2001:db8::1".parse().unwrap());
        let bird = desired_bird(&snapshot, &Host { ip6, ..h1() }).render();
        let mut all = vec![(case.join("bird.conf"), bird)];
        let of_ipv4 = texts(Family::V4, &snapshot).into_iter().filter(|(name, _)| *name != "raw.txt");
        all.extend(of_ipv4.map(|(name, text)| (case.join(name), text)));
        if six.exists() {
            all.extend(texts(Family::V6, &snapshot).into_iter().map(|(name, text)| (six.join(name), text)));
        }
        for (file, text) in all {
            if std::env::var_os("UPDATE_GOLDEN").is_some() {
                fs::write(&file, &text).unwrap();
            } else if fs::read_to_string(&file).ok().as_deref() != Some(&text) {
                differing.push(format!("--- {} is now:\n{text}", file.display()));
            }
        }
    }
    assert!(differing.is_empty(), "{}", differing.join("\n"));
}
