//! Account: whether a datastore that has gone back to an older state says what a host holds, no less and no more.
//!
//! As long as it does not, somebody else could be given an address that a container here has, or one that a container here
//! which is gone has in the datastore still, and a running one elsewhere waits for. So a host does not say that the datastore
//! has what it holds before this comes to nothing, or for as long as it takes to come to nothing where it can.

use std::collections::BTreeSet;

use crate::model::endpoint::Endpoint;
use crate::model::key::EndpointKey;
use crate::model::name::{ContainerId, HostName, Orchestrator};
use crate::model::snapshot::Snapshot;

/// Something in which a host and a view differ, in words; `None`: there is nothing. `kept`: the endpoints that this host
/// keeps, of the containers `reserved`.
pub(crate) fn outstanding<'k>(
    view: &Snapshot,
    host: &HostName,
    reserved: &[ContainerId],
    mut kept: impl Iterator<Item = (&'k EndpointKey, &'k Endpoint)>,
) -> Option<String> {
    if let Some((key, endpoint)) = kept.find(|(key, _)| !view.endpoints.contains_key(*key)) {
        let container = key.workload.short();
        let lost = endpoint.addresses.iter().find(|address| view.pool_of(**address).is_none());
        let because = lost.map(|address| format!(": its address {address} is in no pool")).unwrap_or_default();
        return Some(format!("container {container} is not recorded again yet{because}"));
    }
    let reserved: BTreeSet<&str> = reserved.iter().map(ContainerId::as_str).collect();
    let docker = Orchestrator::docker();
    let mut own = view.endpoints_of(host).map(|(key, _)| key).filter(|key| key.orchestrator == docker);
    let gone = own.find(|key| !reserved.contains(key.workload.as_str()))?;
    Some(format!("container {} is gone, and its addresses are not free yet", gone.workload.short()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::snapshot::tests::from_json;

    const RECORD: &str =
        r#"{"state": "inactive", "name": "caliaaaa1111aaa", "profile_ids": [], "ipv4_nets": ["10.0.0.1/32"]}"#;
    const POOL: &str = r#""/calico/v1/ipam/v4/pool/10.0.0.0-8": {"cidr": "10.0.0.0/8"}"#;

    fn told(view: &str, reserves: bool) -> Option<String> {
        let view = from_json(&format!("{{{view}}}"));
        let key = EndpointKey {
            host: "h1".parse().unwrap(),
            orchestrator: Orchestrator::docker(),
            workload: "c".repeat(64).parse().unwrap(),
            endpoint: "aaaa1111aaaa1111aaaa1111aaaa1111".parse().unwrap(),
        };
        let endpoint: Endpoint = serde_json::from_str(RECORD).unwrap();
        let reserved: Vec<ContainerId> = reserves.then(|| "c".repeat(64).parse().unwrap()).into_iter().collect();
        let kept = [(&key, &endpoint)];
        let kept = kept.into_iter().filter(|_| reserves);
        outstanding(&view, &key.host, &reserved, kept)
    }

    /// An address that was another host's destroyed container's in the backup was given to somebody else than to who ran with it.
    #[test]
    fn a_container_that_cannot_be_recorded_again_is_outstanding_and_so_is_a_record_of_one_that_is_gone() {
        let path =
            format!("/calico/v1/host/h1/workload/docker/{}/endpoint/aaaa1111aaaa1111aaaa1111aaaa1111", "c".repeat(64));
        let recorded = format!(r#"{POOL}, "{path}": {RECORD}"#);
        assert_eq!(told(&recorded, true), None);
        let others = recorded.replace("/h1/", "/h2/");
        assert_eq!(told(&others, false), None, "another host's to free");
        assert_eq!(told(&recorded.replace("docker", "rkt"), false), None, "none of Docker's");

        for (view, reserves, why) in [
            ("", true, "container cccccccccccc is not recorded again yet: its address 10.0.0.1 is in no pool"),
            (POOL, true, "container cccccccccccc is not recorded again yet"),
            (&*recorded, false, "container cccccccccccc is gone, and its addresses are not free yet"),
        ] {
            assert_eq!(told(view, reserves).as_deref(), Some(why));
        }
    }
}
