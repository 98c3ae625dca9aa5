//! What holds at rest, whatever has happened: dockerd's containers, the datastore and the kernel tell the same story.
//!
//! One function looks at everything and lists what is wrong. It takes its facts from dockerd, etcd and the kernel, never from the
//! software under test. What it holds them to:
//!
//! 1. A running container of ours has the one interface with its addresses, its other end on the host, an active record and a route.
//! 2. A stopped one has its claim, an inactive record, what is kept on disk, and its policy; no interface, no route.
//! 3. What is no container has no claim, record, interface, route, set member, chain or file.
//! 4. No address is held twice in the cluster.
//! 5. A container has the same address, MAC and endpoint id for its whole life.
//! 6. A container that never asked for us has the interfaces that dockerd gave it and no other.
//! 7. Its first instruction sees all that: `first_instruction.rs`.
//! 8. Of us a container shows to dockerd its runtime alone.
//! 9. Who was told a success has what it was told: `promised`.
//! 10. Nothing is left when all containers are removed: `remove_everything`.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use serde_json::Value;

use super::Lab;
use super::command::Run;
use super::etcd::Entry;
use super::host::Host;
use super::traces::NOTE;
use super::wait::wait_until_right;

/// What a container keeps for its whole life.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Identity {
    endpoint: String,
    mac: String,
    addresses: BTreeSet<String>,
}

/// Whether claims of creates that never ended may still be there: they go with their node's lease.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Pending {
    Tolerated,
    Wrong,
}

struct Record {
    host: String,
    container: String,
    endpoint: String,
    value: Value,
}

struct Claim {
    key: String,
    pool: String,
    address: String,
    entry: Entry,
}

/// The datastore, taken apart.
struct Stored {
    records: Vec<Record>,
    claims: Vec<Claim>,
    /// CIDRs.
    pools: BTreeSet<String>,
    wrong: Vec<String>,
}

impl Record {
    fn addresses(&self) -> BTreeSet<String> {
        let nets = ["ipv4_nets", "ipv6_nets"].into_iter().filter_map(|nets| self.value[nets].as_array()).flatten();
        nets.filter_map(Value::as_str).map(|net| net.split('/').next().unwrap().to_owned()).collect()
    }

    fn has_ipv6(&self) -> bool {
        self.addresses().iter().any(|address| address.contains(':'))
    }

    fn has_ipv4(&self) -> bool {
        self.addresses().iter().any(|address| address.contains('.'))
    }

    fn text(&self, key: &str) -> String {
        self.value[key].as_str().unwrap_or_default().to_owned()
    }

    /// What its interface is called inside.
    fn interface(&self) -> &str {
        self.value["container:if_name"].as_str().unwrap_or("eth1")
    }

    /// The addresses that it had before they passed over to another container.
    fn handed_over(&self) -> BTreeSet<String> {
        let addresses = self.value["handed_over"]["addresses"].as_array();
        addresses.into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect()
    }

    fn identity(&self) -> Identity {
        let addresses = self.addresses().union(&self.handed_over()).cloned().collect();
        Identity { endpoint: self.endpoint.clone(), mac: self.text("mac"), addresses }
    }

    fn is_of(&self, owner: &Value) -> bool {
        owner["host"] == self.host.as_str()
            && owner["workload"] == self.container.as_str()
            && owner["endpoint"] == self.endpoint.as_str()
    }
}

fn take_apart(entries: BTreeMap<String, Entry>) -> Stored {
    let mut stored = Stored { records: Vec::new(), claims: Vec::new(), pools: BTreeSet::new(), wrong: Vec::new() };
    for (key, entry) in entries {
        let parts: Vec<&str> = key.trim_start_matches("/calico/v1/").split('/').collect();
        match parts.as_slice() {
            ["host", host, "workload", "docker", container, "endpoint", endpoint] => {
                match serde_json::from_str(&entry.value) {
                    Ok(value) => stored.records.push(Record {
                        host: (*host).to_owned(),
                        container: (*container).to_owned(),
                        endpoint: (*endpoint).to_owned(),
                        value,
                    }),
                    Err(error) => stored.wrong.push(format!("{key} is no JSON: {error}")),
                }
            }
            ["ipam", "v4" | "v6", "assignment", pool, address] => stored.claims.push(Claim {
                pool: pool.replacen('-', "/", 1),
                address: (*address).to_owned(),
                entry,
                key: key.clone(),
            }),
            ["ipam", "v4" | "v6", "pool", pool] => {
                stored.pools.insert(pool.replacen('-', "/", 1));
            }
            _ => {}
        }
    }
    stored
}

impl Lab {
    /// Waits until everything is consistent, and ends the test if it does not become so.
    #[track_caller]
    pub(crate) fn assert_consistent(&self) {
        wait_until_right("consistent", Duration::from_secs(15), || self.violations(Pending::Wrong));
    }

    /// After a node was killed: the same, but for claims that wait for their lease to end.
    #[track_caller]
    pub(crate) fn assert_consistent_but_for_pending_claims(&self) {
        wait_until_right("consistent", Duration::from_secs(15), || self.violations(Pending::Tolerated));
    }

    /// Waits until it is consistent to the last claim: as long as leases last, and as long as a claim waits for the container
    /// of a create that dockerd did not live to answer.
    #[track_caller]
    pub(crate) fn assert_consistent_once_leases_ended(&self) {
        wait_until_right("consistent", NOTE, || self.violations(Pending::Wrong));
    }

    /// Removes every container through its node; after that nothing of them is left anywhere.
    #[track_caller]
    pub(crate) fn remove_everything(&self) {
        for host in self.all_hosts() {
            let ids = host.container_ids();
            if !ids.is_empty() {
                let mut args = vec!["rm", "-f"];
                args.extend(ids.iter().map(String::as_str));
                host.docker_run(&args).run().ok();
            }
        }
        self.assert_consistent();
        for host in self.all_hosts() {
            assert_eq!(host.workload_keys(), [""; 0], "{}", host.name);
            assert!(host.cali_links().is_empty(), "{}: {:?}", host.name, host.cali_links());
            assert_eq!(own_routes(host), BTreeSet::new(), "{}", host.name);
            assert_eq!(dispatched(&host.rules()), BTreeSet::new(), "{}", host.name);
            assert_eq!(dispatched(&host.rules6()), BTreeSet::new(), "{}", host.name);
        }
        for family in ["v4", "v6"] {
            assert_eq!(self.host(1).etcd().keys(&format!("/calico/v1/ipam/{family}/assignment/")), [""; 0]);
        }
    }

    /// All that is wrong now.
    pub(crate) fn violations(&self, pending: Pending) -> Vec<String> {
        let stored = take_apart(self.host(1).etcd().entries("/calico/v1/"));
        let mut wrong = stored.wrong.clone();
        wrong.extend(claims_and_records_agree(&stored, pending));
        for host in self.all_hosts() {
            let found = host_violations(host, &stored);
            wrong.extend(found.into_iter().map(|text| format!("{}: {text}", host.name)));
        }
        wrong
    }
}

/// Each address has one holder, each holder its claim, each claim its holder, and who waits for it is dark.
fn claims_and_records_agree(stored: &Stored, pending: Pending) -> Vec<String> {
    let mut wrong = Vec::new();
    let mut recorded: BTreeMap<String, Vec<&Record>> = BTreeMap::new();
    for record in &stored.records {
        for address in record.addresses() {
            recorded.entry(address).or_default().push(record);
        }
    }
    let mut claimed = BTreeSet::new();
    for claim in &stored.claims {
        let Ok(value) = serde_json::from_str::<Value>(&claim.entry.value) else {
            wrong.push(format!("{} is no JSON: {:?}", claim.key, claim.entry.value));
            continue;
        };
        if !stored.pools.contains(&claim.pool) {
            wrong.push(format!("{}: there is no such pool", claim.key));
        }
        if !claimed.insert(claim.address.clone()) {
            wrong.push(format!("{} is claimed in two pools", claim.address));
        }
        match value["state"].as_str() {
            Some("pending") if !claim.entry.leased => wrong.push(format!("{} is pending without a lease", claim.key)),
            Some("pending") if pending == Pending::Wrong => wrong.push(format!("{} is still pending", claim.key)),
            Some("pending") => {}
            Some("bound") => {
                if claim.entry.leased {
                    wrong.push(format!("{} is bound and would go with a lease", claim.key));
                }
                let (owner, next) = (&value["owner"], &value["successor"]["owner"]);
                let records = recorded.get(&claim.address).cloned().unwrap_or_default();
                if !records.iter().any(|record| record.is_of(owner)) {
                    wrong.push(format!("{} is bound to {owner}, which has no such record", claim.key));
                }
                let waits = records.iter().filter(|record| record.is_of(next));
                if waits.clone().any(|record| record.text("state") != "inactive") {
                    wrong.push(format!("{next} waits for {} and is not dark", claim.key));
                }
                if !next.is_null() && next["host"] != owner["host"] {
                    wrong.push(format!("{} is to pass over to another host, {next}", claim.key));
                }
                if next["workload"].is_string() && waits.count() == 0 {
                    wrong.push(format!("{} is to pass over to {next}, which has no such record", claim.key));
                }
                if !next.is_null() && next["workload"].is_null() && pending == Pending::Wrong {
                    wrong.push(format!("{} is still awaited by a create", claim.key));
                }
                for record in records.iter().filter(|record| !record.is_of(owner) && !record.is_of(next)) {
                    wrong.push(format!("{} is recorded for {} too", claim.key, record.container));
                }
            }
            state => wrong.push(format!("{} has the state {state:?}", claim.key)),
        }
    }
    for (address, records) in recorded {
        if !claimed.contains(&address) {
            wrong.push(format!("{address} is recorded for {} and not claimed", records[0].container));
        }
    }
    wrong
}

fn host_violations(host: &Host, stored: &Stored) -> Vec<String> {
    let mut wrong = Vec::new();
    let containers: BTreeSet<String> = host.container_ids().into_iter().collect();
    let records: Vec<&Record> = stored.records.iter().filter(|record| record.host == host.name).collect();
    let links = host.cali_links();
    let routes = own_routes(host);

    for id in host.promised.lock().unwrap().iter().filter(|id| containers.contains(*id)) {
        if !records.iter().any(|record| record.container == **id) {
            wrong.push(format!("container {id} was promised a network and has no record"));
        }
    }
    let mut expected_links = BTreeSet::new();
    let mut expected_routes = BTreeSet::new();
    for record in &records {
        if !containers.contains(&record.container) {
            wrong.push(format!("a record of the container {}, which does not exist", record.container));
            continue;
        }
        let mut known = host.known.lock().unwrap();
        let first = known.entry(record.container.clone()).or_insert_with(|| record.identity());
        if *first != record.identity() {
            wrong.push(format!("{} was {first:?} and is now {:?}", record.container, record.identity()));
        }
        drop(known);
        let reply = host.raw_api("GET", &format!("/containers/{}/json", record.container));
        let inspected = reply.json();
        let state = &inspected["State"];
        let running = state["Running"] == true && state["Restarting"] != true;
        // What lost its address has no network any more, even if somebody starts it at dockerd; nor has, until then, what
        // waits for one.
        let dark = !record.handed_over().is_empty() || waits_for_any(stored, record);
        let running = running && !dark;
        let expected = if running { "active" } else { "inactive" };
        if record.text("state") != expected {
            wrong
                .push(format!("{} has the state {} and should be {expected}", record.container, record.value["state"]));
        }
        if record.text("name") != format!("cali{}", &record.endpoint[..11.min(record.endpoint.len())]) {
            wrong.push(format!("endpoint {} has the interface {}", record.endpoint, record.value["name"]));
        }
        if running {
            expected_links.insert(record.text("name"));
            expected_routes.extend(record.addresses().into_iter().map(|address| (address, record.text("name"))));
            wrong.extend(inside_violations(record, &inspected));
            let links = inside(&state["Pid"], &["link", "show"]);
            let of_container = records.iter().filter(|other| other.container == record.container);
            let of_us: BTreeSet<String> = of_container.map(|record| record.interface().to_owned()).collect();
            let strange: Vec<&str> = names_of(&links).into_iter().filter(|name| !of_us.contains(*name)).collect();
            if strange.len() > given_by_dockerd(&inspected) {
                wrong.push(format!("{} has the further interfaces {strange:?}", record.container));
            }
        }
        wrong.extend(traces_of_us(&inspected));
    }
    for id in containers.iter().filter(|id| !records.iter().any(|record| record.container == **id)) {
        wrong.extend(plain_violations(&host.raw_api("GET", &format!("/containers/{id}/json")).json()));
    }
    if links != expected_links {
        wrong.push(format!("interfaces {links:?} and should be {expected_links:?}"));
    }
    if routes != expected_routes {
        wrong.push(format!("routes {routes:?} and should be {expected_routes:?}"));
    }
    // What has no address at all any more is closed in IPv4.
    let four = records.iter().filter(|record| record.has_ipv4() || !record.has_ipv6());
    let six = records.iter().filter(|record| record.has_ipv6());
    for (family, rules, mine) in [
        ("IPv4", host.rules(), four.map(|record| record.text("name")).collect::<BTreeSet<_>>()),
        ("IPv6", host.rules6(), six.map(|record| record.text("name")).collect()),
    ] {
        let policed = dispatched(&rules);
        if policed != mine {
            wrong.push(format!("{family}: rules for the interfaces {policed:?} and should be for {mine:?}"));
        }
    }
    wrong.extend(set_violations(host, stored, &records));
    wrong.extend(file_violations(host, &containers, &records));
    wrong
}

fn waits_for_any(stored: &Stored, record: &Record) -> bool {
    stored.claims.iter().any(|claim| {
        serde_json::from_str::<Value>(&claim.entry.value).is_ok_and(|value| record.is_of(&value["successor"]["owner"]))
    })
}

/// Destination and interface of the routes that bear this software's protocol number, 97.
fn own_routes(host: &Host) -> BTreeSet<(String, String)> {
    let of = |family| host.ip_json(&[family, "route", "show", "table", "all", "proto", "97"]);
    let routes = [of("-4"), of("-6")].concat();
    let text = |route: &Value, key: &str| route[key].as_str().unwrap_or_default().to_owned();
    routes.iter().map(|route| (text(route, "dst"), text(route, "dev"))).collect()
}

/// The interfaces of containers that rules lead on to a chain of their own, in either direction.
fn dispatched(rules: &[String]) -> BTreeSet<String> {
    let words =
        rules.iter().filter(|rule| rule.starts_with("-A calico-")).map(|rule| rule.split(' ').collect::<Vec<_>>());
    let mut interfaces = BTreeSet::new();
    for rule in words {
        let to_own_chain = rule.iter().any(|word| word.starts_with("calico-fw-") || word.starts_with("calico-tw-"));
        if to_own_chain && let Some(at) = rule.iter().position(|word| matches!(*word, "-i" | "-o")) {
            interfaces.insert(rule[at + 1].to_owned());
        }
    }
    interfaces
}

/// What `ip -json` says inside the network of a process. The process may have ended meanwhile; the next look tells.
fn inside(pid: &Value, args: &[&str]) -> Vec<Value> {
    let ran = Run::new("nsenter").arg(format!("--net=/proc/{pid}/ns/net")).args(["ip", "-json"]).args(args).run();
    serde_json::from_str(&ran.out()).unwrap_or_default()
}

/// The names of the interfaces but the loopback.
fn names_of(links: &[Value]) -> BTreeSet<&str> {
    links.iter().filter_map(|link| link["ifname"].as_str()).filter(|name| *name != "lo").collect()
}

/// What dockerd shows of us besides the runtime, which is the mark of our containers.
fn traces_of_us(inspected: &Value) -> Vec<String> {
    let host_config = &inspected["HostConfig"];
    let places = [
        ("Path", &inspected["Path"]),
        ("Args", &inspected["Args"]),
        ("Entrypoint", &inspected["Config"]["Entrypoint"]),
        ("Mounts", &inspected["Mounts"]),
        ("Binds", &host_config["Binds"]),
        ("Devices", &host_config["Devices"]),
        ("ExtraHosts", &host_config["ExtraHosts"]),
    ];
    let shows = places.into_iter().filter(|(_, value)| value.to_string().contains("calico"));
    shows.map(|(place, value)| format!("{} shows us in {place}: {value}", inspected["Id"])).collect()
}

/// How many interfaces a container has from dockerd.
fn given_by_dockerd(inspected: &Value) -> usize {
    let networks = inspected["NetworkSettings"]["Networks"].as_object().into_iter().flatten();
    networks.filter(|(_, network)| network["MacAddress"].as_str().is_some_and(|mac| !mac.is_empty())).count()
}

/// A container that is not ours has what dockerd gave it.
fn plain_violations(inspected: &Value) -> Vec<String> {
    let mut wrong = traces_of_us(inspected);
    let id = &inspected["Id"];
    let mode = inspected["HostConfig"]["NetworkMode"].as_str().unwrap_or_default();
    let own_network = mode != "host" && !mode.starts_with("container:");
    if own_network && inspected["State"]["Running"] == true && inspected["State"]["Restarting"] != true {
        let (given, links) = (given_by_dockerd(inspected), inside(&inspected["State"]["Pid"], &["link", "show"]));
        // A network that is named twice, by its name and by its id, is one interface.
        if names_of(&links).len() > given {
            wrong.push(format!("{id} is none of ours and has {:?}, dockerd gave {given}", names_of(&links)));
        }
    }
    wrong
}

/// What a running container itself sees: one interface besides the loopback, with the recorded addresses, and a way out.
fn inside_violations(record: &Record, inspected: &Value) -> Vec<String> {
    let mut wrong = Vec::new();
    let pid = &inspected["State"]["Pid"];
    let container = &record.container;
    let interface = record.interface();
    let links = inside(pid, &["address", "show"]);
    let ours: Vec<&Value> = links.iter().filter(|link| link["ifname"] == interface).collect();
    let [link] = ours.as_slice() else {
        return vec![format!("{container} has no {interface} inside")];
    };
    if link["operstate"] != "UP" {
        wrong.push(format!("{container} has {interface} {}", link["operstate"]));
    }
    if link["address"] != record.value["mac"] {
        wrong.push(format!("{container} has the MAC {} and should have {}", link["address"], record.value["mac"]));
    }
    let addresses: BTreeSet<String> = link["addr_info"]
        .as_array()
        .into_iter()
        .flatten()
        .filter(|address| {
            let alone = if address["family"] == "inet6" { 128 } else { 32 };
            address["prefixlen"] == alone
        })
        .filter_map(|address| address["local"].as_str().map(str::to_owned))
        .collect();
    if addresses != record.addresses() {
        wrong.push(format!("{container} has {addresses:?} and should have {:?}", record.addresses()));
    }
    let routes = inside(pid, &["-6", "route", "show", "default"]);
    let leads = |route: &Value| route["dev"] == interface && route["gateway"] == "fe80::ecee:eeff:feee:eeee";
    if routes.iter().any(leads) != record.has_ipv6() {
        wrong.push(format!("{container} has the IPv6 routes {routes:?}, and the addresses {:?}", record.addresses()));
    }
    if !record.has_ipv4() {
        return wrong;
    }
    let routes = inside(pid, &["-4", "route", "show", "default"]);
    if !routes.iter().any(|route| route["dev"] == interface && route["gateway"] == record.value["ipv4_gateway"]) {
        wrong.push(format!("{container} has no way out by {}: {routes:?}", record.value["ipv4_gateway"]));
    }
    wrong
}

/// A set names only addresses that are recorded, pools, hosts, and interfaces of recorded endpoints of this host.
fn set_violations(host: &Host, stored: &Stored, records: &[&Record]) -> Vec<String> {
    let addresses: BTreeSet<String> = stored.records.iter().flat_map(Record::addresses).collect();
    let interfaces: BTreeSet<String> = records.iter().map(|record| record.text("name")).collect();
    let mut wrong = Vec::new();
    for (set, members) in host.sets() {
        for member in members {
            for part in member.split(',') {
                let known = match part {
                    _ if part.starts_with("cali") => interfaces.contains(part),
                    _ if part.contains('/') => true,
                    _ if ["192.168.", "10.", "fd80:"].iter().any(|begin| part.starts_with(begin)) => {
                        addresses.contains(part)
                    }
                    _ => true,
                };
                if !known {
                    wrong.push(format!("set {set} still has the member {member}"));
                }
            }
        }
    }
    wrong
}

/// What a node keeps on disk for its successor and for the runtime is that of the containers and endpoints that exist.
fn file_violations(host: &Host, containers: &BTreeSet<String>, records: &[&Record]) -> Vec<String> {
    let names = |folder: &std::path::Path| -> BTreeSet<String> {
        let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
        entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
    };
    let mut wrong = Vec::new();
    let folder = host.state_dir().join("reservations");
    let ours: BTreeSet<&String> = records.iter().map(|record| &record.container).collect();
    let (files, expected) = (names(&folder), ours.iter().map(|id| format!("{id}.json")).collect::<BTreeSet<_>>());
    if files != expected {
        wrong.push(format!("the reservations {files:?} and should be {expected:?}"));
    }
    for record in records {
        let text = std::fs::read_to_string(folder.join(format!("{}.json", record.container))).unwrap_or_default();
        let kept = serde_json::from_str::<Value>(&text).unwrap_or_default()["endpoints"][&record.endpoint].clone();
        if ["mac", "ipv4_nets", "ipv6_nets"].iter().any(|key| kept[key] != record.value[key]) {
            wrong.push(format!("{} is kept with {kept} and recorded with {}", record.container, record.value));
        }
    }
    let (marks, expected) = (
        names(&host.run_dir().join("programmed")),
        records.iter().map(|record| record.endpoint.clone()).collect::<BTreeSet<_>>(),
    );
    if marks != expected {
        wrong.push(format!("marked as programmed are {marks:?} and should be {expected:?}"));
    }
    let refused = names(&host.run_dir().join("refused"));
    for id in refused.iter().filter(|id| !containers.contains(*id)) {
        wrong.push(format!("refused/{id} is left over"));
    }
    wrong
}
