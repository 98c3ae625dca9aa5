//! `calicoctl pool`: the address ranges that containers are given addresses from.

use std::collections::{BTreeMap, BTreeSet};

use clap::Subcommand;
use ipnet::IpNet;
use serde_json::{Value, json};

use super::datastore::{Datastore, Edit};
use super::place::Place;
use super::table::Table;
use super::{Answer, Failure};
use crate::edge::etcd::{When, Write, to_json};
use crate::model::claim::Claim;
use crate::model::fault::Fault;
use crate::model::key::{ADDRESSES, Key, POOLS, assignments_of};
use crate::model::pool::{Family, Pool as Stored, nobodys, overlap};
use crate::model::rule::parse_net;
use crate::model::snapshot::{Record, Snapshot};

/// How many addresses a refusal names.
const NAMED: usize = 5;

#[derive(Debug, Subcommand)]
pub(super) enum Pool {
    /// Add pools, or change the options of pools that are there
    Add {
        /// Ranges such as 192.168.0.0/16; a single address is a range of one
        #[arg(required = true, value_name = "CIDR", value_parser = parse_net)]
        cidrs: Vec<IpNet>,
        /// Let containers reach the outside under their host's address
        #[arg(long)]
        nat_outgoing: bool,
    },
    /// Remove pools whose addresses nobody holds
    Remove {
        /// The ranges of the pools
        #[arg(required = true, value_name = "CIDR", value_parser = parse_net)]
        cidrs: Vec<IpNet>,
        /// Remove them though addresses are held: their containers keep them, but are cut off from other hosts
        #[arg(long)]
        force: bool,
    },
    /// List the pools
    Show {
        /// Only those of IPv4
        #[arg(long, conflicts_with = "ipv6")]
        ipv4: bool,
        /// Only those of IPv6
        #[arg(long)]
        ipv6: bool,
    },
}

pub(super) async fn run(command: Pool, place: &Place<'_>) -> Result<Answer, Failure> {
    let datastore = Datastore::connect(place).await?;
    let listed = |nets: &[IpNet]| nets.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    match command {
        Pool::Add { cidrs, nat_outgoing } => {
            let doing = format!("add pool {}", listed(&cidrs));
            Ok(datastore.edit(&doing, &[ADDRESSES], |snapshot| add(snapshot, &cidrs, nat_outgoing)).await?)
        }
        Pool::Remove { cidrs, force } => {
            let doing = format!("remove pool {}", listed(&cidrs));
            let paths: &[&str] = if force { &POOLS } else { &[ADDRESSES] };
            Ok(datastore.edit(&doing, paths, |snapshot| remove(snapshot, &cidrs, force)).await?)
        }
        Pool::Show { ipv4, ipv6 } => {
            let families: Vec<Family> =
                [(Family::V4, !ipv6), (Family::V6, !ipv4)].into_iter().filter(|(_, on)| *on).map(|(f, _)| f).collect();
            Ok(show(&datastore.load(&POOLS).await?, &families))
        }
    }
}

/// Success without a word for people, as in the original, and with the ranges for programs.
fn silent(nets: &BTreeSet<IpNet>) -> Answer {
    Answer { text: String::new(), json: json!({ "pools": nets }) }
}

fn add(snapshot: &Snapshot, cidrs: &[IpNet], nat_outgoing: bool) -> Result<Edit<Answer>, Fault> {
    let nets: BTreeSet<IpNet> = cidrs.iter().copied().collect();
    let mut mistakes = Vec::new();
    for net in &nets {
        let without = nobodys(net.network()).filter(|(range, _)| range.contains(net));
        mistakes.extend(without.map(|(range, kind)| {
            format!("Cannot add IP pool {net} - pool lies in {range}, of which every address is {kind} and none a container's")
        }));
        let existing = snapshot.pools.keys().filter(|other| *other != net && overlap(*net, **other));
        mistakes.extend(
            existing.map(|other| format!("Cannot add IP pool {net} - pool overlaps with an existing pool {other}")),
        );
        // What was claimed of a pool that was removed by force is still held.
        let held = snapshot.claims.keys().filter(|key| key.pool != *net && net.contains(&key.address));
        let mut former: BTreeMap<IpNet, usize> = BTreeMap::new();
        held.for_each(|key| *former.entry(key.pool).or_default() += 1);
        mistakes.extend(former.iter().filter(|(pool, _)| !snapshot.pools.contains_key(*pool)).map(|(pool, count)| {
            format!("Cannot add IP pool {net} - containers still hold {count} addresses of it from the removed pool {pool}: remove them first, or add {pool} again")
        }));
        // Each pair once, named from the smaller.
        let new = nets.iter().filter(|other| net < *other && overlap(*net, **other));
        mistakes
            .extend(new.map(|other| format!("Cannot add IP pool {net} - pool overlaps with another new pool {other}")));
    }
    refuse(mistakes, "No pools added.")?;
    // Of two overlapping pools that are added in the same moment, one must see the other.
    let quiet = POOLS.map(|path| When::Quiet(path.to_owned(), snapshot.revision));
    let mut edit = Edit { when: quiet.to_vec(), writes: Vec::new(), answer: silent(&nets) };
    for net in nets {
        let key = Key::Pool(net);
        let old = snapshot.pools.get(&net);
        edit.when.push(match old {
            Some(record) => When::At(key.clone(), record.revision),
            None => When::Absent(key.clone()),
        });
        let pool = old.and_then(Record::readable).cloned().unwrap_or_else(|| Stored::new(net));
        // To add a pool that is being removed is to want it.
        let pool = Stored { masquerade: nat_outgoing, disabled: false, ..pool };
        edit.writes.push(Write::Put(key, to_json(&pool)?));
    }
    Ok(edit)
}

fn remove(snapshot: &Snapshot, cidrs: &[IpNet], force: bool) -> Result<Edit<Answer>, Fault> {
    let nets: BTreeSet<IpNet> = cidrs.iter().copied().collect();
    let mut mistakes = Vec::new();
    let mut edit = Edit { when: Vec::new(), writes: Vec::new(), answer: silent(&nets) };
    for net in nets {
        let key = Key::Pool(net);
        match snapshot.pools.get(&net) {
            Some(record) => edit.when.push(When::At(key.clone(), record.revision)),
            None => mistakes.push(format!("{net} is not a configured pool.")),
        }
        if !force {
            mistakes.extend(in_use(snapshot, net));
            // A claim that is made meanwhile must be seen.
            edit.when.push(When::Quiet(assignments_of(net), snapshot.revision));
        }
        edit.writes.push(Write::Delete(key));
    }
    refuse(mistakes, "No pools removed.")?;
    Ok(edit)
}

fn refuse(mut mistakes: Vec<String>, nothing: &str) -> Result<(), Fault> {
    if mistakes.is_empty() {
        return Ok(());
    }
    mistakes.push(nothing.to_owned());
    Err(Fault::Refusal(mistakes.join("\n")))
}

/// Why a pool cannot be removed, if addresses of it are held.
fn in_use(snapshot: &Snapshot, net: IpNet) -> Option<String> {
    let held: Vec<String> = snapshot
        .claims
        .iter()
        .filter(|(key, _)| key.pool == net)
        .map(|(key, record)| {
            let holder = record.readable().map_or_else(|| "an unknown owner".to_owned(), Claim::holder);
            format!("  {} is held by {holder}", key.address)
        })
        .collect();
    if held.is_empty() {
        return None;
    }
    let more = held.len().saturating_sub(NAMED);
    let mut lines = vec![format!("Cannot remove IP pool {net} - containers hold {} of its addresses:", held.len())];
    lines.extend(held.into_iter().take(NAMED));
    if more > 0 {
        lines.push(format!("  and {more} more"));
    }
    lines.push("Remove those containers first, or use the '--force' flag to remove the pool anyway.".to_owned());
    Some(lines.join("\n"))
}

fn options(pool: &Stored) -> String {
    let words = [("ipip", pool.ipip.is_some()), ("nat-outgoing", pool.masquerade), ("disabled", pool.disabled)];
    words.iter().filter(|(_, on)| *on).map(|(word, _)| *word).collect::<Vec<_>>().join(",")
}

fn show(snapshot: &Snapshot, families: &[Family]) -> Answer {
    let mut blocks = Vec::new();
    let mut json = Vec::new();
    for family in families {
        let title = match family {
            Family::V4 => "IPv4 CIDR",
            Family::V6 => "IPv6 CIDR",
        };
        let mut table = Table::new(&[title, "Options"]);
        let mut unreadable = Vec::new();
        for (net, record) in snapshot.pools.iter().filter(|(net, _)| Family::of_net(**net) == *family) {
            match &record.value {
                Ok(pool) => {
                    table.row([net.to_string(), options(pool)]);
                    json.push(json!({
                        "cidr": net,
                        "nat_outgoing": pool.masquerade,
                        "ipip": pool.ipip,
                        "ipam": pool.ipam,
                        "disabled": pool.disabled,
                    }));
                }
                Err(why) => {
                    table.row([net.to_string(), "unreadable".to_owned()]);
                    unreadable.push(super::table::printable(&format!("Pool {net} cannot be read: {why}")));
                    json.push(json!({ "cidr": net, "error": why }));
                }
            }
        }
        blocks.push(format!("{}\n", table.render()));
        blocks.extend(unreadable);
    }
    Answer { text: blocks.join("\n"), json: Value::Array(json) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::snapshot::tests::from_json;

    fn nets(list: &[&str]) -> Vec<IpNet> {
        list.iter().map(|text| parse_net(text).unwrap()).collect()
    }

    fn snapshot() -> Snapshot {
        from_json(
            r#"{
            "/calico/v1/ipam/v4/pool/192.168.0.0-16": {"cidr": "192.168.0.0/16", "ipip": "tunl0"},
            "/calico/v1/ipam/v4/pool/10.0.0.0-24": {"cidr": "10.0.0.0/24", "masquerade": true},
            "/calico/v1/ipam/v4/assignment/192.168.0.0-16/192.168.1.1": "",
            "/calico/v1/ipam/v4/assignment/192.168.0.0-16/192.168.1.2":
                {"v":1,"state":"bound","request":"","successor":null,"owner":{"host":"h1","orchestrator":"docker",
                 "workload":"0123456789abcdef","endpoint":"e1","name":"web","since":"2024-01-01T00:00:00Z"}}
            }"#,
        )
    }

    fn values(edit: &Edit<Answer>) -> Vec<String> {
        let text = |write: &Write| match write {
            Write::Put(key, value) => format!("{} {}", key.path(), String::from_utf8(value.clone()).unwrap()),
            other => format!("{other:?}"),
        };
        edit.writes.iter().map(text).collect()
    }

    #[test]
    fn pools_are_added_in_one_step_with_host_bits_cleared() {
        let edit = add(&snapshot(), &nets(&["172.16.5.4/12", "11.0.0.1", "172.16.0.0/12"]), true).unwrap();
        assert_eq!(
            values(&edit),
            [
                r#"/calico/v1/ipam/v4/pool/11.0.0.1-32 {"cidr":"11.0.0.1/32","masquerade":true}"#,
                r#"/calico/v1/ipam/v4/pool/172.16.0.0-12 {"cidr":"172.16.0.0/12","masquerade":true}"#,
            ]
        );
        assert!(edit.when.iter().all(|when| matches!(when, When::Absent(_) | When::Quiet(..))));
        assert_eq!(edit.answer.text, "");
    }

    #[test]
    fn a_pool_that_is_there_gets_new_options_and_keeps_the_rest() {
        let edit = add(&snapshot(), &nets(&["192.168.0.0/16", "10.0.0.0/24"]), false).unwrap();
        let values = values(&edit);
        assert!(values[0].ends_with(r#" {"cidr":"10.0.0.0/24"}"#), "{values:?}");
        assert!(values[1].ends_with(r#" {"cidr":"192.168.0.0/16","ipip":"tunl0"}"#), "{values:?}");
        assert!(edit.when.iter().all(|when| matches!(when, When::At(_, 1) | When::Quiet(..))));
    }

    #[test]
    fn a_pool_of_addresses_that_no_container_can_have_is_not_added() {
        for (net, kind) in [
            ("::ffff:0:0/96", "an IPv4 address in the spelling of IPv6"),
            ("::ffff:10.0.0.0/104", "an IPv4 address in the spelling of IPv6"),
            ("127.1.0.0/16", "a loopback address"),
            ("::1", "a loopback address"),
            ("224.0.0.0/4", "a multicast address"),
            ("ff00::/8", "a multicast address"),
            ("fe80::/64", "a link-local address"),
            ("0.0.0.0/32", "the unspecified address"),
            ("255.255.255.255/32", "the broadcast address"),
        ] {
            let error = add(&Snapshot::default(), &nets(&[net, "11.0.0.0/8"]), false).unwrap_err().to_string();
            assert!(error.starts_with("Cannot add IP pool ") && error.contains(kind), "{net}: {error}");
            assert!(error.ends_with("\nNo pools added.") && !error.contains("11.0.0.0/8"), "{net}: {error}");
        }
        // What only holds such, and what somebody may want.
        for net in ["0.0.0.0/0", "::/0", "240.0.0.0/4", "169.254.0.0/16", "100.64.0.0/10", "::/64", "fec0::/10"] {
            assert!(add(&Snapshot::default(), &nets(&[net]), false).is_ok(), "{net}");
        }
    }

    #[test]
    fn every_overlap_is_named_and_nothing_is_added() {
        let error = add(&snapshot(), &nets(&["192.168.3.0/24", "10.0.0.0/8", "10.1.0.0/16", "fd00::/8"]), false);
        assert_eq!(
            error.unwrap_err().to_string(),
            "\
Cannot add IP pool 10.0.0.0/8 - pool overlaps with an existing pool 10.0.0.0/24
Cannot add IP pool 10.0.0.0/8 - pool overlaps with another new pool 10.1.0.0/16
Cannot add IP pool 192.168.3.0/24 - pool overlaps with an existing pool 192.168.0.0/16
No pools added."
        );
    }

    #[test]
    fn addresses_that_are_held_of_a_removed_pool_are_in_no_other() {
        let mut former = snapshot();
        former.pools.remove(&nets(&["192.168.0.0/16"])[0]);
        let error = add(&former, &nets(&["192.0.0.0/8"]), false).unwrap_err().to_string();
        assert!(error.contains("2 addresses of it from the removed pool 192.168.0.0/16"), "{error}");
        // Where nothing is held, and the same pool again.
        for net in ["11.0.0.0/8", "192.168.0.0/16", "192.169.0.0/16"] {
            assert!(add(&former, &nets(&[net]), false).is_ok(), "{net}");
        }
    }

    #[test]
    fn a_pool_that_is_held_or_unknown_is_not_removed() {
        let error = remove(&snapshot(), &nets(&["192.168.0.0/16", "10.9.0.0/16"]), false).unwrap_err().to_string();
        for part in [
            "10.9.0.0/16 is not a configured pool.",
            "containers hold 2 of its addresses",
            "192.168.1.1 is held by an unknown owner",
            "192.168.1.2 is held by container web (0123456789ab) on host h1",
            "--force",
        ] {
            assert!(error.contains(part), "{error}");
        }
        assert_eq!(remove(&snapshot(), &nets(&["192.168.0.0/16"]), true).unwrap().writes.len(), 1);
        assert_eq!(remove(&snapshot(), &nets(&["10.0.0.0/24"]), false).unwrap().writes.len(), 1);
    }

    #[test]
    fn pools_are_shown_by_family() {
        let answer = show(&snapshot(), &Family::BOTH);
        assert_eq!(
            answer.text,
            "\
+----------------+--------------+
|   IPv4 CIDR    |   Options    |
+----------------+--------------+
|  10.0.0.0/24   | nat-outgoing |
| 192.168.0.0/16 |     ipip     |
+----------------+--------------+

+-----------+---------+
| IPv6 CIDR | Options |
+-----------+---------+
+-----------+---------+
"
        );
        assert_eq!(
            answer.json[0],
            json!({"cidr":"10.0.0.0/24","nat_outgoing":true,"ipip":null,"ipam":true,"disabled":false})
        );
        assert_eq!(show(&Snapshot::default(), &[Family::V6]).json, json!([]));
    }
}
