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

use crate::model::gone_back::GoneBack;
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
    /// Who has seen it.
    pub(crate) host: HostName,
    /// etcd's id of its cluster.
    pub(crate) cluster: u64,
    /// How far it had come.
    pub(crate) revision: i64,
    /// The revision of this host's last report of itself; 0 if it has made none.
    pub(crate) reported: i64,
    /// The hosts that it knew: an older state need not know them.
    pub(crate) hosts: BTreeSet<HostName>,
    /// How many times it had gone back, as was told in it.
    pub(crate) number: u64,
}

impl Seen {
    /// Whether a datastore is not the one that was seen, or was put back to an older state since: then other hosts may hold
    /// addresses that are free in it, and have still to say so. A restore may set the revision higher than it ever was, so
    /// this host's own report, of which a backup has an older one or none, counts too.
    pub(crate) fn is_ahead_of(&self, found: &Seen) -> bool {
        let has_lost_report = self.host == found.host && self.reported > found.reported;
        self.cluster != found.cluster || self.revision > found.revision || has_lost_report
    }

    /// What is known of a datastore that goes on as it is `found`. A host that has another name by now has made other reports.
    pub(crate) fn going_on(self, found: Seen) -> Seen {
        let reported = if self.host == found.host { self.reported } else { found.reported };
        Seen { host: found.host, reported, ..self }
    }

    /// The hosts that are to say what they hold before an address is given out in a datastore that has gone back: those that
    /// either knows, and this one, which may be cut short before it has put back what it holds. Another cluster that knows hosts
    /// and none of these is not theirs: this one alone has come to it.
    ///
    /// `told`: what somebody has told of it. If that is news to this host, it is of this time, and of the hosts that were
    /// awaited already nobody is again: some have spoken, and may be off now. Answers what is to be told with it.
    pub(crate) fn await_in(&self, found: &Seen, told: Option<&GoneBack>) -> (BTreeSet<HostName>, GoneBack) {
        let mut awaited = self.awaited_in(found);
        let news = told.filter(|told| told.number > self.number);
        let number = news.map_or(self.number.max(told.map_or(0, |told| told.number)) + 1, |news| news.number);
        let before = news.map(|news| news.hosts.clone()).unwrap_or_default();
        let hosts = before.union(&awaited).cloned().collect();
        awaited.retain(|host| !before.contains(host) || *host == found.host);
        (awaited, GoneBack { number, hosts })
    }

    fn awaited_in(&self, found: &Seen) -> BTreeSet<HostName> {
        let is_same = self.cluster == found.cluster;
        // It has gone on, and somebody has taken this host out of it.
        let was_removed = is_same && self.revision <= found.revision && !found.hosts.contains(&found.host);
        let is_theirs = is_same || found.hosts.is_empty() || !found.hosts.is_disjoint(&self.hosts);
        let known = [&self.hosts, &found.hosts].into_iter().filter(|_| is_theirs && !was_removed).flatten();
        known.chain([&found.host]).cloned().collect()
    }
}

/// Why no address is given out, while there are hosts of which it is not known what they hold.
pub(crate) fn waits_for<'h>(awaited: impl Iterator<Item = &'h HostName>) -> Option<String> {
    let (names, keys): (Vec<&str>, Vec<String>) =
        awaited.map(|host| (host.as_str(), Key::Awaited(host.clone()).path())).unzip();
    (!names.is_empty()).then(|| {
        format!(
            "the datastore has gone back to an older state, or is another one, and what {} held meanwhile is not known yet: a node that runs there tells it within \
             seconds, or once it is restarted if the datastore is of another cluster; for a host that is no more, delete {}",
            names.join(", "),
            keys.join(", ")
        )
    })
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
        let of = |host: &str, cluster, revision, reported| {
            let host = host.parse().unwrap();
            Seen { host, cluster, revision, reported, hosts: BTreeSet::new(), number: 0 }
        };
        let at = |cluster, revision, reported| of("h1", cluster, revision, reported);
        // It had another name, whose reports are not this one's.
        assert!(!at(7, 5, 4).is_ahead_of(&of("h2", 7, 9, 0)));
        // From then on those count that it makes under its new one.
        assert_eq!(at(7, 5, 4).going_on(of("h2", 7, 9, 8)), of("h2", 7, 5, 8));
        assert_eq!(at(7, 5, 4).going_on(at(7, 9, 8)), at(7, 5, 4));
        assert!(!at(7, 5, 4).is_ahead_of(&at(7, 5, 4)) && !at(7, 5, 4).is_ahead_of(&at(7, 9, 8)));
        for found in [at(7, 4, 4), at(8, 6, 4), at(7, 5000, 2), at(7, 5000, 0)] {
            assert!(at(7, 5, 4).is_ahead_of(&found), "{found:?}");
        }
    }

    #[test]
    fn in_a_datastore_of_others_nobody_is_awaited_but_who_comes_to_it() {
        let names = |names: &str| -> BTreeSet<HostName> { names.split(' ').flat_map(str::parse).collect() };
        let of = |cluster, hosts: &str| Seen {
            host: "a".parse().unwrap(),
            cluster,
            revision: 1,
            reported: 0,
            hosts: names(hosts),
            number: 2,
        };
        for (before, found, awaited) in [
            ("a b", "a b", "a b"),
            ("a b", "a", "a b"),
            ("a b", "b c", "a b c"),
            ("a b", "", "a b"),
            ("a b", "c d", "a"),
            ("", "c d", "a"),
        ] {
            assert_eq!(of(1, before).awaited_in(&of(2, found)), names(awaited), "{before:?} in {found:?}");
        }
        // Its hosts were exchanged one after another since the backup; or it has gone on without this one.
        let later = |hosts: &str| Seen { revision: 5, ..of(1, hosts) };
        assert_eq!(later("a b").awaited_in(&of(1, "c d")), names("a b c d"));
        assert_eq!(of(1, "a b").awaited_in(&later("b c")), names("a"));
        // The first to notice, a second one, and the first of a datastore that has gone back to when another had.
        for (told, awaited, number, hosts) in [
            (None, "a b c", 3, "a b c"),
            (Some((3, "b c d")), "a", 3, "a b c d"),
            (Some((3, "b d")), "a c", 3, "a b c d"),
            (Some((2, "b c d")), "a b c", 3, "a b c"),
            (Some((1, "b c d")), "a b c", 3, "a b c"),
        ] {
            let told = told.map(|(number, hosts)| GoneBack { number, hosts: names(hosts) });
            let answer = later("a b").await_in(&of(1, "b c"), told.as_ref());
            assert_eq!(answer, (names(awaited), GoneBack { number, hosts: names(hosts) }), "{told:?}");
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
