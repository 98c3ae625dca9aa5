//! The snapshot: the whole view of the datastore at one revision.
//!
//! It is the same whatever the way that led to it: applying the changes since any earlier snapshot, or loading anew,
//! gives an equal value. A record that cannot be read stays in it with the reason, because what it stands for must be
//! closed, not forgotten.
//!
//! A node's own snapshot knows its host: of the endpoints of all others, of which there may be a hundred thousand, it keeps
//! only what counts here, in records that whoever derives something from them shares.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv6Addr};
use std::ops::Bound;
use std::sync::Arc;

use ipnet::IpNet;
use serde::de::DeserializeOwned;

use super::bgp::{AsNumber, DEFAULT_AS, Mesh, Peer};
use super::claim::Claim;
use super::endpoint::{Endpoint, Remote};
use super::gone_back::GoneBack;
use super::key::{AssignmentKey, BgpScope, EndpointKey, Key, is_before_reports};
use super::name::{EndpointId, HostName, IfName, Orchestrator, ProfileName, TagName, WorkloadId};
use super::pool::{Family, Pool};
use super::profile::Rules;
use super::roll_call::RollCall;

/// A record and the revision of the datastore at which it was last written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Record<T> {
    pub(crate) revision: i64,
    /// The value, or why it could not be read.
    pub(crate) value: Result<T, String>,
}

impl<T> Record<T> {
    pub(crate) fn readable(&self) -> Option<&T> {
        self.value.as_ref().ok()
    }
}

/// One change of the datastore.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Change {
    pub(crate) revision: i64,
    pub(crate) path: String,
    /// `None`: the key was deleted.
    pub(crate) value: Option<Vec<u8>>,
}

/// Which records may differ from those that somebody saw last.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum News {
    /// Any: there is another snapshot.
    All,
    Of(BTreeSet<Key>),
}

impl News {
    pub(crate) fn none() -> Self {
        News::Of(BTreeSet::new())
    }

    pub(crate) fn add(&mut self, key: Key) {
        if let News::Of(keys) = self {
            keys.insert(key);
        }
    }

    /// Whether there may be any of a kind.
    pub(crate) fn any(&self, is: impl Fn(&Key) -> bool) -> bool {
        match self {
            News::All => true,
            News::Of(keys) => keys.iter().any(is),
        }
    }
}

type Records<K, T> = BTreeMap<K, Record<T>>;

/// The endpoints of other hosts, by their paths: a path is half as large as its typed key.
pub(crate) type Remotes = BTreeMap<Arc<str>, Arc<Record<Remote>>>;

/// See the module. A field holds the records of one kind of key.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Snapshot {
    /// Whose endpoints are kept in whole; `None`: those of all hosts are.
    host: Option<HostName>,
    /// The newest revision that it includes, of all but what is about BGP.
    pub(crate) revision: i64,
    /// The newest one of that, of which a watch tells by itself.
    bgp_revision: i64,
    pub(crate) ready: Option<Record<bool>>,
    pub(crate) config: Records<String, String>,
    pub(crate) host_config: Records<(HostName, String), String>,
    pub(crate) host_ips: Records<HostName, IpAddr>,
    pub(crate) gone_back: Option<Record<GoneBack>>,
    /// The hosts of which it is not known what they hold.
    pub(crate) awaited: Records<HostName, ()>,
    /// By their leases.
    pub(crate) roll_calls: Records<i64, RollCall>,
    /// Those that are kept in whole.
    pub(crate) endpoints: Records<EndpointKey, Endpoint>,
    /// The others.
    pub(crate) remote: Remotes,
    /// Of those that are kept in whole: who names an interface as its own.
    named: BTreeMap<IfName, BTreeSet<EndpointKey>>,
    /// How many endpoints have an address as their next hop.
    next_hops: BTreeMap<IpAddr, usize>,
    pub(crate) tags: Records<ProfileName, Vec<TagName>>,
    pub(crate) rules: Records<ProfileName, Rules>,
    pub(crate) pools: Records<IpNet, Pool>,
    pub(crate) claims: Records<AssignmentKey, Claim>,
    /// The claims in which endpoints that are kept in whole have a part, by the endpoint's id.
    parts: BTreeMap<EndpointId, BTreeSet<AssignmentKey>>,
    pub(crate) bgp_as: Records<BgpScope, AsNumber>,
    pub(crate) bgp_mesh: Option<Record<Mesh>>,
    pub(crate) bgp_peers: Records<(BgpScope, IpAddr), Peer>,
    pub(crate) bgp_ips: Records<(HostName, Family), Option<IpAddr>>,
    pub(crate) bgp_log: Records<BgpScope, String>,
}

fn utf8(value: &[u8]) -> Result<&str, String> {
    std::str::from_utf8(value).map_err(|error| format!("not UTF-8: {error}"))
}

fn json<T: DeserializeOwned>(value: &[u8]) -> Result<T, String> {
    serde_json::from_slice(value).map_err(|error| error.to_string())
}

fn plain<T: std::str::FromStr>(value: &[u8]) -> Result<T, String>
where
    T::Err: std::fmt::Display,
{
    let text = utf8(value)?.trim();
    text.parse().map_err(|error| format!("{text:?}: {error}"))
}

/// An address, or nothing: an empty value, or the `None` that the original's Python wrote.
fn optional_ip(value: &[u8]) -> Result<Option<IpAddr>, String> {
    match utf8(value)?.trim() {
        "" | "None" => Ok(None),
        _ => plain(value).map(Some),
    }
}

/// A record whose value must agree with the key that it stands under.
fn pool(value: &[u8], net: IpNet) -> Result<Pool, String> {
    let pool: Pool = json(value)?;
    if pool.cidr.trunc() == net {
        Ok(Pool { cidr: net, ..pool })
    } else {
        Err(format!("its cidr {} is not the one of its key, {net}", pool.cidr))
    }
}

/// Takes a change in, unless the record says more already: what is older never overwrites what is newer.
fn store<K: Ord, T>(map: &mut Records<K, T>, key: K, change: &Change, read: impl FnOnce(&[u8]) -> Result<T, String>) {
    if map.get(&key).is_some_and(|record| record.revision > change.revision) {
        return;
    }
    match &change.value {
        Some(value) => {
            map.insert(key, Record { revision: change.revision, value: read(value) });
        }
        None => {
            map.remove(&key);
        }
    }
}

/// Takes a key out of the sets of some names and puts it into those of others; a set without any is not kept.
fn move_in<N: Ord, K: Ord + Clone>(
    sets: &mut BTreeMap<N, BTreeSet<K>>,
    from: impl IntoIterator<Item = N>,
    to: impl IntoIterator<Item = N>,
    key: &K,
) {
    for name in from {
        if let Some(set) = sets.get_mut(&name) {
            set.remove(key);
            if set.is_empty() {
                sets.remove(&name);
            }
        }
    }
    for name in to {
        sets.entry(name).or_default().insert(key.clone());
    }
}

fn store_one<T>(slot: &mut Option<Record<T>>, change: &Change, read: impl FnOnce(&[u8]) -> Result<T, String>) {
    if slot.as_ref().is_some_and(|record| record.revision > change.revision) {
        return;
    }
    *slot = change.value.as_ref().map(|value| Record { revision: change.revision, value: read(value) });
}

impl Snapshot {
    /// The empty snapshot of a node on this host.
    pub(crate) fn of(host: HostName) -> Self {
        Snapshot { host: Some(host), ..Snapshot::default() }
    }

    /// Takes one change in. Answers the key that changed; `None` where the path is not one of ours.
    pub(crate) fn apply(&mut self, change: &Change) -> Option<Key> {
        let newest = self.newest_mut(&change.path);
        *newest = change.revision.max(*newest);
        let key = Key::parse(&change.path)?;
        match key.clone() {
            Key::Ready => store_one(&mut self.ready, change, plain),
            Key::Config(name) => store(&mut self.config, name, change, plain),
            Key::HostConfig(host, name) => store(&mut self.host_config, (host, name), change, plain),
            Key::HostIp(host) => store(&mut self.host_ips, host, change, plain),
            Key::GoneBack => store_one(&mut self.gone_back, change, json),
            // That it is there is all it says to nodes.
            Key::Awaited(host) => store(&mut self.awaited, host, change, |_| Ok(())),
            Key::RollCall(call) => store(&mut self.roll_calls, call, change, json),
            Key::Endpoint(key) if self.keeps_whole(&key.host) => self.store_endpoint(&key, change),
            Key::Endpoint(_) => self.store_remote(change),
            Key::ProfileTags(profile) => store(&mut self.tags, profile, change, json),
            Key::ProfileRules(profile) => store(&mut self.rules, profile, change, json),
            Key::Pool(net) => store(&mut self.pools, net, change, |value| pool(value, net)),
            Key::Assignment(key) => self.store_claim(&key, change),
            Key::BgpAs(scope) => store(&mut self.bgp_as, scope, change, plain),
            Key::BgpMesh => store_one(&mut self.bgp_mesh, change, json),
            Key::BgpPeer(scope, ip) => store(&mut self.bgp_peers, (scope, ip), change, json),
            Key::BgpHostIp(host, family) => store(&mut self.bgp_ips, (host, family), change, optional_ip),
            Key::BgpLogLevel(scope) => store(&mut self.bgp_log, scope, change, plain),
            Key::HostStatus(_) | Key::HostLastStatus(_) | Key::EndpointStatus(_) | Key::RollAnswer(..) => return None,
        }
        Some(key)
    }

    /// The newest revision of what a path is among.
    fn newest_mut(&mut self, path: &str) -> &mut i64 {
        // As the watch has it, foreign keys among them.
        if is_before_reports(path) { &mut self.bgp_revision } else { &mut self.revision }
    }

    /// Notes that it is whole, and of this revision.
    pub(crate) fn came_to(&mut self, revision: i64) {
        (self.revision, self.bgp_revision) = (revision, revision);
    }

    /// Whether another view is ahead of it in anything.
    pub(crate) fn is_behind(&self, other: &Snapshot) -> bool {
        self.revision < other.revision || self.bgp_revision < other.bgp_revision
    }

    /// Takes in what a watch tells, and says which keys those are; answers how many of the changes were stale.
    ///
    /// A watch tells every change after the revision that it began at, in the order of their revisions; what is about BGP by
    /// itself. So whatever is older than the newest revision of its kind here has been taken in already, or has been overtaken by what was: it comes from a
    /// server or a proxy that tells a part again. It is left out, whether it is a record or a deletion; otherwise a record
    /// that has been deleted since would stand again until its deletion is told again too. Changes of one revision are one
    /// transaction, which speaks of a key once, so taking one of them in again changes nothing.
    ///
    /// Source: etcd, "KV API guarantees": watches are ordered, unique, reliable and atomic.
    pub(crate) fn follow(&mut self, changes: &[Change], news: &mut News) -> usize {
        let mut stale = 0;
        for change in changes {
            if change.revision < *self.newest_mut(&change.path) {
                stale += 1;
            } else if let Some(key) = self.apply(change) {
                news.add(key);
            }
        }
        stale
    }

    /// Whether the endpoints of a host are kept in whole: whether it is this node's own.
    pub(crate) fn keeps_whole(&self, host: &HostName) -> bool {
        self.host.as_ref().is_none_or(|own| own == host)
    }

    fn store_endpoint(&mut self, key: &EndpointKey, change: &Change) {
        let derived = |snapshot: &Self| -> (Vec<IpAddr>, Option<IfName>) {
            let endpoint = snapshot.endpoints.get(key).and_then(Record::readable);
            let next_hops = endpoint.into_iter().flat_map(Endpoint::next_hops).collect();
            (next_hops, endpoint.map(|endpoint| endpoint.interface.clone()))
        };
        let (hops_before, named_before) = derived(self);
        store(&mut self.endpoints, key.clone(), change, json);
        let (hops, named) = derived(self);
        self.count_next_hops(&hops, &hops_before);
        move_in(&mut self.named, named_before, named, key);
    }

    fn store_claim(&mut self, key: &AssignmentKey, change: &Change) {
        let parts = |snapshot: &Self| -> BTreeSet<EndpointId> {
            let claim = snapshot.claims.get(key).and_then(Record::readable);
            let own = claim.into_iter().flat_map(Claim::owners).filter(|owner| snapshot.keeps_whole(&owner.host));
            own.map(|owner| owner.endpoint.clone()).collect()
        };
        let before = parts(self);
        store(&mut self.claims, key.clone(), change, json);
        let after = parts(self);
        move_in(&mut self.parts, before.difference(&after).cloned(), after.difference(&before).cloned(), key);
    }

    fn store_remote(&mut self, change: &Change) {
        let path = change.path.as_str();
        if self.remote.get(path).is_some_and(|record| record.revision > change.revision) {
            return;
        }
        let new = change.value.as_ref().map(|value| {
            let value = json(value).map(|endpoint: Endpoint| Remote::of(&endpoint));
            Arc::new(Record { revision: change.revision, value })
        });
        let old = match &new {
            Some(record) => self.remote.insert(path.into(), Arc::clone(record)),
            None => self.remote.remove(path),
        };
        fn next_hops(record: Option<&Arc<Record<Remote>>>) -> &[IpAddr] {
            record.and_then(|record| record.readable()).map(|remote| &*remote.next_hops).unwrap_or_default()
        }
        self.count_next_hops(next_hops(new.as_ref()), next_hops(old.as_ref()));
    }

    fn count_next_hops(&mut self, come: &[IpAddr], gone: &[IpAddr]) {
        for address in come {
            *self.next_hops.entry(*address).or_default() += 1;
        }
        for address in gone {
            let Some(number) = self.next_hops.get_mut(address) else { continue };
            *number -= 1;
            if *number == 0 {
                self.next_hops.remove(address);
            }
        }
    }

    /// Makes it as small as it can be, once a load is complete: a map that was filled in order has its nodes half empty.
    #[must_use]
    pub(crate) fn packed(mut self) -> Self {
        self.remote = self.remote.into_iter().collect();
        self.claims = self.claims.into_iter().collect();
        self
    }

    /// Whether somebody has said that the datastore is set up.
    pub(crate) fn is_ready(&self) -> bool {
        self.ready.as_ref().and_then(Record::readable) == Some(&true)
    }

    /// The next hops of all containers.
    pub(crate) fn next_hops(&self) -> impl Iterator<Item = IpAddr> + '_ {
        self.next_hops.keys().copied()
    }

    /// The endpoints of one workload that are kept in whole, readable or not.
    pub(crate) fn endpoints_of_workload(
        &self,
        host: HostName,
        orchestrator: Orchestrator,
        workload: WorkloadId,
    ) -> impl Iterator<Item = (&EndpointKey, &Record<Endpoint>)> {
        let first = EndpointKey { host, orchestrator, workload, endpoint: EndpointId::first() };
        self.endpoints.range(first.clone()..).take_while(move |(key, _)| {
            key.workload == first.workload && key.orchestrator == first.orchestrator && key.host == first.host
        })
    }

    /// The endpoints, among those that are kept in whole, whose records name an interface as theirs.
    pub(crate) fn endpoints_at(&self, interface: &IfName) -> impl Iterator<Item = (&EndpointKey, &Record<Endpoint>)> {
        let keys = self.named.get(interface).into_iter().flatten();
        keys.filter_map(|key| self.endpoints.get_key_value(key))
    }

    /// The readable claims in which an endpoint has a part, by its id, if those that have it are kept in whole.
    pub(crate) fn parts_of(&self, endpoint: &EndpointId) -> impl Iterator<Item = (&AssignmentKey, i64, &Claim)> {
        self.claims_at(self.parts.get(endpoint).into_iter().flatten())
    }

    /// The readable claims in which any endpoint has a part that is kept in whole.
    pub(crate) fn parts(&self) -> impl Iterator<Item = (&AssignmentKey, i64, &Claim)> {
        self.claims_at(self.parts.values().flatten())
    }

    fn claims_at<'s>(
        &'s self,
        keys: impl Iterator<Item = &'s AssignmentKey> + 's,
    ) -> impl Iterator<Item = (&'s AssignmentKey, i64, &'s Claim)> {
        keys.filter_map(|key| {
            let record = self.claims.get(key)?;
            Some((key, record.revision, record.readable()?))
        })
    }

    /// The claims of a pool from an address on, in order, readable or not.
    pub(crate) fn claims_of_pool(&self, pool: IpNet, from: IpAddr) -> impl Iterator<Item = (IpAddr, &Record<Claim>)> {
        let last = AssignmentKey { pool, address: pool.broadcast() };
        let range = (from <= last.address).then(|| self.claims.range(AssignmentKey { pool, address: from }..=last));
        range.into_iter().flatten().map(|(key, record)| (key.address, record))
    }

    /// The claims of a pool's addresses that stand under another pool: one that was there before, and taken away by force.
    pub(crate) fn claims_elsewhere(&self, pool: IpNet) -> impl Iterator<Item = (IpAddr, &Record<Claim>)> {
        // No address is behind it.
        let last = IpAddr::V6(Ipv6Addr::from(u128::MAX));
        let first = self.claims.keys().next().map(|key| key.pool);
        let pools = std::iter::successors(first, move |pool| {
            let behind = (Bound::Excluded(AssignmentKey { pool: *pool, address: last }), Bound::Unbounded);
            self.claims.range(behind).next().map(|(key, _)| key.pool)
        });
        let others = pools.filter(move |other| *other != pool && (other.contains(&pool) || pool.contains(other)));
        let claims = others.flat_map(|other| self.claims_of_pool(other, other.network()));
        claims.filter(move |(address, _)| pool.contains(address))
    }

    /// The endpoints of one host that are kept in whole, readable or not.
    pub(crate) fn endpoints_of<'s>(
        &'s self,
        host: &'s HostName,
    ) -> impl Iterator<Item = (&'s EndpointKey, &'s Record<Endpoint>)> + 's {
        self.endpoints.iter().filter(move |(key, _)| key.host == *host)
    }

    /// The readable pools of a family, in order.
    pub(crate) fn pools_of(&self, family: Family) -> impl Iterator<Item = &Pool> + '_ {
        self.pools.values().filter_map(Record::readable).filter(move |pool| pool.family() == family)
    }

    /// The pool that an address belongs to.
    pub(crate) fn pool_of(&self, address: IpAddr) -> Option<&Pool> {
        self.pools.values().filter_map(Record::readable).find(|pool| pool.contains(address))
    }

    /// The record of a setting as it holds for a host: its own over the global one.
    pub(crate) fn setting(&self, host: &HostName, name: &str) -> Option<&Record<String>> {
        self.host_config.get(&(host.clone(), name.to_owned())).or_else(|| self.config.get(name))
    }

    /// The AS of a host: its own, else the global one, else the original's default.
    pub(crate) fn as_of(&self, host: &HostName) -> AsNumber {
        let at = |scope: &BgpScope| self.bgp_as.get(scope).and_then(Record::readable).copied();
        at(&BgpScope::Host(host.clone())).or_else(|| at(&BgpScope::Global)).unwrap_or(DEFAULT_AS)
    }

    /// Every record that cannot be read: its path and why.
    pub(crate) fn unreadable(&self) -> Vec<(String, String)> {
        fn of<K: Clone, T>(map: &Records<K, T>, key: impl Fn(K) -> Key) -> Vec<(String, String)> {
            let bad = map.iter().filter_map(|(k, record)| record.value.as_ref().err().map(|reason| (k, reason)));
            bad.map(|(k, reason)| (key(k.clone()).path(), reason.clone())).collect()
        }
        let remote = self.remote.iter().filter_map(|(key, record)| {
            let reason = record.value.as_ref().err()?;
            Some((key.to_string(), reason.clone()))
        });
        let mesh = self.bgp_mesh.as_ref().and_then(|record| record.value.as_ref().err());
        [
            of(&self.endpoints, Key::Endpoint),
            of(&self.claims, Key::Assignment),
            remote.collect(),
            of(&self.tags, Key::ProfileTags),
            of(&self.rules, Key::ProfileRules),
            of(&self.pools, Key::Pool),
            of(&self.host_ips, Key::HostIp),
            of(&self.bgp_as, Key::BgpAs),
            of(&self.bgp_peers, |(scope, ip)| Key::BgpPeer(scope, ip)),
            of(&self.bgp_ips, |(host, family)| Key::BgpHostIp(host, family)),
            mesh.map(|reason| (Key::BgpMesh.path(), reason.clone())).into_iter().collect(),
        ]
        .concat()
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    /// A snapshot from `path: value` pairs, where a value that is a string stands for its text and any other for its JSON.
    pub(crate) fn from_json(text: &str) -> Snapshot {
        fill(Snapshot::default(), text)
    }

    /// The same, as a node on host `h1` keeps it.
    pub(crate) fn from_json_on_h1(text: &str) -> Snapshot {
        fill(Snapshot::of("h1".parse().unwrap()), text)
    }

    fn fill(mut snapshot: Snapshot, text: &str) -> Snapshot {
        let map: serde_json::Map<String, serde_json::Value> = serde_json::from_str(text).unwrap();
        for (path, value) in map {
            let value = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
            let change = Change { revision: 1, path: path.clone(), value: Some(value.into_bytes()) };
            assert!(snapshot.apply(&change).is_some(), "{path} is not a key");
        }
        snapshot
    }

    #[test]
    fn an_unreadable_record_stays_with_its_reason() {
        let unreadable = [
            ("/calico/v1/policy/profile/web/rules", r#"{"inbound_rules": [{"action": "maybe"}]}"#),
            ("/calico/bgp/v1/global/node_mesh", r#"{"enabled": "maybe"}"#),
            ("/calico/v1/ipam/v4/assignment/10.0.0.0-8/10.0.0.1", r#"{"state": "maybe"}"#),
        ];
        for (path, value) in unreadable {
            let snapshot = from_json(&format!(r#"{{"{path}": {value}}}"#));
            let told = snapshot.unreadable();
            assert_eq!(told.len(), 1, "{path}");
            assert!(told[0].0 == path && told[0].1.contains("maybe"), "{told:?}");
        }
    }

    #[test]
    fn a_pool_under_another_pools_key_is_not_read() {
        let snapshot = from_json(r#"{"/calico/v1/ipam/v4/pool/10.0.0.0-8": {"cidr": "0.0.0.0/0"}}"#);
        assert_eq!(snapshot.pools_of(Family::V4).count(), 0);
    }

    fn change() -> impl Strategy<Value = Change> {
        let path = prop_oneof![
            "/calico/v1/policy/profile/[ab]/(tags|rules)",
            "/calico/v1/host/h[12]/workload/docker/[cd]/endpoint/[ef]",
            "/calico/v1/config/[XY]",
            "/calico/v1/ipam/v4/assignment/10.[01].0.0-16/10.[01].0.[123]",
        ];
        let value = prop_oneof![
            Just(None),
            Just(Some(b"[\"t\"]".to_vec())),
            Just(Some(b"{}".to_vec())),
            Just(Some(
                br#"{"state":"active","name":"cali1","ipv4_nets":["10.0.0.1/32"],"ipv4_gateway":"10.1.0.1"}"#.to_vec()
            )),
            Just(Some(br#"{"state":"inactive","name":"cali2","ipv4_nets":["10.0.0.2/32"]}"#.to_vec())),
            ("h[12]", "[ef]", proptest::option::of(("h[12]", "[ef]"))).prop_map(|(host, endpoint, next)| {
                let owner = |host: String, endpoint: String| {
                    json!({"host": host, "orchestrator": "docker", "workload": "c", "endpoint": endpoint, "name": "", "since": ""})
                };
                let next = next.map(|(host, endpoint)| json!({"owner": owner(host, endpoint), "request": ""}));
                let claim = json!({"v": 1, "state": "bound", "owner": owner(host, endpoint), "request": "", "successor": next});
                Some(claim.to_string().into_bytes())
            }),
        ];
        (path, value).prop_map(|(path, value)| Change { revision: 0, path, value })
    }

    /// What a store that begins empty tells of these writes: each at a revision of its own, deletions of nothing untold.
    fn told(writes: Vec<Change>) -> Vec<Change> {
        let mut there = BTreeSet::new();
        let mut told = Vec::new();
        for mut write in writes {
            let known =
                if write.value.is_some() { !there.insert(write.path.clone()) } else { there.remove(&write.path) };
            if write.value.is_some() || known {
                write.revision = i64::try_from(told.len()).unwrap() + 1;
                told.push(write);
            }
        }
        told
    }

    /// What is about BGP comes by a watch of its own, which may be behind.
    #[test]
    fn news_of_bgp_are_not_stale_for_newer_ones_of_the_rest_and_the_other_way_round() {
        let change = |revision, path: &str, value: &str| Change {
            revision,
            path: path.to_owned(),
            value: Some(value.as_bytes().to_vec()),
        };
        let bgp = change(5, "/calico/bgp/v1/global/as_num", "64512");
        let rest = [change(4, "/calico/v1/Ready", "true"), change(9, "/calico/v1/config/A", "b")];
        let of = |order: [&[Change]; 2]| {
            let mut snapshot = Snapshot::default();
            snapshot.came_to(3);
            for changes in order {
                assert_eq!(snapshot.follow(changes, &mut News::All), 0);
            }
            assert_eq!(snapshot.follow(std::slice::from_ref(&rest[0]), &mut News::All), 1, "it was told before");
            snapshot
        };
        let bgp = std::slice::from_ref(&bgp);
        let both = [of([&rest, bgp]), of([bgp, &rest])];
        assert_eq!(both[0], both[1]);
        assert!(both[0].is_ready() && both[0].bgp_as.len() == 1 && both[0].revision == 9);
        let mut loaded = Snapshot::default();
        loaded.came_to(4);
        assert!(loaded.is_behind(&both[0]) && !both[0].is_behind(&loaded));
        loaded.revision = 9;
        assert!(loaded.is_behind(&both[0]), "of BGP it is");
    }

    proptest! {
        /// Whatever is told again, from however far back and however often, is without effect: after each message the view
        /// is the one at the newest revision that was told.
        #[test]
        fn what_a_watch_tells_again_changes_nothing(
            writes in prop::collection::vec(change(), 1..30),
            loaded in any::<prop::sample::Index>(),
            again in prop::collection::vec((any::<prop::sample::Index>(), any::<prop::sample::Index>()), 0..20),
        ) {
            let told = told(writes);
            prop_assume!(!told.is_empty());
            let at = |revision: usize| {
                let mut snapshot = Snapshot::default();
                for change in &told[..revision] {
                    snapshot.apply(change);
                }
                snapshot
            };
            let mut newest = loaded.index(told.len());
            let mut view = at(newest);
            let mut again = again.into_iter();
            while newest < told.len() {
                if let Some((from, to)) = again.next() {
                    let (from, to) = (from.index(newest + 1), to.index(newest + 1));
                    let mut replay = told[from.min(to)..from.max(to)].to_vec();
                    view.follow(&replay, &mut News::All);
                    // Not even in the wrong order.
                    replay.reverse();
                    view.follow(&replay, &mut News::All);
                    prop_assert_eq!(&view, &at(newest));
                }
                newest += 1;
                prop_assert_eq!(view.follow(&told[newest - 1..newest], &mut News::All), 0);
                prop_assert_eq!(&view, &at(newest));
            }
        }

        /// The pages of a load are ordered by key, not by revision: every record stays as it was last written.
        #[test]
        fn an_older_change_never_overwrites_a_newer_one(writes in prop::collection::vec(change(), 1..30), seed in any::<u64>()) {
            let puts: Vec<Change> = told(writes).into_iter().filter(|change| change.value.is_some()).collect();
            let mut ordered = Snapshot::default();
            for change in &puts {
                ordered.apply(change);
            }
            let mut mixed = puts;
            let length = mixed.len().max(1);
            for place in 0..mixed.len() {
                let other = usize::try_from(seed.rotate_left(u32::try_from(place).unwrap()) % 1009).unwrap() % length;
                mixed.swap(place, other);
            }
            let mut view = Snapshot::default();
            for change in &mixed {
                view.apply(change);
            }
            prop_assert_eq!(view, ordered);
        }

        /// The same last word on every key gives the same snapshot, whatever was said before and in what order.
        #[test]
        fn a_snapshot_does_not_depend_on_the_way_that_led_to_it(changes in prop::collection::vec(change(), 0..40)) {
            let mut whole = Snapshot::of("h1".parse().unwrap());
            let mut last: BTreeMap<&str, &Change> = BTreeMap::new();
            for change in &changes {
                whole.apply(change);
                last.insert(&change.path, change);
            }
            let mut short = Snapshot::of("h1".parse().unwrap());
            for change in last.values().rev() {
                short.apply(change);
            }
            let mut next_hops = BTreeMap::new();
            let own = short.endpoints.values().filter_map(Record::readable).flat_map(Endpoint::next_hops);
            let others = short.remote.values().filter_map(|record| record.readable()).flat_map(|one| one.next_hops.to_vec());
            own.chain(others).for_each(|address| *next_hops.entry(address).or_default() += 1);
            prop_assert_eq!(&whole.next_hops, &next_hops);
            prop_assert_eq!(whole, short);
        }

        /// What is looked up is what a look at everything finds.
        #[test]
        fn what_is_looked_up_is_all_that_is_there(changes in prop::collection::vec(change(), 0..60)) {
            let mut snapshot = Snapshot::of("h1".parse().unwrap());
            for change in &changes {
                snapshot.apply(change);
            }
            let keys = |found: Vec<(&EndpointKey, &Record<Endpoint>)>| -> Vec<EndpointKey> {
                found.into_iter().map(|(key, _)| key.clone()).collect()
            };
            for workload in ["c", "d", "e"].map(|name| name.parse::<WorkloadId>().unwrap()) {
                let all = snapshot.endpoints.iter().filter(|(key, _)| key.workload == workload).collect();
                let (host, docker) = ("h1".parse().unwrap(), Orchestrator::docker());
                prop_assert_eq!(keys(snapshot.endpoints_of_workload(host, docker, workload).collect()), keys(all));
            }
            for interface in ["cali1", "cali2", "cali3"].map(|name| name.parse::<IfName>().unwrap()) {
                let names = |record: &Record<Endpoint>| record.readable().is_some_and(|one| one.interface == interface);
                let all = snapshot.endpoints.iter().filter(|(_, record)| names(record)).collect();
                prop_assert_eq!(keys(snapshot.endpoints_at(&interface).collect()), keys(all));
            }
            let is_here = |owner: &&crate::model::claim::Owner| owner.host.as_str() == "h1";
            for endpoint in ["e", "f", "g"].map(|name| name.parse::<EndpointId>().unwrap()) {
                let has_part = |claim: &Claim| claim.owners().filter(is_here).any(|owner| owner.endpoint == endpoint);
                let all = snapshot.claims.iter().filter(|(_, record)| record.readable().is_some_and(has_part));
                let found: Vec<&AssignmentKey> = snapshot.parts_of(&endpoint).map(|(key, _, _)| key).collect();
                prop_assert_eq!(found, all.map(|(key, _)| key).collect::<Vec<_>>());
            }
            for pool in ["10.0.0.0/16", "10.1.0.0/16"].map(|text| text.parse::<IpNet>().unwrap()) {
                for from in ["10.0.0.2", "10.1.0.0", "10.1.0.2", "10.2.0.0"].map(|text| text.parse::<IpAddr>().unwrap()) {
                    let all = snapshot.claims.keys().filter(|key| key.pool == pool && key.address >= from);
                    let found: Vec<IpAddr> = snapshot.claims_of_pool(pool, from).map(|(address, _)| address).collect();
                    prop_assert_eq!(found, all.map(|key| key.address).collect::<Vec<_>>());
                }
            }
        }
    }
}
