//! The raw table: what bears another's source address is dropped before anything else looks at it.
//!
//! In IPv4 a kernel setting of each interface does that (`rp_filter`). IPv6 has no such setting, so a match does: it asks
//! the routes whether an answer would leave through the interface that the packet came in by. It stands before connection
//! tracking, so that a packet under another's address never counts as one of that other's connection.
//!
//! Two sources pass that no route speaks of: none at all, as duplicate address detection has it, and link-local ones,
//! which the match looks for on that very interface only. Neither is ever forwarded (linux net/ipv6/ip6_output.c,
//! `ip6_forward`), so they come to `INPUT` at most. Source: linux net/ipv6/netfilter/ip6t_rpfilter.c.

use std::sync::Arc;

use crate::model::name::INTERFACE_PREFIX;
use crate::model::pool::Family;

use super::chain::{Chain, ChainName, Entry, Interface, Match, Target};
use super::diff::Table;

const PREROUTING: &str = "PREROUTING";

/// What the table should hold, whatever the datastore says. Nothing in IPv4.
pub(crate) fn desired_raw(family: Family) -> Table {
    if family == Family::V4 {
        return Table::default();
    }
    let name = ChainName::fixed(PREROUTING);
    let ours = Match::In(Interface::StartsWith(INTERFACE_PREFIX.to_owned()));
    let spoofed = Entry::new(vec![ours, Match::SourceElsewhere], Target::Drop, "a foreign source address");
    let chain = Chain::ordered(name.clone(), vec![spoofed]);
    let jump = Entry::new(Vec::new(), Target::Jump(name.clone()), "source addresses of containers");
    Table { jumps: [(PREROUTING, jump.render(&name))].into(), chains: [(name, Arc::new(chain.render()))].into() }
}
