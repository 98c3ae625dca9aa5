//! The hand on IP sets: the `ipset` tool, one run for all steps.
//!
//! The netlink protocol of ipset would save a process, but it is that tool's private one and no crate speaks it well; one
//! run takes 2 to 6 ms. How many members sets have, which is asked each second for ever, is asked without the tool.

use std::collections::BTreeMap;

use super::exec::{run, run_long};
use super::multicast::number;
use super::nfnetlink::{NLA_F_NET_BYTEORDER, NLM_F_DUMP, Netfilter, attribute, message, put};
use crate::model::fault::Fault;
use crate::model::pool::Family;
use crate::plan::sets::{SetName, SetStep, Sets, parse, render};

/// A question of subsystem `NFNL_SUBSYS_IPSET` (6, linux/netfilter/nfnetlink.h): `IPSET_CMD_LIST`, linux/netfilter/ipset/ip_set.h.
const LIST: u16 = 6 << 8 | 7;

/// The protocol's version: `IPSET_PROTOCOL_MIN`, the oldest that kernels speak.
const VERSION: u8 = 6;

/// That of each set all but its members is asked for: `IPSET_FLAG_LIST_HEADER`.
const HEADERS_ALONE: u32 = 4;

/// Attributes, `IPSET_ATTR_…` of the same file; the last stands inside of `DATA`.
const PROTOCOL: u16 = 1;
const SET_NAME: u16 = 2;
const FLAGS: u16 = 6;
const DATA: u16 = 7;
const ELEMENTS: u16 = 24;

/// The sets of a family that are ours, with all members.
pub(crate) async fn observe(family: Family) -> Result<Sets, Fault> {
    Ok(parse(family, &run_long("ipset", &["save"]).await?))
}

/// How many members each set of ours has, in both families; far cheaper than to see them all.
pub(crate) async fn sizes() -> Result<BTreeMap<SetName, usize>, Fault> {
    let mut sizes = BTreeMap::new();
    let doing = "look at the sizes of sets";
    let mut kernel = Netfilter::open().map_err(|error| error.during(doing))?;
    let mut about = Vec::new();
    put(&mut about, PROTOCOL, &[VERSION]);
    put(&mut about, FLAGS | NLA_F_NET_BYTEORDER, &HEADERS_ALONE.to_be_bytes());
    let hear = |_, body: &[u8]| sizes.extend(size(body));
    kernel.ask(&message(LIST, NLM_F_DUMP, 0, &about), hear).await.map_err(|error| error.during(doing))?;
    Ok(sizes)
}

/// The size of a set of ours from what the kernel says of it.
fn size(body: &[u8]) -> Option<(SetName, usize)> {
    let name = attribute(body, SET_NAME)?.strip_suffix(&[0])?;
    let elements = number(attribute(attribute(body, DATA)?, ELEMENTS)?, 0).map(u32::from_be_bytes)?;
    Some((SetName::seen(std::str::from_utf8(name).ok()?)?, usize::try_from(elements).ok()?))
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
    use crate::edge::testnet::{in_own_network, sh};

    #[test]
    fn sizes_are_those_of_our_sets_in_both_families_and_of_no_others() {
        in_own_network(|| async {
            assert_eq!(sizes().await, Ok(BTreeMap::new()));
            sh("ipset create calico4-t-web hash:ip; ipset create calico6-t-web hash:ip family inet6; ipset create other hash:ip").await;
            sh("ipset create calico4-pools hash:net; ipset add calico4-pools 10.0.0.0/8; ipset add calico6-t-web fd00::1").await;
            let many: String = (0..3000).map(|n| format!("add calico4-t-web 10.0.{}.{}\n", n >> 8, n & 255)).collect();
            run("ipset", &["restore"], &many).await.unwrap();
            // More sets than the kernel tells of in one datagram.
            let more: String = (0..500).map(|n| format!("create calico4-t-{n} hash:ip\n")).collect();
            run("ipset", &["restore"], &more).await.unwrap();
            let mut sizes = sizes().await.unwrap();
            assert_eq!(sizes.len(), 503);
            sizes.retain(|_, size| *size > 0);
            let sizes: Vec<_> = sizes.iter().map(|(name, size)| (name.as_str(), *size)).collect();
            assert_eq!(sizes, [("calico4-pools", 1), ("calico4-t-web", 3000), ("calico6-t-web", 1)]);
        });
    }

    #[test]
    fn what_is_no_set_is_passed_over() {
        for bytes in [&b""[..], &[0; 40], &[255; 64], &[4, 0, 2, 0, 4, 0, 7, 0], &[5, 0, 2, 0, 0, 0, 0, 0]] {
            assert_eq!(size(bytes), None);
        }
    }
}
