//! The ruleset: the kernel's word that somebody has changed firewall rules.
//!
//! nftables tells every change on a multicast group before the process that made it goes on. So who counts the changes
//! told while a tool of ours ran, and finds more than that tool made, knows that somebody else was at work. The process
//! that the kernel names with a change would be a shorter way, but it is named as the outermost namespace counts, which a
//! node in a container cannot know. Legacy iptables tells nothing; there the clock must do.

use netlink_sys::protocols::NETLINK_NETFILTER;

use super::multicast::{Multicast, Told, messages};
use crate::model::fault::Fault;

/// The multicast group of nftables: `NFNLGRP_NFTABLES`, linux/netfilter/nfnetlink.h.
const GROUP: u32 = 7;

/// The message that ends a change: subsystem `NFNL_SUBSYS_NFTABLES` (10), type `NFT_MSG_NEWGEN` (15).
const NEW_GENERATION: u16 = 10 << 8 | 15;

/// See the module.
pub(crate) struct RulesetEvents {
    told: Multicast,
}

fn fault(error: &std::io::Error) -> Fault {
    Fault::World(format!("listen to the firewall's changes: {error}"))
}

/// Listens. The listener is there before this returns: nothing that happens after it is missed.
pub(crate) fn listen() -> Result<RulesetEvents, Fault> {
    let told = Multicast::join(NETLINK_NETFILTER, &[GROUP]).map_err(|error| fault(&error))?;
    Ok(RulesetEvents { told })
}

impl RulesetEvents {
    /// Waits for a change.
    ///
    /// # Cancel safety
    /// No change is lost.
    pub(crate) async fn changed(&mut self) -> Result<(), Fault> {
        while changes(&self.told.next().await.map_err(|error| fault(&error))?) == 0 {}
        Ok(())
    }

    /// Takes the changes that have been told by now; answers how many.
    pub(crate) fn take(&mut self) -> usize {
        let told = std::iter::from_fn(|| self.told.take().ok());
        told.fold(0, |count, told| count.saturating_add(changes(&told)))
    }
}

/// How many changes were told.
fn changes(told: &Told) -> usize {
    match told {
        Told::Datagram(datagram) => messages(datagram).filter(|(kind, _)| *kind == NEW_GENERATION).count(),
        // Nobody knows how many: more than anybody expects.
        Told::Overrun => usize::MAX,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::edge::exec::run;
    use crate::edge::testnet::in_own_network;

    #[test]
    fn each_table_that_a_tool_changes_is_told_once_before_the_tool_ends() {
        in_own_network(|| async {
            let mut events = listen().unwrap();
            let filter = "*filter\n:mine - [0:0]\n-A mine -j ACCEPT\nCOMMIT\n";
            run("iptables-restore", &["--noflush"], filter).await.unwrap();
            assert_eq!(events.take(), 1);
            assert_eq!(events.take(), 0);
            run("iptables-restore", &["--noflush"], &format!("{filter}*nat\n:mine - [0:0]\nCOMMIT\n")).await.unwrap();
            assert_eq!(events.take(), 2);
            run("iptables-save", &[], "").await.unwrap();
            assert_eq!(events.take(), 0);
            run("iptables", &["-A", "mine", "-j", "DROP"], "").await.unwrap();
            assert_eq!(events.changed().await, Ok(()));
        });
    }
}
