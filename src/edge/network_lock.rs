//! The lock of a network namespace: an nft table without a rule in it, with `flags owner`.
//!
//! The kernel gives such a table to the netlink socket that made it, lets nobody else touch it, and takes it away with the
//! socket, however its process ends. Making one takes the right to change the namespace's firewall, so nobody can hold the
//! lock who could not do harm anyhow. An abstract socket is as much bound to the namespace, and any local process, or a
//! container in the host's network, can take its name first; a file is not the same one in a node's own container.

use std::time::Duration;

use nix::errno::Errno;
use tokio::time::{Instant, sleep};

use super::nfnetlink::{NLM_F_ACK, Netfilter, Refused, message, put};
use crate::model::fault::Fault;

/// Subsystem `NFNL_SUBSYS_NFTABLES`, linux/netfilter/nfnetlink.h, and its messages, linux/netfilter/nf_tables.h.
const NFTABLES: u16 = 10;
const NEW_TABLE: u16 = NFTABLES << 8;
const GET_TABLE: u16 = NFTABLES << 8 | 1;

/// What stands around a change: `NFNL_MSG_BATCH_BEGIN` and `NFNL_MSG_BATCH_END`, linux/netfilter/nfnetlink.h.
const BEGIN: u16 = 0x10;
const END: u16 = 0x11;

/// `NLM_F_CREATE`, linux/netlink.h.
const CREATE: u16 = 0x400;

/// `NFPROTO_INET`, linux/netfilter.h.
const INET: u8 = 1;

/// `NFTA_TABLE_NAME` and `NFTA_TABLE_FLAGS`, and the flag `NFT_TABLE_F_OWNER`, linux/netfilter/nf_tables.h.
const NAME: u16 = 1;
const FLAGS: u16 = 2;
const OWNER: u32 = 2;

const TABLE: &str = "calico-lock";

/// How long the table of one who has just ended may still be there.
const PATIENCE: Duration = Duration::from_secs(1);
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// Held as long as the value.
pub(crate) struct NetworkLock {
    _owner: Netfilter,
}

impl NetworkLock {
    /// Takes the lock of the calling thread's network namespace.
    ///
    /// # Errors
    /// `World`: another has it, or this process may not change the firewall.
    pub(crate) async fn take() -> Result<Self, Fault> {
        let doing = "lock this network namespace";
        let mut kernel = Netfilter::open().map_err(|refused| refused.during(doing))?;
        let since = Instant::now();
        loop {
            match kernel.ask(&making(), |_, _| ()).await {
                Ok(()) => return Ok(NetworkLock { _owner: kernel }),
                Err(Refused::Errno(Errno::EPERM)) if may_ask(&mut kernel).await => {
                    if since.elapsed() >= PATIENCE {
                        return Err(Fault::World(format!(
                            "{doing}: another calico-node runs in it and holds nft table inet {TABLE}; stop it first, or give this one a namespace of its own"
                        )));
                    }
                    sleep(LOOK_EVERY).await;
                }
                Err(refused) => {
                    return Err(refused.during(&format!(
                        "{doing}: make nft table inet {TABLE} and own it; one that nobody owns is to be deleted first"
                    )));
                }
            }
        }
    }
}

/// Whether this process may speak of tables at all: then it is a table's owner for whom it may not make it.
async fn may_ask(kernel: &mut Netfilter) -> bool {
    let asked = kernel.ask(&message(GET_TABLE, NLM_F_ACK, INET, &name()), |_, _| ()).await;
    // Its owner may have ended in between.
    matches!(asked, Ok(()) | Err(Refused::Errno(Errno::ENOENT)))
}

fn name() -> Vec<u8> {
    let mut about = Vec::new();
    put(&mut about, NAME, format!("{TABLE}\0").as_bytes());
    about
}

/// The change that makes the table.
fn making() -> Vec<u8> {
    let mut table = name();
    put(&mut table, FLAGS, &OWNER.to_be_bytes());
    [of_a_change(BEGIN), message(NEW_TABLE, CREATE | NLM_F_ACK, INET, &table), of_a_change(END)].concat()
}

/// The beginning or the end of a change: it names the subsystem in the last bytes of its header (`res_id`).
fn of_a_change(kind: u16) -> Vec<u8> {
    let mut message = message(kind, 0, 0, &[]);
    let at = message.len() - 2;
    message.splice(at.., NFTABLES.to_be_bytes());
    message
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::edge::testnet::{in_own_network, sh, sh_succeeds};

    #[test]
    fn one_at_a_time_has_it_and_nobody_takes_it_away() {
        in_own_network(|| async {
            let first = NetworkLock::take().await.unwrap();
            let why = NetworkLock::take().await.map(drop).unwrap_err().to_string();
            assert!(why.contains("another calico-node runs in it"), "{why}");
            sh("nft flush ruleset").await;
            assert!(!sh_succeeds("nft delete table inet calico-lock").await);
            assert!(NetworkLock::take().await.is_err());
            // Who waits gets it as soon as it is given up.
            let (second, ()) = tokio::join!(NetworkLock::take(), async {
                sleep(PATIENCE / 2).await;
                drop(first);
            });
            drop(second.unwrap());
            assert_eq!(sh("nft list ruleset").await, "");
            NetworkLock::take().await.unwrap();
            // Somebody has saved the ruleset and loaded it again, without its owner.
            sh("nft add table inet calico-lock").await;
            let why = NetworkLock::take().await.map(drop).unwrap_err().to_string();
            assert!(why.contains("nft table inet calico-lock") && why.contains("deleted first"), "{why}");
        });
    }

    /// An abstract socket of that name kept the node from starting, and any local process can make one.
    #[test]
    fn who_may_not_change_the_firewall_cannot_take_it() {
        in_own_network(|| async {
            let unprivileged = "setpriv --reuid 65534 --regid 65534 --clear-groups --inh-caps=-all";
            let make = "nft add table inet calico-lock { flags owner\\; }";
            assert!(sh_succeeds(make).await && !sh_succeeds(&format!("{unprivileged} {make}")).await);
            NetworkLock::take().await.unwrap();
        });
    }
}
