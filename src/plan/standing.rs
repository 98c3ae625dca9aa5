//! Standing: whether what answers as the datastore is the one that this host's containers are recorded in.
//!
//! An etcd that was wiped, or an address behind which another cluster answers, looks like a datastore in which every
//! container has been destroyed. To believe it would cut all of them off, so it is doubted: what is programmed stays until
//! the datastore is plausible again. A datastore that was put back to an older state is plausible; what it lacks of this
//! host is put back from what this host keeps.
//!
//! `/calico/v1/Ready` is the sign, as in the original: the node that fills an empty datastore writes it last, and nobody
//! removes it. So an operator who does want to begin with an emptied datastore says so by writing it.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};

use serde::{Deserialize, Serialize};

use crate::model::key::Key;
use crate::model::name::HostName;

/// What a datastore says of itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Standing {
    /// etcd's id of its cluster. It does not change as long as the data live, and a restore from a backup may change it.
    pub(crate) cluster: u64,
    /// Whether `/calico/v1/Ready` says `true`.
    pub(crate) ready: bool,
}

/// What a host has seen of a datastore.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Seen {
    /// etcd's id of its cluster.
    pub(crate) cluster: u64,
    /// How far it had come.
    pub(crate) revision: i64,
    /// The revision of this host's last report of itself; 0 if it has made none.
    pub(crate) reported: i64,
    /// It had gone back, and not every host has said since this revision what it holds.
    pub(crate) waits_since: Option<i64>,
    /// The other hosts that reported themselves in it: an older state need not know them.
    #[serde(default)]
    pub(crate) others: BTreeSet<HostName>,
}

impl Seen {
    /// Whether a datastore is not the one that was seen, or was put back to an older state since: then other hosts may hold
    /// addresses that are free in it, and have still to say so. A restore may set the revision higher than it ever was, so
    /// this host's own report, of which a backup has an older one or none, counts too.
    pub(crate) fn is_ahead_of(&self, found: &Seen) -> bool {
        self.cluster != found.cluster || self.revision > found.revision || self.reported > found.reported
    }
}

/// Why no address is given out in a datastore that has gone back, while these hosts have not said what they hold.
pub(crate) fn waits_for(hosts: &[HostName]) -> String {
    let names: Vec<&str> = hosts.iter().map(HostName::as_str).collect();
    format!(
        "the datastore has gone back to an older state, or is another one, and what {} held meanwhile is not known yet: a node that runs there tells it within \
         seconds, or once it is restarted if the datastore is of another cluster; for a host that is no more put {{}} at {}",
        names.join(", "),
        hosts.iter().map(|host| Key::HostLastStatus(host.clone()).path()).collect::<Vec<_>>().join(", ")
    )
}

/// Why a datastore is not believed; `None` if it is. `known`: as it was when this process last believed it. `reserved`: how
/// many containers are kept on this host's disk.
pub(crate) fn doubt(known: Option<&Standing>, reserved: usize, found: &Standing) -> Option<String> {
    if let Some(known) = known.filter(|known| known.cluster != found.cluster) {
        return Some(format!(
            "it is of cluster {:x}, and this node follows cluster {:x}; if the change is meant, restart this node",
            found.cluster, known.cluster
        ));
    }
    let held = reserved > 0 || known.is_some_and(|known| known.ready);
    (held && !found.ready).then(|| {
        let ready = Key::Ready.path();
        format!(
            "{ready} is not there, so it was wiped or is another one, and this host has {reserved} containers; restore its data, \
             or, if it shall begin anew with what the hosts hold, put true at {ready}"
        )
    })
}

/// Why a datastore is not believed in which a node reports itself under this host's name from another address: what is recorded
/// of its containers is not this host's to free.
pub(crate) fn namesake(host: &HostName, own: Ipv4Addr, other: IpAddr) -> String {
    format!(
        "a node that is called {host} too reports itself from {other}, and this one has {own}; give one of them another name with \
         --hostname, or, if this is the same host under another address, wait: the last report runs out by itself"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_datastore_has_gone_back_if_it_is_another_one_or_less_of_it() {
        let at = |cluster, revision, reported| Seen {
            cluster,
            revision,
            reported,
            waits_since: None,
            others: BTreeSet::new(),
        };
        assert!(!at(7, 5, 4).is_ahead_of(&at(7, 5, 4)) && !at(7, 5, 4).is_ahead_of(&at(7, 9, 8)));
        for found in [at(7, 4, 4), at(8, 6, 4), at(7, 5000, 2), at(7, 5000, 0)] {
            assert!(at(7, 5, 4).is_ahead_of(&found), "{found:?}");
        }
    }

    #[test]
    fn a_datastore_is_believed_unless_it_is_foreign_or_has_lost_everything() {
        let at = |cluster, ready| Standing { cluster, ready };
        let known = at(7, true);
        // A new cluster, an ordinary reconnection or a backup, an emptied one that an operator has said is right.
        for (known, reserved, found) in [
            (None, 0, at(7, false)),
            (None, 3, at(7, true)),
            (Some(&known), 3, at(7, true)),
            (Some(&known), 0, at(7, true)),
            (Some(&at(7, false)), 0, at(7, false)),
        ] {
            assert_eq!(doubt(known, reserved, &found), None, "{found:?}");
        }
        for (known, reserved, found, why) in [
            (Some(&known), 0, at(7, false), "wiped"),
            (Some(&known), 3, at(7, false), "wiped"),
            (None, 3, at(7, false), "3 containers"),
            (Some(&known), 3, at(8, true), "cluster 8"),
        ] {
            let doubt = doubt(known, reserved, &found).unwrap();
            assert!(doubt.contains(why), "{doubt}");
        }
    }
}
