//! Endpoints: one interface of one container, as the datastore records it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::name::{CONTAINER_INTERFACE, IfName, Mac, ProfileName, WorkloadId};
use super::pool::{Family, nobodys};

/// Whether the container's process runs.
///
/// `Inactive` keeps chains, dispatch and set membership programmed; only the interface and the route are absent. So the
/// policy of a container stands before its process does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum State {
    Active,
    Inactive,
}

/// Who wired a container when it was last started.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum WiredBy {
    /// The hook of the OCI runtime, before the first instruction of the process.
    Runtime,
    /// The node, once it had heard of the start.
    Node,
}

impl WiredBy {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            WiredBy::Runtime => "runtime",
            WiredBy::Node => "node",
        }
    }
}

/// A runtime that a container asked for and that ours stands in front of: the program, and what it is given first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct OciRuntime {
    pub(crate) path: String,
    #[serde(default)]
    pub(crate) args: Vec<String>,
}

/// What the create request asked dockerd for before we overwrote it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Requested {
    /// `HostConfig.NetworkMode` as it was sent; empty if none was.
    #[serde(default)]
    pub(crate) network_mode: String,
    /// The networks named, each with the aliases asked for in it.
    #[serde(default)]
    pub(crate) networks: BTreeMap<String, Vec<String>>,
    /// The ids that dockerd knew those networks by at the create: compose 2 looks for them in the list of containers.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) network_ids: BTreeMap<String, String>,
    /// The runtime that does the container's work, where it is not runc.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) runtime: Option<OciRuntime>,
}

impl Requested {
    /// Whether a network was named, by its name, its id or as much of the id as Docker shows.
    pub(crate) fn names(&self, network: &str) -> bool {
        let is_id = |id: &String| network.len() >= 12 && id.starts_with(network);
        self.networks.contains_key(network) || self.network_ids.values().any(is_id)
    }

    /// With what dockerd knows a named network by, its name and its id.
    pub(crate) fn know(&mut self, named: &str, name: String, id: String) {
        if let Some(aliases) = self.networks.remove(named) {
            self.networks.insert(name.clone(), aliases);
            self.network_ids.insert(name, id);
        }
    }
}

/// What a container has lost to its successor. It has no network any more, and is not started again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct HandedOver {
    pub(crate) addresses: BTreeSet<IpAddr>,
    pub(crate) to: WorkloadId,
}

/// An endpoint's record. What it is stored under is an [`EndpointKey`](super::key::EndpointKey).
///
/// Source of the format: the endpoints of calico-docker (docs/data-model.md). Keys that are not known here survive a rewrite in `rest`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Written", into = "Written")]
pub(crate) struct Endpoint {
    pub(crate) state: State,
    /// The interface on the host.
    pub(crate) interface: IfName,
    /// The interface in the container.
    pub(crate) container_interface: IfName,
    /// The container side's.
    pub(crate) mac: Option<Mac>,
    /// In the order in which they are consulted.
    pub(crate) profiles: Vec<ProfileName>,
    pub(crate) addresses: BTreeSet<IpAddr>,
    /// The container's next hop: the host's own address when the container was last started.
    pub(crate) ipv4_gateway: Option<IpAddr>,
    pub(crate) ipv6_gateway: Option<IpAddr>,
    pub(crate) requested: Option<Requested>,
    pub(crate) handed_over: Option<HandedOver>,
    /// `None` before the first start.
    pub(crate) wired_by: Option<WiredBy>,
    pub(crate) rest: BTreeMap<String, serde_json::Value>,
}

impl Endpoint {
    pub(crate) fn is_active(&self) -> bool {
        self.state == State::Active
    }

    /// Whether the endpoint is of a family: it has an address of it. One that has none at all counts as IPv4's, so that
    /// somebody closes it.
    pub(crate) fn is_of(&self, family: Family) -> bool {
        let own = self.addresses.iter().any(|address| Family::of(*address) == family);
        own || (self.addresses.is_empty() && family == Family::V4)
    }

    /// The same without addresses that are another container's from now on.
    #[must_use]
    pub(crate) fn without(&self, addresses: &BTreeSet<IpAddr>, to: &WorkloadId) -> Self {
        let earlier = self.handed_over.iter().flat_map(|lost| lost.addresses.iter().copied());
        let lost = addresses.iter().copied().chain(earlier).collect();
        Endpoint {
            state: State::Inactive,
            addresses: self.addresses.difference(addresses).copied().collect(),
            handed_over: Some(HandedOver { addresses: lost, to: to.clone() }),
            ..self.clone()
        }
    }

    /// Where the container sends what is for others.
    pub(crate) fn next_hops(&self) -> impl Iterator<Item = IpAddr> + use<> {
        [self.ipv4_gateway, self.ipv6_gateway].into_iter().flatten()
    }

    pub(crate) fn ipv4(&self) -> impl Iterator<Item = std::net::Ipv4Addr> + '_ {
        self.addresses.iter().filter_map(|address| match address {
            IpAddr::V4(v4) => Some(*v4),
            IpAddr::V6(_) => None,
        })
    }

    pub(crate) fn ipv6(&self) -> impl Iterator<Item = std::net::Ipv6Addr> + '_ {
        self.addresses.iter().filter_map(|address| match address {
            IpAddr::V4(_) => None,
            IpAddr::V6(v6) => Some(*v6),
        })
    }
}

/// What counts, on another host, of an endpoint: the addresses that it brings to the tags of its profiles, and its next
/// hops, which no container may have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Remote {
    pub(crate) addresses: Box<[IpAddr]>,
    pub(crate) profiles: Box<[ProfileName]>,
    pub(crate) next_hops: Box<[IpAddr]>,
}

impl Remote {
    pub(crate) fn of(endpoint: &Endpoint) -> Self {
        Remote {
            addresses: endpoint.addresses.iter().copied().collect(),
            profiles: endpoint.profiles.iter().cloned().collect(),
            next_hops: endpoint.next_hops().collect(),
        }
    }
}

/// The JSON of a record, older spellings included.
#[derive(Serialize, Deserialize)]
struct Written {
    state: State,
    name: IfName,
    #[serde(default)]
    mac: Option<Mac>,
    #[serde(rename = "container:if_name", default, skip_serializing_if = "Option::is_none")]
    container_interface: Option<IfName>,
    #[serde(default)]
    profile_ids: Option<Vec<ProfileName>>,
    #[serde(default, skip_serializing)]
    profile_id: Option<String>,
    #[serde(default)]
    ipv4_nets: Vec<String>,
    #[serde(default)]
    ipv6_nets: Vec<String>,
    #[serde(default)]
    ipv4_gateway: Option<IpAddr>,
    #[serde(default)]
    ipv6_gateway: Option<IpAddr>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    requested: Option<Requested>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    handed_over: Option<HandedOver>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    wired_by: Option<WiredBy>,
    #[serde(flatten)]
    rest: BTreeMap<String, serde_json::Value>,
}

/// One address from a net of a record: `10.0.0.1`, `10.0.0.1/32`. A wider net would route foreign addresses here.
fn address(text: &str, ipv4: bool) -> Result<IpAddr, String> {
    let right = if ipv4 { "an IPv4 address or a /32" } else { "an IPv6 address or a /128" };
    let address = match text.parse::<IpNet>() {
        Ok(net) if net.prefix_len() == net.max_prefix_len() => net.addr(),
        Ok(_) => return Err(format!("net {text:?} is wider than one address: it must be {right}")),
        Err(_) => text.parse().map_err(|_| format!("net {text:?} is not {right}"))?,
    };
    if let Some((_, kind)) = nobodys(address) {
        return Err(format!("net {text:?} is {kind}, which is no container's: it must be {right} of a pool"));
    }
    if address.is_ipv4() == ipv4 { Ok(address) } else { Err(format!("net {text:?} is not {right}")) }
}

impl TryFrom<Written> for Endpoint {
    type Error = String;
    fn try_from(written: Written) -> Result<Self, String> {
        let profiles = match (written.profile_ids, written.profile_id) {
            // Felix lets the list win where both are there.
            (Some(list), _) => list,
            (None, Some(one)) if !one.is_empty() => vec![one.parse().map_err(|error| format!("{error}"))?],
            (None, _) => Vec::new(),
        };
        let mut addresses = BTreeSet::new();
        for net in &written.ipv4_nets {
            addresses.insert(address(net, true)?);
        }
        for net in &written.ipv6_nets {
            addresses.insert(address(net, false)?);
        }
        let container_interface = match written.container_interface {
            Some(name) => name,
            None => CONTAINER_INTERFACE.parse().map_err(|error| format!("{error}"))?,
        };
        Ok(Endpoint {
            state: written.state,
            interface: written.name,
            container_interface,
            mac: written.mac,
            profiles,
            addresses,
            ipv4_gateway: written.ipv4_gateway,
            ipv6_gateway: written.ipv6_gateway,
            requested: written.requested,
            handed_over: written.handed_over,
            wired_by: written.wired_by,
            rest: written.rest,
        })
    }
}

impl From<Endpoint> for Written {
    fn from(endpoint: Endpoint) -> Written {
        Written {
            ipv4_nets: endpoint.ipv4().map(|address| format!("{address}/32")).collect(),
            ipv6_nets: endpoint.ipv6().map(|address| format!("{address}/128")).collect(),
            state: endpoint.state,
            name: endpoint.interface,
            mac: endpoint.mac,
            container_interface: Some(endpoint.container_interface),
            profile_ids: Some(endpoint.profiles),
            profile_id: None,
            ipv4_gateway: endpoint.ipv4_gateway,
            ipv6_gateway: endpoint.ipv6_gateway,
            requested: endpoint.requested,
            handed_over: endpoint.handed_over,
            wired_by: endpoint.wired_by,
            rest: endpoint.rest,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RECORD: &str = r#"{"state":"active","name":"cali1d9e9624cdb","mac":"32:24:81:2a:cb:bd","container:if_name":"eth1","profile_ids":["web"],"ipv4_nets":["192.168.1.1/32"],"ipv6_nets":[],"ipv4_gateway":"172.25.0.1","ipv6_gateway":null}"#;

    #[test]
    fn a_record_survives_reading_and_writing() {
        let endpoint: Endpoint = serde_json::from_str(RECORD).unwrap();
        assert!(endpoint.is_active());
        assert_eq!(serde_json::to_string(&endpoint).unwrap(), RECORD);
    }

    #[test]
    fn the_seeds_own_example_is_read() {
        let text = r#"{"ipv6_gateway": "fd80:24e2:f998:72d6::1", "state": "active", "name": "cali1d9e9624cdb", "ipv4_gateway": null, "ipv6_nets": ["fd80:24e2:f998:72d6::1:1/128"], "profile_id": "web", "mac": "32:24:81:2a:cb:bd", "ipv4_nets": []}"#;
        let endpoint: Endpoint = serde_json::from_str(text).unwrap();
        assert_eq!(endpoint.profiles.iter().map(ProfileName::as_str).collect::<Vec<_>>(), ["web"]);
        assert_eq!(endpoint.container_interface.as_str(), "eth1");
    }

    #[test]
    fn an_address_that_passed_over_is_no_longer_the_record_s() {
        let mut endpoint: Endpoint = serde_json::from_str(RECORD).unwrap();
        let [first, second]: [IpAddr; 2] = ["192.168.1.1", "192.168.1.2"].map(|text| text.parse().unwrap());
        endpoint.addresses.insert(second);
        let to: WorkloadId = "b".repeat(64).parse().unwrap();
        let left = endpoint.without(&[first].into(), &to);
        assert_eq!((left.state, &left.addresses), (State::Inactive, &[second].into()));
        let left: Endpoint = serde_json::from_str(&serde_json::to_string(&left).unwrap()).unwrap();
        assert_eq!(left.handed_over, Some(HandedOver { addresses: [first].into(), to: to.clone() }));
        let left = left.without(&[second].into(), &to);
        assert_eq!(left.handed_over.unwrap().addresses, [first, second].into());
    }

    #[test]
    fn a_network_is_known_by_name_and_by_id() {
        let id = "35e7591be252e92588690e8f10018846d73735599daac8bf4bbe02e7741db373";
        for named in ["back", id, "35e7591be252"] {
            let networks = BTreeMap::from([(named.to_owned(), vec!["w".to_owned()])]);
            let mut requested = Requested { networks, ..Requested::default() };
            requested.know(named, "back".to_owned(), id.to_owned());
            assert_eq!(requested.networks, BTreeMap::from([("back".to_owned(), vec!["w".to_owned()])]));
            assert!(["back", id, "35e7591be252"].iter().all(|name| requested.names(name)), "{named}");
            assert!(["front", "35e7", &id[1..], ""].iter().all(|name| !requested.names(name)), "{named}");
        }
    }

    #[test]
    fn keys_of_other_writers_survive() {
        let text = RECORD.replacen('{', r#"{"labels":{"a":1},"#, 1);
        let endpoint: Endpoint = serde_json::from_str(&text).unwrap();
        let again: serde_json::Value = serde_json::from_str(&serde_json::to_string(&endpoint).unwrap()).unwrap();
        assert_eq!(again["labels"]["a"], 1);
    }

    #[test]
    fn a_record_that_would_take_foreign_addresses_is_not_read() {
        for (from, to) in [
            ("192.168.1.1/32", "0.0.0.0/0"),
            ("192.168.1.1/32", "fd00::1/128"),
            ("192.168.1.1/32", "127.0.0.1/32"),
            ("192.168.1.1/32", "224.0.0.5/32"),
            ("\"ipv6_nets\":[]", "\"ipv6_nets\":[\"::ffff:10.0.0.1/128\"]"),
            ("cali1d9e9624cdb", "cali1d9e9624cdb0"),
            ("\"active\"", "\"up\""),
            ("\"web\"", "\"we/b\""),
        ] {
            assert!(serde_json::from_str::<Endpoint>(&RECORD.replace(from, to)).is_err(), "{to}");
        }
    }
}
