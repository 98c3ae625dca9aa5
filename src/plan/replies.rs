//! Bodies of replies: what dockerd's tell us, and our warnings and our address in them.
//!
//! They are edited by splicing, as those of requests are (see [`body`](super::body)): what a newer dockerd shows besides goes on as it
//! is. A reply that is not what it should be is not ours to edit.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::net::IpAddr;

use super::json::{self, Edit, Member, Span};
use super::runtime::RUNTIME;
use crate::model::endpoint::Requested;
use crate::model::name::{ContainerId, Mac};

/// How a container of ours looks to Docker's clients.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Appearance {
    pub(crate) addresses: Vec<IpAddr>,
    pub(crate) mac: Option<Mac>,
    pub(crate) ipv4_gateway: Option<IpAddr>,
    pub(crate) ipv6_gateway: Option<IpAddr>,
    pub(crate) requested: Requested,
    /// The runtime that does the work behind ours, if dockerd knows it: who makes the container anew from what he is shown asks for it again.
    pub(crate) runtime: Option<String>,
}

/// An endpoint as dockerd shows it where it shows none.
const BARE_ENDPOINT: &[u8] = br#"{"IPAMConfig":null,"Links":null,"Aliases":null,"NetworkID":"","EndpointID":"","Gateway":"","IPAddress":"","IPPrefixLen":0,"IPv6Gateway":"","GlobalIPv6Address":"","GlobalIPv6PrefixLen":0,"MacAddress":"","DriverOpts":null}"#;

/// The id in the reply to a create.
pub(crate) fn created_id(reply: &[u8]) -> Option<ContainerId> {
    let top = json::document(reply)?;
    id_of(reply, &json::members(reply, &top)?)
}

/// The ids in the reply to a prune of containers.
pub(crate) fn deleted_ids(reply: &[u8]) -> Vec<ContainerId> {
    let deleted = || {
        let top = json::document(reply)?;
        let members = json::members(reply, &top)?;
        json::elements(reply, &member(&members, "ContainersDeleted")?.value)
    };
    let ids = deleted().unwrap_or_default();
    ids.iter().filter_map(|id| json::string(reply, id)?.parse().ok()).collect()
}

fn id_of(bytes: &[u8], members: &[Member]) -> Option<ContainerId> {
    json::string(bytes, &member(members, "Id")?.value)?.parse().ok()
}

/// A member that dockerd wrote.
fn member<'a>(members: &'a [Member], key: &str) -> Option<&'a Member> {
    members.iter().find(|member| member.key == key)
}

/// The reply to a create with more warnings; `None` if there are none to add or the reply is not what it should be.
pub(crate) fn with_warnings(reply: &[u8], warnings: &[String]) -> Option<Vec<u8>> {
    if warnings.is_empty() {
        return None;
    }
    let top = json::document(reply)?;
    let members = json::members(reply, &top)?;
    let edit = match member(&members, "Warnings") {
        Some(list) if !json::is_null(reply, &list.value) => {
            let has_any = !json::elements(reply, &list.value)?.is_empty();
            let quoted = json::quote_all(warnings);
            let mut text = if has_any { vec![b','] } else { Vec::new() };
            text.extend_from_slice(&quoted[1..quoted.len() - 1]);
            let end = list.value.end - 1;
            (end..end, text)
        }
        _ => json::set_member(reply, &top, &members, "Warnings", json::quote_all(warnings)),
    };
    Some(json::splice(reply, vec![edit]))
}

/// The reply to an inspect with our address in it; `None` if the container is not ours. `at_the_top`: whether the version of the
/// API has the address of the default network at the top of `NetworkSettings` too, whoever writes it there.
pub(crate) fn shown_in_inspect(
    reply: &[u8],
    at_the_top: bool,
    appearance: impl Fn(&ContainerId) -> Option<Appearance>,
) -> Option<Vec<u8>> {
    let top = json::document(reply)?;
    Some(json::splice(reply, container_edits(reply, &top, at_the_top, &appearance)?))
}

/// The list of containers with our addresses in it; `None` if none of them is ours.
pub(crate) fn shown_in_list(reply: &[u8], appearance: impl Fn(&ContainerId) -> Option<Appearance>) -> Option<Vec<u8>> {
    let top = json::document(reply)?;
    let containers = json::elements(reply, &top)?;
    let edits: Vec<Edit> =
        containers.iter().filter_map(|span| container_edits(reply, span, false, &appearance)).flatten().collect();
    if edits.is_empty() { None } else { Some(json::splice(reply, edits)) }
}

/// The edits of one container's object, in an inspect or a list.
fn container_edits(
    reply: &[u8],
    span: &Span,
    at_the_top: bool,
    appearance: &impl Fn(&ContainerId) -> Option<Appearance>,
) -> Option<Vec<Edit>> {
    let members = json::members(reply, span)?;
    let id = id_of(reply, &members)?;
    let shown = appearance(&id)?;
    let settings_span = &member(&members, "NetworkSettings")?.value;
    let settings = json::members(reply, settings_span)?;
    let (mut edits, mut is_empty): (Vec<Edit>, _) = (Vec::new(), settings.is_empty());
    for (key, value) in address_members(&shown) {
        match member(&settings, key) {
            Some(there) => edits.push((there.value.clone(), value)),
            // Engines from 29 on leave it out where the container is not on the bridge.
            None if at_the_top => {
                edits.push(json::append_member(reply, settings_span, std::mem::take(&mut is_empty), key, &value));
            }
            None => {}
        }
    }
    if let Some(networks) = member(&settings, "Networks") {
        edits.push((networks.value.clone(), networks_text(reply, &networks.value, &shown, &id)));
    }
    let host_config = member(&members, "HostConfig").and_then(|host_config| json::members(reply, &host_config.value));
    if let (Some(name), Some(host_config)) = (&shown.runtime, host_config)
        && let Some(runtime) = member(&host_config, "Runtime")
        && json::string(reply, &runtime.value).as_deref() == Some(RUNTIME)
    {
        edits.push((runtime.value.clone(), json::quote(name)));
    }
    Some(edits)
}

/// The members that show an address, at the top of `NetworkSettings` and in each of its networks.
fn address_members(shown: &Appearance) -> Vec<(&'static str, Vec<u8>)> {
    let mut members = Vec::new();
    if let Some(address) = shown.addresses.iter().find(|address| address.is_ipv4()) {
        members.push(("IPAddress", json::quote(&address.to_string())));
        members.push(("IPPrefixLen", b"32".to_vec()));
        if let Some(gateway) = shown.ipv4_gateway {
            members.push(("Gateway", json::quote(&gateway.to_string())));
        }
    }
    if let Some(address) = shown.addresses.iter().find(|address| address.is_ipv6()) {
        members.push(("GlobalIPv6Address", json::quote(&address.to_string())));
        members.push(("GlobalIPv6PrefixLen", b"128".to_vec()));
        if let Some(gateway) = shown.ipv6_gateway {
            members.push(("IPv6Gateway", json::quote(&gateway.to_string())));
        }
    }
    if let Some(mac) = shown.mac {
        members.push(("MacAddress", json::quote(&mac.to_string())));
    }
    members
}

/// The text of `Networks`: one endpoint for each network that was asked for, `none` if none was, beside those that dockerd
/// really has the container in.
fn networks_text(reply: &[u8], old: &Span, shown: &Appearance, id: &ContainerId) -> Vec<u8> {
    let shown_by_docker = json::members(reply, old).unwrap_or_default();
    let base = match member(&shown_by_docker, "none") {
        Some(network) if reply.get(network.value.start) == Some(&b'{') => &reply[network.value.clone()],
        _ => BARE_ENDPOINT,
    };
    let none = BTreeMap::from([("none".to_owned(), Vec::new())]);
    let networks = if shown.requested.networks.is_empty() { &none } else { &shown.requested.networks };
    let mut all: BTreeMap<&str, Cow<'_, [u8]>> = networks
        .iter()
        .map(|(name, aliases)| (&**name, endpoint_text(base, name, aliases, shown, id).into()))
        .collect();
    let joined = shown_by_docker.iter().filter(|network| network.key != "none");
    all.extend(joined.map(|network| (&*network.key, Cow::from(&reply[network.value.clone()]))));
    let mut text = vec![b'{'];
    for (name, endpoint) in all {
        if text.len() > 1 {
            text.push(b',');
        }
        text.extend_from_slice(&json::quote(name));
        text.push(b':');
        text.extend_from_slice(&endpoint);
    }
    text.push(b'}');
    text
}

fn endpoint_text(base: &[u8], name: &str, aliases: &[String], shown: &Appearance, id: &ContainerId) -> Vec<u8> {
    let object = 0..base.len();
    let members = json::members(base, &object).unwrap_or_default();
    let mut aliases = aliases.to_vec();
    if !aliases.iter().any(|alias| alias == id.short()) {
        aliases.push(id.short().to_owned());
    }
    let mut fields = address_members(shown);
    fields.push(("Aliases", json::quote_all(&aliases)));
    if name != "none" {
        // The container is not in the network that it shows; but clients look there for the network that they asked for.
        let id = shown.requested.network_ids.get(name).map_or("", String::as_str);
        fields.push(("NetworkID", json::quote(id)));
        fields.push(("EndpointID", json::quote("")));
    }
    let mut present = !members.is_empty();
    let edits = fields.into_iter().map(|(key, value)| {
        if let Some(member) = member(&members, key) {
            (member.value.clone(), value)
        } else {
            let edit = json::append_member(base, &object, !present, key, &value);
            present = true;
            edit
        }
    });
    json::splice(base, edits.collect())
}

#[cfg(test)]
mod tests;
