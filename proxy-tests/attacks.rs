//! What a hostile container, neighbour or record tries, and what comes of it: nothing.
//!
//! "Nothing" is always shown beside its counterpart: the same packet without what is forged in it arrives, over the same
//! way and later, so that the forged one would have been seen by then.

mod beside;
mod errors;
mod frames;
mod host;
mod inside;
mod ipv6;
mod links;
mod neighbours;
mod packets;
mod records;
mod speakers;
mod spoofing;
mod strangers;

use serde_json::json;

use crate::lab::Lab;

/// What a container is run with that has both families.
const DUAL: &str = "-e CALICO_IP=auto,ipv6";

/// A lab whose nodes give both families, with the profile `open`.
fn dual(hosts: u8) -> Lab {
    let lab = Lab::hosts(hosts);
    allow_all(&lab, "open");
    for host in lab.all_hosts() {
        host.spawn_node(&["--ip6", &host.ip6.to_string()]);
    }
    for host in lab.all_hosts() {
        host.await_ready();
    }
    lab
}

/// A profile that allows all, both ways, so that only containment is in the way.
fn allow_all(lab: &Lab, profile: &str) {
    let all = json!([{ "action": "allow" }]);
    let rules = json!({ "id": profile, "inbound_rules": all, "outbound_rules": all });
    lab.etcd().put(&format!("/calico/v1/policy/profile/{profile}/rules"), &rules.to_string());
    lab.etcd().put(&format!("/calico/v1/policy/profile/{profile}/tags"), &json!([profile]).to_string());
}
