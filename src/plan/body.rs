//! Bodies of requests: what a create wishes of us, and what it then says to dockerd.
//!
//! Bodies are read by Go's rules (see [`json`]) and edited by splicing, so that a field that we do not know
//! survives with every byte. A body that dockerd would not read (no JSON, a wrong type) has no wish: the original bytes
//! go on and dockerd says why not.

use std::collections::{BTreeMap, BTreeSet};

use super::json::{self, Edit, Member, Span};
use super::runtime::{RUNTIME, Runtimes, Way};
use crate::model::endpoint::Requested;
use crate::model::fault::Fault;
use crate::model::recreation::RecreationLabels;
use crate::model::wish::Wish;

/// What a create request asks, once it has been read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Ask {
    pub(crate) wish: Wish,
    /// The name given by `?name=`; empty where Docker chooses one.
    pub(crate) name: String,
    pub(crate) requested: Requested,
    /// What tells whose place the container takes.
    pub(crate) labels: RecreationLabels,
    /// What the user should know of the request itself (ports without effect, …).
    pub(crate) warnings: Vec<String>,
}

/// Reads a create body. `None`: no wish in it, the original bytes go on. Else what it asks, and the body for dockerd.
///
/// # Errors
/// `Refusal`: a wish that cannot be read, or that contradicts another part of the body.
pub(crate) fn read_create(bytes: &[u8], name: &str, runtimes: &Runtimes) -> Result<Option<(Ask, Vec<u8>)>, Fault> {
    let Some(create) = Create::scan(bytes) else { return Ok(None) };
    let Some((addresses, profiles)) = create.wish()? else { return Ok(None) };
    let mode = create.network_mode()?;
    let wish = Wish::parse(&addresses, profiles.as_deref())?;
    let mut requested = create.requested(mode);
    let mut warnings = create.warnings(&requested);
    let way = runtimes.choose(create.runtimes.iter().rev().find_map(|(_, name)| name.as_deref()).unwrap_or_default());
    let by_runtime = match way {
        Way::Runtime(behind) => {
            requested.runtime = behind;
            true
        }
        Way::Node(why) => {
            warnings.push(format!(
                "calico: the network may come some milliseconds after the container's first instruction: {why}"
            ));
            false
        }
    };
    let ask = Ask { wish, name: name.to_owned(), requested, labels: create.labels.clone(), warnings };
    Ok(Some((ask, json::splice(bytes, create.edits(by_runtime)))))
}

/// The members of a body that dockerd 20.10 takes for those of a host configuration where the body has none. Source: moby
/// runconfig/config_unix.go, `ContainerConfigWrapper`, which embeds `container.HostConfig`. The list is closed: later
/// daemons have no such members.
pub(super) const LEGACY: &[&str] = &[
    "Binds",
    "ContainerIDFile",
    "LogConfig",
    "NetworkMode",
    "PortBindings",
    "RestartPolicy",
    "AutoRemove",
    "VolumeDriver",
    "VolumesFrom",
    "CapAdd",
    "CapDrop",
    "CgroupnsMode",
    "Dns",
    "DnsOptions",
    "DnsSearch",
    "ExtraHosts",
    "GroupAdd",
    "IpcMode",
    "Cgroup",
    "Links",
    "OomScoreAdj",
    "PidMode",
    "Privileged",
    "PublishAllPorts",
    "ReadonlyRootfs",
    "SecurityOpt",
    "StorageOpt",
    "Tmpfs",
    "UTSMode",
    "UsernsMode",
    "ShmSize",
    "Sysctls",
    "Runtime",
    "ConsoleSize",
    "Isolation",
    "CpuShares",
    "Memory",
    "NanoCpus",
    "CgroupParent",
    "BlkioWeight",
    "BlkioWeightDevice",
    "BlkioDeviceReadBps",
    "BlkioDeviceWriteBps",
    "BlkioDeviceReadIOps",
    "BlkioDeviceWriteIOps",
    "CpuPeriod",
    "CpuQuota",
    "CpuRealtimePeriod",
    "CpuRealtimeRuntime",
    "CpusetCpus",
    "CpusetMems",
    "Devices",
    "DeviceCgroupRules",
    "DeviceRequests",
    "KernelMemory",
    "KernelMemoryTCP",
    "MemoryReservation",
    "MemorySwap",
    "MemorySwappiness",
    "OomKillDisable",
    "PidsLimit",
    "Ulimits",
    "CpuCount",
    "CpuPercent",
    "IOMaximumIOps",
    "IOMaximumBandwidth",
    "Mounts",
    "MaskedPaths",
    "ReadonlyPaths",
    "Init",
];

/// The parts of a create body that matter here, of the types that Go wants.
struct Create<'a> {
    bytes: &'a [u8],
    top: Span,
    members: Vec<Member>,
    /// The objects that Go merges into the `HostConfig`; none where there is none.
    host_configs: Vec<Span>,
    /// The values of `NetworkMode` that count: strings and nulls.
    modes: Vec<(Span, Option<String>)>,
    /// Those of `Runtime`.
    runtimes: Vec<(Span, Option<String>)>,
    /// Those of the container's own `MacAddress` that are texts.
    macs: Vec<Span>,
    publishes: bool,
    /// What else it says of a network of Docker's, by the names of the members.
    idle: BTreeSet<&'static str>,
    /// The variables as Go has them in the end.
    environment: Vec<String>,
    labels: RecreationLabels,
    /// The variables of each `Env`.
    environments: Vec<Vec<String>>,
    /// The last object that Go merges into the `NetworkingConfig`.
    networking: Option<Span>,
    /// The networks in its `EndpointsConfig`, with aliases.
    networks: BTreeMap<String, Vec<String>>,
}

const MAC_ADDRESS: &str = "MacAddress";
const LINKS: &str = "Links";
const NETWORK_DISABLED: &str = "NetworkDisabled";

/// The values of all members of some objects that Go stores in one field.
fn values(members: &[Member], field: &str) -> Vec<Span> {
    members.iter().filter(|member| member.is(field)).map(|member| member.value.clone()).collect()
}

/// Of the values of a pointer or a map those that count: null makes Go forget what came before.
fn since_null(bytes: &[u8], mut spans: Vec<Span>) -> Vec<Span> {
    let from = spans.iter().rposition(|span| json::is_null(bytes, span)).map_or(0, |null| null + 1);
    spans.split_off(from)
}

/// The last value of a text or a number, for which null says nothing.
fn last_told<'s>(bytes: &[u8], spans: &'s [Span]) -> Option<&'s Span> {
    spans.iter().rev().find(|span| !json::is_null(bytes, span))
}

/// The members of some objects, which Go merges into one; `None` if one of them is no object.
fn merged(bytes: &[u8], spans: &[Span]) -> Option<Vec<Member>> {
    let mut all = Vec::new();
    for span in spans {
        all.extend(json::members(bytes, span)?);
    }
    Some(all)
}

/// A value of a list of strings, null as `None`, on both levels.
type Strings = Option<Vec<Option<String>>>;

fn strings(bytes: &[u8], span: &Span) -> Option<Strings> {
    let text = |span: &Span| if json::is_null(bytes, span) { Some(None) } else { json::string(bytes, span).map(Some) };
    if json::is_null(bytes, span) {
        return Some(None);
    }
    json::elements(bytes, span)?.iter().map(text).collect::<Option<Vec<_>>>().map(Some)
}

/// What Go has in a list of strings after several values for it. It writes the elements of a later value over those of an
/// earlier one in the same memory, and null in a list leaves the string in its place as it was, even one behind the end
/// of a list that was shorter. Source: Go 1.19 `encoding/json` `decodeState.array`.
fn overwritten(values: &[Strings]) -> Vec<String> {
    let (mut memory, mut length): (Vec<String>, usize) = (Vec::new(), 0);
    for value in values {
        let elements = value.as_deref().unwrap_or_default();
        if elements.is_empty() {
            memory.clear();
        }
        for (index, element) in elements.iter().enumerate() {
            if index >= memory.len() {
                let capacity = (memory.len() + memory.len() / 2).max(4);
                // Only what the list holds moves to the new memory.
                memory.truncate(length);
                memory.resize(capacity, String::new());
            }
            length = length.max(index + 1);
            if let Some(text) = element {
                text.clone_into(&mut memory[index]);
            }
        }
        length = elements.len();
    }
    memory.truncate(length);
    memory
}

/// The labels in some values of one map of strings, which Go fills in order and a null empties; `None` where Go refuses them.
fn labels(bytes: &[u8], spans: &[Span]) -> Option<RecreationLabels> {
    let mut all = BTreeMap::new();
    for span in spans {
        if json::is_null(bytes, span) {
            all.clear();
            continue;
        }
        for label in json::members(bytes, span)? {
            let empty = json::is_null(bytes, &label.value);
            let value = if empty { String::new() } else { json::string(bytes, &label.value)? };
            all.insert(label.key, value);
        }
    }
    Some(all.into_iter().collect())
}

/// The different values that a variable has in an environment. Without `=` it is not set (as `docker run -e NAME` sends
/// it where the client has none).
fn variable<'a>(environment: &'a [String], name: &str) -> BTreeSet<&'a str> {
    environment.iter().filter_map(|entry| entry.strip_prefix(name)?.strip_prefix('=')).collect()
}

/// Whether a network mode names a network of the user's rather than one of Docker's own.
fn is_user_network(mode: &str) -> bool {
    !matches!(mode, "" | "default" | "bridge" | "none" | "host")
}

impl<'a> Create<'a> {
    /// `None` where dockerd would not read the body.
    fn scan(bytes: &'a [u8]) -> Option<Self> {
        let top = json::document(bytes)?;
        let members = json::members(bytes, &top)?;
        let host_configs = since_null(bytes, values(&members, "HostConfig"));
        let merged_host = merged(bytes, &host_configs)?;
        // Without a HostConfig dockerd 20.10 takes the members of the body itself for one.
        let host = if host_configs.is_empty() { &members } else { &merged_host };
        let texts = |field: &str| {
            let text = |span: Span| {
                let text = if json::is_null(bytes, &span) { None } else { Some(json::string(bytes, &span)?) };
                Some((span, text))
            };
            values(host, field).into_iter().map(text).collect::<Option<Vec<_>>>()
        };
        let (modes, runtimes) = (texts("NetworkMode")?, texts("Runtime")?);
        let bound = since_null(bytes, values(host, "PortBindings"))
            .iter()
            .any(|span| json::members(bytes, span).is_some_and(|ports| !ports.is_empty()));
        let links = since_null(bytes, values(host, "Links"));
        let links =
            last_told(bytes, &links).is_some_and(|span| json::elements(bytes, span).is_some_and(|all| !all.is_empty()));
        let all = last_told(bytes, &values(host, "PublishAllPorts")).is_some_and(|span| json::is_true(bytes, span));
        let lists = values(&members, "Env").iter().map(|span| strings(bytes, span)).collect::<Option<Vec<_>>>()?;
        let networking = since_null(bytes, values(&members, "NetworkingConfig"));
        let endpoints = since_null(bytes, values(&merged(bytes, &networking)?, "EndpointsConfig"));
        let mut idle = BTreeSet::new();
        let has_text = |members: &[Member], field: &str| {
            last_told(bytes, &values(members, field))
                .is_some_and(|span| json::string(bytes, span) != Some(String::new()))
        };
        let mut networks = BTreeMap::new();
        for network in merged(bytes, &endpoints)? {
            let endpoint = merged(bytes, &since_null(bytes, vec![network.value]))?;
            let fixed = merged(bytes, &since_null(bytes, values(&endpoint, "IPAMConfig"))).unwrap_or_default();
            idle.extend(["IPv4Address", "IPv6Address"].iter().filter(|field| has_text(&fixed, field)));
            idle.extend(has_text(&endpoint, MAC_ADDRESS).then_some(MAC_ADDRESS));
            let aliases = values(&endpoint, "Aliases");
            let aliases = aliases.iter().map(|span| strings(bytes, span)).collect::<Option<Vec<_>>>()?;
            networks.insert(network.key, overwritten(&aliases));
        }
        idle.extend(has_text(&members, MAC_ADDRESS).then_some(MAC_ADDRESS));
        let mut macs = values(&members, MAC_ADDRESS);
        macs.retain(|span| json::string(bytes, span).is_some_and(|text| !text.is_empty()));
        let disabled = values(&members, NETWORK_DISABLED);
        let disabled = last_told(bytes, &disabled).is_some_and(|span| json::is_true(bytes, span));
        idle.extend(disabled.then_some(NETWORK_DISABLED));
        idle.extend(links.then_some(LINKS));
        Some(Create {
            bytes,
            top,
            host_configs,
            modes,
            runtimes,
            macs,
            publishes: bound || all,
            idle,
            environment: overwritten(&lists),
            environments: lists.into_iter().flatten().map(|list| list.into_iter().flatten().collect()).collect(),
            networking: networking.last().cloned(),
            labels: labels(bytes, &values(&members, "Labels"))?,
            networks,
            members,
        })
    }

    /// The values of `CALICO_IP` and `CALICO_PROFILE`; `None` where the first is not set.
    fn wish(&self) -> Result<Option<(String, Option<String>)>, Fault> {
        if variable(&self.environment, "CALICO_IP").is_empty() {
            return Ok(None);
        }
        let one = |name: &str| {
            let all: BTreeSet<&str> = self.environments.iter().flat_map(|list| variable(list, name)).collect();
            if all.len() > 1 {
                let all: Vec<String> = all.iter().map(|value| format!("{value:?}")).collect();
                return Err(Fault::Refusal(format!(
                    "read {name} of the container: it is set to {}: set it once",
                    all.join(" and to ")
                )));
            }
            Ok(variable(&self.environment, name).first().map(|value| (*value).to_owned()))
        };
        let (addresses, profiles) = (one("CALICO_IP")?, one("CALICO_PROFILE")?);
        Ok(addresses.map(|addresses| (addresses, profiles)))
    }

    /// The network mode that was asked for; empty if none was.
    fn network_mode(&self) -> Result<String, Fault> {
        let all: BTreeSet<&str> = self.modes.iter().filter_map(|(_, mode)| mode.as_deref()).collect();
        if all.len() > 1 {
            let all: Vec<String> = all.iter().map(|mode| format!("{mode:?}")).collect();
            return Err(Fault::Refusal(format!(
                "read NetworkMode of the container: it is set to {}: set it once",
                all.join(" and to ")
            )));
        }
        let mode = all.first().copied().unwrap_or_default();
        if mode == "host" || mode == "container" || mode.starts_with("container:") {
            return Err(Fault::Refusal(format!(
                "give the container an address: NetworkMode {mode:?} and CALICO_IP exclude each other: leave one out"
            )));
        }
        Ok(mode.to_owned())
    }

    fn requested(&self, mode: String) -> Requested {
        let mut networks = self.networks.clone();
        networks.retain(|name, _| is_user_network(name));
        if networks.is_empty() && is_user_network(&mode) {
            networks.insert(mode.clone(), Vec::new());
        }
        Requested { network_mode: mode, networks, ..Requested::default() }
    }

    fn warnings(&self, requested: &Requested) -> Vec<String> {
        let mut warnings = Vec::new();
        if !requested.networks.is_empty() {
            let names: Vec<&str> = requested.networks.keys().map(String::as_str).collect();
            warnings.push(format!(
                "calico: the container does not join network {}: CALICO_IP gives it an address of Calico's instead",
                names.join(", ")
            ));
            warnings.push(
                "calico: names of other services and containers do not resolve in this container: use addresses"
                    .to_owned(),
            );
        }
        if self.publishes {
            warnings
                .push("calico: published ports have no effect: the container is reached at its own address".to_owned());
        }
        if !self.idle.is_empty() {
            let names: Vec<&str> = self.idle.iter().copied().collect();
            warnings.push(format!(
                "calico: {} without effect: the container has an interface of Calico's, with a MAC address of its own and the addresses that CALICO_IP asks for",
                names.join(", ")
            ));
        }
        warnings
    }

    /// NetworkMode becomes `none`, and the runtime ours where ours is to wire. The endpoints go too: with any left, dockerd
    /// joins that network all the same. They are taken back rather than cut out, so that dockerd still sees what is wrong
    /// in them. So does a fixed MAC address, which newer dockerds refuse beside `none` (moby
    /// api/server/router/container/container_routes.go, `handleMACAddressBC`, for versions of the API below 1.44), and links,
    /// which dockerd looks at in no network of a user's, but beside `none` (moby daemon/daemon_unix.go, `registerLinks`).
    fn edits(&self, by_runtime: bool) -> Vec<Edit> {
        let mut edits: Vec<Edit> = self.macs.iter().map(|span| (span.clone(), json::quote(""))).collect();
        if let Some(last) = &self.networking
            && !self.networks.is_empty()
        {
            edits.push(self.inside(last, "EndpointsConfig", b"null"));
        }
        let runtime = by_runtime.then(|| json::quote(RUNTIME));
        let Some(last) = self.host_configs.last() else {
            edits.push(self.host_config_of_the_body(runtime.as_deref()));
            return edits;
        };
        let mut is_empty = json::members(self.bytes, last).is_none_or(|members| members.is_empty());
        let none: Option<&[u8]> = Some(br#""none""#);
        for (field, spans, value) in
            [("NetworkMode", &self.modes, none), ("Runtime", &self.runtimes, runtime.as_deref())]
        {
            let Some(value) = value else { continue };
            edits.extend(spans.iter().map(|(span, _)| (span.clone(), value.to_vec())));
            if spans.is_empty() {
                edits.push(json::append_member(self.bytes, last, is_empty, field, value));
                is_empty = false;
            }
        }
        if self.idle.contains(LINKS) {
            edits.push(json::append_member(self.bytes, last, is_empty, LINKS, b"null"));
        }
        edits
    }

    /// Puts a member at the end of an object.
    fn inside(&self, object: &Span, field: &str, value: &[u8]) -> Edit {
        let is_empty = json::members(self.bytes, object).is_none_or(|members| members.is_empty());
        json::append_member(self.bytes, object, is_empty, field, value)
    }

    /// The edit that gives a body without HostConfig one. Where dockerd finds one it no longer looks for its members in
    /// the body itself, so those are repeated in it. A network mode there would do for dockerd 20.10, but later ones
    /// read a HostConfig only.
    fn host_config_of_the_body(&self, runtime: Option<&[u8]>) -> Edit {
        let legacy = |member: &&Member| LEGACY.iter().any(|field| member.is(field));
        let mut host = vec![b'{'];
        let ours = |member: &&Member| {
            member.is("NetworkMode") || member.is(LINKS) || (runtime.is_some() && member.is("Runtime"))
        };
        for member in self.members.iter().filter(legacy).filter(|member| !ours(member)) {
            host.extend_from_slice(&json::quote(&member.key));
            host.push(b':');
            host.extend_from_slice(&self.bytes[member.value.clone()]);
            host.push(b',');
        }
        host.extend_from_slice(br#""NetworkMode":"none""#);
        if let Some(runtime) = runtime {
            host.extend_from_slice(br#","Runtime":"#);
            host.extend_from_slice(runtime);
        }
        host.push(b'}');
        let (at, mut text) = self.inside(&self.top, "HostConfig", &host);
        // dockerd reads `Cpuset` only where there is a host configuration, of either kind: here there was none.
        if !self.members.iter().any(|member| legacy(&member)) && !values(&self.members, "Cpuset").is_empty() {
            text.extend_from_slice(br#","Cpuset":"""#);
        }
        (at, text)
    }
}

/// The container that a connect or disconnect of a network is about. In a body dockerd takes a name with the slash that it shows
/// in front of it, too (moby daemon/container.go, `GetByName`).
pub(crate) fn connected_container(body: &[u8]) -> Option<String> {
    let top = json::document(body)?;
    let members = json::members(body, &top)?;
    let name = json::string(body, last_told(body, &values(&members, "Container"))?)?;
    Some(name.strip_prefix('/').unwrap_or(&name).to_owned())
}

#[cfg(test)]
mod tests;
