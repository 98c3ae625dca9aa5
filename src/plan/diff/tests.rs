use super::super::chain::{Chain, Entry, Interface, Match, Target};
use super::*;

fn chain(name: &str, ordered: bool, interfaces: &[&str]) -> (ChainName, Arc<ChainText>) {
    let entries = interfaces
        .iter()
        .map(|name| {
            let interface = Interface::Exactly(name.parse().unwrap());
            Entry::new(vec![Match::In(interface)], Target::Drop, "word")
        })
        .collect();
    let chain = Chain { name: ChainName::fixed(name), ordered, entries };
    (chain.name.clone(), Arc::new(chain.render()))
}

fn table(chains: Vec<(ChainName, Arc<ChainText>)>) -> Table {
    Table { chains: chains.into_iter().collect(), jumps: BTreeMap::new() }
}

/// What iptables-save would show of a table.
fn saved(table: &Table) -> String {
    let steps = steps(table, &SeenTable::default(), None);
    render("filter", &steps)
}

fn seen(table: &Table) -> SeenTable {
    parse(&saved(table)).remove("filter").unwrap()
}

#[test]
fn what_is_there_needs_no_step() {
    let wanted = table(vec![chain("a", true, &["cali1", "cali2"]), chain("b", false, &["cali3"])]);
    assert_eq!(steps(&wanted, &seen(&wanted), None), []);
}

#[test]
fn an_entry_joins_and_leaves_an_unordered_chain_alone() {
    let old = table(vec![chain("b", false, &["cali1", "cali2"])]);
    let new = table(vec![chain("b", false, &["cali2", "cali3"])]);
    let found = steps(&new, &seen(&old), None);
    assert!(matches!(&found[..], [ChainStep::Delete(..), ChainStep::Append(..)]), "{found:?}");
    assert!(!render("filter", &found).contains(":calico-b"));
    let mut there = seen(&old);
    carried_out(&mut there, &found);
    assert_eq!(steps(&new, &there, None), []);
}

#[test]
fn an_ordered_chain_that_differs_is_written_anew() {
    let new = table(vec![chain("a", true, &["cali2", "cali1"])]);
    let found = steps(&new, &seen(&table(vec![chain("a", true, &["cali1", "cali2"])])), None);
    assert!(matches!(&found[..], [ChainStep::Write(..)]), "{found:?}");
}

#[test]
fn a_strangers_entry_in_a_chain_of_ours_is_drift() {
    for ordered in [true, false] {
        let wanted = table(vec![chain("a", ordered, &["cali1"])]);
        let text = saved(&wanted).replace("COMMIT", "-A calico-a -j ACCEPT\nCOMMIT");
        let found = steps(&wanted, &parse(&text)["filter"], None);
        assert!(matches!(&found[..], [ChainStep::Write(..)]), "{found:?}");
    }
}

#[test]
fn a_jump_that_is_not_first_is_put_first() {
    let name = ChainName::fixed("FORWARD");
    let line = Entry::new(Vec::new(), Target::Jump(name), "jump").render(&ChainName::fixed("x"));
    let wanted = Table { chains: BTreeMap::new(), jumps: BTreeMap::from([("FORWARD", line.clone())]) };
    let right = format!("*filter\n-A FORWARD {}\n-A FORWARD -j DOCKER\nCOMMIT\n", line.spec);
    assert_eq!(steps(&wanted, &parse(&right)["filter"], None), []);
    for wrong in [
        format!("*filter\n-A FORWARD -j DOCKER\n-A FORWARD {}\n", line.spec),
        format!("*filter\n-A FORWARD {0}\n-A FORWARD {0}\n", line.spec),
        "*filter\n-A FORWARD -j calico-FORWARD\n".to_owned(),
        "*filter\n".to_owned(),
    ] {
        let found = steps(&wanted, &parse(&wrong)["filter"], None);
        assert!(matches!(&found[..], [ChainStep::Jump { .. }]), "{wrong}: {found:?}");
    }
}

#[test]
fn a_comment_that_speaks_of_our_chain_is_no_jump() {
    assert!(!leads_to_ours("-m comment --comment \"see -j calico-FORWARD there\" -j DOCKER"));
    assert!(leads_to_ours("-i eth0 -m comment --comment \"a b\" -g calico-FORWARD"));
}
