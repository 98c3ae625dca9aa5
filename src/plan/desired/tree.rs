//! The dispatch tree: interfaces by the first two characters after `cali`.

use std::collections::{BTreeMap, BTreeSet};

use crate::plan::chain::Chain;
use crate::plan::filter::{self, Way};

/// How many characters of a name the tree branches on: 256 branches of hex digits, so some tens of endpoints in each
/// of them at the sizes that one host holds.
const DEPTH: usize = 2;

#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Node {
    /// The longer prefixes that go on from here.
    deeper: BTreeSet<String>,
    /// The interfaces that end here, without `cali`.
    leaves: BTreeSet<String>,
}

/// Nodes by their prefix. The root is there even when it is empty.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Tree {
    nodes: BTreeMap<String, Node>,
}

/// The prefixes of a suffix that have nodes, shortest first. Names of interfaces are ASCII, so bytes are characters.
fn prefixes(suffix: &str) -> impl DoubleEndedIterator<Item = &str> {
    (0..=DEPTH.min(suffix.len())).map(|length| &suffix[..length])
}

impl Tree {
    pub(super) fn has(&self, prefix: &str) -> bool {
        self.nodes.contains_key(prefix)
    }

    /// Takes an interface in; `grown` tells the nodes that differ.
    pub(super) fn insert(&mut self, suffix: &str, grown: &mut BTreeSet<String>) {
        let path: Vec<&str> = prefixes(suffix).collect();
        for pair in path.windows(2) {
            let node = self.nodes.entry(pair[0].to_owned()).or_default();
            if node.deeper.insert(pair[1].to_owned()) {
                grown.insert(pair[0].to_owned());
            }
        }
        let last = path.last().copied().unwrap_or_default();
        self.nodes.entry(last.to_owned()).or_default().leaves.insert(suffix.to_owned());
        grown.insert(last.to_owned());
    }

    /// Takes an interface out, and the nodes that are empty without it.
    pub(super) fn remove(&mut self, suffix: &str, grown: &mut BTreeSet<String>) {
        let mut gone: Option<&str> = None;
        for prefix in prefixes(suffix).rev() {
            let Some(node) = self.nodes.get_mut(prefix) else { continue };
            let differs = match gone.take() {
                Some(longer) => node.deeper.remove(longer),
                None => node.leaves.remove(suffix),
            };
            if differs {
                grown.insert(prefix.to_owned());
            }
            if !node.deeper.is_empty() || !node.leaves.is_empty() {
                return;
            }
            self.nodes.remove(prefix);
            gone = Some(prefix);
        }
    }

    pub(super) fn chain(&self, way: Way, prefix: &str) -> Chain {
        let none = Node::default();
        let node = self.nodes.get(prefix).unwrap_or(&none);
        filter::dispatch(way, prefix, &node.deeper, &node.leaves)
    }
}
