//! What commands cost in a large cluster.

use std::time::Instant;

use super::{Plan, churn};
use crate::Outcome;
use crate::datastore::Store;
use crate::figures::{Samples, ms, table};
use crate::lab;

/// What is asked, and where in the datastore the answer stands.
const COMMANDS: [(&str, &str); 6] = [
    ("profile show", "/calico/v1/policy/profile/"),
    ("profile p1 rule show", "/calico/v1/policy/profile/"),
    ("pool show", "/calico/v1/ipam/v4/pool/"),
    ("endpoint show --host far1 --detailed", "/calico/v1/host/far1/workload/"),
    ("endpoint show", "/calico/v1/host/"),
    ("profile show --detailed", "/calico/v1/host/"),
];

pub(super) fn measure(etcd: &str, store: &mut Store, plan: &Plan) -> Outcome<()> {
    churn::fill(store, plan.remote)?;
    let place = format!("ETCD_ENDPOINTS={etcd}");
    let mut rows = Vec::new();
    for (line, path) in COMMANDS {
        let (mut ours, mut floor) = (Samples::default(), Samples::default());
        for _ in 0..plan.samples.div_ceil(5) {
            let began = Instant::now();
            lab::run("env", &["ETCDCTL_API=3", "etcdctl", "--endpoints", etcd, "get", "--prefix", path])?;
            floor.push(began.elapsed());
            let words: Vec<&str> = line.split(' ').collect();
            let began = Instant::now();
            lab::run("env", &[&[place.as_str(), env!("CARGO_BIN_EXE_calicoctl")], words.as_slice()].concat())?;
            ours.push(began.elapsed());
        }
        let (ours_p50, floor_p50) = (ours.median(), floor.median());
        rows.push(vec![
            line.to_owned(),
            path.to_owned(),
            ours.len().to_string(),
            ms(ours_p50),
            ms(floor_p50),
            format!("{:.2}", ours_p50 / floor_p50),
        ]);
    }
    let head = ["calicoctl", "what it is about", "n", "p50 ms", "etcdctl get --prefix of that, p50 ms", "ratio"];
    table(&format!("Commands where there are {} endpoints with their claims", plan.remote), &head, &rows);
    Ok(())
}
