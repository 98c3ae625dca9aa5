//! Golden cases: a folder under `src/plan/golden` is a snapshot of host `h1` (172.25.0.1) and all texts that follow from it;
//! one that has a folder `v6` in it keeps those of IPv6 there.
//! `UPDATE_GOLDEN=1 cargo test golden` writes the texts anew; read the difference before you commit it.

use std::fs;
use std::path::Path;

use super::*;
use crate::model::snapshot::tests::from_json_on_h1;
use crate::plan::bird::desired_bird;
use crate::plan::diff::{SeenTable, render, steps};
use crate::plan::sets;

fn texts(snapshot: &Snapshot) -> Vec<(&'static str, String)> {
    let host: HostName = "h1".parse().unwrap();
    let mut desired = Desired::new(host.clone(), Family::V4);
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
        ("bird.conf", desired_bird(snapshot, &host, [172, 25, 0, 1].into()).render()),
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
        for (name, text) in texts(&snapshot) {
            let file = case.join(name);
            if std::env::var_os("UPDATE_GOLDEN").is_some() {
                fs::write(&file, &text).unwrap();
            } else if fs::read_to_string(&file).ok().as_deref() != Some(&text) {
                differing.push(format!("--- {} is now:\n{text}", file.display()));
            }
        }
    }
    assert!(differing.is_empty(), "{}", differing.join("\n"));
}
