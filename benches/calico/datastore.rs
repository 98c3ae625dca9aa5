//! The datastore, from the outside, and records that no container stands behind.

use std::sync::Arc;
use std::time::{Duration, Instant};

use etcd_client::{Client, Txn, TxnOp};
use serde_json::json;
use tokio::runtime::Runtime;

use crate::Outcome;
use crate::lab::HOST;

/// How many operations etcd takes in one transaction (its `--max-txn-ops`).
const AT_ONCE: usize = 128;

pub(crate) struct Store {
    runtime: Runtime,
    client: Client,
}

impl Store {
    pub(crate) fn connect(endpoint: &str) -> Outcome<Store> {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        let client = runtime.block_on(Client::connect([endpoint], None))?;
        Ok(Store { runtime, client })
    }

    /// Answers when the put was acknowledged.
    pub(crate) fn put(&mut self, key: &str, value: &str) -> Outcome<Instant> {
        self.runtime.block_on(self.client.put(key, value, None))?;
        Ok(Instant::now())
    }

    pub(crate) fn delete(&mut self, key: &str) -> Outcome<()> {
        self.runtime.block_on(self.client.delete(key, None))?;
        Ok(())
    }

    /// Writes many records, many at a time.
    pub(crate) fn fill(&mut self, records: impl Iterator<Item = (String, String)>) -> Outcome<()> {
        let mut operations = Vec::new();
        let mut send = |operations: Vec<TxnOp>| -> Outcome<()> {
            self.runtime.block_on(self.client.txn(Txn::new().and_then(operations)))?;
            Ok(())
        };
        for (key, value) in records {
            operations.push(TxnOp::put(key, value, None));
            if operations.len() == AT_ONCE {
                send(std::mem::take(&mut operations))?;
            }
        }
        if operations.is_empty() { Ok(()) } else { send(operations) }
    }

    /// How many records there are below a path.
    pub(crate) fn count(&mut self, prefix: &str) -> Outcome<i64> {
        let options = etcd_client::GetOptions::new().with_prefix().with_count_only();
        Ok(self.runtime.block_on(self.client.get(prefix, Some(options)))?.count())
    }

    /// Takes away all below a path.
    pub(crate) fn clear(&mut self, prefix: &str) -> Outcome<()> {
        let options = etcd_client::DeleteOptions::new().with_prefix();
        self.runtime.block_on(self.client.delete(prefix, Some(options)))?;
        Ok(())
    }

    /// Puts records, one in each call and so many a second, for a time. Answers how many were acknowledged.
    pub(crate) fn stream(
        &self,
        a_second: u32,
        time: Duration,
        record: impl Fn(usize) -> (String, String) + Send + Sync + 'static,
    ) -> std::thread::JoinHandle<Outcome<usize>> {
        let (client, handle, record) = (self.client.clone(), self.runtime.handle().clone(), Arc::new(record));
        std::thread::spawn(move || {
            handle.block_on(async move {
                let (begun, mut sent) = (Instant::now(), 0);
                let mut puts = tokio::task::JoinSet::new();
                let mut tick = tokio::time::interval(Duration::from_millis(10));
                while begun.elapsed() < time {
                    tick.tick().await;
                    let due = usize::try_from(begun.elapsed().as_millis() * u128::from(a_second) / 1000)?;
                    for number in sent..due {
                        let (mut client, (key, value)) = (client.clone(), record(number));
                        puts.spawn(async move { client.put(key, value, None).await.map(drop) });
                    }
                    sent = due;
                }
                let mut done = 0;
                while let Some(put) = puts.join_next().await {
                    put??;
                    done += 1;
                }
                Ok(done)
            })
        })
    }
}

/// An endpoint's record as a `docker create` or a start leaves it, of some host and with some profile. Its number is its address in the default
/// pool, from the middle on.
#[derive(Clone)]
pub(crate) struct Fake {
    pub(crate) key: String,
    pub(crate) value: String,
    /// What all names of its chains hold.
    pub(crate) mark: String,
    pub(crate) interface: String,
    pub(crate) address: String,
}

impl Fake {
    /// One of this host, whose process does not run.
    pub(crate) fn new(number: usize) -> Fake {
        Fake::of(HOST, number, "inactive", "bench")
    }

    pub(crate) fn of(host: &str, number: usize, state: &str, profile: &str) -> Fake {
        // Spread over the branches that chains are found by, as random ids are, and never the same twice.
        let id = format!("{:08x}be9c{number:020x}", small(number).wrapping_mul(0x9e37_79b1));
        let mark = id[..11].to_owned();
        let interface = format!("cali{mark}");
        let address = address(number);
        // Not under `docker`: no container of dockerd's stands behind it, and the node must not look for one.
        let key = format!("/calico/v1/host/{host}/workload/bench/{number:064x}/endpoint/{id}");
        let value = json!({
            "state": state,
            "name": interface,
            "mac": format!("02:00:00:{:02x}:{:02x}:{:02x}", number >> 16 & 255, number >> 8 & 255, number & 255),
            "container:if_name": "eth1",
            "profile_ids": [profile],
            "ipv4_nets": [format!("{address}/32")],
            "ipv6_nets": [],
            "ipv4_gateway": "172.31.255.1",
            "ipv6_gateway": null,
            "requested": { "network_mode": "default", "networks": {} },
        });
        Fake { key, value: value.to_string(), mark, interface, address }
    }

    /// The claim of its address, as a bound one is kept.
    pub(crate) fn claim(&self, host: &str, number: usize) -> (String, String) {
        let owner = json!({
            "host": host, "orchestrator": "bench", "workload": format!("{number:064x}"),
            "endpoint": self.key.rsplit('/').next(), "name": format!("box{number}"), "since": "2026-01-01T00:00:00Z",
        });
        let value =
            json!({ "v": 1, "state": "bound", "owner": owner, "request": "0123456789abcdef", "successor": null });
        (format!("/calico/v1/ipam/v4/assignment/10.0.0.0-8/{}", self.address), value.to_string())
    }
}

/// There are fewer than four thousand million.
fn small(number: usize) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}

/// The address with a number, in 10.128.0.0/9.
pub(crate) fn address(number: usize) -> String {
    std::net::Ipv4Addr::from(0x0a80_0000 + small(number)).to_string()
}

/// The tags and rules of a profile whose members may reach each other.
pub(crate) fn profile(name: &str) -> [(String, String); 2] {
    let path = format!("/calico/v1/policy/profile/{name}");
    let rules = json!({
        "inbound_rules": [{ "action": "allow", "src_tag": name }],
        "outbound_rules": [{ "action": "allow" }],
    });
    [(format!("{path}/tags"), json!([name]).to_string()), (format!("{path}/rules"), rules.to_string())]
}
