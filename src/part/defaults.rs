//! Defaults: what this host and a new cluster need to have recorded before anything works.
//!
//! Everything is written only where it is absent; what an operator set stays. What belongs to this host (its addresses,
//! its AS) is brought up to date.

use std::net::IpAddr;

use ipnet::IpNet;

use crate::edge::etcd::{When, Write, to_json};
use crate::model::bgp::{DEFAULT_AS, Mesh};
use crate::model::fault::Fault;
use crate::model::host::Host;
use crate::model::key::{self, BgpScope, Key};
use crate::model::pool::{Family, Pool};
use crate::model::snapshot::Snapshot;

/// The pools of a new cluster, as the seeds have them.
const DEFAULT_POOLS: [(&str, Family); 2] = [("192.168.0.0/16", Family::V4), ("fd80:24e2:f998:72d6::/64", Family::V6)];

/// Whether another host has this host's address.
///
/// # Errors
/// `Conflict` if one does: two hosts with one address cannot both be reached.
pub(super) fn check(host: &Host, snapshot: &Snapshot) -> Result<(), Fault> {
    let own = IpAddr::V4(host.ip);
    let ipv4 = snapshot.host_ips.iter().filter(|(_, record)| record.readable() == Some(&own));
    let ipv4 = ipv4.map(|(name, _)| (name, own, "--ip", Key::HostIp(name.clone())));
    let own6 = host.ip6.map(IpAddr::V6);
    let ipv6 = snapshot.bgp_ips.iter().filter_map(|((name, family), record)| {
        let ip6 = own6.filter(|_| record.readable() == Some(&own6))?;
        Some((name, ip6, "--ip6", Key::BgpHostIp(name.clone(), *family)))
    });
    match ipv4.chain(ipv6).find(|(name, ..)| **name != host.name) {
        Some((other, address, flag, key)) => Err(Fault::Conflict(format!(
            "record host {} with address {address}: host {other} has it; give this host another with {flag}, or remove the key {} if that host is no more",
            host.name,
            key.path()
        ))),
        None => Ok(()),
    }
}

type Transaction = (Vec<When>, Vec<Write>);

/// What is to be written, each in a transaction of its own, in order.
pub(super) fn wanted(host: &Host, snapshot: &Snapshot) -> Result<Vec<Transaction>, Fault> {
    let mut all = default_pools(host, snapshot)?;
    let mut absent =
        |key: Key, value: Vec<u8>| all.push((vec![When::Absent(key.clone())], vec![Write::Put(key, value)]));
    absent(Key::BgpAs(BgpScope::Global), DEFAULT_AS.to_string().into_bytes());
    absent(Key::BgpMesh, to_json(&Mesh { enabled: true })?);
    absent(Key::Config("InterfacePrefix".to_owned()), b"cali".to_vec());
    let put = |key: Key, value: String| (Vec::new(), vec![Write::Put(key, value.into_bytes())]);
    let name = || host.name.clone();
    all.push(put(Key::HostIp(name()), host.ip.to_string()));
    all.push(put(Key::BgpHostIp(name(), Family::V4), host.ip.to_string()));
    all.push(put(Key::BgpHostIp(name(), Family::V6), host.ip6.map(|ip| ip.to_string()).unwrap_or_default()));
    let own_as = Key::BgpAs(BgpScope::Host(name()));
    all.push(match host.as_number {
        Some(number) => put(own_as, number.to_string()),
        None => (Vec::new(), vec![Write::Delete(own_as)]),
    });
    // Last: who sees it may rely on the rest.
    all.push((vec![When::Absent(Key::Ready)], vec![Write::Put(Key::Ready, b"true".to_vec())]));
    Ok(all)
}

/// A pool for each family that this host gives addresses of and that has none, unless somebody makes one meanwhile.
fn default_pools(host: &Host, snapshot: &Snapshot) -> Result<Vec<Transaction>, Fault> {
    let mut all = Vec::new();
    for (cidr, family) in DEFAULT_POOLS.into_iter().filter(|(_, family)| *family == Family::V4 || host.gives_ipv6) {
        let cidr: IpNet =
            cidr.parse().map_err(|error| Fault::World(format!("read the default pool {cidr}: {error}")))?;
        // One that cannot be read is a pool all the same: addresses of it are held.
        let has_one = snapshot.pools.keys().any(|net| Family::of_net(*net) == family);
        // So are those of one that was taken away by force: under this pool's name nobody would know.
        if has_one || snapshot.claims_elsewhere(cidr).next().is_some() {
            continue;
        }
        let pool = Key::Pool(cidr);
        let quiet = key::POOLS.iter().filter(|path| pool.path().starts_with(**path));
        let quiet = quiet.map(|path| When::Quiet((*path).to_owned(), snapshot.revision));
        let when = quiet.chain([When::Absent(pool.clone())]).collect();
        all.push((when, vec![Write::Put(pool, to_json(&Pool::new(cidr))?)]));
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::host::tests::h1;
    use crate::model::snapshot::tests::from_json;

    fn host() -> Host {
        Host { ip: "10.0.0.1".parse().unwrap(), ..h1() }
    }

    #[test]
    fn a_pool_of_an_operator_replaces_the_default_one_of_its_family() {
        let snapshot = from_json(r#"{"/calico/v1/ipam/v4/pool/10.0.0.0-8": {"cidr": "10.0.0.0/8"}}"#);
        let written = format!("{:?}", wanted(&host(), &snapshot).unwrap());
        assert!(!written.contains("192.168.0.0"), "{written}");
        assert!(written.contains("fd80:24e2:f998:72d6::"), "{written}");
        let without = format!("{:?}", wanted(&Host { gives_ipv6: false, ..host() }, &snapshot).unwrap());
        assert!(!without.contains("fd80:24e2:f998:72d6::"), "{without}");
    }

    /// The default one overlapped it at the next start of any node, and addresses that were held were given out again.
    #[test]
    fn a_pool_that_cannot_be_read_is_no_reason_for_the_default_one() {
        let snapshot = from_json(r#"{"/calico/v1/ipam/v4/pool/192.168.5.0-24": {"masquerade": "yes"}}"#);
        assert!(snapshot.pools.values().all(|pool| pool.readable().is_none()) && snapshot.pools.len() == 1);
        let written = format!("{:?}", wanted(&host(), &snapshot).unwrap());
        assert!(!written.contains("192.168.0.0"), "{written}");
    }

    /// Under the default pool's name an address that a container of the other one held was free, and given out again.
    #[test]
    fn a_pool_that_was_taken_away_by_force_is_no_reason_for_a_default_one_around_its_addresses() {
        let claim = r#"{"/calico/v1/ipam/v4/assignment/POOL/ADDRESS": ""}"#;
        let written = |pool: &str, address: &str| {
            let snapshot = from_json(&claim.replace("POOL", pool).replace("ADDRESS", address));
            assert_eq!(snapshot.claims.len(), 1);
            format!("{:?}", wanted(&host(), &snapshot).unwrap())
        };
        assert!(!written("192.168.7.0-24", "192.168.7.1").contains("192.168.0.0"));
        assert!(!written("192.0.0.0-8", "192.168.7.1").contains("192.168.0.0"));
        assert!(written("192.0.0.0-8", "192.1.7.1").contains("192.168.0.0"));
        assert!(written("10.0.0.0-8", "10.168.7.1").contains("192.168.0.0"));
    }

    #[test]
    fn another_host_with_this_address_is_a_conflict() {
        let snapshot = from_json(r#"{"/calico/v1/host/h2/bird_ip": "10.0.0.1"}"#);
        let Err(Fault::Conflict(text)) = check(&host(), &snapshot) else { panic!("accepted") };
        assert!(text.contains("h2"), "{text}");
        let six =
            from_json(r#"{"/calico/bgp/v1/host/h2/ip_addr_v6": "fd00::1", "/calico/bgp/v1/host/h3/ip_addr_v6": ""}"#);
        let dual = Host { ip6: Some("fd00::1".parse().unwrap()), ..host() };
        let Err(Fault::Conflict(text)) = check(&dual, &six) else { panic!("accepted") };
        assert!(text.contains("h2") && text.contains("--ip6"), "{text}");
        assert_eq!(check(&host(), &six), Ok(()));
        assert_eq!(check(&host(), &from_json(r#"{"/calico/v1/host/h1/bird_ip": "10.0.0.1"}"#)), Ok(()));
    }
}
