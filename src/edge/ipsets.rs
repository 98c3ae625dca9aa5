//! The hand on IP sets: the `ipset` tool, one run for all steps.
//!
//! The netlink protocol of ipset would save a process, but it is that tool's private one and no crate speaks it well; one
//! run takes 2 to 6 ms.

use std::collections::BTreeMap;

use super::exec::run;
use crate::model::fault::Fault;
use crate::model::pool::Family;
use crate::plan::sets::{SetName, SetStep, Sets, parse, render};

/// The sets of a family that are ours, with all members.
pub(crate) async fn observe(family: Family) -> Result<Sets, Fault> {
    Ok(parse(family, &run("ipset", &["save"], "").await?.stdout))
}

/// How many members each set of ours has, in both families; far cheaper than to see them all.
pub(crate) async fn sizes() -> Result<BTreeMap<SetName, usize>, Fault> {
    Ok(parse_sizes(&run("ipset", &["list", "-terse"], "").await?.stdout))
}

fn parse_sizes(text: &str) -> BTreeMap<SetName, usize> {
    let mut sizes = BTreeMap::new();
    let mut name = None;
    for line in text.lines() {
        if let Some(found) = line.strip_prefix("Name: ") {
            name = SetName::seen(found.trim());
        } else if let Some(number) = line.strip_prefix("Number of entries: ")
            && let Some(name) = name.take()
        {
            sizes.insert(name, number.trim().parse().unwrap_or(0));
        }
    }
    sizes
}

/// Carries out the steps in their order.
///
/// # Errors
/// The tool stops at the first step that fails; those before it are done. Observe again.
pub(crate) async fn apply(steps: &[SetStep]) -> Result<(), Fault> {
    if steps.is_empty() {
        return Ok(());
    }
    // With -exist an entry that is already there, or already gone, is no error: the end is what counts.
    run("ipset", &["-exist", "restore"], &render(steps)).await.map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_of_our_sets_only() {
        let text = "Name: calico4-t-web\nType: hash:ip\nReferences: 0\nNumber of entries: 7\n\nName: other\nNumber of entries: 1\n";
        let sizes = parse_sizes(text);
        assert_eq!(sizes.iter().map(|(name, size)| (name.as_str(), *size)).collect::<Vec<_>>(), [("calico4-t-web", 7)]);
    }
}
