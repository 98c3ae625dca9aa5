//! `calicoctl node`: the hosts of the cluster, and how one that is no more is taken out of it.

use std::collections::{BTreeMap, BTreeSet};

use clap::Subcommand;
use serde_json::{Value, json};

use super::datastore::{Datastore, Edit};
use super::place::Place;
use super::table::Table;
use super::{Answer, Failure};
use crate::edge::control::Control;
use crate::edge::etcd::{When, Write};
use crate::model::claim::Claim;
use crate::model::control::{STATUS, Status};
use crate::model::fault::Fault;
use crate::model::key::{ADDRESSES, AWAITED, BGP, BgpScope, EndpointKey, HOSTS, Key, records_of};
use crate::model::name::HostName;
use crate::model::pool::Family;
use crate::model::report::HostReport;
use crate::model::snapshot::{Record, Snapshot};

/// How many records one transaction takes away: below etcd's limit of 128, with room for those of one endpoint more.
const MOST: usize = 64;

/// How many containers a refusal names.
const NAMED: usize = 5;

#[derive(Debug, Subcommand)]
pub(super) enum Node {
    /// List the nodes, and when each has last reported itself
    Show,
    /// Take a host that is no more out of the datastore, so that nobody waits for it
    Remove {
        /// The host [default: this one]
        #[arg(long, value_name = "NAME")]
        hostname: Option<HostName>,
        /// Its containers are gone too: free their addresses
        #[arg(long)]
        remove_endpoints: bool,
    },
}

pub(super) async fn run(command: Node, place: &Place<'_>) -> Result<Answer, Failure> {
    match command {
        Node::Show => {
            let datastore = Datastore::connect(place).await?;
            let snapshot = datastore.load(&[HOSTS, AWAITED, BGP]).await?;
            let mut reports = BTreeMap::new();
            for host in hosts(&snapshot) {
                let report = last_report(&datastore, &host).await?;
                reports.insert(host, report);
            }
            Ok(show(&snapshot, &reports))
        }
        Node::Remove { hostname, remove_endpoints } => {
            let host = hostname.map_or_else(|| place.host(), Ok)?;
            // Where reports are switched off the datastore does not tell.
            let here: Result<Status, _> = Control::in_run_dir(&place.run_dir()).get(STATUS).await;
            if here.is_ok_and(|here| here.host == host) {
                return Err(Fault::Refusal(format!("remove node {host}: it runs on this host; stop it first")).into());
            }
            let datastore = Datastore::connect(place).await?;
            Ok(remove(&datastore, &host, remove_endpoints).await?)
        }
    }
}

/// What a node has last said of itself.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct LastReport {
    /// When; `None`: never, or not in words that are understood.
    time: Option<String>,
    /// Whether the report still holds.
    pub(super) holds: bool,
}

pub(super) async fn last_report(datastore: &Datastore, host: &HostName) -> Result<LastReport, Fault> {
    let holds = datastore.get(&Key::HostStatus(host.clone())).await?.is_some();
    let last = datastore.get(&Key::HostLastStatus(host.clone())).await?;
    let report = last.and_then(|value| serde_json::from_slice::<HostReport>(&value).ok());
    Ok(LastReport { time: report.map(|report| report.time), holds })
}

/// The hosts that a view knows.
pub(super) fn hosts(snapshot: &Snapshot) -> BTreeSet<HostName> {
    let bgp = snapshot.bgp_ips.keys().map(|(host, _)| host);
    snapshot.host_ips.keys().chain(bgp).chain(snapshot.awaited.keys()).cloned().collect()
}

fn show(snapshot: &Snapshot, reports: &BTreeMap<HostName, LastReport>) -> Answer {
    let mut table =
        Table::new(&["Hostname", "Bird IPv4", "Bird IPv6", "AS Num", "BGP Peers v4", "BGP Peers v6", "Last Report"]);
    let mut json = Vec::new();
    for (host, report) in reports {
        let address = |family| {
            let record = snapshot.bgp_ips.get(&(host.clone(), family)).and_then(Record::readable);
            record.copied().flatten().map(|address| address.to_string())
        };
        let scope = BgpScope::Host(host.clone());
        let as_number = snapshot.as_of(host).0;
        let own_as = snapshot.bgp_as.contains_key(&scope);
        let peers = |family| -> Vec<String> {
            let own = snapshot.bgp_peers.iter().filter(|((of, ip), _)| *of == scope && Family::of(*ip) == family);
            own.map(|((_, ip), record)| match &record.value {
                Ok(peer) => format!("{ip} as {}", peer.as_num.0),
                Err(_) => format!("{ip}, unreadable"),
            })
            .collect()
        };
        let [v4, v6] = [Family::V4, Family::V6].map(address);
        let [peers4, peers6] = [Family::V4, Family::V6].map(peers);
        let said = report.time.clone().unwrap_or_else(|| "never".to_owned());
        table.row([
            host.to_string(),
            v4.clone().unwrap_or_default(),
            v6.clone().unwrap_or_default(),
            if own_as { as_number.to_string() } else { format!("{as_number} (inherited)") },
            peers4.join("\n"),
            peers6.join("\n"),
            if report.holds { said } else { format!("{said} (silent since)") },
        ]);
        json.push(json!({
            "host": host, "ipv4": v4, "ipv6": v6, "as_number": as_number, "inherits_as": !own_as,
            "peers_v4": peers4, "peers_v6": peers6, "last_report": report.time, "reports": report.holds,
            "awaited": snapshot.awaited.contains_key(host),
        }));
    }
    Answer { text: table.render(), json: Value::Array(json) }
}

/// Takes a host out: first its endpoints, each together with its addresses, then the rest. A node that reports itself there
/// meanwhile ends it.
async fn remove(datastore: &Datastore, host: &HostName, remove_endpoints: bool) -> Result<Answer, Fault> {
    let doing = format!("remove node {host}");
    let [records, bgp, reports] = records_of(host);
    let report = last_report(datastore, host).await?;
    if report.holds {
        return Err(Fault::Refusal(format!(
            "{doing}: a node runs there, which reported itself at {}; stop it first, and wait until its report has run out \
             (ReportingTTLSecs, 90 s)",
            report.time.unwrap_or_default()
        )));
    }
    let snapshot = datastore.load(&[&records, &bgp, AWAITED, ADDRESSES]).await?;
    let held = held(&snapshot, host);
    let is_known = report.time.is_some() || hosts(&snapshot).contains(host) || !held.is_empty();
    if !is_known {
        return Err(Fault::Refusal(format!(
            "{doing}: there is no such node; calicoctl node show lists those that are"
        )));
    }
    if !remove_endpoints && !held.is_empty() {
        return Err(Fault::Refusal(in_use(&doing, &held)));
    }
    let silent = When::Absent(Key::HostStatus(host.clone()));
    let (endpoints, addresses) = (held.len(), held.iter().map(|one| one.claims.len()).sum::<usize>());
    let meanwhile = || {
        Fault::Conflict(format!(
            "{doing}: its records are changed meanwhile, perhaps by a node that runs there; try again"
        ))
    };
    for (mut when, writes) in removals(&held) {
        when.push(silent.clone());
        if !datastore.write(&doing, &Edit { when, writes, answer: () }).await? {
            return Err(meanwhile());
        }
    }
    let spoken =
        Edit { when: vec![silent.clone()], writes: vec![Write::Delete(Key::Awaited(host.clone()))], answer: () };
    let is_out = datastore.delete_below(&doing, &[silent], &[records, bgp, reports]).await?;
    if !is_out || !datastore.write(&doing, &spoken).await? {
        return Err(meanwhile());
    }
    Ok(Answer {
        text: "Node configuration removed".to_owned(),
        json: json!({ "host": host, "endpoints": endpoints, "addresses": addresses }),
    })
}

/// What one endpoint of a host has.
#[derive(Debug, Default, PartialEq, Eq)]
struct Held {
    /// Its record, if there is one.
    endpoint: Option<EndpointKey>,
    /// The claims of its addresses, with their revisions.
    claims: Vec<(Key, i64)>,
    /// Who it is, in words.
    called: String,
}

/// What a host's containers have, one after another.
fn held(snapshot: &Snapshot, host: &HostName) -> Vec<Held> {
    let mut all: BTreeMap<String, Held> = BTreeMap::new();
    for key in snapshot.endpoints.keys().filter(|key| key.host == *host) {
        let one = all.entry(key.endpoint.to_string()).or_default();
        one.called = format!("container {}", key.workload.short());
        one.endpoint = Some(key.clone());
    }
    for (key, record) in &snapshot.claims {
        let Some(owner) = record.readable().map(|claim: &Claim| &claim.owner).filter(|owner| owner.host == *host)
        else {
            continue;
        };
        let one = all.entry(owner.endpoint.to_string()).or_default();
        one.called = owner.called();
        one.claims.push((Key::Assignment(key.clone()), record.revision));
    }
    all.into_values().collect()
}

/// The transactions that take these away, each endpoint within one of them: nobody sees it without its addresses.
fn removals(held: &[Held]) -> Vec<(Vec<When>, Vec<Write>)> {
    let mut all = Vec::new();
    let (mut when, mut writes) = (Vec::new(), Vec::new());
    for one in held {
        writes.extend(one.endpoint.iter().map(|key| Write::Delete(Key::Endpoint(key.clone()))));
        for (key, revision) in &one.claims {
            when.push(When::At(key.clone(), *revision));
            writes.push(Write::Delete(key.clone()));
        }
        if writes.len() >= MOST {
            all.push((std::mem::take(&mut when), std::mem::take(&mut writes)));
        }
    }
    if !writes.is_empty() {
        all.push((when, writes));
    }
    all
}

fn in_use(doing: &str, held: &[Held]) -> String {
    let mut lines = vec![format!("{doing}: containers of it are recorded:")];
    lines.extend(held.iter().take(NAMED).map(|one| {
        let addresses: Vec<String> = one
            .claims
            .iter()
            .filter_map(|(key, _)| if let Key::Assignment(key) = key { Some(key.address.to_string()) } else { None })
            .collect();
        format!(
            "  {} with {}",
            one.called,
            if addresses.is_empty() { "no address".to_owned() } else { addresses.join(", ") }
        )
    }));
    if held.len() > NAMED {
        lines.push(format!("  and {} more", held.len() - NAMED));
    }
    lines.push("If the host is no more, '--remove-endpoints' frees their addresses too; a container that comes back after that has none.".to_owned());
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::snapshot::tests::from_json;

    fn cluster() -> Snapshot {
        let claim = |host: &str, digit: &str| {
            json!({"v": 1, "state": "bound", "request": "", "successor": null, "owner": {
                "host": host, "orchestrator": "docker", "workload": digit.repeat(64), "endpoint": digit.repeat(32),
                "name": "web", "since": "2026-01-31T12:00:00Z"}})
        };
        let endpoint = json!({"state": "active", "name": "cali1", "profile_ids": [], "ipv4_nets": []});
        let [id1, id2] = ["1", "2"].map(|digit| (digit.repeat(64), digit.repeat(32)));
        let text = json!({
            "/calico/bgp/v1/global/as_num": "64511",
            "/calico/bgp/v1/host/h1/ip_addr_v4": "172.25.0.1",
            "/calico/bgp/v1/host/h1/as_num": "65000",
            "/calico/bgp/v1/host/h1/peer_v4/172.25.0.9": {"ip": "172.25.0.9", "as_num": "64512"},
            "/calico/bgp/v1/host/h2/ip_addr_v4": "172.25.0.2",
            "/calico/v1/host/h2/bird_ip": "172.25.0.2",
            "/calico/v1/awaited/h2": {},
            (format!("/calico/v1/host/h1/workload/docker/{}/endpoint/{}", id1.0, id1.1)): endpoint,
            (format!("/calico/v1/host/h2/workload/docker/{}/endpoint/{}", id2.0, id2.1)): endpoint,
            "/calico/v1/ipam/v4/assignment/10.0.0.0-8/10.0.0.1": claim("h1", "1"),
            "/calico/v1/ipam/v4/assignment/10.0.0.0-8/10.0.0.2": claim("h2", "2"),
            "/calico/v1/ipam/v4/assignment/10.0.0.0-8/10.0.0.3": claim("h2", "2"),
            "/calico/v1/ipam/v4/assignment/10.0.0.0-8/10.0.0.4": claim("h2", "3"),
        });
        from_json(&text.to_string())
    }

    #[test]
    fn of_a_host_that_goes_all_endpoints_go_each_with_its_addresses_and_of_others_nothing() {
        let (snapshot, host) = (cluster(), "h2".parse().unwrap());
        let held = held(&snapshot, &host);
        assert_eq!(held.iter().map(|one| one.claims.len()).collect::<Vec<_>>(), [2, 1]);
        let all = removals(&held);
        let [(when, writes)] = all.as_slice() else { panic!("{all:?}") };
        let paths: Vec<String> = writes.iter().map(|write| write.key().path()).collect();
        assert_eq!((when.len(), paths.len()), (3, 4), "{paths:?}");
        assert!(paths[0].starts_with("/calico/v1/host/h2/workload/"), "{paths:?}");
        assert!(paths[1..].iter().zip(["2", "3", "4"]).all(|(path, end)| path.ends_with(&format!("/10.0.0.{end}"))));
        let told = in_use("remove node h2", &held);
        for word in ["10.0.0.2, 10.0.0.3", "web (222222222222)", "--remove-endpoints"] {
            assert!(told.contains(word), "{told}");
        }
        let many: Vec<Held> = (0..200).flat_map(|_| one_of_each(&host)).collect();
        assert!(removals(&many).iter().all(|(when, writes)| when.len().max(writes.len()) < 128));
    }

    fn one_of_each(host: &HostName) -> Vec<Held> {
        held(&cluster(), host)
    }

    #[test]
    fn nodes_are_listed_with_what_is_recorded_of_them_and_when_they_reported() {
        let snapshot = cluster();
        let report = |time: Option<&str>, holds| LastReport { time: time.map(str::to_owned), holds };
        let reports = hosts(&snapshot)
            .into_iter()
            .zip([report(Some("2026-01-31T12:00:00Z"), true), report(None, false)])
            .collect();
        let answer = show(&snapshot, &reports);
        assert_eq!(
            answer.text,
            "\
+----------+------------+-----------+-------------------+---------------------+--------------+----------------------+
| Hostname | Bird IPv4  | Bird IPv6 |       AS Num      |     BGP Peers v4    | BGP Peers v6 |     Last Report      |
+----------+------------+-----------+-------------------+---------------------+--------------+----------------------+
|    h1    | 172.25.0.1 |           |       65000       | 172.25.0.9 as 64512 |              | 2026-01-31T12:00:00Z |
|    h2    | 172.25.0.2 |           | 64511 (inherited) |                     |              | never (silent since) |
+----------+------------+-----------+-------------------+---------------------+--------------+----------------------+"
        );
        assert_eq!(answer.json[1]["awaited"], true);
    }
}
