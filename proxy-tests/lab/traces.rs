//! What a host has in all places where something could be left behind: compared before and after, so that a leak has a name.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

use super::host::Host;
use super::tell;
use super::wait::wait_until_right;

/// How much more memory a node may have in use after its work: what an allocator keeps, not what a leak takes.
const MEMORY: usize = 24 << 20;

/// How many more descriptors: connections that wait to be used again.
const DESCRIPTORS: usize = 4;

/// Everything that bears a name, and the two counts of the node.
#[derive(Debug, Clone)]
pub(crate) struct Traces {
    things: BTreeSet<String>,
    pub(crate) descriptors: usize,
    pub(crate) memory: usize,
}

/// How long the note of a create that was cut off may wait for its container, and the next comparison then.
pub(super) const NOTE: Duration = Duration::from_secs(120 + 15);

fn files(folder: &Path, into: &mut BTreeSet<String>) {
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        let age = entry.metadata().and_then(|data| data.modified()).ok().and_then(|time| time.elapsed().ok());
        if entry.path().is_dir() {
            files(&entry.path(), into);
        } else if !(folder.ends_with("creating") && age.is_none_or(|age| age < NOTE)) {
            into.insert(format!("file {}", entry.path().display()));
        }
    }
}

impl Traces {
    pub(crate) fn of(host: &Host) -> Self {
        let mut things = BTreeSet::new();
        // What nodes say of themselves follows in its own time.
        let keys = host.etcd().keys("/calico/").into_iter().filter(|key| !key.starts_with("/calico/felix/"));
        things.extend(keys.map(|key| format!("key {key}")));
        for link in host.ip_json(&["link", "show"]) {
            let name = link["ifname"].as_str().unwrap_or_default();
            // Those of Docker's own bridge come and go in their own time.
            if !name.starts_with("veth") {
                things.insert(format!("link {name}"));
            }
        }
        things.extend(
            host.ip_json(&["-4", "route", "show", "table", "all", "proto", "97"]).iter().map(|r| format!("route {r}")),
        );
        for (set, members) in host.sets() {
            things.extend(members.iter().map(|member| format!("set {set} member {member}")));
            things.insert(format!("set {set}"));
        }
        things.extend(host.rules().into_iter().filter(|rule| rule.contains("cali")).map(|rule| format!("rule {rule}")));
        for folder in [host.state_dir(), host.run_dir()] {
            files(&folder, &mut things);
        }
        // The embedded etcd's own are not among them: nobody asks for those.
        Traces { things, descriptors: host.node_descriptors(), memory: host.node_memory() }
    }

    /// Waits until a host has no more than it had then.
    #[track_caller]
    pub(crate) fn assert_back(&self, host: &Host) -> Traces {
        wait_until_right("what was there at the beginning", Duration::from_secs(30), || {
            let now = Traces::of(host);
            let mut wrong: Vec<String> =
                now.things.difference(&self.things).map(|thing| format!("left: {thing}")).collect();
            wrong.extend(self.things.difference(&now.things).map(|thing| format!("lost: {thing}")));
            if now.descriptors > self.descriptors + DESCRIPTORS {
                wrong.push(format!("{} descriptors, and {} at the beginning", now.descriptors, self.descriptors));
            }
            if now.memory > self.memory + MEMORY {
                wrong.push(format!("{} bytes of memory, and {} at the beginning", now.memory, self.memory));
            }
            wrong
        });
        Traces::of(host)
    }

    /// Prints what was there before and after so much work.
    pub(crate) fn tell(&self, what: &str, count: usize, after: &Traces) {
        let mib = |bytes: usize| format!("{:.1}", f64::from(u32::try_from(bytes >> 10).unwrap()) / 1024.0);
        let row = vec![
            count.to_string(),
            format!("{} → {}", self.things.len(), after.things.len()),
            format!("{} → {}", self.descriptors, after.descriptors),
            format!("{} → {}", mib(self.memory), mib(after.memory)),
        ];
        tell(&[what, "keys, links, routes, set members, rules and files", "descriptors", "MiB of the node"], [row]);
    }
}
