//! What must be written to iptables: wanted chains × chains that are there → steps → restore text.
//!
//! Chains are compared by the sequence of the hashes in their entries' comments, and by what the entries say besides. An
//! entry without a hash of ours in a chain of ours, one that somebody has edited and left our comment on, and a jump that
//! is not the first of its kernel chain, count as drift. An ordered chain that differs is
//! written anew; in an unordered one single entries come and go. The kernel takes all steps of a table as one.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::sync::Arc;

use super::chain::{CHAIN_PREFIX, ChainName, ChainText, Line, hash_of};
use super::saved::same_entry;

/// The kernel's tables that we write to.
pub(crate) const FILTER: &str = "filter";
pub(crate) const NAT: &str = "nat";
pub(crate) const RAW: &str = "raw";

/// The tables that we write to, in either family.
pub(crate) const TABLES: [&str; 3] = [FILTER, NAT, RAW];

/// The wanted chains of one table, and the jumps into them from the kernel's chains.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Table {
    pub(crate) chains: BTreeMap<ChainName, Arc<ChainText>>,
    /// By the kernel's chain: the entry that stands first.
    pub(crate) jumps: BTreeMap<&'static str, Line>,
}

/// An entry that is there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct SeenLine {
    /// `None`: the entry is not one of ours.
    pub(crate) hash: Option<u64>,
    pub(crate) spec: Arc<str>,
}

impl SeenLine {
    /// Whether it is a line of ours, as it was written.
    fn is(&self, line: &Line) -> bool {
        self.hash == Some(line.hash) && same_entry(&self.spec, &line.spec)
    }
}

/// An entry of a kernel chain that leads into ours.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct SeenJump {
    pub(crate) first: bool,
    pub(crate) line: SeenLine,
}

/// What is there of ours in one table.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct SeenTable {
    pub(crate) chains: BTreeMap<ChainName, Vec<SeenLine>>,
    pub(crate) jumps: BTreeMap<String, Vec<SeenJump>>,
}

/// One change of a table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum ChainStep {
    /// Makes the chain, or empties it, and fills it.
    Write(ChainName, Arc<ChainText>),
    Append(ChainName, Line),
    Delete(ChainName, Arc<str>),
    /// Takes the old jumps out of a kernel chain and puts the new one first.
    Jump {
        kernel: String,
        old: Vec<Arc<str>>,
        new: Option<Line>,
    },
    /// Takes the chain away.
    Remove(ChainName),
}

impl ChainStep {
    /// The chain that the step changes; `None`: it is none of ours.
    pub(crate) fn chain(&self) -> Option<&ChainName> {
        match self {
            ChainStep::Write(chain, _)
            | ChainStep::Append(chain, _)
            | ChainStep::Delete(chain, _)
            | ChainStep::Remove(chain) => Some(chain),
            ChainStep::Jump { .. } => None,
        }
    }

    /// What the step is about, for people.
    pub(crate) fn object(&self) -> String {
        match self {
            ChainStep::Write(chain, _) | ChainStep::Remove(chain) => format!("chain {chain}"),
            ChainStep::Append(chain, _) | ChainStep::Delete(chain, _) => format!("entry of chain {chain}"),
            ChainStep::Jump { kernel, .. } => format!("jump from {kernel}"),
        }
    }
}

/// The steps for the chains named in `only`, or for all. Jumps are always looked at: a table has one or two.
pub(crate) fn steps(wanted: &Table, seen: &SeenTable, only: Option<&BTreeSet<ChainName>>) -> Vec<ChainStep> {
    let mut steps = Vec::new();
    let mut look = |name: &ChainName| match (wanted.chains.get(name), seen.chains.get(name)) {
        (Some(chain), seen) => chain_steps(name, chain, seen, &mut steps),
        (None, Some(_)) => steps.push(ChainStep::Remove(name.clone())),
        (None, None) => {}
    };
    if let Some(names) = only {
        names.iter().for_each(look);
    } else {
        wanted.chains.keys().for_each(&mut look);
        seen.chains.keys().filter(|name| !wanted.chains.contains_key(name)).for_each(look);
    }
    jump_steps(wanted, seen, &mut steps);
    steps
}

/// Whether a chain stands as it is wanted.
pub(crate) fn holds(wanted: &Table, seen: &SeenTable, name: &ChainName) -> bool {
    steps(wanted, seen, Some(&BTreeSet::from([name.clone()]))).iter().all(|step| matches!(step, ChainStep::Jump { .. }))
}

fn chain_steps(name: &ChainName, wanted: &Arc<ChainText>, seen: Option<&Vec<SeenLine>>, steps: &mut Vec<ChainStep>) {
    let whole = || ChainStep::Write(name.clone(), wanted.clone());
    let Some(seen) = seen else {
        steps.push(whole());
        return;
    };
    let same = wanted.lines.len() == seen.len() && wanted.lines.iter().zip(seen).all(|(line, seen)| seen.is(line));
    if same {
        return;
    }
    let there: BTreeSet<Option<u64>> = seen.iter().map(|line| line.hash).collect();
    let edited = |seen: &SeenLine| wanted.lines.iter().any(|line| seen.hash == Some(line.hash) && !seen.is(line));
    if wanted.ordered || seen.iter().any(edited) || there.len() != seen.len() || there.contains(&None) {
        steps.push(whole());
        return;
    }
    let right: BTreeSet<u64> = wanted.lines.iter().map(|line| line.hash).collect();
    let stale = seen.iter().filter(|line| line.hash.is_none_or(|hash| !right.contains(&hash)));
    steps.extend(stale.map(|line| ChainStep::Delete(name.clone(), line.spec.clone())));
    let missing = wanted.lines.iter().filter(|line| !there.contains(&Some(line.hash)));
    steps.extend(missing.map(|line| ChainStep::Append(name.clone(), line.clone())));
}

fn jump_steps(wanted: &Table, seen: &SeenTable, steps: &mut Vec<ChainStep>) {
    let specs = |jumps: &[SeenJump]| jumps.iter().map(|jump| jump.line.spec.clone()).collect();
    for (kernel, line) in &wanted.jumps {
        let there = seen.jumps.get(*kernel).map_or(&[][..], Vec::as_slice);
        if !matches!(there, [SeenJump { first: true, line: one }] if one.is(line)) {
            let new = Some(line.clone());
            steps.push(ChainStep::Jump { kernel: (*kernel).to_owned(), old: specs(there), new });
        }
    }
    let stale =
        seen.jumps.iter().filter(|(kernel, jumps)| !jumps.is_empty() && !wanted.jumps.contains_key(kernel.as_str()));
    steps.extend(stale.map(|(kernel, jumps)| ChainStep::Jump { kernel: kernel.clone(), old: specs(jumps), new: None }));
}

/// What the table looks like once the steps are carried out.
pub(crate) fn carried_out(seen: &mut SeenTable, steps: &[ChainStep]) {
    let as_seen = |line: &Line| SeenLine { hash: Some(line.hash), spec: line.spec.clone() };
    for step in steps {
        match step {
            ChainStep::Write(chain, text) => {
                seen.chains.insert(chain.clone(), text.lines.iter().map(as_seen).collect());
            }
            ChainStep::Append(chain, line) => seen.chains.entry(chain.clone()).or_default().push(as_seen(line)),
            ChainStep::Delete(chain, spec) => {
                if let Some(lines) = seen.chains.get_mut(chain)
                    && let Some(index) = lines.iter().position(|line| line.spec == *spec)
                {
                    lines.remove(index);
                }
            }
            ChainStep::Jump { kernel, new, .. } => {
                let jump = new.as_ref().map(|line| SeenJump { first: true, line: as_seen(line) });
                seen.jumps.insert(kernel.clone(), jump.into_iter().collect());
            }
            ChainStep::Remove(chain) => {
                seen.chains.remove(chain);
            }
        }
    }
}

/// The text of one table that `iptables-restore --noflush` reads.
///
/// All chains that are to be written are made first, so that no order among them matters; what is taken away goes last,
/// emptied before any of it is removed, so that none is still spoken of.
pub(crate) fn render(table: &str, steps: &[ChainStep]) -> String {
    let mut text = format!("*{table}\n");
    for step in steps {
        // To name a chain so makes it, or empties it (iptables-restore(8), --noflush).
        if let ChainStep::Write(chain, _) = step {
            let _ = writeln!(text, ":{chain} - [0:0]");
        }
    }
    for step in steps {
        match step {
            ChainStep::Write(chain, lines) => {
                for line in &lines.lines {
                    let _ = writeln!(text, "-A {chain} {}", line.spec);
                }
            }
            ChainStep::Append(chain, line) => {
                let _ = writeln!(text, "-A {chain} {}", line.spec);
            }
            ChainStep::Delete(chain, spec) => {
                let _ = writeln!(text, "-D {chain} {spec}");
            }
            ChainStep::Jump { kernel, old, new } => {
                for spec in old {
                    let _ = writeln!(text, "-D {kernel} {spec}");
                }
                if let Some(line) = new {
                    let _ = writeln!(text, "-I {kernel} 1 {}", line.spec);
                }
            }
            ChainStep::Remove(_) => {}
        }
    }
    for (head, tail) in [(":", " - [0:0]"), ("-X ", "")] {
        for step in steps {
            if let ChainStep::Remove(chain) = step {
                let _ = writeln!(text, "{head}{chain}{tail}");
            }
        }
    }
    text.push_str("COMMIT\n");
    text
}

/// Reads what `iptables-save` writes: what is ours in each table.
pub(crate) fn parse(saved: &str) -> BTreeMap<String, SeenTable> {
    let mut tables: BTreeMap<String, SeenTable> = BTreeMap::new();
    let mut table = String::new();
    // How many entries of each kernel chain have been read.
    let mut position: BTreeMap<&str, usize> = BTreeMap::new();
    for line in saved.lines() {
        if let Some(name) = line.strip_prefix('*') {
            name.clone_into(&mut table);
            position.clear();
            tables.entry(table.clone()).or_default();
        } else if let Some(seen) = tables.get_mut(&table) {
            if let Some(chain) = line.strip_prefix(':').and_then(|rest| rest.split(' ').next()) {
                if let Some(chain) = ChainName::seen(chain) {
                    seen.chains.entry(chain).or_default();
                }
            } else if let Some((chain, spec)) = line.strip_prefix("-A ").and_then(|rest| rest.split_once(' ')) {
                let place = position.entry(chain).or_insert(0);
                *place += 1;
                let found = SeenLine { hash: hash_of(spec), spec: spec.into() };
                match ChainName::seen(chain) {
                    Some(chain) => seen.chains.entry(chain).or_default().push(found),
                    None if leads_to_ours(spec) => {
                        let jumps = seen.jumps.entry(chain.to_owned()).or_default();
                        jumps.push(SeenJump { first: *place == 1, line: found });
                    }
                    None => {}
                }
            }
        }
    }
    tables
}

/// Whether an entry of somebody else's chain jumps into a chain of ours. The target is looked for outside of comments.
fn leads_to_ours(spec: &str) -> bool {
    let mut quoted = false;
    let bare = spec.split(' ').filter(|word| {
        let was = quoted;
        quoted ^= word.matches('"').count() % 2 == 1;
        !was && !word.contains('"')
    });
    let words: Vec<&str> = bare.collect();
    words.windows(2).any(|pair| matches!(pair, ["-j" | "-g", target] if target.starts_with(CHAIN_PREFIX)))
}

#[cfg(test)]
mod tests;
