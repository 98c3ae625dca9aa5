//! Keys: the paths of the datastore, each as a typed value. [`Key::parse`] and [`Key::path`] are inverse to each other.
//!
//! The layout is that of calico-docker (docs/data-model.md), as flat keys of etcd v3: what was a directory there is a prefix here.

use std::net::IpAddr;

use ipnet::IpNet;

use super::name::{EndpointId, HostName, Orchestrator, ProfileName, WorkloadId};
use super::pool::Family;

/// What this software watches: everything below.
pub(crate) const ROOT: &str = "/calico/";
const V1: &str = "/calico/v1/";

/// What the paths of all that is about BGP begin with.
pub(crate) const BGP: &str = "/calico/bgp/v1/";

/// What the paths of all hosts begin with that are to say what they hold.
pub(crate) const AWAITED: &str = "/calico/v1/awaited/";

/// What nodes say of themselves. No node reads it, and there is much of it: it is left out of loads and of what is watched.
pub(crate) const REPORTS: &str = "/calico/felix/v1/";

/// Whether a path stands before all of these: what does is about BGP, as far as it is ours.
pub(crate) fn is_before_reports(path: &str) -> bool {
    path < REPORTS
}

/// The first path after all of these.
pub(crate) const AFTER_REPORTS: &str = "/calico/felix/v10";

/// Where an endpoint is recorded.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct EndpointKey {
    pub(crate) host: HostName,
    pub(crate) orchestrator: Orchestrator,
    pub(crate) workload: WorkloadId,
    pub(crate) endpoint: EndpointId,
}

/// Where the claim of an address is recorded.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct AssignmentKey {
    pub(crate) pool: IpNet,
    pub(crate) address: IpAddr,
}

/// For whom a BGP setting holds.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum BgpScope {
    Global,
    Host(HostName),
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Key {
    /// `true` once the datastore holds its defaults.
    Ready,
    /// A setting of every host's agent, by its name.
    Config(String),
    /// The same setting for one host; wins over the global one.
    HostConfig(HostName, String),
    /// A host's IPv4 address.
    HostIp(HostName),
    /// The last time that the datastore had gone back to an older state.
    GoneBack,
    /// There as long as what a host holds is not known, since the datastore has gone back to an older state.
    Awaited(HostName),
    /// Somebody asks all hosts how far they are. It hangs on a lease, by which it is called.
    RollCall(i64),
    Endpoint(EndpointKey),
    ProfileTags(ProfileName),
    ProfileRules(ProfileName),
    /// The CIDR is a network address.
    Pool(IpNet),
    Assignment(AssignmentKey),
    /// `as_num`.
    BgpAs(BgpScope),
    BgpMesh,
    BgpPeer(BgpScope, IpAddr),
    BgpHostIp(HostName, Family),
    BgpLogLevel(BgpScope),
    /// A node's report of itself, which runs out.
    HostStatus(HostName),
    /// The same, which stays.
    HostLastStatus(HostName),
    /// A node's report of an endpoint.
    EndpointStatus(EndpointKey),
    /// A node's answer to a roll call.
    RollAnswer(i64, HostName),
}

/// What the paths of all answers to a roll call begin with.
pub(crate) fn answers_to(call: i64) -> String {
    format!("{REPORTS}roll_call/{call}/")
}

/// What the paths of a host's reports of its endpoints begin with.
pub(crate) fn endpoint_reports_of(host: &HostName) -> String {
    format!("{REPORTS}host/{host}/workload/")
}

/// What the paths of all that is recorded of a host, of its BGP and of its reports begin with.
pub(crate) fn records_of(host: &HostName) -> [String; 3] {
    [V1, BGP, REPORTS].map(|root| format!("{root}host/{host}/"))
}

/// What the paths of all hosts' records begin with, their endpoints among them.
pub(crate) const HOSTS: &str = "/calico/v1/host/";

/// What the paths of a host's endpoints begin with.
pub(crate) fn endpoints_of(host: &HostName) -> String {
    format!("{HOSTS}{host}/workload/")
}

/// What the paths of all profiles begin with.
pub(crate) const PROFILES: &str = "/calico/v1/policy/profile/";

/// What the paths of all pools and of all claims begin with.
pub(crate) const ADDRESSES: &str = "/calico/v1/ipam/";

/// What the paths of all pools begin with, by family.
pub(crate) const POOLS: [&str; 2] = ["/calico/v1/ipam/v4/pool/", "/calico/v1/ipam/v6/pool/"];

/// What the paths of a pool's claims begin with.
pub(crate) fn assignments_of(pool: IpNet) -> String {
    format!("{V1}ipam/{}/assignment/{}/", Family::of_net(pool).key(), dashed(pool))
}

fn dashed(net: IpNet) -> String {
    format!("{}-{}", net.addr(), net.prefix_len())
}

/// A network address from its form in a key; nothing else, so that one pool has one key.
fn undashed(text: &str, family: &str) -> Option<IpNet> {
    let (address, prefix) = text.rsplit_once('-')?;
    let net = IpNet::new(address.parse().ok()?, prefix.parse().ok()?).ok()?;
    (net.trunc() == net && Family::of_net(net).key() == family && dashed(net) == text).then_some(net)
}

fn canonical_ip(text: &str) -> Option<IpAddr> {
    text.parse::<IpAddr>().ok().filter(|ip| ip.to_string() == text)
}

/// The number of a lease.
fn lease(text: &str) -> Option<i64> {
    text.parse::<i64>().ok().filter(|lease| lease.to_string() == text)
}

impl Key {
    pub(crate) fn path(&self) -> String {
        match self {
            Key::Ready => format!("{V1}Ready"),
            Key::Config(name) => format!("{V1}config/{name}"),
            Key::HostConfig(host, name) => format!("{V1}host/{host}/config/{name}"),
            Key::HostIp(host) => format!("{V1}host/{host}/bird_ip"),
            Key::GoneBack => format!("{V1}gone_back"),
            Key::Awaited(host) => format!("{AWAITED}{host}"),
            Key::RollCall(call) => format!("{V1}roll_call/{call}"),
            Key::Endpoint(EndpointKey { host, orchestrator, workload, endpoint }) => {
                format!("{V1}host/{host}/workload/{orchestrator}/{workload}/endpoint/{endpoint}")
            }
            Key::ProfileTags(profile) => format!("{V1}policy/profile/{profile}/tags"),
            Key::ProfileRules(profile) => format!("{V1}policy/profile/{profile}/rules"),
            Key::Pool(net) => format!("{V1}ipam/{}/pool/{}", Family::of_net(*net).key(), dashed(*net)),
            Key::Assignment(AssignmentKey { pool, address }) => {
                format!("{V1}ipam/{}/assignment/{}/{address}", Family::of_net(*pool).key(), dashed(*pool))
            }
            Key::BgpAs(scope) => format!("{}as_num", bgp_prefix(scope)),
            Key::BgpMesh => format!("{BGP}global/node_mesh"),
            Key::BgpPeer(scope, ip) => format!("{}peer_{}/{ip}", bgp_prefix(scope), Family::of(*ip).key()),
            Key::BgpHostIp(host, family) => format!("{BGP}host/{host}/ip_addr_{}", family.key()),
            Key::BgpLogLevel(scope) => format!("{}loglevel", bgp_prefix(scope)),
            Key::HostStatus(host) => format!("{REPORTS}host/{host}/status"),
            Key::HostLastStatus(host) => format!("{REPORTS}host/{host}/last_reported_status"),
            Key::EndpointStatus(EndpointKey { host, orchestrator, workload, endpoint }) => {
                format!("{}{orchestrator}/{workload}/endpoint/{endpoint}", endpoint_reports_of(host))
            }
            Key::RollAnswer(call, host) => format!("{}{host}", answers_to(*call)),
        }
    }

    /// The key at a path; `None` for what this software does not know, which it leaves alone.
    pub(crate) fn parse(path: &str) -> Option<Key> {
        if let Some(rest) = path.strip_prefix(V1) {
            let parts: Vec<&str> = rest.split('/').collect();
            return parse_v1(&parts);
        }
        if let Some(rest) = path.strip_prefix(REPORTS) {
            let parts: Vec<&str> = rest.split('/').collect();
            return parse_report(&parts);
        }
        let parts: Vec<&str> = path.strip_prefix(BGP)?.split('/').collect();
        match parts.as_slice() {
            ["global", rest @ ..] => parse_bgp(&BgpScope::Global, rest),
            ["host", host, rest @ ..] => parse_bgp(&BgpScope::Host(host.parse().ok()?), rest),
            _ => None,
        }
    }
}

fn bgp_prefix(scope: &BgpScope) -> String {
    match scope {
        BgpScope::Global => format!("{BGP}global/"),
        BgpScope::Host(host) => format!("{BGP}host/{host}/"),
    }
}

fn parse_v1(parts: &[&str]) -> Option<Key> {
    Some(match parts {
        ["Ready"] => Key::Ready,
        ["config", name] if !name.is_empty() => Key::Config((*name).to_owned()),
        ["host", host, "config", name] if !name.is_empty() => Key::HostConfig(host.parse().ok()?, (*name).to_owned()),
        ["host", host, "bird_ip"] => Key::HostIp(host.parse().ok()?),
        ["gone_back"] => Key::GoneBack,
        ["awaited", host] => Key::Awaited(host.parse().ok()?),
        ["roll_call", call] => Key::RollCall(lease(call)?),
        ["host", host, "workload", rest @ ..] => Key::Endpoint(parse_endpoint(host, rest)?),
        ["policy", "profile", profile, "tags"] => Key::ProfileTags(profile.parse().ok()?),
        ["policy", "profile", profile, "rules"] => Key::ProfileRules(profile.parse().ok()?),
        ["ipam", family, "pool", net] => Key::Pool(undashed(net, family)?),
        ["ipam", family, "assignment", net, address] => {
            let pool = undashed(net, family)?;
            let address = canonical_ip(address).filter(|address| pool.contains(address))?;
            Key::Assignment(AssignmentKey { pool, address })
        }
        _ => return None,
    })
}

fn parse_endpoint(host: &str, parts: &[&str]) -> Option<EndpointKey> {
    let [orchestrator, workload, "endpoint", endpoint] = parts else { return None };
    Some(EndpointKey {
        host: host.parse().ok()?,
        orchestrator: orchestrator.parse().ok()?,
        workload: workload.parse().ok()?,
        endpoint: endpoint.parse().ok()?,
    })
}

fn parse_report(parts: &[&str]) -> Option<Key> {
    Some(match parts {
        ["host", host, "status"] => Key::HostStatus(host.parse().ok()?),
        ["host", host, "last_reported_status"] => Key::HostLastStatus(host.parse().ok()?),
        ["host", host, "workload", rest @ ..] => Key::EndpointStatus(parse_endpoint(host, rest)?),
        ["roll_call", call, host] => Key::RollAnswer(lease(call)?, host.parse().ok()?),
        _ => return None,
    })
}

fn parse_bgp(scope: &BgpScope, parts: &[&str]) -> Option<Key> {
    Some(match (scope, parts) {
        (_, ["as_num"]) => Key::BgpAs(scope.clone()),
        (_, ["loglevel"]) => Key::BgpLogLevel(scope.clone()),
        (BgpScope::Global, ["node_mesh"]) => Key::BgpMesh,
        (BgpScope::Host(host), ["ip_addr_v4"]) => Key::BgpHostIp(host.clone(), Family::V4),
        (BgpScope::Host(host), ["ip_addr_v6"]) => Key::BgpHostIp(host.clone(), Family::V6),
        (_, [peers @ ("peer_v4" | "peer_v6"), ip]) => {
            let ip = canonical_ip(ip).filter(|ip| peers.ends_with(Family::of(*ip).key()))?;
            Key::BgpPeer(scope.clone(), ip)
        }
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn name<T: std::str::FromStr + std::fmt::Debug>() -> impl Strategy<Value = T> {
        "[a-zA-Z0-9_.-]{1,40}".prop_filter_map("a name", |text| text.parse().ok())
    }

    fn ip() -> impl Strategy<Value = IpAddr> {
        any::<IpAddr>()
    }

    fn net() -> impl Strategy<Value = IpNet> {
        (ip(), any::<u8>()).prop_filter_map("a net", |(ip, prefix)| {
            let most = if ip.is_ipv4() { 32 } else { 128 };
            IpNet::new(ip, prefix % (most + 1)).ok().map(|net| net.trunc())
        })
    }

    fn scope() -> impl Strategy<Value = BgpScope> {
        prop_oneof![Just(BgpScope::Global), name().prop_map(BgpScope::Host)]
    }

    fn key() -> impl Strategy<Value = Key> {
        prop_oneof![
            Just(Key::Ready),
            Just(Key::BgpMesh),
            Just(Key::GoneBack),
            "[A-Za-z0-9]{1,20}".prop_map(Key::Config),
            (name(), "[A-Za-z0-9]{1,20}").prop_map(|(host, param)| Key::HostConfig(host, param)),
            name().prop_map(Key::HostIp),
            name().prop_map(Key::Awaited),
            any::<i64>().prop_map(Key::RollCall),
            (any::<i64>(), name()).prop_map(|(call, host)| Key::RollAnswer(call, host)),
            (name(), name(), name(), name()).prop_map(|(host, orchestrator, workload, endpoint)| {
                Key::Endpoint(EndpointKey { host, orchestrator, workload, endpoint })
            }),
            (name(), name(), name(), name()).prop_map(|(host, orchestrator, workload, endpoint)| {
                Key::EndpointStatus(EndpointKey { host, orchestrator, workload, endpoint })
            }),
            name().prop_map(Key::HostStatus),
            name().prop_map(Key::HostLastStatus),
            name().prop_map(Key::ProfileTags),
            name().prop_map(Key::ProfileRules),
            net().prop_map(Key::Pool),
            net().prop_map(|pool| Key::Assignment(AssignmentKey { pool, address: pool.broadcast() })),
            scope().prop_map(Key::BgpAs),
            scope().prop_map(Key::BgpLogLevel),
            (scope(), ip()).prop_map(|(scope, ip)| Key::BgpPeer(scope, ip)),
            (name(), any::<bool>())
                .prop_map(|(host, v4)| Key::BgpHostIp(host, if v4 { Family::V4 } else { Family::V6 })),
        ]
    }

    proptest! {
        #[test]
        fn every_key_has_one_path_and_every_path_one_key(key in key()) {
            prop_assert_eq!(Key::parse(&key.path()), Some(key));
        }

        #[test]
        fn a_path_that_is_read_is_written_the_same(path in "/calico/(bgp/|felix/)?v1/[a-z0-9_./:-]{0,60}") {
            if let Some(key) = Key::parse(&path) {
                prop_assert_eq!(key.path(), path);
            }
        }
    }

    #[test]
    fn the_paths_are_those_of_the_original() {
        let pool = "192.168.0.0/16".parse().unwrap();
        assert_eq!(Key::Pool(pool).path(), "/calico/v1/ipam/v4/pool/192.168.0.0-16");
        let assignment = Key::Assignment(AssignmentKey { pool, address: "192.168.1.1".parse().unwrap() });
        assert_eq!(assignment.path(), "/calico/v1/ipam/v4/assignment/192.168.0.0-16/192.168.1.1");
        assert_eq!(
            Key::parse("/calico/bgp/v1/global/peer_v4/10.0.0.1"),
            Some(Key::BgpPeer(BgpScope::Global, "10.0.0.1".parse().unwrap()))
        );
    }

    #[test]
    fn a_second_spelling_of_a_key_is_not_a_key() {
        for path in [
            "/calico/v1/ipam/v4/pool/192.168.0.1-16",
            "/calico/v1/ipam/v6/pool/192.168.0.0-16",
            "/calico/v1/ipam/v4/pool/192.168.0.0-016",
            "/calico/v1/ipam/v4/assignment/192.168.0.0-16/10.0.0.1",
            "/calico/v1/policy/profile/a/b/tags",
            "/calico/v1/Ready/",
            "/calico/v1/host//bird_ip",
            "/other",
        ] {
            assert_eq!(Key::parse(path), None, "{path}");
        }
    }
}
